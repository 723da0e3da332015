//! `meshd`, the node agent of the mesh.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use mesh_userspace::agent::{self, Cli, Command};
use mesh_userspace::{ca, cni};
use tracing_subscriber::EnvFilter;

/// musl's own takes one lock for all threads; glibc's does well.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What fails at the API server is told once, by the source: `kube` would tell each try of each kind.
const DEFAULT_LOG: &str = "info,access=warn,kube_client=off,kube_runtime=off";

fn main() -> ExitCode {
    if cni::is_plugin(std::env::args_os().next().as_deref()) {
        return cni::main();
    }
    let cli = Cli::parse();
    if matches!(cli.command, Command::Cni) {
        return cni::main();
    }
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
        Command::Uninstall(config) => agent::uninstall(&config).map_err(|error| agent::chain(&error)),
        Command::Pause => agent::pause().map_err(|error| agent::chain(&error)),
        // Never here: see above.
        Command::Cni => Ok(()),
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
