//! Gateway API objects as far as they are understood: routes of layer 4, and what lets them cross namespaces.
//!
//! Types of our own: the crate of the API's types goes with another version of `kube`. Fields that are not understood are
//! kept in `rest`, so that `lint` can name them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::istio::Rest;

/// The API group.
pub(crate) const GROUP: &str = "gateway.networking.k8s.io";

/// `TCPRoute` or `TLSRoute`: the two are of one shape, but for what a `TLSRoute` matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayRoute {
    /// `gateway.networking.k8s.io/VERSION`, in which its status is written.
    #[serde(default)]
    pub api_version: String,
    /// Name, namespace, age, generation.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: GatewayRouteSpec,
    /// What was made of it, by whatever controller.
    #[serde(default)]
    pub status: GatewayRouteStatus,
    /// Everything else, `kind` among it.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `TCPRoute.spec`, `TLSRoute.spec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayRouteSpec {
    /// Whose connections it routes.
    pub parent_refs: Vec<ParentRef>,
    /// Server names that a `TLSRoute` is for.
    pub hostnames: Vec<String>,
    /// Where to; of several the first holds, for none matches anything.
    pub rules: Vec<GatewayRule>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `ParentReference`, written again into the status as it was read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ParentRef {
    /// Group; absent: Gateway API's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kind; absent: `Gateway`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Namespace; absent: the route's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Of a Service: the port's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Of a Service: the port's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

impl ParentRef {
    /// Whether it is a Service, and so this mesh's business.
    pub fn is_service(&self) -> bool {
        self.group.as_deref() == Some("") && self.kind.as_deref() == Some("Service")
    }
}

/// A rule of a route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayRule {
    /// Its name.
    pub name: Option<String>,
    /// Weighted destinations.
    pub backend_refs: Vec<BackendRef>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `BackendRef`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendRef {
    /// Group; absent: the core's.
    pub group: Option<String>,
    /// Kind; absent: `Service`.
    pub kind: Option<String>,
    /// Namespace; absent: the route's.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// The port; a Service needs one.
    pub port: Option<i32>,
    /// Share; absent: 1.
    pub weight: Option<i32>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

impl BackendRef {
    /// Whether it is a Service.
    pub fn is_service(&self) -> bool {
        self.group.as_deref().unwrap_or_default().is_empty()
            && self.kind.as_deref().unwrap_or("Service") == "Service"
    }
}

/// `RouteStatus`: an entry for each parent and controller, kept as it is, for other controllers' entries are theirs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayRouteStatus {
    /// `RouteParentStatus`.
    pub parents: Vec<Value>,
}

/// `ReferenceGrant`: who from other namespaces may refer to what is in its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReferenceGrant {
    /// Name, namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: ReferenceGrantSpec,
    /// Everything else, `apiVersion` and `kind` among it.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `ReferenceGrant.spec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReferenceGrantSpec {
    /// Who.
    pub from: Vec<GrantFrom>,
    /// To what.
    pub to: Vec<GrantTo>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `ReferenceGrantFrom`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrantFrom {
    /// Group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
}

/// `ReferenceGrantTo`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrantTo {
    /// Group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name; absent: all of that kind.
    pub name: Option<String>,
}

impl ReferenceGrant {
    /// Whether it lets a route of `kind` in `namespace` refer to the Service `name`.
    pub fn allows(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let from = |from: &GrantFrom| from.group == GROUP && from.kind == kind && from.namespace == namespace;
        let to = |to: &GrantTo| {
            to.group.is_empty()
                && to.kind == "Service"
                && to.name.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == name)
        };
        self.spec.from.iter().any(from) && self.spec.to.iter().any(to)
    }
}
