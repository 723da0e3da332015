//! `cargo xtask bench`: what the mesh costs, measured in labs (network namespaces on this machine).
//!
//! Two processes. One measures, with release binaries; the other, which the user started, builds them, waits for it and for
//! signals, and removes the labs however the first one ends.

mod machine;
mod mesh;
mod scale;
mod services;
mod stage;
mod usage;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Flags of `cargo xtask bench`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
#[group(skip)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    mesh: mesh::Options,
}

#[derive(Subcommand)]
enum What {
    /// Measure services against kube-proxy's rules
    Services(services::Options),
    /// Measure the agent in a large synthetic cluster behind an API server
    Scale(scale::Options),
}

/// Builds everything optimised, then measures.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.what {
        None => stage::run(&[mesh::LAB], || mesh::run(&options.mesh)),
        Some(What::Services(options)) => {
            let labs: Vec<&str> = services::labs().collect();
            stage::run(&labs, || services::run(options))
        }
        Some(What::Scale(options)) => stage::run(&[scale::LAB], || scale::run(options)),
    }
}
