//! The documents about policies: which there are, and whom they concern.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{Mode, PolicyAction};

/// Policies that are listed at most.
pub const MAX_POLICIES: usize = 100_000;
/// Workloads that are listed of one policy; the others are counted.
pub const MAX_SELECTED: usize = 100;
/// Notices about policies that are listed at most; the others are counted.
pub const MAX_NOTICES: usize = 100;

/// What is asked of `GET /v1/policies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyQuery {
    /// `NAMESPACE/POD`; `None`: all policies.
    #[serde(default)]
    pub workload: Option<String>,
    /// Policies that are listed at most.
    #[serde(default = "all")]
    pub limit: usize,
}

const fn all() -> usize {
    MAX_POLICIES
}

/// `GET /v1/policies`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoliciesReport {
    /// The workload that was asked about.
    pub workload: Option<GuardedWorkload>,
    /// All policies, or those that apply to the workload: first `PeerAuthentication`s, then `AuthorizationPolicy`s, each
    /// by namespace and name; of a workload's `PeerAuthentication`s the one that goes before the others first.
    pub policies: Vec<PolicyReport>,
    /// How many there are, listed or not.
    pub total: usize,
    /// Policies that could not be read as they are written, with the reason and what is in force instead.
    pub problems: Vec<String>,
    /// What of the listed policies is not carried out as it is written, [`MAX_NOTICES`] at most, the gravest first.
    pub notices: Vec<String>,
    /// How many notices there are beside those.
    pub more_notices: usize,
}

/// A workload, and what its policies come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuardedWorkload {
    /// `NAMESPACE/POD`.
    pub uid: String,
    /// Its node.
    pub node: Option<String>,
    /// Whether it is in the mesh: otherwise nobody asks its policies.
    pub enrolled: bool,
    /// SPIFFE ID.
    pub identity: String,
    /// mTLS mode in force.
    pub mode: Mode,
    /// Modes of single ports.
    pub ports: BTreeMap<u16, Mode>,
}

/// What kind of policy it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PolicyKind {
    /// `PeerAuthentication`.
    PeerAuthentication,
    /// `AuthorizationPolicy`.
    #[default]
    AuthorizationPolicy,
}

/// One policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyReport {
    /// What kind.
    pub kind: PolicyKind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Whom it concerns, which is also why it applies: `mesh`, `namespace`, `selector k=v`, `Service a,b`.
    pub scope: String,
    /// What it does with what matches (`AuthorizationPolicy`).
    pub action: Option<PolicyAction>,
    /// It is evaluated and refuses nothing.
    pub dry_run: bool,
    /// How many rules it has (`AuthorizationPolicy`).
    pub rules: usize,
    /// The mode that it sets (`PeerAuthentication`); `None`: it leaves it to the scope above.
    pub mode: Option<Mode>,
    /// Modes of single ports; `None`: the policy's own, or that of the scope above.
    pub ports: BTreeMap<u16, Option<Mode>>,
    /// Pods of this node that are in the mesh and that it concerns, [`MAX_SELECTED`] at most.
    pub workloads: Vec<String>,
    /// How many those are.
    pub selected: usize,
    /// How many pods of this node it would concern if they were in the mesh.
    pub outside_mesh: usize,
}
