//! The objects that are in force, and the snapshot made of them.
//!
//! A change is carried through in four steps, each of which passes on only what really became different: objects into
//! the indexes, nodes into zones, pods into workloads, services with their endpoints and rules into services with routes.
//! What is not concerned keeps its `Arc`.
//!
//! Invariant: the outcome depends on the set of objects alone, never on the order in which they came.

mod entries;
mod hosts;
mod index;
mod rules;
mod services;
mod targets;
#[cfg(test)]
mod tests;
mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use self::hosts::RuleHosts;
use self::index::{Claims, Users};
use super::lint::lint;
use super::translate::authorization::authorization_policy;
use super::translate::gateway;
use super::translate::node::{local_node, locality};
use super::translate::service::{Dependency, Label};
use super::translate::workload::{enrols, peer_policy};
use super::{Code, Kind, Notice, Object, ObjectRef};
use crate::model::{
    AuthorizationPolicy, Frontend, LocalNode, Locality, MeshConfig, NodeName, PeerPolicy, PolicyName,
    Sandboxes, ServiceName, Snapshot, WorkloadKind, WorkloadUid,
};

/// One change to the set of objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The object is new or different.
    Upsert(Arc<Object>),
    /// The object is gone.
    Delete(ObjectRef),
}

/// Age and name: rules of one host in the order of their precedence.
type ByAge = BTreeSet<(i64, ObjectRef)>;

/// Turns changes into snapshots.
#[derive(Debug)]
pub struct Translator {
    snapshot: Snapshot,
    objects: HashMap<ObjectRef, Arc<Object>>,
    /// Pods and `WorkloadEntry`s.
    pods: HashMap<WorkloadUid, Arc<Object>>,
    workload_entries: BTreeSet<WorkloadUid>,
    /// What is written into `ServiceEntry`s as endpoints, with the index there.
    endpoints: HashMap<WorkloadUid, (Arc<Object>, usize)>,
    sandboxes: Sandboxes,
    /// Pods whose sandbox became another since the last snapshot.
    moved: BTreeSet<WorkloadUid>,
    pods_by_namespace: HashMap<Arc<str>, BTreeSet<WorkloadUid>>,
    pods_by_label: HashMap<Label, BTreeSet<WorkloadUid>>,
    slices_by_service: HashMap<ServiceName, Vec<ObjectRef>>,
    /// By namespace, then name.
    policies: HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<PeerPolicy>>>,
    virtual_services: RuleHosts,
    destination_rules: HashMap<ServiceName, ByAge>,
    /// `ServiceEntry`s by their hosts.
    entries: HashMap<Arc<str>, ByAge>,
    /// `DestinationRule`s by hosts that may be those of `ServiceEntry`s, as they are written.
    destination_rules_by_host: HashMap<Arc<str>, ByAge>,
    /// Those for a host with a wildcard, by what the host ends in.
    wild_rules: HashMap<Arc<str>, ByAge>,
    /// `TCPRoute`s and `TLSRoute`s by the services that are their parents.
    gateway_routes: HashMap<ServiceName, ByAge>,
    /// Gateway API routes that route nobody's connections; what they lead to is in their status all the same.
    idle_routes: BTreeSet<ObjectRef>,
    /// By the namespace into which they let routes lead.
    grants: HashMap<Arc<str>, BTreeSet<ObjectRef>>,
    /// Services whose endpoints are chosen by zone.
    zonal: HashSet<ServiceName>,
    /// Services whose rules mind where clients and endpoints are.
    local: HashSet<ServiceName>,
    localities: HashMap<NodeName, Arc<Locality>>,
    endpoint_users: Users<Dependency>,
    route_users: Users<ServiceName>,
    /// Pods come before entries, and Services before hosts of entries: whoever may write these takes nothing away from those. Of
    /// entries the older comes first.
    workload_claims: Claims<(WorkloadKind, i64), WorkloadUid>,
    service_claims: Claims<(bool, i64), ServiceName, Frontend>,
    object_notices: BTreeMap<ObjectRef, Vec<Notice>>,
    route_notices: BTreeMap<ServiceName, Vec<Notice>>,
    target_notices: BTreeMap<ServiceName, Vec<Notice>>,
    /// All of them as they were last told, and whether they became different.
    notices: Arc<[Notice]>,
    notices_changed: bool,
}

/// What a batch of changes concerns, step by step.
#[derive(Debug, Default)]
struct Dirty {
    nodes: BTreeSet<NodeName>,
    /// Whether nodes or the API server have other addresses.
    reserved: bool,
    pods: BTreeSet<WorkloadUid>,
    dependencies: BTreeSet<Dependency>,
    addresses: BTreeSet<IpAddr>,
    services: BTreeSet<ServiceName>,
    /// Services whose endpoints, subsets or rules became different.
    destinations: BTreeSet<ServiceName>,
    /// Services that came or went, or that a policy refers to which is different.
    targets: BTreeSet<ServiceName>,
    /// Gateway API routes that were replaced or taken out, or whose parents or backends are different.
    routes: BTreeSet<ObjectRef>,
    /// Namespaces into which other routes may lead now.
    grants: BTreeSet<Arc<str>>,
    /// Authorization policies that were replaced or taken out, as they were first; `None`: there was none.
    policies: BTreeMap<PolicyName, Option<Arc<AuthorizationPolicy>>>,
}

impl Translator {
    /// A translator without objects.
    pub fn new(mesh: MeshConfig) -> Self {
        Self {
            snapshot: Snapshot { mesh: Arc::new(mesh), ..Snapshot::default() },
            objects: HashMap::new(),
            pods: HashMap::new(),
            workload_entries: BTreeSet::new(),
            endpoints: HashMap::new(),
            sandboxes: Sandboxes::default(),
            moved: BTreeSet::new(),
            pods_by_namespace: HashMap::new(),
            pods_by_label: HashMap::new(),
            slices_by_service: HashMap::new(),
            policies: HashMap::new(),
            virtual_services: RuleHosts::default(),
            destination_rules: HashMap::new(),
            entries: HashMap::new(),
            destination_rules_by_host: HashMap::new(),
            wild_rules: HashMap::new(),
            gateway_routes: HashMap::new(),
            idle_routes: BTreeSet::new(),
            grants: HashMap::new(),
            zonal: HashSet::new(),
            local: HashSet::new(),
            localities: HashMap::new(),
            endpoint_users: Users::default(),
            route_users: Users::default(),
            workload_claims: Claims::default(),
            service_claims: Claims::default(),
            object_notices: BTreeMap::new(),
            route_notices: BTreeMap::new(),
            target_notices: BTreeMap::new(),
            notices: Arc::default(),
            notices_changed: false,
        }
    }

    /// Carries out the changes; returns the snapshot and everything there is to say about the objects now in force. Both
    /// are the same as before where they did not become different.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> (Snapshot, Arc<[Notice]>) {
        let mut dirty = Dirty { pods: std::mem::take(&mut self.moved), ..Dirty::default() };
        let mut changed = !dirty.pods.is_empty();
        for change in changes {
            let (reference, object) = match change {
                Change::Upsert(object) => (object.reference(), Some(object)),
                Change::Delete(reference) => (reference, None),
            };
            changed |= self.replace(reference, object, &mut dirty);
        }
        self.note_guarded(&mut dirty);
        self.rebuild_nodes(&mut dirty);
        self.note_reserved(&mut dirty);
        self.rebuild_workloads(&mut dirty);
        if changed {
            dirty.routes.extend(self.idle_routes.iter().cloned());
        }
        let targets = std::mem::take(&mut dirty.targets);
        self.note_granted(&mut dirty);
        let routes = self.rebuild_services(dirty);
        self.rebuild_routes(routes);
        self.rebuild_targets(targets);
        if changed {
            self.snapshot.generation += 1;
        }
        let conflicts_changed = self.workload_claims.take_changed() | self.service_claims.take_changed();
        if std::mem::take(&mut self.notices_changed) | conflicts_changed {
            let of_services = self.route_notices.values().chain(self.target_notices.values());
            let own = self.object_notices.values().chain(of_services).flatten();
            let mut told = BTreeSet::new();
            // What is wrong with a rule for many services is so for each of them.
            let own = own.cloned().chain(self.conflicts()).filter(|notice| told.insert(notice.clone()));
            self.notices = own.collect();
        }
        (self.snapshot.clone(), Arc::clone(&self.notices))
    }

    /// Says anew where this node's pods are; [`Self::apply`] carries it out.
    pub fn set_sandboxes(&mut self, sandboxes: Sandboxes) {
        let gone = self.sandboxes.iter().filter(|(uid, _)| !sandboxes.contains_key(*uid));
        let new = sandboxes.iter().filter(|(uid, placed)| self.sandboxes.get(*uid) != Some(*placed));
        self.moved.extend(gone.chain(new).map(|(_, placed)| placed.workload.clone()));
        self.sandboxes = sandboxes;
    }

    /// The objects in force, in no order.
    pub fn objects(&self) -> Vec<Arc<Object>> {
        self.objects.values().map(Arc::clone).collect()
    }

    /// Addresses that more than one object says it has.
    fn conflicts(&self) -> Vec<Notice> {
        let notice = |object: ObjectRef, field: &str, what: &dyn Display, owner: &dyn Display| {
            Notice::new(Code::AddressClash, &object, field, format!("{what} belongs to {owner} already"))
        };
        let mut notices = Vec::new();
        for (address, (_, owner), (_, other)) in self.workload_claims.conflicts() {
            if let Some((object, index)) = self.endpoints.get(other) {
                let field = format!("spec.endpoints[{index}].address");
                notices.push(notice(object.reference(), &field, address, owner));
            } else if let Some(object) = self.pods.get(other) {
                let field = if matches!(**object, Object::Pod(_)) { "status.podIPs" } else { "spec.address" };
                notices.push(notice(object.reference(), field, address, owner));
            }
        }
        for (frontend, (_, owner), ((is_entry, _), other)) in self.service_claims.conflicts() {
            if let Some((entry, _)) = self.entry_of(other).filter(|_| *is_entry) {
                notices.push(notice(entry.clone(), "spec.addresses", frontend, owner));
            } else {
                let object =
                    ObjectRef::new(Kind::Service, Arc::clone(&other.namespace), Arc::clone(&other.name));
                notices.push(notice(object, "spec.ports", frontend, owner));
            }
        }
        notices
    }

    /// Puts an object in the place of the one before; false where they are equal.
    fn replace(&mut self, reference: ObjectRef, object: Option<Arc<Object>>, dirty: &mut Dirty) -> bool {
        let old = self.objects.get(&reference).map(Arc::clone);
        if old == object {
            return false;
        }
        if let Some(old) = &old {
            self.index(&reference, old, false, dirty);
            self.notices_changed |= self.object_notices.remove(&reference).is_some();
        }
        match object {
            Some(object) => {
                self.index(&reference, &object, true, dirty);
                let mut notices = lint(&object, &self.snapshot.mesh.root_namespace);
                notices.extend(self.says_nothing(&reference, &object));
                if !notices.is_empty() {
                    self.notices_changed = true;
                    self.object_notices.insert(reference.clone(), notices);
                }
                self.objects.insert(reference, object);
            }
            None => {
                self.objects.remove(&reference);
            }
        }
        true
    }

    /// Adds an object to the indexes or takes it out, and notes whom that concerns.
    fn index(&mut self, reference: &ObjectRef, object: &Arc<Object>, add: bool, dirty: &mut Dirty) {
        let name = ServiceName::new(Arc::clone(&reference.namespace), Arc::clone(&reference.name));
        match &**object {
            Object::Pod(pod) => self.index_pod(reference, object, pod, add, dirty),
            Object::Namespace(namespace) => {
                if add {
                    self.snapshot.namespaces.insert(Arc::clone(&reference.name), enrols(namespace));
                } else {
                    self.snapshot.namespaces.remove(&reference.name);
                }
                dirty.pods.extend(self.pods_by_namespace.get(&reference.name).into_iter().flatten().cloned());
            }
            Object::Service(_) => {
                self.note_kubernetes_host(&name, dirty);
                dirty.targets.insert(name.clone());
                dirty.services.insert(name);
            }
            Object::EndpointSlice(slice) => {
                if let Some(service) = &slice.service {
                    index::set_few(&mut self.slices_by_service, service.clone(), reference.clone(), add);
                    dirty.reserved |= entries::is_api_server(service);
                    dirty.services.insert(service.clone());
                }
            }
            Object::ServiceEntry(entry) => self.index_service_entry(reference, object, entry, add, dirty),
            Object::WorkloadEntry(entry) => self.index_workload_entry(reference, object, entry, add, dirty),
            Object::VirtualService(rule) if rule.spec.is_for_mesh() => {
                self.index_virtual_service(reference, object.created(), rule, add, dirty);
            }
            Object::DestinationRule(rule) => {
                self.index_destination_rule(reference, object.created(), rule, add, dirty);
            }
            Object::PeerAuthentication(policy) => {
                let policies = self.policies.entry(Arc::clone(&reference.namespace)).or_default();
                let name = PolicyName::new(Arc::clone(&reference.namespace), Arc::clone(&reference.name));
                if add {
                    let policy = Arc::new(peer_policy(policy, reference, object.created()));
                    self.snapshot.peer_policies.insert(name, Arc::clone(&policy));
                    policies.insert(Arc::clone(&reference.name), policy);
                } else {
                    self.snapshot.peer_policies.remove(&name);
                    policies.remove(&reference.name);
                }
                if reference.namespace == self.snapshot.mesh.root_namespace {
                    self.note_all_workloads(dirty);
                } else {
                    let pods = self.pods_by_namespace.get(&reference.namespace);
                    dirty.pods.extend(pods.into_iter().flatten().cloned());
                }
            }
            Object::AuthorizationPolicy(policy) => {
                let policy = authorization_policy(policy, reference, &self.snapshot.mesh);
                dirty.targets.extend(targets::targets(&policy));
                let before = self.snapshot.policies.get(&policy.name).map(Arc::clone);
                dirty.policies.entry(policy.name.clone()).or_insert(before);
                if add {
                    self.snapshot.policies.insert(&Arc::new(policy));
                } else {
                    self.snapshot.policies.remove(&policy.name);
                }
            }
            Object::Node(_) => {
                dirty.nodes.insert(NodeName::new(Arc::clone(&reference.name)));
            }
            Object::TcpRoute(route) | Object::TlsRoute(route) => {
                let mut is_idle = true;
                for service in gateway::parents((reference, route)) {
                    is_idle = false;
                    let entry = (object.created(), reference.clone());
                    index::set(&mut self.gateway_routes, service.clone(), entry, add);
                    dirty.destinations.insert(service);
                }
                if add && is_idle {
                    self.idle_routes.insert(reference.clone());
                } else {
                    self.idle_routes.remove(reference);
                }
                dirty.routes.insert(reference.clone());
            }
            Object::ReferenceGrant(_) => {
                index::set(&mut self.grants, Arc::clone(&reference.namespace), reference.clone(), add);
                dirty.grants.insert(Arc::clone(&reference.namespace));
            }
            Object::VirtualService(_) | Object::ServiceAccount(_) | Object::Unsupported(_) => {}
        }
    }

    fn rebuild_nodes(&mut self, dirty: &mut Dirty) {
        for name in std::mem::take(&mut dirty.nodes) {
            let reference = ObjectRef::new(Kind::Node, "", name.as_str());
            let node = match self.objects.get(&reference).map(|object| &**object) {
                Some(Object::Node(node)) => Some(node),
                _ => None,
            };
            let new = node.and_then(|node| locality(node));
            let is_local = self.snapshot.mesh.node.as_ref() == Some(&name);
            let local = is_local.then(|| node.map_or_else(LocalNode::default, |node| local_node(node)));
            let old = self.localities.get(&name).map(Arc::clone);
            if old.as_deref() != new.as_ref() {
                let zone = |locality: &Locality| Arc::clone(&locality.zone);
                if old.as_deref().map(zone).unwrap_or_default() != new.as_ref().map(zone).unwrap_or_default()
                {
                    dirty.dependencies.insert(Dependency::Zone(name.clone()));
                    if is_local {
                        dirty.destinations.extend(self.zonal.iter().cloned());
                    }
                }
                match new {
                    Some(locality) => self.localities.insert(name.clone(), Arc::new(locality)),
                    None => self.localities.remove(&name),
                };
                let concerned = self.local.iter().filter(|service| is_local || self.is_on(service, &name));
                dirty.destinations.extend(concerned.cloned());
            }
            if let Some(local) = local.filter(|local| *local != *self.snapshot.node) {
                dirty.reserved |= local.addresses != self.snapshot.node.addresses;
                self.snapshot.node = Arc::new(local);
            }
            let other = node.filter(|_| !is_local).map(|node| local_node(node).addresses);
            if self.snapshot.other_nodes.get(&name).map(|held| &**held) != other.as_deref() {
                dirty.reserved = true;
                match other {
                    Some(addresses) => self.snapshot.other_nodes.insert(name, addresses.into()),
                    None => self.snapshot.other_nodes.remove(&name),
                };
            }
        }
    }

    /// Whether the service has an endpoint on a node.
    fn is_on(&self, service: &ServiceName, node: &NodeName) -> bool {
        let ports = self.snapshot.services.get(service).into_iter().flat_map(|service| &service.ports);
        ports.flat_map(|port| &*port.listed).any(|endpoint| endpoint.is_on(node))
    }
}
