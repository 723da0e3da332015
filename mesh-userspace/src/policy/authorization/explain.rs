//! What applies to a workload and why, and what each policy says of a connection: for people, by the code that decides.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::applied::Applied;
use super::matching::{Facts, mismatch};
use super::{Connection, Guard};
use crate::model::{PolicyAction, PolicyName};

/// A policy that applies to a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedPolicy {
    /// Its name.
    pub policy: PolicyName,
    /// Why it applies: `mesh`, `namespace`, `selector k=v`, `mesh, selector k=v`, `Service a,b`.
    pub scope: String,
    /// What it does.
    pub action: PolicyAction,
    /// Whether it refuses nothing.
    pub dry_run: bool,
    /// How many rules it has; an ALLOW without any allows nothing.
    pub rules: usize,
}

/// What a policy says of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVerdict {
    /// Its name.
    pub policy: PolicyName,
    /// Why it applies, as in [`AppliedPolicy::scope`].
    pub scope: String,
    /// What it does.
    pub action: PolicyAction,
    /// Whether it refuses nothing.
    pub dry_run: bool,
    /// Whether it has a say: one with `targetRefs` has none in connections to what is no endpoint of those services.
    pub concerned: bool,
    /// The first of its rules that matches, from 0.
    pub matched: Option<usize>,
    /// Every rule.
    pub rules: Vec<RuleVerdict>,
}

/// What a rule says of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleVerdict {
    /// Which, from 0.
    pub rule: usize,
    /// The first field that does not match; `None`: it matches.
    pub missed: Option<String>,
}

impl Guard {
    /// Every policy that applies to the workload, in the order of their names.
    pub fn policies(&self) -> impl Iterator<Item = AppliedPolicy> {
        self.applied().iter().map(AppliedPolicy::of)
    }

    /// What every policy that applies says of a connection, in the order of their names. [`Self::decide`] goes by the same
    /// matches; `PeerAuthentication` is none of these policies.
    pub fn explain(&self, connection: &Connection<'_>) -> Vec<PolicyVerdict> {
        let facts = Facts::of(connection);
        let verdict = |applied: &Applied| {
            let concerned = applied.concerns(facts.destination);
            let rules = applied.policy.rules.iter().enumerate().map(|(index, rule)| {
                let missed = if concerned {
                    mismatch(rule, &facts).map(|mismatch| mismatch.to_string())
                } else {
                    Some(format!("targetRefs: {} is no endpoint of those services", facts.destination))
                };
                RuleVerdict { rule: index, missed }
            });
            let rules: Vec<RuleVerdict> = rules.collect();
            let matched = rules.iter().find(|rule| rule.missed.is_none()).map(|rule| rule.rule);
            let AppliedPolicy { policy, scope, action, dry_run, .. } = AppliedPolicy::of(applied);
            PolicyVerdict { policy, scope, action, dry_run, concerned, matched, rules }
        };
        self.applied().iter().map(verdict).collect()
    }
}

impl AppliedPolicy {
    fn of(applied: &Applied) -> Self {
        let policy = &applied.policy;
        Self {
            policy: policy.name.clone(),
            scope: policy.scope.to_string(),
            action: policy.action,
            dry_run: policy.dry_run,
            rules: policy.rules.len(),
        }
    }
}

impl fmt::Display for RuleVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.missed {
            Some(missed) => write!(f, "rules[{}] does not match, {missed}", self.rule),
            None => write!(f, "rules[{}] matches", self.rule),
        }
    }
}
