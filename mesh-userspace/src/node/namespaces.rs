//! Where the network namespaces of this node's pods are, by the pods' Kubernetes UIDs.
//!
//! The CNI plugin says so when a pod is made; discovery finds those that were there before. What the plugin said stays
//! until the plugin takes it back or its namespace is gone: it knows best.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::NetNs;

/// Who says where a namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Teller {
    /// Discovery, from cgroupfs and `/proc`.
    Found,
    /// The CNI plugin.
    Cni,
}

/// Where a namespace is: a path, and where that may come to mean another one (a process id is used again), the open file.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its path, to be shown.
    pub path: PathBuf,
    file: Option<Arc<File>>,
}

impl Place {
    /// Whatever is at this path whenever it is asked.
    pub const fn at(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// This very namespace, which was opened at `path`.
    pub const fn held(path: PathBuf, file: Arc<File>) -> Self {
        Self { path, file: Some(file) }
    }

    /// Opens the namespace.
    pub fn open(&self) -> io::Result<NetNs> {
        match &self.file {
            Some(file) => NetNs::of(file.try_clone()?, &self.path),
            None => NetNs::open(&self.path),
        }
    }

    /// Inode of the namespace that is there now.
    pub fn inode(&self) -> io::Result<u64> {
        match &self.file {
            Some(file) => Ok(file.metadata()?.ino()),
            None => Ok(std::fs::metadata(&self.path)?.ino()),
        }
    }

    fn is(&self, other: &Self) -> bool {
        let same_file = match (&self.file, &other.file) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        same_file && self.path == other.path
    }
}

/// See the module. Cloned, it is the same.
#[derive(Clone, Debug)]
pub struct Namespaces(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    known: Mutex<HashMap<Arc<str>, Told>>,
    changes: watch::Sender<u64>,
}

/// What each has said of one pod; the plugin's word counts while its namespace is there.
#[derive(Debug, Default)]
struct Told {
    cni: Option<Place>,
    found: Option<Place>,
}

impl Told {
    fn by(&mut self, teller: Teller) -> &mut Option<Place> {
        match teller {
            Teller::Cni => &mut self.cni,
            Teller::Found => &mut self.found,
        }
    }

    fn best(&self) -> Option<&Place> {
        self.cni.as_ref().or(self.found.as_ref())
    }
}

impl Default for Namespaces {
    fn default() -> Self {
        Self(Arc::new(Inner { known: Mutex::default(), changes: watch::Sender::new(0) }))
    }
}

impl Namespaces {
    /// Where the namespace of the pod with this UID is.
    pub fn of(&self, pod_uid: &str) -> Option<PathBuf> {
        self.place(pod_uid).map(|place| place.path)
    }

    /// The same, to be opened.
    pub fn place(&self, pod_uid: &str) -> Option<Place> {
        self.lock().get(pod_uid)?.best().cloned()
    }

    /// It is there; what the plugin has said is not replaced by what was found.
    pub fn tell(&self, pod_uid: &str, teller: Teller, path: &Path) {
        self.tell_place(pod_uid, teller, Place::at(path.to_owned()));
    }

    /// The same, of a namespace that is held open.
    pub fn tell_place(&self, pod_uid: &str, teller: Teller, place: Place) {
        self.change(pod_uid, |told| *told.by(teller) = Some(place));
    }

    /// It is there no more, as far as `teller` knows.
    pub fn forget(&self, pod_uid: &str, teller: Teller) {
        self.change(pod_uid, |told| *told.by(teller) = None);
    }

    /// Nothing is at this path any more, whoever named it.
    pub fn lost(&self, pod_uid: &str, path: &Path) {
        self.change(pod_uid, |told| {
            for teller in [Teller::Cni, Teller::Found] {
                let place = told.by(teller);
                if place.as_ref().is_some_and(|place| place.file.is_none() && place.path == path) {
                    *place = None;
                }
            }
        });
    }

    /// Changes whenever another place is known of a pod, or none.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    fn change(&self, pod_uid: &str, change: impl FnOnce(&mut Told)) {
        let mut known = self.lock();
        let told = known.entry(pod_uid.into()).or_default();
        let before = told.best().cloned();
        change(told);
        let is_same = match (&before, told.best()) {
            (Some(before), Some(now)) => before.is(now),
            (None, None) => true,
            _ => false,
        };
        if told.best().is_none() {
            known.remove(pod_uid);
        }
        drop(known);
        if !is_same {
            self.0.changes.send_modify(|count| *count += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Told>> {
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
        namespaces.tell("a", Teller::Found, Path::new("/proc/8/ns/net"));
        assert_eq!(*changes.borrow(), 2);
        namespaces.lost("a", Path::new("/run/netns/a"));
        assert_eq!(
            (namespaces.of("a"), *changes.borrow()),
            (Some("/proc/8/ns/net".into()), 3),
            "found before"
        );
        namespaces.tell("a", Teller::Found, Path::new("/proc/9/ns/net"));
        namespaces.forget("a", Teller::Cni);
        assert_eq!((namespaces.of("a"), *changes.borrow()), (Some("/proc/9/ns/net".into()), 4));
        namespaces.forget("a", Teller::Found);
        assert_eq!((namespaces.of("a"), *changes.borrow()), (None, 5));
    }
}
