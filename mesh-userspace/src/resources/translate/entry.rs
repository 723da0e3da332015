//! A host of a `ServiceEntry` as a service, and `WorkloadEntry`s as endpoints: of entries that select them, and of Kubernetes
//! Services whose selector they match, as Istio has it (`PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES`).
//!
//! Whose address an endpoint is counts for more than who names it: where a pod has the address, that pod's mode and identity hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;

use super::endpoints::{Conditions, Listed, Member, member, settled};
use super::service::{Cluster, Dependency, PlainPort, PlainService};
use crate::model::{
    EndpointState, External, Locality, Protocol, ServiceKind, ServiceName, TrafficPolicy, Workload,
    WorkloadUid, shared_text,
};
use crate::resources::ObjectRef;
use crate::resources::entry::{EntryPort, Resolution, ServiceEntry, WorkloadEntry, WorkloadEntrySpec};

/// Label of an endpoint that names its locality, with dots for slashes, where `locality` is not written.
const LOCALITY: &str = "istio-locality";
/// Annotation of a `WorkloadEntry` whose status says whether it is well.
const HEALTH_CHECKS: &str = "proxy.istio.io/health-checks-enabled";

/// One of an entry's endpoints that can be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) struct Place {
    /// Its index in `spec.endpoints`.
    pub(in crate::resources) index: usize,
    pub(in crate::resources) address: IpAddr,
    pub(in crate::resources) uid: WorkloadUid,
}

/// Those of an entry's endpoints that have an address, in the order written.
pub(in crate::resources) fn places(entry: &ServiceEntry, reference: &ObjectRef) -> Vec<Place> {
    let mut seen: HashMap<IpAddr, usize> = HashMap::new();
    let endpoints = entry.spec.endpoints.iter().enumerate();
    endpoints
        .filter_map(|(index, endpoint)| {
            let address = endpoint.ip()?;
            let nth = seen.entry(address).and_modify(|nth| *nth += 1).or_insert(1);
            let uid = WorkloadUid::endpoint(&reference.namespace, &reference.name, address, *nth);
            Some(Place { index, address, uid })
        })
        .collect()
}

/// The addresses that are written as those of the entry's hosts, networks aside.
pub(in crate::resources) fn addresses(entry: &ServiceEntry) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for written in &entry.spec.addresses {
        let address = match written.parse::<IpNet>() {
            Ok(network) => Some(network.addr()).filter(|_| network.prefix_len() == network.max_prefix_len()),
            Err(_) => written.parse().ok(),
        };
        addresses.extend(address.filter(|address| !addresses.contains(address)));
    }
    addresses
}

/// Those of its addresses that are served: none that is a pod's, a node's or the API server's own, and none at all of an entry
/// that is not for everybody, since who asks for an address is not known by namespace.
fn served_addresses(
    entry: &ServiceEntry,
    cluster: &impl Cluster,
    uses: &mut BTreeSet<Dependency>,
) -> Vec<IpAddr> {
    if !entry.is_for_everybody() {
        return Vec::new();
    }
    let mut own = addresses(entry);
    uses.extend(own.iter().copied().map(Dependency::Address));
    own.retain(|&address| !cluster.is_reserved(address) && cluster.pod_at(address).is_none());
    own
}

/// Of the entries of a host that are carried out, oldest first, the one that a rule of `namespace` means: of each namespace
/// the oldest counts, and of these the rule's own namespace's comes first.
pub(in crate::resources) fn meant<'a>(
    served: impl Iterator<Item = (&'a ObjectRef, &'a ServiceEntry)>,
    namespace: &str,
) -> Option<&'a ObjectRef> {
    let mut seen = BTreeSet::new();
    let oldest = served.filter(|(entry, _)| seen.insert(Arc::clone(&entry.namespace)));
    let visible = oldest.filter(|(reference, entry)| entry.is_exported(&reference.namespace, namespace));
    visible.map(|(reference, _)| reference).min_by_key(|reference| *reference.namespace != *namespace)
}

/// Whether it is carried out: its endpoints are known.
pub(in crate::resources) fn is_served(entry: &ServiceEntry) -> bool {
    entry.spec.resolution == Resolution::Static
}

/// One of the entry's hosts as a service, and what it depends on; `None` where the entry's endpoints are not known.
///
/// The addresses are the first host's: what comes to them does not say which host it means.
pub(in crate::resources) fn entry_service(
    entry: &ServiceEntry,
    reference: &ObjectRef,
    host: &str,
    cluster: &impl Cluster,
) -> Option<(PlainService, BTreeSet<Dependency>)> {
    if !is_served(entry) {
        return None;
    }
    let mut uses = BTreeSet::new();
    let is_first = entry.hosts().next() == Some(host);
    let places = places(entry, reference);
    let ports = entry.spec.ports.iter().filter_map(|port| {
        let wanted = Wanted { entry, reference, port, number: u16::try_from(port.number).ok()? };
        let mut listed = wanted.written(&places, cluster, &mut uses);
        listed.extend(wanted.selected(cluster, &mut uses));
        Some(plain_port(&wanted, settled(listed)))
    });
    let ports = ports.collect();
    let addresses = if is_first { served_addresses(entry, cluster, &mut uses) } else { Vec::new() };
    let service = PlainService {
        name: ServiceName::new(Arc::clone(&reference.namespace), host),
        host: host.into(),
        kind: ServiceKind::ServiceEntry,
        addresses,
        ports,
        internal: TrafficPolicy::Cluster,
        external: External::default(),
        affinity_seconds: None,
    };
    Some((service, uses))
}

fn plain_port(wanted: &Wanted<'_>, members: Vec<Member>) -> PlainPort {
    let protocol = wanted.port.protocol.to_ascii_lowercase();
    let is_udp = protocol == "udp";
    PlainPort {
        name: shared_text(&wanted.port.name),
        port: wanted.number,
        protocol: if is_udp { Protocol::Udp } else { Protocol::Tcp },
        node_port: None,
        application: Some(protocol).filter(|protocol| !protocol.is_empty() && !is_udp).map(Into::into),
        uses_local: false,
        members,
    }
}

/// A port of an entry, as endpoints are looked for.
struct Wanted<'a> {
    entry: &'a ServiceEntry,
    reference: &'a ObjectRef,
    port: &'a EntryPort,
    number: u16,
}

impl Wanted<'_> {
    /// Where an endpoint serves the port: as it says itself, else as the port does.
    fn of(&self, endpoint: Option<&WorkloadEntrySpec>) -> u16 {
        let own = endpoint.and_then(|endpoint| endpoint.port(&self.port.name));
        let target = u16::try_from(self.port.target_port).ok().filter(|&port| port != 0);
        own.or(target).unwrap_or(self.number)
    }

    /// The endpoints that are written into the entry.
    fn written(
        &self,
        places: &[Place],
        cluster: &impl Cluster,
        uses: &mut BTreeSet<Dependency>,
    ) -> Vec<Listed> {
        let endpoints = places.iter().map(|place| {
            let spec = &self.entry.spec.endpoints[place.index];
            uses.insert(Dependency::Pod(place.uid.clone()));
            uses.insert(Dependency::Address(place.address));
            let own = cluster.workload(&place.uid);
            let address = SocketAddr::new(place.address, self.of(Some(spec)));
            let owner = cluster.pod_at(place.address).or(own);
            let mut member = described(member(address, EndpointState::Ready, owner), spec);
            // A pod's address may be written here with labels of its own.
            member.labels = own.map(|own| Arc::clone(&own.labels));
            (false, member)
        });
        endpoints.collect()
    }

    /// Pods and `WorkloadEntry`s that the entry selects.
    fn selected(&self, cluster: &impl Cluster, uses: &mut BTreeSet<Dependency>) -> Vec<Listed> {
        let selector = self.entry.spec.workload_selector.as_ref().map(|selector| &selector.labels);
        let Some((selector, (key, value))) = selector.and_then(|all| Some((all, all.first_key_value()?)))
        else {
            return Vec::new();
        };
        // One label of the selector finds the candidates, the others are compared.
        let label = (Arc::clone(&self.reference.namespace), key.clone(), value.clone());
        let is_selected =
            |workload: &Workload| selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value));
        let mut listed = Vec::new();
        for (pod, workload) in cluster.labelled(&label) {
            if !is_selected(workload) {
                continue;
            }
            let (serving, terminating) = (pod.is_ready, pod.is_terminating);
            let conditions = Conditions { ready: serving && !terminating, serving, terminating };
            let zone = workload.node.as_ref().and_then(|node| {
                uses.insert(Dependency::Zone(node.clone()));
                cluster.zone(node)
            });
            for &address in &workload.addresses {
                let address = SocketAddr::new(address, self.of(None));
                let mut member = member(address, conditions.state(), Some(workload));
                member.endpoint.node.clone_from(&workload.node);
                member.endpoint.zone = zone.map(Arc::clone);
                listed.push((terminating, member));
            }
        }
        for (entry, workload) in cluster.entries(&label) {
            if is_selected(workload) {
                listed.extend(of_entry(entry, workload, self.of(Some(&entry.spec)), cluster, uses));
            }
        }
        uses.insert(Dependency::Label(Box::new(label)));
        listed
    }
}

/// A `WorkloadEntry` as an endpoint at a port.
pub(super) fn of_entry(
    entry: &WorkloadEntry,
    workload: &Arc<Workload>,
    port: u16,
    cluster: &impl Cluster,
    uses: &mut BTreeSet<Dependency>,
) -> Option<Listed> {
    let &address = workload.addresses.first()?;
    uses.insert(Dependency::Pod(workload.uid.clone()));
    uses.insert(Dependency::Address(address));
    let owner = cluster.pod_at(address).unwrap_or(workload);
    let state = if is_well(entry) { EndpointState::Ready } else { EndpointState::Unready };
    let mut member = described(member(SocketAddr::new(address, port), state, Some(owner)), &entry.spec);
    member.labels = Some(Arc::clone(&workload.labels));
    Some((false, member))
}

/// The member with what its entry says of it.
fn described(mut member: Member, spec: &WorkloadEntrySpec) -> Member {
    let locality = locality(spec);
    member.endpoint.weight = spec.share();
    member.endpoint.zone = locality.as_ref().map(|locality| Arc::clone(&locality.zone));
    member.endpoint.zone = member.endpoint.zone.filter(|zone| !zone.is_empty());
    member.endpoint.locality = locality.map(Arc::new);
    member
}

/// `locality`, or what the label says instead; what is beyond the sub-zone is passed over, as in Istio.
fn locality(spec: &WorkloadEntrySpec) -> Option<Locality> {
    let label = || spec.labels.get(LOCALITY).map(|label| label.replace('.', "/"));
    let text = Some(spec.locality.clone()).filter(|text| !text.is_empty()).or_else(label)?;
    let mut parts = text.split('/');
    let mut next = || shared_text(parts.next().unwrap_or_default());
    let locality = Locality { region: next(), zone: next(), subzone: next() };
    (locality != Locality::default()).then_some(locality)
}

/// Whether a `WorkloadEntry` takes connections: one whose health is checked says so in its status.
fn is_well(entry: &WorkloadEntry) -> bool {
    let annotations: Option<&BTreeMap<String, String>> = entry.metadata.annotations.as_ref();
    let is_checked = annotations.and_then(|all| all.get(HEALTH_CHECKS)).is_some_and(|value| value == "true");
    let conditions = entry.rest.get("status").and_then(|status| status.get("conditions"));
    let mut conditions = conditions.and_then(Value::as_array).into_iter().flatten();
    !is_checked || conditions.any(|condition| condition["type"] == "Healthy" && condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::json;

    use super::*;
    use crate::resources::istio::Rest;

    #[test]
    fn localities() {
        let cases = [
            ("", "", None),
            ("r", "", Some("r//")),
            ("r/z", "", Some("r/z/")),
            ("r/z/s/rack", "", Some("r/z/s")),
            ("", "r.z.s", Some("r/z/s")),
            ("r/z", "a.b", Some("r/z/")),
            ("/", "", None),
        ];
        for (written, label, wanted) in cases {
            let labels = [(LOCALITY.to_owned(), label.to_owned())];
            let spec = WorkloadEntrySpec {
                locality: written.to_owned(),
                labels: labels.into_iter().filter(|(_, value)| !value.is_empty()).collect(),
                ..WorkloadEntrySpec::default()
            };
            let told =
                locality(&spec).map(|found| format!("{}/{}/{}", found.region, found.zone, found.subzone));
            assert_eq!(told.as_deref(), wanted, "{written:?} {label:?}");
        }
    }

    #[test]
    fn health_counts_where_it_is_checked() {
        let healthy = |status: &str| json!({"conditions": [{"type": "Healthy", "status": status}]});
        let cases = [
            ("nobody checks", None, Some(healthy("False")), true),
            ("well", Some("true"), Some(healthy("True")), true),
            ("ill", Some("true"), Some(healthy("False")), false),
            ("not known yet", Some("true"), None, false),
            ("not checked", Some("false"), Some(healthy("False")), true),
        ];
        for (name, annotation, status, wanted) in cases {
            let annotations = annotation.map(|value| [(HEALTH_CHECKS.to_owned(), value.to_owned())].into());
            let entry = WorkloadEntry {
                metadata: ObjectMeta { annotations, ..ObjectMeta::default() },
                spec: WorkloadEntrySpec::default(),
                rest: status.into_iter().map(|status| ("status".to_owned(), status)).collect::<Rest>(),
            };
            assert_eq!(is_well(&entry), wanted, "{name}");
        }
    }
}
