//! What limits, retries and outlier detection have done.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::declare::metrics;
use super::metrics::Labels;

/// Destinations that have series of their own.
const MAX_DESTINATIONS: usize = 1000;

metrics! {
    "mesh_circuit_breaker_refused"
    /// Connections that were refused because a limit of their destination was reached, by destination and limit
    refused: Family<Labels<2>, Counter>;
    "mesh_connect_retries"
    /// Retries of a connect, by destination and result; `over_budget` was not made
    retries: Family<Labels<2>, Counter>;
    "mesh_outlier_ejections"
    /// Endpoints that were left out because they failed, by destination and reason
    ejections: Family<Labels<2>, Counter>;
    "mesh_outlier_ejections_spared"
    /// Endpoints that were not left out because as many are as may be, by destination and reason
    spared: Family<Labels<2>, Counter>;
    "mesh_outlier_returns"
    /// Endpoints that came back, by destination
    returns: Family<Labels<1>, Counter>;
    "mesh_outlier_ejections_active"
    /// Endpoints that are left out now, by destination
    active: Family<Labels<1>, Gauge>;
}

/// What became of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryResult {
    /// The connection was had.
    Succeeded,
    /// That endpoint failed as well.
    Failed,
    /// There were too many at once.
    OverBudget,
}

impl RetryResult {
    /// As a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::OverBudget => "over_budget",
        }
    }
}

/// See the module. Destinations are written `NAMESPACE/NAME:PORT[/SUBSET]`; beyond the first `MAX_DESTINATIONS` they are `other`:
/// names come and go, series only come.
#[derive(Debug, Default)]
pub struct BalanceMetrics {
    families: Families,
    named: Mutex<HashSet<String>>,
}

impl BalanceMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        self.families.register(registry);
    }

    fn name(&self, destination: &impl fmt::Display) -> (&'static str, String) {
        let name = destination.to_string();
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let is_named =
            named.contains(&name) || (named.len() < MAX_DESTINATIONS && named.insert(name.clone()));
        ("destination", if is_named { name } else { "other".to_owned() })
    }

    /// A connection was refused at a limit.
    pub fn refused(&self, destination: &impl fmt::Display, limit: &'static str) {
        let labels = [self.name(destination), ("limit", limit.to_owned())];
        self.families.refused.get_or_create_owned(&labels).inc();
    }

    /// A retry came to this.
    pub fn retried(&self, destination: &impl fmt::Display, result: RetryResult) {
        let labels = [self.name(destination), ("result", result.as_str().to_owned())];
        self.families.retries.get_or_create_owned(&labels).inc();
    }

    /// An endpoint is left out.
    pub fn ejected(&self, destination: &impl fmt::Display, reason: &'static str) {
        let labels = [self.name(destination), ("reason", reason.to_owned())];
        self.families.ejections.get_or_create_owned(&labels).inc();
    }

    /// An endpoint is not left out, though it fails.
    pub fn spared(&self, destination: &impl fmt::Display, reason: &'static str) {
        let labels = [self.name(destination), ("reason", reason.to_owned())];
        self.families.spared.get_or_create_owned(&labels).inc();
    }

    /// An endpoint came back.
    pub fn returned(&self, destination: &impl fmt::Display) {
        self.families.returns.get_or_create_owned(&[self.name(destination)]).inc();
    }

    /// All endpoints that are left out now, by destination; what is not among them goes away.
    pub fn set_ejected<D: fmt::Display>(&self, destinations: impl IntoIterator<Item = (D, u32)>) {
        self.families.active.clear();
        for (destination, count) in destinations {
            // Several may share the name `other`.
            self.families.active.get_or_create_owned(&[self.name(&destination)]).inc_by(count.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn destinations_are_a_bounded_label() {
        let metrics = Metrics::new("1");
        for number in 0..MAX_DESTINATIONS + 5 {
            metrics.balance().refused(&format!("a/{number}:80"), "max_connections");
        }
        metrics.balance().retried(&"a/1:80", RetryResult::OverBudget);
        metrics.balance().set_ejected([("a/1:80", 2), ("b/1:80", 3), ("b/2:80", 4)]);
        let text = metrics.render();
        for line in [
            "mesh_circuit_breaker_refused_total{destination=\"other\",limit=\"max_connections\"} 5",
            "mesh_circuit_breaker_refused_total{destination=\"a/1:80\",limit=\"max_connections\"} 1",
            "mesh_connect_retries_total{destination=\"a/1:80\",result=\"over_budget\"} 1",
            "mesh_outlier_ejections_active{destination=\"a/1:80\"} 2",
            "mesh_outlier_ejections_active{destination=\"other\"} 7",
        ] {
            assert!(text.lines().any(|each| each == line), "{line}\nnot in\n{text}");
        }
        metrics.balance().set_ejected::<&str>([]);
        assert!(!metrics.render().contains("mesh_outlier_ejections_active{"));
    }
}
