//! Istio's objects as far as they are understood.
//!
//! Fields that are not understood are kept in `rest`, so that `lint` can name them: nothing is dropped in silence.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

/// Fields that have no place of their own.
pub(super) type Rest = BTreeMap<String, Value>;

/// `networking.istio.io` `VirtualService`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct VirtualServiceSpec {
    /// Whose clients are routed.
    pub hosts: Vec<String>,
    /// Gateways it applies to; none means `mesh`.
    pub gateways: Vec<String>,
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

/// One `http`, `tls` or `tcp` route.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RouteEntry {
    /// Any of these must hold; none: it always does.
    #[serde(rename = "match")]
    pub matches: Vec<Match>,
    /// Weighted destinations.
    pub route: Vec<RouteDestination>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// One alternative of a match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Match {
    /// Name, for logs.
    pub name: Option<String>,
    /// The service port.
    pub port: Option<u32>,
    /// Gateways this alternative is for.
    pub gateways: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// A destination and its weight.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Destination {
    /// The service's host.
    pub host: String,
    /// A subset that a `DestinationRule` names.
    pub subset: Option<String>,
    /// The service's port.
    pub port: Option<PortSelector>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `PortSelector`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PortSelector {
    /// Port number.
    pub number: u32,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `security.istio.io` `PeerAuthentication`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PeerAuthentication {
    /// Name, namespace, age.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says; Istio takes an absent one for an empty one.
    #[serde(default)]
    pub spec: PeerAuthenticationSpec,
    /// Everything else, `apiVersion` and `kind` among it.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `PeerAuthentication.spec`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// Whom it concerns; absent: the whole namespace.
    pub selector: Option<LabelSelector>,
    /// The mode.
    pub mtls: Option<MutualTls>,
    /// Modes of single ports, keyed by the workload's port.
    pub port_level_mtls: BTreeMap<String, MutualTls>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `WorkloadSelector`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that a workload must have.
    pub match_labels: BTreeMap<String, String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `MutualTLS`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct MutualTls {
    /// The mode.
    pub mode: IstioMode,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `MutualTLS.Mode` as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum IstioMode {
    /// Inherit.
    #[default]
    Unset,
    /// Plaintext.
    Disable,
    /// Both.
    Permissive,
    /// mTLS alone.
    Strict,
}
