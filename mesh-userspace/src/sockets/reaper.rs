//! When sockets are looked for: at the agent's start, for what went while it was away, and after each snapshot in which an
//! endpoint stopped serving or went. A burst of changes is one pass: at most one runs and one waits, with pauses in
//! proportion to what they cost.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Ended;
use super::doomed::something_went;
use super::namespaces::Namespaces;
use super::pass::{Absent, Pass, PassError, Tally};
use crate::datapath::{OpenSockets, monotonic_ns};
use crate::model::{Protocol, Snapshot};
use crate::telemetry::Metrics;

/// From the end of a pass to the next one, at least.
const PAUSE: Duration = Duration::from_millis(50);
/// A pass is followed by a pause of so many times what it took: it has 5% of a processor at most.
const SHARE: u32 = 20;

/// Hears of each snapshot that passes are made for, to end what is held elsewhere.
pub type OnPass = Box<dyn Fn(&Arc<Snapshot>) + Send>;

/// The thread that ends sockets. Dropping it ends the thread, after the pass that is under way.
pub struct Reaper {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    /// Starts it; the first snapshot leads to a pass whatever it says.
    pub fn start(
        open: OpenSockets,
        metrics: Arc<Metrics>,
        ended: Arc<Ended>,
        on_pass: OnPass,
    ) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::default());
        let letters = Arc::clone(&mailbox);
        let mut worker = Worker {
            open,
            metrics,
            ended,
            on_pass,
            namespaces: Namespaces::default(),
            absent: Absent::default(),
            letters: Arc::clone(&mailbox),
            latest: None,
            is_due: false,
            retry: false,
        };
        let thread = std::thread::Builder::new().name("sockets".into()).spawn(move || {
            let mut earliest = Instant::now();
            while let Some(arrived) = letters.take(worker.is_due.then_some(earliest)) {
                for (snapshot, in_force_ns) in arrived {
                    worker.see(snapshot, in_force_ns);
                }
                if worker.is_due && Instant::now() >= earliest {
                    let taken = worker.look();
                    earliest = Instant::now() + (taken * SHARE).max(PAUSE);
                }
            }
        })?;
        Ok(Self { mailbox, thread: Some(thread) })
    }

    /// The kernel maps are about to be brought in line with this snapshot. Does not wait.
    pub fn announce(&self, snapshot: &Snapshot) {
        self.mailbox.letters().newest = Some(Arc::new(snapshot.clone()));
    }

    /// The kernel maps now hold what this snapshot says. Does not wait.
    pub fn follow(&self, snapshot: &Snapshot) {
        self.mailbox.put(Arc::new(snapshot.clone()), monotonic_ns());
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.mailbox.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that ends sockets panicked");
        }
    }
}

struct Worker {
    open: OpenSockets,
    metrics: Arc<Metrics>,
    ended: Arc<Ended>,
    on_pass: OnPass,
    namespaces: Namespaces,
    absent: Absent,
    letters: Arc<Mailbox>,
    /// What the kernel holds, and since when (`CLOCK_MONOTONIC` in ns).
    latest: Option<(Arc<Snapshot>, u64)>,
    /// Something went since the last pass began.
    is_due: bool,
    /// The last pass left something undone that may be possible with the next snapshot.
    retry: bool,
}

impl Worker {
    /// Every snapshot must be seen, in order: an endpoint may come with one and go with the next.
    fn see(&mut self, snapshot: Arc<Snapshot>, in_force_ns: u64) {
        let went = |(before, _): &(Arc<Snapshot>, u64)| something_went(before, &snapshot);
        self.is_due |= self.retry || self.latest.as_ref().is_none_or(went);
        self.latest = Some((snapshot, in_force_ns));
    }

    /// Makes a pass; returns how long it took.
    fn look(&mut self) -> Duration {
        let started = Instant::now();
        self.is_due = false;
        let Some((snapshot, in_force_ns)) = self.latest.clone() else { return Duration::ZERO };
        (self.on_pass)(&snapshot);
        match self.pass(&snapshot, in_force_ns) {
            Ok(tally) => {
                self.tell(&tally, started.elapsed());
                self.retry = tally.is_worth_another();
            }
            Err(error) => {
                self.metrics.sockets_not_ended("maps_not_read", 1);
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "sockets of endpoints that went cannot be looked for");
                self.retry = true;
            }
        }
        started.elapsed()
    }

    /// A pass on a thread that may end up in any namespace.
    fn pass(&mut self, snapshot: &Snapshot, in_force_ns: u64) -> Result<Tally, PassError> {
        let Self { open, ended, namespaces, absent, letters, .. } = self;
        let newest = || letters.letters().newest.clone();
        let newest = &newest;
        let mut pass = Pass { open, snapshot, in_force_ns, newest, namespaces, absent, ended };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("sockets-pass".into());
            let thread = thread.spawn_scoped(scope, move || pass.run()).map_err(PassError::Start)?;
            thread.join().unwrap_or(Err(PassError::Panicked))
        })
    }

    fn tell(&self, tally: &Tally, taken: Duration) {
        for ((protocol, reason), count) in &tally.ended {
            self.metrics.sockets_ended(label(*protocol), reason.as_str(), *count);
        }
        for (failure, count) in &tally.failed {
            self.metrics.sockets_not_ended(failure.as_str(), *count);
        }
        let (tcp, udp) = (tally.of(Protocol::Tcp), tally.of(Protocol::Udp));
        let (failed, open, duration_ms) = (tally.failures(), tally.open, taken.as_millis());
        if failed > 0 {
            let reasons = &tally.failed;
            tracing::warn!(tcp, udp, failed, ?reasons, open, duration_ms, "not all sockets could be ended");
        } else if tcp + udp > 0 {
            tracing::info!(tcp, udp, open, duration_ms, "sockets of endpoints that went were ended");
        } else {
            tracing::debug!(open, duration_ms, "no socket has an endpoint that went");
        }
    }
}

const fn label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// Snapshots that the thread has not seen yet: those that came during one pass.
#[derive(Default)]
struct Mailbox {
    letters: Mutex<Letters>,
    changed: Condvar,
}

#[derive(Default)]
struct Letters {
    /// With the time since when they are in force.
    snapshots: Vec<(Arc<Snapshot>, u64)>,
    /// What the kernel maps may hold parts of already.
    newest: Option<Arc<Snapshot>>,
    closed: bool,
}

impl Mailbox {
    fn put(&self, snapshot: Arc<Snapshot>, in_force_ns: u64) {
        self.letters().snapshots.push((snapshot, in_force_ns));
        self.changed.notify_one();
    }

    fn close(&self) {
        self.letters().closed = true;
        self.changed.notify_one();
    }

    /// Waits for snapshots, or until the time has come, with none; `None` once it is closed.
    fn take(&self, until: Option<Instant>) -> Option<Vec<(Arc<Snapshot>, u64)>> {
        let mut letters = self.letters();
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if letters.closed {
                return None;
            } else if !letters.snapshots.is_empty() || left.is_some_and(|left| left.is_zero()) {
                return Some(std::mem::take(&mut letters.snapshots));
            }
            letters = match left {
                None => self.changed.wait(letters).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    self.changed.wait_timeout(letters, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn letters(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(generation: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot { generation, ..Snapshot::default() })
    }

    #[test]
    fn every_snapshot_is_handed_over_in_order() {
        let mailbox = Mailbox::default();
        for generation in 1..=200 {
            mailbox.put(snapshot(generation), generation);
        }
        let taken = mailbox.take(None).unwrap();
        assert!(taken.iter().map(|(snapshot, _)| snapshot.generation).eq(1..=200));
        let until = Instant::now() + Duration::from_millis(30);
        assert!(mailbox.take(Some(until)).unwrap().is_empty());
        assert!(Instant::now() >= until);
    }

    #[test]
    fn closing_ends_whoever_waits() {
        let mailbox = Mailbox::default();
        std::thread::scope(|scope| {
            let idle = scope.spawn(|| mailbox.take(None).is_none());
            mailbox.close();
            assert!(idle.join().unwrap());
        });
        mailbox.put(snapshot(1), 1);
        assert!(mailbox.take(Some(Instant::now() + Duration::from_hours(1))).is_none());
    }
}
