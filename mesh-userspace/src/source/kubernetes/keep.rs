//! When the state is kept on disk: bounded in how often, whatever changes.
//!
//! It is written whole, on a thread of its own, and never before everything is known from the API server itself: what was
//! read from the file is not written again.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};

use super::collect::Collector;
use super::state::ApiState;
use super::stored::{self, Owner, Told};

/// Shortest time from the end of one writing to the next.
const PAUSE: Duration = Duration::from_secs(10);
/// The same, as a multiple of what writing took: 2% of one core at most.
const REST: u32 = 50;
/// A state that stays as it is is written again after this time, so that its age says when it was last known to be true.
const REFRESH: Duration = Duration::from_mins(5);

/// Where the last state is kept, and how long the API server is waited for before it is taken.
#[derive(Clone, Debug)]
pub struct StateFile {
    /// The file.
    pub path: PathBuf,
    /// For so long at the start.
    pub patience: Duration,
}

struct Written {
    size: io::Result<u64>,
    took: Duration,
    as_of: SystemTime,
}

/// See the module.
pub(super) struct Keeper {
    path: Option<PathBuf>,
    owner: Owner,
    state: Arc<ApiState>,
    /// Something became different since the state was written.
    changed: bool,
    next: Instant,
    refresh: Instant,
    writing: Option<JoinHandle<Written>>,
}

impl Keeper {
    /// Keeps it nowhere yet.
    pub(super) fn new(owner: Owner, state: Arc<ApiState>) -> Self {
        let now = Instant::now();
        Self { path: None, owner, state, changed: false, next: now, refresh: now, writing: None }
    }

    /// Keeps it in this file from now on.
    pub(super) fn keep_in(&mut self, path: PathBuf) {
        self.path = Some(path);
    }

    /// Something became different.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// Completes once the state should be written; never where it is kept nowhere. Cancel safe.
    pub(super) async fn due(&mut self) {
        if self.path.is_none() {
            return std::future::pending().await;
        }
        self.written().await;
        sleep_until(if self.changed { self.next } else { self.refresh }).await;
    }

    /// Begins to write.
    pub(super) fn begin(&mut self, collector: &Collector) {
        let now = Instant::now();
        // Looked at again later, if it cannot be written now.
        (self.next, self.refresh) = (now + PAUSE, now + REFRESH);
        let Some(work) = self.work(collector) else { return };
        self.changed = false;
        self.writing = Some(spawn_blocking(work));
    }

    /// Writes what is not written yet, and returns once it is on disk.
    pub(super) async fn end(mut self, collector: &Collector) {
        self.written().await;
        if self.changed
            && let Some(work) = self.work(collector)
        {
            self.writing = Some(spawn_blocking(work));
            self.written().await;
        }
    }

    fn work(&self, collector: &Collector) -> Option<impl FnOnce() -> Written + Send + 'static> {
        let (path, owner) = (self.path.clone()?, self.owner.clone());
        let as_of = self.state.status().as_of.filter(|_| collector.is_listed())?;
        let objects: Vec<Told> = collector.objects();
        Some(move || {
            let begun = Instant::now();
            let size = stored::write(&path, &owner, as_of, &objects);
            Written { size, took: begun.elapsed(), as_of }
        })
    }

    /// Waits until nothing is being written. Cancel safe.
    async fn written(&mut self) {
        let Some(writing) = &mut self.writing else { return };
        let done = writing.await;
        self.writing = None;
        let now = Instant::now();
        let Ok(Written { size, took, as_of }) = done else {
            self.changed = true;
            return;
        };
        self.next = now + pause(took);
        self.refresh = now + REFRESH;
        match size {
            Ok(size) => self.state.kept(as_of, size, took),
            Err(error) => {
                self.changed = true;
                let path = self.path.as_deref().unwrap_or_else(|| "".as_ref());
                self.state.not_kept(path, &error);
            }
        }
    }
}

/// From the end of one writing to the next.
fn pause(took: Duration) -> Duration {
    PAUSE.max(took.saturating_mul(REST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_with_what_writing_costs() {
        let seconds = |took: f64| pause(Duration::from_secs_f64(took)).as_secs_f64();
        assert_eq!([seconds(0.0), seconds(0.2), seconds(1.0)], [10.0, 10.0, 50.0]);
        assert_eq!(pause(Duration::MAX), Duration::MAX);
    }
}
