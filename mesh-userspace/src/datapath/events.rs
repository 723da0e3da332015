//! Direct flows that have ended, read from the ring buffer.

use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use mesh_common::abi::{
    FLOW_ABORTED, FLOW_ESTABLISHED, FLOW_GRACEFUL, FLOW_SERVICE, FlowEvent, LAYOUT_VERSION,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior};

use super::ip_of;

/// A direct TCP connection, as the kernel saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of the kernel's record, each a fact of its own")]
pub struct DirectFlow {
    /// Network namespace of the client.
    pub netns_cookie: u64,
    /// Client.
    pub source: SocketAddr,
    /// What the application asked for.
    pub asked: SocketAddr,
    /// Where the connection went.
    pub peer: SocketAddr,
    /// `asked` is a service address.
    pub to_service: bool,
    /// The handshake was completed.
    pub established: bool,
    /// It ended with both FINs.
    pub graceful: bool,
    /// The client's side cut it.
    pub aborted: bool,
    /// From the connect to the close.
    pub duration: Duration,
    /// Bytes of the application that were acknowledged.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Smoothed round-trip time.
    pub srtt: Duration,
    /// Segments sent again.
    pub retransmits: u32,
}

/// How often the ring is looked at: the kernel wakes nobody before it is half full.
const LOOK: Duration = Duration::from_millis(100);

/// The reading end of the ring buffer.
pub struct FlowEvents {
    ring: AsyncFd<RingBuf<MapData>>,
    look: Interval,
}

impl FlowEvents {
    /// Must be called inside a tokio runtime.
    pub(super) fn new(ring: RingBuf<MapData>) -> std::io::Result<Self> {
        // SAFETY: the ring keeps one descriptor open for as long as it lives.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { ring, look })
    }

    /// The flows that have ended since the last call, at least one. Cancel-safe: nothing is lost.
    pub async fn next(&mut self) -> std::io::Result<Vec<DirectFlow>> {
        loop {
            tokio::select! {
                guard = self.ring.readable() => guard?.clear_ready(),
                _ = self.look.tick() => {}
            }
            let ring = self.ring.get_mut();
            let mut flows = Vec::new();
            while let Some(entry) = ring.next() {
                flows.extend(decode(&entry));
            }
            if !flows.is_empty() {
                return Ok(flows);
            }
        }
    }
}

/// An event of another layout, which an agent that was replaced left behind, is passed over.
fn decode(entry: &[u8]) -> Option<DirectFlow> {
    if entry.len() != size_of::<FlowEvent>() {
        return None;
    }
    // SAFETY: the length was checked, every bit pattern is a value, and the read does not ask for alignment.
    let event = unsafe { entry.as_ptr().cast::<FlowEvent>().read_unaligned() };
    if event.version != LAYOUT_VERSION {
        return None;
    }
    Some(DirectFlow {
        netns_cookie: event.netns_cookie,
        source: SocketAddr::new(ip_of(event.source), event.source_port),
        asked: SocketAddr::new(ip_of(event.asked.address), event.asked.port),
        peer: SocketAddr::new(ip_of(event.peer), event.peer_port),
        to_service: event.flags & FLOW_SERVICE != 0,
        established: event.flags & FLOW_ESTABLISHED != 0,
        graceful: event.flags & FLOW_GRACEFUL != 0,
        aborted: event.flags & FLOW_ABORTED != 0,
        duration: Duration::from_nanos(event.duration_ns),
        sent: event.sent,
        received: event.received,
        srtt: Duration::from_micros(u64::from(event.srtt_us)),
        retransmits: event.retransmits,
    })
}
