//! Outlier detection: who is left out for how long (Envoy's, `source/common/upstream/outlier_detection_impl.cc`), with what layer 4
//! can see of a failure.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::destination::Key;
use crate::model::{OutlierDetection, WorkloadUid};

/// The longest that anybody is left out for, unless the base is longer (Envoy's `max_ejection_time`).
const LONGEST: Duration = Duration::from_mins(5);

/// What went wrong with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection was had.
    Connect,
    /// It did not answer in time.
    Timeout,
    /// The connection was reset, or closed, before the first byte of an answer.
    NoAnswer,
}

impl Failure {
    /// Whether it is this side that noticed (Envoy's local origin), not something that came from the endpoint's application.
    const fn is_local(self) -> bool {
        matches!(self, Self::Connect | Self::Timeout)
    }
}

/// Which of the rule's limits was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// `consecutive5xxErrors`.
    Errors,
    /// `consecutiveGatewayErrors`.
    GatewayErrors,
    /// `consecutiveLocalOriginFailures`.
    LocalFailures,
}

impl Reason {
    /// As a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Errors => "consecutive_5xx_errors",
            Self::GatewayErrors => "consecutive_gateway_errors",
            Self::LocalFailures => "consecutive_local_origin_failures",
        }
    }
}

/// What became of an endpoint, for whoever is told.
#[derive(Clone, Debug)]
pub struct Change {
    /// The destination.
    pub destination: Key,
    /// The endpoint.
    pub address: SocketAddr,
    /// The workload behind it.
    pub workload: Option<WorkloadUid>,
    /// What that is.
    pub event: Event,
}

/// See [`Change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It gets no new connections.
    Ejected {
        /// Why.
        reason: Reason,
        /// For how long at least; it returns when it is looked at after that.
        lasts: Duration,
        /// How often that has happened.
        times: u32,
    },
    /// It would have been, but as many are left out as may be (`maxEjectionPercent`).
    Spared {
        /// Why.
        reason: Reason,
    },
    /// It gets connections again.
    Returned,
}

/// Failures in a row, by what counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) errors: u32,
    pub(super) gateway: u32,
    pub(super) local: u32,
}

impl Row {
    /// Counts a failure; what is returned has reached its limit, and begins anew.
    pub(super) fn count(&mut self, rule: &OutlierDetection, failure: Failure) -> Option<Reason> {
        let reached = |count: &mut u32, limit: Option<u32>| {
            *count = count.saturating_add(1);
            let reached = limit.is_some_and(|limit| limit > 0 && *count >= limit);
            if reached {
                *count = 0;
            }
            reached
        };
        if rule.split_local && failure.is_local() {
            return reached(&mut self.local, rule.consecutive_local_failures)
                .then_some(Reason::LocalFailures);
        }
        // To layer 4 every failure is one of the gateway's as well; Envoy looks at those first.
        let gateway = reached(&mut self.gateway, rule.consecutive_gateway_errors);
        let errors = reached(&mut self.errors, rule.consecutive_errors);
        match (gateway, errors) {
            (true, _) => Some(Reason::GatewayErrors),
            (false, true) => Some(Reason::Errors),
            (false, false) => None,
        }
    }

    /// The longest row.
    pub(super) fn longest(self) -> u32 {
        self.errors.max(self.gateway).max(self.local)
    }
}

/// Whether one more may be left out where `ejected` of `total` are: not more than the rule's part, the one that is asked for among
/// them. Nobody is exempt: with less than ten endpoints the default of 10% leaves nobody out (envoyproxy/envoy#27624 and #27909; Istio
/// does not set `always_eject_one_host`).
pub(super) fn may_eject(rule: &OutlierDetection, ejected: usize, total: usize) -> bool {
    (ejected as u64 + 1) * 100 <= u64::from(rule.max_ejection_percent.min(100)) * total as u64
}

/// How often an endpoint was left out, and since when it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ejections {
    /// In all.
    pub(super) times: u32,
    /// What the base is multiplied by: it grows with each ejection and falls with each look at which all is well.
    multiplier: u32,
    ejected: Option<Instant>,
    returned: Option<Instant>,
}

impl Ejections {
    /// Leaves it out; returns for how long.
    pub(super) fn eject(&mut self, rule: &OutlierDetection, now: Instant) -> Duration {
        self.times = self.times.saturating_add(1);
        if rule.base_ejection.saturating_mul(self.multiplier) < longest(rule) + rule.base_ejection {
            self.multiplier += 1;
        }
        self.ejected = Some(now);
        self.lasts(rule)
    }

    /// For how long it is left out.
    fn lasts(&self, rule: &OutlierDetection) -> Duration {
        rule.base_ejection.saturating_mul(self.multiplier).min(longest(rule))
    }

    /// Until when at least.
    pub(super) fn until(&self, rule: &OutlierDetection) -> Option<Instant> {
        self.ejected.map(|ejected| ejected + self.lasts(rule))
    }

    /// Looks at it, as every `interval`; whether it comes back.
    pub(super) fn look(&mut self, rule: &OutlierDetection, now: Instant) -> bool {
        if let Some(until) = self.until(rule) {
            if now < until {
                return false;
            }
            self.bring_back(now);
            return true;
        }
        if self.returned.is_some_and(|returned| now - returned >= rule.interval) {
            self.multiplier = self.multiplier.saturating_sub(1);
        }
        false
    }

    /// Takes it in again.
    pub(super) fn bring_back(&mut self, now: Instant) {
        (self.ejected, self.returned) = (None, Some(now));
    }

    /// Whether there is nothing to look at.
    pub(super) const fn is_at_rest(&self) -> bool {
        self.ejected.is_none() && self.multiplier == 0
    }
}

fn longest(rule: &OutlierDetection) -> Duration {
    LONGEST.max(rule.base_ejection)
}

#[cfg(test)]
pub(super) fn rule() -> OutlierDetection {
    OutlierDetection {
        consecutive_errors: Some(5),
        consecutive_gateway_errors: None,
        consecutive_local_failures: None,
        split_local: false,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection_percent: 100,
        min_health_percent: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(row: &mut Row, rule: &OutlierDetection, failures: &[Failure]) -> Vec<Option<Reason>> {
        failures.iter().map(|&failure| row.count(rule, failure)).collect()
    }

    #[test]
    fn rows_are_counted_by_kind() {
        use Failure::{Connect, NoAnswer, Timeout};
        use Reason::{Errors, GatewayErrors, LocalFailures};
        let plain = OutlierDetection { consecutive_errors: Some(3), ..rule() };
        let both = OutlierDetection { consecutive_gateway_errors: Some(2), ..plain };
        let split = OutlierDetection { split_local: true, consecutive_local_failures: Some(2), ..plain };
        let off = OutlierDetection { consecutive_errors: Some(0), ..plain };
        for (name, rule, failures, expected) in [
            (
                "any kind",
                plain,
                vec![Connect, NoAnswer, Timeout, Connect],
                vec![None, None, Some(Errors), None],
            ),
            (
                "gateway first",
                both,
                vec![Connect, NoAnswer, Timeout],
                vec![None, Some(GatewayErrors), Some(Errors)],
            ),
            (
                "apart",
                split,
                vec![Connect, NoAnswer, Timeout, NoAnswer],
                vec![None, None, Some(LocalFailures), None],
            ),
            ("0 counts nothing", off, vec![Connect; 9], vec![None; 9]),
        ] {
            assert_eq!(after(&mut Row::default(), &rule, &failures), expected, "{name}");
        }
    }

    #[test]
    fn no_more_are_left_out_than_may_be() {
        let percent = |max_ejection_percent| OutlierDetection { max_ejection_percent, ..rule() };
        for (percent_, ejected, total, may) in [
            (10, 0, 9, false),
            (10, 0, 10, true),
            (10, 1, 19, false),
            (50, 0, 2, true),
            (50, 1, 3, false),
            (100, 2, 3, true),
            (250, 3, 3, false),
            (0, 0, 100, false),
            (100, 0, 0, false),
        ] {
            assert_eq!(may_eject(&percent(percent_), ejected, total), may, "{percent_} {ejected} {total}");
        }
    }

    #[test]
    fn each_time_lasts_longer_until_it_has_been_well_for_a_while() {
        let (rule, start) = (rule(), Instant::now());
        let mut ejections = Ejections::default();
        let mut now = start;
        for (times, lasts) in [30, 60, 90].into_iter().enumerate() {
            assert_eq!(ejections.eject(&rule, now), Duration::from_secs(lasts));
            assert!(!ejections.look(&rule, now + Duration::from_secs(lasts - 1)));
            now += Duration::from_secs(lasts);
            assert!(ejections.look(&rule, now), "{times}");
        }
        assert_eq!(ejections.times, 3);
        // The first look after its return is not one more interval of health.
        assert!(!ejections.look(&rule, now + Duration::from_secs(1)));
        for healthy in 1..=3 {
            assert!(!ejections.is_at_rest());
            ejections.look(&rule, now + rule.interval * healthy);
        }
        assert!(ejections.is_at_rest());
        assert_eq!(ejections.eject(&rule, now), Duration::from_secs(30));
    }

    #[test]
    fn nobody_is_left_out_for_longer_than_five_minutes_or_the_base() {
        let start = Instant::now();
        for (base, longest) in
            [(Duration::from_secs(30), LONGEST), (Duration::from_mins(7), Duration::from_mins(7))]
        {
            let rule = OutlierDetection { base_ejection: base, ..rule() };
            let mut ejections = Ejections::default();
            let mut last = Duration::ZERO;
            for _ in 0..50 {
                last = ejections.eject(&rule, start);
            }
            assert_eq!(last, longest);
            assert!(
                u64::from(ejections.multiplier) * base.as_secs() <= longest.as_secs() + 2 * base.as_secs()
            );
        }
    }
}
