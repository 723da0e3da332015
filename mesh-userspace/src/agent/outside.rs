//! Clients from outside, as this agent's flags have them served.

use std::sync::Arc;

use clap::Args;
use ipnet::IpNet;
use tokio::sync::watch;

use super::{AgentConfig, AgentError};
use crate::external::{External, ExternalConfig};
use crate::model::{Identity, NodeName, Snapshot, TrustDomain};
use crate::proxy::Shared;

/// Flags of `meshd run` for clients from outside.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "In kube-proxy's place")]
pub struct OutsideConfig {
    /// Networks of the cluster's service addresses, where clients outside the cluster have them routed to its nodes: they
    /// are then served like external addresses [default: they are not].
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub service_cidr: Vec<IpNet>,
    /// Service account of the node agents: with it one agent tells another which client from outside a connection is for.
    /// The same on every node.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "mesh-system/meshd", value_parser = account)]
    pub agent_account: (String, String),
}

/// `NAMESPACE/NAME`.
fn account(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    let (namespace, name) = parts.ok_or_else(|| format!("`{text}` is no NAMESPACE/NAME"))?;
    Ok((namespace.to_owned(), name.to_owned()))
}

impl OutsideConfig {
    /// Who the node agents of this mesh are.
    pub(super) fn agent_identity(&self, domain: &TrustDomain) -> Result<Identity, AgentError> {
        let (namespace, account) = &self.agent_account;
        Identity::new(domain.clone(), namespace, account).map_err(AgentError::Identity)
    }
}

/// Opens what is needed; nothing is accepted yet.
pub(super) fn open(
    config: &AgentConfig,
    shared: &Arc<Shared>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
) -> Result<External, AgentError> {
    let metrics = Arc::clone(shared.telemetry.metrics());
    let config = ExternalConfig {
        node: NodeName::new(config.node.as_str()),
        node_ports: config.kube_proxy.nodeport_addresses.clone(),
        service_cidrs: config.outside.service_cidr.clone(),
        healthy: Arc::new(move || metrics.sync().health().in_time),
    };
    External::open(config, shared, snapshots).map_err(AgentError::External)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_a_namespace() {
        let pair = |namespace: &str, name: &str| Some((namespace.to_owned(), name.to_owned()));
        for (text, parts) in [
            ("a/b", pair("a", "b")),
            ("a", None),
            ("/b", None),
            ("a/", None),
            ("", None),
            ("a/b/c", pair("a", "b/c")),
        ] {
            assert_eq!(account(text).ok(), parts, "{text}");
        }
        // A name that no certificate could bear is refused when the agent starts.
        let config = OutsideConfig { service_cidr: Vec::new(), agent_account: ("a".into(), "b/c".into()) };
        assert!(config.agent_identity(&TrustDomain::new("cluster.local").unwrap()).is_err());
    }
}
