//! Flags of `meshctl install`, `verify-install` and `uninstall`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::NAMESPACE;

/// Which cluster, and where in it.
#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    /// Namespace of the mesh
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = NAMESPACE, value_parser = namespace)]
    namespace: String,
    /// Kubeconfig file [default: $KUBECONFIG, ~/.kube/config, or the pod's own account]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl ClusterArgs {
    /// Namespace of the mesh.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

/// The chart's values.
#[derive(Clone, Debug, Args)]
pub struct ValueArgs {
    /// File of values over the chart's; may be given more than once, the last wins
    #[arg(long, short = 'f', value_name = "FILE")]
    pub values: Vec<PathBuf>,
    /// A value, over those of files: agent.drainSeconds=60, ca.dnsNames={a,b}; may be given more than once
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

impl ValueArgs {
    /// Whether any are given.
    pub const fn given(&self) -> bool {
        !self.values.is_empty() || !self.set.is_empty()
    }
}

/// Flags of `meshctl install`.
#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    /// Where.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What.
    #[command(flatten)]
    pub values: ValueArgs,
    /// Print the manifests and ask no cluster
    #[arg(long)]
    pub dry_run: bool,
    /// Take over fields that somebody else has set
    #[arg(long)]
    pub force_conflicts: bool,
    /// How long to wait for the authority and the agents; 0s: not at all
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = crate::agent::duration)]
    pub timeout: Duration,
}

/// Flags of `meshctl verify-install`.
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// Where.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What is expected, if not what was installed.
    #[command(flatten)]
    pub values: ValueArgs,
    /// How long one node may take to answer
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = crate::agent::duration)]
    pub timeout: Duration,
}

/// Flags of `meshctl uninstall`.
#[derive(Clone, Debug, Args)]
pub struct UninstallArgs {
    /// Where.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Keep the authority's key and the namespace, for an installation that is to have the same root
    #[arg(long)]
    pub keep_root: bool,
    /// Remove the mesh from the cluster even if nodes did not answer; what is left on those stays
    #[arg(long)]
    pub force: bool,
    /// How long to wait for the nodes
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = crate::agent::duration)]
    pub timeout: Duration,
}

/// A name as Kubernetes allows it for a namespace (RFC 1123).
fn namespace(text: &str) -> Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_name = !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_name { Ok(text.to_owned()) } else { Err(format!("`{text}` is no name of a namespace")) }
}
