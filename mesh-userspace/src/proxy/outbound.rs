//! Captured connections: the destination is the accepted socket's own address, the workload that of its listener.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::admission::Admission;
use super::ask::Ask;
use super::copy::{SocketIs, tcp_to_tcp, tcp_to_tunnel};
use super::hbone::Peer;
use super::hbone::client::ClientError;
use super::inbound::{self, Delivery};
use super::record::{party, service_at};
use super::route::{self, Destination, Way};
use super::worker::Worker;
use super::{Pod, hbone, upstream};
use crate::datapath::{Stay, Stayer};
use crate::model::{Mode, Service, Snapshot, Workload};
use crate::socket::reset_on_close;
use crate::telemetry::{ConnectionRecord, Direction, OpenedConnection, Outcome, Reporter, Security};

/// How many endpoints are tried before a connection is given up; nothing of it has been sent until one answers.
pub(crate) const TRIES: usize = 3;
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
    Delivery(#[from] inbound::DeliveryError),
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
                ClientError::Tls(_) => Outcome::TlsFailed,
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
    /// A pod of this node.
    Local(TcpStream, Box<AtDestination>),
    Tunnel(super::copy::Tunnel, Lease),
}

/// What the destination's agent would hold of a connection.
pub(crate) struct AtDestination {
    /// Its record.
    pub(crate) record: ConnectionRecord,
    /// For how long the connection may stay.
    pub(crate) admission: Admission,
}

pub(crate) type Lease = hbone::Lease;

impl Upstream {
    const fn security(&self) -> Security {
        match self {
            Self::Socket(_) => Security::None,
            Self::Local(..) | Self::Tunnel(..) => Security::MutualTls,
        }
    }
}

/// Serves one captured connection to its end.
pub(super) async fn serve(worker: &Worker, pod: &Arc<Pod>, client: TcpStream) {
    let addresses = client.local_addr().and_then(|local| Ok((local, client.peer_addr()?)));
    // A connection that was reset before it was accepted has no peer any more.
    let Ok((asked, source)) = addresses else { return };
    let (asked, source) = (canonical(asked), canonical(source));
    if worker.shared.canary.answer(pod, asked, &client) {
        return;
    }
    let snapshot = worker.shared.snapshot.load_full();
    let workload = pod.workload(&snapshot);
    let started = Instant::now();
    let attempt = Attempt { worker, pod, workload: &workload, snapshot: &snapshot, asked, source, started };
    let connected = tokio::select! {
        connected = attempt.connect_any() => connected,
        () = pod.cut() => None,
    };
    // A connection may last for days; the state of the mesh that it was routed by need not.
    drop(snapshot);
    let Some((upstream, record, endpoint)) = connected else { return reset_on_close(&client) };
    let entry = endpoint.map(|endpoint| worker.carried.enter(asked, endpoint));
    let gone = entry.as_ref().map(|entry| entry.gone(&worker.shared.snapshot.load()));
    let gone = async {
        match gone {
            Some(gone) => gone.await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        outcome = carry(worker, &client, upstream, &record, gone) => record.finish(outcome),
        () = pod.cut() => reset_on_close(&client),
    }
}

struct Attempt<'a> {
    worker: &'a Worker,
    pod: &'a Arc<Pod>,
    workload: &'a Arc<Workload>,
    snapshot: &'a Snapshot,
    asked: SocketAddr,
    source: SocketAddr,
    started: Instant,
}

impl<'a> Attempt<'a> {
    /// Connects to an endpoint, to another where one fails and nothing of the client's has been sent. One record, whatever
    /// the number of tries; `None` where all have failed.
    /// The endpoint's address is there where a service led to it.
    async fn connect_any(&self) -> Option<(Upstream, ConnectionRecord, Option<SocketAddr>)> {
        let ask = route::ask(self.snapshot, self.asked);
        if let Some(ask) = ask.as_ref().filter(|ask| !ask.admits(self.source.ip())) {
            self.fail_service(ask.service, &UpstreamError::OutOfRange(ask.service.name.to_string()));
            return None;
        }
        let stay = ask.as_ref().and_then(|ask| self.stay(ask));
        let stays = stay.as_ref().and_then(Stay::backend);
        let mut failed = Vec::new();
        loop {
            let random = fastrand::u64(..);
            let picked = route::pick(self.snapshot, ask.as_ref(), self.asked, stays, random, &failed);
            let destination = match picked {
                Ok(destination) => destination,
                Err(none) => {
                    let error = UpstreamError::NoEndpoint(none.service.name.to_string());
                    self.fail_service(&none.service, &error);
                    return None;
                }
            };
            let error = match self.connect(&destination).await {
                Ok(upstream) => {
                    if let Some(Err(error)) = stay.map(|stay| stay.keep(destination.address)) {
                        tracing::debug!(%error, src.addr = %self.source, "client's affinity not kept");
                    }
                    let record = self.open(&destination, upstream.security());
                    let endpoint = destination.service.is_some().then_some(destination.address);
                    return Some((upstream, record, endpoint));
                }
                Err(error) => error,
            };
            if let UpstreamError::Tunnel { source, .. } = &error
                && let Some(reason) = source.handshake_reason()
            {
                self.worker.shared.telemetry.metrics().handshake_failed("client", reason);
            }
            let again = error.is_retryable()
                && destination.service.is_some()
                && failed.len() + 1 < TRIES
                && self.has_other(ask.as_ref(), &failed, destination.address);
            tracing::debug!(%error, orig_dst = %self.asked, dst.addr = %destination.address, again, "upstream failed");
            if !again {
                self.open(&destination, Security::Unknown).fail(error.outcome(), &error);
                return None;
            }
            failed.push(destination.address);
        }
    }

    /// Where the pod stays with an endpoint of the service (`sessionAffinity`), as the kernel keeps it too.
    fn stay(&self, ask: &Ask<'_>) -> Option<Stay<'a>> {
        ask.service.affinity_seconds?;
        let stayer = Stayer::Netns(self.pod.netns().cookie());
        self.worker.handles.affinities.of(ask.frontend, self.asked.is_ipv4(), stayer)
    }

    fn has_other(&self, ask: Option<&Ask<'_>>, failed: &[SocketAddr], last: SocketAddr) -> bool {
        let mut avoid = failed.to_vec();
        avoid.push(last);
        route::pick(self.snapshot, ask, self.asked, None, 0, &avoid).is_ok()
    }

    fn fail_service(&self, service: &Arc<Service>, error: &UpstreamError) {
        let destination =
            Destination { address: self.asked, workload: None, service: Some(Arc::clone(service)) };
        self.open(&destination, Security::Unknown).fail(error.outcome(), error);
    }

    fn open(&self, destination: &Destination, security: Security) -> ConnectionRecord {
        let mut server = party(destination.address, destination.workload.as_deref(), None);
        if security != Security::MutualTls {
            // Nobody has proved to be that.
            server.identity = None;
        }
        self.worker.shared.telemetry.open(OpenedConnection {
            started: self.started,
            reporter: Reporter::Source,
            direction: Direction::Outbound,
            source: party(self.source, Some(self.workload), None),
            destination: server,
            original_destination: Some(self.asked),
            service: destination.service.as_deref().map(|service| service_at(service, self.asked.port())),
            security,
        })
    }

    async fn connect(&self, destination: &Destination) -> Result<Upstream, UpstreamError> {
        let address = destination.address;
        let shared = &self.worker.shared;
        match destination.way(&shared.node, |uid| shared.pod(uid)) {
            Way::Local(pod, workload) => return self.deliver(&pod, workload, address).await,
            Way::Tunnel(workload) => return self.tunnel(workload, address).await,
            Way::Unserved(workload) => {
                let source = Some(&self.workload.identity);
                inbound::judge(self.snapshot, workload, source, self.source, address)?;
            }
            Way::Plain => {}
        }
        let connect = timeout(CONNECT_DEADLINE, upstream::plain(&self.pod.netns, address)).await;
        let socket = connect.map_err(|_elapsed| UpstreamError::Timeout(address))?;
        socket.map(Upstream::Socket).map_err(|source| UpstreamError::Connect { address, source })
    }

    /// To a pod of this node: both identities are known here, nothing is encrypted and nothing leaves the node.
    async fn deliver(
        &self,
        pod: &Arc<Pod>,
        workload: &Arc<Workload>,
        address: SocketAddr,
    ) -> Result<Upstream, UpstreamError> {
        let identity = &self.workload.identity;
        let mut record =
            inbound::open(self.worker, workload, self.source, address, Some(identity), self.started);
        let delivery = Delivery {
            worker: self.worker,
            pod,
            source: Some(identity),
            client: self.source,
            destination: address,
        };
        match delivery.connect(&mut record).await {
            Ok((socket, admission)) => {
                Ok(Upstream::Local(socket, Box::new(AtDestination { record, admission })))
            }
            Err(error) => {
                record.fail(error.outcome(), &error);
                Err(error.into())
            }
        }
    }

    async fn tunnel(&self, workload: &Workload, address: SocketAddr) -> Result<Upstream, UpstreamError> {
        let peer = Peer {
            netns_cookie: self.pod.netns.cookie(),
            source: self.workload.identity.clone(),
            address: SocketAddr::new(address.ip(), mesh_common::abi::HBONE_PORT),
            destination: workload.identity.clone(),
        };
        let baggage = self.pod.baggage();
        let shared = &self.worker.shared;
        let tunnel = self.worker.pool.tunnel(
            &peer,
            &self.pod.netns,
            &shared.certificates,
            address,
            self.source,
            baggage.as_ref(),
        );
        // One deadline for all of it: a place in the pool, TCP, TLS, HTTP/2, and the application behind.
        let tunnel =
            timeout(CONNECT_DEADLINE, tunnel).await.map_err(|_elapsed| UpstreamError::Timeout(address))?;
        let (tunnel, lease) = tunnel.map_err(|source| UpstreamError::Tunnel { address, source })?;
        Ok(Upstream::Tunnel(tunnel, lease))
    }
}

/// Carries the connection to its end, or until its endpoint is gone or may no longer be reached.
pub(crate) async fn carry(
    worker: &Worker,
    client: &TcpStream,
    upstream: Upstream,
    record: &ConnectionRecord,
    gone: impl Future<Output = ()>,
) -> Outcome {
    let (upstream, (at_destination, mut admission)) = match upstream {
        Upstream::Local(server, there) => {
            (Upstream::Socket(server), (Some(there.record), Some(there.admission)))
        }
        upstream => (upstream, (None, None)),
    };
    let bytes = record.bytes();
    let carried = async {
        match upstream {
            Upstream::Socket(server) | Upstream::Local(server, _) => tcp_to_tcp(client, &server, bytes).await,
            Upstream::Tunnel(tunnel, _lease) => tcp_to_tunnel(client, tunnel, SocketIs::Client, bytes).await,
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
        outcome = carried => (outcome, None),
        () = gone => (Outcome::Withdrawn, None),
        refusal = revoked => (Outcome::Revoked, Some(refusal)),
    };
    if let Some(at_destination) = at_destination {
        let (to_server, to_client) = bytes.totals();
        at_destination.bytes().add_to_server(to_server);
        at_destination.bytes().add_to_client(to_client);
        match refusal {
            Some(refusal) => inbound::revoked(worker, at_destination, &refusal),
            None => at_destination.finish(outcome),
        }
    }
    outcome
}

/// An IPv4 address that an IPv6 socket shows mapped, as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

/// Whether plaintext may be taken at a mode.
pub(crate) const fn takes_plaintext(mode: Mode) -> bool {
    !matches!(mode, Mode::Strict)
}
