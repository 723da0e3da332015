//! Captured connections: the destination is the accepted socket's own address, the workload that of its listener.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::ask::Ask;
use super::copy::NoTap;
use super::establish::{Client, Establish, Established};
use super::fault::{self, Fault};
use super::forward::{CONNECT_DEADLINE, Forward, Upstream, UpstreamError, carry, note_failure};
use super::mirror::{Mirrors, Source};
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
    let started = Instant::now();
    let now = || Captured::now(worker, pod, asked, source, started);
    let mut captured = now();
    let fault = captured.fault();
    if !fault.is_none() {
        // It may take long: nothing of the mesh's state is held meanwhile, and what is in force then routes the connection.
        drop(captured);
        let injected = fault.inject(worker, &client, pod.cut()).await;
        captured = Captured { delayed: injected.delayed, ..now() };
        if let Some(end) = injected.end {
            captured.fail_injected(end);
            return reset_on_close(&client);
        }
    }
    let connected = tokio::select! {
        connected = captured.connect() => connected,
        () = pod.cut() => None,
    };
    let mirrors = connected.as_ref().and_then(|_| captured.mirrors());
    // A connection may last for days; the state of the mesh that it was routed by need not.
    drop(captured);
    let Some((upstream, record, endpoint)) = connected else { return reset_on_close(&client) };
    let entry = endpoint.map(|endpoint| worker.carried.enter(asked, endpoint));
    let gone = entry.as_ref().map(|entry| entry.gone(&worker.shared.snapshot.load()));
    let gone = async {
        match gone {
            Some(gone) => gone.await,
            None => std::future::pending().await,
        }
    };
    let carried = async {
        match mirrors {
            None => carry(worker, &client, upstream, &record, gone, &NoTap).await,
            Some(mirrors) => Box::pin(carry(worker, &client, upstream, &record, gone, &mirrors)).await,
        }
    };
    tokio::select! {
        outcome = carried => record.finish(outcome),
        () = pod.cut() => reset_on_close(&client),
    }
}

/// Connects to a shadow, as the client whose connection is copied.
pub(super) async fn reach_shadow(
    copied: &Source<'_>,
    destination: &Destination,
) -> Result<Upstream, UpstreamError> {
    let &Source { worker, pod, workload, snapshot, asked, client } = copied;
    let captured = Captured {
        worker,
        pod,
        workload: Arc::clone(workload),
        snapshot: Arc::clone(snapshot),
        asked,
        source: client,
        started: Instant::now(),
        delayed: false,
        is_copy: true,
    };
    captured.connect_to(destination).await
}

/// A captured connection, and what it is to the mesh.
struct Captured<'a> {
    worker: &'a Worker,
    pod: &'a Arc<Pod>,
    workload: Arc<Workload>,
    snapshot: Arc<Snapshot>,
    asked: SocketAddr,
    source: SocketAddr,
    started: Instant,
    /// Whether a fault delayed it.
    delayed: bool,
    /// Whether it is a copy of a client's, to a shadow.
    is_copy: bool,
}

impl<'a> Captured<'a> {
    /// By the mesh as it is now.
    fn now(
        worker: &'a Worker,
        pod: &'a Arc<Pod>,
        asked: SocketAddr,
        source: SocketAddr,
        started: Instant,
    ) -> Self {
        let snapshot = worker.shared.snapshot.load_full();
        let workload = pod.workload(&snapshot);
        Self { worker, pod, workload, snapshot, asked, source, started, delayed: false, is_copy: false }
    }

    /// The service that was asked for, if it is one.
    fn ask(&self) -> Option<Ask<'_>> {
        route::ask(&self.snapshot, self.asked)
    }

    /// What its route does to it before it is connected.
    fn fault(&self) -> Fault {
        self.ask().map_or_else(Fault::default, |ask| Fault::of(&ask.route.actions, &self.worker.chance))
    }

    /// A fault ended it.
    fn fail_injected(&self, end: fault::Ended) {
        let service = self.ask().map(|ask| Arc::clone(ask.service));
        let destination = Destination { address: self.asked, workload: None, service };
        self.open(&destination, Security::Unknown).fail(end.outcome(), &end);
    }

    /// Begins the copies that its route asks for.
    fn mirrors(&self) -> Option<Mirrors> {
        let Self { worker, pod, workload, snapshot, asked, source, .. } = self;
        let copied = Source { worker, pod, workload, snapshot, asked: *asked, client: *source };
        Mirrors::begin(&copied, &self.ask()?.route.actions.mirrors)
    }

    /// Connects to where it goes: one record, whatever the number of tries; `None` where all have failed.
    /// The endpoint's address is there where a service led to it.
    async fn connect(&self) -> Option<(Upstream, ConnectionRecord, Option<SocketAddr>)> {
        let Some(ask) = self.ask() else {
            let (upstream, record) = self.direct().await?;
            return Some((upstream, record, None));
        };
        let asking = Asking { captured: self, service: ask.service };
        let establish = Establish { worker: self.worker, client: &asking, ask: &ask, asked: self.asked };
        if !ask.admits(self.source.ip()) {
            establish.fail(&UpstreamError::OutOfRange(ask.service.name.to_string()));
            return None;
        }
        let Established { upstream, record, endpoint } = establish.run().await?;
        Some((upstream, record, Some(endpoint)))
    }

    /// To an address that is no service's: there is one way, and one try.
    async fn direct(&self) -> Option<(Upstream, ConnectionRecord)> {
        let destination = Destination::plain(&self.snapshot, self.asked);
        match self.connect_to(&destination).await {
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
        let mut record = self.worker.shared.telemetry.open(OpenedConnection {
            started: self.started,
            reporter: Reporter::Source,
            direction: Direction::Outbound,
            source: party(self.source, Some(&self.workload), None),
            destination: server,
            original_destination: Some(self.asked),
            service: destination.service.as_deref().map(|service| service_at(service, self.asked.port())),
            security,
        });
        if self.delayed {
            record.note_delayed();
        }
        record
    }

    async fn connect_to(&self, destination: &Destination) -> Result<Upstream, UpstreamError> {
        let address = destination.address;
        let (shared, identity) = (&self.worker.shared, &self.workload.identity);
        let Self { worker, source: client, started, is_copy, .. } = *self;
        let forward = Forward { worker, client, started, is_copy };
        match destination.way(&shared.node, |uid| shared.pod(uid)) {
            Way::Local(pod, workload) => forward.deliver(&pod, workload, Some(identity), address).await,
            Way::Tunnel(workload) => {
                let baggage = self.pod.baggage();
                forward.tunnel(&self.pod.netns, identity, workload, address, baggage.as_ref()).await
            }
            Way::Unserved(workload) => {
                let (worker, source) = (self.worker, Some(identity));
                let admission =
                    inbound::judge(worker, &self.snapshot, workload, source, self.source, address)?;
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

/// A captured connection that asked for a service.
struct Asking<'a> {
    captured: &'a Captured<'a>,
    service: &'a Arc<Service>,
}

impl Client for Asking<'_> {
    fn stayer(&self) -> Stayer {
        Stayer::Netns(self.captured.pod.netns().cookie())
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Upstream, UpstreamError> {
        self.captured.connect_to(&Destination::of(&self.captured.snapshot, self.service, endpoint)).await
    }

    fn open(&self, endpoint: Option<&Endpoint>, upstream: Option<&Upstream>) -> ConnectionRecord {
        let security = upstream.map_or(Security::Unknown, Upstream::security);
        let destination = match endpoint {
            Some(endpoint) => Destination::of(&self.captured.snapshot, self.service, endpoint),
            None => Destination {
                address: self.captured.asked,
                workload: None,
                service: Some(Arc::clone(self.service)),
            },
        };
        self.captured.open(&destination, security)
    }
}
