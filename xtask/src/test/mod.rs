//! `cargo xtask test`: every test, on this machine's kernel.
//!
//! The last line printed is the test runner's own. Whatever must be said besides comes before it, or is a failure.

mod leftovers;

use std::env;

use anyhow::{Result, bail};

use crate::{bootstrap, ebpf, host, process, repo};
use leftovers::Leftovers;

/// The same for every step: with other packages chosen, dependencies would be built again with other features.
const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "mesh-ebpf"];

/// What a test does that lacks a capability of the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privileges {
    /// It fails: nothing may pass here without having run.
    Required,
    /// It may say that it did not run.
    AsFound,
}

impl Privileges {
    /// Required where a CI system says that it is one.
    pub(crate) fn from_env() -> Self {
        match env::var_os("CI") {
            Some(value) if !value.is_empty() && value != "false" => Self::Required,
            _ => Self::AsFound,
        }
    }
}

/// Checks the machine, builds, and runs the tests; `args` go to the runner.
pub(crate) fn run(args: &[String], privileges: Privileges) -> Result<()> {
    let host = host::check("test")?;
    bootstrap::run()?;
    ebpf::build()?;
    build_binaries(privileges)?;
    let before = Leftovers::look(&host);
    // Someone who names a test wants that one.
    if args.is_empty() {
        run_doc_tests(privileges)?;
    }
    let tests = run_tests(args, privileges);
    match (tests, before.new_since(&host)) {
        (Err(tests), Err(left)) => bail!("{tests:#}; and {left:#}"),
        (tests, left) => tests.and(left),
    }
}

/// The tests start `meshd`, `meshctl` and their own peers; cargo builds for a test only the programs of its own package.
fn build_binaries(privileges: Privileges) -> Result<()> {
    let mut cargo = cargo(privileges);
    cargo.args(["build", "--bins"]).args(PACKAGES);
    process::aloud(&mut cargo)
}

fn run_doc_tests(privileges: Privileges) -> Result<()> {
    let mut cargo = cargo(privileges);
    cargo.args(["test", "--doc"]).args(PACKAGES);
    process::aloud(&mut cargo)
}

fn run_tests(args: &[String], privileges: Privileges) -> Result<()> {
    let mut cargo = cargo(privileges);
    if repo::find_program("cargo-nextest").is_some() {
        cargo.args(["nextest", "run"]);
    } else {
        println!("test: running `cargo test`, because cargo-nextest is not on the PATH");
        cargo.args(["test", "--tests"]);
    }
    cargo.args(PACKAGES).args(args);
    process::aloud(&mut cargo)
}

fn cargo(privileges: Privileges) -> std::process::Command {
    let mut cargo = process::cargo();
    if privileges == Privileges::Required {
        cargo.env("MESH_REQUIRE_PRIVILEGED", "1");
    }
    cargo
}
