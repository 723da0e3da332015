//! What the tests and the demo need of the machine. Each thing that is missing is one line that says how to get it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A machine that can run them.
pub(crate) struct Host {
    /// Where the cgroup v2 hierarchy is.
    pub(crate) cgroup2: PathBuf,
}

/// Checks everything for `cargo xtask COMMAND`, then reports all that is missing at once.
pub(crate) fn check(command: &str) -> Result<Host> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts; mount proc there")?;
    let cgroup2 = mount_point(&mounts, "cgroup2");

    let mut missing = Vec::new();
    let root = nix::unistd::geteuid().is_root();
    if !root {
        missing.push(format!(
            "root: it makes network namespaces and loads eBPF programs; run `sudo -E cargo xtask {command}`"
        ));
    }
    if cgroup2.is_none() {
        missing.push(
            "cgroup v2: it is not in /proc/mounts; do `mkdir -p /sys/fs/cgroup/unified && \
             mount -t cgroup2 none /sys/fs/cgroup/unified`"
                .to_owned(),
        );
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        missing.push(
            "BTF: /sys/kernel/btf/vmlinux does not exist; boot a kernel with CONFIG_DEBUG_INFO_BTF=y"
                .to_owned(),
        );
    }
    if root && let Err(error) = try_bpffs() {
        missing.push(format!(
            "bpffs: it cannot be mounted ({error:#}); \
             use a kernel with CONFIG_BPF_SYSCALL=y and a container with CAP_SYS_ADMIN"
        ));
    }

    match cgroup2 {
        Some(cgroup2) if missing.is_empty() => Ok(Host { cgroup2 }),
        _ if missing.len() == 1 => bail!("`cargo xtask {command}` needs {}", missing[0]),
        _ => {
            for line in &missing {
                eprintln!("{command}: missing {line}");
            }
            bail!(
                "`cargo xtask {command}` cannot run on this machine: {} of what it needs is missing, see above",
                missing.len()
            );
        }
    }
}

/// The first mount point of a file system; the kernel writes white space in it as octal.
fn mount_point(mounts: &str, kind: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_source, target, this) = (fields.next()?, fields.next()?, fields.next()?);
        (this == kind).then(|| PathBuf::from(target.replace("\\040", " ")))
    })
}

fn try_bpffs() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("mesh-xtask-bpffs-{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mounted = mount(Some("bpf"), &dir, Some("bpf"), MsFlags::empty(), None::<&str>)
        .and_then(|()| umount2(&dir, MntFlags::MNT_DETACH));
    fs::remove_dir(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    mounted.context("mount -t bpf")
}

#[cfg(test)]
mod tests {
    use super::mount_point;
    use std::path::Path;

    #[test]
    fn finds_cgroup2_wherever_it_is() {
        let cases = [
            ("unified", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", Some("/sys/fs/cgroup")),
            (
                "hybrid",
                "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                 cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
                Some("/sys/fs/cgroup/unified"),
            ),
            ("white space", "cgroup2 /a\\040b cgroup2 rw 0 0\n", Some("/a b")),
            ("v1 alone", "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", None),
        ];
        for (name, mounts, expected) in cases {
            assert_eq!(mount_point(mounts, "cgroup2").as_deref(), expected.map(Path::new), "{name}");
        }
    }
}
