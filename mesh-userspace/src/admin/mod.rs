//! The node's API: JSON over HTTP on a unix socket for `meshctl`, and metrics on a TCP port for Prometheus.
//!
//! It reads, through [`AdminData`], and changes nothing but what the CNI plugin says of pods. The socket is root's; the TCP port has `/metrics`,
//! `/healthz` and `/livez` alone; two more are there in kube-proxy's place, and a socket for the probes of this process.

pub mod analysis;
pub mod api;
pub mod cni;
pub mod explain;
mod kube_proxy;
pub mod plane;
pub mod policy;
mod probe;
mod server;
mod socket;

pub use kube_proxy::{serve_health, serve_proxy_metrics};
pub use probe::{Readiness, serve_probes};
pub(crate) use server::accept as serve_router;
pub use server::{AdminData, serve_metrics, serve_socket};
pub use socket::{AdminSocket, DEFAULT_SOCKET, SocketError};

#[cfg(test)]
pub(crate) use server::testing;
