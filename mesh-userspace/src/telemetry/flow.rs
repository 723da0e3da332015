//! Flow records, and the log that holds the last of them.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::model::{Identity, WorkloadUid};

/// Records kept.
const CAPACITY: usize = 4096;
/// Records that a follower may be behind before it misses some.
const FOLLOWER_CAPACITY: usize = 1024;

/// Who saw the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reporter {
    /// The agent of the client's node.
    Source,
    /// The agent of the server's node.
    Destination,
    /// The kernel plane, for a flow that went directly.
    Kernel,
}

impl Reporter {
    /// As a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Kernel => "kernel",
        }
    }
}

/// Which way the flow went, from the local pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Out of a local pod, through the agent.
    Outbound,
    /// Into a local pod, through the agent.
    Inbound,
    /// From outside to a service, through the agent of the node that it came to.
    External,
    /// To a shadow: a copy of what a client of a local pod sent elsewhere, by the agent.
    Mirrored,
    /// Past the agent.
    Direct,
}

impl Direction {
    /// As a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::External => "external",
            Self::Mirrored => "mirrored",
            Self::Direct => "direct",
        }
    }
}

/// How the flow was protected (Istio's `connection_security_policy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// Both ends authenticated.
    MutualTls,
    /// Plaintext.
    None,
    /// It ended before that was known.
    Unknown,
}

impl Security {
    /// As a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Both sides closed in order.
    Closed,
    /// The client reset it.
    ResetByClient,
    /// The server reset it.
    ResetByServer,
    /// The destination could not be reached.
    ConnectFailed,
    /// The destination did not answer in time.
    ConnectTimeout,
    /// Policy refused it.
    RefusedPolicy,
    /// The destination refused it (HBONE, other than by policy).
    RefusedByPeer,
    /// The service has no endpoint to send it to.
    NoEndpoint,
    /// No service and no workload has that address.
    NoRoute,
    /// A limit on connections was reached.
    Overflow,
    /// The TLS handshake failed.
    TlsFailed,
    /// Nothing moved for too long.
    IdleTimeout,
    /// It lasted as long as it may.
    MaxDuration,
    /// The endpoint that it had went away.
    Withdrawn,
    /// Policy became different and no longer allows it.
    Revoked,
    /// A fault that a route asks for: it was reset on purpose.
    FaultAborted,
    /// The shadow could not keep up with the client, or did not end in time after it: its copy was given up.
    MirrorBehind,
    /// The agent stopped.
    AgentShutdown,
    /// The agent gave up for a reason of its own.
    InternalError,
}

impl Outcome {
    /// As a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ResetByClient => "reset_by_client",
            Self::ResetByServer => "reset_by_server",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::RefusedPolicy => "refused_policy",
            Self::RefusedByPeer => "refused_by_peer",
            Self::NoEndpoint => "no_endpoint",
            Self::NoRoute => "no_route",
            Self::Overflow => "overflow",
            Self::TlsFailed => "tls_failed",
            Self::IdleTimeout => "idle_timeout",
            Self::MaxDuration => "max_duration",
            Self::Withdrawn => "withdrawn",
            Self::Revoked => "revoked",
            Self::FaultAborted => "fault_aborted",
            Self::MirrorBehind => "mirror_behind",
            Self::AgentShutdown => "agent_shutdown",
            Self::InternalError => "internal_error",
        }
    }

    /// Envoy's name for it (access log, `%RESPONSE_FLAGS%`).
    pub const fn flags(self) -> ResponseFlags {
        match self {
            Self::Closed => ResponseFlags::None,
            Self::ResetByClient => ResponseFlags::DownstreamTermination,
            Self::ResetByServer | Self::Withdrawn => ResponseFlags::UpstreamTermination,
            Self::ConnectFailed | Self::ConnectTimeout | Self::RefusedByPeer | Self::TlsFailed => {
                ResponseFlags::UpstreamFailure
            }
            Self::RefusedPolicy | Self::Revoked => ResponseFlags::Denied,
            Self::NoEndpoint => ResponseFlags::NoHealthyUpstream,
            Self::NoRoute => ResponseFlags::NoRoute,
            Self::Overflow => ResponseFlags::UpstreamOverflow,
            Self::IdleTimeout => ResponseFlags::IdleTimeout,
            Self::FaultAborted => ResponseFlags::FaultInjected,
            Self::MaxDuration => ResponseFlags::DurationTimeout,
            Self::AgentShutdown | Self::InternalError | Self::MirrorBehind => ResponseFlags::LocalReset,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Envoy's response flags, as far as layer 4 has them; `DENY` is ztunnel's, Envoy has none for policy at layer 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ResponseFlags {
    /// Nothing to say.
    #[serde(rename = "-")]
    None,
    /// Upstream connection failure.
    #[serde(rename = "UF")]
    UpstreamFailure,
    /// Upstream connection failure, at as many tries as there may be, which were several.
    #[serde(rename = "UF,URX")]
    UpstreamRetryLimit,
    /// No healthy upstream.
    #[serde(rename = "UH")]
    NoHealthyUpstream,
    /// Upstream overflow.
    #[serde(rename = "UO")]
    UpstreamOverflow,
    /// Upstream connection termination.
    #[serde(rename = "UC")]
    UpstreamTermination,
    /// Downstream connection termination.
    #[serde(rename = "DC")]
    DownstreamTermination,
    /// No route.
    #[serde(rename = "NR")]
    NoRoute,
    /// Idle timeout.
    #[serde(rename = "SI")]
    IdleTimeout,
    /// Duration timeout.
    #[serde(rename = "DT")]
    DurationTimeout,
    /// Local reset.
    #[serde(rename = "LR")]
    LocalReset,
    /// Denied by policy.
    #[serde(rename = "DENY")]
    Denied,
    /// Aborted on purpose (`fault.abort`).
    #[serde(rename = "FI")]
    FaultInjected,
}

impl ResponseFlags {
    /// The same where retries were made and have not helped.
    #[must_use]
    pub const fn after_retries(self) -> Self {
        match self {
            Self::UpstreamFailure => Self::UpstreamRetryLimit,
            other => other,
        }
    }

    /// As a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::UpstreamFailure => "UF",
            Self::UpstreamRetryLimit => "UF,URX",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamOverflow => "UO",
            Self::UpstreamTermination => "UC",
            Self::DownstreamTermination => "DC",
            Self::NoRoute => "NR",
            Self::IdleTimeout => "SI",
            Self::DurationTimeout => "DT",
            Self::LocalReset => "LR",
            Self::Denied => "DENY",
            Self::FaultInjected => "FI",
        }
    }
}

/// All of Envoy's flags for one connection, joined by a comma: how it ended, after `DI` where it was delayed on purpose
/// (`fault.delay`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct FlowFlags {
    /// Whether it was delayed on purpose.
    pub delayed: bool,
    /// How it ended.
    pub end: ResponseFlags,
}

/// What `DI` stands for: delay injected.
const DELAYED: &str = "DI";

impl fmt::Display for FlowFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.delayed, self.end) {
            (false, end) => f.write_str(end.as_str()),
            (true, ResponseFlags::None) => f.write_str(DELAYED),
            (true, end) => write!(f, "{DELAYED},{}", end.as_str()),
        }
    }
}

impl From<ResponseFlags> for FlowFlags {
    fn from(end: ResponseFlags) -> Self {
        Self { delayed: false, end }
    }
}

impl From<FlowFlags> for String {
    fn from(flags: FlowFlags) -> Self {
        flags.to_string()
    }
}

impl TryFrom<String> for FlowFlags {
    type Error = serde::de::value::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (delayed, end) = match text.strip_prefix(DELAYED) {
            Some("") => return Ok(Self { delayed: true, end: ResponseFlags::None }),
            Some(end) => (true, end.trim_start_matches(',')),
            None => (false, text.as_str()),
        };
        Ok(Self { delayed, end: ResponseFlags::deserialize(end.into_deserializer())? })
    }
}

/// One end of a flow; what is not known is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Party {
    /// Address as seen at layer 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// What the pod belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// Its namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<WorkloadUid>,
    /// Identity: authenticated where the flow's security is mutual TLS, presumed from the address otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Istio's canonical service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical_service: Option<Arc<str>>,
    /// Istio's canonical revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical_revision: Option<Arc<str>>,
}

/// The service that the client asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAt {
    /// Fully qualified host.
    pub host: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The port asked for.
    pub port: u16,
}

/// What `AuthorizationPolicy` said of a flow at its destination, a refusal aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyMark {
    /// The ALLOW rule that let it pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_by: Option<String>,
    /// Why it would have been refused if the policies that are dry runs were in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<String>,
    /// AUDIT rules that matched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audited: Vec<String>,
}

/// One connection, from its opening to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// Number of the record, given by the log; counts up from the agent's start.
    pub id: u64,
    /// When it was opened, in milliseconds since the Unix epoch.
    pub start: u64,
    /// How long it lasted, in milliseconds.
    pub duration_ms: u64,
    /// Who saw it.
    pub reporter: Reporter,
    /// Which way it went.
    pub direction: Direction,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// What the client asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_destination: Option<SocketAddr>,
    /// The service that this belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceAt>,
    /// Bytes from the client to the server, whoever reports.
    pub bytes_sent: u64,
    /// Bytes from the server to the client, whoever reports.
    pub bytes_received: u64,
    /// How it was protected.
    pub security: Security,
    /// How it ended.
    pub outcome: Outcome,
    /// Envoy's name for that.
    pub response_flags: FlowFlags,
    /// What went wrong, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What policy said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Box<PolicyMark>>,
    /// Smoothed round-trip time in microseconds, from the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub srtt_us: Option<u32>,
    /// Segments sent again, from the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u32>,
}

/// The last flows, and those to come. Used from any runtime; recording takes a short lock.
#[derive(Debug)]
pub struct FlowLog {
    next_id: AtomicU64,
    last: Mutex<VecDeque<Arc<FlowRecord>>>,
    followers: broadcast::Sender<Arc<FlowRecord>>,
}

impl Default for FlowLog {
    fn default() -> Self {
        Self {
            next_id: AtomicU64::new(1),
            last: Mutex::new(VecDeque::with_capacity(CAPACITY)),
            followers: broadcast::Sender::new(FOLLOWER_CAPACITY),
        }
    }
}

impl FlowLog {
    /// Adds a record and gives it its number.
    pub fn record(&self, mut record: FlowRecord) -> Arc<FlowRecord> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        record.id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let record = Arc::new(record);
        let oldest = if last.len() == CAPACITY { last.pop_front() } else { None };
        last.push_back(Arc::clone(&record));
        // Under the lock, so that a new follower neither misses a record nor sees one twice. No follower: no matter.
        let _ = self.followers.send(Arc::clone(&record));
        drop(last);
        drop(oldest);
        record
    }

    /// The last `limit` records, oldest first.
    pub fn last(&self, limit: usize) -> Vec<Arc<FlowRecord>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().skip(last.len().saturating_sub(limit)).map(Arc::clone).collect()
    }

    /// The last `limit` records and all that follow them. A follower that is slow misses records and is told.
    pub fn follow(&self, limit: usize) -> (Vec<Arc<FlowRecord>>, broadcast::Receiver<Arc<FlowRecord>>) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let records = last.iter().skip(last.len().saturating_sub(limit)).map(Arc::clone).collect();
        (records, self.followers.subscribe())
    }
}

#[cfg(test)]
pub(crate) fn example() -> FlowRecord {
    FlowRecord {
        id: 0,
        start: 1_700_000_000_000,
        duration_ms: 12,
        reporter: Reporter::Source,
        direction: Direction::Outbound,
        source: Party {
            address: Some(SocketAddr::from(([10, 0, 0, 1], 40000))),
            workload: Some("productpage".into()),
            namespace: Some("default".into()),
            pod: Some(WorkloadUid::pod("default", "productpage-1")),
            ..Party::default()
        },
        destination: Party {
            address: Some(SocketAddr::from(([10, 0, 0, 2], 9080))),
            workload: Some("reviews-v2".into()),
            namespace: Some("default".into()),
            ..Party::default()
        },
        original_destination: Some(SocketAddr::from(([10, 96, 0, 1], 80))),
        service: Some(ServiceAt {
            host: "reviews.default.svc.cluster.local".into(),
            namespace: "default".into(),
            name: "reviews".into(),
            port: 80,
        }),
        bytes_sent: 10,
        bytes_received: 20,
        security: Security::MutualTls,
        outcome: Outcome::Closed,
        response_flags: ResponseFlags::None.into(),
        error: None,
        policy: None,
        srtt_us: None,
        retransmits: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_in_order() {
        let log = FlowLog::default();
        for _ in 0..CAPACITY + 10 {
            log.record(example());
        }
        assert_eq!(log.last(usize::MAX).len(), CAPACITY);
        let ids: Vec<u64> = log.last(3).iter().map(|record| record.id).collect();
        let newest = CAPACITY as u64 + 10;
        assert_eq!(ids, [newest - 2, newest - 1, newest]);
        assert!(log.last(0).is_empty());
    }

    #[tokio::test]
    async fn a_follower_misses_nothing_and_sees_nothing_twice() {
        let log = FlowLog::default();
        log.record(example());
        let (before, mut after) = log.follow(10);
        log.record(example());
        assert_eq!(before.iter().map(|record| record.id).collect::<Vec<_>>(), [1]);
        assert_eq!(after.recv().await.unwrap().id, 2);
        assert!(after.try_recv().is_err());
    }

    #[test]
    fn a_record_is_read_as_it_is_written() {
        let text = serde_json::to_string(&example()).unwrap();
        assert!(
            text.contains(r#""security":"mutual_tls""#) && text.contains(r#""response_flags":"-""#),
            "{text}"
        );
        assert!(!text.contains("null"), "{text}");
        assert_eq!(serde_json::from_str::<FlowRecord>(&text).unwrap(), example());
    }

    #[test]
    fn outcomes_have_envoys_flags() {
        let cases = [
            (Outcome::Closed, "-"),
            (Outcome::ResetByClient, "DC"),
            (Outcome::ResetByServer, "UC"),
            (Outcome::ConnectFailed, "UF"),
            (Outcome::NoEndpoint, "UH"),
            (Outcome::Overflow, "UO"),
            (Outcome::IdleTimeout, "SI"),
            (Outcome::MaxDuration, "DT"),
            (Outcome::NoRoute, "NR"),
            (Outcome::RefusedPolicy, "DENY"),
            (Outcome::FaultAborted, "FI"),
            (Outcome::MirrorBehind, "LR"),
        ];
        for (outcome, flags) in cases {
            assert_eq!(outcome.flags().as_str(), flags, "{outcome}");
            let label = serde_json::to_value(outcome).unwrap();
            assert_eq!(label, outcome.as_str());
        }
        assert_eq!(Outcome::ConnectTimeout.flags().after_retries().as_str(), "UF,URX");
        assert_eq!(Outcome::NoEndpoint.flags().after_retries().as_str(), "UH");
    }

    #[test]
    fn a_delay_goes_before_how_it_ended() {
        for (delayed, end, text) in [
            (false, ResponseFlags::None, "-"),
            (false, ResponseFlags::UpstreamFailure, "UF"),
            (true, ResponseFlags::None, "DI"),
            (true, ResponseFlags::FaultInjected, "DI,FI"),
        ] {
            let flags = FlowFlags { delayed, end };
            assert_eq!(serde_json::to_value(flags).unwrap(), text);
            assert_eq!(serde_json::from_value::<FlowFlags>(text.into()).unwrap(), flags);
        }
        serde_json::from_value::<FlowFlags>("XX".into()).unwrap_err();
    }
}
