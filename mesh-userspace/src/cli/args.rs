//! The command line. Help, completions and the parser come from this one definition.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::admin::DEFAULT_SOCKET;

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
    /// Tell where a connection goes, and why; exit 1 if it is refused, or the kernel is not as it should be
    Explain {
        /// Who connects: NAMESPACE/POD, an address, `node` or `outside`
        #[arg(value_name = "SRC")]
        from: String,
        /// To what: ADDRESS:PORT or NAMESPACE/SERVICE:PORT
        #[arg(value_name = "DST:PORT")]
        to: String,
        /// Over UDP instead of TCP
        #[arg(long)]
        udp: bool,
        /// How to print it.
        #[command(flatten)]
        output: Output,
    },
    /// Write a completion script for a shell to stdout
    Completions {
        /// The shell
        shell: Shell,
    },
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
            ("services default/reviews -o wide", true),
            ("flows --follow --limit 3 -o yaml", true),
            ("completions bash", true),
            ("maps", true),
            ("maps SERVICES -n 5 -o json", true),
            ("explain default/a 10.96.0.1:80 --udp", true),
            ("explain node", false),
            ("status -o xml", false),
            ("flows --limit -1", false),
            ("nothing", false),
        ];
        for (line, understood) in cases {
            let words = std::iter::once("meshctl").chain(line.split(' '));
            assert_eq!(Cli::try_parse_from(words).is_ok(), understood, "{line}");
        }
    }
}
