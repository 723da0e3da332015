//! `cargo xtask fuzz`: new inputs for the fuzz targets, each for a while.
//!
//! libFuzzer is linked into one program (`fuzz/`); the stable compiler builds it with coverage counters in our own crates:
//! neither cargo-fuzz nor a nightly is needed, and the dependencies are those of the tests. The seeds are in `fuzz/corpus/TARGET`; what libFuzzer finds interesting is kept in
//! `target/fuzz/corpus`, and what fails is put beside the seeds, where a test goes on looking at it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{ebpf, process, repo};

/// What libFuzzer counts by: `SanitizerCoverage` with a counter a branch, and the operands of comparisons.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// An input that takes longer is a finding, in seconds.
const TIMEOUT: u32 = 10;
/// A program that takes more memory is a finding, in MiB.
const MEMORY: u32 = 2048;
/// Longest input, in bytes: above what the longest field that is read may have.
const LENGTH: u32 = 8192;

#[derive(Args)]
pub(crate) struct Options {
    /// Fuzz these alone, by the name of their folder in fuzz/corpus
    targets: Vec<String>,
    /// How long each runs
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let targets = targets(&options.targets)?;
    ebpf::build()?;
    let program = build()?;
    let mut failed = Vec::new();
    for target in &targets {
        println!("fuzz: {target} for {} s", options.seconds);
        match fuzz(&program, target, options.seconds) {
            Ok(summary) => println!("fuzz: {target}: {summary}, nothing found"),
            Err(error) => {
                println!("fuzz: {target}: {error:#}");
                failed.push(target.as_str());
            }
        }
    }
    if !failed.is_empty() {
        bail!("fuzzing found something in {}: see above", failed.join(", "));
    }
    Ok(())
}

fn corpora() -> PathBuf {
    repo::root().join("fuzz/corpus")
}

/// Those that were asked for, or all that have a corpus.
fn targets(asked: &[String]) -> Result<Vec<String>> {
    let folder = corpora();
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut known: Vec<String> = names.collect();
    known.sort();
    if let Some(unknown) = asked.iter().find(|name| !known.contains(name)) {
        bail!("there is no fuzz target {unknown}; there are {}", known.join(", "));
    }
    Ok(if asked.is_empty() { known } else { asked.to_vec() })
}

/// What the fuzz targets are built with: as the tests, so that no dependency is built again.
const BUILD: [&str; 8] =
    ["build", "--workspace", "--exclude", "mesh-ebpf", "--bin", "fuzz", "--features", "mesh-fuzz/libfuzzer"];

/// The program, in which all that is ours is instrumented.
fn build() -> Result<PathBuf> {
    println!("fuzz: building");
    // Cargo calls it for the crates of the workspace, with the compiler and its arguments.
    let wrapper = repo::root().join("target/fuzz/rustc");
    repo::write_atomically(&wrapper, script().as_bytes(), 0o755)?;
    let mut cargo = process::cargo();
    cargo.args(BUILD).env("RUSTC_WORKSPACE_WRAPPER", &wrapper);
    process::logged(&mut cargo, "fuzz-build", None)
        .context("the fuzz targets cannot be built (libFuzzer needs a C++ compiler)")?;
    let folder = env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo::root().join("target"), PathBuf::from);
    Ok(folder.join("debug/fuzz"))
}

/// Build scripts are programs of their own, without libFuzzer.
fn script() -> String {
    let coverage = COVERAGE.join(" ");
    format!(
        "#!/bin/sh\ncase \" $* \" in\n*' build_script_'*) exec \"$@\" ;;\n*) exec \"$@\" {coverage} ;;\nesac\n"
    )
}

/// Runs one target to the end of its time; what it came to.
fn fuzz(program: &Path, target: &str, seconds: u32) -> Result<String> {
    let seeds = corpora().join(target);
    let kept = repo::root().join("target/fuzz/corpus").join(target);
    repo::create_dir(&kept)?;
    let dictionary = repo::root().join(format!("fuzz/{target}.dict"));
    let mut command = Command::new(program);
    command
        .env("MESH_FUZZ_TARGET", target)
        .args([
            format!("-max_total_time={seconds}"),
            format!("-timeout={TIMEOUT}"),
            format!("-rss_limit_mb={MEMORY}"),
            format!("-max_len={LENGTH}"),
            format!("-artifact_prefix={}/found-", seeds.display()),
            "-print_final_stats=1".to_owned(),
        ])
        .args(dictionary.is_file().then(|| format!("-dict={}", dictionary.display())))
        // New inputs go into the first folder.
        .args([&kept, &seeds]);
    let step = format!("fuzz-{target}");
    process::logged(&mut command, &step, None).with_context(|| {
        format!("the input is in {} as found-*: fix what it shows, and keep it", seeds.display())
    })?;
    summary(&repo::log(&step)?)
}

/// What libFuzzer counted.
fn summary(log: &Path) -> Result<String> {
    let bytes = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let counted = |name: &str| {
        let line = text.lines().rev().find_map(|line| line.strip_prefix(&format!("stat::{name}:")));
        line.map_or("?", str::trim).to_owned()
    };
    let covered = text.lines().rev().find_map(|line| line.split("cov: ").nth(1)?.split(' ').next());
    Ok(format!(
        "{} executions, {} new inputs, {} edges covered",
        counted("number_of_executed_units"),
        counted("new_units_added"),
        covered.unwrap_or("?")
    ))
}
