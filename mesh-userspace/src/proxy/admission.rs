//! Permission to reach a pod's application: decided before the application hears of a connection, and again whenever what
//! decides becomes different.
//!
//! Invariant: a connection subscribes to its pod's guard before it is decided on, so that no change is missed between the
//! two.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::gate::{Gate, Guarded};
use crate::model::Identity;
use crate::policy::authorization::{Connection, Decision, Refusal, Verdict};
use crate::telemetry::{Metrics, PolicyMark};

/// A connection that was let in, for as long as it may stay.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Followed for as long as somebody is inside.
    _gate: Arc<Gate>,
    guard: watch::Receiver<Guarded>,
    source: Option<Identity>,
    client: SocketAddr,
    destination: SocketAddr,
}

impl Admission {
    /// Asks for a connection from `source` (authenticated; `None` for plaintext) with the true client's address.
    pub(super) fn ask(
        gate: Arc<Gate>,
        guard: watch::Receiver<Guarded>,
        source: Option<&Identity>,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> (Self, Decision) {
        let mut asked = Self { _gate: gate, guard, source: source.cloned(), client, destination };
        let decision = asked.decide();
        (asked, decision)
    }

    fn decide(&mut self) -> Decision {
        let connection = Connection {
            source: self.source.as_ref(),
            client: self.client.ip(),
            destination: self.destination,
        };
        self.guard.borrow_and_update().guard.decide(&connection)
    }

    /// Returns once the connection is no longer allowed. Cancel safe.
    pub(crate) async fn revoked(&mut self) -> Refusal {
        loop {
            if self.guard.changed().await.is_err() {
                // It is held here, so that it does not end.
                std::future::pending::<()>().await;
            }
            if let Verdict::Refused(refusal) = self.decide().verdict {
                return refusal;
            }
        }
    }
}

/// Counts a decision, by what was done and by the policy that did it.
pub(super) fn count(metrics: &Metrics, decision: &Decision) {
    match &decision.verdict {
        Verdict::Unguarded => {}
        Verdict::Allowed(rule) => metrics.authorization_decided("allowed", "", &rule.policy.to_string()),
        Verdict::Refused(refusal) => refused(metrics, "refused", refusal),
    }
    if let Some(refusal) = &decision.dry_run {
        refused(metrics, "would_refuse", refusal);
    }
    for rule in &decision.audited {
        metrics.authorization_decided("audited", "", &rule.policy.to_string());
    }
}

/// Counts what was refused, or ended, or would have been.
pub(crate) fn refused(metrics: &Metrics, effect: &'static str, refusal: &Refusal) {
    let policy = match refusal {
        Refusal::Denied { rule } | Refusal::Custom { rule } => rule.policy.to_string(),
        Refusal::Plaintext | Refusal::NotAllowed => String::new(),
    };
    metrics.authorization_decided(effect, refusal.reason(), &policy);
}

/// What is worth keeping of a decision in the flow's record.
pub(super) fn mark(decision: &Decision) -> Option<Box<PolicyMark>> {
    let allowed_by = match &decision.verdict {
        Verdict::Allowed(rule) => Some(rule.to_string()),
        Verdict::Unguarded | Verdict::Refused(_) => None,
    };
    let mark = PolicyMark {
        allowed_by,
        dry_run: decision.dry_run.as_ref().map(ToString::to_string),
        audited: decision.audited.iter().map(ToString::to_string).collect(),
    };
    (mark != PolicyMark::default()).then(|| Box::new(mark))
}
