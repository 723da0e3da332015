//! The endpoints that a service port is said to have: from its EndpointSlices as kube-proxy reads them
//! (pkg/proxy/endpointslicecache.go, v1.36), or from Pods as Kubernetes' own controller would make slices of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::service::{Cluster, Dependency, protocol};
use super::topology::Hints;
use crate::model::{Endpoint, EndpointState, Mode, NodeName, Protocol, ServiceName, Workload, WorkloadUid};

/// An endpoint, the workload behind it, whose labels subsets ask for, and whose clients it is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) struct Member {
    pub(in crate::resources) endpoint: Endpoint,
    pub(in crate::resources) workload: Option<Arc<Workload>>,
    pub(in crate::resources) hints: Option<Box<Hints>>,
}

impl Member {
    /// Whether its workload has all these labels.
    pub(in crate::resources) fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        let own = self.workload.as_ref().map(|workload| &workload.labels);
        labels.iter().all(|(key, value)| own.is_some_and(|own| own.get(key) == Some(value)))
    }
}

/// A member and whether it terminates. An address may be listed twice, while it moves from one slice to another or because a
/// pod took over that of one which still terminates: what does not terminate comes first, then what serves best.
type Listed = (bool, Member);

/// A port of a service, as endpoints are looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) name: &'a ServiceName,
    pub(super) spec: &'a ServiceSpec,
    pub(super) port: &'a ServicePort,
    pub(super) protocol: Protocol,
    /// The service's cluster addresses.
    pub(super) addresses: &'a [IpAddr],
}

/// All endpoints of the port, sorted by address (IPv4 first), each once.
pub(super) fn members(
    wanted: Wanted<'_>,
    slices: &[&EndpointSlice],
    cluster: &impl Cluster,
    uses: &mut BTreeSet<Dependency>,
) -> Vec<Member> {
    let mut listed = if slices.is_empty() {
        from_pods(wanted, cluster, uses)
    } else {
        from_slices(wanted, slices, cluster, uses)
    };
    listed
        .sort_by_key(|(terminating, member)| (member.endpoint.address, *terminating, member.endpoint.state));
    listed.dedup_by_key(|(_, member)| member.endpoint.address);
    listed.into_iter().map(|(_, member)| member).collect()
}

/// Conditions, as `EndpointConditions`.
#[derive(Clone, Copy)]
struct Conditions {
    ready: bool,
    serving: bool,
    terminating: bool,
}

impl Conditions {
    const fn state(self) -> EndpointState {
        match self {
            Self { ready: true, .. } => EndpointState::Ready,
            Self { serving: true, terminating: true, .. } => EndpointState::Terminating,
            _ => EndpointState::Unready,
        }
    }
}

fn from_slices(
    wanted: Wanted<'_>,
    slices: &[&EndpointSlice],
    cluster: &impl Cluster,
    uses: &mut BTreeSet<Dependency>,
) -> Vec<Listed> {
    let name = wanted.port.name.as_deref().unwrap_or_default();
    let mut listed = Vec::new();
    for slice in slices {
        let is_v4 = match slice.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            _ => continue,
        };
        let ports = slice.ports.iter().flatten().filter(|port| {
            port.name.as_deref().unwrap_or_default() == name
                && protocol(port.protocol.as_deref()) == wanted.protocol
        });
        for number in ports.filter_map(|port| u16::try_from(port.port?).ok()).filter(|&port| port != 0) {
            for endpoint in &slice.endpoints {
                // Addresses beyond the first mean nothing (EndpointSlice.endpoints.addresses).
                let address = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok());
                if let Some(address) =
                    address.filter(|address| address.is_ipv4() == is_v4 && wanted.has_family(*address))
                {
                    listed.push(of_slice(
                        endpoint,
                        SocketAddr::new(address, number),
                        wanted.name,
                        cluster,
                        uses,
                    ));
                }
            }
        }
    }
    listed
}

fn of_slice(
    endpoint: &SliceEndpoint,
    address: SocketAddr,
    name: &ServiceName,
    cluster: &impl Cluster,
    uses: &mut BTreeSet<Dependency>,
) -> Listed {
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let uid = target.and_then(|target| {
        let namespace = target.namespace.as_deref().unwrap_or(&name.namespace);
        Some(WorkloadUid::pod(namespace, target.name.as_deref()?))
    });
    let workload = uid.as_ref().and_then(|uid| cluster.workload(uid));
    let workload = workload.or_else(|| cluster.workload_at(address.ip()));
    uses.extend(uid.map(Dependency::Pod));
    uses.insert(Dependency::Address(address.ip()));
    let written = endpoint.conditions.as_ref();
    let conditions = Conditions {
        ready: written.and_then(|all| all.ready) != Some(false),
        serving: written.and_then(|all| all.serving) != Some(false),
        terminating: written.and_then(|all| all.terminating) == Some(true),
    };
    let mut member = member(address, conditions.state(), workload);
    member.endpoint.node = endpoint.node_name.as_deref().map(NodeName::new);
    member.endpoint.zone = endpoint.zone.as_deref().map(Into::into);
    member.hints = endpoint.hints.as_ref().and_then(|hints| {
        let hints = Hints {
            nodes: hints.for_nodes.iter().flatten().map(|node| NodeName::new(&*node.name)).collect(),
            zones: hints.for_zones.iter().flatten().map(|zone| zone.name.as_str().into()).collect(),
        };
        (hints != Hints::default()).then(|| Box::new(hints))
    });
    (conditions.terminating, member)
}

fn member(address: SocketAddr, state: EndpointState, workload: Option<&Arc<Workload>>) -> Member {
    let endpoint = Endpoint {
        address,
        workload: workload.map(|workload| workload.uid.clone()),
        enrolled: workload.is_some_and(|workload| workload.enrolled),
        mode: workload.map_or(Mode::Permissive, |workload| workload.mtls.at(address.port())),
        state,
        node: None,
        zone: None,
    };
    Member { endpoint, workload: workload.map(Arc::clone), hints: None }
}

/// What the EndpointSlice controller would write, for manifests without slices.
fn from_pods(wanted: Wanted<'_>, cluster: &impl Cluster, uses: &mut BTreeSet<Dependency>) -> Vec<Listed> {
    let Some(selector) = &wanted.spec.selector else { return Vec::new() };
    let Some((key, value)) = selector.first_key_value() else { return Vec::new() };
    // One label of the selector finds the candidates, the others are compared.
    let label = (Arc::clone(&wanted.name.namespace), key.clone(), value.clone());
    let pods = cluster.labelled(&label);
    uses.insert(Dependency::Label(label));
    let unready_too = wanted.spec.publish_not_ready_addresses == Some(true);
    let mut listed = Vec::new();
    for (pod, workload) in pods {
        let selected = selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value));
        let Some(number) = target_port(pod, wanted.port, wanted.protocol).filter(|_| selected) else {
            continue;
        };
        let (serving, terminating) = (is_ready(pod), pod.metadata.deletion_timestamp.is_some());
        let conditions = Conditions { ready: unready_too || (serving && !terminating), serving, terminating };
        let zone = workload.node.as_ref().and_then(|node| {
            uses.insert(Dependency::Zone(node.clone()));
            cluster.zone(node)
        });
        for &address in workload.addresses.iter().filter(|address| wanted.has_family(**address)) {
            let mut member = member(SocketAddr::new(address, number), conditions.state(), Some(workload));
            member.endpoint.node.clone_from(&workload.node);
            member.endpoint.zone = zone.map(Arc::clone);
            if conditions.ready {
                member.hints = hints(wanted.spec.traffic_distribution.as_deref(), &member.endpoint);
            }
            listed.push((terminating, member));
        }
    }
    listed
}

/// What `trafficDistribution` makes of an endpoint (staging/src/k8s.io/endpointslice/trafficdist).
fn hints(distribution: Option<&str>, endpoint: &Endpoint) -> Option<Box<Hints>> {
    let by_node = match distribution? {
        "PreferClose" | "PreferSameZone" => false,
        "PreferSameNode" => true,
        _ => return None,
    };
    let hints = Hints {
        nodes: endpoint.node.iter().filter(|_| by_node).cloned().collect(),
        zones: endpoint.zone.iter().map(Arc::clone).collect(),
    };
    (hints != Hints::default()).then(|| Box::new(hints))
}

impl Wanted<'_> {
    /// Whether the service is of the address's family.
    fn has_family(&self, address: IpAddr) -> bool {
        if !self.addresses.is_empty() {
            return super::external::has_family(self.addresses, address);
        }
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let families = self.spec.ip_families.as_deref().unwrap_or_default();
        families.is_empty() || families.iter().any(|own| own == family)
    }
}

/// Whether the pod's Ready condition holds; one that has none (no kubelet wrote it) counts as ready.
fn is_ready(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.find(|condition| condition.type_ == "Ready").is_none_or(|condition| condition.status == "True")
}

/// `targetPort` as a number: itself, or the container port of that name.
fn target_port(pod: &Pod, port: &ServicePort, protocol: Protocol) -> Option<u16> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => {
            if let Ok(number) = name.parse() {
                return Some(number);
            }
            let spec = pod.spec.as_ref()?;
            let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let found = ports.find(|candidate| {
                candidate.name.as_deref() == Some(name)
                    && super::service::protocol(candidate.protocol.as_deref()) == protocol
            })?;
            u16::try_from(found.container_port).ok()
        }
    }
}
