//! A service port as kube-proxy knows it, and what follows from its policies.

use std::fmt;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};

/// One port of a Service. Its endpoints are those that kube-proxy chose: after readiness and topology.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Name of the port; may be empty.
    pub(crate) port_name: String,
    pub(crate) protocol: Protocol,
    pub(crate) cluster_ip: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) node_port: Option<u16>,
    pub(crate) external_ips: Vec<Ipv4Addr>,
    /// Addresses of the load balancer, `ipMode: VIP`.
    pub(crate) load_balancer_ips: Vec<Ipv4Addr>,
    pub(crate) source_ranges: Vec<Cidr>,
    /// `internalTrafficPolicy: Local`.
    pub(crate) internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub(crate) external_local: bool,
    pub(crate) health_check_node_port: Option<u16>,
    /// Seconds of `sessionAffinity: ClientIP`.
    pub(crate) affinity: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    #[cfg_attr(not(test), expect(dead_code, reason = "the bench sends none; the fixtures have it"))]
    Sctp,
}

/// An endpoint of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
    /// On this node.
    pub(crate) local: bool,
}

/// A block of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    address: Ipv4Addr,
    length: u8,
}

impl Service {
    /// A service of a cluster address with Cluster policies and nothing else.
    pub(crate) fn new(name: &str, port_name: &str, cluster_ip: Ipv4Addr, port: u16) -> Self {
        Self {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            port_name: port_name.to_owned(),
            protocol: Protocol::Tcp,
            cluster_ip,
            port,
            endpoints: Vec::new(),
            node_port: None,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            internal_local: false,
            external_local: false,
            health_check_node_port: None,
            affinity: None,
        }
    }

    /// `NAMESPACE/NAME:PORT`, kube-proxy's `ServicePortName`.
    pub(super) fn port_label(&self) -> String {
        let Self { namespace, name, port_name, .. } = self;
        if port_name.is_empty() {
            format!("{namespace}/{name}")
        } else {
            format!("{namespace}/{name}:{port_name}")
        }
    }

    pub(super) fn has_endpoints(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Whether anything but the cluster address leads to it.
    pub(super) fn is_external(&self) -> bool {
        self.node_port.is_some() || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }

    /// Endpoints of the policy Cluster; none where no policy uses them.
    pub(super) fn cluster_endpoints(&self) -> Vec<Endpoint> {
        let used = !self.internal_local || self.is_external();
        if used { self.endpoints.clone() } else { Vec::new() }
    }

    /// Endpoints of the policy Local; none where no policy uses them.
    pub(super) fn local_endpoints(&self) -> Vec<Endpoint> {
        let used = self.internal_local || (self.external_local && self.is_external());
        if used {
            self.endpoints.iter().filter(|endpoint| endpoint.local).copied().collect()
        } else {
            Vec::new()
        }
    }

    /// Those that this node may send to, by either policy.
    pub(super) fn reachable_endpoints(&self) -> Vec<Endpoint> {
        let cluster = self.cluster_endpoints();
        if cluster.is_empty() { self.local_endpoints() } else { cluster }
    }

    pub(super) fn has_internal_endpoints(&self) -> bool {
        if self.internal_local { !self.local_endpoints().is_empty() } else { self.has_endpoints() }
    }

    pub(super) fn has_external_endpoints(&self) -> bool {
        if self.external_local { !self.local_endpoints().is_empty() } else { self.has_endpoints() }
    }

    pub(super) fn has_external_chain(&self) -> bool {
        self.has_endpoints() && self.is_external()
    }

    pub(super) fn has_firewall(&self) -> bool {
        !self.load_balancer_ips.is_empty() && !self.source_ranges.is_empty()
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.address, self.port)
    }
}

impl Cidr {
    pub(super) fn contains(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
        address.to_bits() & mask == self.address.to_bits() & mask
    }
}

impl std::str::FromStr for Cidr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, length) = text.split_once('/').context("a block of addresses without a /")?;
        let length = length.parse().ok().filter(|length| *length <= 32).context("a prefix length")?;
        Ok(Self { address: address.parse()?, length })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.length)
    }
}
