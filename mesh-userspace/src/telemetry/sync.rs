//! How far the kernel follows what was published: kube-proxy's metrics under its own names, ours beside them, and the
//! answer to its health checks.
//!
//! Names, help and buckets are those of `pkg/proxy/metrics` in Kubernetes 1.36. A round writes both address families, so
//! both series get it, as from kube-proxy's two.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::Registry;

use super::metrics::Labels;
use crate::model::{Route, Service, ServiceName, ServicePort, Snapshot, TrafficPolicy};
use crate::source::ChangeLog;

/// How long a published change may wait before the node counts as unhealthy: twice kube-proxy's `--sync-period`.
const OVERDUE: Duration = Duration::from_mins(1);
/// Label values of `ip_family`.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

type Histograms = Family<Labels<1>, Histogram, fn() -> Histogram>;
type Seconds = Family<Labels<1>, Gauge<f64, AtomicU64>>;

/// kube-proxy's metrics.
#[derive(Clone)]
struct Proxy {
    all: Histograms,
    full: Histograms,
    partial: Histograms,
    programming: Histograms,
    last: Seconds,
    last_queued: Seconds,
    endpoints_pending: Gauge,
    endpoints: Counter,
    services_pending: Gauge,
    services: Counter,
    no_local_endpoints: Family<Labels<2>, Gauge>,
    without_local: Arc<Mutex<WithoutLocal>>,
    healthz: Family<Labels<1>, Counter>,
    livez: Family<Labels<1>, Counter>,
}

impl Default for Proxy {
    fn default() -> Self {
        let rounds = || Histograms::new_with_constructor(round_histogram);
        Self {
            all: rounds(),
            full: rounds(),
            partial: rounds(),
            programming: Histograms::new_with_constructor(programming_histogram),
            last: Family::default(),
            last_queued: Family::default(),
            endpoints_pending: Gauge::default(),
            endpoints: Counter::default(),
            services_pending: Gauge::default(),
            services: Counter::default(),
            no_local_endpoints: Family::default(),
            without_local: Arc::default(),
            healthz: Family::default(),
            livez: Family::default(),
        }
    }
}

fn round_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

fn programming_histogram() -> Histogram {
    let buckets = std::iter::once(0.0)
        .chain(linear_buckets(0.25, 0.25, 2))
        .chain(linear_buckets(1.0, 1.0, 59))
        .chain(linear_buckets(60.0, 5.0, 12))
        .chain(linear_buckets(120.0, 30.0, 7));
    Histogram::new(buckets)
}

/// Ours: finer, because a round takes microseconds.
fn own_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 18))
}

/// Whether the kernel follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncHealth {
    /// When what was published last came into force; `None`: nothing has yet.
    pub last_updated: Option<SystemTime>,
    /// Nothing waits for longer than it may.
    pub in_time: bool,
}

/// Counts the rounds in which the kernel is brought in line with what was published.
pub struct SyncRecorder {
    changes: Arc<ChangeLog>,
    proxy: Proxy,
    rounds: Histograms,
    errors: Counter,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_updated: Option<SystemTime>,
    /// A round has been: the next one costs what changed. The first compares everything.
    follows: bool,
}

impl fmt::Debug for SyncRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncRecorder").field("state", &self.state).finish_non_exhaustive()
    }
}

impl SyncRecorder {
    /// Follows what this feed publishes.
    pub fn new(changes: Arc<ChangeLog>) -> Self {
        Self {
            changes,
            proxy: Proxy::default(),
            rounds: Histograms::new_with_constructor(own_histogram),
            errors: Counter::default(),
            state: Mutex::default(),
        }
    }

    /// Registers the agent's own metrics of this.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "mesh_sync_duration_seconds",
            "Time to bring the kernel in line with a snapshot, by kind: full (everything compared) or partial",
            self.rounds.clone(),
        );
        registry.register(
            "mesh_sync_errors",
            "Writes to kernel maps that failed; what was in force before stays, and is tried again",
            self.errors.clone(),
        );
    }

    /// Registers kube-proxy's.
    pub(super) fn register_proxy(&self, registry: &mut Registry) {
        let Proxy { all, full, partial, programming, last, last_queued, .. } = self.proxy.clone();
        let mut register = |name: &str, help: &str, metric: Histograms| {
            registry.register(format!("kubeproxy_{name}_duration_seconds"), help, metric);
        };
        register("sync_proxy_rules", "SyncProxyRules latency in seconds", all);
        register("sync_full_proxy_rules", "SyncProxyRules latency in seconds for full resyncs", full);
        register(
            "sync_partial_proxy_rules",
            "SyncProxyRules latency in seconds for partial resyncs",
            partial,
        );
        register("network_programming", "In Cluster Network Programming Latency in seconds", programming);
        let mut register = |name: &str, help: &str, metric: Seconds| {
            registry.register(format!("kubeproxy_sync_proxy_rules_{name}_timestamp_seconds"), help, metric);
        };
        register("last", "The last time proxy rules were successfully synced", last);
        register("last_queued", "The last time a sync of proxy rules was queued", last_queued);
        let Proxy { endpoints_pending, endpoints, services_pending, services, .. } = self.proxy.clone();
        let name = |name: &str| format!("kubeproxy_sync_proxy_rules_{name}");
        let pending = name("endpoint_changes_pending");
        registry.register(pending, "Pending proxy rules Endpoint changes", endpoints_pending);
        registry.register(name("endpoint_changes"), "Cumulative proxy rules Endpoint changes", endpoints);
        let pending = name("service_changes_pending");
        registry.register(pending, "Pending proxy rules Service changes", services_pending);
        registry.register(name("service_changes"), "Cumulative proxy rules Service changes", services);
        let Proxy { no_local_endpoints, healthz, livez, .. } = self.proxy.clone();
        registry.register(
            name("no_local_endpoints_total"),
            "Number of services with a Local traffic policy and no endpoints",
            no_local_endpoints,
        );
        registry.register("kubeproxy_proxy_healthz", "Cumulative proxy healthz HTTP status", healthz);
        registry.register("kubeproxy_proxy_livez", "Cumulative proxy livez HTTP status", livez);
    }

    /// A round ended that was to put a snapshot in force: what it took, and how many writes failed.
    pub fn synced(&self, generation: u64, took: Duration, errors: usize) {
        let now = SystemTime::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_partial = std::mem::replace(&mut state.follows, true);
        let (kind, of_kind) =
            if is_partial { ("partial", &self.proxy.partial) } else { ("full", &self.proxy.full) };
        self.rounds.get_or_create_owned(&[("kind", kind.to_owned())]).observe(took.as_secs_f64());
        self.errors.inc_by(errors as u64);
        for histograms in [&self.proxy.all, of_kind] {
            each_family(|family| histograms.get_or_create_owned(family).observe(took.as_secs_f64()));
        }
        if errors > 0 {
            // It waits on: `changes` has it until a round succeeds.
            return;
        }
        state.last_updated = Some(now);
        each_family(|family| {
            self.proxy.last.get_or_create_owned(family).set(unix(now));
        });
        for trigger in self.changes.in_force(generation).iter().flat_map(|entry| &entry.triggers) {
            let delay = now.duration_since(*trigger).unwrap_or_default().as_secs_f64();
            each_family(|family| self.proxy.programming.get_or_create_owned(family).observe(delay));
        }
    }

    /// Whether the kernel follows.
    pub fn health(&self) -> SyncHealth {
        let last_updated = self.state.lock().unwrap_or_else(PoisonError::into_inner).last_updated;
        let waits = self.changes.oldest().and_then(|since| SystemTime::now().duration_since(since).ok());
        SyncHealth { last_updated, in_time: waits.is_none_or(|waits| waits < OVERDUE) }
    }

    /// A health check was answered with this status, on `/healthz` (of load balancers) or `/livez`.
    pub fn health_answered(&self, is_healthz: bool, status: u16) {
        let family = if is_healthz { &self.proxy.healthz } else { &self.proxy.livez };
        family.get_or_create_owned(&[("code", status.to_string())]).inc();
    }

    /// Sets, before a scrape, what is kept elsewhere.
    pub fn refresh(&self, snapshot: &Snapshot) {
        let gauge = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        let (services, endpoints) = self.changes.waiting();
        gauge(&self.proxy.services_pending, services);
        gauge(&self.proxy.endpoints_pending, endpoints);
        let totals = self.changes.totals();
        self.proxy.services.inner().store(totals.services, std::sync::atomic::Ordering::Relaxed);
        self.proxy.endpoints.inner().store(totals.endpoints, std::sync::atomic::Ordering::Relaxed);
        if let Some(last) = totals.last {
            each_family(|family| {
                self.proxy.last_queued.get_or_create_owned(family).set(unix(last));
            });
        }
        let counts = {
            let mut without_local = self.proxy.without_local.lock().unwrap_or_else(PoisonError::into_inner);
            without_local.follow(snapshot)
        };
        for (policy, counts) in ["internal", "external"].into_iter().zip(counts) {
            for (family, count) in FAMILIES.into_iter().zip(counts) {
                let labels = [("ip_family", family.to_owned()), ("traffic_policy", policy.to_owned())];
                gauge(&self.proxy.no_local_endpoints.get_or_create_owned(&labels), count);
            }
        }
    }
}

fn each_family(mut act: impl FnMut(&Labels<1>)) {
    for family in FAMILIES {
        act(&[("ip_family", family.to_owned())]);
    }
}

/// Services under the policy Local that have endpoints and none of them here, kept up to date at the cost of what changed.
#[derive(Debug, Default)]
struct WithoutLocal {
    seen: OrdMap<ServiceName, Arc<Service>>,
    counts: Counts,
}

/// Under the internal and under the external policy, each by family.
type Counts = [[u64; 2]; 2];

impl WithoutLocal {
    fn follow(&mut self, snapshot: &Snapshot) -> Counts {
        let (mut more, mut less) = (Counts::default(), Counts::default());
        for change in self.seen.diff(&snapshot.services) {
            let (old, new) = match change {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
            };
            for (service, counts) in [(old, &mut less), (new, &mut more)] {
                if let Some(service) = service {
                    count(service, counts);
                }
            }
        }
        let all = self.counts.iter_mut().flatten();
        for (count, (more, less)) in all.zip(more.iter().flatten().zip(less.iter().flatten())) {
            *count = (*count + more).saturating_sub(*less);
        }
        self.seen = snapshot.services.clone();
        self.counts
    }
}

/// Adds a service to the counts where it has no endpoint here.
fn count(service: &Service, counts: &mut Counts) {
    let is_empty = |route: &Route, v4: bool| if v4 { &route.v4 } else { &route.v6 }.backends().is_empty();
    let lacks = |port: &ServicePort, v4: bool| {
        !is_empty(&port.route, v4) && is_empty(port.route(TrafficPolicy::Local), v4)
    };
    for (policy, counts) in [service.internal, service.external.policy].into_iter().zip(counts) {
        for (count, v4) in counts.iter_mut().zip([true, false]) {
            let is_without =
                policy == TrafficPolicy::Local && service.ports.iter().any(|port| lacks(port, v4));
            *count += u64::from(is_without);
        }
    }
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn services_without_an_endpoint_here_are_counted_at_the_cost_of_what_changed() {
        use crate::model::{MeshConfig, NodeName};
        use crate::resources::{Change, Kind, ObjectRef, Translator, decode};

        let mesh = MeshConfig { node: Some(NodeName::new("here")), ..MeshConfig::default() };
        let mut translator = Translator::new(mesh);
        let mut without = WithoutLocal::default();
        let mut follow = |changes: Vec<Change>| without.follow(&translator.apply(changes).0);
        let upsert =
            |text: &str| decode(text).objects.into_iter().map(|item| Change::Upsert(item.object)).collect();
        let service = |name: &str, number: u8, policy: &str| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\n\
                 spec: {{type: NodePort, clusterIP: 10.96.0.{number}, clusterIPs: [10.96.0.{number}], {policy}, ports: [{{port: 80, nodePort: 3000{number}}}]}}\n"
            )
        };
        let slice = |name: &str, node: &str| {
            format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: a, labels: {{kubernetes.io/service-name: {name}}}}}\n\
                 addressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{{addresses: [10.0.0.1], nodeName: {node}}}]\n"
            )
        };
        let (internal, external) = ("internalTrafficPolicy: Local", "externalTrafficPolicy: Local");
        assert_eq!(
            follow(upsert(&(service("i", 1, internal) + &service("e", 2, external)))),
            [[0, 0], [0, 0]]
        );
        assert_eq!(follow(upsert(&(slice("i", "there") + &slice("e", "there")))), [[1, 0], [1, 0]]);
        assert_eq!(follow(Vec::new()), [[1, 0], [1, 0]]);
        assert_eq!(follow(upsert(&slice("i", "here"))), [[0, 0], [1, 0]]);
        assert_eq!(follow(upsert(&service("e", 2, "sessionAffinity: None"))), [[0, 0], [0, 0]]);
        assert_eq!(follow(upsert(&(slice("i", "there") + &service("e", 2, external)))), [[1, 0], [1, 0]]);
        assert_eq!(follow(vec![Change::Delete(ObjectRef::new(Kind::Service, "a", "i"))]), [[0, 0], [1, 0]]);
    }

    #[test]
    fn rounds_are_counted_under_kube_proxys_names() {
        let metrics = Metrics::following("1", Arc::default(), true);
        let sync = metrics.sync();
        assert_eq!(sync.health(), SyncHealth { last_updated: None, in_time: true });
        sync.synced(1, Duration::from_millis(3), 0);
        sync.synced(2, Duration::from_micros(60), 2);
        sync.synced(2, Duration::from_micros(60), 0);
        sync.health_answered(true, 503);
        sync.refresh(&Snapshot::default());
        assert!(sync.health().last_updated.is_some());
        let text = metrics.render_proxy();
        for line in [
            "# HELP kubeproxy_sync_proxy_rules_duration_seconds SyncProxyRules latency in seconds.",
            "# TYPE kubeproxy_sync_full_proxy_rules_duration_seconds histogram",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 3",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 0",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 0",
        ] {
            assert!(text.lines().any(|each| each == line), "{line}\nnot in\n{text}");
        }
        assert!(!text.contains("istio_"), "kube-proxy's alone");
        let all = metrics.render();
        assert!(all.contains("kubeproxy_") && all.contains("mesh_sync_errors_total 2"), "{all}");
    }

    #[test]
    fn without_replacing_it_nothing_bears_its_name() {
        let metrics = Metrics::new("1");
        metrics.sync().synced(1, Duration::from_millis(3), 0);
        assert!(!metrics.render().contains("kubeproxy_"));
        assert!(metrics.render().contains("mesh_sync_duration_seconds_count{kind=\"full\"} 1"));
    }
}
