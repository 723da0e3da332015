//! What the maps should hold, asked entry by entry of a snapshot alone: for whoever wants to know without a kernel.
//!
//! It is made by the functions that the tables are written from. What only an agent finds on its node is not there:
//! network namespaces, addresses that no Node object names, who stays with which backend.

use ipnet::IpNet;
use mesh_common::abi::{
    ADDRESS_CLUSTER, ADDRESS_EXTERNAL, ADDRESS_LOCAL, ADDRESS_LOOPBACK, ADDRESS_NODE_PORTS, Address,
    Destination, Service as Installed, ServiceKey, Slot,
};

use super::ip_of;
use super::wanted::{addresses, drawn, frontend_of, wanted};
use super::workloads::destination;
use crate::model::Snapshot;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreseen<'a>(&'a Snapshot);

/// The set behind a key of `SERVICES`.
#[derive(Clone, Debug)]
pub(crate) struct ForeseenSet {
    /// Value of `SERVICES`, with ids that stand for nothing.
    pub(crate) installed: Installed,
    /// The set's slots.
    pub(crate) slots: Vec<Slot>,
    /// Who may come from outside, where [`SERVICE_RANGES`](mesh_common::abi::SERVICE_RANGES) is set.
    pub(crate) ranges: Vec<IpNet>,
}

impl<'a> Foreseen<'a> {
    /// What the maps should hold for this snapshot.
    pub(crate) const fn new(snapshot: &'a Snapshot) -> Self {
        Self(snapshot)
    }

    /// `ADDRESSES`: `ADDRESS_*` bits.
    pub(crate) fn address_bits(self, address: Address) -> u32 {
        let services = self.0.services.values().flat_map(|service| addresses(service));
        let of_services = services
            .filter(|(own, _)| *own == address)
            .fold(0, |bits, (_, external)| bits | if external { ADDRESS_EXTERNAL } else { ADDRESS_CLUSTER });
        let ip = ip_of(address);
        let of_node = if ip.is_loopback() {
            ADDRESS_LOCAL | if ip.is_ipv4() { ADDRESS_LOOPBACK } else { 0 }
        } else if self.0.node.addresses.contains(&ip) {
            ADDRESS_LOCAL | ADDRESS_NODE_PORTS
        } else {
            0
        };
        of_services | of_node
    }

    /// `SERVICES`, with the slots and ranges behind it.
    pub(crate) fn service(self, key: &ServiceKey) -> Option<ForeseenSet> {
        let service = self.0.frontends.get(&frontend_of(key))?;
        let wanted = wanted(service, self.0, &self.0.node.addresses, true);
        let frontend = wanted.frontends.get(key)?;
        let set = wanted.sets.get(&frontend.set)?;
        let installed = Installed {
            id: 1,
            generation: 1,
            slots: u32::try_from(set.slots.len()).unwrap_or(u32::MAX),
            drawn: drawn(&set.slots),
            flags: frontend.flags,
            affinity_id: 1,
            affinity_seconds: frontend.affinity_seconds,
            seal: 0,
        };
        Some(ForeseenSet {
            installed: installed.sealed(key),
            slots: set.slots.clone(),
            ranges: set.ranges.clone(),
        })
    }

    /// `DESTINATIONS`.
    pub(crate) fn destination(self, address: Address) -> Option<Destination> {
        destination(self.0, ip_of(address))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use mesh_common::abi::{SCOPE_ADDRESS, SERVICE_RANGES, TCP};

    use super::*;
    use crate::datapath::address_of;
    use crate::model::{Endpoint, LocalNode, Protocol, Service, ServiceName, ServicePort};

    #[test]
    fn it_is_what_the_tables_are_written_from() {
        let name = ServiceName::new("shop", "web");
        let endpoint = Endpoint::at("10.244.1.1:8080".parse().unwrap());
        let port = ServicePort::plain(&name, 80, Protocol::Tcp, Arc::new([endpoint]));
        let own: IpAddr = "10.96.0.1".parse().unwrap();
        let balancer: IpAddr = "192.0.2.1".parse().unwrap();
        let mut service = Service::internal(name.clone(), "web".into(), vec![own], vec![port]);
        service.external.load_balancer = vec![balancer];
        service.external.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
        let service = Arc::new(service);
        let mut snapshot = Snapshot::default();
        snapshot.frontends.extend(service.frontends().map(|frontend| (frontend, Arc::clone(&service))));
        snapshot.services.insert(name, service);
        let node: IpAddr = "172.30.0.1".parse().unwrap();
        snapshot.node = Arc::new(LocalNode { addresses: vec![node], ..LocalNode::default() });
        let foreseen = Foreseen::new(&snapshot);
        let key = |address, port| ServiceKey {
            address: address_of(address),
            port,
            protocol: TCP,
            scope: SCOPE_ADDRESS,
        };
        let set = foreseen.service(&key(own, 80)).unwrap();
        assert_eq!((set.installed.slots, set.installed.flags & SERVICE_RANGES), (1, 0));
        assert_eq!(set.slots[0].port, 8080);
        let set = foreseen.service(&key(balancer, 80)).unwrap();
        assert_eq!((set.installed.flags & SERVICE_RANGES, set.ranges.len()), (SERVICE_RANGES, 1));
        assert!(foreseen.service(&key(own, 81)).is_none());
        let bits = |address| foreseen.address_bits(address_of(address));
        assert_eq!((bits(own), bits(balancer)), (ADDRESS_CLUSTER, ADDRESS_EXTERNAL));
        assert_eq!(bits(node), ADDRESS_LOCAL | ADDRESS_NODE_PORTS);
        assert_eq!(bits("127.0.0.1".parse().unwrap()), ADDRESS_LOCAL | ADDRESS_LOOPBACK);
        assert_eq!(bits("10.9.9.9".parse().unwrap()), 0);
        assert!(foreseen.destination(address_of(own)).is_none());
    }
}
