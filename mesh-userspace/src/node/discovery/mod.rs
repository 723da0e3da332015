//! Finds the network namespace of every Kubernetes pod of this node without asking the runtime: the kubelet's cgroups name the
//! pods, their processes have the namespaces.
//!
//! inotify tells of pods that come and go; a process that joins a cgroup makes itself known in `cgroup.events` (v2). What
//! inotify does not tell (v1, a queue that overflowed, a process that has not entered its namespace yet) a look at the pods
//! that are not known yet brings, and a slow walk through everything. A namespace is held open for as long as its pod's cgroup
//! is there: a process id is used again, an open file is not. A pod with the node's own network is never told.
//!
//! It tells [`Namespaces`] and nobody else; who is to be enrolled is the controller's business.

mod layout;
mod mounts;
mod pod;
mod watches;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::layout::{Kind, kind};
use self::mounts::{folders, name};
use self::pod::Look;
use self::watches::Watches;
use super::namespaces::{Namespaces, Place, Teller};

/// How often everything is walked through, whatever inotify says; the second where it cannot watch everything.
const WALK: Duration = Duration::from_secs(30);
const WALK_UNWATCHED: Duration = Duration::from_secs(2);
/// Shortest time between two walks that events ask for.
const WALK_PAUSE: Duration = Duration::from_millis(500);
/// How often the processes that namespaces were seen at are looked at.
const VERIFY: Duration = Duration::from_secs(1);
/// First and longest pause before a pod is looked at again whose namespace is not known.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a pod may seem to have the node's network: a container's first process enters its namespace after its cgroup.
const SETTLED: Duration = Duration::from_secs(10);
/// Pods at most: a kubelet has 110, or as many as it is told.
const MOST_PODS: usize = 8192;

/// Where to look.
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// Hierarchies of cgroups, or folders in them.
    pub roots: Vec<PathBuf>,
    /// A `/proc` in which the node's processes are.
    pub proc: PathBuf,
}

impl DiscoveryConfig {
    /// The hierarchies of this machine, of which `cgroup2` is the one of cgroup v2.
    pub fn of_machine(cgroup2: &Path, proc: PathBuf) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Self { roots: mounts::hierarchies(cgroup2, &mounts), proc }
    }
}

/// Looks at all pods that are there, tells what it has found, and goes on to do so on a thread of its own for as long as the
/// program runs.
///
/// # Errors
/// inotify cannot be had.
pub fn start(config: DiscoveryConfig, namespaces: Namespaces) -> io::Result<()> {
    let mut discovery = Discovery::new(config, namespaces)?;
    discovery.walk();
    std::thread::Builder::new().name("discovery".into()).spawn(move || discovery.run())?;
    Ok(())
}

struct Discovery {
    config: DiscoveryConfig,
    namespaces: Namespaces,
    watches: Watches,
    /// Inode of the node's own namespace.
    own: u64,
    roots: BTreeSet<PathBuf>,
    pods: HashMap<String, Pod>,
    walked: Instant,
    verified: Instant,
    walk_wanted: bool,
}

struct Pod {
    /// Its cgroups, one in each hierarchy.
    folders: BTreeSet<PathBuf>,
    since: Instant,
    state: State,
}

enum State {
    /// Nothing is known, or it seems to have the node's network; when to look again, and how long to wait after that.
    Unknown { again: Instant, pause: Duration },
    /// It has the node's network.
    Host,
    /// It was told.
    Told { path: PathBuf, inode: u64 },
}

impl State {
    fn unknown(now: Instant) -> Self {
        Self::Unknown { again: now, pause: FIRST_PAUSE }
    }
}

/// What there is to do after a batch of events.
#[derive(Debug, Default)]
struct Due {
    walk: bool,
    roots: bool,
    pods: BTreeSet<String>,
}

impl Discovery {
    fn new(config: DiscoveryConfig, namespaces: Namespaces) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            own: fs::metadata("/proc/self/ns/net")?.ino(),
            config,
            namespaces,
            watches: Watches::new()?,
            roots: BTreeSet::new(),
            pods: HashMap::new(),
            walked: now,
            verified: now,
            walk_wanted: false,
        })
    }

    fn run(mut self) {
        loop {
            let events = match self.watches.wait(self.pause()) {
                Ok(events) => events,
                Err(error) => {
                    tracing::warn!(%error, "pods' cgroups cannot be watched; they are looked at now and then");
                    std::thread::sleep(WALK_UNWATCHED);
                    self.walk();
                    continue;
                }
            };
            let due = self.due(events);
            self.walk_wanted |= due.walk;
            let since = self.walked.elapsed();
            let longest = if self.watches.is_complete() { WALK } else { WALK_UNWATCHED };
            if since >= longest || (self.walk_wanted && since >= WALK_PAUSE) {
                self.walk();
            } else if due.roots {
                self.scan();
            }
            for uid in due.pods {
                self.look(&uid);
            }
            self.look_again();
        }
    }

    /// How long nothing is to be done if nothing happens.
    fn pause(&self) -> Duration {
        let now = Instant::now();
        let walk = if self.walk_wanted { WALK_PAUSE } else { VERIFY };
        let again = self.pods.values().filter_map(|pod| match &pod.state {
            State::Unknown { again, .. } => Some(again.saturating_duration_since(now)),
            State::Host | State::Told { .. } => None,
        });
        again.min().unwrap_or(VERIFY).min(walk).max(Duration::from_millis(1))
    }

    fn due(&mut self, events: watches::Events) -> Due {
        let mut due = Due { walk: events.overflowed, roots: events.overflowed, pods: BTreeSet::new() };
        for folder in events.folders {
            match uid_of(&folder) {
                Some(uid) => {
                    due.pods.insert(uid);
                    // It may have gone.
                    due.roots |= !folder.exists();
                }
                None if self.roots.iter().any(|root| folder.starts_with(root)) => due.roots = true,
                None => due.walk = true,
            }
        }
        due
    }

    /// Looks for roots of pods everywhere, and at all pods in them.
    fn walk(&mut self) {
        (self.walked, self.walk_wanted) = (Instant::now(), false);
        self.watches.begin();
        self.roots.clear();
        for root in &self.config.roots {
            let found = mounts::walk(root);
            self.roots.extend(found.roots);
            for folder in found.others {
                self.watches.folder(&folder);
            }
        }
        self.scan();
        let now = Instant::now();
        for pod in self.pods.values_mut().filter(|pod| matches!(pod.state, State::Host)) {
            pod.state = State::Unknown { again: now, pause: LONGEST_PAUSE };
        }
        self.look_again();
    }

    /// Looks which pods there are below the roots.
    fn scan(&mut self) {
        let mut there: HashMap<String, BTreeSet<PathBuf>> = HashMap::new();
        for root in &self.roots {
            let mut level = vec![root.clone()];
            while let Some(folder) = level.pop() {
                self.watches.folder(&folder);
                for below in folders(&folder) {
                    match of_path(&below) {
                        Kind::Pods => level.push(below),
                        Kind::Pod(uid) if there.len() < MOST_PODS || there.contains_key(&uid) => {
                            there.entry(uid).or_default().insert(below);
                        }
                        _ => {}
                    }
                }
            }
        }
        let gone: Vec<String> = self.pods.keys().filter(|uid| !there.contains_key(*uid)).cloned().collect();
        for uid in gone {
            if let Some(Pod { state: State::Told { .. }, .. }) = self.pods.remove(&uid) {
                tracing::debug!(pod_uid = uid, "the pod's cgroup is gone");
                self.namespaces.forget(&uid, Teller::Found);
            }
        }
        let now = Instant::now();
        for (uid, folders) in there {
            let pod = self.pods.entry(uid).or_insert_with(|| Pod {
                folders: BTreeSet::new(),
                since: now,
                state: State::unknown(now),
            });
            for folder in folders.difference(&pod.folders) {
                self.watches.folder(folder);
                self.watches.file(&folder.join("cgroup.events"), folder);
            }
            pod.folders = folders;
        }
    }

    /// Looks at pods whose time has come, and at the processes that namespaces were seen at.
    fn look_again(&mut self) {
        let now = Instant::now();
        let verify = self.verified.elapsed() >= VERIFY;
        let due = self.pods.iter().filter(|(_, pod)| match &pod.state {
            State::Unknown { again, .. } => *again <= now,
            State::Host => false,
            State::Told { path, inode } => verify && !pod::is_there(path, *inode),
        });
        let due: Vec<String> = due.map(|(uid, _)| uid.clone()).collect();
        if verify {
            self.verified = now;
        }
        for uid in due {
            self.look(&uid);
        }
    }

    fn look(&mut self, uid: &str) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let held = match &pod.state {
            State::Told { path, inode } if pod::is_there(path, *inode) => return,
            State::Told { inode, .. } => Some(*inode),
            State::Unknown { .. } | State::Host => None,
        };
        let folders: Vec<PathBuf> = pod.folders.iter().cloned().collect();
        let now = Instant::now();
        match (pod::look(&folders, &self.config.proc, self.own, held), &mut pod.state) {
            (Look::Own(seen), state) => {
                tracing::debug!(pod_uid = uid, netns = %seen.path.display(), "the pod's namespace is found");
                let place = Place::held(seen.path.clone(), Arc::new(seen.file));
                *state = State::Told { path: seen.path, inode: seen.inode };
                self.namespaces.tell_place(uid, Teller::Found, place);
            }
            // Its processes have ended, or a container of it is being made: what was told stays until the cgroup goes.
            (Look::Nobody | Look::Host, State::Told { .. }) => {}
            (Look::Host, state) if pod.since.elapsed() >= SETTLED => *state = State::Host,
            (Look::Nobody | Look::Host, State::Unknown { again, pause }) => {
                (*again, *pause) = (now + *pause, (*pause * 2).min(LONGEST_PAUSE));
            }
            (Look::Nobody | Look::Host, state @ State::Host) => *state = State::unknown(now),
        }
    }
}

/// What a folder is, by its own name and that of the one which it is in.
fn of_path(folder: &Path) -> Kind {
    let parent = folder.parent().and_then(name).unwrap_or_default();
    name(folder).map_or(Kind::Other, |name| kind(parent, name))
}

/// The pod whose cgroup a folder is, or is in.
fn uid_of(folder: &Path) -> Option<String> {
    folder.ancestors().find_map(|folder| match of_path(folder) {
        Kind::Pod(uid) => Some(uid),
        _ => None,
    })
}
