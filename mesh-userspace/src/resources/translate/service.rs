//! A Service and its endpoints, before routes are applied.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceSpec;

use super::endpoints::{Member, Wanted, members};
use super::topology::{Here, serving};
use crate::model::{
    Endpoint, External, MeshConfig, NodeName, Protocol, ServiceKind, ServiceName, TrafficPolicy, Workload,
    WorkloadUid,
};
use crate::resources::{EndpointSlice, Pod, Service, WorkloadEntry};

/// Seconds that a client keeps its endpoint where `sessionAffinityConfig` does not say.
const AFFINITY_SECONDS: u32 = 10_800;

/// What a service's endpoints depend on: when one of these changes, the service is rebuilt.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(in crate::resources) enum Dependency {
    /// The pod that an `EndpointSlice` refers to, or an entry's workload.
    Pod(WorkloadUid),
    /// Whichever workload has the address.
    Address(IpAddr),
    /// The workloads of a namespace that have a label.
    Label(Box<Label>),
    /// The zone that a node is in.
    Zone(NodeName),
}

/// Namespace, key and value of a pod's label.
pub(in crate::resources) type Label = (Arc<str>, String, String);

/// A service port with all its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) struct PlainPort {
    pub(in crate::resources) name: Arc<str>,
    pub(in crate::resources) port: u16,
    pub(in crate::resources) protocol: Protocol,
    pub(in crate::resources) node_port: Option<u16>,
    /// `appProtocol`, or what the port's name begins with, as Istio reads it.
    pub(in crate::resources) application: Option<Arc<str>>,
    /// Whether one of the service's policies is Local and holds at this port.
    pub(in crate::resources) uses_local: bool,
    /// By address, IPv4 first.
    pub(in crate::resources) members: Vec<Member>,
}

impl PlainPort {
    /// The endpoints with these labels that take connections. The rules of topology and termination hold among those: a
    /// subset whose endpoints are all in another zone serves all the same.
    pub(in crate::resources) fn serving(
        &self,
        labels: &BTreeMap<String, String>,
        policy: TrafficPolicy,
        here: Here<'_>,
    ) -> Arc<[Endpoint]> {
        let members: Vec<&Member> = self.members.iter().filter(|member| member.has(labels)).collect();
        serving(&members, policy, here).into_iter().map(|member| member.endpoint.clone()).collect()
    }
}

/// A service without its routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) struct PlainService {
    pub(in crate::resources) name: ServiceName,
    pub(in crate::resources) host: Arc<str>,
    pub(in crate::resources) kind: ServiceKind,
    pub(in crate::resources) addresses: Vec<IpAddr>,
    pub(in crate::resources) ports: Vec<PlainPort>,
    pub(in crate::resources) internal: TrafficPolicy,
    pub(in crate::resources) external: External,
    pub(in crate::resources) affinity_seconds: Option<u32>,
}

impl PlainService {
    /// Whether it matters to the service in which zone its clients are.
    pub(in crate::resources) fn minds_the_zone(&self) -> bool {
        let mut members = self.ports.iter().flat_map(|port| &port.members);
        members.any(|member| member.hints.as_ref().is_some_and(|hints| !hints.zones.is_empty()))
    }
}

/// Where endpoints and their workloads are looked up.
pub(in crate::resources) trait Cluster {
    fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>>;
    /// The pod that has an address. What entries say of an address holds for their own endpoints alone.
    fn pod_at(&self, address: IpAddr) -> Option<&Arc<Workload>>;
    /// Whether the address is a node's or the API server's.
    fn is_reserved(&self, address: IpAddr) -> bool;
    /// The pods with a label, with their workloads.
    fn labelled(&self, label: &Label) -> Vec<(&Pod, &Arc<Workload>)>;
    /// The `WorkloadEntry`s with a label, with their workloads.
    fn entries(&self, label: &Label) -> Vec<(&WorkloadEntry, &Arc<Workload>)>;
    /// Whether there are any.
    fn has_entries(&self) -> bool;
    /// The zone that a node is in.
    fn zone(&self, node: &NodeName) -> Option<&Arc<str>>;
}

/// The service and what it depends on; `None` for one that has neither addresses nor endpoints of its own.
///
/// A service without a cluster address, or one that is left to another proxy, is served nowhere: it keeps its endpoints
/// alone, which routes may name.
pub(in crate::resources) fn plain_service(
    service: &Service,
    name: &ServiceName,
    slices: &[&EndpointSlice],
    cluster: &impl Cluster,
    mesh: &MeshConfig,
) -> Option<(PlainService, BTreeSet<Dependency>)> {
    if service.is_external_name {
        return None;
    }
    let external = service.external.as_deref().cloned().unwrap_or_default();
    let is_reached_at_addresses = !external.addresses.is_empty() || !external.load_balancer.is_empty();
    let mut uses = BTreeSet::new();
    let mut ports = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let members = members(Wanted { name, service, port }, slices, cluster, &mut uses);
        let node_port = port.node_port.filter(|_| service.is_served);
        let is_reached_from_outside = node_port.is_some() || is_reached_at_addresses;
        let uses_local = service.internal == TrafficPolicy::Local
            || (external.policy == TrafficPolicy::Local && is_reached_from_outside);
        ports.push(PlainPort {
            name: Arc::clone(&port.name),
            port: port.port,
            protocol: port.protocol,
            node_port,
            application: port.application.clone(),
            uses_local,
            members,
        });
    }
    let host = format!("{}.{}.svc.{}", name.name, name.namespace, mesh.cluster_domain).into();
    let plain = PlainService {
        name: name.clone(),
        host,
        kind: service.kind,
        addresses: if service.is_served { service.addresses.to_vec() } else { Vec::new() },
        ports,
        internal: service.internal,
        external,
        affinity_seconds: service.affinity_seconds,
    };
    Some((plain, uses))
}

/// The addresses of both families.
pub(in crate::resources) fn cluster_addresses(spec: &ServiceSpec) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> =
        spec.cluster_ips.iter().flatten().filter_map(|address| address.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(spec.cluster_ip.as_deref().and_then(|address| address.parse::<IpAddr>().ok()));
    }
    addresses
}

/// `sessionAffinity`, with how long it lasts.
pub(in crate::resources) fn affinity_seconds(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let written = config.and_then(|client| client.timeout_seconds);
    Some(written.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_SECONDS))
}

pub(in crate::resources) fn protocol(name: Option<&str>) -> Protocol {
    match name {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}
