//! Rules and routes as services look them up, and what is said of those whose service is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Dirty, Translator, index};
use crate::model::{RouteName, ServiceName};
use crate::resources::translate::gateway::{self, Named};
use crate::resources::translate::route::{Destinations, bare, resolve_host};
use crate::resources::translate::service::PlainService;
use crate::resources::translate::topology::Here;
use crate::resources::{Code, DestinationRule, Kind, Notice, Object, ObjectRef, VirtualService};

impl Translator {
    pub(super) fn index_virtual_service(
        &mut self,
        reference: &ObjectRef,
        created: i64,
        rule: &VirtualService,
        add: bool,
        dirty: &mut Dirty,
    ) {
        for host in &rule.spec.hosts {
            if let Some(host) = entry_host_of(host) {
                index::set(&mut self.rules_by_host, host.into(), (created, reference.clone()), add);
                self.note_host(host, dirty);
            }
            if let Some(service) = resolve_host(host, &reference.namespace, &self.snapshot.mesh) {
                index::set(&mut self.virtual_services, service.clone(), (created, reference.clone()), add);
                dirty.destinations.insert(service);
            }
        }
    }

    pub(super) fn index_destination_rule(
        &mut self,
        reference: &ObjectRef,
        created: i64,
        rule: &DestinationRule,
        add: bool,
        dirty: &mut Dirty,
    ) {
        let host = &rule.spec.host;
        if let Some(host) = entry_host_of(host) {
            index::set(&mut self.destination_rules_by_host, host.into(), (created, reference.clone()), add);
            self.note_host(host, dirty);
        }
        if let Some(service) = resolve_host(host, &reference.namespace, &self.snapshot.mesh) {
            index::set(&mut self.destination_rules, service.clone(), (created, reference.clone()), add);
            dirty.destinations.insert(service);
        }
    }

    /// Whom grants concern: services whose routes lead into another namespace.
    pub(super) fn note_granted(&self, dirty: &mut Dirty) {
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
    pub(super) fn rebuild_routes(&mut self, routes: BTreeSet<ObjectRef>) {
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
    pub(super) fn routes_for(&self, name: &ServiceName) -> Vec<Named<'_>> {
        let by_age = self.gateway_routes.get(name).into_iter().flatten();
        by_age
            .filter(|(_, reference)| reference.kind == Kind::TcpRoute)
            .filter_map(|(_, reference)| self.gateway_route(reference))
            .collect()
    }

    /// The rules that name a service's host, oldest first.
    pub(super) fn rules_for(&self, name: &ServiceName) -> Vec<(&ObjectRef, &VirtualService)> {
        if self.entry_of(name).is_some() {
            return self.rules_for_host(name);
        }
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

    /// Whether a rule's host that may name the service means it, and not an entry's.
    pub(super) fn means(&self, rule: &ObjectRef, spec: &VirtualService, name: &ServiceName) -> bool {
        spec.spec.hosts.iter().any(|host| {
            resolve_host(host, &rule.namespace, &self.snapshot.mesh).as_ref() == Some(name)
                && self.host_of_entry(host, &rule.namespace).is_none()
        })
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

    fn entry_host(&self, host: &str, namespace: &str) -> Option<ServiceName> {
        self.host_of_entry(host, namespace)
    }

    fn here(&self) -> Here<'_> {
        Here { node: self.snapshot.mesh.node.as_ref(), zone: self.snapshot.node.zone.as_deref() }
    }

    fn service(&self, name: &ServiceName) -> Option<PlainService> {
        self.plain_of(name).map(|(plain, _)| plain)
    }

    fn subset(&self, service: &ServiceName, subset: &str) -> Option<&BTreeMap<String, String>> {
        let subsets = self.rules(service).into_iter().flat_map(|(_, rule)| &rule.spec.subsets);
        subsets.into_iter().find(|candidate| candidate.name == subset).map(|found| &found.labels)
    }

    /// Rules of the service's own namespace come first, then those of the root namespace, then the oldest.
    fn rules(&self, service: &ServiceName) -> Vec<(&ObjectRef, &DestinationRule)> {
        let rank = |namespace: &Arc<str>| {
            (*namespace != service.namespace, *namespace != self.snapshot.mesh.root_namespace)
        };
        let is_entry = self.entry_of(service).is_some();
        let by_age = if is_entry {
            self.destination_rules_by_host.get(&service.name)
        } else {
            self.destination_rules.get(service)
        };
        let mut rules: Vec<_> = by_age
            .into_iter()
            .flatten()
            .filter_map(|(created, reference)| {
                let (reference, object) = self.objects.get_key_value(reference)?;
                let Object::DestinationRule(rule) = &**object else { return None };
                let found = self.entry_host(&rule.spec.host, &reference.namespace);
                if is_entry && found.as_ref() != Some(service) {
                    return None;
                }
                Some(((rank(&reference.namespace), created), (reference, &**rule)))
            })
            .collect();
        rules.sort_by(|(a, (left, _)), (b, (right, _))| a.cmp(b).then_with(|| left.cmp(right)));
        rules.into_iter().map(|(_, rule)| rule).collect()
    }
}

pub(super) fn route_without_service(name: &ServiceName, route: &ObjectRef) -> Notice {
    let message = format!("there is no service {name}, the route has no effect on it");
    Notice::new(Code::RouteHostUnknown, route, "spec.parentRefs", message)
}

pub(super) fn rules_without_service(
    name: &ServiceName,
    rules: &[(&ObjectRef, &VirtualService)],
) -> Vec<Notice> {
    let message = format!("there is no service {name}, the rule has no effect on it");
    let notice = |&(reference, _): &(&ObjectRef, &VirtualService)| {
        Notice::new(Code::RouteHostUnknown, reference, "spec.hosts", message.as_str())
    };
    rules.iter().map(notice).collect()
}

/// The host as an entry may have it: one without a dot is a Kubernetes service's short name.
fn entry_host_of(host: &str) -> Option<&str> {
    Some(bare(host)).filter(|host| host.contains('.') && !host.contains('*'))
}
