//! `cargo xtask bench`: the paths through the mesh, measured in one run with one client and one server, as ratios to
//! the direct path and to the floor of any path with two proxies in it.
//!
//! Everything happens in a lab (network namespaces on this machine); what is printed is also written to
//! `target/bench/mesh.md` and `target/bench/mesh.json`.

mod paths;
mod report;
mod usage;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::{aloud, cargo};
use crate::{bootstrap, ebpf, repo};

/// Set for the second stage, which runs with the release binaries.
const STAGE: &str = "MESH_BENCH_STAGE";

/// Flags of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Options {
    /// Seconds that each figure is measured for
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rounds over all paths; the figures are medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Connections that are held for the memory figures
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=9000))]
    idle: u32,
}

/// Builds everything optimised, then measures.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "bench needs root: it makes network namespaces and loads eBPF programs (try `sudo -E cargo xtask bench`)"
        );
    }
    if std::env::var_os(STAGE).is_some() {
        return measure(options);
    }
    bootstrap::run()?;
    ebpf::build()?;
    aloud(cargo().args([
        "build",
        "--release",
        "--bins",
        "--package",
        "mesh-userspace",
        "--package",
        "mesh-tests",
    ]))?;
    let own = std::env::current_exe().context("find xtask's own executable")?;
    let error = Command::new(own)
        .args(std::env::args_os().skip(1))
        .env(STAGE, "measure")
        .env("MESH_BIN_DIR", repo::root().join("target/release"))
        .env("MESH_LOG", "warn")
        .exec();
    Err(error).context("start the second stage of the bench")
}

fn measure(options: &Options) -> Result<()> {
    let results = paths::measure(options)?;
    let folder = repo::root().join("target/bench");
    repo::create_dir(&folder)?;
    let markdown = report::markdown(options, &results);
    fs::write(folder.join("mesh.md"), &markdown)?;
    fs::write(folder.join("mesh.json"), serde_json::to_string_pretty(&report::json(options, &results))?)?;
    println!("{markdown}");
    Ok(())
}
