//! `ServiceEntry` and `WorkloadEntry` as they are written (`networking.istio.io`, `service_entry.proto`, `workload_entry.proto`).
//!
//! Fields that are not understood are kept in `rest`, as in `istio`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::istio::{self, Rest};

/// Label of a workload that speaks HBONE itself (`networking.istio.io/tunnel: http`), without an agent of this mesh.
const TUNNEL: &str = "networking.istio.io/tunnel";
/// What an address begins with that is a socket's path.
const UNIX: &str = "unix://";

/// `networking.istio.io` `ServiceEntry`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// Name, namespace, age.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: ServiceEntrySpec,
    /// Everything else, `apiVersion` and `kind` among it.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `ServiceEntry.spec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    /// Each is a service of its own.
    #[serde(deserialize_with = "istio::hosts")]
    pub hosts: Vec<String>,
    /// Virtual addresses, or networks, of all of them.
    pub addresses: Vec<String>,
    /// Ports.
    pub ports: Vec<EntryPort>,
    /// Whether its endpoints are in the mesh.
    pub location: Location,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Endpoints.
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Or which `WorkloadEntry`s and pods of its namespace they are.
    pub workload_selector: Option<EntrySelector>,
    /// Namespaces whose rules may name it; none: all.
    pub export_to: Vec<String>,
    /// Identities of its endpoints.
    pub subject_alt_names: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// One of its ports (`ServicePort`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EntryPort {
    /// The port that clients ask for.
    pub number: u32,
    /// What is spoken there.
    pub protocol: String,
    /// Name, by which endpoints say where they serve it.
    pub name: String,
    /// Where endpoints serve it that do not say so themselves; 0: `number`.
    pub target_port: u32,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `ServiceEntry.Location`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside the mesh.
    #[default]
    MeshExternal,
    /// Part of the mesh.
    MeshInternal,
}

/// `ServiceEntry.Resolution`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// Connections go to the address that they ask for.
    #[default]
    None,
    /// To one of the endpoints.
    Static,
    /// Names are resolved.
    Dns,
    /// The same, a connection at a time.
    DnsRoundRobin,
    /// By the name that the client asks for.
    DynamicDns,
}

impl Resolution {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Static => "STATIC",
            Self::Dns => "DNS",
            Self::DnsRoundRobin => "DNS_ROUND_ROBIN",
            Self::DynamicDns => "DYNAMIC_DNS",
        }
    }
}

/// `WorkloadSelector` of networking.istio.io.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EntrySelector {
    /// Labels that a workload must have.
    pub labels: BTreeMap<String, String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `networking.istio.io` `WorkloadEntry`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadEntry {
    /// Name, namespace, labels, age.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: WorkloadEntrySpec,
    /// Everything else, `apiVersion` and `kind` among it.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `WorkloadEntry.spec`, and an endpoint of a `ServiceEntry`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadEntrySpec {
    /// An address, a name, or a socket's path.
    pub address: String,
    /// Where it serves the ports of a service, by their names.
    pub ports: BTreeMap<String, u32>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The network that the address is of.
    pub network: String,
    /// `REGION/ZONE/SUBZONE`.
    pub locality: String,
    /// Its share; 0: nothing is said.
    pub weight: u32,
    /// The account that it runs as, where it has an identity.
    pub service_account: String,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// What an endpoint's address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndpointAddress<'a> {
    Ip(IpAddr),
    /// Nothing is written: the endpoint is behind a gateway of its network.
    Nothing,
    /// `unix://`.
    Unix(&'a str),
    /// A name.
    Name(&'a str),
}

impl WorkloadEntrySpec {
    /// What its address is.
    pub(super) fn target(&self) -> EndpointAddress<'_> {
        match self.address.as_str() {
            "" => EndpointAddress::Nothing,
            path if path.starts_with(UNIX) => EndpointAddress::Unix(path),
            text => text.parse().map_or(EndpointAddress::Name(text), EndpointAddress::Ip),
        }
    }

    /// Its address, where that is one.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        match self.target() {
            EndpointAddress::Ip(address) => Some(address),
            _ => None,
        }
    }

    /// Its share.
    pub(super) fn share(&self) -> u32 {
        self.weight.max(1)
    }

    /// Where it serves a port of that name, where it says so.
    pub(super) fn port(&self, name: &str) -> Option<u16> {
        self.ports.get(name).and_then(|&port| u16::try_from(port).ok()).filter(|&port| port != 0)
    }

    /// `serviceAccount`, where it is written.
    pub(super) fn account(&self) -> Option<&str> {
        Some(self.service_account.as_str()).filter(|account| !account.is_empty())
    }
}

impl WorkloadEntry {
    /// The labels of the object and of its spec; the object's own hold where both name one (as in Istio's
    /// `ConvertWorkloadEntry`).
    pub(super) fn labels(&self) -> Cow<'_, BTreeMap<String, String>> {
        match self.metadata.labels.as_ref().filter(|own| !own.is_empty()) {
            None => Cow::Borrowed(&self.spec.labels),
            Some(own) if self.spec.labels.is_empty() => Cow::Borrowed(own),
            Some(own) => {
                let mut labels = self.spec.labels.clone();
                labels.extend(own.clone());
                Cow::Owned(labels)
            }
        }
    }
}

impl ServiceEntry {
    /// Whether its endpoints may have identities of the mesh.
    pub(super) fn is_internal(&self) -> bool {
        self.spec.location == Location::MeshInternal
    }

    /// Whether a rule of `namespace` may name it; `own` is the entry's.
    pub(super) fn is_exported(&self, own: &str, namespace: &str) -> bool {
        let to = &self.spec.export_to;
        to.is_empty()
            || to.iter().any(|to| match to.as_str() {
                "*" => true,
                "." => own == namespace,
                "~" => false,
                name => name == namespace,
            })
    }

    /// Whether it is exported to all namespaces.
    pub(super) fn is_for_everybody(&self) -> bool {
        let to = &self.spec.export_to;
        to.is_empty() || to.iter().any(|to| to == "*")
    }

    /// Its hosts, each once. A name without a dot is a Kubernetes Service's short one, and none of them.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &str> {
        let hosts = &self.spec.hosts;
        let is_first =
            |(index, host): &(usize, &String)| host.contains('.') && !hosts[..*index].contains(host);
        hosts.iter().enumerate().filter(is_first).map(|(_, host)| host.as_str())
    }
}

/// Whether the labels say that the workload takes HBONE (Istio's `SupportsTunnel`).
pub(super) fn speaks_hbone(labels: &BTreeMap<String, String>) -> bool {
    labels.get(TUNNEL).is_some_and(|tunnels| tunnels.split(',').any(|tunnel| tunnel == "http"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(address: &str) -> WorkloadEntrySpec {
        WorkloadEntrySpec { address: address.to_owned(), ..WorkloadEntrySpec::default() }
    }

    #[test]
    fn addresses() {
        let ip = |text: &str| EndpointAddress::Ip(text.parse().unwrap());
        let cases = [
            ("", EndpointAddress::Nothing),
            ("10.0.0.1", ip("10.0.0.1")),
            ("fd00::1", ip("fd00::1")),
            ("unix:///run/a", EndpointAddress::Unix("unix:///run/a")),
            ("vm.example.com", EndpointAddress::Name("vm.example.com")),
            ("10.0.0.256", EndpointAddress::Name("10.0.0.256")),
        ];
        for (address, wanted) in cases {
            assert_eq!(spec(address).target(), wanted, "{address}");
        }
    }

    #[test]
    fn whom_an_entry_is_exported_to() {
        let cases: [(&[&str], &str, bool); 8] = [
            (&[], "bank", true),
            (&["*"], "bank", true),
            (&["."], "bank", false),
            (&["."], "shop", true),
            (&["bank"], "bank", true),
            (&["bank"], "shop", false),
            (&["~"], "shop", false),
            (&[".", "bank"], "shop", true),
        ];
        for (to, namespace, wanted) in cases {
            let spec = ServiceEntrySpec {
                export_to: to.iter().map(|&to| to.to_owned()).collect(),
                ..ServiceEntrySpec::default()
            };
            let entry = ServiceEntry { metadata: ObjectMeta::default(), spec, rest: Rest::default() };
            assert_eq!(entry.is_exported("shop", namespace), wanted, "{to:?} {namespace}");
        }
    }

    #[test]
    fn the_objects_own_labels_hold() {
        let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        let spec = WorkloadEntrySpec { labels: of(&[("app", "a"), ("zone", "z")]), ..spec("10.0.0.1") };
        let metadata = ObjectMeta { labels: Some(of(&[("app", "b")])), ..ObjectMeta::default() };
        let entry = WorkloadEntry { metadata, spec, rest: Rest::default() };
        assert_eq!(*entry.labels(), of(&[("app", "b"), ("zone", "z")]));
    }

    #[test]
    fn who_speaks_hbone() {
        for (value, wanted) in [("http", true), ("a,http", true), ("https", false), ("", false)] {
            let labels = BTreeMap::from([(TUNNEL.to_owned(), value.to_owned())]);
            assert_eq!(speaks_hbone(&labels), wanted, "{value}");
        }
        assert!(!speaks_hbone(&BTreeMap::new()));
    }
}
