//! One pod's network namespace, from its cgroup: that of the process which is the pod rather than a guest in it.
//!
//! The sandbox is the first process of a pod and stands directly in a container's folder; what a container makes of its own
//! (Docker in a pod, systemd in a pod) is deeper or later, and may have namespaces of its own.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::layout::{Kind, kind};

/// Folders that are looked into below a pod's, and how deep: a container may make as many as it likes.
const MOST_FOLDERS: usize = 256;
const DEEPEST: usize = 4;

/// What a pod's processes say.
#[derive(Debug)]
pub(super) enum Look {
    /// No process is there (yet), or none that could be looked at.
    Nobody,
    /// It has the node's network.
    Host,
    /// It has a namespace of its own.
    Own(Seen),
}

/// A namespace, and the process that it was seen at.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) inode: u64,
}

/// A process of the pod, in the order in which it is to be believed: the shallowest, then the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    depth: usize,
    started: u64,
    pid: u32,
}

/// Looks at a pod whose cgroups these are; `own` is the inode of the node's namespace, `held` that which the pod had at the last
/// look: as long as one of its processes has it, it is the pod's.
pub(super) fn look(folders: &[PathBuf], proc: &Path, own: u64, held: Option<u64>) -> Look {
    let mut candidates: Vec<Candidate> = folders.iter().flat_map(|folder| candidates(folder, proc)).collect();
    candidates.sort_unstable();
    let mut first = Look::Nobody;
    for candidate in candidates {
        // One that fails has ended meanwhile.
        let Ok(seen) = open(candidate, folders, proc) else { continue };
        if held == Some(seen.inode) {
            return Look::Own(seen);
        }
        if matches!(first, Look::Nobody) {
            first = if seen.inode == own { Look::Host } else { Look::Own(seen) };
        }
        if held.is_none() {
            break;
        }
    }
    first
}

/// Whether the namespace is still that of the process that it was seen at.
pub(super) fn is_there(path: &Path, inode: u64) -> bool {
    fs::metadata(path).is_ok_and(|found| found.ino() == inode)
}

/// Opens a process's namespace. A process id may be another process's by now: the file counts only if the process is in the
/// pod's cgroup once it is open.
fn open(candidate: Candidate, folders: &[PathBuf], proc: &Path) -> io::Result<Seen> {
    let path = proc.join(candidate.pid.to_string()).join("ns/net");
    let file = File::open(&path)?;
    let inode = file.metadata()?.ino();
    let names: Vec<&str> = folders.iter().filter_map(|folder| folder.file_name()?.to_str()).collect();
    let cgroup = fs::read_to_string(proc.join(candidate.pid.to_string()).join("cgroup"))?;
    let is_member = cgroup.lines().any(|line| line.split('/').any(|part| names.contains(&part)));
    if is_member { Ok(Seen { path, file, inode }) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn candidates(folder: &Path, proc: &Path) -> Vec<Candidate> {
    let mut found = Vec::new();
    let (mut level, mut seen) = (vec![folder.to_owned()], 0);
    for depth in 0..=DEEPEST {
        let mut next = Vec::new();
        for folder in level {
            seen += 1;
            if seen > MOST_FOLDERS {
                return found;
            }
            found.extend(pids(&folder).into_iter().filter_map(|pid| {
                let started = started(proc, pid)?;
                Some(Candidate { depth, started, pid })
            }));
            let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let below = fs::read_dir(&folder).into_iter().flatten().flatten();
            next.extend(below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).filter_map(
                |entry| {
                    let is_monitor = kind(&name, entry.file_name().to_str()?) == Kind::Monitor;
                    (!is_monitor).then(|| entry.path())
                },
            ));
        }
        // Containers are the first level with processes; what is below them is theirs.
        if !found.is_empty() && depth > 0 {
            return found;
        }
        level = next;
    }
    found
}

fn pids(folder: &Path) -> Vec<u32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process of another PID namespace.
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
}

/// When a process started, in ticks since the boot (field 22 of `proc_pid_stat(5)`; the second may contain anything).
fn started(proc: &Path, pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}
