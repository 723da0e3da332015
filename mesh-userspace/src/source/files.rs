//! The objects that a set of files and folders holds: read, compared with what was read before, and merged.
//!
//! Nothing here waits or watches; [`FileSet::rescan`] looks at the disk once and says what became different.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::manifests::Update;
use crate::resources::{Change, Decoded, Mistake, Object, ObjectRef, Problem, decode};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// Deepest folder below a path that was given.
const MAX_FOLDERS: usize = 16;
/// A file written this recently may be written again without its timestamp telling.
const RACY: Duration = Duration::from_secs(1);

/// A file's rank: which of the given paths it is under, then its own path.
type FileKey = (usize, PathBuf);

/// What the disk holds, by name alone.
#[derive(Debug, Default)]
pub(super) struct Listing {
    files: BTreeSet<FileKey>,
    /// Folders whose entries matter.
    pub(super) folders: BTreeSet<PathBuf>,
    errors: BTreeMap<FileKey, String>,
}

/// The files, and the objects that they hold.
#[derive(Debug)]
pub(super) struct FileSet {
    roots: Vec<PathBuf>,
    files: BTreeMap<FileKey, File>,
    definitions: HashMap<ObjectRef, BTreeMap<FileKey, Definition>>,
    in_force: HashMap<ObjectRef, Arc<Object>>,
    problems: Vec<Problem>,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: BTreeMap<ObjectRef, Definition>,
    mistakes: Vec<Mistake>,
    ignored: usize,
}

#[derive(Clone, Debug, PartialEq)]
struct Definition {
    line: u32,
    object: Arc<Object>,
}

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileSet {
    pub(super) fn new(roots: Vec<PathBuf>) -> Self {
        let (files, definitions, in_force) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { roots, files, definitions, in_force, problems: Vec::new() }
    }

    /// The files there are now.
    pub(super) fn list(&self) -> Listing {
        let mut listing = Listing::default();
        for (rank, root) in self.roots.iter().enumerate() {
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

    /// Reads what became different; `None` where nothing did.
    pub(super) fn rescan(&mut self, listing: Listing, now: SystemTime) -> Option<Update> {
        let mut touched = BTreeSet::new();
        let gone: Vec<FileKey> =
            self.files.keys().filter(|key| !listing.files.contains(*key)).cloned().collect();
        for key in gone {
            self.replace(&key, None, &mut touched);
        }
        let mut errors = listing.errors;
        for key in listing.files {
            let known = self.files.get(&key).and_then(|file| file.stamp);
            match read_changed(&key.1, known, now) {
                Ok(None) => {}
                Ok(Some((text, stamp))) => {
                    let old = self.files.get(&key).map(|file| &file.objects);
                    let file = File::new(decode(&text), stamp, old);
                    self.replace(&key, Some(file), &mut touched);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.replace(&key, None, &mut touched);
                }
                // What was read before stays; the next look tries again.
                Err(error) => {
                    errors.insert(key, error.to_string());
                }
            }
        }
        let changes = self.changes(touched);
        let problems = self.collect_problems(&errors, now);
        let same = problems.len() == self.problems.len()
            && problems.iter().zip(&self.problems).all(|(new, old)| new.is_same(old));
        if changes.is_empty() && same {
            return None;
        }
        self.problems.clone_from(&problems);
        let ignored = self.files.values().map(|file| file.ignored).sum();
        Some(Update { changes, problems, ignored })
    }

    fn replace(&mut self, key: &FileKey, file: Option<File>, touched: &mut BTreeSet<ObjectRef>) {
        for reference in self.files.remove(key).iter().flat_map(|old| old.objects.keys()) {
            if let Some(definitions) = self.definitions.get_mut(reference) {
                definitions.remove(key);
                if definitions.is_empty() {
                    self.definitions.remove(reference);
                }
            }
            touched.insert(reference.clone());
        }
        let Some(file) = file else { return };
        for (reference, definition) in &file.objects {
            self.definitions.entry(reference.clone()).or_default().insert(key.clone(), definition.clone());
            touched.insert(reference.clone());
        }
        self.files.insert(key.clone(), file);
    }

    /// Of several definitions the first by path is in force.
    fn changes(&mut self, touched: BTreeSet<ObjectRef>) -> Vec<Change> {
        let mut changes = Vec::new();
        for reference in touched {
            let first = self.definitions.get(&reference).and_then(BTreeMap::first_key_value);
            let object = first.map(|(_, definition)| Arc::clone(&definition.object));
            if self.in_force.get(&reference) == object.as_ref() {
                continue;
            }
            if let Some(object) = object {
                self.in_force.insert(reference, Arc::clone(&object));
                changes.push(Change::Upsert(object));
            } else {
                self.in_force.remove(&reference);
                changes.push(Change::Delete(reference));
            }
        }
        changes
    }

    fn collect_problems(&self, errors: &BTreeMap<FileKey, String>, now: SystemTime) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut add = |file: &Path, line, object: Option<ObjectRef>, field: &str, reason: String| {
            let problem = Problem {
                file: file.to_path_buf(),
                line,
                object,
                field: field.to_owned(),
                reason,
                since: now,
            };
            // A mistake that only moved to another line is the same.
            let known =
                self.problems.iter().find(|old| old.is_same(&Problem { line: old.line, ..problem.clone() }));
            problems.push(Problem { since: known.map_or(now, |old| old.since), ..problem });
        };
        for ((_, path), reason) in errors {
            add(path, None, None, "", reason.clone());
        }
        for ((_, path), file) in &self.files {
            for mistake in &file.mistakes {
                add(path, Some(mistake.line), mistake.object.clone(), &mistake.field, mistake.reason.clone());
            }
        }
        for (reference, definitions) in
            self.definitions.iter().filter(|(_, definitions)| definitions.len() > 1)
        {
            let mut all = definitions.iter();
            let Some(((_, first), _)) = all.next() else { continue };
            for ((_, path), definition) in all {
                let reason = format!("defined in {} already, which is in force", first.display());
                add(path, Some(definition.line), Some(reference.clone()), "", reason);
            }
        }
        problems.sort_by(|a, b| (&a.file, a.line, &a.field).cmp(&(&b.file, b.line, &b.field)));
        problems
    }
}

impl Listing {
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

impl File {
    /// The file's objects; those that can no longer be read stay as they were.
    fn new(decoded: Decoded, stamp: Stamp, old: Option<&BTreeMap<ObjectRef, Definition>>) -> Self {
        let mut file = Self {
            stamp: Some(stamp),
            mistakes: decoded.mistakes,
            ignored: decoded.ignored,
            ..Self::default()
        };
        for item in decoded.objects {
            let reference = item.object.reference();
            if file.objects.contains_key(&reference) {
                let reason = "defined above in the same file already, which is in force".to_owned();
                let (line, object, field) = (item.line, Some(reference), String::new());
                file.mistakes.push(Mistake { line, object, field, reason });
                continue;
            }
            // An object that did not change keeps its Arc.
            let before = old.and_then(|old| old.get(&reference)).filter(|old| old.object == item.object);
            let object = before.map_or(item.object, |old| Arc::clone(&old.object));
            file.objects.insert(reference, Definition { line: item.line, object });
        }
        let nameless = file.mistakes.iter().any(|mistake| mistake.object.is_none());
        for (reference, definition) in old.into_iter().flatten() {
            let broken =
                nameless || file.mistakes.iter().any(|mistake| mistake.object.as_ref() == Some(reference));
            if broken && !file.objects.contains_key(reference) {
                file.objects.insert(reference.clone(), definition.clone());
            }
        }
        file
    }
}

/// The file's text, unless it surely is the version that is known.
fn read_changed(path: &Path, known: Option<Stamp>, now: SystemTime) -> io::Result<Option<(String, Stamp)>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let stamp = Stamp {
        inode: (metadata.dev(), metadata.ino()),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    let settled = metadata.modified().is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > RACY));
    if known == Some(stamp) && settled {
        return Ok(None);
    }
    let too_large = || io::Error::other(format!("larger than {} MiB", MAX_FILE >> 20));
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(too_large());
    }
    let text = String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((text, stamp)))
}
