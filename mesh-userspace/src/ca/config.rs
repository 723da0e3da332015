//! How an authority is started: the one definition of its flags, their defaults and their help.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::identity::ca::Account;
use crate::model::TrustDomain;

/// An object of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `NAMESPACE/NAME`, as Kubernetes allows names.
fn object_name(text: &str) -> Result<ObjectName, String> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= 253
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
    };
    let parts = text.split_once('/').filter(|(namespace, name)| is_name(namespace) && is_name(name));
    let (namespace, name) = parts.ok_or_else(|| format!("`{text}` is no NAMESPACE/NAME"))?;
    Ok(ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// Whether Kubernetes is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UseKubernetes {
    /// Where KUBECONFIG is set, or in a pod.
    Auto,
    /// Yes; without an API server this does not start.
    True,
    /// No.
    False,
}

/// Flags of `meshd ca`.
#[derive(Clone, Debug, Args)]
pub struct CaConfig {
    /// Folder of the certificate authority: ca-cert.pem, ca-key.pem, root-cert.pem and, for an intermediate,
    /// cert-chain.pem; a root is made on first start if it is empty.
    #[arg(long, default_value = "/var/lib/mesh/ca", value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// Secret that keeps the authority, copied to --ca-dir: a root is made on first start if it is empty. It is followed.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object_name)]
    pub ca_secret: Option<ObjectName>,
    /// `ConfigMap` whose root-cert.pem says what this server's certificate leads to; kept up to date.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object_name)]
    pub publish_root: Option<ObjectName>,
    /// Where to listen.
    #[arg(long, default_value = "0.0.0.0:15012", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Address for /metrics and /healthz.
    #[arg(long, default_value = "127.0.0.1:15014", value_name = "ADDR:PORT")]
    pub metrics_addr: SocketAddr,
    /// Trust domain of every identity.
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub trust_domain: TrustDomain,
    /// DNS name or address that agents know this server by. May be given more than once.
    #[arg(long, value_name = "NAME", value_delimiter = ',',
          default_values_t = ["mesh-ca.mesh-system.svc", "mesh-ca.mesh-system.svc.cluster.local", "localhost"].map(str::to_owned))]
    pub dns_name: Vec<String>,
    /// Longest life of a certificate, such as 24h or 90s.
    #[arg(long, default_value = "24h", value_name = "TIME", value_parser = crate::agent::lifetime)]
    pub max_cert_ttl: Duration,
    /// File of the audit log, appended to [default: standard output].
    #[arg(long, value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// Who may call.
    #[command(flatten)]
    pub callers: CallerConfig,
    /// Where pods are.
    #[command(flatten)]
    pub pods: PodConfig,
}

/// Flags about who may call.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Who may call (at least one way)")]
pub struct CallerConfig {
    /// Have service account tokens for the audience istio-ca reviewed by the Kubernetes API server, and take pods from it.
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    pub kubernetes: UseKubernetes,
    /// File of tokens, 0600, re-read when it changes. A line: `NODE NAMESPACE/ACCOUNT TOKEN [AUDIENCE] [EXPIRY]`.
    #[arg(long, value_name = "FILE")]
    pub node_tokens: Option<PathBuf>,
    /// Roots (PEM) of client certificates; each names its caller by one SPIFFE ID, and its node by one DNS name.
    #[arg(long, value_name = "FILE")]
    pub client_ca: Option<PathBuf>,
}

/// Flags about whose identity a node's agent may have.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What node agents may ask for")]
pub struct PodConfig {
    /// Service account of node agents, which may ask for the identities of the pods on their node. May be given more than
    /// once.
    #[arg(long, value_name = "NAMESPACE/NAME", value_delimiter = ',', default_value = "mesh-system/meshd")]
    pub node_account: Vec<Account>,
    /// Kubernetes manifests that say which pods are on which node: a file or a folder, re-read when it changes. May be
    /// given more than once.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub manifests: Vec<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::agent::{Cli, Command};

    fn parsed(flags: &[&str]) -> Option<CaConfig> {
        let cli = Cli::try_parse_from([&["meshd", "ca"], flags].concat()).ok()?;
        match cli.command {
            Command::Ca(config) => Some(*config),
            _ => None,
        }
    }

    #[test]
    fn the_flags_are_read_as_written() {
        let config = parsed(&[]).unwrap();
        assert_eq!(config.callers.kubernetes, UseKubernetes::Auto);
        assert_eq!(config.pods.node_account, ["mesh-system/meshd".parse().unwrap()]);
        assert_eq!(config.max_cert_ttl, Duration::from_hours(24));
        let config =
            parsed(&["--kubernetes", "--node-account", "istio-system/ztunnel", "--node-account=a/b"])
                .unwrap();
        assert_eq!(config.callers.kubernetes, UseKubernetes::True);
        assert_eq!(config.pods.node_account.len(), 2);
        for wrong in [
            ["--node-account", "ztunnel"],
            ["--ca-secret", "mesh-ca"],
            ["--publish-root", "a/B"],
            ["--max-cert-ttl", "1s"],
            ["--listen", "15012"],
        ] {
            assert!(parsed(&wrong).is_none(), "{wrong:?}");
        }
    }
}
