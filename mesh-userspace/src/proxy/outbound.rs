//! Captured connections: the destination is the accepted socket's own address, the workload that of its listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::establish::{Client, Establish, Established};
use super::forward::{CONNECT_DEADLINE, Forward, Upstream, UpstreamError, carry, note_failure};
use super::record::{party, service_at};
use super::route::{self, Destination, Way};
use super::worker::Worker;
use super::{Pod, inbound, upstream};
use crate::datapath::Stayer;
use crate::model::{Endpoint, Service, Snapshot, Workload};
use crate::socket::{canonical, reset_on_close};
use crate::telemetry::{ConnectionRecord, Direction, OpenedConnection, Reporter, Security};

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
    let captured = Captured { worker, pod, workload: &workload, snapshot: &snapshot, asked, source, started };
    let connected = tokio::select! {
        connected = captured.connect() => connected,
        () = pod.cut() => None,
    };
    // A connection may last for days; the state of the mesh that it was routed by need not.
    drop(snapshot);
    match connected {
        None => reset_on_close(&client),
        Some(Connected::Service(established)) => tokio::select! {
            () = established.carry(worker, &client, asked) => {}
            () = pod.cut() => reset_on_close(&client),
        },
        Some(Connected::Address(upstream, record)) => tokio::select! {
            outcome = carry(worker, &client, upstream, &record, std::future::pending()) => record.finish(outcome),
            () = pod.cut() => reset_on_close(&client),
        },
    }
}

/// Where a captured connection has come to.
enum Connected {
    /// An endpoint of a service.
    Service(Established),
    /// The address that was asked for, which is no service's.
    Address(Upstream, ConnectionRecord),
}

/// A captured connection, and what it is to the mesh.
struct Captured<'a> {
    worker: &'a Worker,
    pod: &'a Arc<Pod>,
    workload: &'a Arc<Workload>,
    snapshot: &'a Snapshot,
    asked: SocketAddr,
    source: SocketAddr,
    started: Instant,
}

impl Captured<'_> {
    /// Connects to where it goes: one record, whatever the number of tries; `None` where all have failed.
    async fn connect(&self) -> Option<Connected> {
        let Some(ask) = route::ask(self.snapshot, self.asked) else {
            let (upstream, record) = self.direct().await?;
            return Some(Connected::Address(upstream, record));
        };
        let asking = Asking { captured: self, service: ask.service };
        let (worker, asked, source) = (self.worker, self.asked, self.source);
        let establish = Establish { worker, client: &asking, ask: &ask, route: ask.route, asked, source };
        if !ask.admits(source.ip()) {
            establish.fail(&UpstreamError::OutOfRange(ask.service.name.to_string()));
            return None;
        }
        establish.run().await.map(Connected::Service)
    }

    /// To an address that is no service's: there is one way, and one try.
    async fn direct(&self) -> Option<(Upstream, ConnectionRecord)> {
        let destination = Destination::plain(self.snapshot, self.asked);
        match self.connect_to(&destination, CONNECT_DEADLINE).await {
            Ok(upstream) => {
                let record = self.open(&destination, upstream.security());
                Some((upstream, record))
            }
            Err(error) => {
                note_failure(self.worker, &error);
                tracing::debug!(%error, orig_dst = %self.asked, "upstream failed");
                self.open(&destination, Security::Unknown).fail(error.outcome(), &error);
                None
            }
        }
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

    async fn connect_to(
        &self,
        destination: &Destination,
        within: Duration,
    ) -> Result<Upstream, UpstreamError> {
        let address = destination.address;
        let (shared, identity) = (&self.worker.shared, &self.workload.identity);
        let forward = Forward { worker: self.worker, client: self.source, started: self.started, within };
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
                Ok(Upstream::Unserved(self.dial(address, within).await?, admission))
            }
            Way::Plain => self.dial(address, within).await.map(Upstream::Socket),
        }
    }

    /// In plaintext from inside the pod's namespace.
    async fn dial(&self, address: SocketAddr, within: Duration) -> Result<TcpStream, UpstreamError> {
        let connect = timeout(within, upstream::plain(&self.pod.netns, address)).await;
        let socket = connect.map_err(|_elapsed| UpstreamError::Timeout(address))?;
        socket.map_err(|source| UpstreamError::Connect { address, source })
    }
}

/// A captured connection that asked for a service.
struct Asking<'a> {
    captured: &'a Captured<'a>,
    service: &'a Arc<Service>,
}

impl Client for Asking<'_> {
    fn stayer(&self) -> Stayer {
        Stayer::Netns(self.captured.pod.netns().cookie())
    }

    async fn connect(&self, endpoint: &Endpoint, within: Duration) -> Result<Upstream, UpstreamError> {
        let destination = Destination::of(self.captured.snapshot, self.service, endpoint);
        self.captured.connect_to(&destination, within).await
    }

    fn open(&self, endpoint: Option<&Endpoint>, upstream: Option<&Upstream>) -> ConnectionRecord {
        let security = upstream.map_or(Security::Unknown, Upstream::security);
        let destination = match endpoint {
            Some(endpoint) => Destination::of(self.captured.snapshot, self.service, endpoint),
            None => Destination {
                address: self.captured.asked,
                workload: None,
                service: Some(Arc::clone(self.service)),
            },
        };
        self.captured.open(&destination, security)
    }
}
