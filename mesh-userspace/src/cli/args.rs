//! The command line. Help, completions and the parser come from this one definition.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::admin::DEFAULT_SOCKET;
use crate::install::{InstallArgs, UninstallArgs, VerifyArgs};
use crate::model::{MeshConfig, NodeName, TrustDomain};
use crate::resources::Severity;

/// Inspect the mesh agent of this node.
#[derive(Clone, Debug, Parser)]
#[command(name = "meshctl", version, arg_required_else_help = true)]
pub struct Cli {
    /// Unix socket of the agent
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET, env = "MESH_SOCKET")]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show the agent, the kernel plane and the enrolled pods; exit 1 if something does not work
    Status(Output),
    /// Check what the mesh needs on this node, with or without an agent; exit 1 if something required is missing
    Check(Output),
    /// Ask the agent at the socket, as a kubelet's probes do; exit 1 if not, with the reason, and 3 if nobody answers
    Probe {
        /// What is asked
        #[arg(value_enum)]
        what: Probe,
    },
    /// List services; with NAME, show its addresses, policies and backends
    Services {
        /// NAME or NAMESPACE/NAME
        name: Option<String>,
        /// How to print it.
        #[command(flatten)]
        output: Output,
    },
    /// List workloads
    Workloads(Output),
    /// Show the last flows
    Flows {
        /// Go on with new ones as they end
        #[arg(long, short)]
        follow: bool,
        /// Show at most so many of the past
        #[arg(long, short = 'n', default_value_t = 50)]
        limit: usize,
        /// How to print it.
        #[command(flatten)]
        output: Output,
    },
    /// List certificates; exit 1 if one is not available
    Certs(Output),
    /// List the kernel maps and how full they are; with NAME, show a map's entries
    Maps {
        /// Such as SERVICES
        name: Option<String>,
        /// Show at most so many entries
        #[arg(long, short = 'n', default_value_t = 100)]
        limit: usize,
        /// How to print it.
        #[command(flatten)]
        output: Output,
    },
    /// List policies, and whom they concern on this node; with a workload, those that apply to it and why
    Policies {
        /// NAMESPACE/POD
        workload: Option<String>,
        /// Show at most so many
        #[arg(long, short = 'n', default_value_t = 100)]
        limit: usize,
        /// Instead of an agent.
        #[command(flatten)]
        manifests: Manifests,
        /// How to print it.
        #[command(flatten)]
        output: Output,
    },
    /// Tell what would become of a connection, and why; exit 1 if the kernel is not as it should be
    Explain {
        /// Who connects: NAMESPACE/POD, an address, `node` or `outside`
        #[arg(value_name = "SRC")]
        from: String,
        /// To what: ADDRESS:PORT, NAME.NAMESPACE:PORT for a service, or NAMESPACE/NAME:PORT for a service or a pod
        #[arg(value_name = "DST:PORT")]
        to: String,
        /// Over UDP instead of TCP
        #[arg(long)]
        udp: bool,
        /// With TLS that asks for this server name, which routes may go by
        #[arg(long, value_name = "NAME", conflicts_with = "udp")]
        sni: Option<String>,
        /// Instead of an agent.
        #[command(flatten)]
        manifests: Manifests,
        /// How to print it.
        #[command(flatten)]
        output: Output,
    },
    /// Report what of the resources is wrong or not honoured; exit 1 if there is an error, 3 if they cannot be had
    // Nothing else may follow the paths here: a shell's pattern can stand for many.
    #[command(mut_arg("paths", |paths| paths.num_args(1..)), group(clap::ArgGroup::new("objects").multiple(true)))]
    Analyze {
        /// Exit 1 from what on
        #[arg(long, value_enum, value_name = "SEVERITY", default_value_t = FailOn::Error)]
        fail_on: FailOn,
        /// Ask the objects of the cluster that the kubeconfig names; manifests go on top of them, and are then reported about
        /// alone
        #[arg(long, group = "objects")]
        cluster: bool,
        /// List all codes, with what to do about each
        #[arg(long, conflicts_with_all = ["objects", "fail_on"])]
        codes: bool,
        /// Instead of an agent.
        #[command(flatten)]
        manifests: Manifests,
        /// How to print it.
        #[command(flatten)]
        output: Output,
    },
    /// Install the mesh on a Kubernetes cluster, or bring an installation up to date; exit 1 if it does not come up in time
    Install(InstallArgs),
    /// Check every object, every node's agent and its `check`; exit 1 if something is not as installed
    VerifyInstall {
        /// What is looked at.
        #[command(flatten)]
        verify: VerifyArgs,
        /// How to print it.
        #[command(flatten)]
        output: Output,
    },
    /// Take the mesh off a cluster and off each of its nodes; exit 1 if something is left
    Uninstall(UninstallArgs),
    /// Write a completion script for a shell to stdout
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Manifests that are asked instead of an agent: what `meshd run` would make of them.
#[derive(Clone, Debug, Args)]
pub struct Manifests {
    /// Ask these Kubernetes manifests, without agent and kernel: a file or a folder; may be given more than once
    #[arg(long = "manifests", short = 'f', value_name = "PATH", group = "objects")]
    pub paths: Vec<PathBuf>,
    /// The node that they are read for [default: the pod's own]
    #[arg(long, value_name = "NAME", requires = "objects")]
    pub node: Option<String>,
    /// Trust domain of every identity
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", requires = "objects")]
    pub trust_domain: TrustDomain,
    /// Trust domains whose identities are taken for those of the own one
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',', requires = "objects")]
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Domain that every service's host ends in
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", requires = "objects")]
    pub cluster_domain: String,
    /// Namespace whose policies without a selector hold for the whole mesh
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system", requires = "objects")]
    pub root_namespace: String,
}

impl Manifests {
    /// Whether they are asked.
    pub const fn given(&self) -> bool {
        !self.paths.is_empty()
    }

    /// What holds for the whole mesh.
    pub fn mesh(&self) -> MeshConfig {
        MeshConfig {
            trust_domain: self.trust_domain.clone(),
            trust_domain_aliases: self.trust_domain_aliases.clone().into(),
            root_namespace: self.root_namespace.as_str().into(),
            cluster_domain: self.cluster_domain.as_str().into(),
            node: self.node.as_deref().map(NodeName::new),
        }
    }
}

/// From what on findings are a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// Nothing.
    Never,
    /// All findings.
    Info,
    /// Warnings and errors.
    Warning,
    /// Errors.
    Error,
}

impl FailOn {
    /// The least severity that is a failure.
    pub const fn severity(self) -> Option<Severity> {
        match self {
            Self::Never => None,
            Self::Info => Some(Severity::Info),
            Self::Warning => Some(Severity::Warning),
            Self::Error => Some(Severity::Error),
        }
    }
}

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// Whether it serves, or stands by and could.
    Ready,
    /// Whether its process turns.
    Live,
}

impl Probe {
    /// The document that says so.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Ready => "/healthz",
            Self::Live => "/livez",
        }
    }
}

/// How to print it.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Output format
    #[arg(long = "output", short = 'o', value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// With more columns.
    Wide,
    /// JSON; one document a line for followed flows.
    Json,
    /// YAML.
    Yaml,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_understood() {
        let cases = [
            ("status", true),
            ("status -o json", true),
            ("--socket /tmp/x status", true),
            ("--socket /tmp/x probe ready", true),
            ("probe live", true),
            ("probe", false),
            ("services default/reviews -o wide", true),
            ("flows --follow --limit 3 -o yaml", true),
            ("completions bash", true),
            ("maps", true),
            ("maps SERVICES -n 5 -o json", true),
            ("explain default/a 10.96.0.1:80 --udp", true),
            ("explain node", false),
            ("explain --manifests /a --manifests /b --node n default/a web.shop:80 -o yaml", true),
            ("explain default/a web.shop:80 --node n", false),
            ("explain --manifests /a --trust-domain A/b node web.shop:80", false),
            ("policies", true),
            ("policies shop/web -n 5 -o wide", true),
            ("policies --manifests /a --root-namespace mesh", true),
            ("policies --manifests /a --trust-domain-aliases old.local,older.local", true),
            ("policies --root-namespace mesh", false),
            ("analyze", true),
            ("analyze -f a.yaml b.yaml --manifests c -o json", true),
            ("analyze --fail-on warning -f a.yaml --root-namespace mesh", true),
            ("analyze --fail-on info", true),
            ("analyze --fail-on all", false),
            ("analyze --cluster", true),
            ("analyze --cluster -f a.yaml b.yaml", true),
            ("analyze --cluster --root-namespace mesh", true),
            ("analyze --root-namespace mesh", false),
            ("analyze --codes", true),
            ("analyze --codes --cluster", false),
            ("analyze -f", false),
            ("analyze a.yaml", false),
            ("policies -f /a shop/web", true),
            ("status -o xml", false),
            ("flows --limit -1", false),
            ("nothing", false),
            ("install --dry-run --set a.b=c -f x.yaml -n mesh --timeout 90s", true),
            ("install --namespace Mesh", false),
            ("install --timeout 5", false),
            ("verify-install --context c -o json", true),
            ("uninstall --keep-root --force", true),
        ];
        for (line, understood) in cases {
            let words = std::iter::once("meshctl").chain(line.split(' '));
            assert_eq!(Cli::try_parse_from(words).is_ok(), understood, "{line}");
        }
    }
}
