//! What a mesh reads of a Pod.
//!
//! A cluster has tens of thousands of them, most of them on other nodes, and they are kept for as long as they are in force: of
//! each there is no more than its address, its identity and what endpoints are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as written;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::ObjectRef;
use super::translate::service::protocol;
use crate::model::{NodeName, Protocol, shared, shared_labels, shared_text};

const NETNS: &str = "mesh.dev/netns";
/// On the mirror of a static pod: the UID that the kubelet has given the pod itself.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// `v1` `Pod`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and there are many pods")]
pub struct Pod {
    pub(super) reference: ObjectRef,
    /// `metadata.uid`; of a static pod's mirror, that of the pod itself.
    pub(super) uid: Option<Arc<str>>,
    #[serde(deserialize_with = "shared::labels")]
    pub(super) labels: Arc<BTreeMap<String, String>>,
    /// Path of its network namespace, where there is no Kubernetes to ask.
    pub(super) netns: Option<Box<str>>,
    /// What it belongs to.
    #[serde(deserialize_with = "shared::some_text")]
    pub(super) owner: Option<Arc<str>>,
    /// `spec.serviceAccountName`.
    #[serde(deserialize_with = "shared::some_text")]
    pub(super) account: Option<Arc<str>>,
    pub(super) node: Option<NodeName>,
    pub(super) host_network: bool,
    /// It has run to its end and lost its address.
    pub(super) has_ended: bool,
    /// Its Ready condition holds; one that has none (no kubelet wrote it) counts as ready.
    pub(super) is_ready: bool,
    pub(super) is_terminating: bool,
    /// `status.podIPs`, or `status.podIP` where they are absent; each once.
    pub(super) addresses: Box<[IpAddr]>,
    /// Those of its containers that have a name.
    pub(super) ports: Box<[NamedPort]>,
}

/// A container port with a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct NamedPort {
    #[serde(deserialize_with = "shared::text")]
    pub(super) name: Arc<str>,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

impl Pod {
    /// What is to be known of a pod that has been checked.
    pub(super) fn new(reference: ObjectRef, pod: &written::Pod) -> Self {
        let (metadata, spec, status) = (&pod.metadata, pod.spec.as_ref(), pod.status.as_ref());
        let account = spec.and_then(|spec| spec.service_account_name.as_deref());
        let phase = status.and_then(|status| status.phase.as_deref());
        let mut conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
        let ready = conditions.find(|condition| condition.type_ == "Ready");
        Self {
            reference,
            uid: annotation(metadata, MIRROR)
                .or(metadata.uid.as_deref())
                .filter(|uid| !uid.is_empty())
                .map(Into::into),
            labels: shared_labels(metadata.labels.clone().unwrap_or_default()),
            netns: annotation(metadata, NETNS).map(Into::into),
            owner: owner(metadata),
            account: account.filter(|name| !name.is_empty()).map(shared_text),
            node: spec.and_then(|spec| spec.node_name.as_deref()).map(NodeName::shared),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            has_ended: matches!(phase, Some("Succeeded" | "Failed")),
            is_ready: ready.is_none_or(|condition| condition.status == "True"),
            is_terminating: metadata.deletion_timestamp.is_some(),
            addresses: addresses(status).into(),
            ports: spec.map(ports).unwrap_or_default(),
        }
    }
}

impl Pod {
    /// Who may make a pod in a cluster is not who says in which network namespace of a node it is: the annotation is for
    /// manifests, which the node's administrator writes.
    pub(super) fn forget_netns(&mut self) {
        self.netns = None;
    }
}

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn addresses(status: Option<&written::PodStatus>) -> Vec<IpAddr> {
    let Some(status) = status else { return Vec::new() };
    let mut all: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    if all.is_empty() {
        all.extend(status.pod_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    let mut seen = BTreeSet::new();
    all.retain(|&address| seen.insert(address));
    all
}

fn ports(spec: &written::PodSpec) -> Box<[NamedPort]> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter_map(|port| {
        let name = shared_text(port.name.as_deref().filter(|name| !name.is_empty())?);
        let protocol = protocol(port.protocol.as_deref());
        Some(NamedPort { name, protocol, port: u16::try_from(port.container_port).ok()? })
    });
    named.collect()
}

/// What the pod belongs to: a `ReplicaSet` stands for its `Deployment`, whose name it carries before the hash.
fn owner(metadata: &ObjectMeta) -> Option<Arc<str>> {
    let owners = metadata.owner_references.as_deref()?;
    let owner = owners.iter().find(|owner| owner.controller == Some(true)).or_else(|| owners.first())?;
    if owner.kind != "ReplicaSet" {
        return Some(shared_text(&owner.name));
    }
    let hash = metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let stripped = match hash {
        Some(hash) => owner.name.strip_suffix(hash.as_str()).and_then(|name| name.strip_suffix('-')),
        None => owner.name.rsplit_once('-').map(|(name, _)| name),
    };
    Some(shared_text(stripped.filter(|name| !name.is_empty()).unwrap_or(&owner.name)))
}
