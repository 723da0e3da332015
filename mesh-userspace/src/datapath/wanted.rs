//! What the kernel should hold for a service, told from the model alone.
//!
//! A service port has up to four sets of backends: one a family and traffic policy. Its addresses and its node port are
//! frontends, each of which points to one set.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_common::abi::{
    ANY_V4, ANY_V6, Address, BACKEND_NONE, BACKEND_STRICT, BACKEND_TABLE, SCOPE_ADDRESS, SCOPE_NODE_PORT,
    SERVICE_CAPTURE, SERVICE_CLOSED_OUTSIDE, SERVICE_MEMBERS, SERVICE_RANGES, SERVICE_STRICT, ServiceKey,
    Slot,
};

use super::{address_of, ip_of};
use crate::model::{
    Backend, BackendSet, Endpoint, Frontend, Lotted, Mode, Protocol, RouteTarget, Service, ServiceKind,
    ServiceName, ServicePort, Snapshot, TrafficPolicy,
};

/// Names a set of backends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SetName {
    pub(super) port: PortName,
    pub(super) policy: TrafficPolicy,
}

/// A service port in one address family: what a client's affinity holds for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PortName {
    pub(super) service: ServiceName,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    pub(super) v4: bool,
}

/// A set of backends, as its slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WantedSet {
    /// With their counters at zero.
    pub(super) slots: Vec<Slot>,
    /// Backends and their `BACKEND_*` bits; empty unless [`SERVICE_MEMBERS`] is set where it is used.
    pub(super) members: BTreeMap<(Address, u16), u16>,
    /// Who may come to the load balancer's addresses that use it.
    pub(super) ranges: Vec<IpNet>,
}

/// What one key of `SERVICES` should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WantedFrontend {
    pub(super) set: SetName,
    pub(super) flags: u32,
    pub(super) affinity_seconds: u32,
}

/// All that a service wants of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    translates: bool,
    pub(super) sets: BTreeMap<SetName, WantedSet>,
    pub(super) frontends: BTreeMap<ServiceKey, WantedFrontend>,
    /// Cluster addresses, and external ones.
    pub(super) addresses: Vec<(Address, bool)>,
}

/// What the kernel should hold for `service`: the frontends that the snapshot says are its own, and the sets behind them.
/// A client on a node with one of `node_addresses` may come to a load balancer's address from that address itself. `translates`:
/// services are translated here, and not by a kube-proxy that knows nothing of routes.
pub(super) fn wanted(
    service: &Service,
    snapshot: &Snapshot,
    node_addresses: &[IpAddr],
    translates: bool,
) -> Wanted {
    let mut wanted = Wanted { translates, ..Wanted::default() };
    for port in service.ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
        for frontend in service.frontends_of(port) {
            let is_own = snapshot.frontends.get(&frontend).is_some_and(|owner| owner.name == service.name);
            if is_own {
                wanted.add(service, port, frontend, node_addresses);
            }
        }
    }
    wanted.addresses = addresses(service).collect();
    wanted
}

/// Cluster addresses of a service, and external ones (`true`). Those of a `ServiceEntry` are neither: of ports that are not its own
/// nothing is known, so that they must not be taken for closed.
pub(super) fn addresses(service: &Service) -> impl Iterator<Item = (Address, bool)> {
    let own = service.addresses.iter().filter(|_| service.kind != ServiceKind::ServiceEntry);
    let cluster = own.map(|address| (address_of(*address), false));
    let external = service.external.addresses.iter().chain(&service.external.load_balancer);
    cluster.chain(external.map(|address| (address_of(*address), true)))
}

impl Wanted {
    fn add(&mut self, service: &Service, port: &ServicePort, frontend: Frontend, node_addresses: &[IpAddr]) {
        let Some(address) = frontend.address else {
            // A node port is there in the families of the service.
            for v4 in [true, false] {
                if service.addresses.iter().any(|address| address.is_ipv4() == v4) {
                    let any = if v4 { ANY_V4 } else { ANY_V6 };
                    self.put(
                        service,
                        port,
                        (any, frontend.port, SCOPE_NODE_PORT),
                        v4,
                        TrafficPolicy::Cluster,
                    );
                }
            }
            return;
        };
        let v4 = address.is_ipv4();
        let is_cluster = service.addresses.contains(&address);
        // Clients on this node short-circuit to all endpoints when they ask for an external address.
        let policy = if is_cluster { service.internal } else { TrafficPolicy::Cluster };
        let key = self.put(service, port, (address_of(address), frontend.port, SCOPE_ADDRESS), v4, policy);
        if !is_cluster && service.external.load_balancer.contains(&address) {
            self.restrict(service, &key, address, node_addresses);
        }
    }

    fn put(
        &mut self,
        service: &Service,
        port: &ServicePort,
        (address, number, scope): (Address, u16, u8),
        v4: bool,
        policy: TrafficPolicy,
    ) -> ServiceKey {
        let key = ServiceKey { address, port: number, protocol: port.protocol.number(), scope };
        let name = PortName { service: service.name.clone(), port: port.port, protocol: port.protocol, v4 };
        let set = SetName { port: name, policy };
        let backends = family(port.route(policy), v4);
        let keeps = service.affinity_seconds.is_some() || port.protocol == Protocol::Udp;
        self.sets.entry(set.clone()).or_insert_with(|| set_of(backends, keeps));
        let is_cluster_address = scope == SCOPE_ADDRESS && service.addresses.contains(&ip_of(address));
        let closed = !is_cluster_address && family(port.route(service.external.policy), v4).is_empty()
            || is_cluster_address && backends.is_empty();
        // What is not captured goes where kube-proxy has it: to the service's own endpoints, whatever the routes say.
        let elsewhere = !self.translates;
        let captures = port.needs_agent(policy, v4) || (elsewhere && is_the_mesh_s(service, port, policy));
        let strict = has_strict(backends) || (elsewhere && port.listed.iter().any(is_strict));
        let flags = if captures { SERVICE_CAPTURE } else { 0 }
            | if strict { SERVICE_STRICT } else { 0 }
            | if keeps { SERVICE_MEMBERS } else { 0 }
            | if closed { SERVICE_CLOSED_OUTSIDE } else { 0 };
        let affinity_seconds = service.affinity_seconds.unwrap_or(0);
        self.frontends.insert(key, WantedFrontend { set, flags, affinity_seconds });
        key
    }

    /// Source ranges of the family, as kube-proxy takes them: those of the other family restrict nobody here.
    fn restrict(&mut self, service: &Service, key: &ServiceKey, own: IpAddr, node_addresses: &[IpAddr]) {
        let same_family = |range: &&IpNet| range.addr().is_ipv4() == own.is_ipv4();
        let mut ranges: Vec<IpNet> =
            service.external.source_ranges.iter().filter(same_family).copied().collect();
        if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
            return;
        }
        // What a process of the node sends to an address that is routed locally comes from that address itself.
        if node_addresses.iter().any(|node| ranges.iter().any(|range| range.contains(node))) {
            ranges.push(IpNet::from(own));
        }
        let Some(frontend) = self.frontends.get_mut(key) else { return };
        frontend.flags |= SERVICE_RANGES;
        if let Some(set) = self.sets.get_mut(&frontend.set) {
            set.ranges.extend(ranges);
            set.ranges.sort_unstable();
            set.ranges.dedup();
        }
    }
}

/// What a key of `SERVICES` stands for.
pub(super) fn frontend_of(key: &ServiceKey) -> Frontend {
    let address = (key.scope == SCOPE_ADDRESS).then(|| ip_of(key.address));
    let protocol = if key.protocol == Protocol::Udp.number() { Protocol::Udp } else { Protocol::Tcp };
    Frontend { address, port: key.port, protocol }
}

const fn family(route: &crate::model::Route, v4: bool) -> &BackendSet {
    if v4 { &route.v4 } else { &route.v6 }
}

/// Whether the mesh has a say in where connections to a port go, or in how they come to the endpoints that are listed: kube-proxy
/// would send them elsewhere, or in plaintext to where they must not go so.
fn is_the_mesh_s(service: &Service, port: &ServicePort, policy: TrafficPolicy) -> bool {
    let route = port.route(policy);
    let asks = |target: &RouteTarget| target.spread.is_some() || target.settings.rule.is_some();
    service.kind == ServiceKind::ServiceEntry
        || route.rule.is_some()
        || route.targets.iter().any(asks)
        || port.listed.iter().any(Endpoint::in_mesh)
}

fn has_strict(set: &BackendSet) -> bool {
    set.backends().iter().filter_map(|backend| backend.endpoint.as_ref()).any(is_strict)
}

fn is_strict(endpoint: &Endpoint) -> bool {
    endpoint.enrolled && (endpoint.mode == Mode::Strict || endpoint.guarded)
}

fn set_of(set: &BackendSet, keeps: bool) -> WantedSet {
    let lots: Vec<_> = set.lots().collect();
    let mut slots = Vec::with_capacity(lots.len());
    // Tables come behind all that is drawn from.
    let mut entries = Vec::new();
    for (draw, lot) in &lots {
        let (address, port, flags) = match lot {
            Lotted::One(backend) => destination(backend),
            Lotted::Table(table) => {
                let members = &set.backends()[table.first..];
                let first = length(lots.len() + entries.len());
                entries.extend(
                    table.maglev.entries().iter().map(|member| destination(&members[*member as usize])),
                );
                (Slot::table_address(first, length(table.maglev.entries().len())), 0, BACKEND_TABLE)
            }
        };
        slots.push(Slot { threshold: draw.threshold, alias: draw.alias, ..slot(address, port, flags) });
    }
    slots.extend(entries.into_iter().map(|(address, port, flags)| slot(address, port, flags)));
    let reachable = slots.iter().filter(|slot| keeps && slot.flags & (BACKEND_NONE | BACKEND_TABLE) == 0);
    let members = reachable.map(|slot| ((slot.address, slot.port), slot.flags)).collect();
    WantedSet { slots, members, ranges: Vec::new() }
}

const fn slot(address: Address, port: u16, flags: u16) -> Slot {
    Slot { threshold: u32::MAX, alias: 0, address, port, flags, pad: 0, connections: 0 }
}

/// How many of a set's slots, which begin with them, are drawn from: those before the first table.
pub(super) fn drawn(slots: &[Slot]) -> u32 {
    let tables = slots.iter().filter(|slot| slot.flags & BACKEND_TABLE != 0);
    tables.map(|slot| slot.table().0).min().unwrap_or(length(slots.len()))
}

fn length(count: usize) -> u32 {
    u32::try_from(count).expect("a service has fewer than 2^32 slots")
}

fn destination(backend: &Backend) -> (Address, u16, u16) {
    match &backend.endpoint {
        None => (ANY_V4, 0, BACKEND_NONE),
        Some(endpoint) => {
            let flags = if is_strict(endpoint) { BACKEND_STRICT } else { 0 };
            (address_of(endpoint.address.ip()), endpoint.address.port(), flags)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::External;

    fn service(change: impl FnOnce(&mut Service)) -> Service {
        let name = ServiceName::new("default", "web");
        let endpoint = Endpoint::at("10.244.1.1:8080".parse().unwrap());
        let mut port = ServicePort::plain(&name, 80, Protocol::Tcp, Arc::new([endpoint]));
        port.node_port = Some(30_080);
        let addresses = vec!["10.96.0.1".parse().unwrap()];
        let mut service = Service::internal(name, "web".into(), addresses, vec![port]);
        service.external = External {
            load_balancer: vec!["192.0.2.1".parse().unwrap()],
            addresses: vec!["198.51.100.1".parse().unwrap()],
            ..External::default()
        };
        change(&mut service);
        service
    }

    fn of(service: Service) -> Wanted {
        let mut snapshot = Snapshot::default();
        let service = Arc::new(service);
        snapshot.frontends.extend(service.frontends().map(|frontend| (frontend, Arc::clone(&service))));
        wanted(&service, &snapshot, &["203.0.113.1".parse().unwrap()], true)
    }

    fn flags(wanted: &Wanted, address: &str) -> u32 {
        let address = address_of(address.parse().unwrap());
        wanted.frontends.iter().find(|(key, _)| key.address == address).unwrap().1.flags
    }

    #[test]
    fn all_frontends_of_a_port_share_its_set() {
        let wanted = of(service(|_| {}));
        assert_eq!((wanted.frontends.len(), wanted.sets.len()), (4, 1), "{wanted:#?}");
        assert!(wanted.frontends.values().all(|frontend| frontend.flags == 0));
        assert!(wanted.sets.values().all(|set| set.slots.len() == 1 && set.members.is_empty()));
    }

    #[test]
    fn a_local_policy_without_local_endpoints_closes_what_it_is_for() {
        let none = || Some(crate::model::Route::default());
        let outside = of(service(|service| {
            service.external.policy = TrafficPolicy::Local;
            service.ports[0].local = none();
        }));
        assert_eq!(flags(&outside, "192.0.2.1"), SERVICE_CLOSED_OUTSIDE);
        assert_eq!(flags(&outside, "0.0.0.0"), SERVICE_CLOSED_OUTSIDE);
        assert_eq!(flags(&outside, "10.96.0.1"), 0);
        let inside = of(service(|service| {
            service.internal = TrafficPolicy::Local;
            service.ports[0].local = none();
        }));
        assert_eq!(inside.sets.len(), 2);
        assert_eq!(flags(&inside, "192.0.2.1"), 0);
        assert_eq!(flags(&inside, "10.96.0.1"), SERVICE_CLOSED_OUTSIDE);
    }

    #[test]
    fn source_ranges_are_for_the_load_balancers_addresses() {
        let with = |ranges: &[&str]| {
            of(service(|service| {
                service.external.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
            }))
        };
        let ranges = |wanted: &Wanted| wanted.sets.values().next().unwrap().ranges.clone();
        let other = with(&["10.0.0.0/8"]);
        assert_eq!(flags(&other, "192.0.2.1"), SERVICE_RANGES);
        assert_eq!(flags(&other, "198.51.100.1"), 0);
        assert_eq!(ranges(&other), ["10.0.0.0/8".parse().unwrap()]);
        let node = with(&["203.0.113.0/24"]);
        assert_eq!(ranges(&node), ["192.0.2.1/32".parse().unwrap(), "203.0.113.0/24".parse().unwrap()]);
        assert_eq!(flags(&with(&["2001:db8::/32"]), "192.0.2.1"), 0, "the other family's");
    }

    #[test]
    fn endpoints_of_a_target_that_hashes_are_one_draw() {
        use crate::model::{Balancer, Route, RouteTarget, TrafficSettings};
        let name = ServiceName::new("default", "web");
        let endpoints = |from: u8, to: u8| -> Arc<[Endpoint]> {
            (from..to).map(|last| Endpoint::at(([10, 244, 1, last], 8080).into())).collect()
        };
        let plain = RouteTarget::whole(name.clone(), 80, 10, endpoints(1, 3));
        let mut hashed = RouteTarget::whole(name.clone(), 80, 30, endpoints(3, 6));
        let settings = TrafficSettings { balancer: Balancer::SourceIp, ..TrafficSettings::default() };
        hashed.settings = Arc::new(settings);
        let route = Route::new(None, vec![plain, hashed]);
        let wanted = of(service(|service| {
            service.ports[0].route = route.clone();
            service.affinity_seconds = Some(60);
        }));
        let set = wanted.sets.values().next().unwrap();
        assert_eq!((set.slots.len(), drawn(&set.slots)), (3 + 2_039, 3));
        assert_eq!(set.members.len(), 5, "the table itself is no backend");
        let table = set.slots.iter().find(|slot| slot.flags & BACKEND_TABLE != 0).unwrap();
        assert_eq!(table.table(), (3, 2_039));
        // Kernel and agent send a client to the same endpoint, whatever was drawn before.
        for client in 0..500 {
            for random in [0, u64::MAX / 7, u64::MAX / 2, u64::MAX] {
                let mut index = mesh_common::pick::slot(random, drawn(&set.slots));
                let first = set.slots[index as usize];
                if !mesh_common::pick::stays(random, first.threshold) {
                    index = first.alias;
                }
                let mut slot = set.slots[index as usize];
                if slot.flags & BACKEND_TABLE != 0 {
                    let (first, length) = slot.table();
                    slot = set.slots[(first + mesh_common::pick::entry(client, length)) as usize];
                }
                let agents = route.v4.pick(random, client).unwrap().endpoint.as_ref().unwrap();
                assert_eq!(ip_of(slot.address), agents.address.ip(), "{client} {random}");
            }
        }
    }

    #[test]
    fn what_kube_proxy_would_send_elsewhere_is_captured() {
        let flags = |translates: bool, change: fn(&mut Service)| {
            let service = Arc::new(service(change));
            let mut snapshot = Snapshot::default();
            snapshot.frontends.extend(service.frontends().map(|frontend| (frontend, Arc::clone(&service))));
            flags(&wanted(&service, &snapshot, &[], translates), "10.96.0.1")
        };
        let routed = |service: &mut Service| service.ports[0].route.rule = Some("default/out".into());
        let listed_strict = |service: &mut Service| {
            let strict = Endpoint {
                enrolled: true,
                mode: Mode::Strict,
                ..Endpoint::at("10.244.1.9:8080".parse().unwrap())
            };
            service.ports[0].listed = Arc::new([strict]);
        };
        for (name, change, expected) in [
            ("nothing is said", (|_| {}) as fn(&mut Service), 0),
            ("a route", routed, SERVICE_CAPTURE),
            ("a strict endpoint that no route leads to", listed_strict, SERVICE_CAPTURE | SERVICE_STRICT),
        ] {
            assert_eq!(flags(true, change), 0, "{name}, translated here");
            assert_eq!(flags(false, change), expected, "{name}, left to kube-proxy");
        }
    }

    #[test]
    fn members_are_kept_for_affinity_and_udp() {
        let wanted = of(service(|service| service.affinity_seconds = Some(60)));
        assert_eq!(flags(&wanted, "10.96.0.1"), SERVICE_MEMBERS);
        assert_eq!(wanted.sets.values().next().unwrap().members.len(), 1);
        let wanted = of(service(|service| service.ports[0].protocol = Protocol::Udp));
        assert_eq!(flags(&wanted, "10.96.0.1"), SERVICE_MEMBERS);
    }
}
