//! What comes to a pod: HBONE, plaintext, and other pods of this node. Each is decided here before the application hears
//! of it, and reaches it from the true client's address.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::admission::{self, Admission};
use super::copy::{NoTap, SocketIs, tcp_to_tcp, tcp_to_tunnel};
use super::hbone::server::{self, ServerError, TunnelRequest};
use super::record::party;
use super::worker::Worker;
use super::{Pod, Stop, upstream};
use crate::identity::{handshake_reason, server_config};
use crate::model::{Identity, Snapshot, Workload};
use crate::policy::authorization::{Refusal, Verdict};
use crate::socket::{canonical, reset_on_close};
use crate::telemetry::{ConnectionRecord, Direction, OpenedConnection, Outcome, Reporter, Security};

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Why an application was not reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliveryError {
    /// Policy does not allow it.
    #[error("connection to {address} refused")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        refusal: Refusal,
    },
    /// The application refused, or is not there.
    #[error("connect to the application at {address}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not answer.
    #[error("the application at {0} did not answer in time")]
    Timeout(SocketAddr),
}

impl DeliveryError {
    pub(crate) const fn outcome(&self) -> Outcome {
        match self {
            Self::Refused { .. } => Outcome::RefusedPolicy,
            Self::Connect { .. } => Outcome::ConnectFailed,
            Self::Timeout(_) => Outcome::ConnectTimeout,
        }
    }

    pub(crate) const fn is_retryable(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }

    /// What ztunnel answers.
    const fn status(&self) -> StatusCode {
        match self {
            Self::Refused { .. } => StatusCode::UNAUTHORIZED,
            Self::Connect { .. } | Self::Timeout(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// A connection that is to reach an application.
pub(crate) struct Delivery<'a> {
    /// Who carries it.
    pub(crate) worker: &'a Worker,
    /// The pod that it is for.
    pub(crate) pod: &'a Pod,
    /// Who it is from, authenticated; `None` for plaintext.
    pub(crate) source: Option<&'a Identity>,
    /// The true client; port 0 where the port is not known or not free.
    pub(crate) client: SocketAddr,
    /// Address and port of the application.
    pub(crate) destination: SocketAddr,
    /// How long it may take.
    pub(crate) within: Duration,
}

impl Delivery<'_> {
    /// Decides, notes that in the record, and connects to the application. What is returned beside the connection tells
    /// when it is no longer allowed.
    pub(crate) async fn connect(
        &self,
        record: &mut ConnectionRecord,
    ) -> Result<(TcpStream, Admission), DeliveryError> {
        let (admission, decision) = self.pod.gate().admit(self.source, self.client, self.destination);
        admission::count(self.worker.shared.telemetry.metrics(), &decision);
        record.note_policy(admission::mark(&decision));
        if let Verdict::Refused(refusal) = decision.verdict {
            return Err(DeliveryError::Refused { address: self.destination, refusal });
        }
        let admit = &self.worker.handles.deliveries;
        let connect = upstream::deliver(&self.pod.netns, self.client, self.destination, admit);
        let socket = timeout(self.within, connect)
            .await
            .map_err(|_elapsed| DeliveryError::Timeout(self.destination))?;
        let socket = socket.map_err(|source| DeliveryError::Connect { address: self.destination, source })?;
        Ok((socket, admission))
    }
}

/// Serves one plaintext connection to its end.
pub(super) async fn plaintext(worker: &Worker, pod: &Arc<Pod>, client: TcpStream) {
    let addresses = client.local_addr().and_then(|local| Ok((local, client.peer_addr()?)));
    // A connection that was reset before it was accepted has no peer any more.
    let Ok((destination, source)) = addresses else { return };
    let (destination, source) = (canonical(destination), canonical(source));
    let workload = pod.workload(&worker.shared.snapshot.load());
    let mut record = open(worker, &workload, source, destination, None, Instant::now());
    // The client's port is taken in this namespace by the very connection that came in.
    let from = SocketAddr::new(source.ip(), 0);
    let within = CONNECT_DEADLINE;
    let delivery = Delivery { worker, pod, source: None, client: from, destination, within };
    let served = async {
        match delivery.connect(&mut record).await {
            Ok((server, mut admission)) => {
                // What is dropped while it carries is reset on both sides.
                tokio::select! {
                    outcome = tcp_to_tcp(&client, &server, record.bytes(), &NoTap) => record.finish(outcome),
                    refusal = admission.revoked() => revoked(worker, record, &refusal),
                }
            }
            Err(error) => {
                reset_on_close(&client);
                record.fail(error.outcome(), &error);
            }
        }
    };
    tokio::select! {
        () = served => {}
        () = pod.cut() => reset_on_close(&client),
    }
}

/// Serves one HBONE connection to its end.
pub(super) async fn hbone(worker: &Worker, pod: &Arc<Pod>, socket: TcpStream) {
    let metrics = worker.shared.telemetry.metrics();
    let peer = socket.peer_addr().ok();
    let Some(leave) = peer.and_then(|peer| pod.handshake(peer.ip())) else {
        // No record: who opens so many is not to fill the log.
        metrics.handshake_failed("server", "too_many");
        return reset_on_close(&socket);
    };
    let identity = pod.workload(&worker.shared.snapshot.load()).identity.clone();
    let (config, roots) = match worker.shared.certificates.certificate(&identity).await {
        Ok(certificate) => (server_config(&certificate), certificate.trusted().current()),
        Err(error) => {
            tracing::warn!(%error, dst.identity = %identity, "hbone refused: no certificate");
            metrics.handshake_failed("server", "no_own_certificate");
            refused(worker, pod, peer, &error);
            return reset_on_close(&socket);
        }
    };
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!(%error, dst.identity = %identity, "hbone refused: no configuration");
            metrics.handshake_failed("server", "no_own_certificate");
            refused(worker, pod, peer, &error);
            return reset_on_close(&socket);
        }
    };
    let (drain, draining) = tokio::sync::watch::channel(false);
    let mut stop = pod.stop.clone();
    let handle = {
        let (worker, pod, drain) = (worker.clone(), Arc::clone(pod), drain.clone());
        move |request: TunnelRequest| {
            let (worker, pod, drain) = (worker.clone(), Arc::clone(&pod), drain.clone());
            async move {
                if is_trusted(&worker, &pod, &request).await {
                    return tunnel(&worker, &pod, request).await;
                }
                // Its tunnels stay; a client that is somebody still comes with another connection.
                if !drain.send_replace(true) {
                    worker.shared.telemetry.metrics().handshake_failed("server", "no_longer_trusted");
                    refused(&worker, &pod, Some(request.peer), &ServerError::NoLongerTrusted);
                }
                request.send_back();
            }
        }
    };
    let serve = server::serve(socket, config, roots, draining, leave, handle);
    let mut serve = std::pin::pin!(serve);
    let result = loop {
        tokio::select! {
            result = &mut serve => break result,
            changed = stop.wait_for(|stop| *stop > Stop::Serving), if !*drain.borrow() => {
                // A pod without an enrolment to end it is gone.
                drop(changed);
                drain.send_replace(true);
            }
            () = pod.cut() => return,
        }
    };
    if let Err(error) = result {
        let reason = match &error {
            ServerError::Tls(error) => handshake_reason(error),
            ServerError::Identity(error) => error.reason(),
            ServerError::Deadline(_) => "timeout",
            ServerError::NoLongerTrusted => "no_longer_trusted",
            ServerError::Http(_) => return tracing::debug!(%error, "hbone connection ended"),
        };
        metrics.handshake_failed("server", reason);
        refused(worker, pod, peer, &error);
    }
}

/// Whether the client's certificate is still one that would be taken in a handshake: the roots may be others by now.
async fn is_trusted(worker: &Worker, pod: &Pod, request: &TunnelRequest) -> bool {
    let identity = pod.workload(&worker.shared.snapshot.load()).identity.clone();
    // Without a certificate of its own the pod has no roots to trust anybody by.
    let own = worker.shared.certificates.certificate(&identity).await.ok();
    own.is_some_and(|own| request.client.is_trusted(&own.trusted().current()))
}

/// A handshake that failed leaves a record as well.
fn refused(worker: &Worker, pod: &Arc<Pod>, peer: Option<SocketAddr>, error: &dyn std::error::Error) {
    let Some(peer) = peer else { return };
    let workload = pod.workload(&worker.shared.snapshot.load());
    let Some(address) = workload.addresses.iter().find(|address| address.is_ipv4() == peer.is_ipv4()) else {
        return;
    };
    let destination = SocketAddr::new(*address, mesh_common::abi::HBONE_PORT);
    open(worker, &workload, canonical(peer), destination, None, Instant::now())
        .fail(Outcome::TlsFailed, error);
}

async fn tunnel(worker: &Worker, pod: &Arc<Pod>, request: TunnelRequest) {
    let snapshot = worker.shared.snapshot.load();
    let workload = pod.workload(&snapshot);
    let destination = request.destination;
    let source = request.client.identity().clone();
    // A node agent vouches for the address of a client that came to its node from outside, and for nobody's identity.
    let is_agent = worker.shared.is_agent(&source, &snapshot.mesh);
    let forwarded = request.forwarded.filter(|_| is_agent);
    let own = SocketAddr::new(request.peer.ip(), request.client_port);
    let (client, authenticated) = forwarded.map_or((own, Some(&source)), |client| (client, None));
    let mut record = open(worker, &workload, client, destination, Some(&source), Instant::now());
    drop(snapshot);
    let within = CONNECT_DEADLINE;
    let delivery = Delivery { worker, pod, source: authenticated, client, destination, within };
    let served = async {
        let (server, mut admission) = match delivery.connect(&mut record).await {
            Ok(delivered) => delivered,
            Err(error) => {
                request.refuse(error.status());
                return record.fail(error.outcome(), &error);
            }
        };
        match request.accept() {
            Ok(tunnel) => tokio::select! {
                outcome = tcp_to_tunnel(&server, tunnel, SocketIs::Server, record.bytes(), &NoTap) => {
                    record.finish(outcome);
                }
                refusal = admission.revoked() => revoked(worker, record, &refusal),
            },
            Err(error) => {
                reset_on_close(&server);
                record.fail(Outcome::ResetByClient, &error);
            }
        }
    };
    tokio::select! {
        () = served => {}
        () = pod.cut() => {}
    }
}

/// Ends the record of a connection that policy no longer allows.
pub(crate) fn revoked(worker: &Worker, record: ConnectionRecord, refusal: &Refusal) {
    admission::refused(worker.shared.telemetry.metrics(), "revoked", refusal);
    record.fail(Outcome::Revoked, refusal);
}

/// Asks policy for a connection to a workload of this node that is not enrolled yet: nobody there will.
pub(crate) fn judge(
    worker: &Worker,
    snapshot: &Snapshot,
    workload: &Workload,
    source: Option<&Identity>,
    client: SocketAddr,
    destination: SocketAddr,
) -> Result<Admission, DeliveryError> {
    let (admission, decision) = worker.shared.unserved(snapshot, workload).admit(source, client, destination);
    admission::count(worker.shared.telemetry.metrics(), &decision);
    match decision.verdict {
        Verdict::Refused(refusal) => Err(DeliveryError::Refused { address: destination, refusal }),
        Verdict::Unguarded | Verdict::Allowed(_) => Ok(admission),
    }
}

/// A connection to a pod of this node, as it is seen there.
pub(crate) fn open(
    worker: &Worker,
    workload: &Workload,
    source: SocketAddr,
    destination: SocketAddr,
    identity: Option<&Identity>,
    started: Instant,
) -> ConnectionRecord {
    let snapshot = worker.shared.snapshot.load();
    // Plaintext from an address proves nobody: without a certificate no identity is claimed for it.
    let known = snapshot.workload_at(source.ip());
    let mut from = party(source, known.map(|workload| &**workload), identity.cloned());
    if identity.is_none() {
        from.identity = None;
    }
    worker.shared.telemetry.open(OpenedConnection {
        started,
        reporter: Reporter::Destination,
        direction: Direction::Inbound,
        source: from,
        destination: party(destination, Some(workload), None),
        original_destination: Some(destination),
        service: None,
        security: if identity.is_some() { Security::MutualTls } else { Security::None },
    })
}
