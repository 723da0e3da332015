//! The certificate authority that an agent asks: its own, or a server of Istio's protocol.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::{AgentConfig, AgentError};
use crate::identity::ca::{CaAddress, CaClient, CaClientConfig};
use crate::identity::{Authority, Signer};

/// Where Kubernetes projects the token that the authority asks for.
const TOKEN: &str = "/var/run/secrets/tokens/istio-token";

/// Flags of `meshd run` for an authority elsewhere.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "A certificate authority elsewhere")]
pub struct RemoteAuthority {
    /// Server of Istio's certificate protocol (`meshd ca`, istiod, istio-csr) to take certificates from, in place of the
    /// authority in --ca-dir.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "ca_dir")]
    pub ca_addr: Option<CaAddress>,
    /// Roots (PEM) that the server's certificate must lead to; re-read when the file changes.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/istio/root-cert.pem",
        requires = "ca_addr"
    )]
    pub ca_root_cert: PathBuf,
    /// Name that the server's certificate must have [default: the host of --ca-addr].
    #[arg(long, value_name = "NAME", requires = "ca_addr")]
    pub ca_server_name: Option<String>,
    /// File of the token that says who this agent is; read for each request [default:
    /// /var/run/secrets/tokens/istio-token, none with a client certificate].
    #[arg(long, value_name = "FILE", requires = "ca_addr")]
    pub ca_token: Option<PathBuf>,
    /// Client certificate (PEM) that says who this agent is.
    #[arg(long, value_name = "FILE", requires = "ca_addr", requires = "ca_client_key")]
    pub ca_client_cert: Option<PathBuf>,
    /// Private key of the client certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "ca_client_cert")]
    pub ca_client_key: Option<PathBuf>,
}

/// A signer, and the authority if it is in this process.
type Signing = (Arc<dyn Signer>, Option<Arc<Authority>>);

/// Whoever signs for this agent.
pub(super) fn signer(config: &AgentConfig) -> Result<Signing, AgentError> {
    let remote = &config.remote_ca;
    let Some(address) = &remote.ca_addr else {
        let authority = Authority::open(&config.ca_dir, &config.trust_domain);
        let authority = Arc::new(authority.map_err(AgentError::Authority)?);
        return Ok((Arc::<Authority>::clone(&authority), Some(authority)));
    };
    let certificate = remote.ca_client_cert.clone().zip(remote.ca_client_key.clone());
    let token = remote.ca_token.clone().or_else(|| certificate.is_none().then(|| PathBuf::from(TOKEN)));
    let client = CaClient::new(CaClientConfig {
        address: address.clone(),
        roots: remote.ca_root_cert.clone(),
        server_name: remote.ca_server_name.clone(),
        token,
        certificate,
        cluster: config.cluster.clone(),
        own: config.outside.agent_identity(&config.trust_domain)?,
    });
    Ok((Arc::new(client.map_err(AgentError::RemoteAuthority)?), None))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::agent::Cli;

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        let cases: [(&[&str], bool); 8] = [
            (&["--ca-addr", "ca:15012"], true),
            (&["--ca-addr", "ca:15012", "--ca-root-cert", "/r", "--ca-token", "/t"], true),
            (&["--ca-addr", "ca:15012", "--ca-client-cert", "/c", "--ca-client-key", "/k"], true),
            (&["--ca-addr", "ca:15012", "--ca-client-cert", "/c"], false),
            (&["--ca-addr", "ca:15012", "--ca-dir", "/d"], false),
            (&["--ca-addr", "ca"], false),
            (&["--ca-token", "/t"], false),
            (&["--ca-dir", "/d"], true),
        ];
        for (flags, good) in cases {
            let words = [&["meshd", "run", "--manifests", "/x"], flags].concat();
            assert_eq!(Cli::try_parse_from(&words).is_ok(), good, "{flags:?}");
        }
    }
}
