//! The file system in the image: two binaries, and the files that programs look into for users and names.
//!
//! No certificates: the API server's authority comes with the service account, the mesh's own with its configuration.

use std::fs;

use anyhow::{Context as _, Result};

use super::{build::Build, layer::Entry};

/// The only user; containers name nobody else.
const PASSWD: &str = "root:x:0:0:root:/root:/usr/local/bin/meshd\n";
const GROUP: &str = "root:x:0:\n";
/// musl asks files before DNS whatever this says; programs that are put in beside it may ask.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

pub(super) fn entries(built: &Build) -> Result<Vec<Entry>> {
    let mut entries = skeleton();
    for binary in &built.binaries {
        let bytes = fs::read(&binary.path)
            .with_context(|| format!("cargo succeeded, but {} cannot be read", binary.path.display()))?;
        entries.push(Entry::file(&format!("usr/local/bin/{}", binary.name), 0o755, bytes));
    }
    Ok(entries)
}

/// All but the binaries.
pub(super) fn skeleton() -> Vec<Entry> {
    let mut entries: Vec<_> = ["etc", "usr", "usr/local", "usr/local/bin", "var", "run"]
        .map(|folder| Entry::folder(folder, 0o755))
        .into();
    entries.push(Entry::folder("root", 0o700));
    entries.push(Entry::folder("tmp", 0o1777));
    entries.push(Entry::link("var/run", "/run"));
    for (path, text) in [("etc/passwd", PASSWD), ("etc/group", GROUP), ("etc/nsswitch.conf", NSSWITCH)] {
        entries.push(Entry::file(path, 0o644, text.into()));
    }
    entries
}
