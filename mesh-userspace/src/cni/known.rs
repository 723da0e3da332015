//! What is remembered of who is to be in the mesh, for while no agent can be asked.
//!
//! The agent writes it whenever it becomes different, the plugin reads it. One JSON file that outlives a reboot, replaced
//! whole: after a reboot pods may start before the agent does.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::admin::cni::PodName;
use crate::file::{make_parent, replace_file};
use crate::model::Snapshot;

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
    /// Pods of this node that are in the mesh though their namespace is not, as `NAMESPACE/POD`: one made anew under the same
    /// name waits until an agent says that it is not.
    pub enrolled_pods: BTreeSet<String>,
    /// Pods of this node that have opted out, as their UIDs: one made anew under the same name has not.
    pub excluded_uids: BTreeSet<String>,
}

impl Known {
    /// What a snapshot says.
    pub fn of(snapshot: &Snapshot) -> Self {
        let namespaces = snapshot.namespaces.iter().filter(|(_, enrols)| **enrols);
        let enrolled_namespaces: BTreeSet<String> = namespaces.map(|(name, _)| name.to_string()).collect();
        let mut known = Self { enrolled_namespaces, ..Self::default() };
        for pod in snapshot.here.values().filter(|pod| !pod.host_network) {
            match (known.enrolled_namespaces.contains(&*pod.namespace), pod.enrolled) {
                (true, false) => known.excluded_uids.extend(pod.pod_uid.as_deref().map(ToOwned::to_owned)),
                (false, true) => known.enrolled_pods.extend([pod.uid.to_string()]),
                _ => {}
            }
        }
        known
    }

    /// Whether a pod is to be in the mesh, as far as is known.
    pub fn enrols(&self, pod: &PodName) -> bool {
        if self.enrolled_namespaces.contains(&pod.namespace) {
            !self.excluded_uids.contains(&pod.uid)
        } else {
            self.enrolled_pods.contains(&format!("{}/{}", pod.namespace, pod.name))
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
        make_parent(path)?;
        replace_file(path, &serde_json::to_vec(self)?, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
            excluded_uids: set(&["u1"]),
        };
        known.write(&path).unwrap();
        known.write(&path).unwrap();
        assert_eq!(Known::read(&path).unwrap().as_ref(), Some(&known));
        for (namespace, name, uid, wanted) in [
            ("shop", "web", "u2", true),
            ("shop", "out", "u1", false),
            // Made anew, it may have opted out no more.
            ("shop", "out", "u3", true),
            ("default", "in", "u4", true),
            ("default", "web", "u2", false),
            ("default", "out", "u1", false),
        ] {
            let pod = PodName { namespace: namespace.into(), name: name.into(), uid: uid.into() };
            assert_eq!(known.enrols(&pod), wanted, "{pod:?}");
        }
        // As earlier versions wrote it: who had opted out by name waits for an agent.
        let old: Known =
            serde_json::from_str(r#"{"enrolledNamespaces":["shop"],"excludedPods":["shop/out"]}"#).unwrap();
        assert!(old.enrols(&PodName { namespace: "shop".into(), name: "out".into(), uid: "u1".into() }));
        fs::write(&path, "{").unwrap();
        assert!(Known::read(&path).is_err());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
