//! `cargo xtask ci`: everything that must pass, the quick things first. It stops at the first that fails.
//!
//! The tests come last, because the last line must be the test runner's own, which has their time.

use std::{env, fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result};

use crate::{bootstrap, ebpf, process, repo, test};

pub(crate) fn run() -> Result<()> {
    step("fmt", || process::aloud(process::cargo().args(["fmt", "--all", "--check"])))?;
    step("bootstrap", bootstrap::run)?;
    step("build-ebpf", ebpf::build)?;
    step("clippy", || {
        process::aloud(process::cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))
    })?;
    step("clippy-ebpf", ebpf::clippy)?;
    if repo::find_program("cargo-deny").is_some() {
        step("deny", deny)?;
    } else {
        println!("ci: deny was NOT run, because cargo-deny is not on the PATH");
    }
    step("doc", || {
        process::aloud(process::cargo().args(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    println!("ci: test");
    test::run(&[], test::Privileges::Required).context("ci: test failed")
}

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("ci: {name}");
    let started = Instant::now();
    run().with_context(|| format!("ci: {name} failed"))?;
    println!("ci: {name} passed in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Licences, banned crates, sources; advisories as well where their database is at hand, for CI has no network to count on.
fn deny() -> Result<()> {
    let mut cargo = process::cargo();
    if has_advisories() {
        cargo.args(["deny", "check"]);
    } else {
        println!("ci: cargo deny leaves out the advisories, because their database is not on this machine");
        cargo.args(["deny", "--offline", "check", "bans", "licenses", "sources"]);
    }
    process::aloud(&mut cargo)
}

fn has_advisories() -> bool {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    cargo_home.is_some_and(|home| {
        fs::read_dir(home.join("advisory-dbs")).is_ok_and(|mut entries| entries.next().is_some())
    })
}
