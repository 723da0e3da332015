//! The rules that kube-proxy v1.36.3 writes for a set of services, in both of its modes.
//!
//! Shape, names and order are kube-proxy's (`pkg/proxy/iptables/proxier.go`, `pkg/proxy/nftables/proxier.go`); the tests
//! hold them against what it wrote itself (`fixtures/`). A sync is full, or *partial*: what kube-proxy loads when one
//! service has changed.

pub(crate) mod iptables;
mod names;
pub(crate) mod nftables;
mod service;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

pub(crate) use self::service::{Cidr, Endpoint, Protocol, Service};

/// The node, as kube-proxy's flags and the API server describe it.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `--cluster-cidr`: what does not come from there is masqueraded.
    pub(crate) cluster_cidr: Cidr,
    /// The `ServiceCIDR` object.
    pub(crate) service_cidr: Cidr,
    /// The node's address, which in nftables mode alone has node ports.
    pub(crate) node_ip: Ipv4Addr,
    /// Whether rules count with `-m nfacct`. kube-proxy leaves that out where it cannot make the counters (objects of
    /// the kernel's own, made over netlink), and so does the bench: no packet that it sends meets a rule that differs.
    pub(crate) nfacct: bool,
}

/// Which services a sync writes rules of their own for; the chains that all share are written either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    /// All: the first sync.
    Full,
    /// The one of this index.
    Partial(usize),
}

impl Sync {
    fn writes(self, index: usize) -> bool {
        match self {
            Self::Full => true,
            Self::Partial(changed) => changed == index,
        }
    }
}
