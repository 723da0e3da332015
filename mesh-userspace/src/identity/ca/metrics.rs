//! Metrics of the authority. One declaration a metric; its doc comment is its HELP text.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::telemetry::declare::metrics;

type Labels<const N: usize> = [(&'static str, String); N];

metrics! {
    "mesh_ca_requests"
    /// Requests for a certificate, by outcome and reason
    requests: Family<Labels<2>, Counter>;
    "mesh_ca_connections"
    /// Connections that are open now
    connections: Gauge;
    "mesh_ca_connections_refused"
    /// Connections that never brought a request: refused, failed in the handshake, or brought something else
    refused: Family<Labels<1>, Counter>;
    "mesh_ca_root_expiry_timestamp_seconds"
    /// When the first of the roots ends, in seconds since the Unix epoch
    root_expiry: Gauge;
    "mesh_ca_serving_certificate_expiry_timestamp_seconds"
    /// When the certificate ends that the authority itself shows, in seconds since the Unix epoch
    serving_expiry: Gauge;
}

/// Every metric of the authority.
pub struct CaMetrics {
    registry: Registry,
    families: Families,
}

impl fmt::Debug for CaMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaMetrics").finish_non_exhaustive()
    }
}

impl CaMetrics {
    /// The metrics of an authority of this version.
    pub fn new(version: &str) -> Self {
        let (mut registry, families) = (Registry::default(), Families::default());
        families.register(&mut registry);
        let labels = vec![("version", version.to_owned()), ("component", "meshd-ca".to_owned())];
        registry.register("mesh_build", "Version of the authority", Info::new(labels));
        Self { registry, families }
    }

    pub(super) fn request(&self, outcome: &'static str, reason: &'static str) {
        let labels = [("outcome", outcome.to_owned()), ("reason", reason.to_owned())];
        self.families.requests.get_or_create_owned(&labels).inc();
    }

    pub(super) fn connection_opened(&self) {
        self.families.connections.inc();
    }

    pub(super) fn connection_closed(&self) {
        self.families.connections.dec();
    }

    pub(super) fn connection_refused(&self, reason: &'static str) {
        self.families.refused.get_or_create_owned(&[("reason", reason.to_owned())]).inc();
    }

    pub(super) fn set_root_expiry(&self, unix_seconds: i64) {
        self.families.root_expiry.set(unix_seconds);
    }

    pub(super) fn set_serving_expiry(&self, unix_seconds: i64) {
        self.families.serving_expiry.set(unix_seconds);
    }

    /// When the certificate ends that the authority itself shows, and when its first root does, in Unix seconds.
    pub fn expiries(&self) -> (i64, i64) {
        let value = |gauge: &Gauge| gauge.inner().load(Ordering::Relaxed);
        (value(&self.families.serving_expiry), value(&self.families.root_expiry))
    }

    /// Everything in the `OpenMetrics` text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics not encoded");
        }
        text
    }
}
