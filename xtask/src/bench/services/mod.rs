//! `cargo xtask bench services`: services, measured against kube-proxy's rules in one run.
//!
//! Each mode has a lab of its own, with the same client and the same backends; modes take turns within each round, so that
//! noise hits all alike, and figures are medians over the rounds. What is printed is also written to
//! `target/bench/services.md`, `services.json` and `services.svg`.

mod chart;
mod cluster;
mod docs;
mod figures;
mod kube_proxy;
mod load;
mod memory;
mod mode;
mod report;
mod site;
mod targets;

use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;

use self::figures::Results;
use self::mode::Mode;
use self::site::Site;
use crate::repo;

/// Flags of `cargo xtask bench services`.
#[derive(Args)]
pub(super) struct Options {
    /// How many services
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000, 5000, 10000], value_parser = services)]
    services: Vec<usize>,
    /// Seconds that each figure is measured for
    #[arg(long, default_value_t = 0.25)]
    seconds: f64,
    /// Rounds over all modes; the figures are medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Modes beside the direct path, which is always measured
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Mode::ALL)]
    modes: Vec<Mode>,
    /// Put the table and the chart into docs/
    #[arg(long)]
    write_docs: bool,
}

fn services(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|error| format!("{error}"))?;
    if (1..=20_000).contains(&count) { Ok(count) } else { Err("from 1 to 20000".to_owned()) }
}

/// The labs that a run makes.
pub(super) fn labs() -> impl Iterator<Item = &'static str> {
    Mode::ALL.into_iter().map(Mode::lab)
}

/// Measures and prints.
pub(super) fn run(options: &Options) -> Result<()> {
    let load_average = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    let load_average = load_average.split(' ').next().unwrap_or_default().to_owned();
    let mut results = Results { load_average, ..Results::default() };
    for services in &options.services {
        measure(options, *services, &mut results)?;
    }
    let folder = repo::root().join("target/bench");
    repo::create_dir(&folder)?;
    let markdown = report::markdown(options, &results);
    let chart = chart::draw(options, &results)?;
    fs::write(folder.join("services.md"), &markdown)?;
    fs::write(folder.join("services.json"), serde_json::to_string_pretty(&report::json(options, &results))?)?;
    fs::write(folder.join("services.svg"), &chart)?;
    if options.write_docs {
        docs::write(&markdown, &chart)?;
    }
    println!("{markdown}");
    if !results.failed.is_empty() {
        bail!("{} of the measurements failed: see the lines below the table", results.failed.len());
    }
    Ok(())
}

/// All modes with so many services. What fails is left out from there on; the others go on.
fn measure(options: &Options, services: usize, results: &mut Results) -> Result<()> {
    let mut sites = Vec::new();
    for mode in Mode::ALL.into_iter().filter(|mode| *mode == Mode::Direct || options.modes.contains(mode)) {
        let mut site = Site::set_up(mode, services)?;
        match site.program() {
            Ok(programmed) => {
                if let Some(programmed) = programmed {
                    eprintln!(
                        "{services} services, {}: known after {:.3} s",
                        mode.name(),
                        programmed.seconds
                    );
                    results.programmed.insert((services, mode), programmed);
                }
                sites.push(site);
            }
            Err(error) => results.fail(services, mode, &error),
        }
    }
    for round in 1..=options.rounds {
        sites.retain_mut(|site| {
            eprintln!("{services} services, round {round}/{}: {}", options.rounds, site.mode.name());
            let measured = results.round(services, site, options.seconds);
            measured.map_err(|error| results.fail(services, site.mode, &error)).is_ok()
        });
    }
    Ok(())
}
