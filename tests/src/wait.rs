//! Waiting for something to become true, never for time to pass.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// A bound for what takes a moment.
pub const SECONDS_10: Duration = Duration::from_secs(10);
/// A bound for what takes a while.
pub const SECONDS_30: Duration = Duration::from_secs(30);

/// Looks every 10 ms until `look` gives something; `what` is said when it has not by the deadline.
pub fn eventually<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if started.elapsed() > deadline {
            bail!("not within {deadline:?}: {what}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}
