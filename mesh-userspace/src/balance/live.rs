//! The live state of one endpoint of a destination.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::outlier::{Ejections, Failure, Reason, Row};
use crate::model::{OutlierDetection, WorkloadUid};

/// See the module.
#[derive(Debug)]
pub(crate) struct Live {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// The workload behind it.
    pub(super) workload: Option<WorkloadUid>,
    /// Connections, those that are being established among them.
    open: AtomicU32,
    /// All that there were.
    begun: AtomicU64,
    /// Whether it is left out.
    ejected: AtomicBool,
    /// Whether there is a row of failures: a success need look no further without.
    failing: AtomicBool,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    row: Row,
    ejections: Ejections,
}

/// What is told of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveState {
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections of this agent to it, those that are being established among them.
    pub open: u32,
    /// All connections that were ever begun to it, tries that failed among them.
    pub begun: u64,
    /// Failures in a row.
    pub failures: u32,
    /// How often it was left out.
    pub ejections: u32,
    /// For how much longer at least it is left out; `None`: it is not.
    pub ejected_for: Option<Duration>,
}

impl LiveState {
    /// The same endpoint as part of another destination.
    pub fn join(&mut self, other: &Self) {
        self.open = self.open.saturating_add(other.open);
        self.begun = self.begun.saturating_add(other.begun);
        self.failures = self.failures.max(other.failures);
        self.ejections = self.ejections.max(other.ejections);
        self.ejected_for = self.ejected_for.max(other.ejected_for);
    }
}

impl Live {
    pub(super) fn new(address: SocketAddr, workload: Option<WorkloadUid>) -> Self {
        Self {
            address,
            workload,
            open: AtomicU32::new(0),
            begun: AtomicU64::new(0),
            ejected: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            health: Mutex::default(),
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections, those that are being established among them.
    pub(super) fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn begin(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether it is left out.
    pub(super) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// It answered: what failed before was no row.
    pub(super) fn answered(&self) {
        if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
            self.health().row = Row::default();
        }
    }

    /// A connection to it stands: no row of what this side notices.
    pub(super) fn connected(&self) {
        if self.failing.load(Ordering::Relaxed) {
            self.health().row.local = 0;
        }
    }

    /// Something failed; what is returned is a limit that was reached.
    pub(super) fn failed(&self, rule: &OutlierDetection, failure: Failure) -> Option<Reason> {
        let mut health = self.health();
        self.failing.store(true, Ordering::Relaxed);
        health.row.count(rule, failure)
    }

    /// Leaves it out; returns for how long, and how often that has been.
    pub(super) fn eject(&self, rule: &OutlierDetection, now: Instant) -> (Duration, u32) {
        let mut health = self.health();
        let lasts = health.ejections.eject(rule, now);
        self.ejected.store(true, Ordering::Relaxed);
        (lasts, health.ejections.times)
    }

    /// Looks at it; whether it comes back.
    pub(super) fn look(&self, rule: &OutlierDetection, now: Instant) -> bool {
        let mut health = self.health();
        let returns = health.ejections.look(rule, now);
        if returns {
            self.take_in(&mut health);
        }
        returns
    }

    /// Takes it in again, as nothing leaves it out any more; whether it was left out.
    pub(super) fn bring_back(&self, now: Instant) -> bool {
        let mut health = self.health();
        health.ejections.bring_back(now);
        let was = self.is_ejected();
        self.take_in(&mut health);
        was
    }

    fn take_in(&self, health: &mut Health) {
        // No row from before: one more failure is not to leave it out again.
        health.row = Row::default();
        self.failing.store(false, Ordering::Relaxed);
        self.ejected.store(false, Ordering::Relaxed);
    }

    /// Whether there is nothing to look at.
    pub(super) fn is_at_rest(&self) -> bool {
        self.health().ejections.is_at_rest()
    }

    pub(super) fn state(&self, rule: Option<&OutlierDetection>, now: Instant) -> LiveState {
        let health = self.health();
        let until = rule.and_then(|rule| health.ejections.until(rule));
        LiveState {
            address: self.address,
            open: self.open(),
            begun: self.begun.load(Ordering::Relaxed),
            failures: health.row.longest(),
            ejections: health.ejections.times,
            ejected_for: until.map(|until| until.saturating_duration_since(now)),
        }
    }
}
