//! Metrics of what routes do to connections: faults and mirrors.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::declare::metrics;
use super::metrics::Labels;

metrics! {
    "mesh_faults_injected"
    /// Faults that routes ask for and that were injected, by kind
    injected: Family<Labels<1>, Counter>;
    "mesh_faults_skipped"
    /// Faults that routes ask for and that were not injected, by reason
    skipped: Family<Labels<1>, Counter>;
    "mesh_fault_delays_active"
    /// Connections that wait for the end of an injected delay now
    delays: Gauge;
    "mesh_mirror_connections"
    /// Connections that were copied to a shadow, by how the copy ended
    mirrors: Family<Labels<1>, Counter>;
    "mesh_mirror_connections_active"
    /// Copies that are being made now
    active: Gauge;
    "mesh_mirror_copied_bytes"
    /// Bytes of clients that were handed to shadows
    copied: Counter;
    "mesh_mirror_dropped_bytes"
    /// Bytes of clients that were not, by the reason for which their copy ended
    dropped: Family<Labels<1>, Counter>;
}

/// What routes do to connections.
#[derive(Debug, Default)]
pub struct ActionMetrics(Families);

impl ActionMetrics {
    /// Adds the families to a registry.
    pub(super) fn register(&self, registry: &mut Registry) {
        self.0.register(registry);
    }

    /// A fault was injected: `delay` or `abort`.
    pub fn fault_injected(&self, fault: &'static str) {
        self.0.injected.get_or_create_owned(&[("fault", fault.to_owned())]).inc();
    }

    /// One was not.
    pub fn fault_skipped(&self, reason: &'static str) {
        self.0.skipped.get_or_create_owned(&[("reason", reason.to_owned())]).inc();
    }

    /// Connections that wait for the end of a delay.
    pub const fn delays(&self) -> &Gauge {
        &self.0.delays
    }

    /// A copy was begun.
    pub fn mirror_begun(&self) {
        self.0.active.inc();
    }

    /// It ended: so many bytes had been handed to the shadow, so many more had the client sent.
    pub fn mirror_ended(&self, end: &'static str, copied: u64, dropped: u64) {
        self.0.active.dec();
        self.0.mirrors.get_or_create_owned(&[("end", end.to_owned())]).inc();
        self.0.copied.inc_by(copied);
        if dropped > 0 {
            self.0.dropped.get_or_create_owned(&[("reason", end.to_owned())]).inc_by(dropped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_counted_once_with_all_its_bytes() {
        let metrics = ActionMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        for _ in 0..3 {
            metrics.mirror_begun();
        }
        metrics.mirror_ended("closed", 10, 0);
        metrics.mirror_ended("behind", 4, 6);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "mesh_mirror_connections_active 1",
            "mesh_mirror_connections_total{end=\"closed\"} 1",
            "mesh_mirror_copied_bytes_total 14",
            "mesh_mirror_dropped_bytes_total{reason=\"behind\"} 6",
        ] {
            assert!(text.lines().any(|each| each == line), "{line}\nnot in\n{text}");
        }
        assert!(!text.contains("reason=\"closed\""), "{text}");
    }
}
