//! The objects that are in force, and the snapshot made of them.
//!
//! A change is carried through in four steps, each of which passes on only what really became different: objects into
//! the indexes, nodes into zones, pods into workloads, services with their endpoints and rules into services with routes.
//! What is not concerned keeps its `Arc`.
//!
//! Invariant: the outcome depends on the set of objects alone, never on the order in which they came.

mod index;
mod targets;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use self::index::{Claims, Users};
use super::lint::lint;
use super::translate::authorization::authorization_policy;
use super::translate::destination::{self, mind_locality};
use super::translate::gateway::{self, Named};
use super::translate::node::{local_node, locality};
use super::translate::route::{Destinations, resolve_host, routed};
use super::translate::service::{Cluster, Dependency, Label, PlainService, plain_service};
use super::translate::topology::Here;
use super::translate::workload::{enrols, peer_policy, workload};
use super::{Code, DestinationRule, Kind, Notice, Object, ObjectRef, Pod, VirtualService};
use crate::model::{
    AuthorizationPolicy, Frontend, LocalNode, Locality, MeshConfig, NodeName, PeerPolicy, PolicyName,
    RouteName, Sandbox, Sandboxes, Service, ServiceName, Snapshot, Workload, WorkloadUid,
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
    pods: HashMap<WorkloadUid, Arc<Object>>,
    sandboxes: Sandboxes,
    /// Pods whose sandbox became another since the last snapshot.
    moved: BTreeSet<WorkloadUid>,
    pods_by_namespace: HashMap<Arc<str>, BTreeSet<WorkloadUid>>,
    pods_by_label: HashMap<Label, BTreeSet<WorkloadUid>>,
    slices_by_service: HashMap<ServiceName, Vec<ObjectRef>>,
    /// By namespace, then name.
    policies: HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<PeerPolicy>>>,
    virtual_services: HashMap<ServiceName, ByAge>,
    destination_rules: HashMap<ServiceName, ByAge>,
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
    workload_claims: Claims<WorkloadUid>,
    service_claims: Claims<ServiceName, Frontend>,
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
            sandboxes: Sandboxes::default(),
            moved: BTreeSet::new(),
            pods_by_namespace: HashMap::new(),
            pods_by_label: HashMap::new(),
            slices_by_service: HashMap::new(),
            policies: HashMap::new(),
            virtual_services: HashMap::new(),
            destination_rules: HashMap::new(),
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
            self.notices = own.cloned().chain(self.conflicts()).collect();
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
        for (address, owner, other) in self.workload_claims.conflicts() {
            let Some(pod) = self.pods.get(other) else { continue };
            notices.push(notice(pod.reference(), "status.podIPs", address, owner));
        }
        for (frontend, owner, other) in self.service_claims.conflicts() {
            let object = ObjectRef::new(Kind::Service, Arc::clone(&other.namespace), Arc::clone(&other.name));
            notices.push(notice(object, "spec.ports", frontend, owner));
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
                notices.extend(self.foreign_hosts(&reference, &object));
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
                dirty.targets.insert(name.clone());
                dirty.services.insert(name);
            }
            Object::EndpointSlice(slice) => {
                if let Some(service) = &slice.service {
                    index::set_few(&mut self.slices_by_service, service.clone(), reference.clone(), add);
                    dirty.services.insert(service.clone());
                }
            }
            Object::VirtualService(rule) if is_for_mesh(rule) => {
                for host in &rule.spec.hosts {
                    if let Some(service) = resolve_host(host, &reference.namespace, &self.snapshot.mesh) {
                        let entry = (object.created(), reference.clone());
                        index::set(&mut self.virtual_services, service.clone(), entry, add);
                        dirty.destinations.insert(service);
                    }
                }
            }
            Object::DestinationRule(rule) => self.index_destination_rule(reference, object, rule, add, dirty),
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
                    dirty.pods.extend(self.pods.keys().cloned());
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

    fn index_destination_rule(
        &mut self,
        reference: &ObjectRef,
        object: &Object,
        rule: &DestinationRule,
        add: bool,
        dirty: &mut Dirty,
    ) {
        let entry = (object.created(), reference.clone());
        let mesh = &self.snapshot.mesh;
        if let Some(suffix) = destination::suffix(&rule.spec.host) {
            let of_suffix = |name: &&ServiceName| host_of(name, mesh).ends_with(suffix);
            dirty.destinations.extend(self.snapshot.services.keys().filter(of_suffix).cloned());
            index::set(&mut self.wild_rules, suffix.into(), entry, add);
        } else if let Some(service) = resolve_host(&rule.spec.host, &reference.namespace, mesh) {
            index::set(&mut self.destination_rules, service.clone(), entry, add);
            dirty.destinations.insert(service);
        }
    }

    /// Whom policies concern that now refuse, or no longer do: their pods are other ones in the kernel.
    fn note_guarded(&self, dirty: &mut Dirty) {
        for (name, before) in std::mem::take(&mut dirty.policies) {
            let now = self.snapshot.policies.get(&name);
            let reach = |policy: Option<&Arc<AuthorizationPolicy>>| {
                policy.filter(|policy| policy.may_refuse()).map(|policy| policy.scope.clone())
            };
            if reach(before.as_ref()) == reach(now) {
                continue;
            }
            if name.namespace == self.snapshot.mesh.root_namespace {
                dirty.pods.extend(self.pods.keys().cloned());
            } else {
                let pods = self.pods_by_namespace.get(&name.namespace);
                dirty.pods.extend(pods.into_iter().flatten().cloned());
            }
        }
    }

    fn index_pod(
        &mut self,
        reference: &ObjectRef,
        object: &Arc<Object>,
        pod: &Pod,
        add: bool,
        dirty: &mut Dirty,
    ) {
        let uid = WorkloadUid::shared(&reference.namespace, &reference.name);
        index::set(&mut self.pods_by_namespace, Arc::clone(&reference.namespace), uid.clone(), add);
        for (key, value) in pod.labels.iter() {
            let label = (Arc::clone(&reference.namespace), key.clone(), value.clone());
            index::set(&mut self.pods_by_label, label.clone(), uid.clone(), add);
            // Readiness and named ports are no part of the workload.
            dirty.dependencies.insert(Dependency::Label(Box::new(label)));
        }
        if add {
            self.pods.insert(uid.clone(), Arc::clone(object));
        } else {
            self.pods.remove(&uid);
        }
        dirty.pods.insert(uid);
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
                self.snapshot.node = Arc::new(local);
            }
            let other = node.filter(|_| !is_local).map(|node| local_node(node).addresses);
            if self.snapshot.other_nodes.get(&name).map(|held| &**held) != other.as_deref() {
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

    fn rebuild_workloads(&mut self, dirty: &mut Dirty) {
        for uid in std::mem::take(&mut dirty.pods) {
            let new = self.workload_of(&uid);
            let old = self.snapshot.workloads.get(&uid).map(Arc::clone);
            if old.as_deref() == new.as_ref() {
                continue;
            }
            let new = new.map(Arc::new);
            for workload in [&old, &new].into_iter().flatten() {
                dirty.note_workload(workload);
            }
            let addresses = new.as_ref().filter(|new| !new.host_network).map(|new| new.addresses.clone());
            self.workload_claims.set(&uid, addresses.unwrap_or_default());
            match new {
                Some(new) => self.snapshot.workloads.insert(uid, new),
                None => self.snapshot.workloads.remove(&uid),
            };
        }
        for address in std::mem::take(&mut dirty.addresses) {
            let owner = self.workload_claims.owner(address).and_then(|uid| self.snapshot.workloads.get(uid));
            match owner {
                Some(owner) => self.snapshot.addresses.insert(address, Arc::clone(owner)),
                None => self.snapshot.addresses.remove(&address),
            };
        }
    }

    fn workload_of(&self, uid: &WorkloadUid) -> Option<Workload> {
        let object = self.pods.get(uid)?;
        let Object::Pod(pod) = &**object else { return None };
        let reference = &pod.reference;
        let mesh = &self.snapshot.mesh;
        let namespace = ObjectRef::new(Kind::Namespace, "", Arc::clone(&reference.namespace));
        let namespace = match self.objects.get(&namespace).map(|object| &**object) {
            Some(Object::Namespace(namespace)) => Some(&**namespace),
            _ => None,
        };
        let own = self.policies.get(&reference.namespace);
        let root =
            self.policies.get(&mesh.root_namespace).filter(|_| reference.namespace != mesh.root_namespace);
        let policies = own.into_iter().chain(root).flat_map(BTreeMap::values).map(|policy| &**policy);
        let mut workload = workload(pod, namespace, policies, &self.snapshot.policies, mesh)?;
        let placed = workload.pod_uid.as_ref().and_then(|pod_uid| self.sandboxes.get(pod_uid));
        match placed.filter(|placed| placed.workload == *uid).map(|placed| &placed.sandbox) {
            Some(Sandbox::Gone) => return None,
            Some(Sandbox::At { addresses, netns }) if !workload.host_network => {
                workload.addresses.clone_from(addresses);
                workload.netns = Some(netns.clone());
            }
            Some(Sandbox::At { .. }) | None => {}
        }
        Some(workload)
    }

    /// The service without its routes, and what it depends on. Made anew whenever it is asked for: most services are the
    /// destination of no rule, and keeping it would cost as much as the services themselves.
    fn plain_of(&self, name: &ServiceName) -> Option<(PlainService, BTreeSet<Dependency>)> {
        let reference = ObjectRef::new(Kind::Service, Arc::clone(&name.namespace), Arc::clone(&name.name));
        let Object::Service(service) = &**self.objects.get(&reference)? else { return None };
        let slices = self.slices_by_service.get(name).into_iter().flatten().filter_map(|slice| {
            match self.objects.get(slice).map(|object| &**object) {
                Some(Object::EndpointSlice(slice)) => Some(&**slice),
                _ => None,
            }
        });
        plain_service(service, name, &slices.collect::<Vec<_>>(), self, &self.snapshot.mesh)
    }

    /// Whom grants concern: services whose routes lead into another namespace.
    fn note_granted(&self, dirty: &mut Dirty) {
        let grants = std::mem::take(&mut dirty.grants);
        if grants.is_empty() {
            return;
        }
        for service in self.gateway_routes.keys() {
            let crosses = |route: &Named<'_>| {
                let into = gateway::backends(*route);
                into.iter()
                    .any(|name| name.namespace != route.0.namespace && grants.contains(&name.namespace))
            };
            if self.routes_for(service).iter().any(crosses) {
                dirty.destinations.insert(service.clone());
            }
        }
    }

    /// What the status of Gateway API routes is to say.
    fn rebuild_routes(&mut self, routes: BTreeSet<ObjectRef>) {
        for reference in routes {
            let state = self
                .gateway_route(&reference)
                .and_then(|route| gateway::state(route, self, |service| self.routes_for(service)));
            let name = RouteName {
                kind: gateway::kind(&reference),
                name: ServiceName::new(Arc::clone(&reference.namespace), Arc::clone(&reference.name)),
            };
            match state {
                Some(state) if self.snapshot.routes.get(&name).is_some_and(|old| **old == state) => {}
                Some(state) => drop(self.snapshot.routes.insert(name, Arc::new(state))),
                None => drop(self.snapshot.routes.remove(&name)),
            }
        }
    }

    fn gateway_route(&self, reference: &ObjectRef) -> Option<Named<'_>> {
        let (reference, object) = self.objects.get_key_value(reference)?;
        match &**object {
            Object::TcpRoute(route) | Object::TlsRoute(route) => Some((reference, route)),
            _ => None,
        }
    }

    /// The `TCPRoute`s that have a service for a parent, oldest first.
    fn routes_for(&self, name: &ServiceName) -> Vec<Named<'_>> {
        let by_age = self.gateway_routes.get(name).into_iter().flatten();
        by_age
            .filter(|(_, reference)| reference.kind == Kind::TcpRoute)
            .filter_map(|(_, reference)| self.gateway_route(reference))
            .collect()
    }

    /// Returns the Gateway API routes that are concerned.
    fn rebuild_services(&mut self, mut dirty: Dirty) -> BTreeSet<ObjectRef> {
        for dependency in &dirty.dependencies {
            dirty.services.extend(self.endpoint_users.of(dependency).cloned());
        }
        // Whoever leads there sees other endpoints too.
        dirty.destinations.append(&mut dirty.services);
        let users = dirty.destinations.iter().flat_map(|name| self.route_users.of(name));
        let concerned: BTreeSet<ServiceName> = dirty.destinations.iter().chain(users).cloned().collect();
        let mut frontends = BTreeSet::new();
        for name in concerned {
            let of_gateway = self.gateway_routes.get(&name).into_iter().flatten();
            dirty.routes.extend(of_gateway.map(|(_, reference)| reference.clone()));
            let (plain, uses) = self.plain_of(&name).unzip();
            self.endpoint_users.set(&name, uses.unwrap_or_default());
            if plain.as_ref().is_some_and(PlainService::minds_the_zone) {
                self.zonal.insert(name.clone());
            } else {
                self.zonal.remove(&name);
            }
            if mind_locality(&self.rules(&name)) {
                self.local.insert(name.clone());
            } else {
                self.local.remove(&name);
            }
            let rules = self.rules_for(&name);
            let routes = self.routes_for(&name);
            let routed = plain.map(|plain| routed(&plain, &rules, &routes, self, &self.snapshot.mesh));
            let (service, notices, uses) = if let Some(routed) = routed {
                (Some(routed.service), routed.notices, routed.uses)
            } else {
                let mut notices = rules_without_service(&name, &rules);
                notices.extend(routes.iter().map(|(route, _)| route_without_service(&name, route)));
                // What they lead to is in their status all the same.
                (None, notices, routes.iter().flat_map(|&route| gateway::backends(route)).collect())
            };
            self.route_users.set(&name, uses);
            if self.route_notices.get(&name).map_or(&[][..], Vec::as_slice) != notices {
                self.notices_changed = true;
                if notices.is_empty() {
                    self.route_notices.remove(&name);
                } else {
                    self.route_notices.insert(name.clone(), notices);
                }
            }
            let old = self.snapshot.services.get(&name);
            if old.map(|old| &**old) == service.as_ref() {
                continue;
            }
            frontends.extend(old.iter().flat_map(|old| old.frontends()));
            let own: Vec<Frontend> = service.iter().flat_map(Service::frontends).collect();
            frontends.extend(own.iter().copied());
            self.service_claims.set(&name, own);
            match service {
                Some(service) => self.snapshot.services.insert(name, Arc::new(service)),
                None => self.snapshot.services.remove(&name),
            };
        }
        for frontend in frontends {
            let owner = self.service_claims.owner(frontend).and_then(|name| self.snapshot.services.get(name));
            match owner {
                Some(owner) => self.snapshot.frontends.insert(frontend, Arc::clone(owner)),
                None => self.snapshot.frontends.remove(&frontend),
            };
        }
        dirty.routes
    }

    /// The rules that name a service's host, oldest first.
    fn rules_for(&self, name: &ServiceName) -> Vec<(&ObjectRef, &VirtualService)> {
        let by_age = self.virtual_services.get(name).into_iter().flatten();
        by_age
            .filter_map(|(_, reference)| match self.objects.get_key_value(reference) {
                Some((reference, object)) => match &**object {
                    Object::VirtualService(rule) => Some((reference, &**rule)),
                    _ => None,
                },
                None => None,
            })
            .collect()
    }

    /// Hosts of a rule that can be no service of this cluster.
    fn foreign_hosts(&self, reference: &ObjectRef, object: &Object) -> Vec<Notice> {
        let mesh = &self.snapshot.mesh;
        let hosts: Vec<(String, &String)> = match object {
            Object::VirtualService(rule) if is_for_mesh(rule) => {
                let hosts = rule.spec.hosts.iter().enumerate();
                hosts.map(|(index, host)| (format!("spec.hosts[{index}]"), host)).collect()
            }
            Object::DestinationRule(rule) => vec![("spec.host".to_owned(), &rule.spec.host)],
            _ => Vec::new(),
        };
        let foreign =
            |host: &str| !host.contains('*') && resolve_host(host, &reference.namespace, mesh).is_none();
        hosts
            .into_iter()
            .filter(|(_, host)| foreign(host))
            .map(|(field, host)| {
                let message = format!("{host} is no service of this cluster, the rule has no effect on it");
                Notice::new(Code::ForeignHost, reference, field, message)
            })
            .collect()
    }
}

impl Dirty {
    fn note_workload(&mut self, workload: &Workload) {
        self.dependencies.insert(Dependency::Pod(workload.uid.clone()));
        for &address in &workload.addresses {
            self.dependencies.insert(Dependency::Address(address));
            self.addresses.insert(address);
        }
        for (key, value) in workload.labels.iter() {
            let label = (Arc::clone(&workload.namespace), key.clone(), value.clone());
            self.dependencies.insert(Dependency::Label(Box::new(label)));
        }
    }
}

impl Cluster for Translator {
    fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.snapshot.workloads.get(uid)
    }

    fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.snapshot.addresses.get(&address)
    }

    fn labelled(&self, label: &Label) -> Vec<(&Pod, &Arc<Workload>)> {
        let uids = self.pods_by_label.get(label).into_iter().flatten();
        uids.filter_map(|uid| match &**self.pods.get(uid)? {
            Object::Pod(pod) => Some((&**pod, self.snapshot.workloads.get(uid)?)),
            _ => None,
        })
        .collect()
    }

    fn zone(&self, node: &NodeName) -> Option<&Arc<str>> {
        self.localities.get(node).map(|locality| &locality.zone).filter(|zone| !zone.is_empty())
    }
}

impl Destinations for Translator {
    fn is_granted(&self, route: &ObjectRef, to: &ServiceName) -> bool {
        let mut grants = self.grants.get(&to.namespace).into_iter().flatten();
        grants.any(|grant| match self.objects.get(grant).map(|object| &**object) {
            Some(Object::ReferenceGrant(grant)) => {
                grant.allows(route.kind.as_str(), &route.namespace, &to.name)
            }
            _ => false,
        })
    }

    fn here(&self) -> Here<'_> {
        Here { node: self.snapshot.mesh.node.as_ref(), zone: self.snapshot.node.zone.as_deref() }
    }

    fn service(&self, name: &ServiceName) -> Option<PlainService> {
        self.plain_of(name).map(|(plain, _)| plain)
    }

    fn subset(&self, service: &ServiceName, subset: &str) -> Option<&BTreeMap<String, String>> {
        destination::subset(&self.rules(service), subset).map(|(_, found)| &found.labels)
    }

    /// Rules of the service's own namespace come first, then those of the root namespace; then those with the most specific
    /// host; then the oldest.
    fn rules(&self, service: &ServiceName) -> Vec<(&ObjectRef, &DestinationRule)> {
        let mesh = &self.snapshot.mesh;
        let rank =
            |namespace: &Arc<str>| (*namespace != service.namespace, *namespace != mesh.root_namespace);
        let exact = self.destination_rules.get(service).into_iter().map(|by_age| (usize::MAX, by_age));
        // Most meshes have none with a wildcard, and each service asks.
        let host = (!self.wild_rules.is_empty()).then(|| host_of(service, mesh)).unwrap_or_default();
        let wild =
            self.wild_rules.iter().filter(|(suffix, _)| !host.is_empty() && host.ends_with(&***suffix));
        let all = exact.chain(wild.map(|(suffix, by_age)| (suffix.len(), by_age)));
        let mut rules: Vec<_> = all
            .flat_map(|(length, by_age)| {
                by_age.iter().map(move |(created, reference)| (length, created, reference))
            })
            .filter_map(|(length, created, reference)| {
                let (reference, object) = self.objects.get_key_value(reference)?;
                let Object::DestinationRule(rule) = &**object else { return None };
                Some(((rank(&reference.namespace), Reverse(length), created), (reference, &**rule)))
            })
            .collect();
        rules.sort_by(|(a, (left, _)), (b, (right, _))| a.cmp(b).then_with(|| left.cmp(right)));
        rules.into_iter().map(|(_, rule)| rule).collect()
    }

    fn locality(&self, node: &NodeName) -> Option<&Arc<Locality>> {
        self.localities.get(node)
    }
}

/// The full host of a service.
fn host_of(name: &ServiceName, mesh: &MeshConfig) -> String {
    format!("{}.{}.svc.{}", name.name, name.namespace, mesh.cluster_domain)
}

/// Whether the rule concerns clients in the mesh, not those of an ingress gateway alone.
fn is_for_mesh(rule: &VirtualService) -> bool {
    rule.spec.gateways.is_empty() || rule.spec.gateways.iter().any(|gateway| gateway == "mesh")
}

fn route_without_service(name: &ServiceName, route: &ObjectRef) -> Notice {
    let message = format!("there is no service {name}, the route has no effect on it");
    Notice::new(Code::RouteHostUnknown, route, "spec.parentRefs", message)
}

fn rules_without_service(name: &ServiceName, rules: &[(&ObjectRef, &VirtualService)]) -> Vec<Notice> {
    let message = format!("there is no service {name}, the rule has no effect on it");
    let notice = |&(reference, _): &(&ObjectRef, &VirtualService)| {
        Notice::new(Code::RouteHostUnknown, reference, "spec.hosts", message.as_str())
    };
    rules.iter().map(notice).collect()
}
