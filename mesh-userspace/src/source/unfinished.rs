//! Which files are being written at this moment, as far as inotify tells.
//!
//! What comes complete, by a rename or by the close of its writer, can be read at once. A file that is written in place
//! cannot, nor is one that went surely gone: an editor may be about to write it anew.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode};
use notify::{Event, EventKind};

/// Time without a write after which a file counts as complete though nobody closed it.
const QUIET: Duration = Duration::from_millis(50);
/// Longest wait for that.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Files and folders.
    paths: HashSet<PathBuf>,
    /// When the first and the last of them was written to.
    waits: Option<(Instant, Instant)>,
}

impl Unfinished {
    /// Takes note of what happened; whether the disk is to be looked at now.
    pub(super) fn note(&mut self, event: &Event, now: Instant) -> bool {
        if event.need_rescan() {
            return true;
        }
        let paths = event.paths.iter().map(|path| path.strip_prefix(".").unwrap_or(path).to_path_buf());
        match event.kind {
            EventKind::Create(CreateKind::Folder) => {
                // Looked into and watched at once; what is being written in it is not known.
                self.begin(paths, now);
                true
            }
            EventKind::Create(_)
            | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Name(RenameMode::From))
            | EventKind::Remove(_) => {
                self.begin(paths, now);
                false
            }
            EventKind::Access(access) => {
                let is_written = matches!(access, AccessKind::Close(AccessMode::Write));
                self.complete(paths);
                is_written
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
                self.complete(paths);
                true
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => {
                self.complete(paths.skip(1));
                true
            }
            _ => true,
        }
    }

    /// Whether the file, or the one that it leads to, is unfinished or in a folder that is.
    pub(super) fn holds(&self, path: &Path) -> bool {
        let holds = |path: &Path| path.ancestors().any(|path| self.paths.contains(path));
        !self.paths.is_empty() && (holds(path) || fs::canonicalize(path).is_ok_and(|path| holds(&path)))
    }

    /// When everything counts as complete; `None` where everything is.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waits.map(|(first, last)| (last + QUIET).min(first + MAX_WAIT))
    }

    /// Takes everything for complete.
    pub(super) fn give_up(&mut self) {
        *self = Self::default();
    }

    fn begin(&mut self, paths: impl Iterator<Item = PathBuf>, now: Instant) {
        self.paths.extend(paths);
        let first = self.waits.map_or(now, |(first, _)| first);
        self.waits = Some((first, now));
    }

    fn complete(&mut self, paths: impl Iterator<Item = PathBuf>) {
        for path in paths {
            self.paths.remove(&path);
        }
        if self.paths.is_empty() {
            self.waits = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{DataChange, RemoveKind};

    use super::*;

    const CREATED: EventKind = EventKind::Create(CreateKind::File);
    const FOLDER: EventKind = EventKind::Create(CreateKind::Folder);
    const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSED: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const REMOVED: EventKind = EventKind::Remove(RemoveKind::File);
    const FROM: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::From));
    const TO: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::To));

    #[test]
    fn what_is_read_at_once_and_what_is_waited_for() {
        let cases: Vec<(&str, &[(EventKind, &str)], bool, &[&str])> = vec![
            (
                "renamed into place",
                &[(CREATED, "/m/t"), (CLOSED, "/m/t"), (FROM, "/m/t"), (TO, "/m/a")],
                true,
                &["/m/t"],
            ),
            ("written in place", &[(WRITTEN, "/m/a"), (WRITTEN, "/m/a")], false, &["/m/a"]),
            ("written in place to its end", &[(WRITTEN, "/m/a"), (CLOSED, "/m/a")], true, &[]),
            (
                "an editor's backup, then anew",
                &[(FROM, "/m/a"), (TO, "/m/a~"), (CREATED, "/m/a"), (WRITTEN, "/m/a")],
                false,
                &["/m/a"],
            ),
            (
                "the same to its end",
                &[(FROM, "/m/a"), (TO, "/m/a~"), (CREATED, "/m/a"), (CLOSED, "/m/a")],
                true,
                &[],
            ),
            ("removed", &[(REMOVED, "/m/a")], false, &["/m/a"]),
            ("another is being written", &[(WRITTEN, "/m/b"), (TO, "/m/a")], true, &["/m/b"]),
            ("in a folder that is new", &[(FOLDER, "/m/d")], true, &["/m/d", "/m/d/a"]),
            ("a path without a folder", &[(WRITTEN, "./a")], false, &["a"]),
        ];
        for (name, events, due, held) in cases {
            let mut unfinished = Unfinished::default();
            let now = Instant::now();
            let mut last = false;
            for (kind, path) in events {
                last = unfinished.note(&Event::new(*kind).add_path(path.into()), now);
            }
            assert_eq!(last, due, "{name}");
            assert_eq!(unfinished.deadline().is_some(), !held.is_empty(), "{name}");
            for path in ["/m/t", "/m/a", "/m/b", "/m/d", "/m/d/a", "a"] {
                assert_eq!(unfinished.holds(Path::new(path)), held.contains(&path), "{name}: {path}");
            }
        }
    }

    #[test]
    fn a_file_that_is_never_closed_is_not_waited_for_without_end() {
        let (mut unfinished, start) = (Unfinished::default(), Instant::now());
        let written = Event::new(WRITTEN).add_path("/m/a".into());
        for tick in 0..100 {
            unfinished.note(&written, start + QUIET / 2 * tick);
        }
        assert_eq!(unfinished.deadline(), Some(start + MAX_WAIT));
        unfinished.give_up();
        assert!(unfinished.deadline().is_none() && !unfinished.holds(Path::new("/m/a")));
    }
}
