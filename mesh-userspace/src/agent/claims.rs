//! One agent a node: whoever changes the state folder, the pins, what is attached to a cgroup, or what is attached to and
//! routed in the node's network namespace holds a lock on each.
//!
//! The locks are `flock(2)` on the folders and the namespace themselves (bpffs, cgroupfs and nsfs know it like any file
//! system), so that two agents meet whichever of the four they share. The kernel releases them however the process ends.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::Places;

/// The network namespace of this process, which is the node's.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// How often an agent that stands by looks whether the one before has ended.
const LOOK: Duration = Duration::from_millis(50);

/// Why something cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another agent has it.
    #[error("another agent{} runs with the {what} {}: one agent a node; stop it first", pid(*holder), path.display())]
    Running {
        /// What both want.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Process id of the other, where the kernel tells.
        holder: Option<u32>,
    },
    /// It cannot be made or opened.
    #[error("cannot use the {what} {}", path.display())]
    Folder {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn pid(holder: Option<u32>) -> String {
    holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// What this process has to itself until it ends or drops this.
#[derive(Debug)]
#[must_use]
pub(super) struct Claims {
    _held: Vec<Flock<File>>,
}

impl Claims {
    /// Claims what an agent changes.
    pub(super) fn of_agent(places: &Places, cgroup: &Path) -> Result<Self, ClaimError> {
        let mut held = vec![state(&places.state_dir)?];
        held.extend(pins(&places.bpffs)?);
        held.push(folder("cgroup", cgroup)?);
        held.push(netns()?);
        Ok(Self { _held: held })
    }

    /// Claims what an agent changes once no other agent has any of it. It holds nothing while it waits, so two that wait do
    /// not keep each other from it.
    pub(super) fn awaited(places: &Places, cgroup: &Path) -> Result<Self, ClaimError> {
        let mut told = None;
        loop {
            match Self::of_agent(places, cgroup) {
                Err(ClaimError::Running { what, path, holder }) => {
                    if told != Some(holder) {
                        let (pid, path) = (holder.unwrap_or(0), path.display());
                        tracing::info!(pid, what, %path, "standing by: another agent runs on this node");
                        told = Some(holder);
                    }
                    std::thread::sleep(LOOK);
                }
                claimed => {
                    if told.is_some() && claimed.is_ok() {
                        tracing::info!("the agent before has ended: taking over");
                    }
                    return claimed;
                }
            }
        }
    }

    /// Claims what an uninstallation removes, the routes of any agent among it. No agent can be attached to any cgroup through these pins meanwhile: it
    /// would hold them.
    pub(super) fn of_uninstall(places: &Places) -> Result<Self, ClaimError> {
        let mut held = vec![state(&places.state_dir)?];
        held.extend(pins(&places.bpffs)?);
        held.push(netns()?);
        Ok(Self { _held: held })
    }
}

fn netns() -> Result<Flock<File>, ClaimError> {
    folder("network namespace", Path::new(OWN_NETNS))
}

/// The state folder by a file in it, which agents of earlier versions lock as well.
fn state(path: &Path) -> Result<Flock<File>, ClaimError> {
    const WHAT: &str = "state folder";
    let failed = |source| ClaimError::Folder { what: WHAT, path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let open = || {
        let lock = path.join("lock");
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(lock)
    };
    claim(WHAT, path, open().map_err(failed)?)
}

/// The folder for pins; `None` where it cannot be one, which whoever uses it says better.
fn pins(path: &Path) -> Result<Option<Flock<File>>, ClaimError> {
    if !crate::datapath::check::in_bpffs(path) {
        return Ok(None);
    }
    let failed = |source| ClaimError::Folder { what: "folder for pins", path: path.to_owned(), source };
    loop {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let lock = folder("folder for pins", path)?;
        // An uninstallation may have removed it in between, and somebody may have made it anew.
        let same =
            |there: fs::Metadata, held: fs::Metadata| (there.dev(), there.ino()) == (held.dev(), held.ino());
        if fs::metadata(path).is_ok_and(|there| lock.metadata().is_ok_and(|held| same(there, held))) {
            return Ok(Some(lock));
        }
    }
}

fn folder(what: &'static str, path: &Path) -> Result<Flock<File>, ClaimError> {
    let file =
        File::open(path).map_err(|source| ClaimError::Folder { what, path: path.to_owned(), source })?;
    claim(what, path, file)
}

fn claim(what: &'static str, path: &Path, file: File) -> Result<Flock<File>, ClaimError> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, errno)| match errno {
        Errno::EWOULDBLOCK => ClaimError::Running { what, path: path.to_owned(), holder: holder(&file) },
        errno => ClaimError::Folder { what, path: path.to_owned(), source: errno.into() },
    })
}

/// Who holds the lock on a file (`proc_locks(5)`); a process of another pid namespace is not told.
fn holder(file: &File) -> Option<u32> {
    let held = file.metadata().ok()?;
    let (major, minor) = (libc::major(held.dev()), libc::minor(held.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", held.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // 1: FLOCK  ADVISORY  WRITE 708 08:01:2491 0 EOF
        let [_, "FLOCK", _, _, pid, locked, ..] = fields[..] else { return None };
        (locked == file).then(|| pid.parse().ok().filter(|pid| *pid != 0))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_claimed_once_and_free_again_afterwards() {
        // Of its own: tests share the others.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let places = Places { bpffs: dir.path().join("no-bpffs"), state_dir: dir.path().join("state") };
        let cgroup = dir.path().join("cgroup");
        fs::create_dir(&cgroup).unwrap();
        let first = Claims::of_agent(&places, &cgroup).unwrap();
        let own = std::process::id();
        let error = Claims::of_uninstall(&places).unwrap_err().to_string();
        let expected =
            format!("another agent (pid {own}) runs with the state folder {}", places.state_dir.display());
        assert!(error.starts_with(&expected), "{error}");
        let elsewhere = Places { state_dir: dir.path().join("other"), ..places.clone() };
        let error = Claims::of_agent(&elsewhere, &cgroup).unwrap_err().to_string();
        assert!(error.contains("runs with the cgroup"), "{error}");
        let error = Claims::of_uninstall(&elsewhere).unwrap_err().to_string();
        assert!(error.contains("runs with the network namespace"), "{error}");
        let waits = {
            let (places, cgroup) = (places.clone(), cgroup.clone());
            std::thread::spawn(move || Claims::awaited(&places, &cgroup).map(drop))
        };
        assert!(!waits.is_finished(), "the first has it");
        drop(first);
        waits.join().unwrap().unwrap();
        drop(Claims::of_uninstall(&elsewhere).unwrap());
        drop(Claims::of_agent(&elsewhere, &cgroup).unwrap());
        assert!(!places.bpffs.exists(), "what is no bpffs is left alone");
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { bpffs: dir.path().join("b"), state_dir: dir.path().join("s") };
        let error = Claims::of_agent(&places, &dir.path().join("none")).unwrap_err();
        assert!(matches!(error, ClaimError::Folder { what: "cgroup", .. }), "{error}");
    }
}
