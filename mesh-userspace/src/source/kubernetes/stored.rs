//! The last state on disk, for an agent that starts while the API server is away.
//!
//! One gzip stream of JSON lines: a head, each object with the number of its watch, and at the end how many there were. The
//! objects are as this agent has read them, so a file is for the version that wrote it alone: no other can be rolled out
//! while the API server is away. What the file says is in force as what the API server says, so nobody but root may write it.
//! Whatever is wrong with a file, nothing of it is taken. There are no Secrets in it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::kinds::WATCHED;
use crate::file::{make_parent, replace_with};
use crate::model::NodeName;
use crate::resources::Object;

/// Counts up when the lines come to mean something else; a test notices where the objects do.
const FORMAT: u32 = 2;
/// Oldest state that is taken: the addresses in an older one may long be others'.
const MAX_AGE: Duration = Duration::from_hours(24);
/// Largest file, in bytes. 50,000 pods with their services and endpoints come to a few MiB.
const MAX_FILE: u64 = 128 << 20;
/// Most text in it, in bytes.
const MAX_TEXT: u64 = 2 << 30;
/// Longest line, in bytes: twice the largest object that etcd takes.
const MAX_LINE: u64 = 4 << 20;
/// Most objects.
const MAX_OBJECTS: u64 = 2_000_000;
/// What is written at once, in bytes.
const BUFFER: usize = 64 << 10;

/// An object, and the number of the watch that told it.
pub(super) type Told = (usize, Arc<Object>);

/// A state as it was kept.
#[derive(Debug)]
pub(super) struct Stored {
    /// It is of this time at least.
    pub(super) as_of: SystemTime,
    /// All of it.
    pub(super) objects: Vec<Told>,
}

/// Whose state it is: what must be the same when it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    format: u32,
    agent: String,
    node: String,
    api_server: String,
    /// Digest of the roots that it is known by: clusters may have the same address for it.
    #[serde(default)]
    roots: String,
    watches: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    #[serde(flatten)]
    owner: Owner,
    /// Unix seconds.
    as_of: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Object(usize, Arc<Object>),
    End(u64),
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoredError {
    #[error("cannot be read: {0}")]
    Read(io::Error),
    #[error("is no file that only root may write")]
    Public,
    #[error("is larger than {} MiB", MAX_FILE >> 20)]
    TooLarge,
    #[error("is too old: {} hours", .0.as_secs() / 3600)]
    TooOld(Duration),
    #[error("is of another {0}")]
    Foreign(&'static str),
    #[error("is spoilt: {0}")]
    Spoilt(String),
}

impl Owner {
    /// Of the agent on `node` that follows `api_server`, which `roots` (DER) have signed; without, the system's have.
    pub(super) fn new(node: &NodeName, api_server: &str, roots: Option<&[Vec<u8>]>) -> Self {
        Self {
            format: FORMAT,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            node: node.as_str().to_owned(),
            api_server: api_server.to_owned(),
            roots: digest(roots.unwrap_or_default()),
            watches: WATCHED.iter().map(|watched| watched.label.to_owned()).collect(),
        }
    }

    /// In what another one differs that matters most.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        [
            (self.format != other.format || self.agent != other.agent, "version of the agent"),
            (self.node != other.node, "node"),
            (self.api_server != other.api_server, "API server"),
            (self.roots != other.roots, "API server by its certificate authority"),
            (self.watches != other.watches, "build of the agent"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }
}

/// SHA-256 of certificates in any order, in hexadecimal.
fn digest(roots: &[Vec<u8>]) -> String {
    let mut each: Vec<_> = roots.iter().map(Sha256::digest).collect();
    each.sort_unstable();
    each.dedup();
    format!("{:x}", Sha256::digest(each.concat()))
}

/// Replaces the file (0600), an object at a time; returns its size in bytes.
pub(super) fn write(path: &Path, owner: &Owner, as_of: SystemTime, objects: &[Told]) -> io::Result<u64> {
    make_parent(path)?;
    let mut size = 0;
    replace_with(path, 0o600, |file| {
        let mut text = GzEncoder::new(BufWriter::with_capacity(BUFFER, file), Compression::fast());
        let as_of = as_of.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut line = serde_json::to_vec(&Head { owner: owner.clone(), as_of })?;
        let mut put = |line: &mut Vec<u8>| {
            line.push(b'\n');
            text.write_all(line)?;
            line.clear();
            Ok::<_, io::Error>(())
        };
        put(&mut line)?;
        for (watch, object) in objects {
            serde_json::to_writer(&mut line, &Line::Object(*watch, Arc::clone(object)))?;
            put(&mut line)?;
        }
        serde_json::to_writer(&mut line, &Line::End(objects.len() as u64))?;
        put(&mut line)?;
        let mut file = text.finish()?;
        file.flush()?;
        size = file.get_mut().stream_position()?;
        if size > MAX_FILE { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
    })?;
    Ok(size)
}

/// Reads the file; `None` where there is none. All of it, or nothing.
pub(super) fn read(path: &Path, owner: &Owner) -> Result<Option<Stored>, StoredError> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoredError::Read(error)),
    };
    let metadata = file.metadata().map_err(StoredError::Read)?;
    let is_own = metadata.uid() == nix::unistd::geteuid().as_raw();
    if !metadata.is_file() || !is_own || metadata.mode() & 0o022 != 0 {
        return Err(StoredError::Public);
    }
    if metadata.len() > MAX_FILE {
        return Err(StoredError::TooLarge);
    }
    lines(file, owner).map(Some)
}

fn lines(file: File, owner: &Owner) -> Result<Stored, StoredError> {
    let spoilt = |error: &dyn std::fmt::Display| StoredError::Spoilt(error.to_string());
    let text = GzDecoder::new(BufReader::with_capacity(BUFFER, file.take(MAX_FILE)));
    let mut text = BufReader::with_capacity(BUFFER, text.take(MAX_TEXT));
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| {
        line.clear();
        text.by_ref().take(MAX_LINE).read_until(b'\n', line).map_err(|error| spoilt(&error))?;
        match line.last() {
            Some(b'\n') => Ok(()),
            Some(_) => Err(spoilt(&"it has a line without an end")),
            None => Err(spoilt(&"it breaks off")),
        }
    };
    next(&mut line)?;
    let head: Head = serde_json::from_slice(&line).map_err(|error| spoilt(&error))?;
    if let Some(what) = owner.difference(&head.owner) {
        return Err(StoredError::Foreign(what));
    }
    let as_of = UNIX_EPOCH.checked_add(Duration::from_secs(head.as_of)).unwrap_or(UNIX_EPOCH);
    // One of the future is of a clock that was put back.
    let age = SystemTime::now().duration_since(as_of).unwrap_or_default();
    if age > MAX_AGE {
        return Err(StoredError::TooOld(age));
    }
    let mut objects = Vec::new();
    loop {
        next(&mut line)?;
        match serde_json::from_slice(&line).map_err(|error| spoilt(&error))? {
            Line::Object(watch, _) if watch >= WATCHED.len() => {
                return Err(spoilt(&"it has a watch too many"));
            }
            Line::Object(..) if objects.len() as u64 >= MAX_OBJECTS => {
                return Err(spoilt(&"it has too many objects"));
            }
            Line::Object(watch, object) => objects.push((watch, object)),
            Line::End(count) if count == objects.len() as u64 => break,
            Line::End(_) => return Err(spoilt(&"it does not have all of its objects")),
        }
    }
    // The checksum comes at the very end of the stream.
    match text.read_until(b'\n', &mut line) {
        Ok(0) => Ok(Stored { as_of, objects }),
        Ok(_) => Err(spoilt(&"it goes on after its end")),
        Err(error) => Err(spoilt(&error)),
    }
}

#[cfg(test)]
mod tests;
