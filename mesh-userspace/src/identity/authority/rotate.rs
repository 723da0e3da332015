//! A new root in place of the old one, in three steps between which the certificates of all nodes follow.
//!
//! `add` makes the new root beside the old one and has both trusted; `switch` has the new one sign; `drop` ends the trust
//! in the old one. A step is a list of actions, each atomic, and after each of them the folder is one that an authority
//! can be opened with and that peers of the state before trust. A step that was interrupted is finished by running it
//! again. The moments of the steps are the files' own times.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::error::AuthorityError;
use super::files::{self, CERT, KEY, NEXT_CERT, NEXT_KEY, OLD_CERT, ROOT};
use super::issue::make_root;
use crate::identity::fingerprint;

/// A step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationStep {
    /// Make the new root; both are trusted from now on.
    Add,
    /// Sign with the new root.
    Switch,
    /// Trust the old root no longer.
    Drop,
}

impl fmt::Display for RotationStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Switch => "switch",
            Self::Drop => "drop",
        })
    }
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One root signs and none is to take its place.
    Settled,
    /// Both are trusted and the old one signs, since then.
    Added(SystemTime),
    /// The new one signs and the old one is still trusted, since then.
    Switched(SystemTime),
    /// A step did not come to its end.
    Interrupted(RotationStep),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settled => f.write_str("no rotation is under way"),
            Self::Added(_) => f.write_str("both roots are trusted, the old one signs"),
            Self::Switched(_) => f.write_str("the new root signs, the old one is still trusted"),
            Self::Interrupted(step) => write!(f, "`{step}` was interrupted"),
        }
    }
}

/// Why a root is not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The folder cannot be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Another step comes next.
    #[error("{phase}: the next step is `{next}`, not `{asked}`")]
    NotItsTurn {
        /// How far the rotation is.
        phase: Phase,
        /// What comes next.
        next: RotationStep,
        /// What was asked for.
        asked: RotationStep,
    },
    /// Certificates are in use that do not allow for it yet.
    #[error(
        "`{step}` is safe in {}, once every certificate has been renewed: run it then, or with --now if \
         `meshctl certs` on every node says so already",
        Span(*left)
    )]
    TooEarly {
        /// What was asked for.
        step: RotationStep,
        /// How long to wait.
        left: Duration,
    },
    /// The root is not made here.
    #[error(
        "{} is an intermediate: whoever has its root replaces it; docs/certificates.md says in which order",
        path.display()
    )]
    Intermediate {
        /// The authority's certificate.
        path: PathBuf,
    },
}

/// A folder whose root is to be rotated.
#[derive(Clone, Debug)]
pub struct Rotation {
    dir: PathBuf,
    life: Duration,
}

/// What there is in it.
struct Found {
    phase: Phase,
    /// What signs.
    active: CertificateDer<'static>,
    /// The authority's certificate by name, which is not what signs while a switch is interrupted.
    named: CertificateDer<'static>,
    next: Option<CertificateDer<'static>>,
    old: Option<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
}

/// One change of the folder. Atomic, and on disk when it is done.
enum Action {
    Write(&'static str, Zeroizing<Vec<u8>>, u32),
    Rename(&'static str, &'static str),
    Remove(&'static str),
}

impl Action {
    fn apply(&self, dir: &Path) -> Result<(), AuthorityError> {
        match self {
            Self::Write(name, content, mode) => files::place(dir, name, content, *mode),
            Self::Rename(from, to) => files::rename(dir, from, to),
            Self::Remove(name) => files::remove(dir, name),
        }
    }
}

impl Rotation {
    /// The rotation of the root in `dir`, with certificates that live for `life` at most.
    pub const fn new(dir: PathBuf, life: Duration) -> Self {
        Self { dir, life }
    }

    /// How far it is.
    ///
    /// # Errors
    /// The folder holds no authority.
    pub fn status(&self) -> Result<RotationStatus, RotateError> {
        let found = self.find()?;
        let signing = described(&found.active);
        let trusted = found.roots.iter().map(described).collect();
        let next = match found.phase {
            Phase::Settled => None,
            Phase::Added(_) => Some(RotationStep::Switch),
            Phase::Switched(_) => Some(RotationStep::Drop),
            Phase::Interrupted(step) => Some(step),
        };
        Ok(RotationStatus { phase: found.phase, signing, trusted, next, wait: self.wait(found.phase) })
    }

    /// Does a step; `now` whether or not certificates have had the time to follow.
    ///
    /// # Errors
    /// See [`RotateError`]. Nothing has changed then, unless the file system failed half-way: the step is finished by
    /// running it again.
    pub fn run(&self, step: RotationStep, now: bool) -> Result<RotationStatus, RotateError> {
        for action in self.plan(step, now)? {
            action.apply(&self.dir)?;
        }
        self.status()
    }

    /// What the step is to do, if it is its turn. The folder stays locked for others while the actions are kept.
    fn plan(&self, step: RotationStep, now: bool) -> Result<Plan, RotateError> {
        let held = files::lock(&self.dir)?;
        let found = self.find()?;
        let next = match found.phase {
            Phase::Settled => RotationStep::Add,
            Phase::Added(_) => RotationStep::Switch,
            Phase::Switched(_) => RotationStep::Drop,
            Phase::Interrupted(step) => step,
        };
        if step != next {
            return Err(RotateError::NotItsTurn { phase: found.phase, next, asked: step });
        }
        let left = self.wait(found.phase);
        if !now && !left.is_zero() {
            return Err(RotateError::TooEarly { step, left });
        }
        let actions = match step {
            RotationStep::Add => self.add(&found)?,
            RotationStep::Switch => self.switch(&found)?,
            RotationStep::Drop => self.drop_old(&found)?,
        };
        Ok(Plan { actions: actions.into_iter(), _held: held })
    }

    fn add(&self, found: &Found) -> Result<Vec<Action>, RotateError> {
        let path = self.dir.join(CERT);
        if !found.roots.contains(&found.active) {
            return Err(RotateError::Intermediate { path });
        }
        let mut actions = Vec::new();
        // What an interrupted step has made is used if it is whole.
        let made = found.next.as_ref().filter(|next| {
            files::read_key(&self.dir.join(NEXT_KEY)).is_ok_and(|key| files::belongs(next, &key))
        });
        let root = if made.is_some() {
            self.read(NEXT_CERT)?
        } else {
            let (root, key) = make_root(&organization(&found.active))?;
            let root = root.into_bytes();
            actions.push(Action::Write(NEXT_CERT, Zeroizing::new(root.clone()), 0o644));
            actions.push(Action::Write(NEXT_KEY, Zeroizing::new(key.as_bytes().to_vec()), 0o600));
            root
        };
        let mut both = self.read(ROOT)?;
        if !both.ends_with(b"\n") {
            both.push(b'\n');
        }
        both.extend(root);
        actions.push(Action::Write(ROOT, Zeroizing::new(both), 0o644));
        Ok(actions)
    }

    fn switch(&self, found: &Found) -> Result<Vec<Action>, RotateError> {
        let mut actions = Vec::new();
        if found.named == found.active {
            let old = self.read(CERT)?;
            actions.push(Action::Write(OLD_CERT, Zeroizing::new(old), 0o644));
            // From here on the new root signs. The old key is no more.
            actions.push(Action::Rename(NEXT_KEY, KEY));
        }
        actions.push(Action::Rename(NEXT_CERT, CERT));
        Ok(actions)
    }

    fn drop_old(&self, found: &Found) -> Result<Vec<Action>, RotateError> {
        let mut actions = Vec::new();
        if let Some(old) = found.old.as_ref().filter(|old| found.roots.contains(old)) {
            let kept = without(&String::from_utf8_lossy(&self.read(ROOT)?), old);
            actions.push(Action::Write(ROOT, Zeroizing::new(kept.into_bytes()), 0o644));
        }
        actions.push(Action::Remove(OLD_CERT));
        Ok(actions)
    }

    fn find(&self) -> Result<Found, AuthorityError> {
        let (_, issuing) = files::read(&self.dir);
        let issuing = issuing?;
        let first = |name: &str| -> Result<Option<CertificateDer<'static>>, AuthorityError> {
            let path = self.dir.join(name);
            if !path.exists() {
                return Ok(None);
            }
            Ok(files::read_certificates(&path)?.into_iter().next())
        };
        let named = first(CERT)?.unwrap_or_else(|| issuing.certificate.clone());
        let (next, old) = (first(NEXT_CERT)?, first(OLD_CERT)?);
        let (active, roots) = (issuing.certificate.clone(), issuing.roots.clone());
        let phase = if named != active {
            Phase::Interrupted(RotationStep::Switch)
        } else if let Some(old) = old.as_ref().filter(|old| **old != active) {
            if roots.contains(old) {
                Phase::Switched(self.written(OLD_CERT)?)
            } else {
                Phase::Interrupted(RotationStep::Drop)
            }
        } else if next.is_some() || self.dir.join(NEXT_KEY).exists() {
            let is_trusted = next.as_ref().is_some_and(|next| roots.contains(next));
            if is_trusted && self.dir.join(NEXT_KEY).exists() {
                Phase::Added(self.written(ROOT)?)
            } else {
                Phase::Interrupted(RotationStep::Add)
            }
        } else {
            Phase::Settled
        };
        Ok(Found { phase, active, named, next, old, roots })
    }

    /// How long until the next step. A certificate is renewed at half its life: by then every node has learnt of both
    /// roots. What the old root has signed is at its end after a whole life.
    fn wait(&self, phase: Phase) -> Duration {
        let (since, wait) = match phase {
            Phase::Added(since) => (since, self.life / 2),
            Phase::Switched(since) => (since, self.life),
            Phase::Settled | Phase::Interrupted(_) => return Duration::ZERO,
        };
        wait.saturating_sub(since.elapsed().unwrap_or_default())
    }

    fn written(&self, name: &str) -> Result<SystemTime, AuthorityError> {
        let path = self.dir.join(name);
        fs::metadata(&path).and_then(|file| file.modified()).map_err(files::file_error("read", &path))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, AuthorityError> {
        let path = self.dir.join(name);
        fs::read(&path).map_err(files::file_error("read", &path))
    }
}

/// Actions still to be done, with the lock that they are done under.
struct Plan {
    actions: std::vec::IntoIter<Action>,
    _held: nix::fcntl::Flock<fs::File>,
}

impl Iterator for Plan {
    type Item = Action;

    fn next(&mut self) -> Option<Action> {
        self.actions.next()
    }
}

/// What the root's subject says of whose it is.
fn organization(root: &CertificateDer<'_>) -> String {
    let parsed = x509_parser::parse_x509_certificate(root).ok();
    let named = parsed.as_ref().and_then(|(_, parsed)| {
        parsed.subject().iter_organization().next()?.as_str().ok().map(str::to_owned)
    });
    named.unwrap_or_else(|| "mesh".to_owned())
}

/// A PEM file's text without one certificate; what else it says stays.
fn without(pem: &str, dropped: &CertificateDer<'_>) -> String {
    let (mut kept, mut section) = (String::new(), String::new());
    let mut inside = false;
    for line in pem.split_inclusive('\n') {
        inside |= line.starts_with("-----BEGIN");
        if !inside {
            kept.push_str(line);
            continue;
        }
        section.push_str(line);
        if line.starts_with("-----END") {
            if CertificateDer::from_pem_slice(section.as_bytes()).ok().as_ref() != Some(dropped) {
                kept.push_str(&section);
            }
            section.clear();
            inside = false;
        }
    }
    kept + &section
}

/// A root as the status names it.
fn described(root: &CertificateDer<'static>) -> String {
    let end = x509_parser::parse_x509_certificate(root).ok();
    let end = end.map(|(_, parsed)| parsed.validity().not_after.to_datetime());
    let end = end.map_or_else(String::new, |end: OffsetDateTime| format!(", until {}", end.date()));
    format!("{}{end}", fingerprint(root))
}

/// How a folder stands, as `meshd rotate-root` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationStatus {
    /// How far the rotation is.
    pub phase: Phase,
    /// SHA-256 and end of what signs.
    pub signing: String,
    /// The same of each root that is trusted.
    pub trusted: Vec<String>,
    /// What comes next, if a rotation is under way.
    pub next: Option<RotationStep>,
    /// How long until then.
    pub wait: Duration,
}

impl fmt::Display for RotationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.phase)?;
        writeln!(f, "signing: {}", self.signing)?;
        for root in &self.trusted {
            writeln!(f, "trusted: {root}")?;
        }
        match (self.next, self.wait.is_zero()) {
            (None, _) => Ok(()),
            (Some(step), true) => writeln!(f, "next:    `meshd rotate-root {step}`"),
            (Some(step), false) => {
                writeln!(f, "next:    `meshd rotate-root {step}`, in {}", Span(self.wait))
            }
        }
    }
}

/// A time to wait, rounded up to what one would say.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs() + u64::from(self.0.subsec_nanos() > 0);
        match seconds {
            0..120 => write!(f, "{seconds}s"),
            120..7200 => write!(f, "{}m", seconds.div_ceil(60)),
            _ => write!(f, "{}h{}m", seconds.div_ceil(60) / 60, seconds.div_ceil(60) % 60),
        }
    }
}

#[cfg(test)]
mod tests;
