//! Captured connections: the destination is the accepted socket's own address, the workload that of its listener.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::ask::Ask;
use super::forward::{CONNECT_DEADLINE, Forward, Upstream, UpstreamError, carry, note_failure};
use super::record::{party, service_at};
use super::route::{self, Destination, Way};
use super::worker::Worker;
use super::{Pod, inbound, upstream};
use crate::datapath::{Stay, Stayer};
use crate::model::{Service, Snapshot, Workload};
use crate::socket::{canonical, reset_on_close};
use crate::telemetry::{ConnectionRecord, Direction, OpenedConnection, Outcome, Reporter, Security};

/// How many endpoints are tried before a connection is given up; nothing of it has been sent until one answers.
pub(crate) const TRIES: usize = 3;

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
        let ask = route::ask(self.snapshot, self.asked).map(|ask| ask.of_client(self.workload.client()));
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
            note_failure(self.worker, &error);
            let again = error.is_retryable()
                && destination.service.is_some()
                && failed.len() + 1 < TRIES
                && self.has_other(ask.as_ref(), &failed, destination.address);
            tracing::debug!(%error, orig_dst = %self.asked, dst.addr = %destination.address, again, "upstream failed");
            // Who was refused for who they are is told of, whoever served the client in their place.
            if !again || error.outcome() == Outcome::TlsFailed {
                self.open(&destination, Security::Unknown).fail(error.outcome(), &error);
            }
            if !again {
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
        let (shared, identity) = (&self.worker.shared, &self.workload.identity);
        let forward = Forward { worker: self.worker, client: self.source, started: self.started };
        match destination.way(&shared.node, |uid| shared.pod(uid)) {
            Way::Local(pod, workload) => forward.deliver(&pod, workload, Some(identity), address).await,
            Way::Tunnel(workload) => {
                let baggage = self.pod.baggage();
                forward.tunnel(&self.pod.netns, identity, workload, address, baggage.as_ref()).await
            }
            Way::Unserved(workload) => {
                let (worker, source) = (self.worker, Some(identity));
                let admission =
                    inbound::judge(worker, self.snapshot, workload, source, self.source, address)?;
                Ok(Upstream::Unserved(self.dial(address).await?, admission))
            }
            Way::Plain => self.dial(address).await.map(Upstream::Socket),
        }
    }

    /// In plaintext from inside the pod's namespace.
    async fn dial(&self, address: SocketAddr) -> Result<TcpStream, UpstreamError> {
        let connect = timeout(CONNECT_DEADLINE, upstream::plain(&self.pod.netns, address)).await;
        let socket = connect.map_err(|_elapsed| UpstreamError::Timeout(address))?;
        socket.map_err(|source| UpstreamError::Connect { address, source })
    }
}
