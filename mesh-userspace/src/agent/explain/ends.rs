//! The destination's end: what its agent knows of the workload, and what its guard says.

use std::net::{IpAddr, SocketAddr};

use crate::admin::explain::ExplainPath;
use crate::model::{Identity, PeerPolicy, Snapshot, Workload};
use crate::policy::authorization::{Connection, Decision, Guard, Refusal, Verdict};
use crate::policy::peer_authentication::applying;

/// An endpoint's workload, at one of its ports.
pub(super) struct Far<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) workload: &'a Workload,
    pub(super) address: SocketAddr,
}

impl<'a> Far<'a> {
    /// The path with what is known of its end.
    pub(super) fn path(&self, mut path: ExplainPath) -> ExplainPath {
        let Self { workload, address, .. } = self;
        path.backend.workload = Some(workload.uid.to_string());
        path.backend.node = workload.node.as_ref().map(ToString::to_string).or(path.backend.node);
        path.enrolled = workload.enrolled;
        path.identity = Some(workload.identity.to_string());
        if workload.enrolled {
            path.mode = Some(workload.mtls.at(address.port()));
            path.mode_by = self.mode_by().map(|policy| format!("{}/{}", policy.namespace, policy.name));
        }
        path
    }

    /// The path with what the guard says of a connection that its agent hears of.
    pub(super) fn decide(&self, path: ExplainPath, source: Option<&Identity>, client: IpAddr) -> ExplainPath {
        let mut path = self.path(path);
        let guard = Guard::of(self.snapshot, self.workload);
        let connection = Connection { source, client, destination: self.address };
        let Decision { verdict, dry_run, audited } = guard.decide(&connection);
        path.authenticated = source.map(ToString::to_string);
        path.allowed = verdict.refusal().is_none();
        path.reason = match &verdict {
            Verdict::Unguarded => "no policy refuses it".to_owned(),
            Verdict::Allowed(rule) => format!("allowed by {rule}"),
            Verdict::Refused(refusal) => self.words(refusal),
        };
        path.dry_run = dry_run.map(|refusal| self.words(&refusal));
        path.audited = audited.iter().map(ToString::to_string).collect();
        path.policies = guard.explain(&connection);
        path
    }

    fn words(&self, refusal: &Refusal) -> String {
        match (refusal, self.mode_by()) {
            (Refusal::Plaintext, Some(policy)) => {
                format!("{refusal} (PeerAuthentication {}/{})", policy.namespace, policy.name)
            }
            _ => refusal.to_string(),
        }
    }

    /// The `PeerAuthentication` that says which mode holds at the port.
    fn mode_by(&self) -> Option<&'a PeerPolicy> {
        let policies = self.snapshot.peer_policies.values().map(|policy| &**policy);
        let Workload { namespace, labels, .. } = self.workload;
        applying(policies, &self.snapshot.mesh.root_namespace, namespace, labels)
            .deciding(self.address.port())
    }
}

/// Why, where that is the same for all.
pub(super) fn in_common(paths: &[ExplainPath]) -> String {
    let mut reasons = paths.iter().map(|path| path.reason.as_str());
    match reasons.next() {
        Some(first) if reasons.all(|reason| reason == first) => first.to_owned(),
        _ => "for reasons that differ by endpoint".to_owned(),
    }
}
