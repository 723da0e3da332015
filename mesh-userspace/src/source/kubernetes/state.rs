//! How the agent stands with the API server: per kind and altogether. The watches write it, status and metrics read it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::kinds::WATCHED;
use super::trouble::Trouble;

/// How far a kind is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is known of it yet.
    #[default]
    Waiting,
    /// What was kept on disk is in force: nothing was heard of it yet.
    Stored,
    /// All of it was read, and its changes are followed.
    Synced,
    /// The cluster does not have it; it is looked for again.
    Absent,
}

/// A kind, as it is followed now.
#[derive(Clone, Debug, Default)]
pub struct KindStatus {
    /// Its name.
    pub label: &'static str,
    /// How far it is followed.
    pub phase: Phase,
    /// Objects that are known.
    pub objects: usize,
    /// When it was last listed in full.
    pub listed: Option<SystemTime>,
    /// When the API server was last heard of it: what is known is of that time at least.
    pub heard: Option<SystemTime>,
    /// Since when it cannot be followed.
    pub failing_since: Option<SystemTime>,
    /// Why not.
    pub error: Option<String>,
    reason: &'static str,
    /// How often what went wrong.
    pub errors: BTreeMap<&'static str, u64>,
}

/// All of them.
#[derive(Debug)]
pub struct ApiState {
    url: String,
    started: SystemTime,
    inner: Mutex<Inner>,
    ended: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    kinds: Vec<KindStatus>,
    /// Since when the API server is heard of every kind, or is not.
    since: Option<SystemTime>,
    /// Of when what was kept on disk is, where that was taken.
    stored: Option<SystemTime>,
    kept: Kept,
}

/// What is to be told of the connection.
#[derive(Clone, Debug)]
pub struct ApiStatus {
    /// The API server.
    pub url: String,
    /// Every kind that there is can be followed.
    pub connected: bool,
    /// Since when that is so, or not so.
    pub since: SystemTime,
    /// Why it is not.
    pub error: Option<String>,
    /// What is known is of this time at least; `None`: not everything is known yet.
    pub as_of: Option<SystemTime>,
    /// Of when what was kept on disk is, while that is in force for a kind.
    pub stored: Option<SystemTime>,
    /// How the state is kept.
    pub kept: Kept,
    /// Kind by kind.
    pub kinds: Vec<KindStatus>,
}

/// The state on disk, as this agent has written it.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// It is of this time at least; `None`: none was written.
    pub as_of: Option<SystemTime>,
    /// Size of the file, in bytes.
    pub size: u64,
    /// What writing it took.
    pub took: Duration,
    /// Writings that failed.
    pub failures: u64,
    /// Why the last one did.
    pub error: Option<String>,
}

impl ApiState {
    pub(super) fn new(url: String) -> Arc<Self> {
        let kinds =
            WATCHED.iter().map(|watched| KindStatus { label: watched.label, ..KindStatus::default() });
        let inner = Inner { kinds: kinds.collect(), ..Inner::default() };
        let ended = watch::channel(false).0;
        Arc::new(Self { url, started: SystemTime::now(), inner: Mutex::new(inner), ended })
    }

    /// How it stands now.
    pub fn status(&self) -> ApiStatus {
        let inner = self.lock();
        let kinds = inner.kinds.clone();
        let failing: Vec<&KindStatus> = kinds.iter().filter(|kind| kind.error.is_some()).collect();
        let waiting = kinds.iter().any(|kind| matches!(kind.phase, Phase::Waiting | Phase::Stored));
        let stored = inner.stored.filter(|_| kinds.iter().any(|kind| kind.phase == Phase::Stored));
        let followed = kinds.iter().filter(|kind| kind.phase != Phase::Absent);
        let as_of = followed.map(|kind| match kind.phase {
            Phase::Stored => stored,
            _ => kind.listed.and(kind.heard),
        });
        ApiStatus {
            url: self.url.clone(),
            connected: failing.is_empty() && !waiting,
            since: inner.since.unwrap_or(self.started),
            error: failing.first().and_then(|kind| kind.error.clone()),
            as_of: as_of.min().flatten(),
            stored,
            kept: inner.kept.clone(),
            kinds,
        }
    }

    /// Kinds that must be known before anything can be put in force, each with what stands in the way.
    pub fn waits_for(&self) -> Vec<String> {
        let inner = self.lock();
        let waiting = inner.kinds.iter().filter(|kind| kind.phase == Phase::Waiting);
        waiting
            .map(|kind| match &kind.error {
                Some(error) => format!("{} ({error})", kind.label),
                None => kind.label.to_owned(),
            })
            .collect()
    }

    /// Whether a kind of which nothing is known cannot be followed for so long, or is not heard of.
    pub(super) fn is_away(&self, patience: Duration) -> bool {
        let is_old = |at: Option<SystemTime>| {
            let begun = at.unwrap_or(self.started);
            SystemTime::now().duration_since(begun).is_ok_and(|age| age >= patience)
        };
        let inner = self.lock();
        let mut waiting = inner.kinds.iter().filter(|kind| kind.phase == Phase::Waiting);
        waiting.any(|kind| match kind.failing_since {
            Some(since) => is_old(Some(since)),
            None => is_old(kind.heard),
        })
    }

    /// What was kept on disk is in force for all kinds of which nothing is known.
    pub(super) fn restored(&self, as_of: SystemTime) {
        self.change_all(|kinds| {
            for kind in kinds.iter_mut().filter(|kind| kind.phase == Phase::Waiting) {
                kind.phase = Phase::Stored;
            }
        });
        self.lock().stored = Some(as_of);
    }

    /// The state was written.
    pub(super) fn kept(&self, as_of: SystemTime, size: u64, took: Duration) {
        let mut inner = self.lock();
        let failures = inner.kept.failures;
        let kept = Kept { as_of: Some(as_of), size, took, failures, error: None };
        if std::mem::replace(&mut inner.kept, kept).error.is_some() {
            tracing::info!("the state of the mesh is kept on disk again");
        }
    }

    /// It could not be. Told once for each thing that is wrong.
    pub(super) fn not_kept(&self, path: &Path, error: &io::Error) {
        let message = error.to_string();
        let mut inner = self.lock();
        inner.kept.failures += 1;
        if inner.kept.error.as_ref() != Some(&message) {
            let file = path.display();
            tracing::warn!(%file, error = message, "the state of the mesh cannot be kept on disk: an agent that starts while the API server is away would have none");
            inner.kept.error = Some(message);
        }
    }

    /// Nothing is followed, or written, any more.
    pub(super) fn end(&self) {
        self.ended.send_replace(true);
    }

    /// Completes once nothing is followed, or written, any more.
    pub async fn ended(&self) {
        let mut ended = self.ended.subscribe();
        // Its sender lives as long as `self`.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// The API server answered, or sent something.
    pub(super) fn heard(&self, kind: usize) {
        if let Some(kind) = self.lock().kinds.get_mut(kind) {
            kind.heard = Some(SystemTime::now());
        }
    }

    /// It is followed again.
    pub(super) fn recovered(&self, kind: usize) {
        self.change(kind, |kind| (kind.failing_since, kind.error) = (None, None));
    }

    pub(super) fn synced(&self, kind: usize) {
        self.change(kind, |kind| {
            let now = Some(SystemTime::now());
            (kind.phase, kind.listed, kind.heard) = (Phase::Synced, now, now);
            (kind.failing_since, kind.error) = (None, None);
        });
    }

    pub(super) fn absent(&self, kind: usize) {
        self.change(kind, |kind| {
            (kind.phase, kind.objects, kind.heard) = (Phase::Absent, 0, Some(SystemTime::now()));
            (kind.failing_since, kind.error) = (None, None);
        });
    }

    pub(super) fn count(&self, kind: usize, objects: usize) {
        if let Some(kind) = self.lock().kinds.get_mut(kind) {
            kind.objects = objects;
        }
    }

    /// It cannot be followed now. Told once for each thing that is wrong, not for each kind and each try.
    pub(super) fn failed(&self, kind: usize, trouble: Trouble) {
        let Trouble { reason, message } = trouble;
        let mut is_new = false;
        self.change_all(|kinds| {
            is_new = kinds.iter().all(|kind| kind.error.as_ref() != Some(&message));
            let Some(kind) = kinds.get_mut(kind) else { return };
            *kind.errors.entry(reason).or_default() += 1;
            kind.failing_since.get_or_insert_with(SystemTime::now);
            kind.error = Some(message.clone());
            kind.reason = reason;
        });
        let label = WATCHED.get(kind).map_or("", |watched| watched.label);
        if is_new {
            tracing::warn!(
                api_server = self.url,
                kind = label,
                reason,
                error = message,
                "the API server cannot be followed: the last state stays in force, trying again"
            );
        } else {
            tracing::debug!(kind = label, reason, error = message, "not followed");
        }
    }

    /// Something that is no failure and yet worth counting.
    pub(super) fn count_error(&self, kind: usize, reason: &'static str) {
        if let Some(kind) = self.lock().kinds.get_mut(kind) {
            *kind.errors.entry(reason).or_default() += 1;
        }
    }

    fn change(&self, kind: usize, change: impl FnOnce(&mut KindStatus)) {
        self.change_all(|kinds| {
            if let Some(kind) = kinds.get_mut(kind) {
                change(kind);
            }
        });
    }

    fn change_all(&self, change: impl FnOnce(&mut [KindStatus])) {
        let is_well = |kinds: &[KindStatus]| {
            kinds
                .iter()
                .all(|kind| kind.error.is_none() && !matches!(kind.phase, Phase::Waiting | Phase::Stored))
        };
        let is_failing = |kinds: &[KindStatus]| kinds.iter().any(|kind| kind.error.is_some());
        let is_stored = |kinds: &[KindStatus]| kinds.iter().any(|kind| kind.phase == Phase::Stored);
        let (failed, fails, well, stored) = {
            let mut inner = self.lock();
            let (was_well, failed) = (is_well(&inner.kinds), is_failing(&inner.kinds));
            let was_stored = is_stored(&inner.kinds);
            change(&mut inner.kinds);
            let well = is_well(&inner.kinds);
            if was_well != well || inner.since.is_none() {
                inner.since = Some(SystemTime::now());
            }
            let stored = was_stored && !is_stored(&inner.kinds);
            (failed, is_failing(&inner.kinds), well, stored)
        };
        if stored {
            tracing::info!(
                api_server = self.url,
                "the API server's own state is in force: what was kept on disk has served"
            );
        }
        if failed && !fails {
            tracing::info!(api_server = self.url, complete = well, "the API server is followed again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
