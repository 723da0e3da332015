//! Services, their endpoints, and the weighted sets that a connection is drawn from.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{AliasTable, Frontend, Mode, NodeName, ServiceName, WorkloadUid};

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Recognised so that it can be reported; no plane carries it.
    Sctp,
}

impl Protocol {
    /// IANA number, as in the kernel maps.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => mesh_common::abi::TCP,
            Self::Udp => mesh_common::abi::UDP,
            Self::Sctp => 132,
        }
    }
}

/// What is said of an endpoint (`EndpointConditions` of `discovery.k8s.io/v1`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// Takes new connections.
    #[default]
    Ready,
    /// Still serves while it terminates: takes new connections where nothing else does.
    Terminating,
    /// Takes none; the connections that it has are left alone.
    Unready,
}

/// An address that serves a service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// The workload behind it, where it is one of this cluster's.
    pub workload: Option<WorkloadUid>,
    /// Whether that workload is enrolled.
    pub enrolled: bool,
    /// The workload's mTLS mode at this port.
    pub mode: Mode,
    /// Whether a policy may refuse the workload's clients ([`Workload::guarded`](super::Workload)).
    pub guarded: bool,
    /// Whether it takes connections.
    pub state: EndpointState,
    /// The node that it is on, where that is said.
    pub node: Option<NodeName>,
    /// The zone that it is in, where that is said.
    pub zone: Option<Arc<str>>,
}

impl Endpoint {
    /// A ready endpoint of which nothing else is known.
    pub const fn at(address: SocketAddr) -> Self {
        Self {
            address,
            workload: None,
            enrolled: false,
            mode: Mode::Permissive,
            guarded: false,
            state: EndpointState::Ready,
            node: None,
            zone: None,
        }
    }

    /// Whether an enrolled client must reach it through the agent.
    pub const fn in_mesh(&self) -> bool {
        self.enrolled && !matches!(self.mode, Mode::Disable)
    }

    /// Whether it is on `node`.
    pub fn is_on(&self, node: &NodeName) -> bool {
        self.node.as_ref() == Some(node)
    }
}

/// One member of a [`BackendSet`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The endpoint; `None` for a share of the traffic that has nowhere to go (a subset without endpoints).
    pub endpoint: Option<Endpoint>,
    /// Its share.
    pub weight: u64,
}

/// Endpoints of one address family with their weights, ready to be drawn from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendSet {
    backends: Vec<Backend>,
    table: AliasTable,
}

impl BackendSet {
    /// A set of these; members of weight zero are left out.
    pub fn new(mut backends: Vec<Backend>) -> Self {
        backends.retain(|backend| backend.weight > 0);
        backends.shrink_to_fit();
        let weights: Vec<u64> = backends.iter().map(|backend| backend.weight).collect();
        Self { table: AliasTable::new(&weights), backends }
    }

    /// The members.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The alias table over [`Self::backends`].
    pub const fn table(&self) -> &AliasTable {
        &self.table
    }

    /// Whether there is nothing to pick from.
    pub const fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// The member that a random number picks.
    pub fn pick(&self, random: u64) -> Option<&Backend> {
        self.table.pick(random).map(|index| &self.backends[index])
    }

    /// Whether an enrolled client's connections must go through the agent.
    pub fn needs_agent(&self) -> bool {
        self.backends.iter().any(|backend| backend.endpoint.as_ref().is_some_and(Endpoint::in_mesh))
    }
}

/// A weighted destination of a route, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTarget {
    /// The destination's service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// The `DestinationRule` subset, where one is named.
    pub subset: Option<Arc<str>>,
    /// Weight as written.
    pub weight: u32,
    /// Endpoints of that port in that subset.
    pub endpoints: Arc<[Endpoint]>,
}

/// Where connections to a service port go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// `NAMESPACE/NAME` of the resource that says so; `None`: no route, all endpoints of the port alike.
    pub rule: Option<Arc<str>>,
    /// The targets in the order written.
    pub targets: Vec<RouteTarget>,
    /// IPv4 endpoints of all targets, weighted.
    pub v4: BackendSet,
    /// IPv6 endpoints of all targets, weighted.
    pub v6: BackendSet,
}

impl Route {
    /// A route to these targets.
    pub fn new(rule: Option<Arc<str>>, targets: Vec<RouteTarget>) -> Self {
        let v4 = BackendSet::new(combine_weights(&targets, |endpoint| endpoint.address.is_ipv4()));
        let v6 = BackendSet::new(combine_weights(&targets, |endpoint| endpoint.address.is_ipv6()));
        Self { rule, targets, v4, v6 }
    }

    /// The weighted set for clients that asked for an address of this family.
    pub const fn backends(&self, asked: IpAddr) -> &BackendSet {
        if asked.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

/// Spreads each target's weight evenly over its endpoints, exactly: weights are scaled by the least common multiple of
/// the endpoint counts. A target without endpoints keeps its share as a backend that refuses, where another target has
/// some; with none at all the set is empty.
pub fn combine_weights(targets: &[RouteTarget], family: impl Fn(&Endpoint) -> bool) -> Vec<Backend> {
    let members: Vec<(u64, Vec<&Endpoint>)> = targets
        .iter()
        .filter(|target| target.weight > 0)
        .map(|target| (u64::from(target.weight), target.endpoints.iter().filter(|e| family(e)).collect()))
        .collect();
    if members.iter().all(|(_, endpoints)| endpoints.is_empty()) {
        return Vec::new();
    }
    let scale = members
        .iter()
        .map(|(_, endpoints)| endpoints.len().max(1) as u64)
        .try_fold(1_u64, |multiple, count| {
            (multiple / gcd(multiple, count)).checked_mul(count).filter(|&scale| scale < 1 << 24)
        })
        // Endpoint counts without a small common multiple: an error below one in 2²⁴ of a share.
        .unwrap_or(1 << 24);
    let mut backends = Vec::new();
    for (weight, endpoints) in members {
        if endpoints.is_empty() {
            backends.push(Backend { endpoint: None, weight: weight * scale });
        }
        let each = (weight * scale / endpoints.len().max(1) as u64).max(1);
        backends.extend(
            endpoints.into_iter().map(|endpoint| Backend { endpoint: Some(endpoint.clone()), weight: each }),
        );
    }
    backends
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty for the only port of a service.
    pub name: Arc<str>,
    /// Port number that clients ask for.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The port on every node that leads here.
    pub node_port: Option<u16>,
    /// All endpoints that are said to be there, whatever their state and whatever the route.
    pub listed: Arc<[Endpoint]>,
    /// Those that take connections now by kube-proxy's rules for the policy Cluster (state, then topology), whatever the
    /// route.
    pub endpoints: Arc<[Endpoint]>,
    /// Where connections go under the policy Cluster.
    pub route: Route,
    /// Where they go under the policy Local: to endpoints of this node alone. There where one of the service's policies
    /// is Local.
    pub local: Option<Route>,
}

impl ServicePort {
    /// A port without a name whose endpoints all take connections, alike.
    pub fn plain(service: &ServiceName, port: u16, protocol: Protocol, endpoints: Arc<[Endpoint]>) -> Self {
        let target = RouteTarget {
            service: service.clone(),
            port,
            subset: None,
            weight: 1,
            endpoints: Arc::clone(&endpoints),
        };
        Self {
            name: Arc::from(""),
            port,
            protocol,
            node_port: None,
            listed: Arc::clone(&endpoints),
            endpoints,
            route: Route::new(None, vec![target]),
            local: None,
        }
    }

    /// Where connections go under a policy.
    pub fn route(&self, policy: TrafficPolicy) -> &Route {
        match (policy, &self.local) {
            (TrafficPolicy::Local, Some(local)) => local,
            _ => &self.route,
        }
    }
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Those of the client's node (internal), or of the node that the client from outside came to (external).
    Local,
}

/// `spec.type`. Services of type `ExternalName` are left to DNS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServiceKind {
    /// Reached at its cluster addresses, if it has any.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// On a port of every node as well.
    NodePort,
    /// At the addresses of a load balancer as well.
    LoadBalancer,
}

/// How a service is reached from outside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// `externalTrafficPolicy`. Clients on this node are served by all endpoints all the same.
    pub policy: TrafficPolicy,
    /// `externalIPs`.
    pub addresses: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` where `ipMode` is VIP.
    pub load_balancer: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`: who may come to the load balancer's addresses; empty: everybody.
    pub source_ranges: Vec<IpNet>,
    /// `healthCheckNodePort`, where it is served.
    pub health_check_port: Option<u16>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// Fully qualified host, `NAME.NAMESPACE.svc.CLUSTER_DOMAIN`.
    pub host: Arc<str>,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// Cluster addresses; empty for a headless service.
    pub addresses: Vec<IpAddr>,
    /// Ports in the order written.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy`: clients in the cluster that ask for a cluster address.
    pub internal: TrafficPolicy,
    /// Clients outside.
    pub external: External,
    /// `sessionAffinity: ClientIP`: for how many seconds after it was last seen a client keeps its endpoint.
    pub affinity_seconds: Option<u32>,
}

impl Service {
    /// A service that only clients in the cluster reach.
    pub fn internal(
        name: ServiceName,
        host: Arc<str>,
        addresses: Vec<IpAddr>,
        ports: Vec<ServicePort>,
    ) -> Self {
        Self {
            name,
            host,
            kind: ServiceKind::ClusterIp,
            addresses,
            ports,
            internal: TrafficPolicy::Cluster,
            external: External::default(),
            affinity_seconds: None,
        }
    }

    /// All that clients can ask for to reach it.
    pub fn frontends(&self) -> impl Iterator<Item = Frontend> {
        let carried = self.ports.iter().filter(|port| port.protocol != Protocol::Sctp);
        carried.flat_map(|port| self.frontends_of(port))
    }

    /// All that clients can ask for to reach one of its ports.
    pub fn frontends_of(&self, port: &ServicePort) -> impl Iterator<Item = Frontend> {
        let External { addresses, load_balancer, .. } = &self.external;
        let (number, node_port, protocol) = (port.port, port.node_port, port.protocol);
        let own = self.addresses.iter().chain(addresses).chain(load_balancer);
        let own = own.map(move |&address| Frontend { address: Some(address), port: number, protocol });
        own.chain(node_port.map(|port| Frontend { address: None, port, protocol }))
    }

    /// The port with this number and protocol.
    pub fn port(&self, port: u16, protocol: Protocol) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port && candidate.protocol == protocol)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(last: usize) -> Endpoint {
        let address = SocketAddr::from(([10, 0, (last >> 8) as u8, last as u8], 80));
        Endpoint::at(address)
    }

    fn target(weight: u32, endpoints: std::ops::Range<usize>) -> RouteTarget {
        let service = ServiceName::new("default", "reviews");
        RouteTarget { service, port: 80, subset: None, weight, endpoints: endpoints.map(endpoint).collect() }
    }

    #[test]
    fn a_target_without_endpoints_keeps_its_share() {
        let backends = combine_weights(&[target(90, 0..3), target(10, 0..0)], |_| true);
        assert_eq!(backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [90, 90, 90, 30]);
        assert!(backends[3].endpoint.is_none());
    }

    #[test]
    fn without_any_endpoint_the_set_is_empty() {
        assert!(combine_weights(&[target(1, 0..0), target(1, 0..0)], |_| true).is_empty());
        assert!(combine_weights(&[target(1, 0..2)], |e| e.address.is_ipv6()).is_empty());
    }

    proptest! {
        #[test]
        fn every_target_gets_exactly_its_weight(
            shape in prop::collection::vec((1_u32..1000, 1_usize..12), 1..6)
        ) {
            let mut first = 0;
            let targets: Vec<_> = shape.iter().map(|&(weight, count)| {
                first += count;
                target(weight, first - count..first)
            }).collect();
            let backends = combine_weights(&targets, |_| true);
            let total: u64 = backends.iter().map(|backend| backend.weight).sum();
            let sum: u64 = shape.iter().map(|&(weight, _)| u64::from(weight)).sum();
            let mut rest = backends.iter();
            for (weight, count) in shape {
                let share: u64 = rest.by_ref().take(count).map(|backend| backend.weight).sum();
                prop_assert_eq!(share * sum, u64::from(weight) * total);
            }
        }
    }
}
