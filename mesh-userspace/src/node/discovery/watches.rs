//! An inotify watch on many folders, of which some may be gone already and some too many.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Folders in which something came, went or changed.
    pub(super) folders: BTreeSet<PathBuf>,
    /// Some of it was lost.
    pub(super) overflowed: bool,
}

/// See the module.
pub(super) struct Watches {
    inotify: Inotify,
    epoll: Epoll,
    watched: HashMap<WatchDescriptor, PathBuf>,
    /// The machine's limit was reached since the last [`Self::begin`].
    is_short: bool,
    has_told: bool,
}

impl Watches {
    pub(super) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&inotify, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(Self { inotify, epoll, watched: HashMap::new(), is_short: false, has_told: false })
    }

    /// From here on everything is asked for anew: what was short of watches may have become enough.
    pub(super) const fn begin(&mut self) {
        self.is_short = false;
    }

    /// Whether all that was asked for is watched.
    pub(super) const fn is_complete(&self) -> bool {
        !self.is_short
    }

    /// Watches what comes and goes in a folder. Asked for again it costs one call.
    pub(super) fn folder(&mut self, folder: &Path) {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_TO;
        self.add(folder, flags | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_ONLYDIR, folder);
    }

    /// Watches a file whose changes are those of `folder`.
    pub(super) fn file(&mut self, file: &Path, folder: &Path) {
        self.add(file, AddWatchFlags::IN_MODIFY, folder);
    }

    fn add(&mut self, path: &Path, flags: AddWatchFlags, folder: &Path) {
        match self.inotify.add_watch(path, flags) {
            Ok(watch) => drop(self.watched.insert(watch, folder.to_owned())),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => {
                self.is_short = true;
                if !std::mem::replace(&mut self.has_told, true) {
                    tracing::warn!(
                        %error,
                        path = %path.display(),
                        "not all of the pods' cgroups can be watched and they are walked through instead: raise fs.inotify.max_user_watches"
                    );
                }
            }
        }
    }

    /// Waits until something happens, or for so long.
    pub(super) fn wait(&mut self, longest: Duration) -> io::Result<Events> {
        let timeout = EpollTimeout::try_from(longest).unwrap_or(EpollTimeout::ZERO);
        match self.epoll.wait(&mut [EpollEvent::empty()], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = Events::default();
        loop {
            let read = match self.inotify.read_events() {
                Ok(read) => read,
                Err(Errno::EAGAIN) => return Ok(events),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in read {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    events.overflowed = true;
                }
                if let Some(folder) = self.watched.get(&event.wd) {
                    events.folders.insert(folder.clone());
                }
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.watched.remove(&event.wd);
                }
            }
        }
    }
}
