//! Who may connect to a workload: its mTLS modes and every `AuthorizationPolicy` that applies to it, as one [`Guard`].
//!
//! Istio's order: CUSTOM, then DENY, then ALLOW (<https://istio.io/latest/docs/reference/config/security/authorization-policy>).

mod decision;

use std::net::{IpAddr, SocketAddr};

pub use decision::{Decision, PolicyRef, Refusal, Verdict};

use crate::model::{Identity, MtlsModes, Snapshot, Workload};

/// A connection that somebody wants to have to a workload.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Who it is from, authenticated; `None` for plaintext.
    pub source: Option<&'a Identity>,
    /// The true client's address: `source.ip`, and at layer 4 `remote.ip` as well.
    pub client: IpAddr,
    /// The workload's address and port.
    pub destination: SocketAddr,
}

/// Everything that decides on connections to one workload.
#[derive(Clone, Debug)]
pub struct Guard {
    modes: MtlsModes,
}

impl Guard {
    /// The guard of a workload as the snapshot has it.
    pub fn of(_snapshot: &Snapshot, workload: &Workload) -> Self {
        Self { modes: workload.mtls.clone() }
    }

    /// Whether [`Self::of`] would make the same again: compares pointers, reads no policy.
    pub fn is_current(&self, _snapshot: &Snapshot, workload: &Workload) -> bool {
        self.modes == workload.mtls
    }

    /// Whether there is a policy in force (not a dry run) that may refuse: the kernel then lets nothing past the agent.
    pub fn may_refuse(&self) -> bool {
        false
    }

    /// What is to become of a connection.
    pub fn decide(&self, connection: &Connection<'_>) -> Decision {
        let mode = self.modes.at(connection.destination.port());
        if connection.source.is_none() && mode == crate::model::Mode::Strict {
            return Decision { verdict: Verdict::Refused(Refusal::Plaintext), ..Decision::default() };
        }
        Decision::default()
    }
}
