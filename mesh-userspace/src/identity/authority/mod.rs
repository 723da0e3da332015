//! The local certificate authority in `--ca-dir`, for a machine without a cluster's authority.
//!
//! Files are named as in Istio's `cacerts` secret, so that a folder made for Istio works here and the reverse:
//! `ca-cert.pem`, `ca-key.pem` (0600), `root-cert.pem`, and where the authority is an intermediate `cert-chain.pem`.
//! Made on first start under a lock; `ca-key.pem` is put in place last, so whoever sees it sees the others. A folder
//! that holds some of the files is refused, never completed: what is there may be somebody's root.
//!
//! The authority follows its folder: before it signs it looks whether the files are still those that it read. New ones
//! are read and checked all together and take effect whole; what is wrong with them is told, and the last good state
//! goes on signing.

mod copy;
mod error;
mod files;
mod issue;
mod rotate;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use rcgen::{PublicKeyData, SanType};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

pub use self::copy::AuthorityFiles;
pub use self::error::AuthorityError;
#[cfg(test)]
pub(super) use self::issue::{leaf_params, root_params};
pub use self::rotate::{Phase, RotateError, Rotation, RotationStatus, RotationStep};

use self::files::{CERT, KEY, ROOT, Stamp};
use self::issue::Issuing;
use super::{SignError, SignedChain, Signer, SigningRequest};
use crate::model::TrustDomain;

/// In this part of its life, and in this time, an authority's end is a problem to be told.
const LAST_PART: f64 = 0.1;
const LAST_DAYS: time::Duration = time::Duration::days(30);

/// A certificate authority whose key is in this process.
pub struct Authority {
    dir: PathBuf,
    current: ArcSwap<Issuing>,
    seen: Mutex<Seen>,
}

/// The folder at the last look.
struct Seen {
    /// The files that were read; `None`: read again at the next look.
    stamp: Option<Stamp>,
    /// What was wrong with them.
    problem: Option<String>,
}

#[expect(clippy::missing_fields_in_debug, reason = "the private key must not be shown")]
impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let current = self.current.load();
        f.debug_struct("Authority")
            .field("dir", &self.dir)
            .field("not_after", &current.not_after)
            .field("roots", &current.roots.len())
            .finish()
    }
}

impl Authority {
    /// Opens the authority in `dir`, making a root for `trust_domain` if the folder is empty or missing.
    ///
    /// Blocks while another process does the same.
    ///
    /// # Errors
    /// See [`AuthorityError`]; nothing that exists is ever overwritten.
    pub fn open(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, AuthorityError> {
        // The key is put in place last. A folder that has one may be read-only, as a mounted secret is.
        if !dir.join(KEY).exists() {
            if !dir.exists() {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(dir)
                    .map_err(files::file_error("create", dir))?;
            }
            let _held = files::lock(dir)?;
            if ![CERT, KEY, ROOT].iter().any(|name| dir.join(name).exists()) {
                let (root, key) = issue::make_root(trust_domain.as_str())?;
                files::place(dir, ROOT, root.as_bytes(), 0o644)?;
                files::place(dir, CERT, root.as_bytes(), 0o644)?;
                files::place(dir, KEY, key.as_bytes(), 0o600)?;
            }
        }
        let (stamp, issuing) = files::read(dir);
        let seen = Mutex::new(Seen { stamp: Some(stamp), problem: None });
        Ok(Self { dir: dir.to_owned(), current: ArcSwap::from_pointee(issuing?), seen })
    }

    /// The roots that peers must trust now.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.followed().roots.clone()
    }

    /// A chain for a server of the authority's own: its names, for the server's end of a connection alone.
    ///
    /// # Errors
    /// The authority cannot sign.
    pub fn serving_chain(
        &self,
        names: &[SanType],
        public_key: &impl PublicKeyData,
        validity: Duration,
    ) -> Result<SignedChain, SignError> {
        self.followed().serving_chain(names, public_key, validity)
    }

    /// What is wrong with the folder, if its last good state is in use instead of it; or that the authority is near its
    /// own end: in the last tenth of its life, thirty days at most.
    pub fn problem(&self) -> Option<String> {
        let current = self.followed();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = &seen.problem {
            return Some(format!("{problem}; the last good state goes on signing"));
        }
        let left = current.not_after - OffsetDateTime::now_utc();
        let life = current.not_after - current.not_before;
        (left < (life * LAST_PART).min(LAST_DAYS)).then(|| {
            let (days, end) = (left.whole_days().max(0), current.not_after.date());
            format!("the authority in {} ends on {end}, in {days} days: rotate it", self.dir.display())
        })
    }

    /// What signs now: the folder's state, or the last good one. Five `stat` calls where nothing has changed.
    fn followed(&self) -> Arc<Issuing> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.stamp.as_ref() == Some(&Stamp::of(&self.dir)) {
            return self.current.load_full();
        }
        let (stamp, issuing) = files::read(&self.dir);
        match issuing {
            Ok(issuing) => {
                let (dir, roots) = (self.dir.display(), issuing.roots.len());
                tracing::info!(dir = %dir, roots, "the authority's folder has changed: its new state signs");
                self.current.store(Arc::new(issuing));
                *seen = Seen { stamp: Some(stamp), problem: None };
            }
            Err(error) => {
                let problem = with_cause(&error);
                if seen.problem.as_ref() != Some(&problem) {
                    tracing::error!(
                        problem,
                        "the authority's folder cannot be used: its last good state signs"
                    );
                }
                *seen = Seen { stamp: error.is_lasting().then_some(stamp), problem: Some(problem) };
            }
        }
        self.current.load_full()
    }
}

impl Signer for Authority {
    fn sign<'a>(&'a self, request: SigningRequest<'a>) -> BoxFuture<'a, Result<SignedChain, SignError>> {
        Box::pin(async move { self.followed().sign(request) })
    }
}

/// An error and its cause on one line.
fn with_cause(error: &AuthorityError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
