//! Services with their endpoints, rules and routes into services of the model.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::rules::{route_without_service, rules_without_service};
use super::{Dirty, Translator};
use crate::model::{Frontend, NodeName, Service, ServiceKind, ServiceName, Workload, WorkloadUid};
use crate::resources::translate::destination::mind_locality;
use crate::resources::translate::entry::entry_service;
use crate::resources::translate::gateway;
use crate::resources::translate::hosts::is_any_entry;
use crate::resources::translate::route::{Destinations as _, routed};
use crate::resources::translate::service::{Cluster, Dependency, Label, PlainService, plain_service};
use crate::resources::{EndpointSlice, Kind, Object, ObjectRef, Pod, WorkloadEntry};

impl Translator {
    /// The service without its routes, and what it depends on. Made anew whenever it is asked for: most services are the
    /// destination of no rule, and keeping it would cost as much as the services themselves.
    pub(super) fn plain_of(&self, name: &ServiceName) -> Option<(PlainService, BTreeSet<Dependency>)> {
        let reference = ObjectRef::new(Kind::Service, Arc::clone(&name.namespace), Arc::clone(&name.name));
        let Some(Object::Service(service)) = self.objects.get(&reference).map(|object| &**object) else {
            let (reference, entry) = self.entry_of(name)?;
            return entry_service(entry, reference, &name.name, self);
        };
        let slices: Vec<_> = self.slices(name).collect();
        plain_service(service, name, &slices, self, &self.snapshot.mesh)
    }

    /// The slices of a Service.
    pub(super) fn slices(&self, name: &ServiceName) -> impl Iterator<Item = &EndpointSlice> {
        let slices = self.slices_by_service.get(name).into_iter().flatten();
        slices.filter_map(|slice| match self.objects.get(slice).map(|object| &**object) {
            Some(Object::EndpointSlice(slice)) => Some(&**slice),
            _ => None,
        })
    }

    /// Returns the Gateway API routes that are concerned.
    pub(super) fn rebuild_services(&mut self, mut dirty: Dirty) -> BTreeSet<ObjectRef> {
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
            let routes = self.routes_for(&name);
            let routed = plain.map(|plain| {
                let rules = self.rules_for(&name, &plain.host);
                routed(&plain, &rules, &routes, self, &self.snapshot.mesh)
            });
            let (service, notices, uses) = if let Some(routed) = routed {
                (Some(routed.service), routed.notices, routed.uses)
            } else if is_any_entry(&name) {
                (None, self.foreign_host(&name.name), BTreeSet::new())
            } else {
                let mut notices = rules_without_service(&name, &self.rules_in_vain(&name));
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
            let old = self.snapshot.services.get(&name).map(Arc::clone);
            let is_same = old.as_deref() == service.as_ref();
            let is_entry = service.as_ref().is_some_and(|new| new.kind == ServiceKind::ServiceEntry);
            // Of an entry the age may be another.
            if is_same && !is_entry {
                continue;
            }
            let own: Vec<Frontend> = service.iter().flat_map(Service::frontends).collect();
            let age = if is_entry { self.age_of_entry(&name) } else { 0 };
            if self.service_claims.set(&name, (is_entry, age), own.clone()) || !is_same {
                frontends.extend(own);
            }
            if is_same {
                continue;
            }
            if let Some(old) = &old {
                frontends.extend(old.frontends());
                self.snapshot.note_earlier(old, service.as_ref());
            }
            match service {
                Some(service) => self.snapshot.services.insert(name, Arc::new(service)),
                None => self.snapshot.services.remove(&name),
            };
        }
        for frontend in frontends {
            let owner = self.service_claims.owner(frontend);
            let owner = owner.and_then(|name| self.snapshot.services.get(name));
            match owner {
                Some(owner) => self.snapshot.frontends.insert(frontend, Arc::clone(owner)),
                None => self.snapshot.frontends.remove(&frontend),
            };
        }
        dirty.routes
    }
}

impl Cluster for Translator {
    fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.snapshot.workloads.get(uid)
    }

    fn pod_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.snapshot.addresses.get(&address).filter(|owner| owner.is_pod())
    }

    fn is_reserved(&self, address: IpAddr) -> bool {
        self.is_reserved_address(address)
    }

    fn labelled(&self, label: &Label) -> Vec<(&Pod, &Arc<Workload>)> {
        let uids = self.pods_by_label.get(label).into_iter().flatten();
        uids.filter_map(|uid| match &**self.pods.get(uid)? {
            Object::Pod(pod) => Some((&**pod, self.snapshot.workloads.get(uid)?)),
            _ => None,
        })
        .collect()
    }

    fn entries(&self, label: &Label) -> Vec<(&WorkloadEntry, &Arc<Workload>)> {
        let uids = self.pods_by_label.get(label).into_iter().flatten();
        uids.filter_map(|uid| match &**self.pods.get(uid)? {
            Object::WorkloadEntry(entry) => Some((&**entry, self.snapshot.workloads.get(uid)?)),
            _ => None,
        })
        .collect()
    }

    fn has_entries(&self) -> bool {
        !self.workload_entries.is_empty()
    }

    fn zone(&self, node: &NodeName) -> Option<&Arc<str>> {
        self.localities.get(node).map(|locality| &locality.zone).filter(|zone| !zone.is_empty())
    }
}
