//! What `DestinationRule`s and routes ask of connections, beside where they go.
//!
//! Settings belong to a destination (a service port in a subset), actions to a route. Which of the two planes carries a
//! thing out follows from what it needs: weights, random draws and hashes are the kernel's too, live counts, waits and copies
//! are the agent's alone and hold for enrolled clients.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::RouteTarget;

/// A share, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// All.
    pub const WHOLE: Self = Self(1_000_000);

    /// So many per cent; what is above 100, or no number, is taken for the nearest that is a share.
    pub fn percent(percent: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 0..=1,000,000; NaN is 0"
        )]
        Self((percent * 10_000.0).round().clamp(0.0, 1_000_000.0) as u32)
    }

    /// In millionths.
    pub const fn millionths(self) -> u32 {
        self.0
    }

    /// Whether a random number falls into it.
    pub const fn takes(self, random: u64) -> bool {
        // A number below a million, by the number's high half as in `mesh_common::pick::slot`.
        (((random >> 32) * 1_000_000) >> 32) < self.0 as u64
    }
}

/// What `DestinationRule`s ask of connections to one destination, resolved (`trafficPolicy`: port over subset over host).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficSettings {
    /// `NAMESPACE/NAME` of the `DestinationRule`s that say so, joined by a comma; `None`: none does.
    pub rule: Option<Arc<str>>,
    /// `loadBalancer`.
    pub balancer: Balancer,
    /// `loadBalancer.warmup`, `warmupDurationSecs`.
    pub warmup: Option<Warmup>,
    /// `connectionPool`.
    pub limits: ConnectionLimits,
    /// `outlierDetection`.
    pub outliers: Option<OutlierDetection>,
}

impl TrafficSettings {
    /// Those of destinations of which nothing is asked, which share them.
    pub fn none() -> Arc<Self> {
        static NONE: LazyLock<Arc<TrafficSettings>> = LazyLock::new(Arc::default);
        Arc::clone(&NONE)
    }

    /// Whether only the agent can carry them out.
    pub fn needs_agent(&self) -> bool {
        matches!(self.balancer, Balancer::LeastRequest | Balancer::RoundRobin)
            || self.warmup.is_some()
            || self.limits != ConnectionLimits::default()
            || self.outliers.is_some()
    }
}

/// How an endpoint is picked among those of a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balancer {
    /// Nothing is said: by weight, at random, in both planes.
    #[default]
    Unspecified,
    /// `ROUND_ROBIN`: in turn, by weight. In the kernel plane, at random.
    RoundRobin,
    /// `LEAST_REQUEST` (and `LEAST_CONN`): of two drawn at random the one with fewer open connections for its weight. In the kernel plane, at
    /// random.
    LeastRequest,
    /// `RANDOM`.
    Random,
    /// `PASSTHROUGH`: what was asked for, as kube-proxy would have it: at random, without anything else of the settings' choice.
    Passthrough,
    /// `consistentHash` with `useSourceIp`: by the client's address, through a Maglev table.
    SourceIp,
}

/// `warmup`: an endpoint that is new gets less than its share, growing over `duration` (Envoy's slow start).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warmup {
    /// For how long after it was first seen.
    pub duration: Duration,
    /// Its share at the beginning, in per cent of its weight (`minimumPercent`, 10).
    pub minimum_percent: f64,
    /// How it grows: 1 linearly, more: slowly at first (`aggression`).
    pub aggression: f64,
}

/// `connectionPool`: what holds for connections of this node's agent to one destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// `tcp.maxConnections`: open at once.
    pub max_connections: Option<u32>,
    /// `http.http1MaxPendingRequests`: being established at once.
    pub max_pending: Option<u32>,
    /// `tcp.connectTimeout`: for one try.
    pub connect_timeout: Option<Duration>,
    /// `tcp.tcpKeepalive`.
    pub keepalive: Option<Keepalive>,
    /// `tcp.idleTimeout`: without a byte in either direction.
    pub idle_timeout: Option<Duration>,
    /// `tcp.maxConnectionDuration`: since it was established.
    pub max_duration: Option<Duration>,
}

/// `tcpKeepalive`; what is not said is the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes without an answer before the connection is dead.
    pub probes: Option<u32>,
    /// Idle before the first probe.
    pub time: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
}

/// `outlierDetection`: an endpoint that fails is left out for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// `consecutive5xxErrors`: failures of any kind in a row; `None`: not counted (0).
    pub consecutive_errors: Option<u32>,
    /// `consecutiveGatewayErrors`: failures to connect, resets before the first byte and timeouts.
    pub consecutive_gateway_errors: Option<u32>,
    /// `splitExternalLocalOriginErrors` and `consecutiveLocalOriginFailures`: failures to connect and timeouts, counted apart.
    pub consecutive_local_failures: Option<u32>,
    /// Whether those of local origin are counted apart.
    pub split_local: bool,
    /// `interval` between looks at who comes back.
    pub interval: Duration,
    /// `baseEjectionTime`, times how often it was ejected.
    pub base_ejection: Duration,
    /// `maxEjectionPercent` of the endpoints at once.
    pub max_ejection_percent: u32,
    /// `minHealthPercent`: with fewer well, nobody is left out (panic); 0: never.
    pub min_health_percent: u32,
}

impl OutlierDetection {
    /// Whether any failures are counted at all.
    pub fn counts(&self) -> bool {
        [self.consecutive_errors, self.consecutive_gateway_errors, self.consecutive_local_failures]
            .iter()
            .any(Option::is_some)
    }
}

/// What is done to the connections of a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteActions {
    /// `timeout`: for the connection to be established, all tries together.
    pub timeout: Option<Duration>,
    /// `retries`; `None`: nothing is said, [`Retries::default`] holds.
    pub retries: Option<Retries>,
    /// `fault.delay`: this share waits so long first.
    pub delay: Option<(Share, Duration)>,
    /// `fault.abort`: this share is reset.
    pub abort: Option<Share>,
    /// `mirror` and `mirrors`.
    pub mirrors: Vec<Mirror>,
}

impl RouteActions {
    /// Those of routes that do nothing more, which share them.
    pub fn none() -> Arc<Self> {
        static NONE: LazyLock<Arc<RouteActions>> = LazyLock::new(Arc::default);
        Arc::clone(&NONE)
    }

    /// Whether nothing is done.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `retries`, a connection at a time: on another endpoint, before a byte was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Tries after the first, at most [`Self::MOST`]; 0: none.
    pub attempts: u32,
    /// `perTryTimeout`.
    pub per_try: Option<Duration>,
    /// `backoff`: before the first retry at most; it doubles, with jitter.
    pub backoff: Duration,
}

impl Retries {
    /// More tries after the first there are not, whatever is written: a client must hear of its failure some day.
    pub const MOST: u32 = 25;
}

impl Default for Retries {
    /// As Istio has it where nothing is said: two more tries, from 25 ms on.
    fn default() -> Self {
        Self { attempts: 2, per_try: None, backoff: Duration::from_millis(25) }
    }
}

/// Where copies of what clients send go.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// The shadow; its weight means nothing.
    pub target: RouteTarget,
    /// Of the connections.
    pub share: Share,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_at_their_ends() {
        for (percent, millionths) in [
            (0.0, 0),
            (0.0001, 1),
            (50.0, 500_000),
            (100.0, 1_000_000),
            (250.0, 1_000_000),
            (-1.0, 0),
            (f64::NAN, 0),
        ] {
            assert_eq!(Share::percent(percent).millionths(), millionths, "{percent}");
        }
        assert!(Share::WHOLE.takes(u64::MAX) && Share::WHOLE.takes(0));
        assert!(!Share::default().takes(0));
        let half = (0..1000_u64).filter(|n| Share::percent(50.0).takes(n * (u64::MAX / 1000))).count();
        assert!((499..=501).contains(&half), "{half}");
    }

    #[test]
    fn what_the_kernel_cannot_do_needs_the_agent() {
        let with = |change: fn(&mut TrafficSettings)| {
            let mut settings = TrafficSettings::default();
            change(&mut settings);
            settings.needs_agent()
        };
        assert!(!with(|_| {}));
        assert!(!with(|settings| settings.balancer = Balancer::SourceIp));
        assert!(!with(|settings| settings.balancer = Balancer::Random));
        assert!(with(|settings| settings.balancer = Balancer::LeastRequest));
        assert!(with(|settings| settings.limits.max_connections = Some(1)));
    }
}
