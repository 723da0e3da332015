//! A connection while it lasts: opened once, counted while it runs, recorded exactly once when it ends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{
    ConnectionMetrics, Direction, FlowFlags, FlowLog, FlowRecord, Metrics, Outcome, Party, PolicyMark,
    Reporter, Security, ServiceAt, TrafficLabels,
};

/// Where connections are recorded. Clones are the same.
#[derive(Clone, Debug)]
pub struct Telemetry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    metrics: Arc<Metrics>,
    flows: Arc<FlowLog>,
    cluster: Arc<str>,
    live: Mutex<Slab<Arc<Live>>>,
}

/// What is known of a connection when it is opened.
#[derive(Clone, Debug)]
pub struct OpenedConnection {
    /// When the client's connection was accepted.
    pub started: Instant,
    /// Which agent this is to the connection.
    pub reporter: Reporter,
    /// Which way it goes.
    pub direction: Direction,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// What the client asked for.
    pub original_destination: Option<SocketAddr>,
    /// The service that this belongs to.
    pub service: Option<ServiceAt>,
    /// How it is protected.
    pub security: Security,
}

/// Bytes of one connection. The copying loop adds to them; each direction is on a cache line of its own.
#[derive(Debug, Default)]
pub struct ByteCounters {
    to_server: Line,
    to_client: Line,
    /// Told when the server's first byte has come.
    answered: Notify,
    /// Who was the first to end its direction.
    first_end: OnceLock<End>,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Who opened it.
    Client,
    /// Who took it.
    Server,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    count: AtomicU64,
    /// How much of it the metrics have.
    flushed: AtomicU64,
}

impl Line {
    /// What the metrics do not have yet; each byte is given to one caller only.
    fn take(&self) -> u64 {
        let count = self.count.load(Ordering::Relaxed);
        count.saturating_sub(self.flushed.fetch_max(count, Ordering::Relaxed))
    }
}

impl ByteCounters {
    /// So much more went from the client to the server.
    pub fn add_to_server(&self, bytes: u64) {
        self.to_server.count.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So much more went from the server to the client.
    pub fn add_to_client(&self, bytes: u64) {
        // The frame that ends a stream may be empty, which is no answer.
        if self.to_client.count.fetch_add(bytes, Ordering::Relaxed) == 0 && bytes > 0 {
            self.answered.notify_one();
        }
    }

    /// Returns once the server has answered, be it by a byte. For one caller.
    pub async fn answered(&self) {
        if self.totals().1 == 0 {
            self.answered.notified().await;
        }
    }

    /// This end sends nothing more.
    pub fn ended(&self, end: End) {
        // The other one was first.
        let _ = self.first_end.set(end);
    }

    /// Who was the first to send nothing more; `None`: both may still.
    pub fn first_end(&self) -> Option<End> {
        self.first_end.get().copied()
    }

    /// Bytes from the client to the server, and back.
    pub fn totals(&self) -> (u64, u64) {
        (self.to_server.count.load(Ordering::Relaxed), self.to_client.count.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Live {
    bytes: Arc<ByteCounters>,
    metrics: ConnectionMetrics,
}

impl Live {
    fn flush(&self) {
        let (to_server, to_client) = (self.bytes.to_server.take(), self.bytes.to_client.take());
        if to_server > 0 || to_client > 0 {
            self.metrics.add_bytes(to_server, to_client);
        }
    }
}

impl Telemetry {
    /// Records into these; `cluster` is Istio's name of this cluster (`Kubernetes` where none is configured).
    pub fn new(metrics: Arc<Metrics>, flows: Arc<FlowLog>, cluster: impl Into<Arc<str>>) -> Self {
        let cluster = cluster.into();
        Self(Arc::new(Shared { metrics, flows, cluster, live: Mutex::default() }))
    }

    /// The metrics recorded into.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// The log recorded into.
    pub fn flows(&self) -> &Arc<FlowLog> {
        &self.0.flows
    }

    /// Counts a connection as opened. What it returns records the end when it is dropped.
    pub fn open(&self, connection: OpenedConnection) -> ConnectionRecord {
        let labels = TrafficLabels::new(
            connection.reporter,
            connection.security,
            (&connection.source, &connection.destination),
            connection.service.as_ref(),
            &self.0.cluster,
        );
        let live =
            Arc::new(Live { bytes: Arc::default(), metrics: self.0.metrics.traffic().connection(labels) });
        live.metrics.opened();
        self.0.metrics.connection_opened();
        let key = self.0.live.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&live));
        ConnectionRecord {
            telemetry: self.clone(),
            connection,
            live,
            key,
            end: (Outcome::AgentShutdown, None),
            policy: None,
            delayed: false,
            retried: false,
        }
    }

    /// Records a flow that did not pass through the agent; `id` is given by the log.
    pub fn record_direct(&self, record: FlowRecord) {
        self.0.metrics.flow_ended(record.reporter, record.direction, record.outcome);
        self.0.flows.record(record);
    }

    /// Gives the metrics what live connections have carried since the last call. To be called every few seconds.
    pub fn flush(&self) {
        let live: Vec<_> = {
            let live = self.0.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.iter().map(|(_, live)| Arc::clone(live)).collect()
        };
        for connection in live {
            connection.flush();
        }
    }
}

/// A connection that is open. Dropped, it is recorded: with the outcome of [`ConnectionRecord::finish`], or as ended by
/// the agent's shutdown if its task was dropped before it came to that.
#[derive(Debug)]
pub struct ConnectionRecord {
    telemetry: Telemetry,
    connection: OpenedConnection,
    live: Arc<Live>,
    key: usize,
    end: (Outcome, Option<String>),
    policy: Option<Box<PolicyMark>>,
    delayed: bool,
    retried: bool,
}

impl ConnectionRecord {
    /// The counters that the copying loop adds to.
    pub fn bytes(&self) -> &Arc<ByteCounters> {
        &self.live.bytes
    }

    /// Gives the metrics what was carried since the last call.
    pub fn flush(&self) {
        self.live.flush();
    }

    /// Policy said this of the connection.
    pub fn note_policy(&mut self, mark: Option<Box<PolicyMark>>) {
        self.policy = mark;
    }

    /// It was delayed on purpose before it was established.
    pub const fn note_delayed(&mut self) {
        self.delayed = true;
    }

    /// More than one endpoint was tried.
    pub fn note_retries(&mut self) {
        self.retried = true;
    }

    /// The connection ended so.
    pub fn finish(mut self, outcome: Outcome) {
        self.end = (outcome, None);
    }

    /// The connection failed so.
    pub fn fail(mut self, outcome: Outcome, error: &dyn std::error::Error) {
        self.end = (outcome, Some(chain(error)));
    }
}

/// An error and its sources on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        let shared = &self.telemetry.0;
        shared.live.lock().unwrap_or_else(PoisonError::into_inner).try_remove(self.key);
        self.live.flush();
        let (outcome, error) = (self.end.0, self.end.1.take());
        let flags = outcome.flags();
        let end = if self.retried { flags.after_retries() } else { flags };
        let flags = FlowFlags { delayed: self.delayed, end };
        self.live.metrics.closed(flags);
        shared.metrics.connection_closed();
        let connection = &mut self.connection;
        shared.metrics.flow_ended(connection.reporter, connection.direction, outcome);
        let lasted = connection.started.elapsed();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (bytes_sent, bytes_received) = self.live.bytes.totals();
        let record = shared.flows.record(FlowRecord {
            id: 0,
            start: millis(now.saturating_sub(lasted)),
            duration_ms: millis(lasted),
            reporter: connection.reporter,
            direction: connection.direction,
            source: std::mem::take(&mut connection.source),
            destination: std::mem::take(&mut connection.destination),
            original_destination: connection.original_destination,
            service: connection.service.take(),
            bytes_sent,
            bytes_received,
            security: connection.security,
            outcome,
            response_flags: flags,
            error,
            policy: self.policy.take(),
            srtt_us: None,
            retransmits: None,
        });
        log(&record);
    }
}

fn log(record: &FlowRecord) {
    if !tracing::enabled!(target: "access", tracing::Level::INFO) {
        return;
    }
    let identity = |party: &Party| party.identity.as_ref().map(ToString::to_string);
    let address = |address: Option<SocketAddr>| address.map(tracing::field::display);
    tracing::event!(
        target: "access",
        tracing::Level::INFO,
        src.addr = address(record.source.address),
        src.identity = identity(&record.source),
        dst.addr = address(record.destination.address),
        dst.identity = identity(&record.destination),
        dst.service = record.service.as_ref().map(|at| &*at.host),
        orig_dst = address(record.original_destination),
        direction = record.direction.as_str(),
        bytes_sent = record.bytes_sent,
        bytes_received = record.bytes_received,
        duration_ms = record.duration_ms,
        reason = record.outcome.as_str(),
        error = record.error,
        policy.allowed_by = record.policy.as_ref().and_then(|mark| mark.allowed_by.as_deref()),
        policy.dry_run = record.policy.as_ref().and_then(|mark| mark.dry_run.as_deref()),
        policy.audited = record.policy.as_ref().map(|mark| mark.audited.join(", ")).filter(|all| !all.is_empty()),
        "connection ended"
    );
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::flow::example;

    fn telemetry() -> Telemetry {
        Telemetry::new(Arc::new(Metrics::new("test")), Arc::default(), "Kubernetes")
    }

    fn opened() -> OpenedConnection {
        let flow = example();
        OpenedConnection {
            started: Instant::now(),
            reporter: flow.reporter,
            direction: flow.direction,
            source: flow.source,
            destination: flow.destination,
            original_destination: flow.original_destination,
            service: flow.service,
            security: flow.security,
        }
    }

    /// The one value of a metric.
    fn value(telemetry: &Telemetry, metric: &str) -> u64 {
        let text = telemetry.metrics().render();
        let line = text.lines().find(|line| line.starts_with(metric)).unwrap_or("0 0");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn one_record_however_it_ends() {
        type End = fn(ConnectionRecord);
        let cases: [(&str, End, Outcome, Option<&str>); 3] = [
            ("finished", |record| record.finish(Outcome::Closed), Outcome::Closed, None),
            (
                "failed",
                |record| record.fail(Outcome::ConnectFailed, &std::io::Error::other("refused")),
                Outcome::ConnectFailed,
                Some("refused"),
            ),
            ("dropped", drop, Outcome::AgentShutdown, None),
        ];
        for (name, end, outcome, error) in cases {
            let telemetry = telemetry();
            let record = telemetry.open(opened());
            record.bytes().add_to_server(3);
            record.bytes().add_to_client(5);
            end(record);
            let flows = telemetry.flows().last(10);
            assert_eq!(flows.len(), 1, "{name}");
            let flow = &flows[0];
            assert_eq!((flow.outcome, flow.error.as_deref()), (outcome, error), "{name}");
            assert_eq!((flow.bytes_sent, flow.bytes_received), (3, 5), "{name}");
            assert_eq!(value(&telemetry, "istio_tcp_connections_opened_total"), 1, "{name}");
            assert_eq!(value(&telemetry, "istio_tcp_connections_closed_total"), 1, "{name}");
            assert_eq!(value(&telemetry, "istio_tcp_received_bytes_total"), 3, "{name}");
            assert_eq!(value(&telemetry, "istio_tcp_sent_bytes_total"), 5, "{name}");
            assert_eq!(value(&telemetry, "mesh_connections_active"), 0, "{name}");
        }
    }

    #[test]
    fn long_connections_count_while_they_last() {
        let telemetry = telemetry();
        let record = telemetry.open(opened());
        record.bytes().add_to_server(100);
        telemetry.flush();
        telemetry.flush();
        assert_eq!(value(&telemetry, "istio_tcp_received_bytes_total"), 100);
        assert_eq!(value(&telemetry, "mesh_connections_active"), 1);
        record.bytes().add_to_server(11);
        record.finish(Outcome::Closed);
        assert_eq!(value(&telemetry, "istio_tcp_received_bytes_total"), 111);
    }

    #[test]
    fn every_byte_is_flushed_once_whoever_flushes() {
        let telemetry = telemetry();
        let record = telemetry.open(opened());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..2000).for_each(|_| telemetry.flush()));
            }
            scope.spawn(|| (0..10_000).for_each(|_| record.bytes().add_to_client(1)));
        });
        record.finish(Outcome::Closed);
        assert_eq!(value(&telemetry, "istio_tcp_sent_bytes_total"), 10_000);
    }

    #[test]
    fn retries_that_did_not_help_are_flagged() {
        let telemetry = telemetry();
        let mut record = telemetry.open(opened());
        record.note_retries();
        record.fail(Outcome::ConnectFailed, &std::io::Error::other("refused"));
        assert_eq!(telemetry.flows().last(1)[0].response_flags.to_string(), "UF,URX");
        assert!(telemetry.metrics().render().contains("response_flags=\"UF,URX\""));
    }

    #[tokio::test]
    async fn the_first_byte_of_an_answer_is_told_whenever_it_is_asked_for() {
        let bytes = ByteCounters::default();
        bytes.add_to_server(9);
        let mut waiting = Box::pin(bytes.answered());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        bytes.add_to_client(0);
        assert!(futures_util::poll!(&mut waiting).is_pending(), "an end is no answer");
        bytes.add_to_client(1);
        waiting.await;
        bytes.answered().await;
        assert_eq!(bytes.first_end(), None);
        bytes.ended(End::Server);
        bytes.ended(End::Client);
        assert_eq!(bytes.first_end(), Some(End::Server));
    }

    #[test]
    fn a_direct_flow_is_logged_and_counted() {
        let telemetry = telemetry();
        let flow = FlowRecord { reporter: Reporter::Kernel, direction: Direction::Direct, ..example() };
        telemetry.record_direct(flow);
        assert_eq!(telemetry.flows().last(1).len(), 1);
        assert_eq!(value(&telemetry, "mesh_flows_total"), 1);
        assert_eq!(value(&telemetry, "istio_tcp_connections_opened_total"), 0);
    }
}
