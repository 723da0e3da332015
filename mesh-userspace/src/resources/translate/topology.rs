//! Which of a service's endpoints take connections: kube-proxy's `CategorizeEndpoints` (pkg/proxy/topology.go, v1.36).
//!
//! Each address family is decided by itself, as kube-proxy runs once a family; Cluster and Local are decided apart.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::endpoints::Member;
use crate::model::{EndpointState, NodeName, TrafficPolicy};

/// The node on which connections are made.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::resources) struct Here<'a> {
    pub(in crate::resources) node: Option<&'a NodeName>,
    pub(in crate::resources) zone: Option<&'a str>,
}

/// For whose clients an endpoint is meant (`EndpointHints`); no name: for nobody's in particular.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::resources) struct Hints {
    pub(in crate::resources) nodes: Vec<NodeName>,
    pub(in crate::resources) zones: Vec<Arc<str>>,
}

/// Those of `members` that take connections. `members` come sorted by address, IPv4 first.
pub(in crate::resources) fn serving<'a>(
    members: &[&'a Member],
    policy: TrafficPolicy,
    here: Here<'_>,
) -> Vec<&'a Member> {
    let (v4, v6) = members.split_at(members.partition_point(|member| member.endpoint.address.is_ipv4()));
    let of_family = |family: &[&'a Member]| match policy {
        TrafficPolicy::Cluster => cluster(family, here),
        TrafficPolicy::Local => local(family, here),
    };
    let mut serving = of_family(v4);
    serving.extend(of_family(v6));
    serving
}

/// The ready ones that are meant for this node, or its zone, or else all ready ones; where none is ready, those that
/// still serve while they terminate.
fn cluster<'a>(members: &[&'a Member], here: Here<'_>) -> Vec<&'a Member> {
    let ready = in_state(members, EndpointState::Ready);
    if ready.is_empty() {
        return in_state(members, EndpointState::Terminating);
    }
    // A hint counts only where every ready endpoint has one and at least one is meant for clients here.
    let for_node = |member: &&&Member| {
        hints(member).is_some_and(|hints| hints.nodes.iter().any(|node| Some(node) == here.node))
    };
    let for_zone = |member: &&&Member| {
        hints(member).is_some_and(|hints| hints.zones.iter().any(|zone| Some(&**zone) == here.zone))
    };
    let all_have = |has: fn(&Hints) -> bool| ready.iter().all(|member| hints(member).is_some_and(has));
    let mut chosen: Vec<&Member> = Vec::new();
    if all_have(|hints| !hints.nodes.is_empty()) {
        chosen = ready.iter().filter(for_node).copied().collect();
    }
    if chosen.is_empty() && all_have(|hints| !hints.zones.is_empty()) {
        chosen = ready.iter().filter(for_zone).copied().collect();
    }
    if chosen.is_empty() { ready } else { chosen }
}

/// Those on this node: the ready ones, else those that still serve while they terminate.
fn local<'a>(members: &[&'a Member], here: Here<'_>) -> Vec<&'a Member> {
    let is_here = |member: &&&Member| here.node.is_some_and(|node| member.endpoint.is_on(node));
    let own: Vec<&Member> = members.iter().filter(is_here).copied().collect();
    let ready = in_state(&own, EndpointState::Ready);
    if ready.is_empty() { in_state(&own, EndpointState::Terminating) } else { ready }
}

fn in_state<'a>(members: &[&'a Member], state: EndpointState) -> Vec<&'a Member> {
    members.iter().filter(|member| member.endpoint.state == state).copied().collect()
}

fn hints(member: &Member) -> Option<&Hints> {
    member.hints.as_deref()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::model::Endpoint;

    /// An endpoint as kube-proxy has it.
    #[derive(Clone, Debug)]
    struct Naive {
        ready: bool,
        serving: bool,
        terminating: bool,
        node: &'static str,
        node_hints: BTreeSet<&'static str>,
        zone_hints: BTreeSet<&'static str>,
    }

    impl Naive {
        fn member(&self, index: usize, v6: bool) -> Member {
            let index = u16::try_from(index).unwrap();
            let address = if v6 {
                SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, index], 80))
            } else {
                SocketAddr::from(([10, 0, 0, index as u8], 80))
            };
            let state = match (self.ready, self.serving && self.terminating) {
                (true, _) => EndpointState::Ready,
                (false, true) => EndpointState::Terminating,
                (false, false) => EndpointState::Unready,
            };
            let node = (!self.node.is_empty()).then(|| NodeName::new(self.node));
            let hints = Hints {
                nodes: self.node_hints.iter().map(|&name| NodeName::new(name)).collect(),
                zones: self.zone_hints.iter().map(|&name| name.into()).collect(),
            };
            let hints = (hints != Hints::default()).then(|| Box::new(hints));
            Member { endpoint: Endpoint { state, node, ..Endpoint::at(address) }, workload: None, hints }
        }
    }

    /// `topologyModeFromHints`, line by line.
    fn topology_mode(endpoints: &[Naive], node: &str, zone: &str) -> &'static str {
        let mut has_ready = false;
        let (mut for_node, mut all_node) = (false, true);
        let (mut for_zone, mut all_zone) = (false, true);
        for endpoint in endpoints {
            if !endpoint.ready {
                continue;
            }
            has_ready = true;
            if endpoint.node_hints.is_empty() {
                all_node = false;
            } else if endpoint.node_hints.contains(node) {
                for_node = true;
            }
            if endpoint.zone_hints.is_empty() {
                all_zone = false;
            } else if endpoint.zone_hints.contains(zone) {
                for_zone = true;
            }
        }
        if !has_ready {
            return "";
        }
        if all_node && for_node {
            return "PreferSameNode";
        }
        if all_zone && for_zone {
            return "PreferSameZone";
        }
        ""
    }

    /// `CategorizeEndpoints`, line by line: the indexes of the cluster and of the local endpoints.
    fn categorize(endpoints: &[Naive], node: &str, zone: &str) -> (Vec<usize>, Vec<usize>) {
        let filter = |keep: &dyn Fn(&Naive) -> bool| -> Vec<usize> {
            endpoints.iter().enumerate().filter(|(_, one)| keep(one)).map(|(index, _)| index).collect()
        };
        let is_local = |one: &Naive| !node.is_empty() && one.node == node;
        let mode = topology_mode(endpoints, node, zone);
        let available = |one: &Naive| match mode {
            "PreferSameNode" => one.node_hints.contains(node),
            "PreferSameZone" => one.zone_hints.contains(zone),
            _ => true,
        };
        let mut cluster = filter(&|one| one.ready && available(one));
        if cluster.is_empty() {
            cluster = filter(&|one| one.serving && one.terminating);
        }
        let (mut has_local_ready, mut has_local_terminating) = (false, false);
        for one in endpoints {
            if one.ready {
                has_local_ready |= is_local(one);
            } else if one.serving && one.terminating {
                has_local_terminating |= is_local(one);
            }
        }
        let local = if has_local_ready {
            filter(&|one| is_local(one) && one.ready)
        } else if has_local_terminating {
            filter(&|one| is_local(one) && one.serving && one.terminating)
        } else {
            Vec::new()
        };
        (cluster, local)
    }

    fn naive() -> impl Strategy<Value = Naive> {
        let name = || prop::sample::select(vec!["", "a", "b"]);
        let names = || prop::collection::btree_set(prop::sample::select(vec!["a", "b", "c"]), 0..3);
        // Hints are seldom absent, or they would never count.
        let hints = || prop_oneof![1 => Just(BTreeSet::new()), 5 => names()];
        (prop::bool::weighted(0.6), any::<bool>(), any::<bool>(), name(), hints(), hints()).prop_map(
            |(ready, serving, terminating, node, node_hints, zone_hints)| Naive {
                ready,
                serving,
                terminating,
                node,
                node_hints,
                zone_hints,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn as_kube_proxy_categorizes(
            v4 in prop::collection::vec(naive(), 0..6),
            v6 in prop::collection::vec(naive(), 0..6),
            node in prop::sample::select(vec!["", "a", "b"]),
            zone in prop::sample::select(vec!["", "a", "b"]),
        ) {
            let members: Vec<Member> = v4.iter().enumerate().map(|(index, one)| one.member(index, false))
                .chain(v6.iter().enumerate().map(|(index, one)| one.member(index, true))).collect();
            let members: Vec<&Member> = members.iter().collect();
            let name = NodeName::new(node);
            let here = Here { node: (!node.is_empty()).then_some(&name), zone: (!zone.is_empty()).then_some(zone) };
            let (cluster_v4, local_v4) = categorize(&v4, node, zone);
            let (cluster_v6, local_v6) = categorize(&v6, node, zone);
            let wanted = |of_v4: Vec<usize>, of_v6: Vec<usize>| -> Vec<SocketAddr> {
                let all = of_v4.into_iter().chain(of_v6.into_iter().map(|index| v4.len() + index));
                all.map(|index| members[index].endpoint.address).collect()
            };
            let found = |policy| -> Vec<SocketAddr> {
                serving(&members, policy, here).iter().map(|member| member.endpoint.address).collect()
            };
            prop_assert_eq!(found(TrafficPolicy::Cluster), wanted(cluster_v4, cluster_v6));
            prop_assert_eq!(found(TrafficPolicy::Local), wanted(local_v4, local_v6));
        }
    }
}
