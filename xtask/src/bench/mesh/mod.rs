//! `cargo xtask bench`: the paths through the mesh, measured in one run with one client and one server, as ratios to
//! the direct path and to the floor of any path with two proxies in it.
//!
//! What is printed is also written to `target/bench/mesh.md` and `target/bench/mesh.json`.

mod paths;
mod report;

use std::fs;

use anyhow::Result;
use clap::Args;

use crate::repo;

/// Name of its lab.
pub(super) const LAB: &str = "mesh-bench";

/// Flags of `cargo xtask bench` without a subcommand.
#[derive(Args)]
pub(super) struct Options {
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

/// Measures and prints.
pub(super) fn run(options: &Options) -> Result<()> {
    let results = paths::measure(options)?;
    let folder = repo::root().join("target/bench");
    repo::create_dir(&folder)?;
    let markdown = report::markdown(options, &results);
    fs::write(folder.join("mesh.md"), &markdown)?;
    fs::write(folder.join("mesh.json"), serde_json::to_string_pretty(&report::json(options, &results))?)?;
    println!("{markdown}");
    Ok(())
}
