//! `cargo xtask demo`: the mesh at work on this machine's kernel, with Istio's Bookinfo on two nodes.
//!
//! Two processes. One plays ([`play`]); the other, which the user started, waits for it and for signals and removes all
//! that was made, however the first one ends. So there is no moment at which Ctrl-C, a failure or a panic leaves anything
//! behind; what a demo leaves that was killed altogether, the next one removes before it begins.

mod commands;
mod play;
mod policy;
mod screen;
mod stage;

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::MetadataExt as _,
            net::{SocketAddr, UnixListener},
            process::ExitStatusExt as _,
        },
    },
    path::{Path, PathBuf},
    process::Child,
};

use anyhow::{Context, Result, anyhow, bail};
use mesh_tests::Lab;
use nix::sys::signal::{SigSet, Signal};

use crate::{bootstrap, ebpf, host, process, repo};

/// What `deploy/demo` calls its network namespaces.
const NAME: &str = "mesh-demo";

/// Flags of `cargo xtask demo`.
#[derive(clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct Args {
    /// Leave the mesh up afterwards, where a step failed as well
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// Take down what --keep has left up
    #[arg(long)]
    down: bool,
    /// Build with --release: better figures, a longer build
    #[arg(long)]
    release: bool,
    /// What the names of all that it makes begin with; for a second one beside the first
    #[arg(long, default_value = NAME, value_parser = name)]
    name: String,
    /// The process that plays; started by the one that watches
    #[arg(long, hide = true)]
    play: bool,
}

fn name(text: &str) -> Result<String, String> {
    let plain = !text.is_empty() && text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if plain || text == NAME { Ok(text.to_owned()) } else { Err("letters and digits, 16 at most".to_owned()) }
}

/// Runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.play {
        return play::run(args);
    }
    let host = host::check("demo")?;
    let _lock = lock(&args.name)?;
    used_by_others(&args.name, &host.cgroup2)?;
    if args.down {
        let there = Lab::remove(&args.name)?;
        println!("demo: {}", if there { "taken down" } else { "none is up" });
        return Ok(());
    }
    if repo::find_program("nsenter").is_none() {
        bail!("`nsenter` is not on the PATH; install util-linux");
    }
    bootstrap::run()?;
    ebpf::build()?;
    let mut cargo = process::cargo();
    cargo.args(["build", "--package", "mesh-userspace", "--package", "mesh-tests", "--bins"]);
    if args.release {
        cargo.arg("--release");
    }
    process::aloud(&mut cargo)?;
    watch(args)
}

/// Where the programs of the mesh were built.
fn programs(release: bool) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo::root().join("target"), PathBuf::from);
    target.join(if release { "release" } else { "debug" })
}

/// One at a time: a name in the abstract namespace, which the kernel frees with the process.
fn lock(name: &str) -> Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(format!("xtask-demo-{name}")).context("name the lock")?;
    UnixListener::bind_addr(&address).map_err(|_taken| {
        anyhow!("another `cargo xtask demo` of the name {name} is running; wait for its end")
    })
}

/// Refuses when somebody else's processes are in the namespaces that would be removed.
fn used_by_others(name: &str, cgroup2: &Path) -> Result<()> {
    let own = format!("0::/{name}/");
    let spaces: Vec<(u64, String)> = entries("/var/run/netns")
        .filter(|entry| entry.starts_with(&format!("{name}-")))
        .filter_map(|entry| Some((fs::metadata(Path::new("/var/run/netns").join(&entry)).ok()?.ino(), entry)))
        .collect();
    for process in entries("/proc").filter(|entry| entry.bytes().all(|byte| byte.is_ascii_digit())) {
        let folder = Path::new("/proc").join(&process);
        let Ok(inode) = fs::metadata(folder.join("ns/net")).map(|space| space.ino()) else { continue };
        let Some((_, space)) = spaces.iter().find(|(known, _)| *known == inode) else { continue };
        // Its path below the mount, as the kernel tells it from here.
        let cgroup = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
        if !cgroup.lines().any(|line| line.starts_with(&own)) {
            bail!(
                "the network namespace {space} is used by process {process}, which is not below {}: end it, or \
                 give the demo another name with --name",
                cgroup2.join(name).display()
            );
        }
    }
    Ok(())
}

fn entries(folder: &str) -> impl Iterator<Item = String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Lets another process play, and cleans up after it.
fn watch(args: &Args) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block().context("block signals")?;
    let exe = std::env::current_exe().context("find this program")?;
    let mut command = std::process::Command::new(exe);
    command.args(["demo", "--play", "--name", &args.name]);
    command.args(args.keep.then_some("--keep")).args(args.release.then_some("--release"));
    // Where the lab looks for meshd and mesh-peer.
    command.env("MESH_BIN_DIR", programs(args.release));
    let mut child = command.spawn().context("start the process that plays")?;

    let (status, signal) = wait(&mut child, &signals)?;
    let interrupted = signal.is_some() || status.signal() == Some(Signal::SIGINT as i32);
    if args.keep && !interrupted {
        // It has said what there is to say.
        return if status.success() { Ok(()) } else { std::process::exit(1) };
    }
    Lab::remove(&args.name)?;
    if interrupted {
        bail!("interrupted; all that the demo had made is removed");
    }
    if let Some(signal) = status.signal() {
        bail!("the process that plays was ended by signal {signal}; all that it had made is removed");
    }
    if !status.success() {
        // It has said why.
        std::process::exit(1);
    }
    println!("demo: all that it made is removed; `cargo xtask demo --keep` leaves it up");
    Ok(())
}

/// Waits for the end of the child, which a signal brings about.
fn wait(child: &mut Child, signals: &SigSet) -> Result<(std::process::ExitStatus, Option<Signal>)> {
    let mut told = None;
    loop {
        if let Some(status) = child.try_wait().context("wait for the process that plays")? {
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

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_is_the_beginning_of_no_other() {
        for (text, taken) in [
            ("mesh-demo", true),
            ("two", true),
            ("mesh-demo-2", false),
            ("", false),
            ("a-b", false),
            ("a/b", false),
        ] {
            assert_eq!(super::name(text).is_ok(), taken, "{text}");
        }
    }
}
