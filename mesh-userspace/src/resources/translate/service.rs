//! A Service and its endpoints, before routes are applied.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::model::{Endpoint, EndpointState, MeshConfig, Mode, Protocol, ServiceName, Workload, WorkloadUid};

/// What a service's endpoints depend on: when one of these changes, the service is rebuilt.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(in crate::resources) enum Dependency {
    /// The pod that an `EndpointSlice` refers to.
    Pod(WorkloadUid),
    /// Whichever pod has the address.
    Address(IpAddr),
    /// The pods of a namespace that have a label.
    Label(Label),
}

/// Namespace, key and value of a pod's label.
pub(in crate::resources) type Label = (Arc<str>, String, String);

/// An endpoint and the workload behind it, whose labels subsets ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) struct Member {
    pub(in crate::resources) endpoint: Endpoint,
    pub(in crate::resources) workload: Option<Arc<Workload>>,
}

/// A service port with all its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) struct PlainPort {
    pub(in crate::resources) name: Arc<str>,
    pub(in crate::resources) port: u16,
    pub(in crate::resources) protocol: Protocol,
    /// `appProtocol`, or what the port's name begins with, as Istio reads it.
    pub(in crate::resources) application: Option<Arc<str>>,
    pub(in crate::resources) members: Vec<Member>,
}

impl PlainPort {
    pub(in crate::resources) fn endpoints(&self, labels: &BTreeMap<String, String>) -> Arc<[Endpoint]> {
        let has =
            |workload: &Workload| labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value));
        let chosen = |member: &&Member| labels.is_empty() || member.workload.as_deref().is_some_and(has);
        self.members.iter().filter(chosen).map(|member| member.endpoint.clone()).collect()
    }
}

/// A service without its routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) struct PlainService {
    pub(in crate::resources) name: ServiceName,
    pub(in crate::resources) host: Arc<str>,
    pub(in crate::resources) addresses: Vec<IpAddr>,
    pub(in crate::resources) ports: Vec<PlainPort>,
}

/// Where endpoints and their workloads are looked up.
pub(in crate::resources) trait Cluster {
    fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>>;
    fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>>;
    /// The pods with a label, with their workloads.
    fn labelled(&self, label: &Label) -> Vec<(&Pod, &Arc<Workload>)>;
}

/// The service and what it depends on; `None` for one that has neither addresses nor endpoints of its own.
pub(in crate::resources) fn plain_service(
    service: &Service,
    name: &ServiceName,
    slices: &[&EndpointSlice],
    cluster: &impl Cluster,
    mesh: &MeshConfig,
) -> Option<(PlainService, BTreeSet<Dependency>)> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let addresses = cluster_addresses(spec);
    let mut uses = BTreeSet::new();
    let mut ports = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Ok(number) = u16::try_from(port.port) else { continue };
        let protocol = protocol(port.protocol.as_deref());
        let mut members = if slices.is_empty() {
            from_pods(spec, port, protocol, &addresses, name, cluster, &mut uses)
        } else {
            from_slices(slices, port, protocol, name, cluster, &mut uses)
        };
        members.sort_by_key(|member| member.endpoint.address);
        members.dedup_by_key(|member| member.endpoint.address);
        let port_name: Arc<str> = port.name.as_deref().unwrap_or_default().into();
        let application = port
            .app_protocol
            .as_deref()
            .or_else(|| port_name.split('-').next().filter(|name| !name.is_empty()));
        let application = application.map(Into::into);
        ports.push(PlainPort { application, name: port_name, port: number, protocol, members });
    }
    let host = format!("{}.{}.svc.{}", name.name, name.namespace, mesh.cluster_domain).into();
    Some((PlainService { name: name.clone(), host, addresses, ports }, uses))
}

fn cluster_addresses(spec: &ServiceSpec) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> =
        spec.cluster_ips.iter().flatten().filter_map(|address| address.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(spec.cluster_ip.as_deref().and_then(|address| address.parse::<IpAddr>().ok()));
    }
    addresses
}

fn protocol(name: Option<&str>) -> Protocol {
    match name {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn member(address: SocketAddr, workload: Option<&Arc<Workload>>) -> Member {
    let endpoint = Endpoint {
        address,
        workload: workload.map(|workload| workload.uid.clone()),
        enrolled: workload.is_some_and(|workload| workload.enrolled),
        mode: workload.map_or(Mode::Permissive, |workload| workload.mtls.at(address.port())),
        state: EndpointState::Ready,
        node: workload.and_then(|workload| workload.node.clone()),
        zone: None,
    };
    Member { endpoint, workload: workload.map(Arc::clone) }
}

/// The ready endpoints; where there are none, those that still serve while they terminate (KEP-1672).
fn from_slices(
    slices: &[&EndpointSlice],
    port: &ServicePort,
    protocol: Protocol,
    name: &ServiceName,
    cluster: &impl Cluster,
    uses: &mut BTreeSet<Dependency>,
) -> Vec<Member> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let (mut ready, mut leaving) = (Vec::new(), Vec::new());
    for slice in slices {
        let number = slice.ports.iter().flatten().find_map(|candidate| {
            let same = candidate.name.as_deref().unwrap_or_default() == wanted
                && self::protocol(candidate.protocol.as_deref()) == protocol;
            candidate.port.filter(|_| same).and_then(|number| u16::try_from(number).ok())
        });
        let Some(number) = number else { continue };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|all| all.ready) != Some(false);
            let is_leaving =
                conditions.is_some_and(|all| all.serving == Some(true) && all.terminating == Some(true));
            if is_ready {
                ready.extend(slice_members(endpoint, number, name, cluster, uses));
            } else if is_leaving {
                leaving.extend(slice_members(endpoint, number, name, cluster, uses));
            }
        }
    }
    if ready.is_empty() { leaving } else { ready }
}

fn slice_members(
    endpoint: &SliceEndpoint,
    port: u16,
    name: &ServiceName,
    cluster: &impl Cluster,
    uses: &mut BTreeSet<Dependency>,
) -> Vec<Member> {
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let uid = target.and_then(|target| {
        let namespace = target.namespace.as_deref().unwrap_or(&name.namespace);
        Some(WorkloadUid::pod(namespace, target.name.as_deref()?))
    });
    uses.extend(uid.clone().map(Dependency::Pod));
    let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
    addresses
        .map(|address| {
            uses.insert(Dependency::Address(address));
            let workload = uid.as_ref().and_then(|uid| cluster.workload(uid));
            member(SocketAddr::new(address, port), workload.or_else(|| cluster.workload_at(address)))
        })
        .collect()
}

/// What Kubernetes' endpoint controller would find, for manifests without an `EndpointSlice`.
fn from_pods(
    spec: &ServiceSpec,
    port: &ServicePort,
    protocol: Protocol,
    service_addresses: &[IpAddr],
    name: &ServiceName,
    cluster: &impl Cluster,
    uses: &mut BTreeSet<Dependency>,
) -> Vec<Member> {
    let Some(selector) = &spec.selector else { return Vec::new() };
    let Some((key, value)) = selector.first_key_value() else { return Vec::new() };
    // One label of the selector finds the candidates, the others are compared.
    let label = (Arc::clone(&name.namespace), key.clone(), value.clone());
    let pods = cluster.labelled(&label);
    uses.insert(Dependency::Label(label));
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    let mut members = Vec::new();
    for (pod, workload) in pods {
        let selected = selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value));
        if !selected || !(unready_too || is_ready(pod)) {
            continue;
        }
        let Some(number) = target_port(pod, port, protocol) else { continue };
        let addresses =
            workload.addresses.iter().filter(|address| has_family(spec, service_addresses, address));
        members.extend(addresses.map(|&address| member(SocketAddr::new(address, number), Some(workload))));
    }
    members
}

fn has_family(spec: &ServiceSpec, service_addresses: &[IpAddr], address: &IpAddr) -> bool {
    if !service_addresses.is_empty() {
        return service_addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4());
    }
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    spec.ip_families
        .as_ref()
        .is_none_or(|families| families.is_empty() || families.iter().any(|own| own == family))
}

/// Whether the pod's Ready condition holds; one that has none (no kubelet wrote it) counts as ready.
fn is_ready(pod: &Pod) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
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
                    && self::protocol(candidate.protocol.as_deref()) == protocol
            })?;
            u16::try_from(found.container_port).ok()
        }
    }
}
