//! A file system as a layer: a tar, compressed, the same bytes for the same entries.
//!
//! Entries are sorted, so that a folder comes before what is in it; owner, group and time are the same for all.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
};

use anyhow::{Context as _, Result, bail};
use flate2::{Compression, GzBuilder};
use tar::{EntryType, Header};

use super::layout::sha256;

/// One file, folder or symbolic link.
pub(super) struct Entry {
    path: String,
    mode: u32,
    content: Content,
}

enum Content {
    Folder,
    File(Vec<u8>),
    Link(String),
}

impl Entry {
    pub(super) fn folder(path: &str, mode: u32) -> Self {
        Self { path: path.to_owned(), mode, content: Content::Folder }
    }

    pub(super) fn file(path: &str, mode: u32, bytes: Vec<u8>) -> Self {
        Self { path: path.to_owned(), mode, content: Content::File(bytes) }
    }

    /// A symbolic link to `target`.
    pub(super) fn link(path: &str, target: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o777, content: Content::Link(target.to_owned()) }
    }
}

/// A layer, and what names it: a manifest the compressed bytes, a configuration the tar.
pub(super) struct Layer {
    tar: Vec<u8>,
    compressed: Vec<u8>,
}

impl Layer {
    /// A layer of `entries`, all with `time` (seconds since 1970).
    ///
    /// # Errors
    /// Two entries of one path, one outside its folders, or one that tar cannot hold.
    pub(super) fn write(entries: &[Entry], time: u64) -> Result<Self> {
        let mut sorted = BTreeMap::new();
        for entry in entries {
            if sorted.insert(parts(&entry.path)?, entry).is_some() {
                bail!("`{}` is in the image twice", entry.path);
            }
        }
        let mut tar = tar::Builder::new(Vec::new());
        for (parts, entry) in &sorted {
            let folder = &parts[..parts.len() - 1];
            let inside = folder.is_empty()
                || sorted.get(folder).is_some_and(|folder| matches!(folder.content, Content::Folder));
            if !inside {
                bail!("`{}` is in no folder of the image", entry.path);
            }
            append(&mut tar, entry, time)
                .with_context(|| format!("`{}` does not go into a tar", entry.path))?;
        }
        let tar = tar.into_inner().context("cannot end the tar")?;
        let compressed = compress(&tar).context("cannot compress the layer")?;
        Ok(Self { tar, compressed })
    }

    /// As a registry holds it.
    pub(super) fn compressed(&self) -> &[u8] {
        &self.compressed
    }

    /// The tar.
    pub(super) fn tar(&self) -> &[u8] {
        &self.tar
    }

    pub(super) fn uncompressed_size(&self) -> usize {
        self.tar.len()
    }

    /// The digest of the tar, as a configuration names the layer.
    pub(super) fn diff_id(&self) -> String {
        sha256(&self.tar)
    }
}

fn parts(path: &str) -> Result<Vec<&str>> {
    let parts: Vec<_> = path.split('/').collect();
    if parts.iter().any(|part| ["", ".", ".."].contains(part)) {
        bail!("`{path}` is no path within an image");
    }
    Ok(parts)
}

fn append(tar: &mut tar::Builder<Vec<u8>>, entry: &Entry, time: u64) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_uid(0);
    header.set_gid(0);
    header.set_username("root")?;
    header.set_groupname("root")?;
    header.set_device_major(0)?;
    header.set_device_minor(0)?;
    header.set_mtime(time);
    header.set_mode(entry.mode);
    match &entry.content {
        Content::Folder => {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            tar.append_data(&mut header, format!("{}/", entry.path), io::empty())
        }
        Content::File(bytes) => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, &entry.path, bytes.as_slice())
        }
        Content::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, &entry.path, target)
        }
    }
}

/// gzip with no name and no time in its header.
fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(bytes)?;
    gzip.finish()
}
