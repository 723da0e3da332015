//! How an agent is started: the one definition of its flags, their defaults and their help.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};

use super::{DiscoveryFlags, KubeProxyConfig, OutsideConfig, RemoteAuthority, RotateConfig};
use crate::ca::CaConfig;
use crate::cni::{DEFAULT_KNOWN, InstallConfig, MAX_TIMEOUT, PLUGIN_LOG, PluginConfig};
use crate::model::TrustDomain;

/// The node agent of the mesh.
#[derive(Debug, Parser)]
#[command(name = "meshd", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What meshd does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve this node until SIGTERM or SIGINT. Programs and services stay in force afterwards.
    Run(Box<AgentConfig>),
    /// Take everything off this node: programs, maps, and what enrolment has left in pods. No agent may be running.
    Uninstall(UninstallConfig),
    /// Replace the root of the local certificate authority, a step at a time, with both roots trusted in between.
    RotateRoot(RotateConfig),
    /// Do nothing until SIGTERM: what keeps the pod of an uninstallation there once it is done.
    Pause,
    /// Be the CNI plugin mesh-cni, as a container runtime calls it: `CNI_COMMAND` and the rest in the environment, the
    /// configuration on stdin. Called under the name mesh-cni, this program does the same.
    Cni,
    /// Be the mesh's certificate authority until SIGTERM or SIGINT: serve Istio's certificate protocol. Needs no root.
    Ca(Box<CaConfig>),
}

/// Where an agent keeps what outlives it.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// Folder for programs and maps, in a BPF file system.
    #[arg(long, default_value = "/sys/fs/bpf/mesh", value_name = "DIR")]
    pub bpffs: PathBuf,
    /// Folder for the lock, the socket and what is remembered of enrolled pods; should not survive a reboot.
    #[arg(long, default_value = "/run/mesh", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// File that keeps the last state of --kubernetes, for an agent that starts while the API server is away; should survive
    /// a reboot.
    #[arg(long, default_value = "/var/lib/mesh/state.json.gz", value_name = "FILE")]
    pub source_state: PathBuf,
}

/// Flags of `meshd uninstall`.
#[derive(Clone, Debug, Args)]
pub struct UninstallConfig {
    /// Where the agent has kept things.
    #[command(flatten)]
    pub places: Places,
    /// The CNI plugin.
    #[command(flatten)]
    pub cni: CniFlags,
}

/// Where the CNI plugin is installed.
#[derive(Clone, Debug, Args)]
pub struct CniFlags {
    /// Folder of the container runtime's CNI configuration, such as /etc/cni/net.d: the agent keeps 00-mesh.conflist there,
    /// made of the first of the other files and the plugin mesh-cni at its end, and leaves those as they are. Uninstall
    /// removes it. Without this flag, nothing is installed or removed.
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Folder of the container runtime's CNI plugins, such as /opt/cni/bin: the agent copies itself there as mesh-cni.
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
    /// File that remembers which namespaces and pods are enrolled, for the plugin while no agent runs; should survive a
    /// reboot. Written where --cni-conf-dir or this flag is given [default: /var/lib/mesh/cni.json].
    #[arg(long, value_name = "FILE")]
    pub cni_state: Option<PathBuf>,
    /// How long the plugin waits for the agent before it fails, or lets a pod start that is not to be in the mesh.
    #[arg(long, value_name = "TIME", value_parser = plugin_limit, default_value = "30s")]
    pub cni_timeout: Duration,
}

impl CniFlags {
    /// The file that remembers who is enrolled, where there is to be one.
    pub fn state(&self) -> Option<PathBuf> {
        let default = || self.cni_conf_dir.as_ref().map(|_| PathBuf::from(DEFAULT_KNOWN));
        self.cni_state.clone().or_else(default)
    }

    /// What is to be installed, if anything is.
    pub fn install(&self, config: &PluginConfig) -> Option<InstallConfig> {
        let (conf_dir, bin_dir) = (self.cni_conf_dir.clone()?, self.cni_bin_dir.clone()?);
        Some(InstallConfig { conf_dir, bin_dir, plugin: config.clone() })
    }
}

/// Flags of `meshd run`.
#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("source").required(true).args(["manifests", "kubernetes"])))]
pub struct AgentConfig {
    /// Kubernetes manifests: a file or a folder, re-read when it changes. May be given more than once.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub manifests: Vec<PathBuf>,
    /// Follow the Kubernetes API server that KUBECONFIG names, else that of the cluster that this runs in.
    #[arg(long)]
    pub kubernetes: bool,
    /// How long the API server is waited for at the start, before the last state that was kept is in force.
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = duration)]
    pub source_wait: Duration,
    /// Name of this node, as in a Pod's `spec.nodeName`.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", default_value_t = hostname())]
    pub node: String,
    /// Folder of the local certificate authority; made on first start.
    #[arg(long, default_value = "/var/lib/mesh/ca", value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// An authority elsewhere.
    #[command(flatten)]
    pub remote_ca: RemoteAuthority,
    /// Where it keeps things.
    #[command(flatten)]
    pub places: Places,
    /// The cgroup (v2) whose processes are served [default: the root, from /proc/mounts].
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Unix socket for meshctl [default: meshd.sock in the state folder].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Unix socket of this process alone, for `meshctl probe`: whether it is ready, serving or standing by, and whether it
    /// lives [default: none].
    #[arg(long, value_name = "PATH")]
    pub probe_socket: Option<PathBuf>,
    /// Address for /metrics, /healthz and /livez.
    #[arg(long, default_value = "127.0.0.1:15020", value_name = "ADDR:PORT")]
    pub metrics_addr: SocketAddr,
    /// Threads that carry connections [default: half of the CPUs].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// For tests: seed of what decides which connections get a fault or a copy [default: another each time].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Trust domain of every identity.
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub trust_domain: TrustDomain,
    /// Trust domains whose identities stand for those of --trust-domain, while a mesh is given another.
    #[arg(long, value_name = "DOMAIN,...", value_delimiter = ',')]
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Domain that every service's host ends in.
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub cluster_domain: String,
    /// Namespace whose policies without a selector hold for the whole mesh.
    #[arg(long, default_value = "istio-system", value_name = "NAMESPACE")]
    pub root_namespace: String,
    /// Istio's name of this cluster, a label of the traffic metrics.
    #[arg(long, default_value = "Kubernetes", value_name = "NAME")]
    pub cluster: String,
    /// Life of a workload's certificate, such as 24h or 90s; renewed at half of it.
    #[arg(long, default_value = "24h", value_name = "TIME", value_parser = lifetime)]
    pub cert_ttl: Duration,
    /// With another agent on this node: stand by until it ends, and take over then. Ready (--probe-socket) is one that
    /// stands by when it could serve. Without this flag a second agent is refused.
    #[arg(long)]
    pub standby: bool,
    /// How long connections may go on after SIGTERM, or after their pod left the mesh.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    pub drain: Duration,
    /// Services.
    #[command(flatten)]
    pub kube_proxy: KubeProxyConfig,
    /// Clients from outside.
    #[command(flatten)]
    pub outside: OutsideConfig,
    /// Pods of Kubernetes.
    #[command(flatten)]
    pub discovery: DiscoveryFlags,
    /// The CNI plugin.
    #[command(flatten)]
    pub cni: CniFlags,
}

impl AgentConfig {
    /// The unix socket.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.places.state_dir.join("meshd.sock"))
    }

    /// The plugin's part of the CNI configuration.
    pub fn plugin(&self) -> PluginConfig {
        PluginConfig {
            socket: self.socket(),
            timeout: self.cni.cni_timeout,
            log_file: Some(self.places.state_dir.join(PLUGIN_LOG)),
            state_file: self.cni.state().unwrap_or_else(|| DEFAULT_KNOWN.into()),
        }
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        let half = || std::thread::available_parallelism().map_or(1, |cpus| (cpus.get() / 2).max(1));
        self.workers.map_or_else(half, usize::from)
    }
}

fn hostname() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| "localhost".to_owned())
}

/// A whole number of `ms`, `s`, `m` or `h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 =
        number.parse().map_err(|_error| format!("`{text}` is no time: write 24h, 30m, 90s or 500ms"))?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("`{text}` has no unit: write 24h, 30m, 90s or 500ms")),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| format!("`{text}` is too long"))
}

/// A time that the plugin may take: the runtime, too, gives up after a while.
fn plugin_limit(text: &str) -> Result<Duration, String> {
    let limit = duration(text)?;
    if (Duration::from_secs(1)..=MAX_TIMEOUT).contains(&limit) {
        Ok(limit)
    } else {
        Err(format!("`{text}` must be from 1s to {}s", MAX_TIMEOUT.as_secs()))
    }
}

/// Shortest life of a certificate: below it, renewal would never rest.
const SHORTEST_LIFE: Duration = Duration::from_secs(2);

/// A time that a certificate may live for.
pub(crate) fn lifetime(text: &str) -> Result<Duration, String> {
    let life = duration(text)?;
    if life < SHORTEST_LIFE { Err(format!("`{text}` is too short: at least 2s")) } else { Ok(life) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Replacement;

    #[test]
    fn times_are_read_with_their_unit() {
        let cases = [
            ("24h", Some(86_400_000)),
            ("90s", Some(90_000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("5", None),
            ("", None),
            ("h", None),
            ("-1s", None),
            ("1d", None),
            ("99999999999999999999h", None),
            ("9999999999999999999h", None),
        ];
        for (text, milliseconds) in cases {
            assert_eq!(duration(text).ok(), milliseconds.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn a_certificate_lives_for_a_while() {
        assert!(lifetime("1s").is_err());
        assert_eq!(lifetime("2s"), Ok(SHORTEST_LIFE));
    }

    #[test]
    fn kube_proxys_work_is_taken_over_as_told() {
        let cases = [
            (&[][..], Some(Replacement::Auto)),
            (&["--kube-proxy-replacement"], Some(Replacement::True)),
            (&["--kube-proxy-replacement=true"], Some(Replacement::True)),
            (&["--kube-proxy-replacement=false"], Some(Replacement::False)),
            (&["--kube-proxy-replacement=auto", "--healthz-bind-address="], Some(Replacement::Auto)),
            (&["--kube-proxy-replacement=maybe"], None),
            (&["--nodeport-addresses", "primary,10.0.0.0/8"], None),
        ];
        for (flags, expected) in cases {
            let words = [&["meshd", "run", "--manifests", "/x"], flags].concat();
            let parsed = Cli::try_parse_from(&words).ok().and_then(|cli| match cli.command {
                Command::Run(config) => Some(config.kube_proxy.kube_proxy_replacement),
                Command::Uninstall(_)
                | Command::Pause
                | Command::RotateRoot(_)
                | Command::Ca(_)
                | Command::Cni => None,
            });
            assert_eq!(parsed, expected, "{flags:?}");
        }
    }

    #[test]
    fn the_flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
