//! What is decided on a connection, and by what.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::PolicyName;

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PolicyRef {
    /// The policy.
    pub policy: PolicyName,
    /// Which of its rules, from 0.
    pub rule: usize,
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rules[{}]", self.policy, self.rule)
    }
}

/// What is to become of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What is done.
    pub verdict: Verdict,
    /// Why it would have been refused if the policies that are dry runs were in force.
    pub dry_run: Option<Refusal>,
    /// AUDIT rules that matched.
    pub audited: Vec<PolicyRef>,
}

/// What is done with a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// No policy has anything to say.
    #[default]
    Unguarded,
    /// An ALLOW rule matches.
    Allowed(PolicyRef),
    /// It is refused.
    Refused(Refusal),
}

impl Verdict {
    /// Why it is refused, if it is.
    pub const fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Unguarded | Self::Allowed(_) => None,
        }
    }
}

/// Why a connection is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Refusal {
    /// Plaintext to a port that takes mutual TLS only (`PeerAuthentication`).
    #[error("plaintext to a port that takes mutual TLS only")]
    Plaintext,
    /// A DENY rule matches.
    #[error("denied by {rule}")]
    Denied {
        /// Which.
        rule: PolicyRef,
    },
    /// A CUSTOM rule matches, whose authorizer this mesh does not ask.
    #[error("{rule} asks for an external authorizer, which this mesh does not have")]
    Custom {
        /// Which.
        rule: PolicyRef,
    },
    /// There are ALLOW policies and none of their rules matches.
    #[error("no ALLOW policy matches")]
    NotAllowed,
}

impl Refusal {
    /// Bounded label: `strict`, `denied`, `custom`, `not_allowed`.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Plaintext => "strict",
            Self::Denied { .. } => "denied",
            Self::Custom { .. } => "custom",
            Self::NotAllowed => "not_allowed",
        }
    }
}
