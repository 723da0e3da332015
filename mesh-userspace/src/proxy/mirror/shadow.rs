//! One shadow's connection, from its beginning to its end: a task of its own.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::End;
use super::feed::{feed, over};
use super::queue::Queue;
use crate::model::{Mirror, Service, Snapshot, Workload};
use crate::proxy::carried::Entry;
use crate::proxy::forward::{Upstream, UpstreamError, hold, note_failure};
use crate::proxy::record::{party, service_at};
use crate::proxy::route::Destination;
use crate::proxy::worker::Worker;
use crate::proxy::{Pod, outbound};
use crate::telemetry::{ConnectionRecord, Direction, OpenedConnection, Outcome, Reporter, Security};

/// The connection that is copied.
#[derive(Clone, Copy)]
pub(in crate::proxy) struct Source<'a> {
    /// Who carries it.
    pub(in crate::proxy) worker: &'a Worker,
    /// The client's pod.
    pub(in crate::proxy) pod: &'a Arc<Pod>,
    /// What it is to the mesh.
    pub(in crate::proxy) workload: &'a Arc<Workload>,
    /// The mesh that it was routed by.
    pub(in crate::proxy) snapshot: &'a Arc<Snapshot>,
    /// What the client asked for.
    pub(in crate::proxy) asked: SocketAddr,
    /// The client.
    pub(in crate::proxy) client: SocketAddr,
}

/// A copy of a connection, as its task has it.
struct Shadow {
    worker: Worker,
    pod: Arc<Pod>,
    workload: Arc<Workload>,
    /// What the mirror names; `None`: that went.
    service: Option<Arc<Service>>,
    port: u16,
    asked: SocketAddr,
    client: SocketAddr,
    started: Instant,
    queue: Rc<Queue>,
    _place: OwnedSemaphorePermit,
}

/// Begins a copy. It goes on until the queue says that it has ended.
pub(super) fn begin(source: &Source<'_>, mirror: &Mirror, queue: Rc<Queue>, place: OwnedSemaphorePermit) {
    let snapshot = Arc::clone(source.snapshot);
    let endpoint = mirror.target.draw(source.asked.is_ipv4(), fastrand::u64(..));
    let service = snapshot.services.get(&mirror.target.service).cloned();
    let destination = match (&service, endpoint) {
        (Some(service), Some(endpoint)) => Some(Destination::of(&snapshot, service, endpoint)),
        _ => None,
    };
    let shadow = Shadow {
        worker: source.worker.clone(),
        pod: Arc::clone(source.pod),
        workload: Arc::clone(source.workload),
        service,
        port: mirror.target.port,
        asked: source.asked,
        client: source.client,
        started: Instant::now(),
        queue,
        _place: place,
    };
    tokio::task::spawn_local(async move {
        let end = tokio::select! {
            end = shadow.run(snapshot, destination) => end,
            () = shadow.pod.cut() => End::Shutdown,
        };
        shadow.queue.end(end);
    });
}

impl Shadow {
    async fn run(&self, snapshot: Arc<Snapshot>, destination: Option<Destination>) -> End {
        let Some(destination) = destination else {
            let service = self.service.as_ref().map(|service| service.name.to_string());
            let error = UpstreamError::NoEndpoint(service.unwrap_or_else(|| "the mirror".to_owned()));
            self.open(self.asked, None, Security::Unknown).fail(Outcome::NoEndpoint, &error);
            return End::NoEndpoint;
        };
        let (address, workload) = (destination.address, destination.workload.as_deref());
        let connected = tokio::select! {
            biased;
            connected = self.connect(&snapshot, &destination) => connected,
            end = over(&self.queue) => {
                self.open(address, workload, Security::Unknown).finish(end.outcome());
                return end;
            }
        };
        // As for every connection: it may last for days.
        drop(snapshot);
        let upstream = match connected {
            Ok(upstream) => upstream,
            Err(error) => {
                note_failure(&self.worker, &error);
                self.open(address, workload, Security::Unknown).fail(error.outcome(), &error);
                return match error.outcome() {
                    Outcome::RefusedPolicy | Outcome::RefusedByPeer => End::Refused,
                    _ => End::ConnectFailed,
                };
            }
        };
        let record = self.open(address, workload, upstream.security());
        let entry = self.enter(address);
        let gone = entry.as_ref().map(|entry| entry.gone(&self.worker.shared.snapshot.load()));
        let gone = async {
            match gone {
                Some(gone) => gone.await,
                None => std::future::pending().await,
            }
        };
        let fed = Cell::new(None);
        let outcome = hold(&self.worker, upstream, &record, gone, async |server| {
            let end = feed(&self.queue, server, record.bytes()).await;
            fed.set(Some(end));
            end.outcome()
        })
        .await;
        record.finish(outcome);
        let held = if outcome == Outcome::Revoked { End::Revoked } else { End::Withdrawn };
        fed.get().unwrap_or(held)
    }

    async fn connect(
        &self,
        snapshot: &Arc<Snapshot>,
        destination: &Destination,
    ) -> Result<Upstream, UpstreamError> {
        let Self { worker, pod, workload, asked, client, .. } = self;
        let source = Source { worker, pod, workload, snapshot, asked: *asked, client: *client };
        outbound::reach_shadow(&source, destination).await
    }

    /// Notes the copy, so that it ends when its endpoint goes: as what a client of the shadow's service would have asked for.
    fn enter(&self, endpoint: SocketAddr) -> Option<Entry> {
        let service = self.service.as_ref()?;
        let address = service.addresses.iter().find(|address| address.is_ipv4() == endpoint.is_ipv4())?;
        Some(self.worker.carried.enter(SocketAddr::new(*address, self.port), endpoint))
    }

    fn open(&self, address: SocketAddr, workload: Option<&Workload>, security: Security) -> ConnectionRecord {
        let mut server = party(address, workload, None);
        if security != Security::MutualTls {
            // Nobody has proved to be that.
            server.identity = None;
        }
        self.worker.shared.telemetry.open(OpenedConnection {
            started: self.started,
            reporter: Reporter::Source,
            direction: Direction::Mirrored,
            source: party(self.client, Some(&self.workload), None),
            destination: server,
            original_destination: Some(self.asked),
            service: self.service.as_deref().map(|service| service_at(service, self.port)),
            security,
        })
    }
}
