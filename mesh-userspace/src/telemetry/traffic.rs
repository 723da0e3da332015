//! Istio's standard TCP metrics (`istio_tcp_*`), with Istio's labels in Istio's order.
//!
//! As in Istio, `received` counts what the client sent and `sent` what the server answered, for both reporters
//! (istio/istio#32399); [`super::FlowRecord`] counts from the client's side.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{FlowFlags, Party, Reporter, ResponseFlags, Security, ServiceAt};

/// What a label says when nothing is known, as in Istio.
const UNKNOWN: &str = "unknown";
/// Most label sets; further ones are counted under [`TrafficLabels::overflow`].
const MAX_LABEL_SETS: usize = 8192;

/// The labels of a connection, all but how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrafficLabels {
    reporter: Reporter,
    security: Security,
    source: PartyLabels,
    destination: PartyLabels,
    service: Option<[Arc<str>; 3]>,
}

/// One end; `None` is `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct PartyLabels {
    workload: Option<Arc<str>>,
    namespace: Option<Arc<str>>,
    canonical_service: Option<Arc<str>>,
    canonical_revision: Option<Arc<str>>,
    principal: Option<Arc<str>>,
    cluster: Option<Arc<str>>,
}

impl PartyLabels {
    fn new(party: &Party, cluster: &Arc<str>) -> Self {
        Self {
            workload: party.workload.clone(),
            namespace: party.namespace.clone(),
            canonical_service: party.canonical_service.clone(),
            canonical_revision: party.canonical_revision.clone(),
            principal: party.identity.as_ref().map(|identity| identity.to_string().into()),
            cluster: party.workload.is_some().then(|| Arc::clone(cluster)),
        }
    }
}

impl TrafficLabels {
    /// The labels of a connection between these. `cluster` names the cluster of the workloads known here.
    pub fn new(
        reporter: Reporter,
        security: Security,
        (source, destination): (&Party, &Party),
        service: Option<&ServiceAt>,
        cluster: &Arc<str>,
    ) -> Self {
        Self {
            reporter,
            security,
            source: PartyLabels::new(source, cluster),
            destination: PartyLabels::new(destination, cluster),
            service: service.map(|at| [&at.host, &at.namespace, &at.name].map(Arc::clone)),
        }
    }

    /// What is counted once there are too many label sets: nothing but who reports.
    fn overflow(&self) -> Self {
        Self {
            reporter: self.reporter,
            security: self.security,
            source: PartyLabels::default(),
            destination: PartyLabels::default(),
            service: None,
        }
    }
}

/// One time series: labels, and how the connection ended (`-` where it is not the closing that is counted).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Series(Arc<TrafficLabels>, FlowFlags);

impl EncodeLabelSet for Series {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        use prometheus_client::encoding::EncodeLabel as _;
        let Self(labels, flags) = self;
        let (from, to) = (&labels.source, &labels.destination);
        let known = |label: &Option<Arc<str>>| label.clone();
        let service = |part: usize| labels.service.as_ref().map(|parts| Arc::clone(&parts[part]));
        let named: [(&str, Option<Arc<str>>); 19] = [
            ("source_workload", known(&from.workload)),
            ("source_canonical_service", known(&from.canonical_service)),
            ("source_canonical_revision", known(&from.canonical_revision)),
            ("source_workload_namespace", known(&from.namespace)),
            ("source_principal", known(&from.principal)),
            ("source_app", known(&from.canonical_service)),
            ("source_version", known(&from.canonical_revision)),
            ("source_cluster", known(&from.cluster)),
            ("destination_service", service(0)),
            ("destination_service_namespace", service(1)),
            ("destination_service_name", service(2)),
            ("destination_workload", known(&to.workload)),
            ("destination_canonical_service", known(&to.canonical_service)),
            ("destination_canonical_revision", known(&to.canonical_revision)),
            ("destination_workload_namespace", known(&to.namespace)),
            ("destination_principal", known(&to.principal)),
            ("destination_app", known(&to.canonical_service)),
            ("destination_version", known(&to.canonical_revision)),
            ("destination_cluster", known(&to.cluster)),
        ];
        ("reporter", labels.reporter.as_str()).encode(encoder.encode_label())?;
        for (name, value) in &named {
            (*name, value.as_deref().unwrap_or(UNKNOWN)).encode(encoder.encode_label())?;
        }
        ("request_protocol", "tcp").encode(encoder.encode_label())?;
        ("response_flags", flags.to_string()).encode(encoder.encode_label())?;
        ("connection_security_policy", labels.security.as_str()).encode(encoder.encode_label())
    }
}

type Counters = Family<Series, Counter>;

/// The four families, and the handles that connections hold.
#[derive(Debug, Default)]
pub struct TrafficMetrics {
    opened: Counters,
    closed: Counters,
    sent: Counters,
    received: Counters,
    handles: Mutex<HashMap<Arc<TrafficLabels>, ConnectionMetrics>>,
    overflows: Counter,
}

/// Counters of one label set, resolved once; a clone costs a few reference counts.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    labels: Arc<TrafficLabels>,
    opened: Counter,
    closed: Counters,
    sent: Counter,
    received: Counter,
}

impl TrafficMetrics {
    /// Adds the families to a registry, under the names that Istio gives them.
    pub fn register(&self, registry: &mut Registry) {
        // The encoder adds `_total`.
        let families = [
            ("istio_tcp_connections_opened", "The total number of TCP connections opened", &self.opened),
            ("istio_tcp_connections_closed", "The total number of TCP connections closed", &self.closed),
            (
                "istio_tcp_received_bytes",
                "The size of total bytes received during request in case of a TCP connection",
                &self.received,
            ),
            (
                "istio_tcp_sent_bytes",
                "The size of total bytes sent during response in case of a TCP connection",
                &self.sent,
            ),
        ];
        for (name, help, family) in families {
            registry.register(name, help, family.clone());
        }
        registry.register(
            "mesh_traffic_label_overflows",
            "Connections counted without labels because there were too many label sets",
            self.overflows.clone(),
        );
    }

    /// The counters of a connection with these labels.
    pub fn connection(&self, labels: TrafficLabels) -> ConnectionMetrics {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = handles.get(&labels) {
            return handle.clone();
        }
        let labels = if handles.len() >= MAX_LABEL_SETS {
            self.overflows.inc();
            labels.overflow()
        } else {
            labels
        };
        if let Some(handle) = handles.get(&labels) {
            return handle.clone();
        }
        let labels = Arc::new(labels);
        let series = Series(Arc::clone(&labels), ResponseFlags::None.into());
        let handle = ConnectionMetrics {
            labels: Arc::clone(&labels),
            opened: self.opened.get_or_create_owned(&series),
            closed: self.closed.clone(),
            sent: self.sent.get_or_create_owned(&series),
            received: self.received.get_or_create_owned(&series),
        };
        handles.insert(labels, handle.clone());
        handle
    }
}

impl ConnectionMetrics {
    /// A connection was opened.
    pub fn opened(&self) {
        self.opened.inc();
    }

    /// So much more went from the client to the server, and back.
    pub fn add_bytes(&self, to_server: u64, to_client: u64) {
        self.received.inc_by(to_server);
        self.sent.inc_by(to_client);
    }

    /// A connection was closed.
    pub fn closed(&self, flags: FlowFlags) {
        self.closed.get_or_create_owned(&Series(Arc::clone(&self.labels), flags)).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::flow::example;

    fn labels() -> TrafficLabels {
        let flow = example();
        let cluster = Arc::from("Kubernetes");
        let parties = (&flow.source, &flow.destination);
        TrafficLabels::new(flow.reporter, flow.security, parties, flow.service.as_ref(), &cluster)
    }

    fn render(metrics: &TrafficMetrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn names_and_labels_are_istios() {
        let metrics = TrafficMetrics::default();
        let connection = metrics.connection(labels());
        connection.opened();
        connection.add_bytes(10, 20);
        connection.closed(ResponseFlags::UpstreamFailure.into());
        let text = render(&metrics);
        let labels = |flags: &str| {
            format!(
                "{{reporter=\"source\",source_workload=\"productpage\",source_canonical_service=\"unknown\",\
                 source_canonical_revision=\"unknown\",source_workload_namespace=\"default\",\
                 source_principal=\"unknown\",source_app=\"unknown\",source_version=\"unknown\",\
                 source_cluster=\"Kubernetes\",destination_service=\"reviews.default.svc.cluster.local\",\
                 destination_service_namespace=\"default\",destination_service_name=\"reviews\",\
                 destination_workload=\"reviews-v2\",destination_canonical_service=\"unknown\",\
                 destination_canonical_revision=\"unknown\",destination_workload_namespace=\"default\",\
                 destination_principal=\"unknown\",destination_app=\"unknown\",destination_version=\"unknown\",\
                 destination_cluster=\"Kubernetes\",request_protocol=\"tcp\",response_flags=\"{flags}\",\
                 connection_security_policy=\"mutual_tls\"}}"
            )
        };
        for line in [
            format!("istio_tcp_connections_opened_total{} 1", labels("-")),
            format!("istio_tcp_connections_closed_total{} 1", labels("UF")),
            format!("istio_tcp_received_bytes_total{} 10", labels("-")),
            format!("istio_tcp_sent_bytes_total{} 20", labels("-")),
        ] {
            assert!(text.lines().any(|each| each == line), "{line}\nnot in\n{text}");
        }
    }

    #[test]
    fn equal_labels_share_their_counters() {
        let metrics = TrafficMetrics::default();
        metrics.connection(labels()).opened();
        metrics.connection(labels()).opened();
        assert!(render(&metrics).contains("} 2\n"));
    }

    #[test]
    fn label_sets_are_bounded() {
        let metrics = TrafficMetrics::default();
        for number in 0..MAX_LABEL_SETS + 5 {
            let mut labels = labels();
            labels.source.workload = Some(format!("job-{number}").into());
            metrics.connection(labels).opened();
        }
        let text = render(&metrics);
        assert_eq!(text.matches("istio_tcp_connections_opened_total{").count(), MAX_LABEL_SETS + 1);
        assert!(text.contains("mesh_traffic_label_overflows_total 5\n"), "every connection counts");
    }
}
