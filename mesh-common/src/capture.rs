//! What becomes of a connect: the decision of the `connect4` and `connect6` hooks, free of the kernel.
//!
//! The hook looks things up and carries out the verdict; which verdict it is, is decided here and tested on the host.

use crate::abi::{
    BACKEND_NONE, BACKEND_STRICT, DESTINATION_ENROLLED, DESTINATION_STRICT, SERVICE_CAPTURE, SERVICE_RANGES,
    SERVICE_STRICT, STATE_TRANSLATE, State,
};

/// What the connect hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing of ours: the connection goes where it was sent.
    Pass,
    /// Steer it to the agent.
    Capture,
    /// Translate to a backend.
    Translate,
    /// Let it go where it was sent although the agent should have had it: the agent is away, the destination permits it.
    Direct,
    /// Refuse at once.
    Refuse,
}

/// How the agent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agent {
    /// It shows signs of life.
    pub alive: bool,
    /// Service addresses are translated here (also while it is away).
    pub translates: bool,
}

impl Agent {
    /// As the state says at `now_ns`.
    #[inline(always)]
    pub const fn at(state: &State, now_ns: u64) -> Self {
        Self { alive: alive(state, now_ns), translates: state.flags & STATE_TRANSLATE != 0 }
    }
}

/// Whether the agent is alive at `now_ns`.
#[inline(always)]
pub const fn alive(state: &State, now_ns: u64) -> bool {
    state.heartbeat_ns != 0 && now_ns.saturating_sub(state.heartbeat_ns) <= state.heartbeat_max_age_ns
}

/// A service address was asked for: steer to the agent, translate in the kernel, or leave it to whoever
/// else serves it: kube-proxy, or the node's `sk_lookup`, which knows the client's source address.
#[inline(always)]
pub const fn to_service(enrolled: bool, tcp: bool, flags: u32, agent: Agent) -> Verdict {
    if enrolled && tcp && flags & SERVICE_CAPTURE != 0 && agent.alive {
        Verdict::Capture
    } else if agent.translates && flags & SERVICE_RANGES == 0 {
        Verdict::Translate
    } else if enrolled && tcp && flags & SERVICE_STRICT != 0 {
        // Nothing here knows to which endpoint it would go.
        Verdict::Refuse
    } else {
        Verdict::Pass
    }
}

/// A backend was picked for a client: may it be reached in plaintext, past the agent?
///
/// Only an enrolled TCP client is refused: anybody else was never going to speak mTLS, and the destination's own node
/// refuses it there.
#[inline(always)]
pub const fn to_backend(enrolled: bool, tcp: bool, flags: u16) -> Verdict {
    if flags & BACKEND_NONE != 0 || (enrolled && tcp && flags & BACKEND_STRICT != 0) {
        Verdict::Refuse
    } else {
        Verdict::Translate
    }
}

/// An enrolled client asked for an address that is no service's; `flags` are those of `DESTINATIONS`.
#[inline(always)]
pub const fn to_workload(flags: u32, agent_alive: bool) -> Verdict {
    if flags & DESTINATION_ENROLLED == 0 {
        Verdict::Pass
    } else if agent_alive {
        Verdict::Capture
    } else if flags & DESTINATION_STRICT != 0 {
        Verdict::Refuse
    } else {
        Verdict::Direct
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(heartbeat_ns: u64) -> State {
        State { heartbeat_ns, heartbeat_max_age_ns: 1_000, ..State::default() }
    }

    #[test]
    fn an_agent_is_alive_while_its_heartbeat_is_fresh() {
        assert!(alive(&state(5_000), 6_000));
        assert!(!alive(&state(5_000), 6_001), "stale");
        assert!(!alive(&state(0), 10), "known to be gone");
        assert!(alive(&state(7_000), 6_000), "a heartbeat written after the hook read the clock");
    }

    #[test]
    fn only_an_enrolled_tcp_client_is_captured() {
        let cases = [
            (true, true, SERVICE_CAPTURE, true, Verdict::Capture),
            (false, true, SERVICE_CAPTURE, true, Verdict::Translate),
            (true, false, SERVICE_CAPTURE, true, Verdict::Translate),
            (true, true, 0, true, Verdict::Translate),
            (true, true, SERVICE_CAPTURE, false, Verdict::Translate),
        ];
        for (enrolled, tcp, flags, alive, verdict) in cases {
            assert_eq!(to_service(enrolled, tcp, flags, Agent { alive, translates: true }), verdict);
        }
    }

    #[test]
    fn what_is_not_translated_here_is_left_alone_unless_it_is_strict() {
        let both = SERVICE_CAPTURE | SERVICE_STRICT;
        let cases = [
            (true, both, true, false, Verdict::Capture),
            (true, both, false, false, Verdict::Refuse),
            (false, both, false, false, Verdict::Pass),
            (true, SERVICE_CAPTURE, false, false, Verdict::Pass),
            (false, SERVICE_RANGES, true, true, Verdict::Pass),
            (true, both | SERVICE_RANGES, false, true, Verdict::Refuse),
        ];
        for (enrolled, flags, alive, translates, verdict) in cases {
            assert_eq!(to_service(enrolled, true, flags, Agent { alive, translates }), verdict, "{flags}");
        }
    }

    #[test]
    fn strict_is_never_reached_in_plaintext_by_an_enrolled_client() {
        assert_eq!(to_backend(true, true, BACKEND_STRICT), Verdict::Refuse);
        assert_eq!(to_backend(false, true, BACKEND_STRICT), Verdict::Translate);
        assert_eq!(to_backend(false, true, BACKEND_NONE), Verdict::Refuse);
        assert_eq!(to_workload(DESTINATION_ENROLLED | DESTINATION_STRICT, false), Verdict::Refuse);
        assert_eq!(to_workload(DESTINATION_ENROLLED, false), Verdict::Direct);
        assert_eq!(to_workload(DESTINATION_ENROLLED, true), Verdict::Capture);
        assert_eq!(to_workload(0, true), Verdict::Pass);
    }
}
