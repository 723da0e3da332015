//! What can go wrong between the agent and the kernel.

use std::io;
use std::path::PathBuf;

/// A failure of the datapath.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The folder for pins is not in a BPF file system.
    #[error("{} is not in a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`", .0.display())]
    NotBpffs(PathBuf),
    /// A folder or pin could not be made or removed.
    #[error("cannot change {}", path.display())]
    Pins {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The eBPF object was refused.
    #[error("cannot load the eBPF object")]
    Load(#[source] Box<aya::EbpfError>),
    /// One program was refused.
    #[error("cannot load the eBPF program {name}")]
    Program {
        /// Which.
        name: &'static str,
        /// Why; the verifier's log is in it.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A map or program is not in the object.
    #[error("the eBPF object has no {0}")]
    Missing(&'static str),
    /// A map is full.
    #[error("the kernel map {map} is full")]
    Full {
        /// Which map.
        map: &'static str,
    },
    /// A map operation failed.
    #[error("cannot {operation} the kernel map {map}")]
    Map {
        /// What was tried.
        operation: &'static str,
        /// Which map.
        map: &'static str,
        /// Why.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// A map could not be counted.
    #[error("cannot count the entries of the kernel map {map}")]
    Count {
        /// Which map.
        map: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A map could not be read in whole.
    #[error("cannot read the kernel map {map} in batches")]
    Batch {
        /// Which map.
        map: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached or swapped.
    #[error("cannot attach {program} to {}", target.display())]
    Attach {
        /// Which program.
        program: &'static str,
        /// The cgroup or namespace.
        target: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cgroup cannot be opened.
    #[error("cannot open the cgroup {}", path.display())]
    Cgroup {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The folder is no cgroup v2.
    #[error("{} is no cgroup v2 folder: give one below its mount point (`grep cgroup2 /proc/mounts`)", .0.display())]
    NotCgroup2(PathBuf),
    /// The lifeline socket could not be set up.
    #[error("cannot set up the lifeline socket")]
    Lifeline(#[source] io::Error),
}

impl DatapathError {
    /// For `map_err`: a map operation on `map` failed.
    pub(super) fn map(
        operation: &'static str,
        map: &'static str,
    ) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| {
            if is_full(&source) {
                return Self::Full { map };
            }
            Self::Map { operation, map, source: Box::new(source) }
        }
    }
}

fn is_full(error: &aya::maps::MapError) -> bool {
    matches!(error, aya::maps::MapError::SyscallError(error)
        if matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)))
}
