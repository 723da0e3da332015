//! What is remembered of who is to be in the mesh, for while no agent can be asked.
//!
//! The agent writes it whenever it becomes different, the plugin reads it. One JSON file that outlives a reboot, replaced
//! whole: after a reboot pods may start before the agent does.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::replace_file;
use crate::model::{NodeName, Snapshot};

/// Where it is if nobody says otherwise.
pub const DEFAULT_KNOWN: &str = "/var/lib/mesh/cni.json";
/// More than a cluster of 100,000 namespaces needs.
const MAX_FILE: u64 = 32 << 20;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Known {
    /// Namespaces whose pods are in the mesh unless they opt out.
    pub enrolled_namespaces: BTreeSet<String>,
    /// Pods of this node that are in the mesh though their namespace is not, as `NAMESPACE/POD`.
    pub enrolled_pods: BTreeSet<String>,
    /// Pods of this node that have opted out.
    pub excluded_pods: BTreeSet<String>,
}

impl Known {
    /// What a snapshot says.
    pub fn of(snapshot: &Snapshot, node: &NodeName) -> Self {
        let namespaces = snapshot.namespaces.iter().filter(|(_, enrols)| **enrols);
        let enrolled_namespaces: BTreeSet<String> = namespaces.map(|(name, _)| name.to_string()).collect();
        let mut known = Self { enrolled_namespaces, ..Self::default() };
        let own = snapshot.workloads.values().filter(|pod| pod.is_on(node) && !pod.host_network);
        for pod in own {
            match (known.enrolled_namespaces.contains(&*pod.namespace), pod.enrolled) {
                (true, false) => known.excluded_pods.insert(pod.uid.to_string()),
                (false, true) => known.enrolled_pods.insert(pod.uid.to_string()),
                _ => continue,
            };
        }
        known
    }

    /// Whether a pod is to be in the mesh, as far as is known.
    pub fn enrols(&self, namespace: &str, pod: &str) -> bool {
        let pod = format!("{namespace}/{pod}");
        if self.enrolled_namespaces.contains(namespace) {
            !self.excluded_pods.contains(&pod)
        } else {
            self.enrolled_pods.contains(&pod)
        }
    }

    /// Reads the file; `None` where no agent has ever written one.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text)?;
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// Replaces the file (0600), in a folder that is made (0700) if it is missing.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        replace_file(path, &serde_json::to_vec(self)?, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_enrolled_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/cni.json");
        assert_eq!(Known::read(&path).unwrap(), None);
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let known = Known {
            enrolled_namespaces: set(&["shop"]),
            enrolled_pods: set(&["default/in"]),
            excluded_pods: set(&["shop/out"]),
        };
        known.write(&path).unwrap();
        known.write(&path).unwrap();
        assert_eq!(Known::read(&path).unwrap().as_ref(), Some(&known));
        for (namespace, pod, wanted) in [
            ("shop", "web", true),
            ("shop", "out", false),
            ("default", "in", true),
            ("default", "web", false),
            ("default", "out", false),
        ] {
            assert_eq!(known.enrols(namespace, pod), wanted, "{namespace}/{pod}");
        }
        fs::write(&path, "{").unwrap();
        assert!(Known::read(&path).is_err());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
