//! One identity's certificate: how far it is, and when something is to be done about it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{CertificateState, CertificateStatus, StoreError};
use crate::identity::WorkloadCertificate;
use crate::model::Identity;

/// Wait after the first failure; doubled with each.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait between two tries.
const LAST_RETRY: Duration = Duration::from_mins(1);
/// What is signed anew because the roots have changed is spread over this, or an eighth of what is left of its life.
const SPREAD: Duration = Duration::from_secs(5);
/// Rest between two such renewals of one certificate, or a quarter of its life: authorities that do not agree about the
/// roots must not keep a node busy.
const REST: Duration = Duration::from_mins(1);

/// A certificate in use.
struct Current {
    certificate: Arc<WorkloadCertificate>,
    expires: Instant,
    /// How long it had when it was signed.
    life: Duration,
    /// Whether its end has been warned of.
    warned: bool,
}

impl Current {
    /// From here on, renewal should have succeeded long ago.
    fn last_quarter(&self) -> Instant {
        self.expires - self.life / 4
    }
}

/// What changes of an [`Entry`].
#[derive(Default)]
pub(super) struct Progress {
    current: Option<Current>,
    /// When the store has work with it, and when a first use may try again.
    due: Option<Instant>,
    failures: u32,
    error: Option<StoreError>,
    /// When it was last to be renewed for its roots alone.
    hurried: Option<Instant>,
}

impl Progress {
    /// The certificate while it is good.
    pub(super) fn usable(&self) -> Option<Arc<WorkloadCertificate>> {
        // Both clocks: the monotonic one stands still while the machine sleeps, the other may be set.
        let usable = |current: &&Current| {
            Instant::now() < current.expires && SystemTime::now() < current.certificate.not_after()
        };
        let current = self.current.as_ref().filter(usable)?;
        Some(Arc::clone(&current.certificate))
    }

    /// The certificate, good or past its end.
    pub(super) fn certificate(&self) -> Option<&Arc<WorkloadCertificate>> {
        self.current.as_ref().map(|current| &current.certificate)
    }

    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(super) fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    /// What a caller gets who must wait for the next try.
    pub(super) fn refusal(&self) -> Option<StoreError> {
        self.error.clone().filter(|_| !self.is_due())
    }

    /// A new certificate is in use.
    pub(super) fn signed(&mut self, certificate: Arc<WorkloadCertificate>) {
        let now = Instant::now();
        let life = certificate.not_after().duration_since(SystemTime::now()).unwrap_or_default();
        // Half of its life, up to a tenth of that earlier: whoever waits for half a life has waited for all.
        self.due = Some(now + life.mul_f64(0.5 - 0.05 * fastrand::f64()));
        self.current = Some(Current { certificate, expires: now + life, life, warned: false });
        self.failures = 0;
        self.error = None;
    }

    /// The authority did not sign.
    pub(super) fn failed(&mut self, error: StoreError) {
        let now = Instant::now();
        // A certificate that lives for seconds has no minute to wait.
        let life = self.current.as_ref().map(|current| current.life);
        let longest = life.map_or(LAST_RETRY, |life| (life / 8).clamp(FIRST_RETRY, LAST_RETRY));
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(6)).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + wait.mul_f64(0.75 + 0.5 * fastrand::f64()));
        self.error = Some(error);
    }

    /// The roots have changed: it is renewed within seconds.
    pub(super) fn hurry(&mut self) {
        let Some(current) = &self.current else { return };
        let now = Instant::now();
        let left = current.expires.saturating_duration_since(now);
        let rested = self.hurried.map_or(now, |last| last + REST.min(current.life / 4));
        let due = rested.max(now) + SPREAD.min(left / 8).mul_f64(fastrand::f64());
        if self.due.is_none_or(|held| due < held) {
            self.due = Some(due);
            self.hurried = Some(due);
        }
    }

    /// When its end is to be warned of, if it has not been.
    pub(super) fn warning(&self) -> Option<Instant> {
        self.current.as_ref().filter(|current| !current.warned).map(Current::last_quarter)
    }

    /// Whether its end is to be warned of now: once a certificate.
    pub(super) fn warn(&mut self) -> bool {
        let is_time = self.warning().is_some_and(|at| at <= Instant::now());
        if let Some(current) = self.current.as_mut().filter(|_| is_time) {
            current.warned = true;
        }
        is_time
    }

    fn state(&self) -> CertificateState {
        let Some(current) = &self.current else {
            return if self.error.is_some() {
                CertificateState::Unavailable
            } else {
                CertificateState::Pending
            };
        };
        if self.usable().is_none() {
            CertificateState::Unavailable
        } else if current.last_quarter() <= Instant::now() {
            CertificateState::Expiring
        } else if self.error.is_some() {
            CertificateState::RenewalFailing
        } else {
            CertificateState::Valid
        }
    }
}

/// An identity that has, or wants, a certificate.
pub(super) struct Entry {
    pub(super) identity: Identity,
    progress: Mutex<Progress>,
    /// Held while the authority is asked.
    pub(super) flight: tokio::sync::Mutex<()>,
}

impl Entry {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity, progress: Mutex::default(), flight: tokio::sync::Mutex::default() }
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> CertificateStatus {
        let progress = self.progress();
        let in_time = |due: Instant| SystemTime::now() + due.saturating_duration_since(Instant::now());
        CertificateStatus {
            identity: self.identity.clone(),
            state: progress.state(),
            certificate: progress.certificate().cloned(),
            renew_at: progress.due.map(in_time),
            error: progress.error.clone(),
        }
    }
}
