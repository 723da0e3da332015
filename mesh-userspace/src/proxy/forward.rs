//! The way from here to an endpoint: had over a tunnel or inside this node, and carried over until it ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::admission::{self, Admission};
use super::copy::{SocketIs, Tap, Tunnel, tcp_to_tcp, tcp_to_tunnel};
use super::hbone::client::ClientError;
use super::hbone::{Baggage, Lease, Peer};
use super::inbound::{self, Delivery, DeliveryError};
use super::pod::{Held, Pod};
use super::worker::Worker;
use crate::balance::{Failure, Overflow};
use crate::model::{Identity, Keepalive, Workload};
use crate::node::NetNs;
use crate::socket::set_keepalive;
use crate::telemetry::{ConnectionRecord, Outcome, Security};

/// How long one try may take where nothing is said (Istio's `connectTimeout` by default).
pub(crate) const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Why the upstream could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("connect to {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{0} did not answer in time")]
    Timeout(SocketAddr),
    #[error("open a tunnel to {address}")]
    Tunnel {
        address: SocketAddr,
        #[source]
        source: ClientError,
    },
    #[error("deliver to a pod of this node")]
    Delivery(#[from] DeliveryError),
    #[error("{0} has no endpoint")]
    NoEndpoint(String),
    #[error("the client is in none of the source ranges of {0}")]
    OutOfRange(String),
    #[error("{0} is an endpoint and a service of this node at once")]
    Loop(SocketAddr),
    #[error("{service}: {overflow}")]
    Overflow { service: String, overflow: Overflow },
    #[error("the client left before it was connected")]
    ClientLeft,
}

impl UpstreamError {
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Connect { .. } | Self::Loop(_) => Outcome::ConnectFailed,
            Self::Timeout(_) => Outcome::ConnectTimeout,
            Self::NoEndpoint(_) => Outcome::NoEndpoint,
            Self::OutOfRange(_) => Outcome::RefusedPolicy,
            Self::Overflow { .. } => Outcome::Overflow,
            Self::ClientLeft => Outcome::ResetByClient,
            Self::Delivery(error) => error.outcome(),
            Self::Tunnel { source, .. } => match source {
                ClientError::Tls(_) | ClientError::Alert(_) => Outcome::TlsFailed,
                ClientError::Refused(http::StatusCode::UNAUTHORIZED) => Outcome::RefusedPolicy,
                ClientError::Refused(_) => Outcome::RefusedByPeer,
                ClientError::Deadline(_) => Outcome::ConnectTimeout,
                ClientError::Connect { .. } | ClientError::Http(_) => Outcome::ConnectFailed,
                ClientError::Authority(_) | ClientError::Certificate(_) | ClientError::Config(_) => {
                    Outcome::InternalError
                }
            },
        }
    }

    /// Whether another endpoint may do better.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout(_) | Self::Loop(_) => true,
            Self::Tunnel { source, .. } => source.is_retryable(),
            Self::Delivery(error) => error.is_retryable(),
            Self::NoEndpoint(_) | Self::OutOfRange(_) | Self::Overflow { .. } | Self::ClientLeft => false,
        }
    }

    /// What it says of the endpoint; nothing where it is policy, or this side's own trouble.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self {
            Self::Connect { source, .. }
            | Self::Delivery(DeliveryError::Connect { source, .. })
            | Self::Tunnel { source: ClientError::Connect { source, .. }, .. } => failure_of(source),
            Self::Timeout(_)
            | Self::Delivery(DeliveryError::Timeout(_))
            | Self::Tunnel { source: ClientError::Deadline(_), .. } => Some(Failure::Timeout),
            Self::Tunnel { source, .. } => {
                let is_own = matches!(
                    source,
                    ClientError::Refused(http::StatusCode::UNAUTHORIZED)
                        | ClientError::Authority(_)
                        | ClientError::Certificate(_)
                        | ClientError::Config(_)
                );
                (!is_own).then_some(Failure::Connect)
            }
            Self::Delivery(DeliveryError::Refused { .. })
            | Self::NoEndpoint(_)
            | Self::OutOfRange(_)
            | Self::Loop(_)
            | Self::Overflow { .. }
            | Self::ClientLeft => None,
        }
    }
}

/// What an error of a socket says of whom it was for: that this node has no descriptors, memory or ports left is not its
/// fault.
fn failure_of(error: &io::Error) -> Option<Failure> {
    match error.raw_os_error() {
        Some(
            libc::EMFILE
            | libc::ENFILE
            | libc::ENOMEM
            | libc::ENOBUFS
            | libc::EADDRNOTAVAIL
            | libc::EADDRINUSE,
        ) => None,
        Some(libc::ETIMEDOUT) => Some(Failure::Timeout),
        _ => Some(Failure::Connect),
    }
}

pub(crate) enum Upstream {
    Socket(TcpStream),
    /// In plaintext to a pod of this node that is not enrolled yet, for as long as policy lets it.
    Unserved(TcpStream, Admission),
    /// A pod of this node.
    Local(TcpStream, Box<AtDestination>),
    Tunnel(Tunnel, Lease),
}

/// An upstream, as far as bytes go.
pub(crate) enum Server {
    Socket(TcpStream),
    Tunnel(Tunnel, Lease),
}

/// What the destination's agent would hold of a connection.
pub(crate) struct AtDestination {
    /// Its record.
    pub(crate) record: ConnectionRecord,
    /// For how long the connection may stay.
    pub(crate) admission: Admission,
    /// The pod, which has the connection as one of its own.
    pub(crate) pod: Held,
}

impl Upstream {
    /// How it is protected.
    pub(super) const fn security(&self) -> Security {
        match self {
            Self::Socket(_) | Self::Unserved(..) => Security::None,
            Self::Local(..) | Self::Tunnel(..) => Security::MutualTls,
        }
    }

    /// Has the kernel ask an endpoint that is silent whether it is still there. A tunnel is one of many on its connection, which HTTP/2
    /// asks by itself.
    pub(super) fn keep_alive(&self, settings: &Keepalive) {
        let (Self::Socket(socket) | Self::Unserved(socket, _) | Self::Local(socket, _)) = self else {
            return;
        };
        if let Err(error) = set_keepalive(socket, settings) {
            tracing::debug!(%error, "keepalive of an upstream");
        }
    }
}

/// A client's connection that is to go to an endpoint in the mesh.
pub(crate) struct Forward<'a> {
    /// Who carries it.
    pub(crate) worker: &'a Worker,
    /// The client.
    pub(crate) client: SocketAddr,
    /// When it was accepted.
    pub(crate) started: Instant,
    /// How long it may take to have it.
    pub(crate) within: Duration,
    /// Whether it is a copy of one, which must not come in the way of others.
    pub(crate) is_copy: bool,
}

impl Forward<'_> {
    /// To a pod of this node: who both ends are is known here, nothing is encrypted and nothing leaves the node. `source` is
    /// the client's identity; `None` for plaintext.
    pub(crate) async fn deliver(
        &self,
        pod: &Arc<Pod>,
        workload: &Workload,
        source: Option<&Identity>,
        address: SocketAddr,
    ) -> Result<Upstream, UpstreamError> {
        let Self { worker, client, started, within, .. } = *self;
        let mut record = inbound::open(worker, workload, client, address, source, started);
        let delivery = Delivery { worker, pod, source, client, destination: address, within };
        match delivery.connect(&mut record).await {
            Ok((socket, admission)) => {
                let pod = Held::new(pod);
                Ok(Upstream::Local(socket, Box::new(AtDestination { record, admission, pod })))
            }
            Err(error) => {
                record.fail(error.outcome(), &error);
                Err(error.into())
            }
        }
    }

    /// Authenticated as `source`, from `netns`, to the agent of the workload, which must show the workload's identity.
    pub(crate) async fn tunnel(
        &self,
        netns: &NetNs,
        source: &Identity,
        workload: &Workload,
        address: SocketAddr,
        baggage: Option<&Baggage>,
    ) -> Result<Upstream, UpstreamError> {
        let peer = Peer {
            netns_cookie: netns.cookie(),
            source: source.clone(),
            address: SocketAddr::new(address.ip(), mesh_common::abi::HBONE_PORT),
            destination: workload.identity.clone(),
            is_copy: self.is_copy,
        };
        let certificates = &self.worker.shared.certificates;
        let tunnel = self.worker.pool.tunnel(&peer, netns, certificates, address, self.client, baggage);
        // One deadline for all of it: a place in the pool, TCP, TLS, HTTP/2, and the application behind.
        let tunnel =
            timeout(self.within, tunnel).await.map_err(|_elapsed| UpstreamError::Timeout(address))?;
        let (tunnel, lease) = tunnel.map_err(|source| UpstreamError::Tunnel { address, source })?;
        Ok(Upstream::Tunnel(tunnel, lease))
    }
}

/// An upstream that was not had: a handshake that failed is counted.
pub(crate) fn note_failure(worker: &Worker, error: &UpstreamError) {
    if let UpstreamError::Tunnel { source, .. } = error
        && let Some(reason) = source.handshake_reason()
    {
        worker.shared.telemetry.metrics().handshake_failed("client", reason);
    }
}

/// Carries the connection to its end, or until it is to end so: its endpoint is gone, it has reached a bound, or it may no longer
/// be reached. `tap` is shown what the client sends.
pub(crate) async fn carry(
    worker: &Worker,
    client: &TcpStream,
    upstream: Upstream,
    record: &ConnectionRecord,
    ends: impl Future<Output = Outcome>,
    tap: &impl Tap,
) -> Outcome {
    let bytes = record.bytes();
    hold(worker, upstream, record, ends, async |server| match server {
        Server::Socket(server) => tcp_to_tcp(client, &server, bytes, tap).await,
        Server::Tunnel(tunnel, _lease) => tcp_to_tunnel(client, tunnel, SocketIs::Client, bytes, tap).await,
    })
    .await
}

/// Has `copy` carry the bytes to their end, or until the connection is to end so or may no longer be.
pub(crate) async fn hold(
    worker: &Worker,
    upstream: Upstream,
    record: &ConnectionRecord,
    ends: impl Future<Output = Outcome>,
    copy: impl AsyncFnOnce(Server) -> Outcome,
) -> Outcome {
    let (server, at_destination, mut admission, pod) = match upstream {
        Upstream::Local(server, there) => {
            (Server::Socket(server), Some(there.record), Some(there.admission), Some(there.pod))
        }
        Upstream::Unserved(server, admission) => (Server::Socket(server), None, Some(admission), None),
        Upstream::Socket(server) => (Server::Socket(server), None, None, None),
        Upstream::Tunnel(tunnel, lease) => (Server::Tunnel(tunnel, lease), None, None, None),
    };
    let cut = async {
        match &pod {
            Some(pod) => pod.cut().await,
            None => std::future::pending().await,
        }
    };
    let revoked = async {
        match &mut admission {
            Some(admission) => admission.revoked().await,
            None => std::future::pending().await,
        }
    };
    // What is dropped while it carries is reset on both sides.
    let (outcome, refusal) = tokio::select! {
        outcome = copy(server) => (outcome, None),
        outcome = ends => (outcome, None),
        () = cut => (Outcome::Withdrawn, None),
        refusal = revoked => (Outcome::Revoked, Some(refusal)),
    };
    if let Some(refusal) = &refusal {
        admission::refused(worker.shared.telemetry.metrics(), "revoked", refusal);
    }
    if let Some(at_destination) = at_destination {
        let (to_server, to_client) = record.bytes().totals();
        at_destination.bytes().add_to_server(to_server);
        at_destination.bytes().add_to_client(to_client);
        match refusal {
            Some(refusal) => at_destination.fail(outcome, &refusal),
            None => at_destination.finish(outcome),
        }
    }
    outcome
}
