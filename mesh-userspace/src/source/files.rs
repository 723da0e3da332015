//! The objects that a set of files and folders holds: read, compared with what was read before, and merged.
//!
//! Nothing here waits or watches; [`FileSet::rescan`] looks at the disk once and says what became different. What it costs
//! follows from the files that changed, not from all that there are.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::RandomState;
use std::io;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use super::document::{Documents, Stamp, changed};
use super::listing::{FileKey, Listing};
use super::unfinished::Unfinished;
use super::update::{Update, instead};
use crate::resources::{Change, Code, Mistake, Object, ObjectRef, Origin, Problem};

/// Most threads that read files at a time.
const MAX_READERS: usize = 8;

/// The files, and the objects that they hold.
#[derive(Debug)]
pub(super) struct FileSet {
    roots: Vec<PathBuf>,
    hasher: RandomState,
    files: BTreeMap<Arc<FileKey>, File>,
    /// By file; the first of an object's definitions is in force.
    definitions: HashMap<ObjectRef, Vec<Definition>>,
    /// Objects that have several definitions.
    contested: BTreeSet<ObjectRef>,
    /// Security policies that could not be read when nothing was known of them yet: they allow nothing.
    stand_ins: BTreeSet<ObjectRef>,
    /// Whether the files were read once.
    started: bool,
    /// Counts the files that were read.
    round: u32,
    /// Files that could not be read.
    errors: BTreeMap<FileKey, String>,
    problems: Vec<Problem>,
}

#[derive(Debug)]
struct File {
    stamp: Stamp,
    documents: Documents,
    /// Objects that can no longer be read, as they were.
    kept: Vec<(u32, Arc<Object>)>,
    mistakes: Vec<Mistake>,
    ignored: usize,
}

#[derive(Debug)]
struct Definition {
    file: Arc<FileKey>,
    line: u32,
    /// Of its file, when it was seen there last.
    round: u32,
    object: Arc<Object>,
}

/// Objects whose definitions became different, with what was in force before.
type Touched = BTreeMap<ObjectRef, Option<Arc<Object>>>;

impl FileSet {
    pub(super) fn new(roots: Vec<PathBuf>) -> Self {
        Self {
            roots,
            hasher: RandomState::new(),
            files: BTreeMap::new(),
            definitions: HashMap::new(),
            contested: BTreeSet::new(),
            stand_ins: BTreeSet::new(),
            started: false,
            round: 0,
            errors: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    /// The files there are now.
    pub(super) fn list(&self) -> Listing {
        Listing::of(&self.roots)
    }

    /// The files and folders that are read.
    pub(super) fn roots(&self) -> Vec<PathBuf> {
        self.roots.clone()
    }

    /// Reads what became different; `None` where nothing did. What is `unfinished` stays as it was.
    pub(super) fn rescan(
        &mut self,
        listing: Listing,
        unfinished: &Unfinished,
        now: SystemTime,
    ) -> Option<Update> {
        let mut touched = Touched::new();
        let is_gone = |key: &&Arc<FileKey>| !listing.files.contains(&***key) && !unfinished.holds(&key.1);
        let gone: Vec<Arc<FileKey>> = self.files.keys().filter(is_gone).map(Arc::clone).collect();
        for key in &gone {
            self.remove(key, &mut touched);
        }
        let mut errors = listing.errors;
        let mut stale = Vec::new();
        for key in listing.files.into_iter().filter(|key| !unfinished.holds(&key.1)) {
            match changed(&key.1, self.files.get(&key).map(|file| file.stamp), now) {
                Ok(None) => {}
                Ok(Some(stamp)) => stale.push((key, stamp)),
                Err(error) => note_error(&mut errors, key, &error),
            }
        }
        let read = self.read(&stale);
        let mut reread = false;
        for ((key, stamp), outcome) in stale.into_iter().zip(read) {
            match outcome {
                Ok(documents) => match self.files.get_mut(&key) {
                    Some(file) if file.documents.is_same(&documents) => file.stamp = stamp,
                    _ => {
                        self.replace(key, stamp, documents, &mut touched);
                        reread = true;
                    }
                },
                Err(error) => note_error(&mut errors, key, &error),
            }
        }
        if !std::mem::replace(&mut self.started, true) {
            self.stand_in(&mut touched);
        }
        if gone.is_empty() && !reread && errors == self.errors {
            return None;
        }
        self.errors = errors;
        let changes = self.changes(touched);
        let problems = self.collect_problems(now);
        let same = problems.len() == self.problems.len()
            && problems.iter().zip(&self.problems).all(|(new, old)| new.is_same(old));
        if changes.is_empty() && same {
            return None;
        }
        self.problems.clone_from(&problems);
        let ignored = self.files.values().map(|file| file.ignored).sum();
        Some(Update { changes, problems, ignored })
    }

    /// Where the definition of the object that is in force begins: its file, and the line in it.
    pub(super) fn place(&self, object: &ObjectRef) -> Option<(&Path, u32)> {
        let definition = self.definitions.get(object)?.first()?;
        Some((&definition.file.1, definition.line))
    }

    /// Reads these files, on as many processors as there are.
    fn read(&self, stale: &[(FileKey, Stamp)]) -> Vec<io::Result<Documents>> {
        let read = |(key, _): &(FileKey, Stamp)| {
            Documents::read(&key.1, self.files.get(key).map(|file| &file.documents), &self.hasher)
        };
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let readers = processors.min(MAX_READERS).min(stale.len());
        if readers <= 1 {
            return stale.iter().map(read).collect();
        }
        let next = AtomicUsize::new(0);
        let some = || {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(file) = stale.get(index) else { return done };
                done.push((index, read(file)));
            }
        };
        let mut all: Vec<_> = thread::scope(|scope| {
            let others: Vec<_> = (1..readers).map(|_| scope.spawn(some)).collect();
            let mut all = some();
            for other in others {
                all.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            }
            all
        });
        all.sort_unstable_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, outcome)| outcome).collect()
    }

    fn remove(&mut self, key: &Arc<FileKey>, touched: &mut Touched) {
        let Some(old) = self.files.remove(key) else { return };
        for (_, object) in old.objects() {
            self.undefine(key, object.reference(), touched);
        }
    }

    /// Puts a file in the place of the one before; objects that can no longer be read stay as they were.
    fn replace(&mut self, key: FileKey, stamp: Stamp, mut documents: Documents, touched: &mut Touched) {
        let (key, old) = match self.files.remove_entry(&key) {
            Some((key, old)) => (key, Some(old)),
            None => (Arc::new(key), None),
        };
        if old.is_some() {
            documents.adopt(|object| {
                let mut all = self.definitions.get(&object.reference())?.iter();
                all.find(|definition| definition.file == key).map(|definition| &definition.object)
            });
        }
        let mut mistakes: Vec<Mistake> = documents.mistakes().collect();
        let broken: HashSet<Option<ObjectRef>> =
            mistakes.iter().map(|mistake| mistake.object.clone()).collect();
        // A mistake without a name may be any object's.
        let is_broken = |reference: &ObjectRef| {
            !broken.is_empty() && (broken.contains(&None) || broken.contains(&Some(reference.clone())))
        };
        self.round = self.round.wrapping_add(1);
        for (line, object) in documents.objects() {
            self.stand_ins.remove(&object.reference());
            if !self.define(&key, line, object, touched) {
                let reason = "defined above in the same file already, which is in force".to_owned();
                let (object, field) = (Some(object.reference()), String::new());
                mistakes.push(Mistake { code: Code::DefinedTwice, line, object, field, reason });
            }
        }
        let mut kept = Vec::new();
        for (line, object) in old.iter().flat_map(File::objects) {
            let reference = object.reference();
            let mut all = self.definitions.get_mut(&reference).into_iter().flatten();
            let Some(own) = all.find(|own| own.file == key && own.round != self.round) else { continue };
            if is_broken(&reference) {
                own.round = self.round;
                kept.push((line, Arc::clone(object)));
            } else {
                self.undefine(&key, reference, touched);
            }
        }
        let ignored = documents.ignored();
        self.files.insert(key, File { stamp, documents, kept, mistakes, ignored });
    }

    /// Nothing is known of what was in force before this agent: a security policy that cannot be read allows nothing.
    fn stand_in(&mut self, touched: &mut Touched) {
        let missing: Vec<_> = self
            .files
            .iter()
            .flat_map(|(key, file)| file.documents.stand_ins().map(move |(line, object)| (key, line, object)))
            .filter(|(_, _, object)| !self.definitions.contains_key(&object.reference()))
            .map(|(key, line, object)| (Arc::clone(key), line, Arc::clone(object)))
            .collect();
        for (key, line, object) in missing {
            if self.define(&key, line, &object, touched)
                && let Some(file) = self.files.get_mut(&key)
            {
                self.stand_ins.insert(object.reference());
                file.kept.push((line, object));
            }
        }
    }

    /// What becomes of an object that cannot be read, where that is not its last good state.
    fn instead(&self, object: &ObjectRef) -> &'static str {
        instead(object, self.stand_ins.contains(object), self.definitions.contains_key(object))
    }

    /// False where the file has defined the object in this round already.
    fn define(
        &mut self,
        file: &Arc<FileKey>,
        line: u32,
        object: &Arc<Object>,
        touched: &mut Touched,
    ) -> bool {
        let round = self.round;
        let definition = Definition { file: Arc::clone(file), line, round, object: Arc::clone(object) };
        let mut entry = match self.definitions.entry(object.reference()) {
            Entry::Vacant(entry) => {
                touched.entry(entry.key().clone()).or_insert(None);
                entry.insert(vec![definition]);
                return true;
            }
            Entry::Occupied(entry) => entry,
        };
        let all = entry.get_mut();
        let first = all.first().map(|first| Arc::clone(&first.object));
        match all.binary_search_by(|other| other.file.cmp(file)) {
            Ok(at) if all[at].round == round => return false,
            Ok(at) if Arc::ptr_eq(&all[at].object, object) => {
                all[at] = definition;
                return true;
            }
            Ok(at) => all[at] = definition,
            Err(at) => all.insert(at, definition),
        }
        if all.len() > 1 {
            self.contested.insert(entry.key().clone());
        }
        touched.entry(entry.key().clone()).or_insert(first);
        true
    }

    fn undefine(&mut self, file: &Arc<FileKey>, reference: ObjectRef, touched: &mut Touched) {
        let Some(all) = self.definitions.get_mut(&reference) else { return };
        let first = all.first().map(|first| Arc::clone(&first.object));
        all.retain(|definition| definition.file != *file);
        if all.len() < 2 {
            self.contested.remove(&reference);
        }
        if all.is_empty() {
            self.definitions.remove(&reference);
        }
        touched.entry(reference).or_insert(first);
    }

    /// Of several definitions the first by path is in force.
    fn changes(&self, touched: Touched) -> Vec<Change> {
        let change = |(reference, before): (ObjectRef, Option<Arc<Object>>)| {
            let object = self.definitions.get(&reference).and_then(|all| all.first());
            match object.map(|definition| &definition.object) {
                Some(object) if before.as_ref() == Some(object) => None,
                Some(object) => Some(Change::Upsert(Arc::clone(object))),
                None => before.map(|_| Change::Delete(reference)),
            }
        };
        touched.into_iter().filter_map(change).collect()
    }

    fn collect_problems(&self, now: SystemTime) -> Vec<Problem> {
        // A mistake that only moved to another line is the same.
        let identity = |problem: &Problem| {
            let Problem { origin, object, field, reason, .. } = problem.clone();
            (origin, object, field, reason)
        };
        let mut known = HashMap::new();
        for old in &self.problems {
            known.entry(identity(old)).or_insert(old.since);
        }
        let mut problems = Vec::new();
        let mut add = |code, file: &Path, line, object: Option<ObjectRef>, field: &str, reason: String| {
            let (origin, field) = (Origin::File(file.to_path_buf()), field.to_owned());
            let problem = Problem { code, origin, line, object, field, reason, since: now };
            let since = known.get(&identity(&problem)).copied().unwrap_or(now);
            problems.push(Problem { since, ..problem });
        };
        for ((_, path), reason) in &self.errors {
            add(Code::Unreadable, path, None, None, "", reason.clone());
        }
        for (key, file) in &self.files {
            for mistake in &file.mistakes {
                let Mistake { code, line, object, field, reason } = mistake;
                let instead = object.as_ref().map(|object| self.instead(object)).unwrap_or_default();
                add(*code, &key.1, Some(*line), object.clone(), field, format!("{reason}{instead}"));
            }
        }
        for reference in &self.contested {
            let mut all = self.definitions.get(reference).into_iter().flatten();
            let Some(first) = all.next() else { continue };
            for definition in all {
                let reason = format!("defined in {} already, which is in force", first.file.1.display());
                let (place, line) = (&definition.file.1, Some(definition.line));
                add(Code::DefinedTwice, place, line, Some(reference.clone()), "", reason);
            }
        }
        problems.sort_by(|a, b| (&a.origin, a.line, &a.field).cmp(&(&b.origin, b.line, &b.field)));
        problems
    }
}

impl File {
    /// Those that are written, then those that are kept; one that is there twice is so here too.
    fn objects(&self) -> impl Iterator<Item = (u32, &Arc<Object>)> {
        let kept = self.kept.iter().map(|(line, object)| (*line, object));
        self.documents.objects().chain(kept)
    }
}

/// What was read before stays; the next look tries again. A file that went while we looked is told of as it goes.
fn note_error(errors: &mut BTreeMap<FileKey, String>, key: FileKey, error: &io::Error) {
    if error.kind() != io::ErrorKind::NotFound {
        errors.insert(key, error.to_string());
    }
}
