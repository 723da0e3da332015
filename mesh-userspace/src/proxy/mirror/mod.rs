//! Copies of what clients send, to shadows (`mirror`, `mirrors`).
//!
//! A copy begins when the client's connection stands. Its shadow is connected like any destination, as the client: over the
//! mesh where it is enrolled, asked for at its own end, within what its `DestinationRule` allows; once, without a retry, and
//! over TLS connections that no client's own connection shares. What it answers is read and thrown away; the client's FIN and its reset are passed on.
//!
//! Invariant: nothing that a shadow does or fails to do is noticed by the connection that is copied. Bytes are handed over
//! through a [`queue`] that never makes anyone wait; a shadow that does not keep up loses its connection by a reset, and the
//! rest is counted as dropped. What a client asked for from outside is not copied: routes of that kind are for enrolled
//! clients.

mod feed;
mod queue;
mod shadow;

use std::rc::Rc;
use std::sync::Arc;

use self::queue::Queue;
pub(crate) use self::queue::Room;
pub(super) use self::shadow::Source;
use super::copy::Tap;
use crate::model::Mirror;
use crate::telemetry::Outcome;

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// In order, with all that the client sent.
    Closed,
    /// More was waiting for the shadow than may.
    Behind,
    /// More was waiting for all shadows of the agent than may.
    NoRoom,
    /// There were as many copies as there may be.
    TooMany,
    /// The client's connection ended otherwise than by its FIN.
    ClientReset,
    /// The shadow reset it.
    ShadowReset,
    /// The shadow has no endpoint.
    NoEndpoint,
    /// The shadow's own limit on connections was reached.
    Overflow,
    /// It was not reached.
    ConnectFailed,
    /// It did not want the client.
    Refused,
    /// It went on for too long after the client's connection had ended.
    Lingered,
    /// Its endpoint went.
    Withdrawn,
    /// It reached a bound that the shadow's `DestinationRule` sets (`idleTimeout`, `maxConnectionDuration`).
    Bound,
    /// Policy there became different.
    Revoked,
    /// The agent, or the client's enrolment, ended.
    Shutdown,
}

impl End {
    /// As a label.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Behind => "behind",
            Self::NoRoom => "no_room",
            Self::TooMany => "too_many",
            Self::ClientReset => "client_reset",
            Self::ShadowReset => "shadow_reset",
            Self::NoEndpoint => "no_endpoint",
            Self::Overflow => "overflow",
            Self::ConnectFailed => "connect_failed",
            Self::Refused => "refused",
            Self::Lingered => "lingered",
            Self::Withdrawn => "withdrawn",
            Self::Bound => "bound",
            Self::Revoked => "revoked",
            Self::Shutdown => "shutdown",
        }
    }

    /// What the record of the shadow's connection says.
    const fn outcome(self) -> Outcome {
        match self {
            Self::Closed => Outcome::Closed,
            Self::Behind | Self::NoRoom | Self::TooMany | Self::Lingered => Outcome::MirrorBehind,
            Self::ClientReset => Outcome::ResetByClient,
            Self::ShadowReset => Outcome::ResetByServer,
            Self::NoEndpoint => Outcome::NoEndpoint,
            Self::Overflow => Outcome::Overflow,
            Self::ConnectFailed => Outcome::ConnectFailed,
            Self::Refused => Outcome::RefusedPolicy,
            Self::Withdrawn => Outcome::Withdrawn,
            Self::Bound => Outcome::MaxDuration,
            Self::Revoked => Outcome::Revoked,
            Self::Shutdown => Outcome::AgentShutdown,
        }
    }
}

/// The mirrors that a connection has, each by a draw of its own.
fn chosen(mirrors: &[Mirror], mut draw: impl FnMut() -> u64) -> impl Iterator<Item = &Mirror> {
    mirrors.iter().filter(move |mirror| mirror.share.takes(draw()))
}

/// The client's side of a connection's copies.
pub(super) struct Mirrors(Vec<Rc<Queue>>);

impl Mirrors {
    /// Begins the copies of a connection that stands; `None`: there are none.
    pub(super) fn begin(source: &Source<'_>, mirrors: &[Mirror]) -> Option<Self> {
        let worker = source.worker;
        let begin = |mirror: &Mirror| {
            let (room, metrics) = (&worker.shared.mirrors, worker.shared.telemetry.metrics());
            let queue = Rc::new(Queue::new(Arc::clone(room), Arc::clone(metrics)));
            match queue.place() {
                Some(place) => shadow::begin(source, mirror, Rc::clone(&queue), place),
                None => queue.end(End::TooMany),
            }
            queue
        };
        let copies: Vec<_> = chosen(mirrors, || worker.chance.mirror()).map(begin).collect();
        (!copies.is_empty()).then_some(Self(copies))
    }
}

impl Tap for Mirrors {
    fn is_open(&self) -> bool {
        self.0.iter().any(|queue| queue.is_open())
    }

    fn show(&self, bytes: &[u8]) {
        for queue in &self.0 {
            queue.show(bytes);
        }
    }

    fn skip(&self, count: u64) {
        for queue in &self.0 {
            queue.skip(count);
        }
    }

    fn finish(&self) {
        for queue in &self.0 {
            queue.finish();
        }
    }
}

impl Drop for Mirrors {
    fn drop(&mut self) {
        for queue in &self.0 {
            queue.client_gone();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{RouteTarget, ServiceName, Share};
    use crate::proxy::chance::Chance;

    fn mirror(name: &str, percent: f64) -> Mirror {
        let target = RouteTarget::whole(ServiceName::new("shop", name), 80, 0, [].into());
        Mirror { target, share: Share::percent(percent) }
    }

    proptest! {
        #[test]
        fn each_mirror_is_chosen_by_its_own_draw(
            shares in proptest::collection::vec(0.0..=100.0_f64, 0..5),
            draws in proptest::collection::vec(any::<u64>(), 5),
        ) {
            let mirrors: Vec<_> =
                shares.iter().enumerate().map(|(n, &share)| mirror(&n.to_string(), share)).collect();
            let mut next = draws.iter().copied();
            let given: Vec<_> =
                chosen(&mirrors, || next.next().unwrap()).map(|mirror| mirror.target.service.name.to_string()).collect();
            let expected: Vec<_> = (0..shares.len())
                .filter(|&n| Share::percent(shares[n]).takes(draws[n]))
                .map(|n| n.to_string())
                .collect();
            prop_assert_eq!(given, expected);
        }
    }

    #[test]
    fn shares_are_kept_over_many_connections() {
        let mirrors = [mirror("all", 100.0), mirror("some", 10.0), mirror("none", 0.0)];
        let chance = Chance::new(Some(3), 0);
        let mut counts = std::collections::BTreeMap::<_, i32>::new();
        for _ in 0..100_000 {
            for mirror in chosen(&mirrors, || chance.mirror()) {
                *counts.entry(mirror.target.service.name.to_string()).or_default() += 1;
            }
        }
        assert_eq!(counts["all"], 100_000);
        assert!((counts["some"] - 10_000).abs() < 480 && counts.len() == 2, "{counts:?}");
    }
}
