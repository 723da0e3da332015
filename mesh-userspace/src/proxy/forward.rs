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
use crate::model::{Identity, Workload};
use crate::node::NetNs;
use crate::telemetry::{ConnectionRecord, Outcome, Security};

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
}

impl UpstreamError {
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Connect { .. } | Self::Loop(_) => Outcome::ConnectFailed,
            Self::Timeout(_) => Outcome::ConnectTimeout,
            Self::NoEndpoint(_) => Outcome::NoEndpoint,
            Self::OutOfRange(_) => Outcome::RefusedPolicy,
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
            Self::NoEndpoint(_) | Self::OutOfRange(_) => false,
        }
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
}

/// A client's connection that is to go to an endpoint in the mesh.
pub(crate) struct Forward<'a> {
    /// Who carries it.
    pub(crate) worker: &'a Worker,
    /// The client.
    pub(crate) client: SocketAddr,
    /// When it was accepted.
    pub(crate) started: Instant,
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
        let Self { worker, client, started, .. } = *self;
        let mut record = inbound::open(worker, workload, client, address, source, started);
        let delivery = Delivery { worker, pod, source, client, destination: address };
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
            timeout(CONNECT_DEADLINE, tunnel).await.map_err(|_elapsed| UpstreamError::Timeout(address))?;
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

/// Carries the connection to its end, or until its endpoint is gone or may no longer be reached. `tap` is shown what the client
/// sends.
pub(crate) async fn carry(
    worker: &Worker,
    client: &TcpStream,
    upstream: Upstream,
    record: &ConnectionRecord,
    gone: impl Future<Output = ()>,
    tap: &impl Tap,
) -> Outcome {
    let bytes = record.bytes();
    hold(worker, upstream, record, gone, async |server| match server {
        Server::Socket(server) => tcp_to_tcp(client, &server, bytes, tap).await,
        Server::Tunnel(tunnel, _lease) => tcp_to_tunnel(client, tunnel, SocketIs::Client, bytes, tap).await,
    })
    .await
}

/// Has `copy` carry the bytes to their end, or until the endpoint is gone or may no longer be reached.
pub(crate) async fn hold(
    worker: &Worker,
    upstream: Upstream,
    record: &ConnectionRecord,
    gone: impl Future<Output = ()>,
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
        () = gone => (Outcome::Withdrawn, None),
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
