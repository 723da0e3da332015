//! What a `DestinationRule`'s traffic policies come to for connections to one port, in one subset.

use std::time::Duration;

use crate::model::{Balancer, ConnectionLimits, Keepalive, OutlierDetection, TrafficSettings, Warmup};
use crate::resources::destination_rule::{
    ConnectionPool, LoadBalancer, OutlierDetection as Outliers, Parts, SimpleLb, TcpPool, TrafficPolicy,
};

/// `warmup.minimumPercent` where nothing is said.
const WARMUP_PERCENT: f64 = 10.0;
/// `warmup.aggression` where nothing is said.
const WARMUP_AGGRESSION: f64 = 1.0;
/// `consecutive5xxErrors` and `consecutiveLocalOriginFailures` where nothing is said.
const ERRORS: u32 = 5;
/// `interval` where nothing is said.
const INTERVAL: Duration = Duration::from_secs(10);
/// `baseEjectionTime` where nothing is said.
const BASE_EJECTION: Duration = Duration::from_secs(30);
/// `maxEjectionPercent` where nothing is said.
const MAX_EJECTION_PERCENT: u32 = 10;

/// What holds at a port of a subset: Istio's `MergeSubsetTrafficPolicy` (pilot/pkg/networking/util). A policy's own settings for the
/// port take the place of all its others, which are not inherited; a subset's stand above the host's, one by one, and all at
/// once where they are for the port.
pub(super) fn merged<'a>(
    host: Option<&'a TrafficPolicy>,
    subset: Option<&'a TrafficPolicy>,
    port: u16,
) -> Parts<'a> {
    let host = host.map(|policy| at_port(policy, port).0).unwrap_or_default();
    match subset.map(|policy| at_port(policy, port)) {
        None => host,
        Some((subset, true)) => subset,
        Some((subset, false)) => Parts {
            load_balancer: subset.load_balancer.or(host.load_balancer),
            connection_pool: subset.connection_pool.or(host.connection_pool),
            outlier_detection: subset.outlier_detection.or(host.outlier_detection),
            tls: subset.tls.or(host.tls),
        },
    }
}

/// A policy at a port, and whether it has settings for that.
fn at_port(policy: &TrafficPolicy, port: u16) -> (Parts<'_>, bool) {
    let own = policy.ports().find(|(_, number, _)| *number == u32::from(port));
    own.map_or_else(|| (policy.parts(), false), |(_, _, own)| (own.parts(), true))
}

/// What is asked of connections.
pub(in crate::resources) fn settings(policy: &Parts<'_>) -> TrafficSettings {
    let balancer = policy.load_balancer.map_or(Balancer::Unspecified, balancer);
    TrafficSettings {
        rule: None,
        balancer,
        warmup: policy.load_balancer.filter(|_| takes_warmup(balancer)).and_then(warmup),
        limits: policy.connection_pool.map(limits).unwrap_or_default(),
        outliers: policy.outlier_detection.map(outliers),
    }
}

pub(in crate::resources) fn balancer(written: &LoadBalancer) -> Balancer {
    let by_source =
        |hash: &crate::resources::destination_rule::ConsistentHash| hash.use_source_ip == Some(true);
    if written.consistent_hash.as_ref().is_some_and(by_source) {
        return Balancer::SourceIp;
    }
    match written.simple {
        None | Some(SimpleLb::Unspecified) => Balancer::Unspecified,
        Some(SimpleLb::RoundRobin) => Balancer::RoundRobin,
        Some(SimpleLb::LeastRequest | SimpleLb::LeastConn) => Balancer::LeastRequest,
        Some(SimpleLb::Random) => Balancer::Random,
        Some(SimpleLb::Passthrough) => Balancer::Passthrough,
    }
}

/// Whether new endpoints of such a balancer can get less at first: "only supported for `ROUND_ROBIN` and `LEAST_REQUEST`"
/// (`LoadBalancerSettings.warmup`), and what takes the latter's place here.
pub(in crate::resources) const fn takes_warmup(balancer: Balancer) -> bool {
    matches!(balancer, Balancer::RoundRobin | Balancer::LeastRequest | Balancer::Unspecified)
}

fn warmup(written: &LoadBalancer) -> Option<Warmup> {
    let new = written.warmup.as_ref();
    let duration = new.and_then(|new| new.duration).or(written.warmup_duration_secs)?;
    (!duration.is_zero()).then(|| Warmup {
        duration,
        minimum_percent: new.and_then(|new| new.minimum_percent).unwrap_or(WARMUP_PERCENT),
        aggression: new.and_then(|new| new.aggression).unwrap_or(WARMUP_AGGRESSION),
    })
}

/// A number of the API that stands for no limit where it is 0.
fn above_zero(written: Option<i32>) -> Option<u32> {
    written.and_then(|number| u32::try_from(number).ok()).filter(|&number| number > 0)
}

fn limits(written: &ConnectionPool) -> ConnectionLimits {
    let http = written.http.as_ref();
    let max_pending = above_zero(http.and_then(|http| http.http1_max_pending_requests));
    let Some(tcp) = &written.tcp else { return ConnectionLimits { max_pending, ..Default::default() } };
    let some = |duration: Option<Duration>| duration.filter(|duration| !duration.is_zero());
    ConnectionLimits {
        max_connections: above_zero(tcp.max_connections),
        max_pending,
        connect_timeout: some(tcp.connect_timeout),
        keepalive: keepalive(tcp),
        idle_timeout: some(tcp.idle_timeout),
        max_duration: some(tcp.max_connection_duration),
    }
}

fn keepalive(tcp: &TcpPool) -> Option<Keepalive> {
    tcp.tcp_keepalive.as_ref().map(|written| Keepalive {
        probes: written.probes.filter(|&probes| probes > 0),
        time: written.time,
        interval: written.interval,
    })
}

/// Istio's defaults and its meaning of 0 (`applyOutlierDetection` of pilot/pkg/networking/core): 0 turns
/// `consecutive5xxErrors` and `consecutiveGatewayErrors` off, and stands for the default elsewhere.
fn outliers(written: &Outliers) -> OutlierDetection {
    let on = |number: u32| (number > 0).then_some(number);
    let split_local = written.split_external_local_origin_errors == Some(true);
    let local = written.consecutive_local_origin_failures.and_then(on).unwrap_or(ERRORS);
    let names_neither =
        written.consecutive5xx_errors.is_none() && written.consecutive_gateway_errors.is_none();
    // What `consecutiveErrors` was until it gave way to the other two: gateway errors alone.
    let former = above_zero(written.consecutive_errors).filter(|_| names_neither);
    OutlierDetection {
        consecutive_errors: match former {
            Some(_) => None,
            None => on(written.consecutive5xx_errors.unwrap_or(ERRORS)),
        },
        consecutive_gateway_errors: former.or(written.consecutive_gateway_errors.and_then(on)),
        consecutive_local_failures: split_local.then_some(local),
        split_local,
        interval: written.interval.unwrap_or(INTERVAL),
        base_ejection: written.base_ejection_time.unwrap_or(BASE_EJECTION),
        max_ejection_percent: above_zero(written.max_ejection_percent).unwrap_or(MAX_EJECTION_PERCENT),
        min_health_percent: above_zero(written.min_health_percent).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(value: serde_json::Value) -> TrafficPolicy {
        serde_json::from_value(value).unwrap()
    }

    fn of(value: serde_json::Value) -> TrafficSettings {
        settings(&policy(value).parts())
    }

    #[test]
    fn port_over_subset_over_host() {
        use Balancer::{Random, RoundRobin, Unspecified};
        let max = |number: i32| json!({"tcp": {"maxConnections": number}});
        let host = policy(json!({
            "connectionPool": max(1),
            "loadBalancer": {"simple": "ROUND_ROBIN"},
            "portLevelSettings": [{"port": {"number": 81}, "connectionPool": max(2)}],
        }));
        let subset = policy(json!({
            "connectionPool": max(3),
            "portLevelSettings": [{"port": {"number": 82}, "loadBalancer": {"simple": "RANDOM"}}],
        }));
        let read = |host, subset, port| {
            let settings = settings(&merged(host, subset, port));
            (settings.limits.max_connections, settings.balancer)
        };
        let (host, subset) = (Some(&host), Some(&subset));
        assert_eq!(read(host, None, 80), (Some(1), RoundRobin));
        assert_eq!(read(host, None, 81), (Some(2), Unspecified), "a port inherits nothing");
        assert_eq!(read(host, subset, 80), (Some(3), RoundRobin), "a subset inherits what it leaves out");
        assert_eq!(read(host, subset, 81), (Some(3), Unspecified), "the host's port under the subset");
        assert_eq!(read(host, subset, 82), (None, Random), "a subset's port inherits nothing");
        assert_eq!(read(None, subset, 80), (Some(3), Unspecified));
        assert_eq!(read(None, None, 80), (None, Unspecified));
    }

    #[test]
    fn balancers() {
        for (written, wanted) in [
            (json!({}), Balancer::Unspecified),
            (json!({"simple": "UNSPECIFIED"}), Balancer::Unspecified),
            (json!({"simple": "LEAST_CONN"}), Balancer::LeastRequest),
            (json!({"simple": "LEAST_REQUEST"}), Balancer::LeastRequest),
            (json!({"simple": "PASSTHROUGH"}), Balancer::Passthrough),
            (json!({"consistentHash": {"useSourceIp": true}}), Balancer::SourceIp),
            (json!({"consistentHash": {"useSourceIp": false}}), Balancer::Unspecified),
            (json!({"consistentHash": {"httpHeaderName": "x-user"}}), Balancer::Unspecified),
        ] {
            assert_eq!(of(json!({"loadBalancer": written.clone()})).balancer, wanted, "{written}");
        }
    }

    #[test]
    fn warm_up() {
        let warmup = |written: serde_json::Value| of(json!({"loadBalancer": written})).warmup;
        let secs = Duration::from_secs;
        let plain = Warmup { duration: secs(60), minimum_percent: 10.0, aggression: 1.0 };
        assert_eq!(warmup(json!({"warmup": {"duration": "60s"}})), Some(plain));
        assert_eq!(warmup(json!({"warmupDurationSecs": "1m"})), Some(plain));
        let own = json!({"simple": "ROUND_ROBIN",
            "warmup": {"duration": "10s", "minimumPercent": 0, "aggression": 2.5}, "warmupDurationSecs": "1m"});
        let wanted = Warmup { duration: secs(10), minimum_percent: 0.0, aggression: 2.5 };
        assert_eq!(warmup(own), Some(wanted));
        assert_eq!(warmup(json!({"simple": "RANDOM", "warmup": {"duration": "60s"}})), None);
        assert_eq!(warmup(json!({})), None);
    }

    #[test]
    fn limits_of_zero_are_none() {
        let limits = of(json!({"connectionPool": {
            "tcp": {"maxConnections": 0, "idleTimeout": "0s"}, "http": {"http1MaxPendingRequests": 0}}}))
        .limits;
        assert_eq!(limits, ConnectionLimits::default());
        let limits = of(json!({"connectionPool": {
            "tcp": {
                "maxConnections": 100, "connectTimeout": "30ms", "idleTimeout": "1h", "maxConnectionDuration": "2h",
                "tcpKeepalive": {"time": "7200s", "interval": "75s", "probes": 3}
            },
            "http": {"http1MaxPendingRequests": 7, "maxRetries": 3}}}))
        .limits;
        let wanted = ConnectionLimits {
            max_connections: Some(100),
            max_pending: Some(7),
            connect_timeout: Some(Duration::from_millis(30)),
            keepalive: Some(Keepalive {
                probes: Some(3),
                time: Some(Duration::from_hours(2)),
                interval: Some(Duration::from_secs(75)),
            }),
            idle_timeout: Some(Duration::from_hours(1)),
            max_duration: Some(Duration::from_hours(2)),
        };
        assert_eq!(limits, wanted);
    }

    #[test]
    fn outlier_detection_has_istios_defaults() {
        let read = |written: serde_json::Value| of(json!({"outlierDetection": written})).outliers.unwrap();
        let plain = read(json!({}));
        assert_eq!(plain.consecutive_errors, Some(5));
        assert_eq!((plain.consecutive_gateway_errors, plain.consecutive_local_failures), (None, None));
        assert_eq!((plain.interval, plain.base_ejection), (INTERVAL, BASE_EJECTION));
        assert_eq!((plain.max_ejection_percent, plain.min_health_percent), (10, 0));
        let counts = |written| {
            let read = read(written);
            (read.consecutive_errors, read.consecutive_gateway_errors, read.consecutive_local_failures)
        };
        for (written, wanted) in [
            (json!({"consecutive5xxErrors": 0}), (None, None, None)),
            (json!({"consecutive5xxErrors": 7}), (Some(7), None, None)),
            (json!({"consecutiveGatewayErrors": 3}), (Some(5), Some(3), None)),
            (json!({"consecutiveGatewayErrors": 0}), (Some(5), None, None)),
            (json!({"consecutiveErrors": 2}), (None, Some(2), None)),
            (json!({"consecutiveErrors": 2, "consecutive5xxErrors": 9}), (Some(9), None, None)),
            (json!({"consecutiveErrors": 0}), (Some(5), None, None)),
            (json!({"consecutiveLocalOriginFailures": 2}), (Some(5), None, None)),
            (
                json!({"consecutiveLocalOriginFailures": 2, "splitExternalLocalOriginErrors": true}),
                (Some(5), None, Some(2)),
            ),
            (json!({"splitExternalLocalOriginErrors": true}), (Some(5), None, Some(5))),
        ] {
            assert_eq!(counts(written.clone()), wanted, "{written}");
        }
    }
}
