//! Manifest files and folders, followed as they change.
//!
//! A thread of its own watches every folder that matters with inotify and looks at the disk again when something happened.
//! What happened is never taken from the events, only that something did, and which files are still being written: so
//! editors that rename, atomic replacement, a `ConfigMap`'s `..data` link and paths that come and go are all the same case.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::SourceError;
use super::files::FileSet;
use super::listing::Listing;
use super::unfinished::Unfinished;
use super::update::Update;

/// What happens within this time of each other is looked at together.
const BURST: Duration = Duration::from_millis(1);
/// Longest that a burst is waited for.
const MAX_BURST: Duration = Duration::from_millis(20);
/// The disk is looked at this often even when inotify says nothing (network file systems).
const RESCAN: Duration = Duration::from_secs(30);
/// The same where a folder cannot be watched.
const RESCAN_UNWATCHED: Duration = Duration::from_secs(1);
/// Updates that wait for their reader.
const QUEUE: usize = 4;

/// Manifests that are being followed, until this is dropped.
#[derive(Debug)]
pub(super) struct Manifests {
    updates: mpsc::Receiver<Update>,
    signals: Sender<Signal>,
    files: Arc<Mutex<FileSet>>,
}

#[derive(Debug)]
enum Signal {
    Happened(notify::Result<Event>),
    Stop,
}

impl Manifests {
    /// Begins to follow these files and folders.
    pub(super) fn watch(paths: Vec<PathBuf>) -> Result<Self, SourceError> {
        let (signals, received) = channel();
        let (sender, updates) = mpsc::channel(QUEUE);
        let on_event = {
            let signals = signals.clone();
            move |event: notify::Result<Event>| {
                if !event.as_ref().is_ok_and(|event| is_read(event.kind)) {
                    // Nobody listens any more: the follower ends anyway.
                    let _ended = signals.send(Signal::Happened(event));
                }
            }
        };
        let watcher = notify::recommended_watcher(on_event).map_err(SourceError::Watch)?;
        let files = Arc::new(Mutex::new(FileSet::new(paths)));
        let (unfinished, watched) = (Unfinished::default(), HashMap::new());
        let follower = Follower { files: Arc::clone(&files), unfinished, watcher, watched };
        thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || follower.run(&received, &sender))
            .map_err(SourceError::Thread)?;
        Ok(Self { updates, signals, files })
    }

    /// The files as they were read last.
    pub(super) fn files(&self) -> Arc<Mutex<FileSet>> {
        Arc::clone(&self.files)
    }

    /// The next update; the first comes at once, with the full state. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
}

impl Drop for Manifests {
    fn drop(&mut self) {
        let _ended = self.signals.send(Signal::Stop);
    }
}

/// What the files and folders hold now.
///
/// # Errors
/// One of the paths is not there or cannot be read.
pub(super) fn read_once(paths: &[PathBuf]) -> Result<(Update, FileSet), SourceError> {
    for path in paths {
        let read = if path.is_dir() { fs::read_dir(path).map(drop) } else { File::open(path).map(drop) };
        read.map_err(|source| SourceError::Read { path: path.clone(), source })?;
    }
    let mut files = FileSet::new(paths.to_vec());
    let listing = files.list();
    let update = files.rescan(listing, &Unfinished::default(), SystemTime::now()).unwrap_or_default();
    Ok((update, files))
}

/// Our own reading shows up as events too.
const fn is_read(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if !matches!(access, AccessKind::Close(AccessMode::Write)))
}

struct Follower {
    files: Arc<Mutex<FileSet>>,
    unfinished: Unfinished,
    watcher: RecommendedWatcher,
    /// Folders that are watched, with device and inode: one that was replaced is watched anew.
    watched: HashMap<PathBuf, (u64, u64)>,
}

impl Follower {
    fn run(mut self, signals: &Receiver<Signal>, updates: &mpsc::Sender<Update>) {
        let mut first = true;
        loop {
            let (update, all_watched) = self.look();
            let update = if first { Some(update.unwrap_or_default()) } else { update };
            first = false;
            if update.is_some_and(|update| updates.blocking_send(update).is_err()) {
                return;
            }
            if !self.wait(signals, if all_watched { RESCAN } else { RESCAN_UNWATCHED }) {
                return;
            }
        }
    }

    /// Waits until it is time to look; false when it is time to stop.
    fn wait(&mut self, signals: &Receiver<Signal>, rescan: Duration) -> bool {
        let rescan = Instant::now() + rescan;
        let mut burst: Option<(Instant, Instant)> = None;
        loop {
            let now = Instant::now();
            let burst_ends = burst.map(|(first, last)| (last + BURST).min(first + MAX_BURST));
            let given_up = self.unfinished.deadline();
            let until = [burst_ends, given_up].into_iter().flatten().fold(rescan, Instant::min);
            if until <= now {
                if given_up.is_some_and(|deadline| deadline <= now) {
                    self.unfinished.give_up();
                }
                return true;
            }
            let due = match signals.recv_timeout(until.saturating_duration_since(now)) {
                Ok(Signal::Happened(event)) => {
                    event.map_or(true, |event| self.unfinished.note(&event, Instant::now()))
                }
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => continue,
            };
            if due || burst.is_some() {
                let now = Instant::now();
                burst = Some((burst.map_or(now, |(first, _)| first), now));
            }
        }
    }

    /// Looks at the disk; false where a folder could not be watched.
    fn look(&mut self) -> (Option<Update>, bool) {
        // Watched first and listed again: nothing comes between the two unseen.
        let roots = self.lock().roots();
        let mut listing = Listing::of(&roots);
        let mut all_watched = true;
        for _ in 0..8 {
            let (new, complete) = self.watch_folders(listing.folders.iter());
            all_watched = complete;
            listing = Listing::of(&roots);
            if !new {
                break;
            }
        }
        (self.lock().rescan(listing, &self.unfinished, SystemTime::now()), all_watched)
    }

    fn lock(&self) -> MutexGuard<'_, FileSet> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a folder was added, and whether all could be.
    fn watch_folders<'a>(&mut self, folders: impl Iterator<Item = &'a PathBuf>) -> (bool, bool) {
        let (mut new, mut complete) = (false, true);
        let mut stale = std::mem::take(&mut self.watched);
        for folder in folders {
            let Some(inode) = inode(folder) else { continue };
            let known = stale.remove(folder);
            if known != Some(inode) {
                if known.is_some() {
                    // The folder of that name is gone, and its watch may be.
                    let _gone = self.watcher.unwatch(folder);
                }
                if let Err(error) = self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                    tracing::warn!(path = %folder.display(), %error, "cannot watch folder, looking at it every second");
                    complete = false;
                    continue;
                }
                new = true;
            }
            self.watched.insert(folder.clone(), inode);
        }
        for folder in stale.keys() {
            let _gone = self.watcher.unwatch(folder);
        }
        (new, complete)
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
