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
use crate::balance::Looked;
use crate::model::{Mirror, Service, Snapshot, Workload};
use crate::proxy::bounds::Held;
use crate::proxy::carried::Entry;
use crate::proxy::forward::{CONNECT_DEADLINE, Upstream, UpstreamError, hold, note_failure};
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

/// A shadow's connection that stands.
struct Reached {
    address: SocketAddr,
    upstream: Upstream,
    record: ConnectionRecord,
    held: Held,
}

/// Begins a copy. It goes on until the queue says that it has ended.
pub(super) fn begin(source: &Source<'_>, mirror: &Mirror, queue: Rc<Queue>, place: OwnedSemaphorePermit) {
    let snapshot = Arc::clone(source.snapshot);
    let balancers = &source.worker.shared.balancers;
    let (looked, left_out) = (balancers.look_for_copy(&mirror.target), balancers.left_out(&mirror.target));
    let shadow = Shadow {
        worker: source.worker.clone(),
        pod: Arc::clone(source.pod),
        workload: Arc::clone(source.workload),
        service: snapshot.services.get(&mirror.target.service).cloned(),
        port: mirror.target.port,
        asked: source.asked,
        client: source.client,
        started: Instant::now(),
        queue,
        _place: place,
    };
    tokio::task::spawn_local(async move {
        let end = tokio::select! {
            end = shadow.run(snapshot, looked, left_out) => end,
            () = shadow.pod.cut() => End::Shutdown,
        };
        shadow.queue.end(end);
    });
}

impl Shadow {
    async fn run(&self, snapshot: Arc<Snapshot>, looked: Looked, left_out: Vec<SocketAddr>) -> End {
        let reached = self.reach(&snapshot, &looked, &left_out).await;
        // As for every connection: it may last for days, and what it was routed by need not.
        drop((snapshot, looked, left_out));
        match reached {
            Ok(reached) => self.copy(reached).await,
            Err(end) => end,
        }
    }

    /// Connects to an endpoint of the shadow, once. What comes of it is recorded.
    async fn reach(
        &self,
        snapshot: &Arc<Snapshot>,
        looked: &Looked,
        left_out: &[SocketAddr],
    ) -> Result<Reached, End> {
        let name = || self.service.as_ref().map(|service| service.name.to_string()).unwrap_or_default();
        let nowhere = |error: UpstreamError, end| {
            self.open(self.asked, None, Security::Unknown).fail(error.outcome(), &error);
            Err(end)
        };
        let pick = |avoid| looked.pick(self.asked.is_ipv4(), self.client.ip(), avoid);
        let picked = pick(left_out).or_else(|| pick(&[]));
        let (Some(picked), Some(service)) = (picked, &self.service) else {
            return nowhere(UpstreamError::NoEndpoint(name()), End::NoEndpoint);
        };
        let mut place = match looked.admit() {
            Ok(place) => place,
            Err(overflow) => {
                self.worker.shared.telemetry.metrics().balance().refused(looked.key(), overflow.as_str());
                return nowhere(UpstreamError::Overflow { service: name(), overflow }, End::Overflow);
            }
        };
        place.at(picked);
        let destination = Destination::of(snapshot, service, picked.endpoint);
        let (address, workload) = (destination.address, destination.workload.as_deref());
        let within = looked.settings().limits.connect_timeout.unwrap_or(CONNECT_DEADLINE);
        let Self { worker, pod, workload: own, asked, client, .. } = self;
        let source = Source { worker, pod, workload: own, snapshot, asked: *asked, client: *client };
        let connected = tokio::select! {
            biased;
            connected = outbound::reach_shadow(&source, &destination, within) => connected,
            end = over(&self.queue) => {
                self.open(address, workload, Security::Unknown).finish(end.outcome());
                return Err(end);
            }
        };
        match connected {
            Ok(upstream) => {
                place.established();
                if let Some(keepalive) = &looked.settings().limits.keepalive {
                    upstream.keep_alive(keepalive);
                }
                let record = self.open(address, workload, upstream.security());
                Ok(Reached { address, upstream, record, held: Held::new(place, looked.settings()) })
            }
            Err(error) => {
                note_failure(worker, &error);
                self.open(address, workload, Security::Unknown).fail(error.outcome(), &error);
                Err(match error.outcome() {
                    Outcome::RefusedPolicy | Outcome::RefusedByPeer => End::Refused,
                    _ => End::ConnectFailed,
                })
            }
        }
    }

    /// Sends what waits, to the end of the copy.
    async fn copy(&self, reached: Reached) -> End {
        let Reached { address, upstream, record, held } = reached;
        let entry = self.enter(address);
        let gone = entry.as_ref().map(|entry| entry.gone(&self.worker.shared.snapshot.load()));
        let gone = async {
            match gone {
                Some(gone) => gone.await,
                None => std::future::pending().await,
            }
        };
        let ends = async {
            tokio::select! {
                () = gone => Outcome::Withdrawn,
                outcome = held.bounds(record.bytes()) => outcome,
            }
        };
        let fed = Cell::new(None);
        let outcome = hold(&self.worker, upstream, &record, ends, async |server| {
            let end = feed(&self.queue, server, record.bytes()).await;
            fed.set(Some(end));
            end.outcome()
        })
        .await;
        held.ended(outcome, record.bytes());
        record.finish(outcome);
        fed.get().unwrap_or(match outcome {
            Outcome::Revoked => End::Revoked,
            Outcome::Withdrawn => End::Withdrawn,
            _ => End::Bound,
        })
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
