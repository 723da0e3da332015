//! What is followed at the API server, each kind with the versions in which it is understood, the preferred one first.
//!
//! Versions are fixed, not discovered: an object is read by the rules of its version, and one that nobody here has read the
//! definition of would be read wrongly. A kind that is served in none of them counts as not installed.

use crate::model::NodeName;

/// One watch.
#[derive(Debug)]
pub(crate) struct Watched {
    /// How it is called in reports and metrics.
    pub(crate) label: &'static str,
    /// As in `kind`.
    pub(crate) kind: &'static str,
    pub(crate) group: &'static str,
    /// The preferred one first.
    pub(crate) versions: &'static [&'static str],
    pub(crate) plural: &'static str,
    pods: Option<Pods>,
}

/// Which pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pods {
    /// Those of this node, with all that they ever were.
    Here,
    /// Those of others that may have an address.
    Elsewhere,
}

const ISTIO: &[&str] = &["v1", "v1beta1"];
const GATEWAY_API: &[&str] = &["v1", "v1beta1", "v1alpha2"];

const fn built_in(kind: &'static str, plural: &'static str) -> Watched {
    Watched { label: kind, kind, group: "", versions: &["v1"], plural, pods: None }
}

const fn custom(
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
) -> Watched {
    Watched { label: kind, kind, group, versions, plural, pods: None }
}

/// Everything that is followed. Of two watches of one kind what the first has counts.
pub(crate) const WATCHED: [Watched; 16] = [
    built_in("Namespace", "namespaces"),
    built_in("Node", "nodes"),
    Watched { pods: Some(Pods::Here), ..built_in("Pod", "pods") },
    Watched { pods: Some(Pods::Elsewhere), label: "Pod (other nodes)", ..built_in("Pod", "pods") },
    built_in("Service", "services"),
    custom("discovery.k8s.io", &["v1"], "EndpointSlice", "endpointslices"),
    custom("security.istio.io", ISTIO, "PeerAuthentication", "peerauthentications"),
    custom("security.istio.io", ISTIO, "AuthorizationPolicy", "authorizationpolicies"),
    custom("networking.istio.io", ISTIO, "DestinationRule", "destinationrules"),
    custom("networking.istio.io", ISTIO, "VirtualService", "virtualservices"),
    custom("networking.istio.io", ISTIO, "ServiceEntry", "serviceentries"),
    custom("networking.istio.io", ISTIO, "WorkloadEntry", "workloadentries"),
    custom("networking.istio.io", ISTIO, "Gateway", "gateways"),
    custom("gateway.networking.k8s.io", GATEWAY_API, "TCPRoute", "tcproutes"),
    custom("gateway.networking.k8s.io", GATEWAY_API, "TLSRoute", "tlsroutes"),
    custom("gateway.networking.k8s.io", GATEWAY_API, "ReferenceGrant", "referencegrants"),
];

impl Watched {
    /// Whether a cluster need not have it.
    pub(crate) fn is_custom(&self) -> bool {
        !matches!(self.group, "" | "discovery.k8s.io")
    }

    /// `GROUP/VERSION`.
    pub(super) fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// What of it is asked for.
    pub(super) fn field_selector(&self, node: &NodeName) -> Option<String> {
        Some(match self.pods? {
            Pods::Here => format!("spec.nodeName={node}"),
            Pods::Elsewhere => {
                format!("spec.nodeName!={node},status.phase!=Succeeded,status.phase!=Failed")
            }
        })
    }
}
