//! Who may connect to a workload: its mTLS modes and every `AuthorizationPolicy` that applies to it, as one [`Guard`].
//!
//! Istio's order: CUSTOM, then DENY, then ALLOW (<https://istio.io/latest/docs/reference/config/security/authorization-policy>).

mod applied;
mod decision;
mod explain;
mod index;
mod matching;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

pub use decision::{Decision, PolicyRef, Refusal, Verdict};
pub use explain::{AppliedPolicy, PolicyVerdict, RuleVerdict};

use self::applied::{Applied, Origin};
use self::index::Rules;
use self::matching::Facts;
use crate::model::{Identity, Mode, PolicyAction, Snapshot, Workload};

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

/// Everything that decides on connections to one workload. Clones are the same guard.
#[derive(Clone, Debug)]
pub struct Guard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    origin: Origin,
    /// By namespace and name.
    applied: Vec<Applied>,
    /// Made when the first connection comes: many guards never see one.
    stages: OnceLock<Stages>,
}

/// The rules, by what they do.
#[derive(Debug, Default)]
struct Stages {
    in_force: Stage,
    dry_run: Stage,
    audit: Rules,
}

#[derive(Debug, Default)]
struct Stage {
    custom: Rules,
    deny: Rules,
    allow: Rules,
    allows: Allows,
}

/// Where there is an ALLOW policy, so that what none of them matches is refused.
#[derive(Debug, Default)]
struct Allows {
    everywhere: bool,
    at: BTreeSet<SocketAddr>,
}

impl Guard {
    /// The guard of a workload as the snapshot has it.
    pub fn of(snapshot: &Snapshot, workload: &Workload) -> Self {
        let origin = Origin::of(snapshot, workload);
        Self(Arc::new(Inner { applied: origin.applied(), origin, stages: OnceLock::new() }))
    }

    /// Whether [`Self::of`] would make the same again: compares pointers, reads no policy. It may say no where only
    /// policies of the namespace changed that do not select the workload.
    pub fn is_current(&self, snapshot: &Snapshot, workload: &Workload) -> bool {
        self.0.origin.is_current(snapshot, workload)
    }

    /// Whether there is a policy in force (not a dry run) that may refuse: the kernel then lets nothing past the agent.
    pub fn may_refuse(&self) -> bool {
        self.applied().iter().any(|applied| applied.policy.may_refuse())
    }

    /// What is to become of a connection.
    ///
    /// The rule that a verdict names is the first that matches: of the smallest namespace and name, then in the order written.
    /// [`Decision::dry_run`] is there only where the verdict is no refusal already.
    pub fn decide(&self, connection: &Connection<'_>) -> Decision {
        let modes = &self.0.origin.workload().mtls;
        if connection.source.is_none() && modes.at(connection.destination.port()) == Mode::Strict {
            return Decision { verdict: Verdict::Refused(Refusal::Plaintext), ..Decision::default() };
        }
        if self.applied().is_empty() {
            return Decision::default();
        }
        let facts = Facts::of(connection);
        let stages = self.0.stages.get_or_init(|| Stages::of(self.applied()));
        let verdict = stages.in_force.verdict(&facts, self.applied());
        let dry_run = if verdict.refusal().is_some() {
            None
        } else {
            stages.dry_run.would_refuse(&verdict, &facts, self.applied())
        };
        Decision { verdict, dry_run, audited: stages.audit.of_each(&facts, self.applied()) }
    }

    fn applied(&self) -> &[Applied] {
        &self.0.applied
    }
}

impl Stages {
    fn of(applied: &[Applied]) -> Self {
        let mut stages = Self::default();
        for (index, one) in applied.iter().enumerate() {
            let stage = if one.policy.dry_run { &mut stages.dry_run } else { &mut stages.in_force };
            match one.policy.action {
                PolicyAction::Custom => stage.custom.add(index, one),
                PolicyAction::Deny => stage.deny.add(index, one),
                PolicyAction::Allow => {
                    stage.allow.add(index, one);
                    stage.allows.add(one);
                }
                PolicyAction::Audit => stages.audit.add(index, one),
            }
        }
        stages
    }
}

impl Stage {
    fn verdict(&self, facts: &Facts<'_>, applied: &[Applied]) -> Verdict {
        if let Some(refusal) = self.refused(facts, applied) {
            return Verdict::Refused(refusal);
        }
        if !self.allows.concern(facts.destination) {
            return Verdict::Unguarded;
        }
        self.allow.first(facts, applied).map_or(Verdict::Refused(Refusal::NotAllowed), Verdict::Allowed)
    }

    /// What CUSTOM and DENY say.
    fn refused(&self, facts: &Facts<'_>, applied: &[Applied]) -> Option<Refusal> {
        let custom = self.custom.first(facts, applied).map(|rule| Refusal::Custom { rule });
        custom.or_else(|| self.deny.first(facts, applied).map(|rule| Refusal::Denied { rule }))
    }

    /// Why these, in force besides the others, would have refused what the others let through.
    fn would_refuse(&self, others: &Verdict, facts: &Facts<'_>, applied: &[Applied]) -> Option<Refusal> {
        let not_allowed = || {
            let is_asked = *others == Verdict::Unguarded && self.allows.concern(facts.destination);
            (is_asked && self.allow.first(facts, applied).is_none()).then_some(Refusal::NotAllowed)
        };
        self.refused(facts, applied).or_else(not_allowed)
    }
}

impl Allows {
    fn add(&mut self, applied: &Applied) {
        match &applied.endpoints {
            Some(endpoints) => self.at.extend(endpoints),
            None => self.everywhere = true,
        }
    }

    fn concern(&self, destination: SocketAddr) -> bool {
        self.everywhere || self.at.contains(&destination)
    }
}
