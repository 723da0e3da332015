//! Services as the node's API tells them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use super::report::seconds;
use super::route_words;
use crate::admin::api::{BackendReport, LiveReport, ServicePortReport, ServiceReport};
use crate::balance::{Balancers, Key, LiveState};
use crate::datapath::BackendCount;
use crate::model::{
    Backend, BackendSet, Endpoint, Protocol, Route, Service, ServiceName, ServicePort, Snapshot,
    TrafficPolicy,
};

/// Connections of one service by port and backend.
type Counts = HashMap<(u16, Protocol, SocketAddr), u64>;

/// Every service, with what the kernel has counted and what the agent knows of endpoints.
pub(super) fn all(
    snapshot: &Snapshot,
    counts: &[(ServiceName, Vec<BackendCount>)],
    balancers: &Balancers,
) -> Vec<ServiceReport> {
    let counts: HashMap<&ServiceName, &Vec<BackendCount>> =
        counts.iter().map(|(name, counts)| (name, counts)).collect();
    let none = Vec::new();
    let of_service = |service: &Service| {
        let mut sums = Counts::new();
        for count in counts.get(&service.name).copied().unwrap_or(&none) {
            // The sets of both policies lead to the same backends.
            *sums.entry((count.port, count.protocol, count.backend)).or_default() += count.connections;
        }
        report(snapshot, service, &sums, balancers)
    };
    snapshot.services.values().map(|service| of_service(service)).collect()
}

fn report(snapshot: &Snapshot, service: &Service, counts: &Counts, balancers: &Balancers) -> ServiceReport {
    let external = &service.external;
    ServiceReport {
        namespace: service.name.namespace.to_string(),
        name: service.name.name.to_string(),
        kind: service.kind,
        host: service.host.to_string(),
        addresses: service.addresses.clone(),
        external_addresses: external.addresses.clone(),
        load_balancer: external.load_balancer.clone(),
        source_ranges: external.source_ranges.iter().map(ToString::to_string).collect(),
        internal_policy: service.internal,
        external_policy: external.policy,
        health_check_port: external.health_check_port,
        affinity_seconds: service.affinity_seconds,
        ports: service
            .ports
            .iter()
            .map(|port| port_report(snapshot, service, port, counts, balancers))
            .collect(),
    }
}

fn port_report(
    snapshot: &Snapshot,
    service: &Service,
    port: &ServicePort,
    counts: &Counts,
    balancers: &Balancers,
) -> ServicePortReport {
    // Without an address of the cluster's everybody comes from outside.
    let policies = [service.internal, service.external.policy];
    let local = policies.contains(&TrafficPolicy::Local).then(|| port.route(TrafficPolicy::Local));
    let count = |address| counts.get(&(port.port, port.protocol, address)).copied().unwrap_or(0);
    let mut backends: Vec<BackendReport> =
        [&port.route.v4, &port.route.v6].into_iter().flat_map(|set| of_set(snapshot, set)).collect();
    // What takes nothing under Cluster may under Local, or not at all.
    let idle = port.listed.iter().filter(|endpoint| !has(&port.route, endpoint));
    backends.extend(idle.map(|endpoint| of_endpoint(snapshot, Some(endpoint), 0, 0)));
    let states = live_states(balancers, port);
    for backend in &mut backends {
        let Some(address) = backend.address else { continue };
        backend.connections = count(address);
        backend.live = states.get(&address).map(live_report);
        backend.local = local.is_some_and(|route| sets(route).any(|one| one.address == address));
    }
    ServicePortReport {
        name: port.name.to_string(),
        port: port.port,
        protocol: port.protocol,
        node_port: port.node_port,
        rule: port.route.rule.as_ref().map(ToString::to_string),
        targets: route_words::targets(&port.route, |_| true),
        actions: route_words::actions(&port.route.actions),
        rules: port
            .rules
            .iter()
            .map(|rule| route_words::rule(rule, TrafficPolicy::Cluster, |_| true))
            .collect(),
        backends,
    }
}

/// What the agent knows of the endpoints of a port, by address: of all routes to it, the conditional ones too.
fn live_states(balancers: &Balancers, port: &ServicePort) -> HashMap<SocketAddr, LiveState> {
    let conditional = port.rules.iter().flat_map(|rule| &rule.route.targets);
    let mut states = HashMap::new();
    let mut known: Vec<Key> = Vec::new();
    for target in port.route.targets.iter().chain(conditional) {
        let key = Key::of(target);
        if known.contains(&key) {
            continue;
        }
        known.push(key);
        for state in balancers.states(target) {
            // An endpoint that is in several subsets has connections of each; it is left out where one leaves it out.
            states.entry(state.address).and_modify(|held: &mut LiveState| held.join(&state)).or_insert(state);
        }
    }
    states
}

fn live_report(state: &LiveState) -> LiveReport {
    LiveReport {
        open: state.open,
        begun: state.begun,
        failures: state.failures,
        ejections: state.ejections,
        ejected_until: state.ejected_for.map(|left| seconds(SystemTime::now() + left)),
    }
}

fn sets(route: &Route) -> impl Iterator<Item = &Endpoint> {
    let backends = route.v4.backends().iter().chain(route.v6.backends());
    backends.filter_map(|backend| backend.endpoint.as_ref())
}

fn has(route: &Route, endpoint: &Endpoint) -> bool {
    sets(route).any(|one| one.address == endpoint.address)
}

fn of_set(snapshot: &Snapshot, set: &BackendSet) -> Vec<BackendReport> {
    let total: u128 = set.backends().iter().map(|backend| u128::from(backend.weight)).sum();
    let report = |backend: &Backend| {
        let share = u128::from(backend.weight) * 1_000_000 / total.max(1);
        let share_ppm = u32::try_from(share).unwrap_or(u32::MAX);
        of_endpoint(snapshot, backend.endpoint.as_ref(), backend.weight, share_ppm)
    };
    set.backends().iter().map(report).collect()
}

fn of_endpoint(
    snapshot: &Snapshot,
    endpoint: Option<&Endpoint>,
    weight: u64,
    share_ppm: u32,
) -> BackendReport {
    let Some(endpoint) = endpoint else {
        return BackendReport { weight, share_ppm, ..BackendReport::default() };
    };
    let workload = endpoint.workload.as_ref().and_then(|uid| snapshot.workloads.get(uid));
    let node = endpoint.node.as_ref().or_else(|| workload.and_then(|workload| workload.node.as_ref()));
    BackendReport {
        address: Some(endpoint.address),
        weight,
        share_ppm,
        state: Some(endpoint.state),
        local: false,
        connections: 0,
        live: None,
        workload: endpoint.workload.as_ref().map(ToString::to_string),
        node: node.map(ToString::to_string),
        zone: endpoint.zone.as_ref().map(ToString::to_string),
        mode: endpoint.mode,
        enrolled: endpoint.enrolled,
    }
}
