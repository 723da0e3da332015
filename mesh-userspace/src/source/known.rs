//! The objects in force and where they are written, for whoever asks now and then.
//!
//! The translator works under a lock that nobody holds for longer than it takes to copy pointers, or to translate a change;
//! the data path never asks here.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::files::FileSet;
use crate::model::{Sandboxes, Snapshot};
use crate::resources::{Change, Notice, Object, ObjectRef, Translator};

/// See the module.
#[derive(Clone, Debug)]
pub struct Known {
    translator: Arc<Mutex<Translator>>,
    files: Option<Arc<Mutex<FileSet>>>,
}

impl Known {
    pub(super) fn new(translator: Translator, files: Option<Arc<Mutex<FileSet>>>) -> Self {
        Self { translator: Arc::new(Mutex::new(translator)), files }
    }

    pub(super) fn apply(&self, changes: Vec<Change>) -> (Snapshot, Arc<[Notice]>) {
        self.translator.lock().unwrap_or_else(PoisonError::into_inner).apply(changes)
    }

    /// Says anew where this node's pods are; [`Self::apply`] carries it out.
    pub(super) fn set_sandboxes(&self, sandboxes: Sandboxes) {
        self.translator.lock().unwrap_or_else(PoisonError::into_inner).set_sandboxes(sandboxes);
    }

    /// The objects in force, the snapshot that they come to, and what the translator has to say of them: all of one moment.
    /// Blocks while a change is translated.
    pub fn all(&self) -> (Vec<Arc<Object>>, Snapshot, Arc<[Notice]>) {
        let mut translator = self.translator.lock().unwrap_or_else(PoisonError::into_inner);
        let (snapshot, notices) = translator.apply([]);
        (translator.objects(), snapshot, notices)
    }

    /// The file of an object that is read from one, and the line that it begins on, from 1. Blocks while files are read.
    pub fn place(&self, object: &ObjectRef) -> Option<(PathBuf, u32)> {
        let files = self.files.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        files.place(object).map(|(file, line)| (file.to_path_buf(), line))
    }
}
