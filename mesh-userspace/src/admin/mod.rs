//! The node's API: JSON over HTTP on a unix socket for `meshctl`, and metrics on a TCP port for Prometheus.
//!
//! It reads, through [`AdminData`], and changes nothing. The socket is root's; the TCP port has `/metrics` and
//! `/healthz` alone.

pub mod api;
mod server;
mod socket;

pub use server::{AdminData, serve_metrics, serve_socket};
pub use socket::{AdminSocket, DEFAULT_SOCKET, SocketError};

#[cfg(test)]
pub(crate) use server::testing;
