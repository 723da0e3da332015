//! Rules and routes as services look them up, and what is said of those whose service is not there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Dirty, Translator, index};
use crate::model::{Locality, NodeName, RouteName, ServiceName};
use crate::resources::translate::destination;
use crate::resources::translate::gateway::{self, Named};
use crate::resources::translate::hosts::{RuleHost, entry_host_of, resolve_host};
use crate::resources::translate::route::{Destinations, Rule};
use crate::resources::translate::service::PlainService;
use crate::resources::translate::topology::Here;
use crate::resources::{Code, DestinationRule, Notice, Object, ObjectRef, VirtualService};

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
            let entry = (created, reference.clone());
            match self.virtual_services.set(host, entry, add, &self.snapshot.mesh) {
                RuleHost::Service(service) => drop(dirty.destinations.insert(service)),
                RuleHost::Foreign(_) => {}
                RuleHost::Pattern(hosts) => {
                    dirty.destinations.extend(self.named(|own| hosts.matches(own)));
                }
            }
            if let Some(host) = entry_host_of(host) {
                self.note_host(host, dirty);
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
        let (host, entry) = (&rule.spec.host, (created, reference.clone()));
        if let Some(host) = entry_host_of(host) {
            index::set(&mut self.destination_rules_by_host, host.into(), entry.clone(), add);
            self.note_host(host, dirty);
        }
        if let Some(suffix) = destination::suffix(host) {
            dirty.destinations.extend(self.named(|host| host.ends_with(suffix)));
            index::set(&mut self.wild_rules, suffix.into(), entry, add);
        } else if let Some(service) = resolve_host(host, &reference.namespace, &self.snapshot.mesh) {
            index::set(&mut self.destination_rules, service.clone(), entry, add);
            dirty.destinations.insert(service);
        }
    }

    /// A rule whose traffic policies are in force for nobody.
    pub(super) fn says_nothing(&self, reference: &ObjectRef, object: &Object) -> Option<Notice> {
        let Object::DestinationRule(rule) = object else { return None };
        let service = resolve_host(&rule.spec.host, &reference.namespace, &self.snapshot.mesh)?;
        let is_silent = rule.policies().next().is_some() && !self.speaks_for(reference, &service);
        let message = format!(
            "not honoured: traffic policies for {service} are taken from its own namespace and from {}, for clients of all namespaces",
            self.snapshot.mesh.root_namespace
        );
        is_silent.then(|| Notice::new(Code::NotHonouredYet, reference, "spec.trafficPolicy", message))
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

    /// The Gateway API routes that have a service for a parent, oldest first; of one age by namespace and name.
    pub(super) fn routes_for(&self, name: &ServiceName) -> Vec<Named<'_>> {
        let by_age = self.gateway_routes.get(name).into_iter().flatten();
        let mut by_age: Vec<_> = by_age.collect();
        by_age.sort_by_key(|(created, reference)| (created, &reference.namespace, &reference.name));
        by_age.into_iter().filter_map(|(_, reference)| self.gateway_route(reference)).collect()
    }

    /// The rules that name a service's host and mean it, the most specific and of these the oldest first.
    pub(super) fn rules_for(&self, name: &ServiceName, host: &str) -> Vec<Rule<'_>> {
        let is_entry = self.entry_of(name).is_some();
        let found = self.virtual_services.of(name, host).into_iter();
        let rule = |(rank, reference)| {
            let (reference, rule) = self.virtual_service(reference)?;
            let means = rank > 0
                || if is_entry {
                    self.host_of_entry(host, &reference.namespace).as_ref() == Some(name)
                } else {
                    self.means(reference, rule, name)
                };
            means.then_some(Rule { name: reference, written: rule, rank })
        };
        found.filter_map(rule).collect()
    }

    /// The rules that name a service that is not there.
    pub(super) fn rules_in_vain(&self, name: &ServiceName) -> Vec<&ObjectRef> {
        let rules = self.virtual_services.by_name(name).filter_map(|rule| self.virtual_service(rule));
        rules
            .filter(|(reference, rule)| self.means(reference, rule, name))
            .map(|(reference, _)| reference)
            .collect()
    }

    /// The services whose host is so.
    pub(super) fn named(&self, is_so: impl Fn(&str) -> bool) -> Vec<ServiceName> {
        let services = self.snapshot.services.values().filter(|service| is_so(&service.host));
        services.map(|service| service.name.clone()).collect()
    }

    fn virtual_service(&self, reference: &ObjectRef) -> Option<(&ObjectRef, &VirtualService)> {
        let (reference, object) = self.objects.get_key_value(reference)?;
        match &**object {
            Object::VirtualService(rule) => Some((reference, rule)),
            _ => None,
        }
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
        destination::subset(&self.rules(service), subset).map(|(_, found)| &found.labels)
    }

    /// Rules of the service's own namespace come first, then those of the root namespace; then those with the most specific
    /// host; then the oldest.
    fn rules(&self, service: &ServiceName) -> Vec<(&ObjectRef, &DestinationRule)> {
        let mesh = &self.snapshot.mesh;
        let rank =
            |namespace: &Arc<str>| (*namespace != service.namespace, *namespace != mesh.root_namespace);
        let is_entry = self.entry_of(service).is_some();
        let exact = if is_entry {
            self.destination_rules_by_host.get(&service.name)
        } else {
            self.destination_rules.get(service)
        };
        // Most meshes have none with a wildcard, and each service asks.
        let host = match (self.wild_rules.is_empty(), is_entry) {
            (true, _) => String::new(),
            (false, true) => service.name.to_string(),
            (false, false) => format!("{}.{}.svc.{}", service.name, service.namespace, mesh.cluster_domain),
        };
        let wild =
            self.wild_rules.iter().filter(|(suffix, _)| !host.is_empty() && host.ends_with(&***suffix));
        let exact = exact.into_iter().map(|by_age| (usize::MAX, by_age));
        let all = exact.chain(wild.map(|(suffix, by_age)| (suffix.len(), by_age)));
        let mut rules: Vec<_> = all
            .flat_map(|(length, by_age)| {
                by_age.iter().map(move |(created, reference)| (length, created, reference))
            })
            .filter_map(|(length, created, reference)| {
                let (reference, object) = self.objects.get_key_value(reference)?;
                let Object::DestinationRule(rule) = &**object else { return None };
                let is_exact = length == usize::MAX;
                if is_entry
                    && is_exact
                    && self.host_of_entry(&rule.spec.host, &reference.namespace).as_ref() != Some(service)
                {
                    return None;
                }
                Some(((rank(&reference.namespace), Reverse(length), created), (reference, &**rule)))
            })
            .collect();
        rules.sort_by(|(a, (left, _)), (b, (right, _))| a.cmp(b).then_with(|| left.cmp(right)));
        rules.into_iter().map(|(_, rule)| rule).collect()
    }

    fn speaks_for(&self, rule: &ObjectRef, service: &ServiceName) -> bool {
        rule.namespace == service.namespace || rule.namespace == self.snapshot.mesh.root_namespace
    }

    fn locality(&self, node: &NodeName) -> Option<&Arc<Locality>> {
        self.localities.get(node)
    }
}

pub(super) fn route_without_service(name: &ServiceName, route: &ObjectRef) -> Notice {
    let message = format!("there is no service {name}, the route has no effect on it");
    Notice::new(Code::RouteHostUnknown, route, "spec.parentRefs", message)
}

pub(super) fn rules_without_service(name: &ServiceName, rules: &[&ObjectRef]) -> Vec<Notice> {
    let message = format!("there is no service {name}, the rule has no effect on it");
    let notice = |&reference: &&ObjectRef| {
        Notice::new(Code::RouteHostUnknown, reference, "spec.hosts", message.as_str())
    };
    rules.iter().map(notice).collect()
}
