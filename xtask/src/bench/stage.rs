//! The process that measures, and the one that cleans up after it.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus};

use anyhow::{Context, Result, anyhow, bail};
use mesh_tests::Lab;
use nix::sys::signal::{SigSet, Signal};

use crate::process::{aloud, cargo};
use crate::{bootstrap, ebpf, repo};

/// Set for the process that measures.
const STAGE: &str = "MESH_BENCH_STAGE";

/// Builds, has `measure` run in a process with the release binaries, and removes `labs` when that has ended.
pub(super) fn run(labs: &[&str], measure: impl FnOnce() -> Result<()>) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "bench needs root: it makes network namespaces and loads eBPF programs (try `sudo -E cargo xtask bench`)"
        );
    }
    if std::env::var_os(STAGE).is_some() {
        return measure();
    }
    let _lock = lock()?;
    bootstrap::run()?;
    ebpf::build()?;
    let packages = ["--package", "mesh-userspace", "--package", "mesh-tests"];
    aloud(cargo().args(["build", "--release", "--bins"]).args(packages))?;
    watch(labs)
}

/// One at a time, as labs have fixed names: a name in the abstract namespace, which the kernel frees with the process.
fn lock() -> Result<UnixListener> {
    let address = SocketAddr::from_abstract_name("xtask-bench").context("name the lock")?;
    UnixListener::bind_addr(&address)
        .map_err(|_taken| anyhow!("another `cargo xtask bench` is running; wait for its end"))
}

fn watch(labs: &[&str]) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block().context("block signals")?;
    let own = std::env::current_exe().context("find xtask's own executable")?;
    let mut child = Command::new(own)
        .args(std::env::args_os().skip(1))
        .env(STAGE, "measure")
        .env("MESH_BIN_DIR", repo::root().join("target/release"))
        .env("MESH_LOG", "warn")
        .spawn()
        .context("start the process that measures")?;
    let ended = wait(&mut child, &signals);
    for lab in labs {
        Lab::remove(lab)?;
    }
    let (status, signal) = ended?;
    if signal.is_some() || status.signal() == Some(Signal::SIGINT as i32) {
        bail!("interrupted; all that the bench had made is removed");
    }
    if !status.success() {
        bail!("the process that measures ended with {status}; all that it had made is removed");
    }
    Ok(())
}

/// Waits for the end of the child, which a signal brings about.
fn wait(child: &mut Child, signals: &SigSet) -> Result<(ExitStatus, Option<Signal>)> {
    let mut told = None;
    loop {
        if let Some(status) = child.try_wait().context("wait for the process that measures")? {
            return Ok((status, told));
        }
        let signal = signals.wait().context("wait for signals")?;
        if signal != Signal::SIGCHLD {
            told = Some(signal);
            // Ended already is no error.
            drop(child.kill());
        }
    }
}
