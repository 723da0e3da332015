//! Captured connections: the destination is the accepted socket's own address, the workload that of its listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::ask::Ask;
use super::copy::{NoTap, broke};
use super::establish::{Client, Establish, Established};
use super::fault::Fault;
use super::forward::{CONNECT_DEADLINE, Forward, Upstream, UpstreamError, carry, note_failure};
use super::mirror::{Mirrors, Source};
use super::record::{party, service_at};
use super::route::{self, Destination, Way};
use super::worker::Worker;
use super::{Pod, inbound, sni, upstream};
use crate::datapath::Stayer;
use crate::model::{Connecting, Endpoint, Service, Snapshot, Workload};
use crate::socket::{canonical, reset_on_close};
use crate::telemetry::{ConnectionRecord, Direction, OpenedConnection, Outcome, Reporter, Security};

/// Serves one captured connection to its end.
pub(super) async fn serve(worker: &Worker, pod: &Arc<Pod>, client: TcpStream) {
    let addresses = client.local_addr().and_then(|local| Ok((local, client.peer_addr()?)));
    // A connection that was reset before it was accepted has no peer any more.
    let Ok((asked, source)) = addresses else { return };
    let (asked, source) = (canonical(asked), canonical(source));
    if worker.shared.canary.answer(pod, asked, &client) {
        return;
    }
    let accepted = Accepted { worker, pod, asked, source, started: Instant::now() };
    let mut captured = Captured::now(accepted);
    if captured.asks_server_name() {
        // It may take long: nothing of the mesh's state is held meanwhile, and what is in force then routes the connection.
        drop(captured);
        let server_name = tokio::select! {
            server_name = sni::server_name(&client) => server_name,
            () = pod.cut() => return reset_on_close(&client),
        };
        captured = Captured { server_name, ..Captured::now(accepted) };
    }
    let fault = captured.fault();
    if !fault.is_none() {
        // So may this.
        let server_name = captured.server_name.take();
        drop(captured);
        let injected = fault.inject(worker, &pod.delays, &client, pod.cut()).await;
        captured = Captured { server_name, delayed: injected.delayed, ..Captured::now(accepted) };
        if let Some(end) = injected.end {
            captured.fail(end.outcome(), &end);
            return reset_on_close(&client);
        }
    }
    let connected = tokio::select! {
        connected = captured.connect() => connected,
        () = broke(&client) => {
            let error = UpstreamError::ClientLeft;
            captured.fail(error.outcome(), &error);
            None
        }
        () = pod.cut() => None,
    };
    let mirrors = match &connected {
        Some(Connected::Service(_)) => captured.mirrors(),
        Some(Connected::Address(..)) | None => None,
    };
    // A connection may last for days; the state of the mesh that it was routed by need not.
    drop(captured);
    match connected {
        None => reset_on_close(&client),
        Some(Connected::Service(established)) => tokio::select! {
            () = established.carry(worker, &client, asked, mirrors) => {}
            () = pod.cut() => reset_on_close(&client),
        },
        Some(Connected::Address(upstream, record)) => tokio::select! {
            outcome = carry(worker, &client, upstream, &record, std::future::pending(), &NoTap) => {
                record.finish(outcome);
            }
            () = pod.cut() => reset_on_close(&client),
        },
    }
}

/// Connects to a shadow, as the client whose connection is copied; it may take so long.
pub(super) async fn reach_shadow(
    copied: &Source<'_>,
    destination: &Destination,
    within: Duration,
) -> Result<Upstream, UpstreamError> {
    let &Source { worker, pod, workload, snapshot, asked, client } = copied;
    let captured = Captured {
        accepted: Accepted { worker, pod, asked, source: client, started: Instant::now() },
        workload: Arc::clone(workload),
        snapshot: Arc::clone(snapshot),
        server_name: None,
        delayed: false,
        is_copy: true,
    };
    captured.connect_to(destination, within).await
}

/// Where a captured connection has come to.
enum Connected {
    /// An endpoint of a service.
    Service(Established),
    /// The address that was asked for, which is no service's.
    Address(Upstream, Box<ConnectionRecord>),
}

/// A connection as it was accepted.
#[derive(Clone, Copy)]
struct Accepted<'a> {
    worker: &'a Worker,
    pod: &'a Arc<Pod>,
    asked: SocketAddr,
    source: SocketAddr,
    started: Instant,
}

/// A captured connection, and what it is to the mesh.
struct Captured<'a> {
    accepted: Accepted<'a>,
    workload: Arc<Workload>,
    snapshot: Arc<Snapshot>,
    /// What the client's TLS asks for, where a route asks for that.
    server_name: Option<String>,
    /// Whether a fault delayed it.
    delayed: bool,
    /// Whether it is a copy of a client's, to a shadow.
    is_copy: bool,
}

impl<'a> std::ops::Deref for Captured<'a> {
    type Target = Accepted<'a>;

    fn deref(&self) -> &Accepted<'a> {
        &self.accepted
    }
}

impl<'a> Captured<'a> {
    /// By the mesh as it is now.
    fn now(accepted: Accepted<'a>) -> Self {
        let snapshot = accepted.worker.shared.snapshot.load_full();
        let workload = accepted.pod.workload(&snapshot);
        Self { accepted, workload, snapshot, server_name: None, delayed: false, is_copy: false }
    }

    /// What the routes can tell of it.
    fn connecting(&self) -> Connecting<'_> {
        Connecting {
            source: Some(&self.workload),
            source_address: self.source.ip(),
            asked: self.asked.ip(),
            server_name: self.server_name.as_deref(),
        }
    }

    /// The service that was asked for, if it is one, and the route to it.
    fn ask(&self) -> Option<Ask<'_>> {
        let ask = route::ask(&self.snapshot, self.asked)?.of_client(self.workload.client());
        Some(ask.routed(&self.connecting()))
    }

    /// Whether the server name of the client's TLS decides on its route.
    fn asks_server_name(&self) -> bool {
        let ask = route::ask(&self.snapshot, self.asked);
        ask.is_some_and(|ask| ask.admits(self.source.ip()) && ask.asks_server_name(&self.connecting()))
    }

    /// What its route does to it before it is connected.
    fn fault(&self) -> Fault {
        let ask = self.ask().filter(|ask| ask.admits(self.source.ip()));
        ask.map_or_else(Fault::default, |ask| Fault::of(&ask.route.actions, &self.worker.chance))
    }

    /// It ended before it was connected.
    fn fail(&self, outcome: Outcome, error: &(dyn std::error::Error + 'static)) {
        let service = self.ask().map(|ask| Arc::clone(ask.service));
        let destination = Destination { address: self.asked, workload: None, service };
        self.open(&destination, Security::Unknown).fail(outcome, error);
    }

    /// Begins the copies that its route asks for.
    fn mirrors(&self) -> Option<Mirrors> {
        let Self { workload, snapshot, .. } = self;
        let Accepted { worker, pod, asked, source: client, .. } = self.accepted;
        let copied = Source { worker, pod, workload, snapshot, asked, client };
        Mirrors::begin(&copied, &self.ask()?.route.actions.mirrors)
    }

    /// Connects to where it goes: one record, whatever the number of tries; `None` where all have failed.
    async fn connect(&self) -> Option<Connected> {
        let Some(ask) = self.ask() else {
            let (upstream, record) = self.direct().await?;
            return Some(Connected::Address(upstream, Box::new(record)));
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
        let destination = Destination::plain(&self.snapshot, self.asked);
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

    async fn connect_to(
        &self,
        destination: &Destination,
        within: Duration,
    ) -> Result<Upstream, UpstreamError> {
        let address = destination.address;
        let (shared, identity) = (&self.worker.shared, &self.workload.identity);
        let (is_copy, Accepted { worker, source: client, started, .. }) = (self.is_copy, self.accepted);
        let forward = Forward { worker, client, started, within, is_copy };
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
        let destination = Destination::of(&self.captured.snapshot, self.service, endpoint);
        self.captured.connect_to(&destination, within).await
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
