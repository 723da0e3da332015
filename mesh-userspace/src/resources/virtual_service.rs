//! Istio's `VirtualService` as far as it is understood.
//!
//! One type for a route and one for a match, whatever the list that they are in: `http` has fields that `tcp` and `tls` have not, and
//! `lint` names those that stand where they mean nothing. Values are as they are written; `validate` has seen to it that they
//! can be read.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::istio::{self, PortSelector, Rest};

/// What clients in the mesh go by, among `gateways`.
pub(super) const MESH: &str = "mesh";

/// `networking.istio.io` `VirtualService`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VirtualService {
    /// Name, namespace, age.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: VirtualServiceSpec,
    /// Everything else, `apiVersion` and `kind` among it.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `VirtualService.spec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VirtualServiceSpec {
    /// Whose clients are routed.
    #[serde(deserialize_with = "istio::hosts")]
    pub hosts: Vec<String>,
    /// Gateways it applies to; none means `mesh`.
    pub gateways: Vec<String>,
    /// Namespaces whose clients it is for: `.` its own, `*` all, `~` none; empty: all.
    pub export_to: Vec<String>,
    /// HTTP routes.
    pub http: Vec<RouteEntry>,
    /// TLS routes, by SNI.
    pub tls: Vec<RouteEntry>,
    /// TCP routes.
    pub tcp: Vec<RouteEntry>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// A list of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Http,
    Tls,
    Tcp,
}

impl List {
    /// As the API has it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

impl VirtualServiceSpec {
    /// The routes of a list.
    pub(super) fn list(&self, list: List) -> &[RouteEntry] {
        match list {
            List::Http => &self.http,
            List::Tls => &self.tls,
            List::Tcp => &self.tcp,
        }
    }

    /// Every destination of its routes, those of copies among them.
    pub(super) fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let entries = self.http.iter().chain(&self.tls).chain(&self.tcp);
        entries.flat_map(|entry| {
            let copies = entry.mirrors.iter().map(|mirror| &mirror.destination);
            entry.route.iter().map(|route| &route.destination).chain(&entry.mirror).chain(copies)
        })
    }

    /// Whether it concerns clients in the mesh, not those of an ingress gateway alone.
    pub(super) fn is_for_mesh(&self) -> bool {
        is_for_mesh(&self.gateways)
    }
}

/// Whether gateways that are named have clients in the mesh among them.
pub(super) fn is_for_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH)
}

/// One `http`, `tls` or `tcp` route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouteEntry {
    /// `http`: a name, for logs.
    pub name: Option<String>,
    /// Any of these must hold; none: it always does.
    #[serde(rename = "match")]
    pub matches: Vec<Match>,
    /// Weighted destinations.
    pub route: Vec<RouteDestination>,
    /// `http`: for the connection to be established.
    pub timeout: Option<String>,
    /// `http`: how often it is tried again.
    pub retries: Option<HttpRetry>,
    /// `http`: what is done to clients on purpose.
    pub fault: Option<Fault>,
    /// `http`: where a copy goes.
    pub mirror: Option<Destination>,
    /// `http`: how much of it; absent: all.
    pub mirror_percentage: Option<Percent>,
    /// The same in whole per cent, deprecated.
    pub mirror_percent: Option<u32>,
    /// The same, as it was called at first.
    #[serde(rename = "mirror_percent")]
    pub mirror_percent_v1: Option<u32>,
    /// `http`: where copies go.
    pub mirrors: Vec<HttpMirrorPolicy>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// One alternative of a match: `HTTPMatchRequest`, `TLSMatchAttributes` or `L4MatchAttributes`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Match {
    /// `http`: a name, for logs.
    pub name: Option<String>,
    /// `http`: names a statistic and asks nothing of the connection.
    pub stat_prefix: Option<String>,
    /// The service port.
    pub port: Option<u32>,
    /// Gateways this alternative is for.
    pub gateways: Vec<String>,
    /// Labels of the client's workload.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the client's workload.
    pub source_namespace: Option<String>,
    /// `tcp`: where the client's address is in.
    pub source_subnet: Option<String>,
    /// `tcp`, `tls`: where the address that was asked for is in, one of them.
    pub destination_subnets: Vec<String>,
    /// `tls`: server names.
    pub sni_hosts: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// A destination and its weight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteDestination {
    /// Where to.
    pub destination: Destination,
    /// Share.
    pub weight: Option<i64>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `Destination`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Destination {
    /// The service's host.
    #[serde(deserialize_with = "istio::host")]
    pub host: String,
    /// A subset that a `DestinationRule` names.
    pub subset: Option<String>,
    /// The service's port.
    pub port: Option<PortSelector>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `HTTPRetry`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRetry {
    /// Tries after the first.
    pub attempts: i32,
    /// For each of them.
    pub per_try_timeout: Option<String>,
    /// Before the first of them.
    pub backoff: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `HTTPFaultInjection`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fault {
    /// Clients wait.
    pub delay: Option<Delay>,
    /// Clients fail.
    pub abort: Option<Abort>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `HTTPFaultInjection.Delay`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Delay {
    /// How long.
    #[serde(rename = "fixedDelay")]
    pub fixed: Option<String>,
    /// No version of Istio carries it out.
    #[serde(rename = "exponentialDelay")]
    pub exponential: Option<String>,
    /// For how many; absent: none.
    pub percentage: Option<Percent>,
    /// The same in whole per cent, deprecated.
    pub percent: Option<i32>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `HTTPFaultInjection.Abort`. Whatever the error is, layer 4 has but one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Abort {
    /// For how many; absent: none.
    pub percentage: Option<Percent>,
    /// An HTTP status.
    pub http_status: Option<i32>,
    /// A gRPC status.
    pub grpc_status: Option<String>,
    /// An error of HTTP/2.
    pub http2_error: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `HTTPMirrorPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpMirrorPolicy {
    /// Where to.
    pub destination: Destination,
    /// How much; absent: all.
    pub percentage: Option<Percent>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `Percent`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Percent {
    /// From 0 to 100.
    pub value: f64,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}
