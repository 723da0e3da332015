//! HBONE: HTTP/2 CONNECT inside mutual TLS, as Istio's ztunnel and waypoints speak it.
//!
//! [`client`] opens tunnels over pooled connections, [`server`] takes them. Neither knows what is carried.

pub(crate) mod client;
mod headers;
mod io;
mod keepalive;
mod pool;
pub(super) mod server;

pub(crate) use headers::Baggage;
pub(crate) use pool::{Lease, Peer, Pool};

/// Stream window, bytes.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// Connection window, bytes.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Largest frame that is taken, bytes.
const MAX_FRAME: u32 = 1024 * 1024;
/// Bytes of one stream that may wait to be written.
const SEND_BUFFER: usize = 1024 * 1024;
/// Streams that a peer may have open on one connection.
const MAX_STREAMS: u32 = 200;
/// How long a TCP connect, a TLS handshake or an HTTP/2 preface may take.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);
