//! What must be remembered of an enrolled pod so that it can be released by an agent that did not enrol it.
//!
//! One file a pod, `STATE_DIR/pods/COOKIE.json` (0600), written aside and renamed before anything in the pod changes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plumbing::Before;
use crate::model::WorkloadUid;

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) uid: WorkloadUid,
    pub(super) netns: PathBuf,
    pub(super) cookie: u64,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) steered: Vec<IpAddr>,
    pub(super) before: Before,
    /// Inode of the namespace; 0 where an agent that did not know wrote the file.
    #[serde(default)]
    pub(super) inode: u64,
}

/// The folder of these files.
#[derive(Clone, Debug)]
pub(super) struct StateDir(PathBuf);

impl StateDir {
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let folder = state_dir.join("pods");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self(folder))
    }

    /// Everything that is remembered, by cookie. A file that cannot be read is told and passed over.
    pub(super) fn load(&self) -> BTreeMap<u64, Remembered> {
        let mut pods = BTreeMap::new();
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Remembered>(&text)?)) {
                Ok(pod) => drop(pods.insert(pod.cookie, pod)),
                Err(error) => tracing::warn!(%error, path = %path.display(), "state of a pod cannot be read"),
            }
        }
        pods
    }

    pub(super) fn save(&self, pod: &Remembered) -> io::Result<()> {
        let path = self.path(pod.cookie);
        let aside = path.with_extension("tmp");
        let mut file =
            fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec(pod)?)?;
        file.sync_all()?;
        fs::rename(aside, path)
    }

    pub(super) fn forget(&self, cookie: u64) {
        if let Err(error) = fs::remove_file(self.path(cookie))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, cookie, "state of a pod cannot be removed");
        }
    }

    fn path(&self, cookie: u64) -> PathBuf {
        self.0.join(format!("{cookie}.json"))
    }
}
