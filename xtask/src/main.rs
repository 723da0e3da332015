//! The project's own commands: `cargo xtask NAME`.
//!
//! One module a command. A command fails with one line that says what failed, where, why and what to do about it;
//! the output of tools that only matter when they fail is in `target/xtask-logs/`.
//! A new command is a module (`src/demo/`, `src/bench/`, ...), a variant of [`Task`] and an arm in [`run`].
#![allow(clippy::print_stdout, reason = "a command-line tool talks to its user")]

mod bench;
mod bootstrap;
mod ci;
mod demo;
mod ebpf;
mod fuzz;
mod host;
mod image;
mod process;
mod repo;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find, or install, what building and testing need besides cargo
    Bootstrap,
    /// Build the eBPF object into target/ebpf/mesh-ebpf.o
    BuildEbpf {
        /// Run clippy for the eBPF crate, for its own target, instead of building the object
        #[arg(long)]
        clippy: bool,
    },
    /// See the mesh at work: Bookinfo on two nodes made of network namespaces (as root)
    Demo(demo::Args),
    /// Run every test on this machine's kernel (as root)
    Test {
        /// Passed on to the test runner, such as the name of one test
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure the paths through the mesh on this machine (as root)
    Bench(bench::Options),
    /// Build the container image as an OCI layout, with its bill of materials; no Docker daemon, not as root
    Image(image::Options),
    /// Fuzz what peers and users can send, each target for a while
    Fuzz(fuzz::Options),
    /// Everything that must pass before a change goes in; .ci/run calls it
    Ci,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Bootstrap => bootstrap::run(),
        Task::BuildEbpf { clippy: false } => ebpf::build(),
        Task::BuildEbpf { clippy: true } => ebpf::clippy(),
        Task::Demo(args) => demo::run(&args),
        Task::Test { args } => test::run(&args, test::Privileges::from_env()),
        Task::Bench(options) => bench::run(&options),
        Task::Image(options) => image::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Ci => ci::run(),
    }
}
