//! Where the network namespaces of this node's pods are, by the pods' Kubernetes UIDs.
//!
//! The CNI plugin says so when a pod is made; discovery finds those that were there before. What the plugin said stays
//! until the plugin takes it back or its namespace is gone: it knows best.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Who says where a namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Teller {
    /// Discovery, from cgroupfs and `/proc`.
    Found,
    /// The CNI plugin.
    Cni,
}

/// See the module. Cloned, it is the same.
#[derive(Clone, Debug)]
pub struct Namespaces(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    known: Mutex<HashMap<Arc<str>, (Teller, PathBuf)>>,
    changes: watch::Sender<u64>,
}

impl Default for Namespaces {
    fn default() -> Self {
        Self(Arc::new(Inner { known: Mutex::default(), changes: watch::Sender::new(0) }))
    }
}

impl Namespaces {
    /// Where the namespace of the pod with this UID is.
    pub fn of(&self, pod_uid: &str) -> Option<PathBuf> {
        self.lock().get(pod_uid).map(|(_, path)| path.clone())
    }

    /// It is there; what the plugin has said is not replaced by what was found.
    pub fn tell(&self, pod_uid: &str, teller: Teller, path: &Path) {
        let mut known = self.lock();
        if known
            .get(pod_uid)
            .is_some_and(|(before, held)| *before > teller || (*before, &**held) == (teller, path))
        {
            return;
        }
        known.insert(pod_uid.into(), (teller, path.to_owned()));
        drop(known);
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// It is there no more, as far as `teller` knows.
    pub fn forget(&self, pod_uid: &str, teller: Teller) {
        let mut known = self.lock();
        if known.get(pod_uid).is_none_or(|(before, _)| *before > teller) {
            return;
        }
        known.remove(pod_uid);
        drop(known);
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// Changes whenever something was told or forgotten.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, (Teller, PathBuf)>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_knows_best() {
        let namespaces = Namespaces::default();
        let changes = namespaces.changes();
        namespaces.tell("a", Teller::Found, Path::new("/proc/7/ns/net"));
        namespaces.tell("a", Teller::Cni, Path::new("/run/netns/a"));
        namespaces.tell("a", Teller::Found, Path::new("/proc/8/ns/net"));
        assert_eq!(namespaces.of("a"), Some("/run/netns/a".into()));
        namespaces.forget("a", Teller::Found);
        assert_eq!(namespaces.of("a"), Some("/run/netns/a".into()));
        assert_eq!(*changes.borrow(), 2);
        namespaces.forget("a", Teller::Cni);
        assert_eq!((namespaces.of("a"), *changes.borrow()), (None, 3));
    }
}
