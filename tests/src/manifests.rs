//! The folder of manifests that the agents of a lab follow.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A folder of YAML files. Files are written aside and renamed, as an agent may be reading.
#[derive(Clone, Debug)]
pub struct Manifests(PathBuf);

impl Manifests {
    pub(crate) fn create(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Writes or replaces a file (`NAME.yaml`).
    pub fn apply(&self, file: &str, yaml: &str) -> Result<()> {
        // Beside the folder, so that the agents never see it half written nor under another name.
        let aside = self.0.with_extension(format!("{file}.new"));
        fs::write(&aside, yaml).with_context(|| format!("write {}", aside.display()))?;
        fs::rename(&aside, self.0.join(file)).with_context(|| format!("put {file} in place"))
    }

    /// Removes a file.
    pub fn delete(&self, file: &str) -> Result<()> {
        fs::remove_file(self.0.join(file)).with_context(|| format!("remove {file}"))
    }
}
