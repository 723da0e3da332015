//! What the snapshot wants of the node's namespace: addresses to be routed here, ports to be asked for health on. Kept
//! up to date at the cost of what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use imbl::ordmap::DiffItem;
use ipnet::IpNet;

use super::addresses::NodeAddresses;
use crate::model::{Service, ServiceName, Snapshot, Workload};

/// See the module.
#[derive(Default)]
pub(super) struct Demand {
    applied: Snapshot,
    /// External and load-balancer addresses, by how many services name them.
    external: BTreeMap<IpAddr, usize>,
    /// Addresses of pods and of other nodes.
    taken: BTreeMap<IpAddr, usize>,
    /// `healthCheckNodePort`s.
    health: BTreeMap<u16, ServiceName>,
}

impl Demand {
    /// Follows a snapshot.
    pub(super) fn update(&mut self, snapshot: &Snapshot) {
        let before = std::mem::replace(&mut self.applied, snapshot.clone());
        for change in before.services.diff(&snapshot.services) {
            let (old, new) = match change {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
            };
            if let Some(new) = new {
                add(&mut self.external, addresses(new));
            }
            if let Some(old) = old {
                remove(&mut self.external, addresses(old));
                let port = old.external.health_check_port;
                // Another service may have taken the port over.
                if let Some(port) = port.filter(|port| self.health.get(port) == Some(&old.name)) {
                    self.health.remove(&port);
                }
            }
            if let Some((port, new)) = new.and_then(|new| Some((new.external.health_check_port?, new))) {
                self.health.insert(port, new.name.clone());
            }
        }
        for change in before.workloads.diff(&snapshot.workloads) {
            let (old, new): (Option<&Workload>, Option<&Workload>) = match change {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
            };
            add(&mut self.taken, new.into_iter().flat_map(|workload| workload.addresses.iter().copied()));
            remove(&mut self.taken, old.into_iter().flat_map(|workload| workload.addresses.iter().copied()));
        }
        for change in before.other_nodes.diff(&snapshot.other_nodes) {
            let (old, new): (&[IpAddr], &[IpAddr]) = match change {
                DiffItem::Add(_, new) => (&[], new),
                DiffItem::Update { old: (_, old), new: (_, new) } => (old, new),
                DiffItem::Remove(_, old) => (old, &[]),
            };
            add(&mut self.taken, new.iter().copied());
            remove(&mut self.taken, old.iter().copied());
        }
    }

    /// Ports on which load balancers ask for a service's health.
    pub(super) const fn health(&self) -> &BTreeMap<u16, ServiceName> {
        &self.health
    }

    /// What is to be routed to this node: `networks`, and external addresses that are neither the node's own nor somebody
    /// else's in the cluster. Another node's address, routed here, would cut that node off.
    pub(super) fn routes(&self, own: &NodeAddresses, networks: &[IpNet]) -> BTreeSet<IpNet> {
        let free = |address: &IpAddr| {
            let is_served = !address.is_loopback() && !address.is_unspecified() && !address.is_multicast();
            is_served && !own.has(*address) && !self.taken.contains_key(address)
        };
        let external = self.external.keys().copied().filter(free).map(IpNet::from);
        external.chain(networks.iter().map(IpNet::trunc)).collect()
    }
}

fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    service.external.addresses.iter().chain(&service.external.load_balancer).copied()
}

fn add(counts: &mut BTreeMap<IpAddr, usize>, addresses: impl Iterator<Item = IpAddr>) {
    for address in addresses {
        *counts.entry(address).or_default() += 1;
    }
}

fn remove(counts: &mut BTreeMap<IpAddr, usize>, addresses: impl Iterator<Item = IpAddr>) {
    for address in addresses {
        if let Some(count) = counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::external::NodePortAddresses;
    use crate::model::NodeName;

    fn service(name: &str, addresses: &[&str], health: Option<u16>) -> Arc<Service> {
        let name = ServiceName::new("default", name);
        let mut service = Service::internal(name, "web".into(), Vec::new(), Vec::new());
        service.external.load_balancer = addresses.iter().map(|text| text.parse().unwrap()).collect();
        service.external.health_check_port = health;
        Arc::new(service)
    }

    fn routes(demand: &Demand, networks: &[IpNet]) -> Vec<String> {
        let own = NodeAddresses::new(&["172.30.0.1".parse().unwrap()], &NodePortAddresses::All, &[]);
        demand.routes(&own, networks).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_and_ports_follow_the_services() {
        let mut demand = Demand::default();
        let mut snapshot = Snapshot::default();
        for service in [
            service("a", &["203.0.113.1", "2001:db8::1"], Some(30900)),
            service("b", &["203.0.113.1", "172.30.0.1", "0.0.0.0"], None),
        ] {
            snapshot.services.insert(service.name.clone(), service);
        }
        demand.update(&snapshot);
        assert_eq!(routes(&demand, &[]), ["203.0.113.1/32", "2001:db8::1/128"]);
        assert_eq!(demand.health().keys().collect::<Vec<_>>(), [&30900]);
        // The health port goes over to another service in one step, one address stays with `b`.
        snapshot.services.remove(&ServiceName::new("default", "a"));
        let other = service("c", &[], Some(30900));
        snapshot.services.insert(other.name.clone(), Arc::clone(&other));
        demand.update(&snapshot);
        assert_eq!(routes(&demand, &[]), ["203.0.113.1/32"]);
        assert_eq!(demand.health().get(&30900), Some(&other.name));
        assert_eq!(routes(&demand, &["10.96.0.7/16".parse().unwrap()]), ["10.96.0.0/16", "203.0.113.1/32"]);
        // It turns out to be another node's, and then not to be.
        let (node, address) = (NodeName::new("other"), "203.0.113.1".parse::<IpAddr>().unwrap());
        snapshot.other_nodes.insert(node.clone(), Arc::new([address]));
        demand.update(&snapshot);
        assert_eq!(routes(&demand, &[]), Vec::<String>::new());
        snapshot.other_nodes.remove(&node);
        demand.update(&snapshot);
        assert_eq!(routes(&demand, &[]), ["203.0.113.1/32"]);
        demand.update(&Snapshot::default());
        assert_eq!(routes(&demand, &[]), Vec::<String>::new());
        assert!(demand.health().is_empty());
    }
}
