//! One object of any kind that is understood.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::authorization::AuthorizationPolicy;
use super::destination_rule::DestinationRule;
use super::entry::{ServiceEntry, WorkloadEntry};
use super::gateway::{GatewayRoute, ReferenceGrant};
use super::istio::PeerAuthentication;
use super::{EndpointSlice, Pod, Service, VirtualService};
use crate::model::shared;

/// An object's kind; names alone are unambiguous among those that are understood.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Kind {
    /// `v1` `Namespace`.
    Namespace,
    /// `v1` `Node`.
    Node,
    /// `v1` `Pod`.
    Pod,
    /// `v1` `Service`.
    Service,
    /// `v1` `ServiceAccount`.
    ServiceAccount,
    /// `discovery.k8s.io/v1` `EndpointSlice`.
    EndpointSlice,
    /// `networking.istio.io` `VirtualService`.
    VirtualService,
    /// `networking.istio.io` `DestinationRule`.
    DestinationRule,
    /// `networking.istio.io` `ServiceEntry`.
    ServiceEntry,
    /// `networking.istio.io` `WorkloadEntry`.
    WorkloadEntry,
    /// `security.istio.io` `PeerAuthentication`.
    PeerAuthentication,
    /// `security.istio.io` `AuthorizationPolicy`.
    AuthorizationPolicy,
    /// `gateway.networking.k8s.io` `TCPRoute`.
    TcpRoute,
    /// `gateway.networking.k8s.io` `TLSRoute`.
    TlsRoute,
    /// `gateway.networking.k8s.io` `ReferenceGrant`.
    ReferenceGrant,
    /// A kind of a group we speak that is not carried out yet.
    Other(Arc<str>),
}

impl Kind {
    /// As written in `kind`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::ServiceAccount => "ServiceAccount",
            Self::EndpointSlice => "EndpointSlice",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::TcpRoute => "TCPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::Other(kind) => kind,
        }
    }

    /// Whether objects of it live in no namespace.
    pub const fn is_cluster_wide(&self) -> bool {
        matches!(self, Self::Namespace | Self::Node)
    }
}

impl From<String> for Kind {
    fn from(kind: String) -> Self {
        match kind.as_str() {
            "Namespace" => Self::Namespace,
            "Node" => Self::Node,
            "Pod" => Self::Pod,
            "Service" => Self::Service,
            "ServiceAccount" => Self::ServiceAccount,
            "EndpointSlice" => Self::EndpointSlice,
            "VirtualService" => Self::VirtualService,
            "DestinationRule" => Self::DestinationRule,
            "ServiceEntry" => Self::ServiceEntry,
            "WorkloadEntry" => Self::WorkloadEntry,
            "PeerAuthentication" => Self::PeerAuthentication,
            "AuthorizationPolicy" => Self::AuthorizationPolicy,
            "TCPRoute" => Self::TcpRoute,
            "TLSRoute" => Self::TlsRoute,
            "ReferenceGrant" => Self::ReferenceGrant,
            _ => Self::Other(kind.into()),
        }
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> Self {
        kind.as_str().to_owned()
    }
}

/// What names an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for a cluster-wide kind.
    #[serde(deserialize_with = "shared::text")]
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// The object of that kind, namespace and name.
    pub fn new(kind: Kind, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind.as_str(), self.name)
        } else {
            write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
        }
    }
}

/// An object, checked: see `validate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Object {
    /// `v1` `Namespace`.
    Namespace(Box<Namespace>),
    /// `v1` `Node`.
    Node(Box<Node>),
    /// `v1` `Pod`.
    Pod(Box<Pod>),
    /// `v1` `Service`.
    Service(Box<Service>),
    /// `v1` `ServiceAccount`.
    ServiceAccount(Box<ServiceAccount>),
    /// `discovery.k8s.io/v1` `EndpointSlice`.
    EndpointSlice(Box<EndpointSlice>),
    /// `networking.istio.io` `VirtualService`.
    VirtualService(Box<VirtualService>),
    /// `networking.istio.io` `DestinationRule`.
    DestinationRule(Box<DestinationRule>),
    /// `networking.istio.io` `ServiceEntry`.
    ServiceEntry(Box<ServiceEntry>),
    /// `networking.istio.io` `WorkloadEntry`.
    WorkloadEntry(Box<WorkloadEntry>),
    /// `security.istio.io` `PeerAuthentication`.
    PeerAuthentication(Box<PeerAuthentication>),
    /// `security.istio.io` `AuthorizationPolicy`.
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    /// `gateway.networking.k8s.io` `TCPRoute`.
    TcpRoute(Box<GatewayRoute>),
    /// `gateway.networking.k8s.io` `TLSRoute`.
    TlsRoute(Box<GatewayRoute>),
    /// `gateway.networking.k8s.io` `ReferenceGrant`.
    ReferenceGrant(Box<ReferenceGrant>),
    /// A kind of a group we speak that is not carried out yet; kept so that it is reported.
    Unsupported(Box<ObjectRef>),
}

impl Object {
    /// What names it.
    pub fn reference(&self) -> ObjectRef {
        let of = |kind: Kind, metadata: &ObjectMeta| {
            let name = metadata.name.as_deref().unwrap_or_default();
            let namespace = if kind.is_cluster_wide() {
                ""
            } else {
                metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
            };
            ObjectRef::new(kind, namespace, name)
        };
        match self {
            Self::Namespace(object) => of(Kind::Namespace, &object.metadata),
            Self::Node(object) => of(Kind::Node, &object.metadata),
            Self::Pod(object) => object.reference.clone(),
            Self::Service(object) => object.reference.clone(),
            Self::ServiceAccount(object) => of(Kind::ServiceAccount, &object.metadata),
            Self::EndpointSlice(object) => object.reference.clone(),
            Self::VirtualService(object) => of(Kind::VirtualService, &object.metadata),
            Self::DestinationRule(object) => of(Kind::DestinationRule, &object.metadata),
            Self::ServiceEntry(object) => of(Kind::ServiceEntry, &object.metadata),
            Self::WorkloadEntry(object) => of(Kind::WorkloadEntry, &object.metadata),
            Self::PeerAuthentication(object) => of(Kind::PeerAuthentication, &object.metadata),
            Self::AuthorizationPolicy(object) => of(Kind::AuthorizationPolicy, &object.metadata),
            Self::TcpRoute(object) => of(Kind::TcpRoute, &object.metadata),
            Self::TlsRoute(object) => of(Kind::TlsRoute, &object.metadata),
            Self::ReferenceGrant(object) => of(Kind::ReferenceGrant, &object.metadata),
            Self::Unsupported(reference) => ObjectRef::clone(reference),
        }
    }

    /// `metadata.creationTimestamp` in Unix seconds; 0 where there is none, or where age decides nothing.
    pub fn created(&self) -> i64 {
        let metadata = match self {
            Self::Namespace(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::ServiceAccount(object) => &object.metadata,
            Self::VirtualService(object) => &object.metadata,
            Self::DestinationRule(object) => &object.metadata,
            Self::ServiceEntry(object) => &object.metadata,
            Self::WorkloadEntry(object) => &object.metadata,
            Self::PeerAuthentication(object) => &object.metadata,
            Self::TcpRoute(object) | Self::TlsRoute(object) => &object.metadata,
            Self::Pod(_)
            | Self::Service(_)
            | Self::EndpointSlice(_)
            | Self::AuthorizationPolicy(_)
            | Self::ReferenceGrant(_)
            | Self::Unsupported(_) => return 0,
        };
        metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
    }
}
