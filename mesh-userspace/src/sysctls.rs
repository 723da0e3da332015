//! The sysctls of pods' namespaces, where `/proc/sys` is read-only: in every container that is not `privileged`, whatever its
//! capabilities, the runtime has mounted it so.
//!
//! The process takes a mount namespace of its own and makes that one mount writable there. Nothing is mounted: `/proc` stays
//! the one that there was, with the same processes, and what the node mounts below `/sys/fs/bpf` and `/var/run/netns` goes on
//! to arrive, for a copy of a mount receives what the mount receives. Neither the machine nor another container sees a
//! difference.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};

/// The sysctls that are switched on in an enrolled pod's namespace. The last is not there where the kernel has no IPv6.
pub(crate) const SYSCTLS: [&str; 3] = [
    "/proc/sys/net/ipv4/tcp_fwmark_accept",
    "/proc/sys/net/ipv4/fwmark_reflect",
    "/proc/sys/net/ipv6/fwmark_reflect",
];

/// Below what all of them are.
const FOLDER: &str = "/proc/sys/net";
/// What may be mounted read-only, the innermost first.
const MOUNTS: [&str; 3] = [FOLDER, "/proc/sys", "/proc"];

/// Why sysctls cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SysctlError {
    #[error("cannot look at {FOLDER}: mount procfs at /proc")]
    Look(#[source] Errno),
    #[error(
        "{FOLDER} is read-only, and a mount namespace in which it is not is refused: grant CAP_SYS_ADMIN, and a seccomp \
         profile that allows unshare()"
    )]
    Unshare(#[source] Errno),
    #[error(
        "{0} is read-only, and mounting it anew is refused: AppArmor (run unconfined), SELinux (type spc_t), seccomp or a \
         user namespace is in the way; or mount it writable"
    )]
    Remount(&'static str, #[source] Errno),
    #[error("{FOLDER} is read-only, and stays so: mount /proc/sys writable")]
    Stays,
    #[error("{0} cannot be written: run as root with CAP_NET_ADMIN")]
    Access(&'static str, #[source] Errno),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Makes sysctls writable for the calling thread and those that it starts, and returns whether that had to be done. Call
/// before any other thread is started.
pub(crate) fn make_writable() -> Result<bool, SysctlError> {
    let Some(keep) = read_only()? else { return Ok(false) };
    unshare(CloneFlags::CLONE_NEWNS).map_err(SysctlError::Unshare)?;
    for path in MOUNTS {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | keep;
        match mount(None::<&str>, path, None::<&str>, flags, None::<&str>) {
            // Not a mount.
            Err(Errno::EINVAL) => {}
            Err(error) => return Err(SysctlError::Remount(path, error)),
            Ok(()) if read_only()?.is_none() => return Ok(true),
            Ok(()) => {}
        }
    }
    Err(SysctlError::Stays)
}

/// Whether [`make_writable`] does what it is for, tried on a thread of its own.
pub(crate) fn check() -> Result<bool, SysctlError> {
    let attempt = || {
        let had_to = make_writable()?;
        for path in SYSCTLS.into_iter().filter(|path| Path::new(path).exists()) {
            access(path, AccessFlags::W_OK).map_err(|error| SysctlError::Access(path, error))?;
        }
        Ok(had_to)
    };
    let thread = std::thread::Builder::new().name("sysctls".into()).spawn(attempt);
    let joined = thread.map_err(SysctlError::Thread)?.join();
    joined.unwrap_or_else(|_panic| Err(SysctlError::Thread(io::Error::other("it panicked"))))
}

/// The mount's other flags, which are to stay, if it is read-only.
fn read_only() -> Result<Option<MsFlags>, SysctlError> {
    let flags = statvfs(FOLDER).map_err(SysctlError::Look)?.flags();
    let pairs = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ];
    let keep = pairs.into_iter().filter(|(held, _)| flags.contains(*held)).map(|(_, kept)| kept).collect();
    Ok(flags.contains(FsFlags::ST_RDONLY).then_some(keep))
}
