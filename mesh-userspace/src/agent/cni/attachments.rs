//! The sandboxes that the CNI plugin has told of, and what follows from them for the pods of this node.
//!
//! One file an attachment, `STATE_DIR/cni/CONTAINER.IFNAME.json` (0600), written before the plugin is answered: an agent
//! that starts between a pod's first packet and its first status knows its addresses all the same. The folder goes with a
//! reboot, as the sandboxes do.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::admin::cni::{AttachmentId, CniAttachment};
use crate::model::{Placed, Sandbox, Sandboxes, WorkloadUid};
use crate::node::{Namespaces, Teller};

/// Attachments that are kept: a node has a few hundred pods.
const MAX_ATTACHMENTS: usize = 8192;
/// Pods whose sandbox is known to be gone; the oldest are forgotten.
const MAX_GONE: usize = 2048;

/// An attachment, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attached {
    #[serde(flatten)]
    pub(super) told: CniAttachment,
    /// Inode of the network namespace.
    pub(super) inode: u64,
    /// Counts up: of two sandboxes of one pod the later one is in force.
    order: u64,
}

impl Attached {
    fn workload(&self) -> WorkloadUid {
        WorkloadUid::pod(&self.told.pod.namespace, &self.told.pod.name)
    }

    /// Whether its network namespace is still the one that was told.
    fn is_there(&self) -> bool {
        fs::metadata(&self.told.netns).is_ok_and(|found| found.ino() == self.inode)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Attachments {
    folder: PathBuf,
    held: Mutex<Held>,
    sandboxes: watch::Sender<Sandboxes>,
    namespaces: Namespaces,
}

#[derive(Debug, Default)]
struct Held {
    attached: BTreeMap<AttachmentId, Attached>,
    /// Pods by UID, the one that went first in front.
    gone: VecDeque<(String, WorkloadUid)>,
    next: u64,
}

impl Attachments {
    /// Takes up what an earlier agent was told. Blocks on the disk.
    pub(super) fn open(state_dir: &Path, namespaces: Namespaces) -> io::Result<Self> {
        let folder = state_dir.join("cni");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut held = Held::default();
        for entry in fs::read_dir(&folder)?.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Attached>(&text)?)) {
                Ok(attached) => {
                    held.next = held.next.max(attached.order + 1);
                    held.attached.insert(attached.told.id.clone(), attached);
                }
                Err(error) => tracing::warn!(%error, path = %path.display(), "an attachment cannot be read"),
            }
        }
        let (sandboxes, _) = watch::channel(Sandboxes::default());
        let attachments = Self { folder, held: Mutex::new(held), sandboxes, namespaces };
        attachments.sweep();
        attachments.publish(&attachments.lock());
        Ok(attachments)
    }

    /// Where this node's pods are.
    pub(super) fn sandboxes(&self) -> watch::Receiver<Sandboxes> {
        self.sandboxes.subscribe()
    }

    /// The attachment of that name.
    pub(super) fn get(&self, id: &AttachmentId) -> Option<Attached> {
        self.lock().attached.get(id).cloned()
    }

    /// A sandbox has its network. Blocks on the disk.
    pub(super) fn add(&self, told: CniAttachment) -> io::Result<Attached> {
        let inode = fs::metadata(&told.netns)?.ino();
        let mut held = self.lock();
        if let Some(known) = held.attached.get(&told.id)
            && (&known.told, known.inode) == (&told, inode)
        {
            return Ok(known.clone());
        }
        if held.attached.len() >= MAX_ATTACHMENTS {
            return Err(io::Error::other(format!("{MAX_ATTACHMENTS} attachments are known already")));
        }
        let attached = Attached { told, inode, order: held.next };
        self.save(&attached)?;
        held.next += 1;
        held.gone.retain(|(uid, _)| *uid != attached.told.pod.uid);
        held.attached.insert(attached.told.id.clone(), attached.clone());
        self.publish(&held);
        Ok(attached)
    }

    /// These are gone, whether they were known or not. Blocks on the disk.
    pub(super) fn remove(&self, which: impl Fn(&Attached) -> bool) {
        let mut held = self.lock();
        let gone: Vec<AttachmentId> =
            held.attached.iter().filter(|(_, attached)| which(attached)).map(|(id, _)| id.clone()).collect();
        if gone.is_empty() {
            return;
        }
        for id in gone {
            let Some(attached) = held.attached.remove(&id) else { continue };
            if let Err(error) = fs::remove_file(self.path(&id))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, container = id.container_id, "an attachment's file cannot be removed");
            }
            let uid = &attached.told.pod.uid;
            if !held.attached.values().any(|other| other.told.pod.uid == *uid) {
                self.namespaces.forget(uid, Teller::Cni);
                held.gone.push_back((uid.clone(), attached.workload()));
                if held.gone.len() > MAX_GONE {
                    held.gone.pop_front();
                }
            }
        }
        self.publish(&held);
    }

    /// Lets go of sandboxes that went without a word. Blocks on the disk.
    pub(super) fn sweep(&self) {
        self.remove(|attached| !attached.is_there());
    }

    fn publish(&self, held: &Held) {
        let mut latest: BTreeMap<&str, &Attached> = BTreeMap::new();
        for attached in held.attached.values() {
            let entry = latest.entry(&attached.told.pod.uid).or_insert(attached);
            if attached.order > entry.order {
                *entry = attached;
            }
        }
        let gone = held.gone.iter().map(|(uid, workload)| {
            (uid.as_str().into(), Placed { workload: workload.clone(), sandbox: Sandbox::Gone })
        });
        let mut sandboxes: Sandboxes = gone.collect();
        for (uid, attached) in latest {
            let CniAttachment { addresses, netns, .. } = &attached.told;
            self.namespaces.tell(uid, Teller::Cni, netns);
            let sandbox = Sandbox::At { addresses: addresses.clone(), netns: netns.clone() };
            sandboxes.insert(uid.into(), Placed { workload: attached.workload(), sandbox });
        }
        self.sandboxes.send_if_modified(|before| {
            let differs = *before != sandboxes;
            *before = sandboxes;
            differs
        });
    }

    fn save(&self, attached: &Attached) -> io::Result<()> {
        let path = self.path(&attached.told.id);
        let aside = path.with_extension("tmp");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec(attached)?)?;
        file.sync_all()?;
        fs::rename(aside, path)
    }

    /// Neither part has a `/`: see [`AttachmentId::problem`].
    fn path(&self, id: &AttachmentId) -> PathBuf {
        self.folder.join(format!("{}.{}.json", id.container_id, id.ifname))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::cni::PodName;

    fn attachment(container: &str, netns: &Path, address: &str) -> CniAttachment {
        let pod = PodName { namespace: "shop".into(), name: "web".into(), uid: "u".into() };
        CniAttachment {
            id: AttachmentId { container_id: container.into(), ifname: "eth0".into() },
            network: "net".into(),
            pod,
            netns: netns.to_owned(),
            addresses: vec![address.parse().unwrap()],
        }
    }

    fn at(attachments: &Attachments) -> Option<Sandbox> {
        attachments.sandboxes().borrow().get("u").map(|placed| placed.sandbox.clone())
    }

    fn address(attachments: &Attachments) -> Option<String> {
        match at(attachments)? {
            Sandbox::At { addresses, .. } => Some(addresses[0].to_string()),
            Sandbox::Gone => Some("gone".to_owned()),
        }
    }

    #[test]
    fn the_last_sandbox_of_a_pod_counts_and_outlives_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let netns = [folder.path().join("a"), folder.path().join("b")];
        for path in &netns {
            fs::write(path, "").unwrap();
        }
        let namespaces = Namespaces::default();
        let attachments = Attachments::open(folder.path(), namespaces.clone()).unwrap();
        assert_eq!(at(&attachments), None);
        attachments.add(attachment("b1", &netns[0], "10.0.0.1")).unwrap();
        attachments.add(attachment("a2", &netns[1], "10.0.0.2")).unwrap();
        assert_eq!(address(&attachments).as_deref(), Some("10.0.0.2"));
        assert_eq!(namespaces.of("u").as_ref(), Some(&netns[1]));
        // Told again, it is not the later one for that.
        let first = attachments.get(&attachment("b1", &netns[0], "10.0.0.1").id).unwrap();
        assert_eq!(attachments.add(first.told.clone()).unwrap(), first);
        assert_eq!(address(&attachments).as_deref(), Some("10.0.0.2"));
        // The first one is taken down late.
        attachments.remove(|attached| attached.told.id.container_id == "b1");
        assert_eq!(address(&attachments).as_deref(), Some("10.0.0.2"));
        drop(attachments);

        let attachments = Attachments::open(folder.path(), namespaces.clone()).unwrap();
        assert_eq!(address(&attachments).as_deref(), Some("10.0.0.2"));
        attachments.remove(|attached| attached.told.id.container_id == "a2");
        attachments.remove(|attached| attached.told.id.container_id == "a2");
        assert_eq!((address(&attachments).as_deref(), namespaces.of("u")), (Some("gone"), None));
        attachments.add(attachment("c3", &netns[0], "10.0.0.3")).unwrap();
        assert_eq!(address(&attachments).as_deref(), Some("10.0.0.3"));
        // A namespace that went while no agent was there.
        drop(attachments);
        fs::remove_file(&netns[0]).unwrap();
        let attachments = Attachments::open(folder.path(), namespaces).unwrap();
        assert_eq!(address(&attachments).as_deref(), Some("gone"));
        assert_eq!(fs::read_dir(folder.path().join("cni")).unwrap().count(), 0);
        assert!(attachments.add(attachment("d4", &netns[0], "10.0.0.4")).is_err());
    }
}
