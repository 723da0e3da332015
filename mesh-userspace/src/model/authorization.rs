//! `AuthorizationPolicy` as this mesh understands it: layer 4 alone, every text checked and every wildcard parsed.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What names an `AuthorizationPolicy`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PolicyName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `AuthorizationPolicy.action`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    /// What matches is allowed, and where there is one of these, nothing else is.
    #[default]
    Allow,
    /// What matches is refused.
    Deny,
    /// What matches leaves a mark on its flow.
    Audit,
    /// An authorizer that this mesh does not ask: what matches is refused.
    Custom,
}
