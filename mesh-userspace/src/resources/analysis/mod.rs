//! What is wrong between objects: references that lead nowhere, rules that contradict each other, policies that hold for
//! nobody.
//!
//! The translator tells at once, with each change, what it comes upon anyway. What is here asks all objects about all others
//! and is done when somebody wants to know, over a snapshot and the objects that it was made of. Its cost is that of reading
//! them once: every question goes through an index.
//!
//! What the objects cannot tell is not told: where no pod at all is among them (manifests of Deployments), no selector is
//! said to match none; the same for service accounts and namespaces.

mod destinations;
mod entries;
mod policies;
mod routes;
#[cfg(test)]
mod tests;
mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use self::workloads::Workloads;
use super::translate::entry::{is_served, meant};
use super::translate::hosts::{bare, resolve_host};
use super::{
    AuthorizationPolicy, Code, DestinationRule, Kind, Notice, Object, ObjectRef, PeerAuthentication, Service,
    ServiceEntry, VirtualService, WorkloadEntry,
};
use crate::model::{self, ServiceName, Snapshot};

/// Everything to be said about the objects among each other; the snapshot is what they came to. Ordered by object, field and
/// code.
pub fn analyse(snapshot: &Snapshot, objects: &[Arc<Object>]) -> Vec<Notice> {
    let world = World::new(snapshot, objects);
    let mut notices = Vec::new();
    routes::analyse(&world, &mut notices);
    destinations::analyse(&world, &mut notices);
    entries::analyse(&world, &mut notices);
    policies::analyse(&world, &mut notices);
    notices.sort_by(|one, other| (&one.object, &one.field, one).cmp(&(&other.object, &other.field, other)));
    notices.dedup();
    notices
}

/// The objects by what is asked of them.
struct World<'a> {
    snapshot: &'a Snapshot,
    virtual_services: Vec<(ObjectRef, &'a VirtualService)>,
    /// With the service that the host names; oldest first.
    destination_rules: Vec<(ObjectRef, &'a DestinationRule, Option<ServiceName>)>,
    /// By service and name, as the translator takes them.
    subsets: HashMap<ServiceName, HashMap<&'a str, &'a BTreeMap<String, String>>>,
    peer_authentications: Vec<(ObjectRef, &'a PeerAuthentication, i64)>,
    authorization_policies: Vec<(ObjectRef, &'a AuthorizationPolicy)>,
    services: BTreeMap<ServiceName, &'a Service>,
    /// Oldest first.
    service_entries: Vec<(ObjectRef, &'a ServiceEntry)>,
    /// Of each host the indexes of its entries there.
    by_host: HashMap<&'a str, Vec<usize>>,
    workload_entries: Vec<(ObjectRef, &'a WorkloadEntry)>,
    workloads: Workloads<'a>,
    /// Those that are written, and those that something is in; empty where none is written.
    namespaces: HashSet<Arc<str>>,
    /// Namespace and name, of those that are written or that a pod has; empty where none is written.
    accounts: HashSet<(Arc<str>, Arc<str>)>,
}

impl<'a> World<'a> {
    fn new(snapshot: &'a Snapshot, objects: &'a [Arc<Object>]) -> Self {
        let mut world = Self {
            snapshot,
            virtual_services: Vec::new(),
            destination_rules: Vec::new(),
            subsets: HashMap::new(),
            peer_authentications: Vec::new(),
            authorization_policies: Vec::new(),
            services: BTreeMap::new(),
            service_entries: Vec::new(),
            by_host: HashMap::new(),
            workload_entries: Vec::new(),
            workloads: Workloads::new(snapshot),
            namespaces: HashSet::new(),
            accounts: HashSet::new(),
        };
        let (mut namespaces_told, mut accounts_told) = (false, false);
        for object in objects {
            let reference = object.reference();
            if !reference.namespace.is_empty() {
                world.namespaces.insert(Arc::clone(&reference.namespace));
            }
            match &**object {
                Object::Namespace(_) => {
                    namespaces_told = true;
                    world.namespaces.insert(reference.name);
                }
                Object::ServiceAccount(_) => {
                    accounts_told = true;
                    world.accounts.insert((reference.namespace, reference.name));
                }
                Object::Service(service) => {
                    world.services.insert(ServiceName::new(reference.namespace, reference.name), service);
                }
                Object::VirtualService(rule) => world.virtual_services.push((reference, rule)),
                Object::DestinationRule(rule) => world.destination_rules.push((reference, rule, None)),
                Object::ServiceEntry(entry) => world.service_entries.push((reference, entry)),
                Object::WorkloadEntry(entry) => world.workload_entries.push((reference, entry)),
                Object::PeerAuthentication(policy) => {
                    world.peer_authentications.push((reference, policy, object.created()));
                }
                Object::AuthorizationPolicy(policy) => world.authorization_policies.push((reference, policy)),
                Object::Pod(_)
                | Object::Node(_)
                | Object::EndpointSlice(_)
                | Object::TcpRoute(_)
                | Object::TlsRoute(_)
                | Object::ReferenceGrant(_)
                | Object::Unsupported(_) => {}
            }
        }
        if !namespaces_told {
            world.namespaces.clear();
        }
        if accounts_told {
            world.add_implied_accounts();
        } else {
            world.accounts.clear();
        }
        world.index_hosts();
        world.virtual_services.sort_by(|one, other| one.0.cmp(&other.0));
        world.destination_rules.sort_by_cached_key(|(reference, rule, _)| {
            let created = rule.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
            (created, reference.clone())
        });
        world.index_subsets();
        world.peer_authentications.sort_by(|one, other| (one.2, &one.0).cmp(&(other.2, &other.0)));
        world
    }

    /// Who is meant by which host.
    fn index_hosts(&mut self) {
        self.service_entries.sort_by_cached_key(|(reference, entry)| {
            let created = entry.metadata.creation_timestamp.as_ref();
            (created.map_or(0, |time| time.0.as_second()), reference.clone())
        });
        for (index, (_, entry)) in self.service_entries.iter().enumerate() {
            for host in entry.hosts() {
                self.by_host.entry(host).or_default().push(index);
            }
        }
        let mut rules = std::mem::take(&mut self.destination_rules);
        for (reference, rule, service) in &mut rules {
            *service = self.resolve(&rule.spec.host, &reference.namespace);
        }
        self.destination_rules = rules;
    }

    /// The entries of a host that are carried out, oldest first.
    fn entries_of(&self, host: &str) -> impl Iterator<Item = (&ObjectRef, &'a ServiceEntry)> {
        let indexes = self.by_host.get(host).into_iter().flatten();
        let entries = indexes.map(|&index| (&self.service_entries[index].0, self.service_entries[index].1));
        entries.filter(|(_, entry)| is_served(entry))
    }

    /// The service that a host in a rule of `namespace` names, as the translator has it.
    fn resolve(&self, host: &str, namespace: &str) -> Option<ServiceName> {
        let named = resolve_host(host, namespace, &self.snapshot.mesh);
        if named.as_ref().is_some_and(|name| self.services.contains_key(name)) {
            return named;
        }
        let host = bare(host);
        let of_entry = meant(self.entries_of(host), namespace);
        of_entry.map(|entry| ServiceName::new(Arc::clone(&entry.namespace), host)).or(named)
    }

    /// Whether there is such a service, of whatever kind.
    fn knows(&self, name: &ServiceName) -> bool {
        self.services.contains_key(name)
            || self.entries_of(&name.name).any(|(entry, _)| entry.namespace == name.namespace)
    }

    /// Rules of the service's own namespace come first, then those of the root namespace, then the oldest.
    fn index_subsets(&mut self) {
        let root = &self.snapshot.mesh.root_namespace;
        for pass in 0..3 {
            for (reference, rule, service) in &self.destination_rules {
                let Some(service) = service else { continue };
                let is_own = reference.namespace == service.namespace;
                let rank = if is_own { 0 } else { 1 + usize::from(reference.namespace != *root) };
                if rank != pass {
                    continue;
                }
                let known = self.subsets.entry(service.clone()).or_default();
                for subset in &rule.spec.subsets {
                    known.entry(&subset.name).or_insert(&subset.labels);
                }
            }
        }
    }

    /// A pod could not run under an account that is not there, and each namespace has its `default`.
    fn add_implied_accounts(&mut self) {
        for workload in self.snapshot.workloads.values() {
            let account = Arc::clone(&workload.identity.service_account);
            self.accounts.insert((Arc::clone(&workload.namespace), account));
        }
        for namespace in &self.namespaces {
            self.accounts.insert((Arc::clone(namespace), "default".into()));
        }
    }

    /// The service as it is translated; `None` for those that are nobody's to serve here as well.
    fn service(&self, name: &ServiceName) -> Option<&'a model::Service> {
        self.snapshot.services.get(name).map(|service| &**service)
    }

    /// The labels of a subset that a rule names for a service.
    fn subset(&self, service: &ServiceName, subset: &str) -> Option<&'a BTreeMap<String, String>> {
        self.subsets.get(service)?.get(subset).copied()
    }

    /// Whether one of the service's endpoints, whatever its state, is a pod with these labels; `None` where it has none.
    fn has_endpoint(&self, service: &model::Service, labels: &BTreeMap<String, String>) -> Option<bool> {
        let mut listed = service.ports.iter().flat_map(|port| &*port.listed).peekable();
        listed.peek()?;
        // What an entry says of its endpoints holds, whoever's their addresses are.
        let own =
            self.entries_of(&service.name.name).find(|(entry, _)| entry.namespace == service.name.namespace);
        let mut written = own.into_iter().flat_map(|(_, entry)| &entry.spec.endpoints);
        if written.any(|endpoint| workloads::has(&endpoint.labels, labels)) {
            return Some(true);
        }
        let uids: BTreeSet<_> = listed.filter_map(|endpoint| endpoint.workload.as_ref()).collect();
        let workloads = uids.into_iter().filter_map(|uid| self.snapshot.workloads.get(uid));
        Some(workloads.into_iter().any(|workload| workloads::has(&workload.labels, labels)))
    }
}

fn selector(service: &Service) -> BTreeMap<String, String> {
    service.selector.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn reference(kind: Kind, name: &ServiceName) -> ObjectRef {
    ObjectRef::new(kind, Arc::clone(&name.namespace), Arc::clone(&name.name))
}

/// `NAMESPACE/NAME`, as one object speaks of another of its kind.
fn told(other: &ObjectRef) -> String {
    format!("{}/{}", other.namespace, other.name)
}

fn add(
    notices: &mut Vec<Notice>,
    code: Code,
    object: &ObjectRef,
    field: impl Into<String>,
    message: impl Into<String>,
) {
    notices.push(Notice::new(code, object, field, message));
}
