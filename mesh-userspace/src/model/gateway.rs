//! What has become of the Gateway API routes whose parents are Services, as their status is to say it.

use std::sync::Arc;

use serde_json::Value;

use super::ServiceName;

/// Who writes the status: `controllerName`.
pub const CONTROLLER: &str = "mesh.dev/agent";

/// Kinds of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// `TCPRoute`.
    Tcp,
    /// `TLSRoute`.
    Tls,
}

impl RouteKind {
    /// As in `kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCPRoute",
            Self::Tls => "TLSRoute",
        }
    }

    /// As in the API's paths.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Tcp => "tcproutes",
            Self::Tls => "tlsroutes",
        }
    }
}

/// What names a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteName {
    /// Kind.
    pub kind: RouteKind,
    /// Namespace and name: as a service has them.
    pub name: ServiceName,
}

/// A route with at least one Service for a parent, or whose status says so still.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteState {
    /// `gateway.networking.k8s.io/VERSION`.
    pub api_version: Arc<str>,
    /// The generation of what it says.
    pub generation: i64,
    /// The state of the object at the API server; `None`: it is from a file.
    pub resource_version: Option<Arc<str>>,
    /// `status.parents` as it is there.
    pub written: Vec<Value>,
    /// What it is to say of each Service that is a parent.
    pub parents: Vec<ParentState>,
}

/// What has become of a route at one parent.
#[derive(Clone, Debug, PartialEq)]
pub struct ParentState {
    /// The reference, as the route has it.
    pub parent: Value,
    /// Whether the route is carried out.
    pub accepted: RouteCondition,
    /// Whether all that it leads to is there and may be led to.
    pub resolved: RouteCondition,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteCondition {
    /// Its status.
    pub holds: bool,
    /// A word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}
