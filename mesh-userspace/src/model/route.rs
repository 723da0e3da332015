//! Where connections to a service port go: endpoints, the weighted sets that a connection is drawn from, and the routes that
//! decide between them.

use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    AliasTable, Balancer, Connecting, ConnectionMatch, Draw, Locality, Maglev, Mode, NodeName, RouteActions,
    ServiceName, Spread, TrafficPolicy, TrafficSettings, WorkloadUid,
};

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
    /// Region, zone and sub-zone as far as they are known (`topology.kubernetes.io/*` of its node, `locality` of a
    /// `WorkloadEntry`); kept where a `DestinationRule` minds the locality, so that other endpoints do not carry it.
    pub locality: Option<Arc<Locality>>,
    /// Its share among the endpoints of its target (`WorkloadEntry.weight`); 1 where nothing is said.
    pub weight: u32,
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
            locality: None,
            weight: 1,
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

/// Endpoints of one address family with their weights, ready to be drawn from: first a lot by weight, a backend mostly; where a
/// target's endpoints are picked by the client (`consistentHash`) they are one lot, and the client's key decides within.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendSet {
    backends: Vec<Backend>,
    table: AliasTable,
    /// What the table's items are; empty: the backends, one by one.
    lots: Box<[Lot]>,
}

/// What is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lot {
    /// The backend with this index.
    One(usize),
    /// One of several.
    Table(Table),
}

/// Backends of one target, of which each client has its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The target's index in its route.
    pub target: usize,
    /// Index of the first of the backends.
    pub first: usize,
    /// Over them.
    pub maglev: Maglev,
}

impl BackendSet {
    /// A set of these; members of weight zero are left out.
    pub fn new(mut backends: Vec<Backend>) -> Self {
        backends.retain(|backend| backend.weight > 0);
        backends.shrink_to_fit();
        let weights: Vec<u64> = backends.iter().map(|backend| backend.weight).collect();
        Self { table: AliasTable::new(&weights), backends, lots: Box::default() }
    }

    /// The endpoints of a family that these targets have.
    pub fn of(targets: &[RouteTarget], family: impl Fn(&Endpoint) -> bool) -> Self {
        let parts = weigh(targets, family);
        let by_client = |target: usize, part: &[Backend]| {
            targets[target].settings.balancer == Balancer::SourceIp && part.len() > 1
        };
        if !parts.iter().any(|(target, part)| by_client(*target, part)) {
            return Self::new(parts.into_iter().flat_map(|(_, part)| part).collect());
        }
        let (mut backends, mut lots, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (target, part) in parts {
            if by_client(target, &part) {
                let member = |backend: &Backend| {
                    let endpoint = backend.endpoint.as_ref()?;
                    Some((endpoint.address, backend.weight))
                };
                let maglev = Maglev::new(&part.iter().filter_map(member).collect::<Vec<_>>());
                weights.push(part.iter().map(|backend| backend.weight).sum());
                lots.push(Lot::Table(Table { target, first: backends.len(), maglev }));
            } else {
                weights.extend(part.iter().map(|backend| backend.weight));
                lots.extend((backends.len()..).take(part.len()).map(Lot::One));
            }
            backends.extend(part);
        }
        backends.shrink_to_fit();
        Self { table: AliasTable::new(&weights), backends, lots: lots.into() }
    }

    /// The members.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// What is drawn from, each with its entry of the alias table.
    pub fn lots(&self) -> impl Iterator<Item = (&Draw, Lotted<'_>)> {
        self.table.slots().iter().enumerate().map(|(index, draw)| {
            let lot = match self.lots.get(index) {
                None => Lotted::One(&self.backends[index]),
                Some(Lot::One(backend)) => Lotted::One(&self.backends[*backend]),
                Some(Lot::Table(table)) => Lotted::Table(table),
            };
            (draw, lot)
        })
    }

    /// Whether there is nothing to pick from.
    pub const fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// The member that a random number picks for the client with this key ([`Maglev::client`]).
    pub fn pick(&self, random: u64, client: u64) -> Option<&Backend> {
        let lot = self.table.pick(random)?;
        match self.lots.get(lot) {
            None => self.backends.get(lot),
            Some(Lot::One(backend)) => self.backends.get(*backend),
            Some(Lot::Table(table)) => self.in_table(table, client),
        }
    }

    /// The backend of a table that a client is sent to.
    pub fn in_table(&self, table: &Table, client: u64) -> Option<&Backend> {
        table.maglev.pick(client).and_then(|member| self.backends.get(table.first + member))
    }

    /// The table of the route's target with this index, where its endpoints are picked by the client.
    pub fn table_of(&self, target: usize) -> Option<&Table> {
        self.lots.iter().find_map(|lot| match lot {
            Lot::Table(table) if table.target == target => Some(table),
            Lot::Table(_) | Lot::One(_) => None,
        })
    }

    /// Whether the client's key decides of any of its connections.
    pub fn minds_the_client(&self) -> bool {
        !self.lots.is_empty()
    }

    /// Whether an enrolled client's connections must go through the agent.
    pub fn needs_agent(&self) -> bool {
        self.backends.iter().any(|backend| backend.endpoint.as_ref().is_some_and(Endpoint::in_mesh))
    }
}

/// What is drawn, with what it stands for.
#[derive(Clone, Copy, Debug)]
pub enum Lotted<'a> {
    /// A backend.
    One(&'a Backend),
    /// Several.
    Table(&'a Table),
}

/// A weighted destination of a route, resolved.
#[derive(Clone, Debug, PartialEq)]
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
    /// What the `DestinationRule`s ask of connections to it: port over subset over host.
    pub settings: Arc<TrafficSettings>,
    /// How its share is spread over its endpoints; `None`: by their weights alone.
    pub spread: Option<Arc<Spread>>,
}

impl RouteTarget {
    /// All endpoints of a service's port, of which no rule asks anything.
    pub fn whole(service: ServiceName, port: u16, weight: u32, endpoints: Arc<[Endpoint]>) -> Self {
        Self {
            service,
            port,
            subset: None,
            weight,
            endpoints,
            settings: TrafficSettings::none(),
            spread: None,
        }
    }
}

/// Where connections to a service port go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Route {
    /// `NAMESPACE/NAME` of the resource that says so; `None`: no route, all endpoints of the port alike.
    pub rule: Option<Arc<str>>,
    /// The targets in the order written.
    pub targets: Vec<RouteTarget>,
    /// What is done to connections that take it.
    pub actions: Arc<RouteActions>,
    /// IPv4 endpoints of all targets, weighted.
    pub v4: BackendSet,
    /// IPv6 endpoints of all targets, weighted.
    pub v6: BackendSet,
}

/// A route for some connections only: it goes before those after it and before [`ServicePort::route`](super::ServicePort).
/// The agent alone can tell whether it holds, so that it is for enrolled clients.
#[derive(Clone, Debug, PartialEq)]
pub struct ConditionalRoute {
    /// It holds where one of these does.
    pub matches: Vec<ConnectionMatch>,
    /// Where connections go under the policy Cluster.
    pub route: Route,
    /// Where they go under the policy Local, as [`ServicePort::local`](super::ServicePort).
    pub local: Option<Route>,
}

impl ConditionalRoute {
    /// Whether it holds for a connection.
    pub fn holds(&self, connection: &Connecting<'_>) -> bool {
        self.matches.iter().any(|one| one.holds(connection))
    }

    /// Both routes.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        iter::once(&self.route).chain(&self.local)
    }

    /// Where connections go under a policy.
    pub fn route(&self, policy: TrafficPolicy) -> &Route {
        match (policy, &self.local) {
            (TrafficPolicy::Local, Some(local)) => local,
            _ => &self.route,
        }
    }
}

impl Route {
    /// A route to these targets.
    pub fn new(rule: Option<Arc<str>>, targets: Vec<RouteTarget>) -> Self {
        let v4 = BackendSet::of(&targets, |endpoint| endpoint.address.is_ipv4());
        let v6 = BackendSet::of(&targets, |endpoint| endpoint.address.is_ipv6());
        Self { rule, targets, actions: RouteActions::none(), v4, v6 }
    }

    /// The same, with what is done to connections that take it.
    #[must_use]
    pub fn with_actions(self, actions: Arc<RouteActions>) -> Self {
        Self { actions, ..self }
    }

    /// The weighted set for clients that asked for an address of this family.
    pub const fn backends(&self, asked: IpAddr) -> &BackendSet {
        if asked.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

/// Spreads each target's weight over its endpoints, exactly: weights are scaled by the least common multiple of all
/// denominators. A target without endpoints keeps its share as a backend that refuses, where another target has
/// some; with none at all the set is empty.
pub fn combine_weights(targets: &[RouteTarget], family: impl Fn(&Endpoint) -> bool) -> Vec<Backend> {
    weigh(targets, family).into_iter().flat_map(|(_, part)| part).collect()
}

/// The same, target by target, each with its index.
fn weigh(targets: &[RouteTarget], family: impl Fn(&Endpoint) -> bool) -> Vec<(usize, Vec<Backend>)> {
    let members: Vec<(usize, u64, Vec<Share<'_>>)> = targets
        .iter()
        .enumerate()
        .filter(|(_, target)| target.weight > 0)
        .map(|(index, target)| (index, u64::from(target.weight), shares(target, &family)))
        .collect();
    if members.iter().all(|(_, _, shares)| shares.is_empty()) {
        return Vec::new();
    }
    let mut denominators = members.iter().flat_map(|(_, _, shares)| shares).map(|share| share.of);
    let scale = denominators
        .try_fold(1_u64, |multiple, count| {
            (multiple / gcd(multiple, count)).checked_mul(count).filter(|&scale| scale < 1 << 24)
        })
        // Denominators without a small common multiple: an error below one in 2²⁴ of a share.
        .unwrap_or(1 << 24);
    let part = |(index, weight, shares): (usize, u64, Vec<Share<'_>>)| {
        if shares.is_empty() {
            return (index, vec![Backend { endpoint: None, weight: weight * scale }]);
        }
        let backend = |Share { endpoint, part, of }: Share<'_>| {
            let whole = u128::from(weight) * u128::from(scale) * u128::from(part) / u128::from(of);
            let weight = u64::try_from(whole).unwrap_or(u64::MAX).max(1);
            Backend { endpoint: Some(endpoint.clone()), weight }
        };
        (index, shares.into_iter().map(backend).collect())
    };
    members.into_iter().map(part).collect()
}

/// An endpoint's part of what its target gets.
struct Share<'a> {
    endpoint: &'a Endpoint,
    part: u64,
    of: u64,
}

/// The endpoints of a family that get connections while all are well, with their parts: those of the first priority that has
/// some.
fn shares<'a>(target: &'a RouteTarget, family: &impl Fn(&Endpoint) -> bool) -> Vec<Share<'a>> {
    let plain = Spread::default();
    let spread = target.spread.as_deref().unwrap_or(&plain);
    let members: Vec<(&Endpoint, usize)> = target
        .endpoints
        .iter()
        .enumerate()
        .filter(|(_, endpoint)| family(endpoint) && endpoint.weight > 0)
        .map(|(index, endpoint)| (endpoint, spread.group(index)))
        .collect();
    let priority = members.iter().map(|&(_, group)| spread.priority(group)).min();
    let members: Vec<_> =
        members.into_iter().filter(|&(_, group)| Some(spread.priority(group)) == priority).collect();
    let sum_of = |group: usize| -> u64 {
        members
            .iter()
            .filter(|(_, other)| *other == group)
            .map(|(endpoint, _)| u64::from(endpoint.weight))
            .sum()
    };
    let mut groups: Vec<usize> = members.iter().map(|&(_, group)| group).collect();
    groups.sort_unstable();
    groups.dedup();
    let sums: Vec<(usize, u64)> = groups.iter().map(|&group| (group, sum_of(group))).collect();
    let by_endpoint: u64 = sums.iter().map(|(_, sum)| sum).sum();
    let by_group: u64 = groups.iter().map(|&group| u64::from(spread.weight(group))).sum();
    let share = |(endpoint, group): (&'a Endpoint, usize)| {
        let own = u64::from(endpoint.weight);
        if by_group == 0 {
            return Some(Share { endpoint, part: own, of: by_endpoint });
        }
        let sum = sums.iter().find(|(other, _)| *other == group).map_or(1, |(_, sum)| *sum);
        let part = u64::from(spread.weight(group)).saturating_mul(own);
        (part > 0).then(|| Share { endpoint, part, of: by_group.saturating_mul(sum) })
    };
    members.into_iter().filter_map(share).collect()
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
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
        RouteTarget::whole(service, 80, weight, endpoints.map(endpoint).collect())
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

    #[test]
    fn a_target_is_spread_by_priority_group_and_endpoint() {
        use super::super::Group;
        let weights = |target: RouteTarget| -> Vec<(u8, u64)> {
            let last = |address: SocketAddr| match address.ip() {
                IpAddr::V4(address) => address.octets()[3],
                IpAddr::V6(_) => 0,
            };
            let backends = combine_weights(&[target], |_| true);
            backends.iter().map(|one| (last(one.endpoint.as_ref().unwrap().address), one.weight)).collect()
        };
        let spread = |groups: &[(u8, u32)], of: &[u16]| {
            let groups =
                groups.iter().map(|&(priority, weight)| Group { priority, weight, ..Group::default() });
            Some(Arc::new(Spread { groups: groups.collect(), of: of.into() }))
        };
        let mut heavy = target(1, 0..3);
        heavy.endpoints = heavy
            .endpoints
            .iter()
            .cloned()
            .map(|one| Endpoint {
                weight: 1 + u32::from(one.address.ip() == endpoint(2).address.ip()),
                ..one
            })
            .collect();
        assert_eq!(weights(heavy), [(0, 1), (1, 1), (2, 2)]);
        let nearest = RouteTarget { spread: spread(&[(1, 0), (0, 0)], &[0, 1, 1]), ..target(1, 0..3) };
        assert_eq!(weights(nearest), [(1, 1), (2, 1)]);
        let shared = RouteTarget { spread: spread(&[(0, 80), (0, 20)], &[0, 1, 1]), ..target(1, 0..3) };
        assert_eq!(weights(shared), [(0, 160), (1, 20), (2, 20)]);
        let closed = RouteTarget { spread: spread(&[(0, 0), (0, 100)], &[0, 1, 1]), ..target(1, 0..3) };
        assert_eq!(weights(closed), [(1, 100), (2, 100)]);
    }

    /// What each endpoint should get of all connections, by the definition: the share of its target, of its group among those of
    /// the first priority that has endpoints, and its own weight in the group.
    fn naive(targets: &[RouteTarget]) -> Vec<Option<f64>> {
        let all: f64 = targets.iter().map(|target| f64::from(target.weight)).sum();
        let mut shares = Vec::new();
        for target in targets.iter().filter(|target| target.weight > 0) {
            let share = f64::from(target.weight) / all;
            let spread = target.spread.as_deref().unwrap();
            let group = |index: usize| &spread.groups[usize::from(spread.of[index])];
            let counted = |index: &usize| target.endpoints[*index].weight > 0;
            let able: Vec<usize> = (0..target.endpoints.len()).filter(counted).collect();
            let Some(first) = able.iter().map(|&index| group(index).priority).min() else {
                shares.push(None);
                continue;
            };
            let able: Vec<usize> = able.into_iter().filter(|&index| group(index).priority == first).collect();
            let weight = |index: usize| f64::from(target.endpoints[index].weight);
            let groups: std::collections::BTreeSet<u16> =
                able.iter().map(|&index| spread.of[index]).collect();
            let by_group: f64 =
                groups.iter().map(|&one| f64::from(spread.groups[usize::from(one)].weight)).sum();
            for &index in &able {
                let fellows = able.iter().filter(|&&other| spread.of[other] == spread.of[index]);
                let own = if by_group == 0.0 {
                    weight(index) / able.iter().map(|&other| weight(other)).sum::<f64>()
                } else {
                    f64::from(group(index).weight) / by_group * weight(index)
                        / fellows.map(|&other| weight(other)).sum::<f64>()
                };
                if own > 0.0 {
                    shares.push(Some(share * own));
                }
            }
        }
        shares
    }

    proptest! {
        #[test]
        fn shares_are_those_of_priority_group_and_weight(
            shape in prop::collection::vec(
                (0_u32..100, prop::collection::vec((0_u32..5, 0_u16..4), 0..6), prop::collection::vec((0_u8..3, 0_u32..4), 4)),
                1..5,
            )
        ) {
            use super::super::Group;
            let targets: Vec<RouteTarget> = shape.into_iter().enumerate().map(|(number, (weight, endpoints, groups))| {
                let mut target = target(weight, number * 10..number * 10 + endpoints.len());
                let with_weight = |(one, (weight, _)): (&Endpoint, &(u32, u16))| Endpoint { weight: *weight, ..one.clone() };
                target.endpoints = target.endpoints.iter().zip(&endpoints).map(with_weight).collect();
                let groups = groups.iter().map(|&(priority, weight)| Group { priority, weight, ..Group::default() });
                let of = endpoints.iter().map(|(_, group)| *group);
                target.spread = Some(Arc::new(Spread { groups: groups.collect(), of: of.collect() }));
                target
            }).collect();
            let backends = combine_weights(&targets, |_| true);
            let wanted = naive(&targets);
            if wanted.iter().all(Option::is_none) {
                prop_assert!(backends.is_empty());
                return Ok(());
            }
            let total: u64 = backends.iter().map(|backend| backend.weight).sum();
            prop_assert_eq!(backends.len(), wanted.len());
            for (backend, wanted) in backends.iter().zip(wanted) {
                let share = backend.weight as f64 / total as f64;
                prop_assert_eq!(backend.endpoint.is_some(), wanted.is_some());
                prop_assert!(wanted.is_none_or(|wanted| (share - wanted).abs() < 1e-5), "{} of {:?}", share, wanted);
            }
        }

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
