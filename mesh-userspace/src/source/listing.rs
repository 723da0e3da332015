//! The files and folders that are to be read, by name alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Deepest folder below a path that was given.
const MAX_FOLDERS: usize = 16;

/// A file's rank: which of the given paths it is under, then its own path.
pub(super) type FileKey = (usize, PathBuf);

/// What the disk holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: BTreeSet<FileKey>,
    /// Folders whose entries matter.
    pub(super) folders: BTreeSet<PathBuf>,
    /// Paths that cannot be looked at.
    pub(super) errors: BTreeMap<FileKey, String>,
}

impl Listing {
    /// What there is now at these paths.
    pub(super) fn of(roots: &[PathBuf]) -> Self {
        let mut listing = Self::default();
        for (rank, root) in roots.iter().enumerate() {
            // The folder around a path tells when it comes, goes or is replaced.
            let around = root
                .ancestors()
                .skip(1)
                .map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
            listing.folders.extend(around.map(Path::to_path_buf).find(|path| path.is_dir()));
            listing.visit(rank, root, 0);
        }
        listing
    }

    fn visit(&mut self, rank: usize, path: &Path, depth: usize) {
        let key = (rank, path.to_path_buf());
        let entries = match fs::metadata(path) {
            Ok(metadata) if !metadata.is_dir() => {
                // Where a link leads is watched as well: that file may be written in place.
                let target = path.is_symlink().then(|| fs::canonicalize(path).ok()).flatten();
                self.folders.extend(target.and_then(|target| target.parent().map(Path::to_path_buf)));
                self.files.insert(key);
                return;
            }
            Ok(_) => fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>),
            Err(error) => Err(error),
        };
        match entries {
            Ok(entries) => {
                self.folders.insert(path.to_path_buf());
                for entry in entries {
                    let (path, name) = (entry.path(), entry.file_name());
                    let hidden = name.to_string_lossy().starts_with('.');
                    if hidden {
                        continue;
                    }
                    let is_manifest = path
                        .extension()
                        .is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json");
                    if path.is_dir() {
                        if depth < MAX_FOLDERS {
                            self.visit(rank, &path, depth + 1);
                        }
                    } else if is_manifest {
                        self.visit(rank, &path, depth + 1);
                    }
                }
            }
            // An entry that went while we looked is no problem, a path that was given and is not there is.
            Err(error) if depth > 0 && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.errors.insert(key, error.to_string());
            }
        }
    }
}
