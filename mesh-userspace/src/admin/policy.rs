//! The documents about policies: which there are, and what they say of one connection.

use serde::{Deserialize, Serialize};

use crate::model::PolicyAction;

/// What one `AuthorizationPolicy` says of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyEffect {
    /// `NAMESPACE/NAME`.
    pub policy: String,
    /// What it does with what matches.
    pub action: PolicyAction,
    /// It is evaluated and refuses nothing.
    pub dry_run: bool,
    /// Which of its rules matches, from 0; `None`: none does.
    pub rule: Option<usize>,
}
