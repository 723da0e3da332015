//! `ServiceEntry`s by their hosts, and `WorkloadEntry`s among the workloads.
//!
//! A host is looked up by who asks: entries of the asking rule's own namespace come first, then those that are exported to it,
//! the oldest first. A host that a Kubernetes Service has is that Service's, as in Istio.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Dirty, Translator, index};
use crate::model::{ServiceName, WorkloadUid};
use crate::resources::entry::{ServiceEntry, WorkloadEntry};
use crate::resources::translate::entry::{is_served, meant, places};
use crate::resources::translate::hosts::{any_entry, bare, resolve_host};
use crate::resources::translate::service::Dependency;
use crate::resources::{Code, Kind, Notice, Object, ObjectRef, Service};

impl Translator {
    pub(super) fn index_service_entry(
        &mut self,
        reference: &ObjectRef,
        object: &Arc<Object>,
        entry: &ServiceEntry,
        add: bool,
        dirty: &mut Dirty,
    ) {
        for host in entry.hosts() {
            // Whoever has the host now, and whoever will.
            self.note_host(host, dirty);
            let listed = (object.created(), reference.clone());
            index::set(&mut self.entries, host.into(), listed, add);
            self.note_host(host, dirty);
        }
        for place in places(entry, reference) {
            let namespace = Arc::clone(&reference.namespace);
            index::set(&mut self.pods_by_namespace, namespace, place.uid.clone(), add);
            if add {
                self.endpoints.insert(place.uid.clone(), (Arc::clone(object), place.index));
            } else {
                self.endpoints.remove(&place.uid);
            }
            dirty.pods.insert(place.uid);
        }
    }

    pub(super) fn index_workload_entry(
        &mut self,
        reference: &ObjectRef,
        object: &Arc<Object>,
        entry: &WorkloadEntry,
        add: bool,
        dirty: &mut Dirty,
    ) {
        let uid = WorkloadUid::workload_entry(&reference.namespace, &reference.name);
        index::set(&mut self.pods_by_namespace, Arc::clone(&reference.namespace), uid.clone(), add);
        let labels = entry.labels();
        for (key, value) in labels.iter() {
            let label = (Arc::clone(&reference.namespace), key.clone(), value.clone());
            index::set(&mut self.pods_by_label, label.clone(), uid.clone(), add);
            // Ports, weight and health are no part of the workload.
            dirty.dependencies.insert(Dependency::Label(Box::new(label)));
        }
        // There are few of them: that each Kubernetes Service depends on its selector's label would cost more.
        let first = ServiceName::new(Arc::clone(&reference.namespace), "");
        let own = self.snapshot.services.range(first..);
        let own = own.map(|(name, _)| name).take_while(|name| name.namespace == reference.namespace);
        let selecting =
            own.filter(|name| self.kubernetes_service(name).is_some_and(|one| one.selects(&labels)));
        dirty.services.extend(selecting.cloned());
        if add {
            self.pods.insert(uid.clone(), Arc::clone(object));
            self.workload_entries.insert(uid.clone());
        } else {
            self.pods.remove(&uid);
            self.workload_entries.remove(&uid);
        }
        dirty.pods.insert(uid);
    }

    /// A host is another's, perhaps: the services that entries make of it, rules for it, and whoever leads there.
    pub(super) fn note_host(&self, host: &str, dirty: &mut Dirty) {
        dirty.destinations.insert(any_entry(host));
        // What else the host may mean, of which it is said that it is not there.
        dirty.destinations.extend(resolve_host(host, "", &self.snapshot.mesh));
        let entries = self.entries.get(host).into_iter().flatten();
        dirty.services.extend(entries.map(|(_, entry)| ServiceName::new(Arc::clone(&entry.namespace), host)));
    }

    /// What entries may say of their addresses is decided again where nodes or the API server have other ones. There are few
    /// entries.
    pub(super) fn note_reserved(&self, dirty: &mut Dirty) {
        if !std::mem::take(&mut dirty.reserved) {
            return;
        }
        dirty.pods.extend(self.workload_entries.iter().chain(self.endpoints.keys()).cloned());
        for (host, entries) in &self.entries {
            let named = entries
                .iter()
                .map(|(_, entry)| ServiceName::new(Arc::clone(&entry.namespace), Arc::clone(host)));
            dirty.services.extend(named);
        }
    }

    /// Whether an address is a node's or the API server's, over which no entry has a say.
    pub(super) fn is_reserved_address(&self, address: IpAddr) -> bool {
        let Self { snapshot, .. } = self;
        snapshot.node.addresses.contains(&address)
            || snapshot.other_nodes.values().any(|own| own.contains(&address))
            || self
                .slices(&api_server())
                .any(|slice| slice.endpoints.iter().any(|one| one.address == address))
    }

    /// When the entry was made of which a service is a host; 0 where that is not known, and of others.
    pub(super) fn age_of_entry(&self, name: &ServiceName) -> i64 {
        let object = self.entry_of(name).and_then(|(entry, _)| self.objects.get(entry));
        object.map_or(0, |object| object.created())
    }

    /// The host of a Kubernetes Service that came or went.
    pub(super) fn note_kubernetes_host(&self, name: &ServiceName, dirty: &mut Dirty) {
        if self.entries.is_empty() {
            return;
        }
        let host = format!("{}.{}.svc.{}", name.name, name.namespace, self.snapshot.mesh.cluster_domain);
        if self.entries.contains_key(host.as_str()) {
            self.note_host(&host, dirty);
        }
    }

    fn kubernetes_service(&self, name: &ServiceName) -> Option<&Service> {
        let reference = ObjectRef::new(Kind::Service, Arc::clone(&name.namespace), Arc::clone(&name.name));
        match &**self.objects.get(&reference)? {
            Object::Service(service) => Some(service),
            _ => None,
        }
    }

    fn service_entry(&self, reference: &ObjectRef) -> Option<(&ObjectRef, &ServiceEntry)> {
        let (reference, object) = self.objects.get_key_value(reference)?;
        match &**object {
            Object::ServiceEntry(entry) => Some((reference, entry)),
            _ => None,
        }
    }

    /// The entries of a host that are carried out, oldest first.
    fn served<'a>(&'a self, host: &str) -> impl Iterator<Item = (&'a ObjectRef, &'a ServiceEntry)> {
        let entries = self.entries.get(host).into_iter().flatten();
        entries.filter_map(|(_, entry)| self.service_entry(entry)).filter(|(_, entry)| is_served(entry))
    }

    /// Whether the host is the full one of a Kubernetes Service.
    fn is_kubernetes_host(&self, host: &str) -> bool {
        let is_full = host.ends_with(&*self.snapshot.mesh.cluster_domain);
        let named = resolve_host(host, "", &self.snapshot.mesh).filter(|_| is_full);
        named.is_some_and(|name| self.kubernetes_service(&name).is_some())
    }

    /// The entry of which a service is a host: the oldest of its namespace.
    pub(super) fn entry_of(&self, name: &ServiceName) -> Option<(&ObjectRef, &ServiceEntry)> {
        let mut own = self.served(&name.name).filter(|(entry, _)| entry.namespace == name.namespace);
        own.next().filter(|_| !self.is_kubernetes_host(&name.name))
    }

    /// See [`Destinations::entry_host`](crate::resources::translate::route::Destinations::entry_host).
    pub(super) fn host_of_entry(&self, host: &str, namespace: &str) -> Option<ServiceName> {
        let host = bare(host);
        if !self.entries.contains_key(host) {
            return None;
        }
        let named = resolve_host(host, namespace, &self.snapshot.mesh);
        if named.is_some_and(|name| self.kubernetes_service(&name).is_some()) {
            return None;
        }
        let found = meant(self.served(host), namespace)?;
        Some(ServiceName::new(Arc::clone(&found.namespace), host))
    }

    /// What there is to say of rules for a host that is nobody's.
    pub(super) fn foreign_host(&self, host: &str) -> Vec<Notice> {
        let of_destinations = self.destination_rules_by_host.get(host).into_iter().flatten();
        let rules =
            self.virtual_services.by_host(host).chain(of_destinations.map(|(_, reference)| reference));
        let foreign = rules.filter(|reference| {
            resolve_host(host, &reference.namespace, &self.snapshot.mesh).is_none()
                && self.host_of_entry(host, &reference.namespace).is_none()
        });
        let is_known = self.entries.contains_key(host);
        let message = if is_known {
            format!(
                "no ServiceEntry that is carried out and exported here has {host}, the rule has no effect on it"
            )
        } else {
            format!(
                "{host} is no service of this cluster and no host of a ServiceEntry, the rule has no effect on it"
            )
        };
        foreign
            .flat_map(|reference| {
                self.host_fields(reference, host).into_iter().map(move |field| (reference, field))
            })
            .map(|(reference, field)| Notice::new(Code::ForeignHost, reference, field, message.as_str()))
            .collect()
    }

    /// Where a rule names a host.
    fn host_fields(&self, rule: &ObjectRef, host: &str) -> Vec<String> {
        match self.objects.get(rule).map(|object| &**object) {
            Some(Object::VirtualService(rule)) => {
                let hosts = rule.spec.hosts.iter().enumerate().filter(|(_, own)| bare(own) == host);
                hosts.map(|(index, _)| format!("spec.hosts[{index}]")).collect()
            }
            Some(Object::DestinationRule(_)) => vec!["spec.host".to_owned()],
            _ => Vec::new(),
        }
    }
}

/// The Service whose endpoints are the API server.
fn api_server() -> ServiceName {
    ServiceName::new("default", "kubernetes")
}

/// Whether it is that Service.
pub(super) fn is_api_server(service: &ServiceName) -> bool {
    (&*service.namespace, &*service.name) == ("default", "kubernetes")
}
