//! Gateway API routes with a Service for a parent (GAMMA): at which ports of it each holds and for whom, where it leads, and what its
//! status is to say. Pure functions of the objects.
//!
//! Order at a port, before `VirtualService`s (GEP-1294, and the comments of `TLSRoute` and of `ParentReference`): a route of another
//! namespace than the Service's ("consumer" route) is for the clients of that namespace alone and goes before those of the Service's
//! own ("producer" routes); of either, `TLSRoute`s go before `TCPRoute`s, a server name without a wildcard before one with, the longer before the
//! shorter; then the older route, then the first by namespace and name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use super::destination::dress;
use super::hosts::HostPattern;
use super::route::Destinations;
use super::service::{PlainPort, PlainService};
use crate::model::{
    CONTROLLER, ConnectionMatch, ParentState, Protocol, RouteCondition, RouteKind, RouteState, RouteTarget,
    ServerNames, ServiceName, TrafficPolicy,
};
use crate::resources::gateway::{BackendRef, GatewayRoute, ParentRef};
use crate::resources::{Code, Notice, ObjectRef};

/// A route and its name.
pub(in crate::resources) type Named<'a> = (&'a ObjectRef, &'a GatewayRoute);

/// A route that holds at a port.
pub(super) struct Holding<'a> {
    pub(super) route: Named<'a>,
    /// For which connections; empty: for all.
    pub(super) matches: Vec<ConnectionMatch>,
}

/// The services that are parents of a route.
pub(in crate::resources) fn parents(route: Named<'_>) -> BTreeSet<ServiceName> {
    let services = route.1.spec.parent_refs.iter().filter(|parent| parent.is_service());
    services.map(|parent| service_of(parent, route.0)).collect()
}

/// The services that a route leads to.
pub(in crate::resources) fn backends(route: Named<'_>) -> BTreeSet<ServiceName> {
    let refs = route.1.spec.rules.first().into_iter().flat_map(|rule| &rule.backend_refs);
    refs.filter(|backend| backend.is_service()).map(|backend| backend_service(backend, route.0)).collect()
}

fn service_of(parent: &ParentRef, route: &ObjectRef) -> ServiceName {
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    ServiceName::new(namespace, parent.name.as_str())
}

fn backend_service(backend: &BackendRef, route: &ObjectRef) -> ServiceName {
    let namespace = backend.namespace.as_deref().unwrap_or(&route.namespace);
    ServiceName::new(namespace, backend.name.as_str())
}

/// The routes that hold at a port, in the order in which they are taken: of `routes`, which have the service for a parent and come oldest
/// first. Nothing comes after one that holds for every connection.
pub(super) fn holding<'a>(
    routes: &[Named<'a>],
    service: &PlainService,
    port: &PlainPort,
) -> Vec<Holding<'a>> {
    let here: Vec<Named<'a>> = routes.iter().copied().filter(|route| is_at(*route, service, port)).collect();
    let own = &service.name.namespace;
    let consumers: BTreeSet<&Arc<str>> =
        here.iter().map(|(name, _)| &name.namespace).filter(|namespace| *namespace != own).collect();
    let mut holding = Vec::new();
    for namespace in consumers.into_iter().chain([own]) {
        let of_namespace = || here.iter().copied().filter(|(name, _)| name.namespace == *namespace);
        let source_namespaces: Vec<Arc<str>> =
            (namespace != own).then(|| Arc::clone(namespace)).into_iter().collect();
        let condition = ConnectionMatch { source_namespaces, ..ConnectionMatch::default() };
        for (route, names) in by_server_name(of_namespace().filter(|(name, _)| kind(name) == RouteKind::Tls))
        {
            let sni_hosts = names.iter().map(|name| ServerNames::new(name)).collect();
            holding
                .push(Holding { route, matches: vec![ConnectionMatch { sni_hosts, ..condition.clone() }] });
        }
        let tcp = of_namespace().find(|(name, _)| kind(name) == RouteKind::Tcp);
        holding.extend(tcp.map(|route| {
            let matches = if condition.always() { Vec::new() } else { vec![condition] };
            Holding { route, matches }
        }));
    }
    holding
}

/// `TLSRoute`s, which come oldest first, with the server names for which each is taken.
fn by_server_name<'a>(routes: impl Iterator<Item = Named<'a>>) -> Vec<(Named<'a>, Vec<String>)> {
    let mut names: Vec<(Option<HostPattern>, String, Named<'a>)> = Vec::new();
    for route in routes {
        for name in server_names(route) {
            // What an older route takes is not to be had.
            if !names.iter().any(|(_, other, _)| *other == name) {
                names.push((HostPattern::of(&name), name, route));
            }
        }
    }
    names.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    let mut routes: Vec<(Named<'a>, Vec<String>)> = Vec::new();
    for (_, name, route) in names {
        match routes.last_mut() {
            Some((last, names)) if last.0 == route.0 => names.push(name),
            _ => routes.push((route, vec![name])),
        }
    }
    routes
}

/// The server names that a `TLSRoute` is for, in lower case; without any it is for all.
fn server_names(route: Named<'_>) -> Vec<String> {
    let hostnames = &route.1.spec.hostnames;
    if hostnames.is_empty() {
        return vec!["*".to_owned()];
    }
    hostnames.iter().map(|name| name.to_ascii_lowercase()).collect()
}

/// Whether a route has this port of the service for a parent.
fn is_at(route: Named<'_>, service: &PlainService, port: &PlainPort) -> bool {
    let mut parents = route.1.spec.parent_refs.iter().filter(|parent| parent.is_service());
    parents.any(|parent| service_of(parent, route.0) == service.name && selects(parent, port))
}

/// Whether a reference to a service means this port of it.
fn selects(parent: &ParentRef, port: &PlainPort) -> bool {
    port.protocol == Protocol::Tcp
        && parent.port.is_none_or(|wanted| wanted == i32::from(port.port))
        && parent.section_name.as_deref().is_none_or(|wanted| *wanted == *port.name)
}

/// Why a backend gets nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unresolved {
    reason: &'static str,
    field: &'static str,
    message: String,
}

/// The service and port that a backend is.
fn resolve(
    backend: &BackendRef,
    route: &ObjectRef,
    destinations: &impl Destinations,
) -> Result<(PlainService, usize), Unresolved> {
    let unresolved = |reason, field, message| Err(Unresolved { reason, field, message });
    if !backend.is_service() {
        let group = backend.group.as_deref().unwrap_or_default();
        let kind = backend.kind.as_deref().unwrap_or("Service");
        let written = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        return unresolved(
            "InvalidKind",
            "kind",
            format!("{written} is no kind that connections are sent to, Service is"),
        );
    }
    let name = backend_service(backend, route);
    if name.namespace != route.namespace && !destinations.is_granted(route, &name) {
        let message = format!(
            "no ReferenceGrant in {} lets {} of {} lead to {name}",
            name.namespace,
            route.kind.as_str(),
            route.namespace
        );
        return unresolved("RefNotPermitted", "namespace", message);
    }
    let Some(service) = destinations.service(&name) else {
        return unresolved("BackendNotFound", "name", format!("there is no service {name}"));
    };
    let number = backend.port.unwrap_or_default();
    let is_it = |port: &PlainPort| port.protocol == Protocol::Tcp && i32::from(port.port) == number;
    match service.ports.iter().position(is_it) {
        Some(index) => Ok((service, index)),
        None => unresolved("BackendNotFound", "port", format!("{name} has no TCP port {number}")),
    }
}

/// Where a route leads under a traffic policy. A backend that cannot be led to keeps its share, which refuses; so does a
/// route without any.
pub(super) fn targets(
    route: Named<'_>,
    destinations: &impl Destinations,
    policy: TrafficPolicy,
) -> (Vec<RouteTarget>, Vec<Notice>) {
    let mut notices = Vec::new();
    let backends = route.1.spec.rules.first().into_iter().flat_map(|rule| &rule.backend_refs).enumerate();
    let targets = backends.map(|(index, backend)| {
        let mut target = RouteTarget::whole(
            backend_service(backend, route.0),
            backend.port.and_then(|port| u16::try_from(port).ok()).unwrap_or_default(),
            backend.weight.map_or(1, |weight| u32::try_from(weight).unwrap_or_default()),
            Arc::from([]),
        );
        match resolve(backend, route.0, destinations) {
            Ok((service, port)) => {
                target.endpoints = service.ports[port].serving(&BTreeMap::new(), policy, destinations.here());
                target = dress(target, &service.ports[port], destinations);
            }
            // It gets nothing, but connections that it got before may still be open.
            Err(_) if target.weight == 0 => {}
            Err(unresolved) => notices.push(Notice::new(
                Code::BackendUnresolved,
                route.0,
                format!("spec.rules[0].backendRefs[{index}].{}", unresolved.field),
                format!("{}: its share of the connections is refused", unresolved.message),
            )),
        }
        target
    });
    let targets = targets.collect();
    (targets, notices)
}

/// What the status of a route is to say; `None`: nothing, and it says nothing.
///
/// `rivals` are the routes that have a service for a parent, oldest first, the route among them.
pub(in crate::resources) fn state<'a>(
    route: Named<'_>,
    destinations: &impl Destinations,
    rivals: impl Fn(&ServiceName) -> Vec<Named<'a>>,
) -> Option<RouteState> {
    let services: Vec<_> = route.1.spec.parent_refs.iter().filter(|parent| parent.is_service()).collect();
    let said_before = |entry: &serde_json::Value| entry["controllerName"] == CONTROLLER;
    if services.is_empty() && !route.1.status.parents.iter().any(said_before) {
        return None;
    }
    let resolved = resolved(route, destinations);
    let parents = services.into_iter().map(|parent| ParentState {
        parent: serde_json::to_value(parent).unwrap_or_default(),
        accepted: accepted(route, parent, destinations, &rivals),
        resolved: resolved.clone(),
    });
    let metadata = &route.1.metadata;
    Some(RouteState {
        api_version: route.1.api_version.as_str().into(),
        generation: metadata.generation.unwrap_or_default(),
        resource_version: metadata.resource_version.as_deref().map(Arc::from),
        written: route.1.status.parents.clone(),
        parents: parents.collect(),
    })
}

/// A kind of route by the name of its objects' kind.
pub(in crate::resources) fn kind(route: &ObjectRef) -> RouteKind {
    if route.kind.as_str() == RouteKind::Tls.as_str() { RouteKind::Tls } else { RouteKind::Tcp }
}

fn accepted<'a>(
    route: Named<'_>,
    parent: &ParentRef,
    destinations: &impl Destinations,
    rivals: &impl Fn(&ServiceName) -> Vec<Named<'a>>,
) -> RouteCondition {
    let no = |reason, message| RouteCondition { holds: false, reason, message };
    let name = service_of(parent, route.0);
    let Some(service) = destinations.service(&name) else {
        return no("NoMatchingParent", format!("there is no service {name}"));
    };
    let ports: Vec<&PlainPort> = service.ports.iter().filter(|port| selects(parent, port)).collect();
    if ports.is_empty() {
        return no("NoMatchingParent", format!("{name} has no TCP port that is meant"));
    }
    let routes = rivals(&name);
    let (mut own, mut others) = (0, BTreeSet::new());
    for port in &ports {
        let holding = holding(&routes, &service, port);
        let takes = |name: &ObjectRef| holding.iter().any(|one| one.route.0 == name);
        if takes(route.0) {
            own += 1;
        }
        others.extend(
            older(route, &routes, &service, port)
                .map(|(other, what)| format!("{other} at port {}{what}", port.port)),
        );
    }
    let others = others.into_iter().collect::<Vec<_>>().join(", ");
    if own == 0 {
        return no("Conflicted", format!("older routes hold instead: {others}"));
    }
    let mut message = if name.namespace == route.0.namespace {
        "it is carried out".to_owned()
    } else {
        format!("it is carried out for enrolled clients in {}", route.0.namespace)
    };
    if kind(route.0) == RouteKind::Tls && name.namespace == route.0.namespace {
        message.push_str(" for enrolled clients");
    }
    if !others.is_empty() {
        let _infallible = write!(message, ", but where older routes hold: {others}");
    }
    RouteCondition { holds: true, reason: "Accepted", message }
}

/// The older routes of its kind and namespace that take something of a port from a route, and what.
fn older<'a>(
    route: Named<'_>,
    routes: &[Named<'a>],
    service: &PlainService,
    port: &PlainPort,
) -> impl Iterator<Item = (&'a ObjectRef, String)> {
    let rivals = routes.iter().copied().take_while(|(name, _)| *name != route.0);
    let rivals = rivals.filter(|(name, _)| name.namespace == route.0.namespace && name.kind == route.0.kind);
    let own = server_names(route);
    let at_port: Vec<Named<'a>> = rivals.filter(|rival| is_at(*rival, service, port)).collect();
    at_port.into_iter().filter_map(move |rival| {
        if kind(rival.0) == RouteKind::Tcp {
            return Some((rival.0, String::new()));
        }
        let both: Vec<String> = server_names(rival).into_iter().filter(|name| own.contains(name)).collect();
        (!both.is_empty()).then(|| (rival.0, format!(" for {}", both.join(", "))))
    })
}

fn resolved(route: Named<'_>, destinations: &impl Destinations) -> RouteCondition {
    let backends = route.1.spec.rules.first().into_iter().flat_map(|rule| &rule.backend_refs).enumerate();
    let failed = backends.filter_map(|(index, backend)| {
        let unresolved = resolve(backend, route.0, destinations).err()?;
        Some((unresolved.reason, format!("backendRefs[{index}]: {}", unresolved.message)))
    });
    let failed: Vec<_> = failed.collect();
    match failed.first() {
        None => RouteCondition {
            holds: true,
            reason: "ResolvedRefs",
            message: "every backend is there".to_owned(),
        },
        Some(&(reason, _)) => {
            let messages: Vec<_> = failed.into_iter().map(|(_, message)| message).collect();
            let message = format!("{}; their share of the connections is refused", messages.join("; "));
            RouteCondition { holds: false, reason, message }
        }
    }
}
