//! One agent a node: whoever changes the state folder, the pins, what is attached to a cgroup, or what is attached to and
//! routed in the node's network namespace holds a lock on each.
//!
//! The locks are `flock(2)` on what root alone can open, for whoever can open a file can keep its lock: a file in the state
//! folder, the folder for pins, and for the cgroup and the namespace, which anybody may open, a folder each in the BPF file
//! system, named by their inodes. So two agents meet whichever of the four they share. The kernel releases the locks however
//! the process ends.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::Places;

/// Where a BPF file system is, if `--bpffs` is in none.
const BPFFS: &str = "/sys/fs/bpf";
/// The folder of claims at its root.
const CLAIMS: &str = "mesh-claims";
/// How often a folder is made anew that somebody else had made there.
const MAX_FOREIGN: usize = 8;

/// The network namespace of this process, which is the node's.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// How often an agent that stands by looks whether the one before has ended.
const LOOK: Duration = Duration::from_millis(50);
/// How often it asks the kernel which one that is: for that all locks of the node are read.
const ASK: Duration = Duration::from_secs(10);

/// Why something cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another agent has it.
    #[error("another agent{} runs with the {what} {}: one agent a node; stop it first", locked, path.display())]
    Running {
        /// What both want.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What the other has locked.
        locked: Locked,
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

/// A file that another process has locked, as `/proc/locks` names it. Who that is is asked when it is said.
#[derive(Debug)]
pub struct Locked(Option<String>);

impl Locked {
    fn of(file: &File) -> Self {
        Self(file.metadata().ok().map(|held| {
            let (major, minor) = (libc::major(held.dev()), libc::minor(held.dev()));
            format!("{major:02x}:{minor:02x}:{}", held.ino())
        }))
    }

    /// Process id of who holds the lock (`proc_locks(5)`); a process of another pid namespace is not told.
    fn holder(&self) -> Option<u32> {
        let file = self.0.as_ref()?;
        let locks = fs::read_to_string("/proc/locks").ok()?;
        locks.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // 1: FLOCK  ADVISORY  WRITE 708 08:01:2491 0 EOF
            let [_, "FLOCK", _, _, pid, locked, ..] = fields[..] else { return None };
            (locked == file).then(|| pid.parse().ok().filter(|pid| *pid != 0))?
        })
    }
}

impl fmt::Display for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.holder().map_or(Ok(()), |pid| write!(f, " (pid {pid})"))
    }
}

/// What this process has to itself until it ends or drops this.
#[derive(Debug)]
#[must_use]
pub(super) struct Claims {
    _held: Vec<Flock<File>>,
    /// The folder of claims, where there is a BPF file system.
    folder: Option<PathBuf>,
}

impl Claims {
    /// Claims what an agent changes.
    pub(super) fn of_agent(places: &Places, cgroup: &Path) -> Result<Self, ClaimError> {
        let mut held = vec![state(&places.state_dir)?];
        held.extend(pins(&places.bpffs)?);
        let folder = claims_folder(&places.bpffs);
        held.extend(inode("cgroup", cgroup, folder.as_deref())?);
        held.extend(netns(folder.as_deref())?);
        Ok(Self { _held: held, folder })
    }

    /// Claims what an agent changes once no other agent has any of it. It holds nothing while it waits, so two that wait do
    /// not keep each other from it.
    pub(super) fn awaited(places: &Places, cgroup: &Path) -> Result<Self, ClaimError> {
        let (mut asked, mut told) = (None::<Instant>, None);
        loop {
            match Self::of_agent(places, cgroup) {
                Err(ClaimError::Running { what, path, locked }) => {
                    if asked.is_none_or(|asked| asked.elapsed() >= ASK) {
                        asked = Some(Instant::now());
                        let holder = locked.holder();
                        if told != Some(holder) {
                            let (pid, path) = (holder.unwrap_or(0), path.display());
                            tracing::info!(pid, what, %path, "standing by: another agent runs on this node");
                            told = Some(holder);
                        }
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
        let folder = claims_folder(&places.bpffs);
        held.extend(netns(folder.as_deref())?);
        Ok(Self { _held: held, folder })
    }

    /// Removes the folder of claims, with those that nobody else holds: what an uninstallation does last.
    pub(super) fn remove(self) {
        let Some(folder) = &self.folder else { return };
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(file) = File::open(entry.path()) else { continue };
            // Held until it is gone: whoever opened it before that cannot have it, or looks again.
            let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
            if lock.is_ok() || entry.file_name().to_str() == netns_name().as_deref() {
                // One that is gone is as it should be.
                let _ = fs::remove_dir(entry.path());
            }
            drop(lock);
        }
        // One that holds somebody's claim stays.
        let _ = fs::remove_dir(folder);
    }
}

fn netns(folder: Option<&Path>) -> Result<Option<Flock<File>>, ClaimError> {
    inode("network namespace", Path::new(OWN_NETNS), folder)
}

/// The claim of this process's own namespace, by name.
fn netns_name() -> Option<String> {
    fs::metadata(OWN_NETNS).ok().map(|found| claim_name("network namespace", &found))
}

fn claim_name(what: &str, of: &fs::Metadata) -> String {
    format!("{}-{}", what.replace(' ', "-"), of.ino())
}

/// The folder of claims: at the root of the file system that is mounted, so that agents with other folders for pins have
/// the same. `None` where there is no BPF file system, and so no agent.
fn claims_folder(bpffs: &Path) -> Option<PathBuf> {
    let folder = [bpffs, Path::new(BPFFS)].into_iter().find(|path| crate::datapath::check::in_bpffs(path))?;
    let there = folder.ancestors().find_map(|path| fs::canonicalize(path).ok())?;
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    let of_it = device(&there)?;
    let root = there.ancestors().take_while(|path| device(path) == Some(of_it)).last()?;
    Some(root.join(CLAIMS))
}

/// Claims what anybody may open, by a folder that nobody else can.
fn inode(what: &'static str, path: &Path, folder: Option<&Path>) -> Result<Option<Flock<File>>, ClaimError> {
    let failed = |path: &Path, source| ClaimError::Folder { what, path: path.to_owned(), source };
    let named = fs::metadata(path).map_err(|source| failed(path, source))?;
    let Some(folder) = folder else { return Ok(None) };
    let name = claim_name(what, &named);
    for _ in 0..MAX_FOREIGN {
        private(folder).map_err(|source| failed(folder, source))?;
        let own = folder.join(&name);
        private(&own).map_err(|source| failed(&own, source))?;
        match File::open(&own) {
            Ok(file) => {
                let lock = claim(what, path, file)?;
                // An uninstallation may have removed it in between.
                if is_at(&lock, &own) {
                    return Ok(Some(lock));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&own, error)),
        }
    }
    Err(failed(folder, io::Error::other("somebody makes it anew again and again")))
}

/// Makes a folder that root alone can open. What somebody else has put in its place goes: a BPF file system may let anybody
/// make folders in its root. A folder gets another name, as root may always do in its own; removing what is in it may take
/// `CAP_DAC_OVERRIDE`.
fn private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        done => return done,
    }
    let found = fs::symlink_metadata(path)?;
    let is_own = found.uid() == nix::unistd::geteuid().as_raw();
    let others = found.mode() & 0o077;
    if found.is_dir() && is_own && others == 0 {
        return Ok(());
    }
    if found.is_dir() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A BPF file system takes no dots in names.
        let aside = path.with_file_name(format!("{name}-foreign-{:016x}", fastrand::u64(..)));
        fs::rename(path, &aside)?;
        // Where it can be.
        let _ = fs::remove_dir_all(aside);
    } else {
        fs::remove_file(path)?;
    }
    DirBuilder::new().mode(0o700).create(path)
}

/// Whether an open file is what is at a path.
fn is_at(file: &File, path: &Path) -> bool {
    let same =
        |there: fs::Metadata, held: fs::Metadata| (there.dev(), there.ino()) == (held.dev(), held.ino());
    fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|held| same(there, held)))
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
        let lock = claim("folder for pins", path, File::open(path).map_err(failed)?)?;
        // An uninstallation may have removed it in between, and somebody may have made it anew.
        if is_at(&lock, path) {
            return Ok(Some(lock));
        }
    }
}

fn claim(what: &'static str, path: &Path, file: File) -> Result<Flock<File>, ClaimError> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, errno)| match errno {
        Errno::EWOULDBLOCK => ClaimError::Running { what, path: path.to_owned(), locked: Locked::of(&file) },
        errno => ClaimError::Folder { what, path: path.to_owned(), source: errno.into() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_claimed_once_and_free_again_afterwards() {
        let dir = own_bpffs();
        let places = Places {
            bpffs: dir.path().join("bpf/pins"),
            state_dir: dir.path().join("state"),
            source_state: dir.path().join("source"),
        };
        let cgroup = dir.path().join("cgroup");
        fs::create_dir(&cgroup).unwrap();
        let first = Claims::of_agent(&places, &cgroup).unwrap();
        let own = std::process::id();
        let error = Claims::of_uninstall(&places).unwrap_err().to_string();
        let expected =
            format!("another agent (pid {own}) runs with the state folder {}", places.state_dir.display());
        assert!(error.starts_with(&expected), "{error}");
        let elsewhere = Places { state_dir: dir.path().join("other"), ..places.clone() };
        let error = Claims::of_uninstall(&elsewhere).unwrap_err().to_string();
        assert!(error.contains("runs with the folder for pins"), "{error}");
        let elsewhere = Places { bpffs: dir.path().join("bpf/other"), ..elsewhere };
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
        drop(Claims::of_agent(&elsewhere, &cgroup).unwrap());
        let first = Claims::of_agent(&places, &cgroup).unwrap();
        for (other, what) in [(&cgroup, "cgroup"), (&dir.path().to_owned(), "network namespace")] {
            let error = Claims::of_agent(&elsewhere, other).unwrap_err().to_string();
            assert!(error.contains(&format!("runs with the {what}")), "{error}");
        }
        drop(first);
        Claims::of_uninstall(&places).unwrap().remove();
        assert!(!dir.path().join("bpf").join(CLAIMS).exists());
        let no_bpffs = Places { bpffs: dir.path().join("none/pins"), ..places };
        drop(Claims::of_agent(&no_bpffs, &cgroup).unwrap());
        assert!(!no_bpffs.bpffs.exists(), "what is no bpffs is left alone");
    }

    #[test]
    fn who_can_open_the_cgroup_and_the_namespace_keeps_no_agent_from_them() {
        let dir = own_bpffs();
        let cgroup = dir.path().join("cgroup");
        fs::create_dir(&cgroup).unwrap();
        let squat =
            |path: &Path| Flock::lock(File::open(path).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        let _squatted = [squat(&cgroup), squat(Path::new(OWN_NETNS))];
        // Nor does who was there first, in a file system where anybody may make folders.
        let claims = dir.path().join("bpf").join(CLAIMS);
        fs::create_dir(&claims).unwrap();
        std::os::unix::fs::chown(&claims, Some(1000), Some(1000)).unwrap();
        let name = netns_name().unwrap();
        fs::create_dir(claims.join(&name)).unwrap();
        let _held = squat(&claims.join(&name));
        let places = Places {
            bpffs: dir.path().join("bpf/pins"),
            state_dir: dir.path().join("state"),
            source_state: dir.path().join("source"),
        };
        let held = Claims::of_agent(&places, &cgroup).unwrap();
        let (folder, own) = (fs::metadata(&claims).unwrap(), fs::metadata(claims.join(name)).unwrap());
        assert_eq!(
            [folder.uid(), folder.mode() & 0o777, own.uid(), own.mode() & 0o777],
            [0, 0o700, 0, 0o700]
        );
        let elsewhere =
            Places { bpffs: dir.path().join("bpf/other"), state_dir: dir.path().join("other"), ..places };
        assert!(matches!(
            Claims::of_agent(&elsewhere, &cgroup),
            Err(ClaimError::Running { what: "cgroup", .. })
        ));
        drop(held);
        drop(Claims::of_agent(&elsewhere, &cgroup).unwrap());
    }

    #[test]
    fn a_folder_that_somebody_has_put_there_and_cannot_be_removed_is_put_aside() {
        use nix::mount::{MsFlags, mount};

        let dir = own_bpffs();
        let (bpf, cgroup) = (dir.path().join("bpf"), dir.path().join("cgroup"));
        fs::create_dir(&cgroup).unwrap();
        let busy = bpf.join(CLAIMS).join("x");
        fs::create_dir_all(&busy).unwrap();
        mount(Some("none"), &busy, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        std::os::unix::fs::chown(bpf.join(CLAIMS), Some(1000), Some(1000)).unwrap();
        let places = Places {
            bpffs: bpf.join("pins"),
            state_dir: dir.path().join("state"),
            source_state: dir.path().join("source"),
        };
        drop(Claims::of_agent(&places, &cgroup).unwrap());
        assert_eq!(fs::metadata(bpf.join(CLAIMS)).unwrap().uid(), 0);
        assert!(!busy.exists());
    }

    /// A folder with a BPF file system in it, for this thread, in a network namespace of its own: tests share the others.
    fn own_bpffs() -> OwnBpffs {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};

        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bpf = dir.path().join("bpf");
        fs::create_dir(&bpf).unwrap();
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        OwnBpffs(dir)
    }

    struct OwnBpffs(tempfile::TempDir);

    impl OwnBpffs {
        fn path(&self) -> &Path {
            self.0.path()
        }
    }

    impl Drop for OwnBpffs {
        fn drop(&mut self) {
            nix::mount::umount2(&self.path().join("bpf"), nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places {
            bpffs: dir.path().join("b"),
            state_dir: dir.path().join("s"),
            source_state: dir.path().join("source"),
        };
        let error = Claims::of_agent(&places, &dir.path().join("none")).unwrap_err();
        assert!(matches!(error, ClaimError::Folder { what: "cgroup", .. }), "{error}");
    }
}
