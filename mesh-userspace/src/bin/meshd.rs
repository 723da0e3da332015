//! `meshd`, the node agent of the mesh.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use mesh_userspace::agent::{self, Cli, Command};
use mesh_userspace::ca;
use tracing_subscriber::EnvFilter;

/// What fails at the API server is told once, by the source: `kube` would tell each try of each kind.
const DEFAULT_LOG: &str = "info,access=warn,kube_client=off,kube_runtime=off";

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One line a connection is asked for with MESH_LOG=info,access=info; `meshctl flows` has them always.
    let filter = EnvFilter::try_from_env("MESH_LOG").unwrap_or_else(|_error| EnvFilter::new(DEFAULT_LOG));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    // A core dump would hold every private key.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "core dumps of this process, with its private keys, are not prevented");
    }
    let result = match cli.command {
        Command::Run(config) => agent::run(*config).map_err(|error| agent::chain(&error)),
        Command::Uninstall(places) => agent::uninstall(&places).map_err(|error| agent::chain(&error)),
        Command::Ca(config) => ca::run(*config).map_err(|error| agent::chain(&error)),
        Command::RotateRoot(config) => agent::rotate_root(&config).map_err(|error| agent::chain(&error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// One line: what, and why down to the cause.
fn fail(error: &str) -> ExitCode {
    eprintln!("meshd: {error}");
    ExitCode::FAILURE
}
