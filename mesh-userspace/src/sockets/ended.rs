//! Connections that were ended here, until the kernel's record of them has come: it alone cannot tell who did it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So long a record may take; one that was lost (the ring buffer was full) is no longer waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection: its namespace, its own address, its peer.
type Connection = (u64, SocketAddr, SocketAddr);

/// Written by the reaper before it ends a connection, read where flows are recorded.
#[derive(Debug, Default)]
pub struct Ended(Mutex<HashMap<Connection, Instant>>);

impl Ended {
    /// A connection is about to be ended.
    pub(super) fn expect(&self, netns_cookie: u64, source: SocketAddr, peer: SocketAddr) {
        self.held().insert((netns_cookie, source, peer), Instant::now());
    }

    /// Forgets those whose record has not come.
    pub(super) fn tidy(&self) {
        self.held().retain(|_, since| since.elapsed() < PATIENCE);
    }

    /// Whether a connection whose record has come was ended here; said once.
    pub fn take(&self, netns_cookie: u64, source: SocketAddr, peer: SocketAddr) -> bool {
        self.held().remove(&(netns_cookie, source, peer)).is_some()
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<Connection, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_told_once() {
        let (source, peer) = (SocketAddr::from(([10, 0, 0, 1], 1)), SocketAddr::from(([10, 0, 0, 2], 2)));
        let ended = Ended::default();
        ended.expect(7, source, peer);
        ended.tidy();
        assert!(!ended.take(8, source, peer) && !ended.take(7, peer, source));
        assert!(ended.take(7, source, peer));
        assert!(!ended.take(7, source, peer));
    }
}
