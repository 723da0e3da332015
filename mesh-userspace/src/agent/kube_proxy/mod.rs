//! The agent in kube-proxy's place: its flags, and whether kube-proxy is still there.

mod detect;
mod netfilter;
mod ports;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use clap::{Args, ValueEnum};

pub(super) use self::ports::ProxyPorts;

use crate::datapath::MapSizes;
use crate::external::NodePortAddresses;

/// Whether services are this agent's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Replacement {
    /// If no kube-proxy runs on the node.
    Auto,
    /// Yes, whoever else does it.
    True,
    /// No: services are left to kube-proxy, the mesh works on top of it.
    False,
}

/// Flags of `meshd run` that are about kube-proxy's work.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "In kube-proxy's place")]
pub struct KubeProxyConfig {
    /// Serve the cluster's services instead of kube-proxy: `auto` does so where no kube-proxy runs when the agent starts.
    #[arg(long, value_enum, default_value = "auto", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub kube_proxy_replacement: Replacement,
    /// Addresses of this node that node ports are served on: networks, or `primary` for those of the Node object
    /// [default: all].
    #[arg(long, value_name = "CIDR,...|primary", default_value = "", hide_default_value = true)]
    pub nodeport_addresses: NodePortAddresses,
    /// Where load balancers ask whether the node serves: /healthz and /livez. Empty: nowhere.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: Bind,
    /// Where kube-proxy's metrics are looked for: /metrics, /proxyMode and /healthz. Empty: nowhere.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249")]
    pub proxy_metrics_bind_address: Bind,
    /// Addresses with their ports that the kernel has room for: every address and the node port of every service port.
    #[arg(long, value_name = "N", default_value_t = MapSizes::default().services, value_parser = entries())]
    pub max_services: u32,
    /// Backends that it has room for, over all service ports; an update needs room for a port's old and new ones.
    #[arg(long, value_name = "N", default_value_t = MapSizes::default().backends, value_parser = entries())]
    pub max_backends: u32,
    /// Clients that it can keep with their backends (`sessionAffinity: ClientIP`), over all services.
    #[arg(long, value_name = "N", default_value_t = MapSizes::default().affinity, value_parser = entries())]
    pub max_affinity: u32,
}

/// Entries of a map: one at least, and no more than would take gigabytes.
fn entries() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 26)
}

impl KubeProxyConfig {
    /// Sizes of the kernel's maps.
    pub const fn sizes(&self) -> MapSizes {
        MapSizes { services: self.max_services, backends: self.max_backends, affinity: self.max_affinity }
    }

    /// Decides whether services are served here, and says why in the log. Looks for kube-proxy, which may take a second.
    pub(super) fn replaces(&self) -> bool {
        if self.kube_proxy_replacement == Replacement::False {
            tracing::info!("services are left to kube-proxy, as told");
            return false;
        }
        let evidence = detect::find();
        let found: Vec<String> = evidence.iter().map(ToString::to_string).collect();
        match (self.kube_proxy_replacement, found.is_empty()) {
            (_, true) => {
                tracing::info!("no kube-proxy found: services are served here");
                true
            }
            (Replacement::True, false) => {
                tracing::warn!(
                    evidence = found.join("; "),
                    "kube-proxy is there as well: take it away, and what it left with `kube-proxy --cleanup`"
                );
                true
            }
            _ => {
                tracing::warn!(
                    evidence = found.join("; "),
                    "services are left to kube-proxy: take it away, and what it left with `kube-proxy --cleanup`, or \
                     give --kube-proxy-replacement=true"
                );
                false
            }
        }
    }
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        match parts[..] {
            [] => return Ok(Self::All),
            ["primary"] => return Ok(Self::Primary),
            _ => {}
        }
        let network = |part: &&str| match *part {
            "primary" => Err("`primary` stands alone, without networks".to_owned()),
            part => part.parse().map_err(|_error| format!("`{part}` is no network: write 192.0.2.0/24")),
        };
        parts.iter().map(network).collect::<Result<_, _>>().map(Self::In)
    }
}

/// Where to listen; `None`: nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind(pub Option<SocketAddr>);

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let address = text.parse().map_err(|_error| format!("`{text}` is no address with a port"))?;
        Ok(Self(Some(address)))
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |address| address.fmt(f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_port_addresses_are_all_primary_or_networks() {
        let networks = |list: &[&str]| {
            NodePortAddresses::In(list.iter().map(|network| network.parse().unwrap()).collect())
        };
        let cases = [
            ("", Ok(NodePortAddresses::All)),
            ("primary", Ok(NodePortAddresses::Primary)),
            ("10.0.0.0/8,fd00::/8", Ok(networks(&["10.0.0.0/8", "fd00::/8"]))),
            ("primary,10.0.0.0/8", Err("`primary` stands alone, without networks".to_owned())),
            ("10.0.0.300/8", Err("`10.0.0.300/8` is no network: write 192.0.2.0/24".to_owned())),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse(), expected, "{text}");
        }
    }

    #[test]
    fn an_empty_bind_address_is_nowhere() {
        assert_eq!("".parse(), Ok(Bind(None)));
        assert_eq!("[::]:10256".parse(), Ok(Bind(Some(([0_u16; 8], 10256).into()))));
        assert!("10256".parse::<Bind>().is_err());
    }
}
