//! Istio's objects as far as they are understood.
//!
//! Fields that are not understood are kept in `rest`, so that `lint` can name them: nothing is dropped in silence.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Fields that have no place of their own.
pub(super) type Rest = BTreeMap<String, Value>;

/// A host, in lower case as it is looked up: it means the same in capital letters.
pub(super) fn host<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let mut host = String::deserialize(deserializer)?;
    host.make_ascii_lowercase();
    Ok(host)
}

/// Several of them.
pub(super) fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let mut hosts = Vec::<String>::deserialize(deserializer)?;
    for host in &mut hosts {
        host.make_ascii_lowercase();
    }
    Ok(hosts)
}

/// `PortSelector`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortSelector {
    /// Port number.
    pub number: u32,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `security.istio.io` `PeerAuthentication`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that a workload must have.
    pub match_labels: BTreeMap<String, String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `MutualTLS`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MutualTls {
    /// The mode.
    pub mode: IstioMode,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `MutualTLS.Mode` as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
