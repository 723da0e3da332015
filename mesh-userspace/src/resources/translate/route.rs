//! A service with its routes: which `TCPRoute`, else which `VirtualService` entry, holds at a port, and what its destinations are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::destination::dress;
use super::gateway::{self, Named};
use super::service::{PlainPort, PlainService};
use super::topology::Here;
use crate::model::{
    Endpoint, Locality, MeshConfig, NodeName, Protocol, Route, RouteTarget, Service, ServiceName,
    ServicePort, TrafficPolicy,
};
use crate::resources::istio::{Match, RouteDestination, RouteEntry, VirtualServiceSpec};
use crate::resources::{Code, DestinationRule, Notice, ObjectRef, VirtualService};

/// Weight of a destination that is alone.
const WHOLE: u32 = 100;

/// Where destinations are looked up.
pub(in crate::resources) trait Destinations {
    fn service(&self, name: &ServiceName) -> Option<PlainService>;
    /// The labels of a subset, as the `DestinationRule`s for the service name them.
    fn subset(&self, service: &ServiceName, subset: &str) -> Option<&BTreeMap<String, String>>;
    /// The `DestinationRule`s that name the service's host, in the order of their precedence for a client that is nobody's in
    /// particular (see `destination`).
    fn rules(&self, service: &ServiceName) -> Vec<(&ObjectRef, &DestinationRule)>;
    /// Whether a `ReferenceGrant` lets a route of another namespace lead to a service.
    fn is_granted(&self, route: &ObjectRef, to: &ServiceName) -> bool;
    /// The node for whose clients the service is translated.
    fn here(&self) -> Here<'_>;
    /// Where a node is.
    fn locality(&self, node: &NodeName) -> Option<&Arc<Locality>>;
}

/// A service with routes, what is to be said about them, and the services that they lead to.
pub(in crate::resources) struct Routed {
    pub(in crate::resources) service: Service,
    pub(in crate::resources) notices: Vec<Notice>,
    pub(in crate::resources) uses: BTreeSet<ServiceName>,
}

/// Applies the oldest of `rules`, which all name the service's host and come oldest first; at ports where one of `routes`,
/// `TCPRoute`s that have the service for a parent, oldest first, holds, that one.
pub(in crate::resources) fn routed(
    plain: &PlainService,
    rules: &[(&ObjectRef, &VirtualService)],
    routes: &[Named<'_>],
    destinations: &impl Destinations,
    mesh: &MeshConfig,
) -> Routed {
    let mut resolver = Resolver { destinations, mesh, notices: Vec::new(), uses: BTreeSet::new() };
    let rule = rules.split_first().map(|(&oldest, younger)| {
        for &(other, _) in younger {
            let message = format!("ignored for {}: {} is older", plain.host, oldest.0);
            resolver.notice(Code::HostClash, other, "spec.hosts", message);
        }
        oldest
    });
    let ports = plain.ports.iter().map(|port| {
        let above = gateway::holding(routes, plain, port);
        if let (Some((above, _)), Some((rule, _))) = (above, rule) {
            let message = format!("ignored at {}:{}: {above} holds there", plain.host, port.port);
            resolver.notice(Code::HostClash, rule, "spec.hosts", message);
        }
        resolver.port(plain, port, above, rule)
    });
    let ports = ports.collect();
    let service = Service {
        name: plain.name.clone(),
        host: Arc::clone(&plain.host),
        kind: plain.kind,
        addresses: plain.addresses.clone(),
        ports,
        internal: plain.internal,
        external: plain.external.clone(),
        affinity_seconds: plain.affinity_seconds,
    };
    let (mut notices, mut uses) = (resolver.notices, resolver.uses);
    uses.extend(routes.iter().flat_map(|&route| gateway::backends(route)));
    notices.sort();
    notices.dedup();
    Routed { service, notices, uses }
}

/// The service that a host in a rule of `namespace` names: `NAME`, `NAME.NS`, `NAME.NS.svc` or the full host.
pub(in crate::resources) fn resolve_host(
    host: &str,
    namespace: &str,
    mesh: &MeshConfig,
) -> Option<ServiceName> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let full = host.strip_suffix(&*mesh.cluster_domain).and_then(|rest| rest.strip_suffix(".svc."));
    let service_host = full.or_else(|| host.strip_suffix(".svc"));
    let parts: Vec<&str> = service_host.unwrap_or(host).split('.').collect();
    match parts[..] {
        _ if host.contains('*') || parts.iter().any(|part| part.is_empty()) => None,
        [name] if service_host.is_none() => Some(ServiceName::new(namespace, name)),
        [name, namespace] => Some(ServiceName::new(namespace, name)),
        _ => None,
    }
}

struct Resolver<'a, D> {
    destinations: &'a D,
    mesh: &'a MeshConfig,
    notices: Vec<Notice>,
    uses: BTreeSet<ServiceName>,
}

impl<D: Destinations> Resolver<'_, D> {
    fn notice(&mut self, code: Code, object: &ObjectRef, field: &str, message: String) {
        self.notices.push(Notice::new(code, object, field, message));
    }

    fn port(
        &mut self,
        plain: &PlainService,
        port: &PlainPort,
        above: Option<Named<'_>>,
        rule: Option<(&ObjectRef, &VirtualService)>,
    ) -> ServicePort {
        let serving = |policy| port.serving(&BTreeMap::new(), policy, self.destinations.here());
        let listed: Arc<[Endpoint]> = port.members.iter().map(|member| member.endpoint.clone()).collect();
        let endpoints = Some(serving(TrafficPolicy::Cluster)).filter(|some| some.len() < listed.len());
        let endpoints = endpoints.unwrap_or_else(|| Arc::clone(&listed));
        let own_local = port.uses_local.then(|| serving(TrafficPolicy::Local));
        let mut route = |policy, own: &Arc<[Endpoint]>| {
            let routed = match above {
                Some(route) => Some(self.gateway_route(route, policy)),
                None => rule.and_then(|(name, rule)| self.route(plain, port, name, &rule.spec, policy)),
            };
            routed.unwrap_or_else(|| {
                let service = plain.name.clone();
                let endpoints = Arc::clone(own);
                let target = RouteTarget::whole(service, port.port, 1, endpoints);
                Route::new(None, vec![dress(target, port, self.destinations)])
            })
        };
        ServicePort {
            name: Arc::clone(&port.name),
            port: port.port,
            protocol: port.protocol,
            node_port: port.node_port,
            route: route(TrafficPolicy::Cluster, &endpoints),
            local: own_local.map(|own| route(TrafficPolicy::Local, &own)),
            listed,
            endpoints,
            rules: Vec::new(),
        }
    }

    fn gateway_route(&mut self, route: Named<'_>, policy: TrafficPolicy) -> Route {
        let (targets, notices) = gateway::targets(route, self.destinations, policy);
        self.notices.extend(notices);
        Route::new(Some(format!("{}/{}", route.0.namespace, route.0.name).into()), targets)
    }

    fn route(
        &mut self,
        plain: &PlainService,
        port: &PlainPort,
        rule: &ObjectRef,
        spec: &VirtualServiceSpec,
        policy: TrafficPolicy,
    ) -> Option<Route> {
        if port.protocol != Protocol::Tcp {
            return None;
        }
        let Some((field, entry)) = entry_for(port, spec) else {
            let (host, number) = (&plain.host, port.port);
            let instead = "they go to the service's own endpoints";
            if speaks_no_http(port) && position(&spec.http, number).is_some() {
                let protocol = port.application.as_deref().unwrap_or_default();
                let message = format!(
                    "routes of http do not hold for connections to {host}:{number}, which is a port of {protocol}: {instead}"
                );
                self.notice(Code::RouteForOtherProtocol, rule, "spec.http", message);
            } else {
                let message = format!("no route holds for every connection to {host}:{number}, {instead}");
                self.notice(Code::NoRouteForAll, rule, "spec", message);
            }
            return None;
        };
        let alone = entry.route.len() == 1;
        let mut targets = Vec::new();
        for (index, destination) in entry.route.iter().enumerate() {
            let written = destination.weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(0);
            // "If there is only one destination in a rule, it will receive all traffic." (HTTPRouteDestination.weight)
            let weight = if alone && written == 0 { WHOLE } else { written };
            let field = format!("{field}.route[{index}].destination");
            let said = self.notices.len();
            targets.push(self.target(destination, weight, port, rule, &field, policy));
            if weight == 0 {
                // It gets nothing, but connections that it got before may still be open.
                self.notices.truncate(said);
            }
        }
        Some(Route::new(Some(format!("{}/{}", rule.namespace, rule.name).into()), targets))
    }

    /// A destination that does not exist keeps its share, which refuses.
    fn target(
        &mut self,
        written: &RouteDestination,
        weight: u32,
        asked: &PlainPort,
        rule: &ObjectRef,
        field: &str,
        policy: TrafficPolicy,
    ) -> RouteTarget {
        let written = &written.destination;
        let named = written.port.as_ref().and_then(|port| u16::try_from(port.number).ok());
        let subset: Option<Arc<str>> =
            written.subset.as_deref().filter(|name| !name.is_empty()).map(Into::into);
        let resolved = resolve_host(&written.host, &rule.namespace, self.mesh);
        let service = resolved.clone().unwrap_or_else(|| ServiceName::new(&*rule.namespace, &*written.host));
        let mut target =
            RouteTarget::whole(service.clone(), named.unwrap_or(asked.port), weight, Arc::from([]));
        target.subset.clone_from(&subset);
        self.uses.extend(resolved.clone());
        let Some(found) = resolved.and_then(|name| self.destinations.service(&name)) else {
            let message =
                format!("{} is no service here: its share of the connections is refused", written.host);
            self.notice(Code::DestinationUnknown, rule, &format!("{field}.host"), message);
            return target;
        };
        let mut tcp = found.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let port = match tcp.clone().find(|port| port.port == target.port) {
            None if named.is_none() && tcp.clone().count() == 1 => tcp.next(),
            port => port,
        };
        let Some(port) = port else {
            let message = format!("{} has no port {}: its share is refused", found.host, target.port);
            self.notice(Code::DestinationPortUnknown, rule, &format!("{field}.port.number"), message);
            return target;
        };
        target.port = port.port;
        let everything = BTreeMap::new();
        let labels = match &subset {
            None => Some(&everything),
            Some(subset) => self.destinations.subset(&service, subset),
        };
        let Some(labels) = labels else {
            let subset = subset.unwrap_or_default();
            let message =
                format!("no DestinationRule for {} has subset {subset}: its share is refused", found.host);
            self.notice(Code::SubsetUnknown, rule, &format!("{field}.subset"), message);
            return target;
        };
        target.endpoints = port.serving(labels, policy, self.destinations.here());
        dress(target, port, self.destinations)
    }
}

/// The first entry that holds for every connection to the port, and its field.
fn entry_for<'a>(port: &PlainPort, spec: &'a VirtualServiceSpec) -> Option<(String, &'a RouteEntry)> {
    let find = |list: &str, entries: &'a [RouteEntry]| {
        let index = position(entries, port.port)?;
        Some((format!("spec.{list}[{index}]"), &entries[index]))
    };
    let (http, tcp) = (|| find("http", &spec.http), || find("tcp", &spec.tcp));
    match port.application.as_deref() {
        _ if speaks_no_http(port) => tcp(),
        Some(application) if is_http(application) => http().or_else(tcp),
        _ => tcp().or_else(http),
    }
}

/// Whether the application's protocol is one that Istio routes as HTTP.
pub(in crate::resources) fn is_http(application: &str) -> bool {
    matches!(application, "http" | "http2" | "grpc" | "grpc-web")
}

/// Whether it is one that Istio routes as TCP.
pub(in crate::resources) fn is_tcp(application: &str) -> bool {
    matches!(application, "tcp" | "mongo" | "mysql" | "redis" | "tls")
}

fn speaks_no_http(port: &PlainPort) -> bool {
    port.application.as_deref().is_some_and(is_tcp)
}

fn position(entries: &[RouteEntry], port: u16) -> Option<usize> {
    let holds = |entry: &RouteEntry| {
        !entry.route.is_empty()
            && (entry.matches.is_empty() || entry.matches.iter().any(|one| always_holds(one, port)))
    };
    entries.iter().position(holds)
}

pub(in crate::resources) fn always_holds(one: &Match, port: u16) -> bool {
    let gateway = one.gateways.is_empty() || one.gateways.iter().any(|gateway| gateway == "mesh");
    // `statPrefix` names a statistic and asks nothing of the connection.
    one.rest.keys().all(|name| name == "statPrefix")
        && gateway
        && one.port.is_none_or(|wanted| wanted == u32::from(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let mesh = MeshConfig::default();
        let cases = [
            ("web", Some(("shop", "web"))),
            ("web.prod", Some(("prod", "web"))),
            ("web.prod.svc", Some(("prod", "web"))),
            ("web.prod.svc.cluster.local", Some(("prod", "web"))),
            ("web.prod.svc.cluster.local.", Some(("prod", "web"))),
            ("www.example.com", None),
            ("*.prod.svc.cluster.local", None),
            ("*", None),
            ("", None),
            ("web.svc", None),
            ("a.b.c.svc.cluster.local", None),
        ];
        for (host, wanted) in cases {
            let wanted = wanted.map(|(namespace, name)| ServiceName::new(namespace, name));
            assert_eq!(resolve_host(host, "shop", &mesh), wanted, "{host}");
        }
    }
}
