//! The agent's metrics: Istio's for traffic, `mesh_*` for the agent itself. One declaration a metric; its doc comment
//! is its HELP text.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::declare::metrics;
use super::{ActionMetrics, BalanceMetrics, Direction, Outcome, Reporter, SyncRecorder, TrafficMetrics};
use crate::source::{ApiStatus, ChangeLog};

/// Content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Policies that have series of their own.
const MAX_POLICIES: usize = 1000;

/// One label; its values are from a closed set of the program, or as many as there are identities on the node.
pub(super) type Labels<const N: usize> = [(&'static str, String); N];

metrics! {
    "mesh_flows"
    /// Flows that ended, those that went past the agent included
    flows: Family<Labels<3>, Counter>;
    "mesh_connections_active"
    /// Connections that the agent carries now
    connections: Gauge;
    "mesh_tls_handshake_failures"
    /// TLS handshakes that failed, by the side that this agent was and the reason
    handshake_failures: Family<Labels<2>, Counter>;
    "mesh_external_refused"
    /// Connections and datagrams from outside that the agent refused, by reason
    external_refused: Family<Labels<1>, Counter>;
    "mesh_kernel_events"
    /// Events in the eBPF programs, by the reason that the program gave
    kernel_events: Family<Labels<1>, Counter>;
    "mesh_sockets_ended"
    /// Sockets that were ended because their endpoint went, by protocol and reason
    sockets_ended: Family<Labels<2>, Counter>;
    "mesh_sockets_not_ended"
    /// Sockets that should have been ended and could not, by reason, each time that it was tried
    sockets_not_ended: Family<Labels<1>, Counter>;
    "mesh_kernel_plane_attached"
    /// Whether an eBPF program is attached (1) or not (0)
    programs: Family<Labels<1>, Gauge>;
    "mesh_hbone_pool_connections"
    /// TLS connections in the HBONE pool, by state
    pool_connections: Family<Labels<1>, Gauge>;
    "mesh_hbone_pool_streams"
    /// Streams open on the HBONE pool's connections
    pool_streams: Gauge;
    "mesh_authorization_decisions"
    /// Decisions on connections to this node's enrolled pods, by effect, reason and policy; what no policy concerns is not
    /// counted
    authorization: Family<Labels<3>, Counter>;
    "mesh_certificate_expiry_timestamp_seconds"
    /// When an identity's certificate ends, in seconds since the Unix epoch
    certificate_expiry: Family<Labels<1>, Gauge>;
    "mesh_certificate_expiring"
    /// Whether a certificate is in the last quarter of its life, or past its end (1), or not (0)
    certificate_expiring: Family<Labels<1>, Gauge>;
    "mesh_certificate_failures"
    /// Certificates that could not be had or renewed, by reason
    certificate_failures: Family<Labels<1>, Counter>;
    "mesh_config_problems"
    /// Problems in the configuration that is in force, by severity
    config_problems: Family<Labels<1>, Gauge>;
    "mesh_config_generation"
    /// Generation of the snapshot that is in force
    generation: Gauge;
    "mesh_source_connected"
    /// Whether every kind that the API server has is followed (1) or not (0)
    source_connected: Family<Labels<1>, Gauge>;
    "mesh_source_objects"
    /// Objects of a kind that are known, read or not
    source_objects: Family<Labels<1>, Gauge>;
    "mesh_source_last_sync_timestamp_seconds"
    /// When the API server was last heard of a kind, in seconds since the Unix epoch: what is known is of that time at least
    source_last_sync: Family<Labels<1>, Gauge>;
    "mesh_source_errors"
    /// Listings and watches that failed, by kind and reason
    source_errors: Family<Labels<2>, Counter>;
    "mesh_source_stored"
    /// Whether the state kept on disk is in force (1), because the API server was away when the agent started
    source_stored: Gauge;
    "mesh_source_kept_timestamp_seconds"
    /// Of when the state on disk is that this agent has written last, in seconds since the Unix epoch
    source_kept: Gauge;
    "mesh_source_kept_size_bytes"
    /// Size of the state on disk that this agent has written last
    source_kept_size: Gauge;
    "mesh_source_keep_seconds"
    /// What writing it took
    source_keep_time: Gauge<f64, AtomicU64>;
    "mesh_source_keep_failures"
    /// Times that the state could not be written to disk
    source_keep_failures: Counter;
    "mesh_cni_config_mends"
    /// Times that the CNI configuration was put back after somebody else had removed or changed it
    cni_config_mends: Counter;
    "mesh_enrolled_pods"
    /// Pods of this node whose traffic the mesh carries
    enrolled_pods: Gauge;
    "mesh_pods"
    /// Pods of this node that the mesh should carry, by how far that has come
    pods: Family<Labels<1>, Gauge>;
    "mesh_pod_mends"
    /// Times that something was not as it should be and was mended, by what
    pod_mends: Family<Labels<1>, Counter>;
    "mesh_map_entries"
    /// Entries of a kernel map, counted every few seconds
    map_entries: Family<Labels<1>, Gauge>;
    "mesh_map_max_entries"
    /// Entries that a kernel map can hold
    map_max_entries: Family<Labels<1>, Gauge>;
}

type Refresh = Box<dyn Fn(&Metrics) + Send + Sync>;

/// Every metric of the agent.
pub struct Metrics {
    registry: Registry,
    proxy: Option<Registry>,
    sync: SyncRecorder,
    traffic: TrafficMetrics,
    actions: ActionMetrics,
    balance: BalanceMetrics,
    families: Families,
    /// Policies that are a label.
    policies: Mutex<HashSet<String>>,
    refresh: Mutex<Vec<Refresh>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// The metrics of an agent of this version, without a feed.
    pub fn new(version: &str) -> Self {
        Self::following(version, Arc::default(), false)
    }

    /// The metrics of an agent of this version that follows what is published; kube-proxy's are among them if the agent
    /// is in its place.
    pub fn following(version: &str, changes: Arc<ChangeLog>, replaces_kube_proxy: bool) -> Self {
        let mut registry = Registry::default();
        let (traffic, families) = (TrafficMetrics::default(), Families::default());
        let (sync, actions) = (SyncRecorder::new(changes), ActionMetrics::default());
        traffic.register(&mut registry);
        families.register(&mut registry);
        actions.register(&mut registry);
        let balance = BalanceMetrics::default();
        balance.register(&mut registry);
        sync.register(&mut registry);
        let mut proxy = replaces_kube_proxy.then(Registry::default);
        if let Some(proxy) = &mut proxy {
            sync.register_proxy(&mut registry);
            sync.register_proxy(proxy);
        }
        let labels = vec![("version", version.to_owned()), ("component", "meshd".to_owned())];
        registry.register("mesh_build", "Version of the agent", Info::new(labels));
        Self {
            registry,
            proxy,
            sync,
            traffic,
            actions,
            balance,
            families,
            policies: Mutex::default(),
            refresh: Mutex::default(),
        }
    }

    /// How far the kernel follows what was published.
    pub const fn sync(&self) -> &SyncRecorder {
        &self.sync
    }

    /// Istio's metrics.
    pub const fn traffic(&self) -> &TrafficMetrics {
        &self.traffic
    }

    /// Faults and mirrors.
    pub const fn actions(&self) -> &ActionMetrics {
        &self.actions
    }

    /// Limits, retries, outlier detection.
    pub const fn balance(&self) -> &BalanceMetrics {
        &self.balance
    }

    /// Calls `refresh` before each scrape, to set what is kept elsewhere. It must not render.
    pub fn on_scrape(&self, refresh: impl Fn(&Self) + Send + Sync + 'static) {
        self.refresh.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(refresh));
    }

    /// A flow ended.
    pub fn flow_ended(&self, reporter: Reporter, direction: Direction, outcome: Outcome) {
        let labels = [
            ("reporter", reporter.as_str().to_owned()),
            ("direction", direction.as_str().to_owned()),
            ("outcome", outcome.as_str().to_owned()),
        ];
        self.families.flows.get_or_create_owned(&labels).inc();
    }

    /// A connection that the agent carries was opened.
    pub fn connection_opened(&self) {
        self.families.connections.inc();
    }

    /// A connection that the agent carried ended.
    pub fn connection_closed(&self) {
        self.families.connections.dec();
    }

    /// Connections that the agent carries now.
    pub fn connections(&self) -> u64 {
        u64::try_from(self.families.connections.get()).unwrap_or(0)
    }

    /// A handshake failed; `side` is `client` or `server`, `reason` one of a closed set that the layer above gives.
    pub fn handshake_failed(&self, side: &'static str, reason: &'static str) {
        let labels = [("side", side.to_owned()), ("reason", reason.to_owned())];
        self.families.handshake_failures.get_or_create_owned(&labels).inc();
    }

    /// Policy decided on a connection; `policy` is `NAMESPACE/NAME`, empty where no single one did.
    pub fn authorization_decided(&self, effect: &'static str, reason: &'static str, policy: &str) {
        let policy = self.bounded_policy(policy);
        let labels =
            [("effect", effect.to_owned()), ("reason", reason.to_owned()), ("policy", policy.to_owned())];
        self.families.authorization.get_or_create_owned(&labels).inc();
    }

    /// The policy's name, or `other` once there were too many: names come and go with deployments, series only come.
    fn bounded_policy<'a>(&self, policy: &'a str) -> &'a str {
        let mut named = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        if policy.is_empty() || named.contains(policy) {
            return policy;
        }
        if named.len() >= MAX_POLICIES {
            return "other";
        }
        named.insert(policy.to_owned());
        policy
    }

    /// A connection or datagram from outside was refused by the agent; reasons are `external`'s own.
    pub fn external_refused(&self, reason: &'static str) {
        let labels = [("reason", reason.to_owned())];
        self.families.external_refused.get_or_create_owned(&labels).inc();
    }

    /// Sets a counter of the kernel plane to the value that the kernel has.
    pub fn set_kernel_events(&self, reason: &'static str, value: u64) {
        let counter = self.families.kernel_events.get_or_create_owned(&[("reason", reason.to_owned())]);
        counter.inner().store(value, Ordering::Relaxed);
    }

    /// Sockets were ended because their endpoint went.
    pub fn sockets_ended(&self, protocol: &'static str, reason: &'static str, count: u64) {
        let labels = [("protocol", protocol.to_owned()), ("reason", reason.to_owned())];
        self.families.sockets_ended.get_or_create_owned(&labels).inc_by(count);
    }

    /// Sockets should have been ended and could not.
    pub fn sockets_not_ended(&self, reason: &'static str, count: u64) {
        let labels = [("reason", reason.to_owned())];
        self.families.sockets_not_ended.get_or_create_owned(&labels).inc_by(count);
    }

    /// Whether a program is attached.
    pub fn set_attached(&self, program: &'static str, attached: bool) {
        let labels = [("program", program.to_owned())];
        self.families.programs.get_or_create_owned(&labels).set(attached.into());
    }

    /// Size of the HBONE pool: connections in use, connections idle, streams.
    pub fn set_pool(&self, active: usize, idle: usize, streams: usize) {
        for (state, count) in [("active", active), ("idle", idle)] {
            let gauge = self.families.pool_connections.get_or_create_owned(&[("state", state.to_owned())]);
            gauge.set(gauge_value(count));
        }
        self.families.pool_streams.set(gauge_value(streams));
    }

    /// The ends of all certificates (identity, Unix seconds, whether that is near); what is not among them goes away.
    pub fn set_certificates<'a>(&self, certificates: impl IntoIterator<Item = (&'a str, u64, bool)>) {
        self.families.certificate_expiry.clear();
        self.families.certificate_expiring.clear();
        for (identity, not_after, expiring) in certificates {
            let labels = [("identity", identity.to_owned())];
            let gauge = self.families.certificate_expiry.get_or_create_owned(&labels);
            gauge.set(i64::try_from(not_after).unwrap_or(i64::MAX));
            self.families.certificate_expiring.get_or_create_owned(&labels).set(expiring.into());
        }
    }

    /// A certificate could not be had.
    pub fn certificate_failed(&self, reason: &'static str) {
        let labels = [("reason", reason.to_owned())];
        self.families.certificate_failures.get_or_create_owned(&labels).inc();
    }

    /// Problems in the configuration that is in force, and what it is worth noticing in it.
    pub fn set_config(&self, generation: u64, problems: usize, notices: usize) {
        self.families.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        for (severity, count) in [("problem", problems), ("notice", notices)] {
            let labels = [("severity", severity.to_owned())];
            self.families.config_problems.get_or_create_owned(&labels).set(gauge_value(count));
        }
    }

    /// How it stands with the API server, where that is the source.
    pub fn set_source(&self, status: &ApiStatus) {
        let families = &self.families;
        let labels = [("api_server", status.url.clone())];
        families.source_connected.get_or_create_owned(&labels).set(status.connected.into());
        families.source_stored.set(status.stored.is_some().into());
        let kept = &status.kept;
        let as_of = kept.as_of.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        families.source_kept.set(i64::try_from(as_of.as_secs()).unwrap_or(i64::MAX));
        families.source_kept_size.set(i64::try_from(kept.size).unwrap_or(i64::MAX));
        families.source_keep_time.set(kept.took.as_secs_f64());
        families.source_keep_failures.inner().store(kept.failures, Ordering::Relaxed);
        for kind in &status.kinds {
            let labels = [("kind", kind.label.to_owned())];
            families.source_objects.get_or_create_owned(&labels).set(gauge_value(kind.objects));
            let heard = kind.listed.and(kind.heard).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            if let Some(heard) = heard {
                let gauge = families.source_last_sync.get_or_create_owned(&labels);
                gauge.set(i64::try_from(heard.as_secs()).unwrap_or(i64::MAX));
            }
            for (reason, count) in &kind.errors {
                let labels = [("kind", kind.label.to_owned()), ("reason", (*reason).to_owned())];
                families.source_errors.get_or_create_owned(&labels).inner().store(*count, Ordering::Relaxed);
            }
        }
    }

    /// How often the CNI configuration was put back.
    pub fn set_cni_config_mends(&self, mends: u64) {
        self.families.cni_config_mends.inner().store(mends, Ordering::Relaxed);
    }

    /// Pods enrolled on this node.
    pub fn set_enrolled(&self, pods: usize) {
        self.families.enrolled_pods.set(gauge_value(pods));
    }

    /// Pods that should be enrolled, by state.
    pub fn set_pods<const N: usize>(&self, states: [(&'static str, usize); N]) {
        for (state, pods) in states {
            let labels = [("state", state.to_owned())];
            self.families.pods.get_or_create_owned(&labels).set(gauge_value(pods));
        }
    }

    /// Something of a pod, or a program, was mended; `what` is from a closed set.
    pub fn pod_mended(&self, what: &'static str) {
        self.families.pod_mends.get_or_create_owned(&[("what", what.to_owned())]).inc();
    }

    /// How full a kernel map is.
    pub fn set_map(&self, map: &'static str, entries: u64, max_entries: u32) {
        let labels = [("map", map.to_owned())];
        let entries = i64::try_from(entries).unwrap_or(i64::MAX);
        self.families.map_entries.get_or_create_owned(&labels).set(entries);
        self.families.map_max_entries.get_or_create_owned(&labels).set(max_entries.into());
    }

    /// Everything in the `OpenMetrics` text format, of type [`CONTENT_TYPE`].
    pub fn render(&self) -> String {
        self.encode(&self.registry)
    }

    /// kube-proxy's metrics alone, for whoever looks for them where kube-proxy has them; empty if the agent is not in its
    /// place.
    pub fn render_proxy(&self) -> String {
        self.proxy.as_ref().map(|registry| self.encode(registry)).unwrap_or_default()
    }

    fn encode(&self, registry: &Registry) -> String {
        for refresh in self.refresh.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            refresh(self);
        }
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, registry) {
            tracing::error!(%error, "metrics not encoded");
        }
        text
    }
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_help() {
        let metrics = Metrics::new("1.2.3");
        metrics.handshake_failed("client", "expired");
        let text = metrics.render();
        for line in [
            "# HELP mesh_enrolled_pods Pods of this node whose traffic the mesh carries.",
            "# TYPE mesh_tls_handshake_failures counter",
            "mesh_build_info{version=\"1.2.3\",component=\"meshd\"} 1",
        ] {
            assert!(text.lines().any(|each| each == line), "{line}\nnot in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn policies_are_a_bounded_label() {
        let metrics = Metrics::new("1");
        for number in 0..MAX_POLICIES + 5 {
            metrics.authorization_decided("refused", "denied", &format!("a/{number}"));
        }
        metrics.authorization_decided("refused", "denied", "a/1");
        let text = metrics.render();
        let line = |policy: &str, count: usize| {
            format!(
                "mesh_authorization_decisions_total{{effect=\"refused\",reason=\"denied\",policy=\"{policy}\"}} {count}\n"
            )
        };
        assert!(text.contains(&line("other", 5)) && text.contains(&line("a/1", 2)), "{text}");
        assert_eq!(text.matches("mesh_authorization_decisions_total{").count(), MAX_POLICIES + 1);
    }

    #[test]
    fn values_are_set_at_the_scrape() {
        let metrics = Metrics::new("1");
        metrics.on_scrape(|metrics| {
            metrics.set_kernel_events("no_endpoint", 7);
            metrics.set_certificates([("spiffe://a/ns/b/sa/c", 1_700_000_000, true)]);
        });
        metrics.handshake_failed("server", "unknown_issuer");
        let text = metrics.render();
        for line in [
            "mesh_kernel_events_total{reason=\"no_endpoint\"} 7",
            "mesh_tls_handshake_failures_total{side=\"server\",reason=\"unknown_issuer\"} 1",
            "mesh_certificate_expiry_timestamp_seconds{identity=\"spiffe://a/ns/b/sa/c\"} 1700000000",
            "mesh_certificate_expiring{identity=\"spiffe://a/ns/b/sa/c\"} 1",
        ] {
            assert!(text.lines().any(|each| each == line), "{line}\nnot in\n{text}");
        }
    }
}
