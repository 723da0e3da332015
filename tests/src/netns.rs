//! Named network namespaces and `ip`.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace under `/var/run/netns`. It is the lab that removes it.
#[derive(Clone, Debug)]
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// Makes one, with its loopback up, IPv6 addresses usable at once and forwarding on or off.
    pub(crate) fn create(name: &str, forwards: bool) -> Result<Self> {
        ip(&["netns", "add", name], "")?;
        let netns = Self { name: name.to_owned() };
        let forward = if forwards { "1" } else { "0" };
        netns.run(move || {
            let all = ["ipv6/conf/all/accept_dad", "ipv6/conf/default/accept_dad"];
            for (key, value) in all.map(|key| (key, "0")).into_iter().chain([
                ("ipv4/ip_forward", forward),
                ("ipv6/conf/all/forwarding", forward),
                ("ipv6/conf/default/forwarding", forward),
            ]) {
                std::fs::write(format!("/proc/sys/net/{key}"), value)
                    .with_context(|| format!("set {key}"))?;
            }
            anyhow::Ok(())
        })??;
        netns.ip("link set lo up\n")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, as a manifest's annotation names it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/var/run/netns").join(&self.name)
    }

    /// Opens it, to enter it.
    pub fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("open the network namespace {}", self.name))
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let file = self.open()?;
        let thread = thread::spawn(move || -> Result<T> {
            setns(file, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
            Ok(work())
        });
        thread.join().map_err(|_panic| anyhow!("a thread in {} panicked", self.name))?
    }

    /// Runs lines of `ip` (without the word itself) inside the namespace; stops at the first that fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        ip(&["-n", &self.name, "-batch", "-"], lines).map(drop)
    }

    /// What `ip ARGS` prints inside the namespace.
    pub fn show(&self, args: &[&str]) -> Result<String> {
        ip(&[&["-n", &self.name], args].concat(), "")
    }
}

/// Runs `ip` and returns what it printed.
pub(crate) fn ip(args: &[&str], input: &str) -> Result<String> {
    let spawned = Command::new("ip")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.context("run `ip`: install iproute2")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).context("write to `ip`")?;
    }
    let output = child.wait_with_output().context("wait for `ip`")?;
    if !output.status.success() {
        bail!("ip {} failed: {}\n{input}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
