//! What the exchanges of a client came to.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_tests::peer::Summary;

/// What is being counted.
#[derive(Default)]
pub(crate) struct Tally {
    summary: Mutex<(Summary, Vec<u64>)>,
}

impl Tally {
    pub(crate) fn add(&self, took: Duration, result: Result<Seen, Failure>) {
        let mut guard = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        let (summary, times) = &mut *guard;
        match result {
            Ok(seen) => {
                summary.ok += 1;
                summary.sent += seen.sent;
                summary.received += seen.received;
                times.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                for (map, value) in [
                    (&mut summary.by_name, seen.name),
                    (&mut summary.peers_seen, seen.peer),
                    (&mut summary.locals, seen.local),
                    (&mut summary.getpeername, seen.getpeername),
                    (&mut summary.replies_from, seen.reply_from),
                ] {
                    count(map, value);
                }
            }
            Err(failure) => {
                summary.failed += 1;
                count(&mut summary.errors, Some(failure.0));
                summary.failed_max_ms =
                    summary.failed_max_ms.max(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            }
        }
    }

    pub(crate) fn finish(&self, started: Instant) -> Summary {
        let mut guard = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        let (summary, times) = &mut *guard;
        times.sort_unstable();
        let at =
            |percent: usize| times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0);
        (summary.p50_us, summary.p99_us) = (at(50), at(99));
        summary.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        summary.clone()
    }
}

fn count(map: &mut BTreeMap<String, u64>, value: Option<String>) {
    if let Some(value) = value {
        // Ports differ each time: beyond a few, only that there are more is worth a line.
        let value = if map.len() >= 100 && !map.contains_key(&value) { "...".to_owned() } else { value };
        *map.entry(value).or_default() += 1;
    }
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) name: Option<String>,
    pub(crate) peer: Option<String>,
    pub(crate) local: Option<String>,
    pub(crate) getpeername: Option<String>,
    pub(crate) reply_from: Option<String>,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// The kind of a failure.
pub(crate) struct Failure(pub(crate) String);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(kind(&error))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) fn kind(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused",
        io::ErrorKind::ConnectionReset => "reset",
        io::ErrorKind::TimedOut => "timeout",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable",
        io::ErrorKind::UnexpectedEof => "eof",
        other => return format!("{other:?}"),
    }
    .to_owned()
}
