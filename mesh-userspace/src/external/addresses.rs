//! The node's own addresses, and on which of them node ports are served.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use mesh_common::abi::{ADDRESS_LOCAL, ADDRESS_LOOPBACK, ADDRESS_NODE_PORTS};

/// On which of the node's addresses node ports are served (kube-proxy's `--nodeport-addresses`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On all of them, and on `127.0.0.1` for the node's own processes.
    #[default]
    All,
    /// On those that the Node object names (`primary`).
    Primary,
    /// On those in one of these networks.
    In(Vec<IpNet>),
}

impl NodePortAddresses {
    fn includes(&self, address: IpAddr, primary: &[IpAddr]) -> bool {
        match self {
            Self::All => true,
            Self::Primary => primary.contains(&address),
            Self::In(networks) => networks.iter().any(|network| network.contains(&address)),
        }
    }
}

/// The node's addresses with the bits that the kernel map has for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    flags: BTreeMap<IpAddr, u32>,
    /// [`NodePortAddresses::All`].
    all: bool,
}

impl NodeAddresses {
    /// `present` are the addresses of the interfaces, `primary` those that the Node object names.
    pub fn new(present: &[IpAddr], which: &NodePortAddresses, primary: &[IpAddr]) -> Self {
        let flags = |address: IpAddr| {
            let served = which.includes(address, primary);
            ADDRESS_LOCAL
                | match address {
                    IpAddr::V4(Ipv4Addr::LOCALHOST) if served => ADDRESS_LOOPBACK,
                    // As with kube-proxy, there are no node ports on `::1` nor on the rest of `127.0.0.0/8`.
                    _ if address.is_loopback() || !served => 0,
                    _ => ADDRESS_NODE_PORTS,
                }
        };
        let flags = present.iter().map(|address| (*address, flags(*address))).collect();
        Self { flags, all: *which == NodePortAddresses::All }
    }

    /// Whether an interface has it.
    pub fn has(&self, address: IpAddr) -> bool {
        self.flags.contains_key(&address)
    }

    /// Whether node ports are served on it for clients from elsewhere.
    pub fn serves_node_ports(&self, address: IpAddr) -> bool {
        self.flags.get(&address).is_some_and(|flags| flags & ADDRESS_NODE_PORTS != 0)
    }

    /// Whether load balancers are answered there: as with kube-proxy on every address, loopback included, unless the flag
    /// names some (`newServiceHealthServer`).
    pub fn answers_health_checks(&self, address: IpAddr) -> bool {
        let served = ADDRESS_NODE_PORTS | ADDRESS_LOOPBACK;
        self.all || self.flags.get(&address).is_some_and(|flags| flags & served != 0)
    }

    /// For the kernel map.
    pub fn flags(&self) -> Vec<(IpAddr, u32)> {
        self.flags.iter().map(|(address, flags)| (*address, *flags)).collect()
    }
}

/// The addresses of all interfaces of this thread's namespace.
pub(super) fn present() -> io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(addresses.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ports_are_served_where_the_flag_says() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let present =
            ["127.0.0.1", "::1", "127.0.0.2", "172.30.0.1", "10.244.1.1", "fd00:30::1", "fe80::1"].map(ip);
        let primary = [ip("172.30.0.1"), ip("fd00:30::1")];
        let network = NodePortAddresses::In(vec!["172.30.0.0/16".parse().unwrap()]);
        let local = NodePortAddresses::In(vec!["127.0.0.0/8".parse().unwrap()]);
        let cases: [(_, &[&str], bool); 4] = [
            (NodePortAddresses::All, &["172.30.0.1", "10.244.1.1", "fd00:30::1", "fe80::1"], true),
            (NodePortAddresses::Primary, &["172.30.0.1", "fd00:30::1"], false),
            (network, &["172.30.0.1"], false),
            (local, &[], true),
        ];
        for (which, served, loopback) in cases {
            let addresses = NodeAddresses::new(&present, &which, &primary);
            for address in present {
                let expected = served.iter().any(|text| ip(text) == address);
                assert_eq!(addresses.serves_node_ports(address), expected, "{which:?} {address}");
                assert!(addresses.has(address));
            }
            let held = addresses.flags().into_iter().find(|(address, _)| *address == ip("127.0.0.1"));
            assert_eq!(held.unwrap().1 & ADDRESS_LOOPBACK != 0, loopback, "{which:?}");
            let is_answered = |text| addresses.answers_health_checks(ip(text));
            assert_eq!(is_answered("127.0.0.1"), loopback, "{which:?}");
            assert_eq!(is_answered("::1"), which == NodePortAddresses::All, "{which:?}");
            assert_eq!(is_answered("172.30.0.1"), served.contains(&"172.30.0.1"), "{which:?}");
        }
    }
}
