//! A service with its routes: which hold at a port and for whom, and what their destinations are.
//!
//! At a port the routes of Gateway API come first ([`gateway`]), then those of the `VirtualService`s that name the service's host, in this order:
//! a host without a wildcard before one with, the longer pattern before the shorter (Istio 1.21 and later); rules that are exported to their own
//! namespace alone before those exported to some and those for all; the older before the younger. A client's namespace takes the
//! first of them that is exported to it and no other: Istio merges no two for clients in the mesh ("split virtual services" in its best
//! practices). Within a rule the entries go in the order written, list by list as the port's protocol has it ([`lists`]); where none holds, the
//! service's own endpoints serve. What holds for some connections only becomes a conditional route, and the first that holds for all ends the list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::actions::{actions, copies};
use super::destination::dress;
use super::gateway::{self, Named};
pub(in crate::resources) use super::hosts::{any_entry, resolve_host};
use super::matching::{Held, Port, from_namespaces, held};
use super::service::{PlainPort, PlainService};
use super::topology::Here;
use super::visibility::Namespaces;
use crate::model::{
    ConditionalRoute, ConnectionMatch, Endpoint, Locality, MeshConfig, Mirror, NodeName, Protocol, Route,
    RouteActions, RouteTarget, Service, ServiceName, ServicePort, TrafficPolicy,
};
use crate::resources::virtual_service::{Destination, List, RouteEntry, VirtualServiceSpec};
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
    /// The service that a host of a `ServiceEntry` is, for rules of a namespace: one of that namespace first, then one that is
    /// exported to it. `None` for hosts that Kubernetes Services have. Who asks depends on [`any_entry`] of the host.
    fn entry_host(&self, host: &str, namespace: &str) -> Option<ServiceName>;
    /// Whether what a `DestinationRule` asks of connections to a service holds for all of them: it is of the service's namespace or of
    /// the root namespace. One of another namespace is for the clients there, in Istio, of which a node's agent and kernel know
    /// nothing; its subsets may be routed to all the same.
    fn speaks_for(&self, rule: &ObjectRef, service: &ServiceName) -> bool;
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

/// A `VirtualService` that names a service's host.
#[derive(Clone, Copy, Debug)]
pub(in crate::resources) struct Rule<'a> {
    pub(in crate::resources) name: &'a ObjectRef,
    pub(in crate::resources) written: &'a VirtualService,
    /// How specific the host is by which it does, 0 before 1: rules of one rank are for the same host.
    pub(in crate::resources) rank: usize,
}

/// A rule and for whom it is: the namespaces that no rule before it has taken.
struct Taken<'a> {
    rule: Rule<'a>,
    namespaces: Namespaces,
}

/// Routes of a port: those for some connections, and the one for all others under each policy.
struct PortRoutes {
    rules: Vec<ConditionalRoute>,
    route: Route,
    local: Option<Route>,
}

/// Applies `rules`, which all name the service's host, the most specific and of these the oldest first; before them, at ports where they
/// hold, `routes` that have the service for a parent, oldest first.
pub(in crate::resources) fn routed(
    plain: &PlainService,
    rules: &[Rule<'_>],
    routes: &[Named<'_>],
    destinations: &impl Destinations,
    mesh: &MeshConfig,
) -> Routed {
    let mut resolver = Resolver { destinations, mesh, notices: Vec::new(), uses: BTreeSet::new() };
    let taken = resolver.taken(plain, rules);
    let ports = plain.ports.iter().map(|port| resolver.port(plain, port, routes, &taken));
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

/// The lists of a `VirtualService` in the order in which they are asked at a port, by what is spoken there.
///
/// Istio asks `http` at ports of HTTP, `tls` at those of TLS and HTTPS, `tcp` at all others. Beyond that, `tcp` holds here at a port of HTTP or TLS for
/// what no route of its own list takes, and a port of which nothing tells the protocol has all three, where Istio's proxies look into
/// each connection.
pub(in crate::resources) fn lists(application: Option<&str>) -> &'static [List] {
    match application {
        Some(application) if is_http(application) => &[List::Http, List::Tcp],
        Some(application) if is_tls(application) => &[List::Tls, List::Tcp],
        Some(application) if is_tcp(application) => &[List::Tcp],
        _ => &[List::Tls, List::Tcp, List::Http],
    }
}

/// Whether the application's protocol is one that Istio routes as HTTP.
pub(in crate::resources) fn is_http(application: &str) -> bool {
    matches!(application, "http" | "http2" | "grpc" | "grpc-web")
}

/// Whether it is one that Istio routes as TLS, by server name.
pub(in crate::resources) fn is_tls(application: &str) -> bool {
    matches!(application, "tls" | "https")
}

/// Whether it is one that Istio routes as TCP.
pub(in crate::resources) fn is_tcp(application: &str) -> bool {
    matches!(application, "tcp" | "mongo" | "mysql" | "redis")
}

struct Resolver<'a, D> {
    destinations: &'a D,
    mesh: &'a MeshConfig,
    notices: Vec<Notice>,
    uses: BTreeSet<ServiceName>,
}

/// An entry and where it is.
struct Entry<'a> {
    rule: &'a ObjectRef,
    field: String,
    list: List,
    written: &'a RouteEntry,
}

impl<D: Destinations> Resolver<'_, D> {
    fn notice(&mut self, code: Code, object: &ObjectRef, field: &str, message: String) {
        self.notices.push(Notice::new(code, object, field, message));
    }

    /// The rules that are anybody's, with whose they are. A rule that another for the same host leaves nobody, or not all, is
    /// told of; one that is less specific is not: that is how a default is written.
    fn taken<'r>(&mut self, plain: &PlainService, rules: &[Rule<'r>]) -> Vec<Taken<'r>> {
        let exported =
            |rule: &Rule<'_>| Namespaces::exported(&rule.written.spec.export_to, &rule.name.namespace);
        let mut rules: Vec<(Namespaces, Rule<'r>)> =
            rules.iter().map(|rule| (exported(rule), *rule)).collect();
        rules.sort_by_key(|(namespaces, rule)| (rule.rank, namespaces.rank(&rule.name.namespace)));
        let mut before: Vec<(Namespaces, Rule<'r>)> = Vec::new();
        let mut taken: Vec<Taken<'r>> = Vec::new();
        let mut all = Namespaces::Some(BTreeSet::new());
        for (namespaces, rule) in rules {
            let clash = before.iter().find(|(other, one)| {
                // One that holds in its own namespace alone is meant to go before one that is for all.
                let overrides = namespaces == Namespaces::All && *other != Namespaces::All;
                one.rank == rule.rank && !overrides && !namespaces.and(other).is_empty()
            });
            if let Some((other, one)) = clash {
                let why = if *other == namespaces { "is older" } else { "goes before it" };
                let host =
                    if rule.rank == 0 { &*plain.host } else { "the hosts that both mean by a wildcard" };
                let message = format!("ignored for {host}: {} {why}", one.name);
                self.notice(Code::HostClash, rule.name, "spec.hosts", message);
            }
            if !namespaces.is_empty() && !namespaces.is_within(&all) {
                all = all.or(&namespaces);
                taken.push(Taken { rule, namespaces: namespaces.clone() });
            }
            before.push((namespaces, rule));
        }
        taken
    }

    fn port(
        &mut self,
        plain: &PlainService,
        port: &PlainPort,
        routes: &[Named<'_>],
        taken: &[Taken<'_>],
    ) -> ServicePort {
        let listed: Arc<[Endpoint]> = port.members.iter().map(|member| member.endpoint.clone()).collect();
        let serving = |policy| port.serving(&BTreeMap::new(), policy, self.destinations.here());
        let endpoints = Some(serving(TrafficPolicy::Cluster)).filter(|some| some.len() < listed.len());
        let endpoints = endpoints.unwrap_or_else(|| Arc::clone(&listed));
        let PortRoutes { rules, route, local } = self.routes(plain, port, &endpoints, routes, taken);
        ServicePort {
            name: Arc::clone(&port.name),
            port: port.port,
            protocol: port.protocol,
            node_port: port.node_port,
            route,
            local,
            listed,
            endpoints,
            rules,
        }
    }

    /// All routes of a port, up to the first that holds for every connection.
    fn routes(
        &mut self,
        plain: &PlainService,
        port: &PlainPort,
        endpoints: &Arc<[Endpoint]>,
        routes: &[Named<'_>],
        taken: &[Taken<'_>],
    ) -> PortRoutes {
        let local = port
            .uses_local
            .then(|| port.serving(&BTreeMap::new(), TrafficPolicy::Local, self.destinations.here()));
        let own = |destinations: &D, endpoints: &Arc<[Endpoint]>| {
            let target = RouteTarget::whole(plain.name.clone(), port.port, 1, Arc::clone(endpoints));
            Route::new(None, vec![dress(target, port, destinations)])
        };
        let mut rules = Vec::new();
        for held in gateway::holding(routes, plain, port) {
            let under = |policy| self.gateway_route(held.route, policy);
            let (route, local) = both(under, port.uses_local);
            if held.matches.is_empty() {
                for Taken { rule, .. } in taken {
                    let message =
                        format!("ignored at {}:{}: {} holds there", plain.host, port.port, held.route.0);
                    self.notice(Code::HostClash, rule.name, "spec.hosts", message);
                }
                return PortRoutes { rules, route, local };
            }
            rules.push(ConditionalRoute { matches: held.matches, route, local });
        }
        for (index, Taken { rule, namespaces }) in taken.iter().enumerate() {
            if let Some((route, local)) = self.rule(plain, port, (rule, namespaces), &mut rules) {
                return PortRoutes { rules, route, local };
            }
            // Whom a rule is for takes no other, though none of its routes holds.
            let closed = |one: &ConnectionMatch| rules.iter().any(|rule| rule.matches.contains(one));
            let is_followed = index + 1 < taken.len();
            let closes =
                from_namespaces(namespaces).filter(|one| is_followed && !one.always() && !closed(one));
            match (closes, namespaces) {
                (_, Namespaces::All) => break,
                (Some(condition), _) if port.protocol == Protocol::Tcp => rules.push(ConditionalRoute {
                    matches: vec![condition],
                    route: own(self.destinations, endpoints),
                    local: local.as_ref().map(|local| own(self.destinations, local)),
                }),
                _ => {}
            }
        }
        let route = own(self.destinations, endpoints);
        PortRoutes { rules, route, local: local.as_ref().map(|local| own(self.destinations, local)) }
    }

    fn gateway_route(&mut self, route: Named<'_>, policy: TrafficPolicy) -> Route {
        let (targets, notices) = gateway::targets(route, self.destinations, policy);
        self.notices.extend(notices);
        Route::new(Some(name_of(route.0)), targets)
    }

    /// Adds the conditional routes of a rule; returns the one that holds for every connection, under both policies.
    fn rule(
        &mut self,
        plain: &PlainService,
        port: &PlainPort,
        (rule, namespaces): (&Rule<'_>, &Namespaces),
        rules: &mut Vec<ConditionalRoute>,
    ) -> Option<(Route, Option<Route>)> {
        if port.protocol != Protocol::Tcp {
            return None;
        }
        let spec = &rule.written.spec;
        let addresses: Vec<IpAddr> = addresses(plain).collect();
        let asked =
            Port { number: port.port, addresses: &addresses, on_every_node: port.node_port.is_some() };
        let before = rules.len();
        for &list in lists(port.application.as_deref()) {
            for (index, entry) in
                spec.list(list).iter().enumerate().filter(|(_, entry)| !entry.route.is_empty())
            {
                let held = held(entry, list, asked, namespaces);
                if held == Held::Never {
                    continue;
                }
                let entry = Entry {
                    rule: rule.name,
                    field: format!("spec.{}[{index}]", list.as_str()),
                    list,
                    written: entry,
                };
                let actions = self.actions(&entry, port);
                let under = |policy| self.route(&entry, port, policy).with_actions(Arc::clone(&actions));
                let (route, local) = both(under, port.uses_local);
                match held {
                    Held::When(matches) => rules.push(ConditionalRoute { matches, route, local }),
                    Held::Always | Held::Never => return Some((route, local)),
                }
            }
        }
        // A default that is written for many services need not be one for each.
        if rule.rank == 0 && rules.len() == before {
            self.nothing_holds(plain, port, rule.name, spec);
        }
        None
    }

    fn nothing_holds(
        &mut self,
        plain: &PlainService,
        port: &PlainPort,
        rule: &ObjectRef,
        spec: &VirtualServiceSpec,
    ) {
        let (host, number) = (&plain.host, port.port);
        let instead = "they go to the service's own endpoints";
        let asked = lists(port.application.as_deref());
        let holds = |list: &List| {
            let port = Port { number, addresses: &[], on_every_node: true };
            let holds = |entry: &RouteEntry| held(entry, *list, port, &Namespaces::All) != Held::Never;
            spec.list(*list).iter().any(|entry| !entry.route.is_empty() && holds(entry))
        };
        let others = [List::Http, List::Tls, List::Tcp].into_iter().filter(|list| !asked.contains(list));
        let others: Vec<List> = others.filter(holds).collect();
        for list in &others {
            let (list, protocol) = (list.as_str(), port.application.as_deref().unwrap_or_default());
            let message = format!(
                "routes of {list} do not hold for connections to {host}:{number}, which is a port of {protocol}: {instead}"
            );
            self.notice(Code::RouteForOtherProtocol, rule, &format!("spec.{list}"), message);
        }
        if others.is_empty() {
            let message = format!("no route holds for every connection to {host}:{number}, {instead}");
            self.notice(Code::NoRouteForAll, rule, "spec", message);
        }
    }

    /// What is done to connections that take an entry.
    fn actions(&mut self, entry: &Entry<'_>, port: &PlainPort) -> Arc<RouteActions> {
        if entry.list != List::Http {
            return Arc::default();
        }
        let mirrors = copies(entry.written).into_iter().filter_map(|copy| {
            let field = format!("{}.{}", entry.field, copy.field);
            let told = self.notices.len();
            let otherwise = "nothing is copied there";
            let target =
                self.target(copy.destination, 1, port, entry.rule, &field, TrafficPolicy::Cluster, otherwise);
            (self.notices.len() == told).then_some(Mirror { target, share: copy.share })
        });
        let mirrors = mirrors.collect();
        Arc::new(RouteActions { mirrors, ..actions(entry.written) })
    }

    fn route(&mut self, entry: &Entry<'_>, port: &PlainPort, policy: TrafficPolicy) -> Route {
        let Entry { rule, field, written: entry, .. } = entry;
        let alone = entry.route.len() == 1;
        let mut targets = Vec::new();
        for (index, destination) in entry.route.iter().enumerate() {
            let written = destination.weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(0);
            // "If there is only one destination in a rule, it will receive all traffic." (HTTPRouteDestination.weight)
            let weight = if alone && written == 0 { WHOLE } else { written };
            let field = format!("{field}.route[{index}].destination");
            let said = self.notices.len();
            let otherwise = "its share of the connections is refused";
            targets.push(self.target(
                &destination.destination,
                weight,
                port,
                rule,
                &field,
                policy,
                otherwise,
            ));
            if weight == 0 {
                // It gets nothing, but connections that it got before may still be open.
                self.notices.truncate(said);
            }
        }
        Route::new(Some(name_of(rule)), targets)
    }

    /// A destination that does not exist has no endpoints; `otherwise` is what comes of that.
    #[expect(clippy::too_many_arguments, reason = "where it is written, and where it is asked for")]
    fn target(
        &mut self,
        written: &Destination,
        weight: u32,
        asked: &PlainPort,
        rule: &ObjectRef,
        field: &str,
        policy: TrafficPolicy,
        otherwise: &str,
    ) -> RouteTarget {
        let named = written.port.as_ref().and_then(|port| u16::try_from(port.number).ok());
        let subset: Option<Arc<str>> =
            written.subset.as_deref().filter(|name| !name.is_empty()).map(Into::into);
        let resolved = self
            .destinations
            .entry_host(&written.host, &rule.namespace)
            .or_else(|| resolve_host(&written.host, &rule.namespace, self.mesh));
        let service = resolved.clone().unwrap_or_else(|| ServiceName::new(&*rule.namespace, &*written.host));
        let mut target =
            RouteTarget::whole(service.clone(), named.unwrap_or(asked.port), weight, Arc::from([]));
        target.subset.clone_from(&subset);
        // One that comes later is waited for by the name that it will have.
        self.uses.insert(service.clone());
        self.uses.extend(resolve_host(&written.host, &rule.namespace, self.mesh));
        if written.host.contains('.') {
            self.uses.insert(any_entry(&written.host));
        }
        let Some(found) = resolved.and_then(|name| self.destinations.service(&name)) else {
            let message = format!("{} is no service here: {otherwise}", written.host);
            self.notice(Code::DestinationUnknown, rule, &format!("{field}.host"), message);
            return target;
        };
        let mut tcp = found.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let port = match tcp.clone().find(|port| port.port == target.port) {
            None if named.is_none() && tcp.clone().count() == 1 => tcp.next(),
            port => port,
        };
        let Some(port) = port else {
            let message = format!("{} has no port {}: {otherwise}", found.host, target.port);
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
            let message = format!("no DestinationRule for {} has subset {subset}: {otherwise}", found.host);
            self.notice(Code::SubsetUnknown, rule, &format!("{field}.subset"), message);
            return target;
        };
        target.endpoints = port.serving(labels, policy, self.destinations.here());
        dress(target, port, self.destinations)
    }
}

/// Under the policy Cluster, and under Local where that is asked for.
fn both(mut under: impl FnMut(TrafficPolicy) -> Route, uses_local: bool) -> (Route, Option<Route>) {
    (under(TrafficPolicy::Cluster), uses_local.then(|| under(TrafficPolicy::Local)))
}

/// All addresses that clients ask for to reach a service, but for those of nodes.
fn addresses(plain: &PlainService) -> impl Iterator<Item = IpAddr> {
    let external = &plain.external;
    plain.addresses.iter().chain(&external.addresses).chain(&external.load_balancer).copied()
}

fn name_of(object: &ObjectRef) -> Arc<str> {
    format!("{}/{}", object.namespace, object.name).into()
}
