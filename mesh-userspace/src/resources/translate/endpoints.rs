//! The endpoints that a service port is said to have: from its `EndpointSlice`s as kube-proxy reads them
//! (pkg/proxy/endpointslicecache.go, v1.36), or from Pods as Kubernetes' own controller would make slices of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::entry::of_entry;
use super::service::{Cluster, Dependency};
use super::topology::Hints;
use crate::model::{Endpoint, EndpointState, Mode, ServiceName, Workload};
use crate::resources::Pod;
use crate::resources::entry::WorkloadEntrySpec;
use crate::resources::service::{Distribution, Families, Service, ServicePort, Target};
use crate::resources::slice::{EndpointSlice, SliceEndpoint};

/// An endpoint, the workload behind it, whose labels subsets ask for, and whose clients it is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) struct Member {
    pub(in crate::resources) endpoint: Endpoint,
    pub(in crate::resources) workload: Option<Arc<Workload>>,
    pub(in crate::resources) hints: Option<Box<Hints>>,
    /// What its entry says, whoever's its address is; `None`: its workload's hold.
    pub(in crate::resources) labels: Option<Arc<BTreeMap<String, String>>>,
}

impl Member {
    /// Whether it has all these labels.
    pub(in crate::resources) fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        let own = self.labels.as_ref().or_else(|| self.workload.as_ref().map(|workload| &workload.labels));
        labels.iter().all(|(key, value)| own.is_some_and(|own| own.get(key) == Some(value)))
    }
}

/// A member and whether it terminates. An address may be listed twice, while it moves from one slice to another or because a
/// pod took over that of one which still terminates: what does not terminate comes first, then what serves best.
pub(super) type Listed = (bool, Member);

/// A port of a service, as endpoints are looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) name: &'a ServiceName,
    pub(super) service: &'a Service,
    pub(super) port: &'a ServicePort,
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
    listed.extend(from_entries(wanted, cluster, uses));
    settled(listed)
}

/// Sorted by address (IPv4 first), each once.
pub(super) fn settled(mut listed: Vec<Listed>) -> Vec<Member> {
    listed
        .sort_by_key(|(terminating, member)| (member.endpoint.address, *terminating, member.endpoint.state));
    listed.dedup_by_key(|(_, member)| member.endpoint.address);
    listed.into_iter().map(|(_, member)| member).collect()
}

/// Conditions, as `EndpointConditions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::resources) struct Conditions {
    pub(in crate::resources) ready: bool,
    pub(in crate::resources) serving: bool,
    pub(in crate::resources) terminating: bool,
}

impl Conditions {
    pub(super) const fn state(self) -> EndpointState {
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
    let mut listed = Vec::new();
    for slice in slices {
        let is_wanted = |name: &str, protocol| *name == *wanted.port.name && protocol == wanted.port.protocol;
        for port in slice.ports.iter().filter(|port| is_wanted(&port.name, port.protocol)) {
            let of_family = slice.endpoints.iter().filter(|endpoint| wanted.has_family(endpoint.address));
            listed.extend(of_family.map(|endpoint| of_slice(endpoint, port.port, cluster, uses)));
        }
    }
    listed
}

fn of_slice(
    endpoint: &SliceEndpoint,
    port: u16,
    cluster: &impl Cluster,
    uses: &mut BTreeSet<Dependency>,
) -> Listed {
    let SliceEndpoint { address, conditions, .. } = *endpoint;
    // Whom a slice names has no say over an address that is another pod's: that one's policy holds.
    let named = endpoint.pod.as_ref().and_then(|uid| cluster.workload(uid));
    let named = named.filter(|workload| workload.addresses.contains(&address));
    // Nor has an entry, over one that the Service's own controller lists.
    let workload = named.or_else(|| cluster.pod_at(address));
    uses.extend(endpoint.pod.clone().map(Dependency::Pod));
    uses.insert(Dependency::Address(address));
    let mut member = member(SocketAddr::new(address, port), conditions.state(), workload);
    member.endpoint.node.clone_from(&endpoint.node);
    member.endpoint.zone.clone_from(&endpoint.zone);
    member.hints.clone_from(&endpoint.hints);
    (conditions.terminating, member)
}

pub(super) fn member(address: SocketAddr, state: EndpointState, workload: Option<&Arc<Workload>>) -> Member {
    let endpoint = Endpoint {
        address,
        workload: workload.map(|workload| workload.uid.clone()),
        enrolled: workload.is_some_and(|workload| workload.enrolled),
        mode: workload.map_or(Mode::Permissive, |workload| workload.mtls.at(address.port())),
        guarded: workload.is_some_and(|workload| workload.guarded),
        state,
        node: None,
        zone: None,
        locality: None,
        weight: 1,
    };
    Member { endpoint, workload: workload.map(Arc::clone), hints: None, labels: None }
}

/// What the `EndpointSlice` controller would write, for manifests without slices.
fn from_pods(wanted: Wanted<'_>, cluster: &impl Cluster, uses: &mut BTreeSet<Dependency>) -> Vec<Listed> {
    let Some((key, value)) = wanted.service.selector.first() else { return Vec::new() };
    // One label of the selector finds the candidates, the others are compared.
    let label = (Arc::clone(&wanted.name.namespace), key.to_string(), value.to_string());
    let pods = cluster.labelled(&label);
    uses.insert(Dependency::Label(Box::new(label)));
    let unready_too = wanted.service.publish_not_ready_addresses;
    let mut listed = Vec::new();
    for (pod, workload) in pods {
        let selected = wanted.service.selects(&workload.labels);
        let Some(number) = target_port(pod, wanted.port).filter(|_| selected) else {
            continue;
        };
        let (serving, terminating) = (pod.is_ready, pod.is_terminating);
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
                member.hints = hints(wanted.service.distribution, &member.endpoint);
            }
            listed.push((terminating, member));
        }
    }
    listed
}

/// `WorkloadEntry`s that the service selects: slices know nothing of them, so that they are taken beside these. Whoever
/// changes one looks for the services that select it, which is why they are no dependency by label.
fn from_entries(wanted: Wanted<'_>, cluster: &impl Cluster, uses: &mut BTreeSet<Dependency>) -> Vec<Listed> {
    let service = wanted.service;
    let Some((key, value)) = service.selector.first().filter(|_| cluster.has_entries()) else {
        return Vec::new();
    };
    let label = (Arc::clone(&wanted.name.namespace), key.to_string(), value.to_string());
    let mut listed = Vec::new();
    for (entry, workload) in cluster.entries(&label) {
        let Some(port) = entry_port(&entry.spec, wanted.port).filter(|_| service.selects(&workload.labels))
        else {
            continue;
        };
        let is_of_family = workload.addresses.iter().any(|address| wanted.has_family(*address));
        if is_of_family {
            listed.extend(of_entry(entry, workload, port, cluster, uses));
        }
    }
    listed
}

/// `targetPort` as a number: itself, or the entry's port of that name.
fn entry_port(entry: &WorkloadEntrySpec, port: &ServicePort) -> Option<u16> {
    match &port.target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => entry.port(name),
        Target::Nothing => None,
    }
}

/// What `trafficDistribution` makes of an endpoint (staging/src/k8s.io/endpointslice/trafficdist).
fn hints(distribution: Option<Distribution>, endpoint: &Endpoint) -> Option<Box<Hints>> {
    let by_node = distribution? == Distribution::SameNode;
    let hints = Hints {
        nodes: endpoint.node.iter().filter(|_| by_node).cloned().collect(),
        zones: endpoint.zone.iter().map(Arc::clone).collect(),
    };
    (hints != Hints::default()).then(|| Box::new(hints))
}

impl Wanted<'_> {
    /// Whether the service is of the address's family.
    fn has_family(&self, address: IpAddr) -> bool {
        let Service { addresses, families, .. } = self.service;
        if !addresses.is_empty() {
            return super::external::has_family(addresses, address);
        }
        families.is_none_or(|Families { v4, v6 }| if address.is_ipv4() { v4 } else { v6 })
    }
}

/// `targetPort` as a number: itself, or the container port of that name.
fn target_port(pod: &Pod, port: &ServicePort) -> Option<u16> {
    let name = match &port.target {
        Target::Number(number) => return Some(*number),
        Target::Nothing => return None,
        Target::Name(name) => name,
    };
    let found = pod.ports.iter().find(|own| *own.name == **name && own.protocol == port.protocol)?;
    Some(found.port)
}
