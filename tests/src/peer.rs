//! What `mesh-peer` prints, and the stream of bytes that it sends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::process::Process;

/// What a client's connections (or datagrams) came to: the last line that `mesh-peer connect`, `loop` and `udp` print.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Exchanges that were right to the last byte.
    pub ok: u64,
    /// Those that were not.
    pub failed: u64,
    /// Of these, how many of each kind: `refused`, `reset`, `timeout`, `unreachable`, `eof`, `mismatch`, or `io::ErrorKind`.
    pub errors: BTreeMap<String, u64>,
    /// Answers by the name of the server.
    pub by_name: BTreeMap<String, u64>,
    /// The client's addresses as servers saw them.
    pub peers_seen: BTreeMap<String, u64>,
    /// What the client itself had as its address.
    pub locals: BTreeMap<String, u64>,
    /// What `getpeername` said (TCP, connected UDP).
    pub getpeername: BTreeMap<String, u64>,
    /// Where datagrams came from, as `recvfrom` said.
    pub replies_from: BTreeMap<String, u64>,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Median time of an exchange, in microseconds.
    pub p50_us: u64,
    /// 99th percentile of that.
    pub p99_us: u64,
    /// Longest failure, in milliseconds.
    pub failed_max_ms: u64,
    /// All of it, in milliseconds.
    pub elapsed_ms: u64,
}

impl Summary {
    /// Waits for a client's end.
    pub fn of(process: &Process, deadline: Duration) -> Result<Self> {
        let finished = process.wait(deadline)?;
        let line = finished.stdout.lines().last();
        let line = line.with_context(|| format!("mesh-peer printed nothing: {}", finished.stderr))?;
        serde_json::from_str(line).with_context(|| format!("mesh-peer printed: {line}"))
    }

    /// Ends a load (`mesh-peer loop`) and returns what it came to.
    pub fn end(load: &Process) -> Result<Self> {
        load.close_stdin();
        Self::of(load, Duration::from_secs(30))
    }
}

/// What a server prints of each connection, with `--report`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The client's address, as `getpeername` says on the accepted socket.
    pub peer: String,
    /// The server's, as `getsockname` says.
    pub local: String,
    /// Bytes received.
    pub bytes: u64,
    /// [`Digest`] of them.
    pub digest: String,
    /// How it ended: `eof`, or an error as in [`Summary::errors`].
    pub end: String,
}

/// One connection of `mesh-peer attempts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which of the targets, from 0.
    pub target: usize,
    /// [`monotonic_us`] before the call.
    pub begun_us: u64,
    /// The same once it had returned.
    pub connected_us: u64,
    /// The same once the server had answered, or had not.
    pub ended_us: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The server took it at this address.
    Reached(SocketAddr),
    /// `connect` failed, as in [`Summary::errors`].
    Failed(String),
    /// It was connected, and ended before the server had answered.
    Cut(String),
}

/// `CLOCK_MONOTONIC` in microseconds: the same in every process of this machine.
pub fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// A running digest of a stream, to compare both ends by. Not cryptographic: nobody here wants to deceive.
#[derive(Clone, Debug)]
pub struct Digest {
    state: u64,
    held: [u8; 8],
    count: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self { state: 0x9E37_79B9_7F4A_7C15, held: [0; 8], count: 0 }
    }
}

impl Digest {
    /// Takes in the next bytes; how they are cut makes no difference.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let start = usize::try_from(self.count % 8).unwrap_or(0);
        self.count += bytes.len() as u64;
        if start > 0 {
            let fill = bytes.len().min(8 - start);
            self.held[start..start + fill].copy_from_slice(&bytes[..fill]);
            if start + fill < 8 {
                return;
            }
            self.mix(u64::from_le_bytes(self.held));
            bytes = &bytes[fill..];
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        self.held[..rest.len()].copy_from_slice(rest);
    }

    const fn mix(&mut self, word: u64) {
        self.state = (self.state.rotate_left(5) ^ word).wrapping_mul(0x517C_C1B7_2722_0A95);
    }

    /// Bytes taken in.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The digest, length included.
    pub fn hex(&self) -> String {
        let mut end = self.clone();
        let held = usize::try_from(self.count % 8).unwrap_or(0);
        end.held[held..].fill(0);
        end.mix(u64::from_le_bytes(end.held));
        end.mix(self.count);
        format!("{:016x}", end.state)
    }
}

/// The bytes that a seed stands for.
#[derive(Clone, Debug)]
pub struct Noise {
    random: fastrand::Rng,
    left: u64,
}

impl Noise {
    /// `length` bytes.
    pub fn new(seed: u64, length: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), left: length }
    }

    /// Fills as much of `buffer` as there is left; its length must be a multiple of 8 and the same each time.
    pub fn fill<'a>(&mut self, buffer: &'a mut [u8]) -> &'a [u8] {
        self.random.fill(buffer);
        let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        self.left -= take as u64;
        &buffer[..take]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_depends_on_the_bytes_and_not_on_how_they_are_cut() {
        let bytes: Vec<u8> = (0..1000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let mut whole = Digest::default();
        whole.update(&bytes);
        for cut in [1, 3, 7, 8, 9, 64, 999] {
            let mut cut_up = Digest::default();
            bytes.chunks(cut).for_each(|chunk| cut_up.update(chunk));
            assert_eq!(cut_up.hex(), whole.hex(), "{cut}");
        }
        for (position, length) in [(0, 1000), (999, 1000), (0, 999)] {
            let mut other = bytes[..length].to_vec();
            if length == 1000 {
                other[position] ^= 1;
            }
            let mut digest = Digest::default();
            digest.update(&other);
            assert_ne!(digest.hex(), whole.hex(), "{position} {length}");
        }
    }

    #[test]
    fn noise_is_as_long_as_was_asked() {
        let mut noise = Noise::new(1, 100);
        let mut buffer = [0; 64];
        assert_eq!(
            [noise.fill(&mut buffer).len(), noise.fill(&mut buffer).len(), noise.fill(&mut buffer).len()],
            [64, 36, 0]
        );
    }
}
