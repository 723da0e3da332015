//! What the kernel must offer, each asked for real: what it is for, whether it is there, and what to do if not.

use std::error::Error as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use socket2::{Domain, Socket, Type};

/// One thing that the agent needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// What it is.
    pub name: &'static str,
    /// What the agent needs it for.
    pub purpose: &'static str,
    /// Whether it is there, and if not why not.
    pub found: Result<String, String>,
    /// How to get it.
    pub remedy: &'static str,
}

/// Capabilities that the agent uses (`include/uapi/linux/capability.h`).
///
/// `CAP_SYS_ADMIN`, without which no process enters a namespace, holds all that `CAP_BPF` and `CAP_PERFMON` allow
/// (`bpf_capable()`, `perfmon_capable()`).
const CAPABILITIES: [(u32, &str, &str); 4] = [
    (10, "CAP_NET_BIND_SERVICE", "addresses of UDP services and clients with ports below 1024"),
    (12, "CAP_NET_ADMIN", "rules, routes, socket marks and transparent sockets in pods"),
    (19, "CAP_SYS_PTRACE", "namespaces of processes of other users"),
    (21, "CAP_SYS_ADMIN", "entering network namespaces, loading programs and maps"),
];

/// Asks for everything. `bpffs` and `cgroup` are the folders that the agent would use.
pub fn needs(bpffs: &Path, cgroup: &Path) -> Vec<Need> {
    let mut needs = vec![
        Need {
            name: "kernel 5.14",
            purpose: "sk_lookup, cgroup and netns links, atomic program swap, netns cookies",
            found: kernel(),
            remedy: "run a kernel of 5.14 or later; 6.18 is tested",
        },
        Need {
            name: "BTF",
            purpose: "loading the eBPF object",
            found: readable("/sys/kernel/btf/vmlinux"),
            remedy: "build the kernel with CONFIG_DEBUG_INFO_BTF=y",
        },
        Need {
            name: "bpffs",
            purpose: "programs and maps that outlive the agent",
            found: file_system(bpffs, BPF_FS_MAGIC, "BPF file system"),
            remedy: "mount -t bpf bpf /sys/fs/bpf",
        },
        Need {
            name: "cgroup v2",
            purpose: "programs on connect, sendmsg, recvmsg, getpeername and sock_release",
            found: file_system(cgroup, CGROUP2_SUPER_MAGIC, "cgroup v2 folder"),
            remedy: "boot with cgroup v2 mounted, or give its mount point with --cgroup",
        },
        Need {
            name: "network namespaces",
            purpose: "listeners inside pods",
            found: readable("/proc/self/ns/net"),
            remedy: "build the kernel with CONFIG_NET_NS=y",
        },
        Need {
            name: "netns cookies",
            purpose: "telling enrolled pods in the connect hook (SO_NETNS_COOKIE, 5.14)",
            found: crate::socket::own_netns_cookie().map(|cookie| cookie.to_string()).map_err(text),
            remedy: "run a kernel of 5.14 or later",
        },
        Need {
            name: "IP_TRANSPARENT",
            purpose: "listeners that keep the original destination",
            found: transparent(),
            remedy: "grant CAP_NET_ADMIN",
        },
        Need {
            name: "tcp_fwmark_accept",
            purpose: "replies of applications to the agent",
            found: readable("/proc/sys/net/ipv4/tcp_fwmark_accept"),
            remedy: "build the kernel with CONFIG_IP_MULTIPLE_TABLES=y",
        },
        Need {
            name: "policy routing",
            purpose: "captured connections come back into the pod",
            found: readable("/proc/sys/net/ipv4/fwmark_reflect"),
            remedy: "build the kernel with CONFIG_IP_MULTIPLE_TABLES=y and CONFIG_IPV6_MULTIPLE_TABLES=y",
        },
    ];
    needs.push(Need {
        name: "sysctls of pods",
        purpose: "switching the two above on in a pod's namespace",
        found: sysctls(),
        remedy: "grant CAP_SYS_ADMIN, and run with AppArmor and seccomp unconfined and the SELinux type spc_t",
    });
    let effective = effective_capabilities();
    needs.extend(CAPABILITIES.map(|(bit, name, purpose)| Need {
        name,
        purpose,
        found: match effective {
            Ok(set) if set & (1 << bit) != 0 => Ok("effective".to_owned()),
            Ok(_) => Err("not in the effective set".to_owned()),
            Err(ref error) => Err(error.clone()),
        },
        remedy: "run as root, or grant the capability to the agent's container",
    }));
    needs
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn readable(path: &str) -> Result<String, String> {
    fs::metadata(path).map(|_| path.to_owned()).map_err(|error| format!("{path}: {error}"))
}

fn file_system(path: &Path, magic: nix::sys::statfs::FsType, kind: &str) -> Result<String, String> {
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or(path);
    match statfs(existing) {
        Ok(stat) if stat.filesystem_type() == magic => Ok(path.display().to_string()),
        Ok(_) => Err(format!("{} is in no {kind}", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Whether a folder is, or would be made, in a BPF file system.
pub fn in_bpffs(folder: &Path) -> bool {
    file_system(folder, BPF_FS_MAGIC, "BPF file system").is_ok()
}

fn sysctls() -> Result<String, String> {
    match crate::sysctls::check() {
        Ok(false) => Ok("can be written".to_owned()),
        Ok(true) => Ok("/proc/sys is read-only here; the agent makes it writable for itself".to_owned()),
        Err(error) => {
            let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
            Err(format!("{error}{cause}"))
        }
    }
}

fn kernel() -> Result<String, String> {
    let name = nix::sys::utsname::uname().map_err(|error| error.to_string())?;
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 14) { Ok(release) } else { Err(format!("this is {release}")) }
}

fn transparent() -> Result<String, String> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(text)?;
    socket.set_ip_transparent_v4(true).map_err(text)?;
    let listener: TcpListener = socket.into();
    drop(listener);
    Ok(format!("{} can be listened on transparently", Ipv4Addr::LOCALHOST))
}

fn effective_capabilities() -> Result<u64, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(text)?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .ok_or("no CapEff in /proc/self/status")?;
    u64::from_str_radix(line.trim(), 16).map_err(|error| error.to_string())
}

/// The mount point of cgroup v2, from `/proc/mounts`: a normal node has it at `/sys/fs/cgroup`, a hybrid one elsewhere.
pub fn cgroup2_mount() -> io::Result<std::path::PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    fields
        .find_map(|mut line| {
            let (path, kind) = (line.nth(1)?, line.next()?);
            (kind == "cgroup2").then(|| path.into())
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "cgroup v2 is not mounted"))
}
