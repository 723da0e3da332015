//! Node tokens: how a node proves who it is where there is no Kubernetes.
//!
//! A line of the file is `NODE NAMESPACE/SERVICE_ACCOUNT TOKEN [AUDIENCE] [EXPIRY]`; the audience is `istio-ca` where
//! none is given, the expiry an RFC 3339 time. Empty lines and those that begin with `#` do not count. The file must be
//! its owner's alone and is read again when it has changed. A file that cannot be read lets nobody in: a token that was
//! taken out of it must not live on because of a slip elsewhere.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::caller::{AUDIENCE, Account, Caller, CallerError, MAX_TOKEN, Method};
use super::digest::{Digest, sha256};
use crate::model::NodeName;

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Shortest token: less can be guessed.
const MIN_TOKEN: usize = 32;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("cannot read the node tokens in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than the owner have access.
    #[error("{} has mode {mode:04o}; node tokens must be 0600: chmod 600 it", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A line is wrong. The line is not shown: it may hold a token.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

struct Entry {
    digest: Digest,
    account: Account,
    node: NodeName,
    audience: String,
    expiry: Option<OffsetDateTime>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp([i64; 6]);

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        let own = |number: u64| i64::from_ne_bytes(number.to_ne_bytes());
        Self([
            own(metadata.dev()),
            own(metadata.ino()),
            own(metadata.size()),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime().wrapping_mul(1_000_000_000).wrapping_add(metadata.ctime_nsec()),
        ])
    }
}

struct Loaded {
    stamp: Stamp,
    entries: Arc<[Entry]>,
}

/// The tokens of a file.
pub struct NodeTokens {
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

impl fmt::Debug for NodeTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTokens").field("path", &self.path).finish_non_exhaustive()
    }
}

impl NodeTokens {
    /// Reads the file.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub fn open(path: &Path) -> Result<Self, TokensError> {
        Ok(Self { path: path.to_owned(), loaded: Mutex::new(load(path)?) })
    }

    /// Whose token this is.
    ///
    /// Every token of the file is compared, each in constant time.
    pub(super) fn review(&self, token: &str) -> Result<Caller, CallerError> {
        let entries = self.entries().map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "node tokens cannot be read");
            CallerError::Unavailable { what: "the file of node tokens", detail: error.to_string() }
        })?;
        let digest = sha256(token.as_bytes());
        let mut found = None;
        for entry in entries.iter() {
            if bool::from(entry.digest.ct_eq(&digest)) {
                found = Some(entry);
            }
        }
        let entry = found.ok_or(CallerError::UnknownToken)?;
        if entry.audience != AUDIENCE {
            return Err(CallerError::WrongAudience);
        }
        if entry.expiry.is_some_and(|expiry| expiry <= OffsetDateTime::now_utc()) {
            return Err(CallerError::ExpiredToken);
        }
        let (account, node) = (entry.account.clone(), Some(entry.node.clone()));
        Ok(Caller { account, node, method: Method::NodeToken })
    }

    fn entries(&self) -> Result<Arc<[Entry]>, TokensError> {
        let metadata = std::fs::metadata(&self.path).map_err(read_error(&self.path))?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.stamp != Stamp::of(&metadata) {
            *loaded = load(&self.path)?;
            tracing::info!(file = %self.path.display(), tokens = loaded.entries.len(), "node tokens read again");
        }
        Ok(Arc::clone(&loaded.entries))
    }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> TokensError {
    let path = path.to_owned();
    move |source| TokensError::Read { path, source }
}

fn load(path: &Path) -> Result<Loaded, TokensError> {
    let file = File::open(path).map_err(read_error(path))?;
    let metadata = file.metadata().map_err(read_error(path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o177 != 0 {
        return Err(TokensError::Mode { path: path.into(), mode });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(read_error(path))?;
    let wrong = |line, reason| TokensError::Line { path: path.into(), line, reason };
    if text.len() as u64 > MAX_FILE {
        return Err(wrong(1, "the file is longer than 4 MiB"));
    }
    let mut entries: Vec<Entry> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = entry(line).map_err(|reason| wrong(number + 1, reason))?;
        if entries.iter().any(|other| other.digest == entry.digest) {
            return Err(wrong(number + 1, "this token is on an earlier line as well"));
        }
        entries.push(entry);
    }
    Ok(Loaded { stamp: Stamp::of(&metadata), entries: entries.into() })
}

fn entry(line: &str) -> Result<Entry, &'static str> {
    let mut fields = line.split_whitespace();
    let mut field = || fields.next();
    let (Some(node), Some(account), Some(token)) = (field(), field(), field()) else {
        return Err("a line is NODE NAMESPACE/SERVICE_ACCOUNT TOKEN [AUDIENCE] [EXPIRY]");
    };
    let account = account.parse().map_err(|_error| "the second field is no NAMESPACE/SERVICE_ACCOUNT")?;
    if !(MIN_TOKEN..=MAX_TOKEN).contains(&token.len()) {
        return Err(
            "the token is shorter than 32 characters or longer than 16384: make one with `openssl rand -hex 32`",
        );
    }
    let (mut audience, mut expiry) = (None, None);
    for field in fields {
        match OffsetDateTime::parse(field, &Rfc3339) {
            Ok(time) if expiry.is_none() => expiry = Some(time),
            Err(_) if audience.is_none() && expiry.is_none() => audience = Some(field.to_owned()),
            _ => return Err("after the token come at most an audience and an RFC 3339 time"),
        }
    }
    Ok(Entry {
        digest: sha256(token.as_bytes()),
        account,
        node: NodeName::new(node),
        audience: audience.unwrap_or_else(|| AUDIENCE.to_owned()),
        expiry,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::identity::testing::TempDir;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn write(dir: &TempDir, text: &str, mode: u32) -> PathBuf {
        let path = dir.path().join("tokens");
        let aside = dir.path().join("aside");
        fs::write(&aside, text).unwrap();
        fs::set_permissions(&aside, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&aside, &path).unwrap();
        path
    }

    #[test]
    fn a_token_is_its_nodes() {
        let dir = TempDir::new();
        let other = TOKEN.replace('0', "z");
        let text = format!(
            "# nodes\n\nnode-a mesh-system/meshd {TOKEN}\nnode-b mesh-system/meshd {other} istio-ca\n"
        );
        let tokens = NodeTokens::open(&write(&dir, &text, 0o600)).unwrap();
        let caller = tokens.review(TOKEN).unwrap();
        assert_eq!(caller.account.to_string(), "mesh-system/meshd");
        assert_eq!(caller.node, Some(NodeName::new("node-a")));
        assert_eq!(tokens.review(&other).unwrap().node, Some(NodeName::new("node-b")));
        for wrong in ["", &TOKEN[1..], &TOKEN.to_uppercase()] {
            assert_eq!(tokens.review(wrong), Err(CallerError::UnknownToken));
        }
    }

    #[test]
    fn a_token_for_others_or_past_its_end_is_refused_with_its_reason() {
        let cases = [
            ("kubernetes.default.svc", Err(CallerError::WrongAudience)),
            ("istio-ca 2020-01-01T00:00:00Z", Err(CallerError::ExpiredToken)),
            ("2020-01-01T00:00:00Z", Err(CallerError::ExpiredToken)),
            ("2200-01-01T00:00:00+02:00", Ok(())),
        ];
        for (rest, expected) in cases {
            let dir = TempDir::new();
            let path = write(&dir, &format!("node-a mesh-system/meshd {TOKEN} {rest}\n"), 0o600);
            assert_eq!(NodeTokens::open(&path).unwrap().review(TOKEN).map(drop), expected, "{rest}");
        }
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_without_showing_a_token() {
        let line = format!("node-a mesh-system/meshd {TOKEN}");
        let cases = [
            (line.clone(), 0o640, "must be 0600"),
            ("node-a mesh-system/meshd".to_owned(), 0o600, ":1: a line is"),
            (format!("\nnode-a meshd {TOKEN}"), 0o600, ":2: the second field"),
            ("node-a mesh-system/meshd secret".to_owned(), 0o600, "openssl rand"),
            (format!("{line}\n{line}"), 0o600, ":2: this token"),
            (format!("{line} a b"), 0o600, "at most an audience"),
            (format!("{line} 2020-01-01T00:00:00Z a"), 0o600, "at most an audience"),
        ];
        for (text, mode, message) in cases {
            let dir = TempDir::new();
            let error = NodeTokens::open(&write(&dir, &text, mode)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            assert!(!error.contains(TOKEN) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_changed_file_counts_at_once_and_a_broken_one_lets_nobody_in() {
        let dir = TempDir::new();
        let path = write(&dir, &format!("node-a mesh-system/meshd {TOKEN}\n"), 0o600);
        let tokens = NodeTokens::open(&path).unwrap();
        assert!(tokens.review(TOKEN).is_ok());
        write(&dir, "# nobody\n", 0o600);
        assert_eq!(tokens.review(TOKEN), Err(CallerError::UnknownToken));
        write(&dir, &format!("node-a mesh-system/meshd {TOKEN}\n"), 0o644);
        assert!(matches!(tokens.review(TOKEN), Err(CallerError::Unavailable { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(tokens.review(TOKEN), Err(CallerError::Unavailable { .. })));
        write(&dir, &format!("node-a mesh-system/meshd {TOKEN}\n"), 0o600);
        assert!(tokens.review(TOKEN).is_ok());
    }
}
