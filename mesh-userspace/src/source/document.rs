//! A file as it was read, document by document.
//!
//! Invariant: a document whose text is the same as in the version before is not decoded again, wherever in the file it now
//! stands.

use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::resources::{Decoded, Item, Mistake, Object, decode_part, parts};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// A file written this recently may be written again without its timestamp telling.
const RACY: Duration = Duration::from_secs(1);

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// One part of a file, between two of its document markers.
#[derive(Clone, Debug)]
struct Document {
    /// Of its text, keyed with a secret of this process.
    hash: u64,
    /// Lines of the file before it.
    before: u32,
    content: Content,
}

/// What a part holds, with lines counted from its own first.
#[derive(Clone, Debug)]
enum Content {
    /// One object and nothing else.
    Object(u32, Arc<Object>),
    Mixed(Arc<Decoded>),
}

/// All documents of a version of a file.
#[derive(Debug, Default)]
pub(super) struct Documents(Vec<Document>);

/// The file's stamp, unless it surely is the version that is known.
pub(super) fn changed(path: &Path, known: Option<Stamp>, now: SystemTime) -> io::Result<Option<Stamp>> {
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
    Ok(Some(stamp).filter(|stamp| known != Some(*stamp) || !settled))
}

impl Documents {
    /// Reads the file, and decodes of it what is not among the `known` documents.
    pub(super) fn read(path: &Path, known: Option<&Self>, hasher: &RandomState) -> io::Result<Self> {
        let file = fs::File::open(path)?;
        let length = file.metadata()?.len().min(MAX_FILE);
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1);
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!("larger than {} MiB", MAX_FILE >> 20)));
        }
        let text =
            String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let known = known.iter().flat_map(|known| &known.0);
        let known: HashMap<u64, &Content> = known.map(|known| (known.hash, &known.content)).collect();
        let mut documents = Vec::new();
        for (before, part) in parts(&text) {
            let hash = hasher.hash_one(part);
            let content = known.get(&hash).map(|&content| content.clone());
            if let Some(content) = content.or_else(|| Content::of(part)) {
                documents.push(Document { hash, before, content });
            }
        }
        documents.shrink_to_fit();
        Ok(Self(documents))
    }

    /// Whether both are of the same text, as far as anything in it matters.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let place = |document: &Document| (document.hash, document.before);
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|(own, other)| place(own) == place(other))
    }

    /// The objects as they are written, with the lines that they begin on.
    pub(super) fn objects(&self) -> impl Iterator<Item = (u32, &Arc<Object>)> {
        self.0.iter().flat_map(|document| {
            let (one, mixed) = match &document.content {
                Content::Object(line, object) => (Some((*line, object)), None),
                Content::Mixed(decoded) => (None, Some(decoded)),
            };
            let mixed = mixed.into_iter().flat_map(|decoded| &decoded.objects);
            let objects = one.into_iter().chain(mixed.map(|item| (item.line, &item.object)));
            objects.map(|(line, object)| (document.before.saturating_add(line), object))
        })
    }

    /// Puts the object that is `known` in the place of one that was decoded anew and is equal.
    pub(super) fn adopt<'a>(&mut self, known: impl Fn(&Object) -> Option<&'a Arc<Object>>) {
        for document in &mut self.0 {
            if let Content::Object(_, object) = &mut document.content
                && let Some(known) = known(object)
                && *known == *object
            {
                *object = Arc::clone(known);
            }
        }
    }

    /// What is wrong with the others.
    pub(super) fn mistakes(&self) -> impl Iterator<Item = Mistake> {
        self.mixed().flat_map(|(before, decoded)| {
            let moved = move |mistake: &Mistake| {
                let line = before.saturating_add(mistake.line);
                Mistake { line, ..mistake.clone() }
            };
            decoded.mistakes.iter().map(moved)
        })
    }

    /// What may stand in the place of security policies that are wrong.
    pub(super) fn stand_ins(&self) -> impl Iterator<Item = (u32, &Arc<Object>)> {
        self.mixed().flat_map(|(before, decoded)| {
            let moved = move |item: &'_ Item| before.saturating_add(item.line);
            decoded.stand_ins.iter().map(move |item| (moved(item), &item.object))
        })
    }

    /// How many objects are of kinds that are no concern of a mesh.
    pub(super) fn ignored(&self) -> usize {
        self.mixed().map(|(_, decoded)| decoded.ignored).sum()
    }

    fn mixed(&self) -> impl Iterator<Item = (u32, &Decoded)> {
        self.0.iter().filter_map(|document| match &document.content {
            Content::Mixed(decoded) => Some((document.before, &**decoded)),
            Content::Object(..) => None,
        })
    }
}

impl Content {
    /// `None` for a part in which there is nothing.
    fn of(part: &str) -> Option<Self> {
        let mut decoded = decode_part(part);
        let is_one = decoded.objects.len() == 1 && decoded.mistakes.is_empty() && decoded.ignored == 0;
        if is_one && let Some(item) = decoded.objects.pop() {
            return Some(Self::Object(item.line, item.object));
        }
        (!decoded.is_empty()).then(|| Self::Mixed(Arc::new(decoded)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, rest: &str) -> String {
        format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\n{rest}")
    }

    fn objects(documents: &Documents) -> Vec<(u32, String, Arc<Object>)> {
        let named = |(line, object): (u32, &Arc<Object>)| {
            (line, object.reference().name.to_string(), Arc::clone(object))
        };
        documents.objects().map(named).collect()
    }

    #[test]
    fn what_did_not_change_is_not_decoded_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        let hasher = RandomState::new();
        let address = "status: {podIP: 10.0.0.1}\n";
        fs::write(&path, pod("a", "") + &pod("b", address) + &pod("c", "spec: 7\n")).unwrap();
        let first = Documents::read(&path, None, &hasher).unwrap();
        let old = objects(&first);
        assert_eq!(
            old.iter().map(|(line, name, _)| (*line, name.as_str())).collect::<Vec<_>>(),
            [(2, "a"), (6, "b")]
        );
        assert_eq!(first.mistakes().map(|mistake| mistake.line).collect::<Vec<_>>(), [14]);

        // `a` is new, so that the others move; `b` and `c` are as they were.
        fs::write(&path, pod("a", address) + &pod("b", address) + &pod("c", "spec: 7\n")).unwrap();
        let second = Documents::read(&path, Some(&first), &hasher).unwrap();
        let new = objects(&second);
        assert_eq!(
            new.iter().map(|(line, name, _)| (*line, name.as_str())).collect::<Vec<_>>(),
            [(2, "a"), (7, "b")]
        );
        assert!(!Arc::ptr_eq(&new[0].2, &old[0].2) && Arc::ptr_eq(&new[1].2, &old[1].2));
        assert_eq!(second.mistakes().map(|mistake| mistake.line).collect::<Vec<_>>(), [15]);
        assert!(!second.is_same(&first) && second.is_same(&Documents::read(&path, None, &hasher).unwrap()));

        // The same object in other words takes the place of none.
        fs::write(&path, pod("a", address) + &pod("b", "status:\n  podIP: 10.0.0.1\n")).unwrap();
        let mut third = Documents::read(&path, Some(&second), &hasher).unwrap();
        assert!(!Arc::ptr_eq(&objects(&third)[1].2, &new[1].2));
        third.adopt(|_| Some(&new[1].2));
        assert!(Arc::ptr_eq(&objects(&third)[1].2, &new[1].2));
        assert!(!Arc::ptr_eq(&objects(&third)[0].2, &new[1].2));
    }
}
