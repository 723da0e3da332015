//! What tests make on the machine, all of it named `mesh-t*`: nothing of it may outlive them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::host::Host;

const PREFIX: &str = "mesh-t";
/// Named network namespaces, as `ip netns list` reads them.
const NAMESPACES: &str = "/run/netns";
const BPFFS: &str = "/sys/fs/bpf";
/// The kernel takes a cgroup or a namespace apart a little after its last process has gone.
const PATIENCE: Duration = Duration::from_secs(3);

/// The things that are there at one moment.
pub(super) struct Leftovers(BTreeSet<PathBuf>);

impl Leftovers {
    pub(super) fn look(host: &Host) -> Self {
        let mut found = BTreeSet::new();
        collect(Path::new(NAMESPACES), false, &mut found);
        collect(Path::new(BPFFS), false, &mut found);
        collect(&host.cgroup2, true, &mut found);
        Self(found)
    }

    /// Fails, naming them, when there are things that were not there before.
    pub(super) fn new_since(&self, host: &Host) -> Result<()> {
        let started = Instant::now();
        loop {
            let now = Self::look(host);
            let new: Vec<_> = now.0.difference(&self.0).map(|path| path.display().to_string()).collect();
            if new.is_empty() {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                bail!(
                    "the tests left behind: {}; the test that made them must remove them, unless they are of \
                     another run that is going on",
                    new.join(", ")
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Entries of `dir` with our prefix. What cannot be read is not there.
fn collect(dir: &Path, deep: bool, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.insert(path);
        } else if deep && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&path, deep, found);
        }
    }
}
