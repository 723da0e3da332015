//! What must hold of a `DestinationRule`, as Istio's own validation has it (pkg/config/validation).

use std::collections::BTreeSet;

use super::{Mistaken, check_port};
use crate::resources::destination_rule::{
    ConnectionPool, ConsistentHash, DestinationRule, LoadBalancer, LocalityLbSetting, OutlierDetection, Parts,
};

/// The most labels that are compared for the priority of an endpoint.
const MOST_LABELS: usize = 50;
/// Keys of `consistentHash`, one of which it must have.
const HASH_KEYS: [&str; 3] = ["httpHeaderName", "httpCookie", "httpQueryParameterName"];

pub(super) fn check_destination_rule(wrong: &mut Mistaken, rule: &DestinationRule) {
    let host = &rule.spec.host;
    if host.is_empty() {
        wrong.push(("spec.host".to_owned(), "missing".to_owned()));
    } else if !is_host(host) {
        let reason = format!("{host:?} is no host: a * stands for the whole, or in front of a dot");
        wrong.push(("spec.host".to_owned(), reason));
    }
    let mut names = BTreeSet::new();
    for (index, subset) in rule.spec.subsets.iter().enumerate() {
        let field = format!("spec.subsets[{index}].name");
        if subset.name.is_empty() {
            wrong.push((field, "missing".to_owned()));
        } else if !names.insert(&subset.name) {
            wrong.push((field, format!("{:?} is there twice", subset.name)));
        }
    }
    for (at, policy, _) in rule.policies() {
        check_parts(wrong, &at, &policy.parts());
        let mut numbers = BTreeSet::new();
        for (below, number, own) in policy.ports() {
            let at = format!("{at}.{below}");
            check_port(wrong, format!("{at}.port.number"), number);
            if !numbers.insert(number) {
                wrong.push((format!("{at}.port.number"), format!("{number} is there twice")));
            }
            check_parts(wrong, &at, &own.parts());
        }
    }
}

/// A name, or a wildcard for names.
fn is_host(host: &str) -> bool {
    let name = match host.strip_prefix('*') {
        Some("") => return true,
        Some(rest) => match rest.strip_prefix('.') {
            Some(name) => name,
            None => return false,
        },
        None => host,
    };
    !name.contains('*') && !name.starts_with('.')
}

fn check_parts(wrong: &mut Mistaken, at: &str, parts: &Parts<'_>) {
    if let Some(balancer) = parts.load_balancer {
        check_balancer(wrong, &format!("{at}.loadBalancer"), balancer);
    }
    if let Some(pool) = parts.connection_pool {
        check_pool(wrong, &format!("{at}.connectionPool"), pool);
    }
    if let Some(outliers) = parts.outlier_detection {
        check_outliers(wrong, &format!("{at}.outlierDetection"), outliers);
    }
}

fn check_balancer(wrong: &mut Mistaken, at: &str, balancer: &LoadBalancer) {
    if let Some(hash) = &balancer.consistent_hash {
        if balancer.simple.is_some() {
            wrong.push((
                format!("{at}.consistentHash"),
                "simple is there as well: keep one of the two".to_owned(),
            ));
        }
        check_hash(wrong, &format!("{at}.consistentHash"), hash);
    }
    if let Some(setting) = &balancer.locality_lb_setting {
        check_locality(wrong, &format!("{at}.localityLbSetting"), setting);
    }
    let Some(warmup) = &balancer.warmup else { return };
    if warmup.duration.is_none() {
        wrong.push((format!("{at}.warmup.duration"), "missing".to_owned()));
    }
    if let Some(percent) = warmup.minimum_percent.filter(|percent| !(0.0..=100.0).contains(percent)) {
        wrong.push((format!("{at}.warmup.minimumPercent"), format!("{percent} is not from 0 to 100")));
    }
    if let Some(aggression) = warmup.aggression.filter(|aggression| aggression.is_nan() || *aggression < 1.0)
    {
        wrong.push((format!("{at}.warmup.aggression"), format!("{aggression} is below 1")));
    }
}

fn check_hash(wrong: &mut Mistaken, at: &str, hash: &ConsistentHash) {
    let others = HASH_KEYS.into_iter().filter(|key| hash.rest.contains_key(*key)).count();
    match others + usize::from(hash.use_source_ip.is_some()) {
        0 => wrong.push((at.to_owned(), format!("none of useSourceIp, {}", HASH_KEYS.join(", ")))),
        1 => {}
        _ => wrong.push((at.to_owned(), "several keys: keep one".to_owned())),
    }
    if hash.rest.contains_key("ringHash") && hash.rest.contains_key("maglev") {
        wrong.push((format!("{at}.maglev"), "ringHash is there as well: keep one of the two".to_owned()));
    }
}

/// `validateLocalityLbSetting`.
fn check_locality(wrong: &mut Mistaken, at: &str, setting: &LocalityLbSetting) {
    let has_priorities = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
    if !setting.distribute.is_empty() && has_priorities {
        let reason =
            "failover or failoverPriority is there as well: shares and priorities exclude each other";
        wrong.push((format!("{at}.distribute"), reason.to_owned()));
    }
    let mut from = BTreeSet::new();
    for (index, rule) in setting.distribute.iter().enumerate() {
        let at = format!("{at}.distribute[{index}]");
        check_place(wrong, format!("{at}.from"), &rule.from);
        if !from.insert(&rule.from) {
            wrong.push((format!("{at}.from"), format!("{:?} is there twice", rule.from)));
        }
        let mut sum = 0_u64;
        for (place, &weight) in &rule.to {
            check_place(wrong, format!("{at}.to"), place);
            if !(1..=100).contains(&weight) {
                wrong.push((format!("{at}.to"), format!("{weight} for {place} is not from 1 to 100")));
            }
            sum += u64::from(weight);
        }
        if sum != 100 {
            wrong.push((format!("{at}.to"), format!("the shares' sum is {sum}, not 100")));
        }
        if let Some((one, other)) = overlapping(rule.to.keys()) {
            wrong.push((format!("{at}.to"), format!("{one} and {other} overlap")));
        }
    }
    for (index, rule) in setting.failover.iter().enumerate() {
        let at = format!("{at}.failover[{index}]");
        for (field, region) in [("from", &rule.from), ("to", &rule.to)] {
            if region.is_empty() {
                wrong.push((format!("{at}.{field}"), "missing".to_owned()));
            } else if region.contains(['*', '/']) {
                wrong.push((format!("{at}.{field}"), format!("{region:?} is no region")));
            }
        }
        if rule.from == rule.to && !rule.from.is_empty() {
            wrong.push((format!("{at}.to"), "the same region as from".to_owned()));
        }
    }
    let labels = &setting.failover_priority;
    if labels.len() > MOST_LABELS {
        wrong.push((format!("{at}.failoverPriority"), format!("more than {MOST_LABELS} labels")));
    }
    for (index, label) in labels.iter().enumerate() {
        if label.split_once('=').map_or(&**label, |(key, _)| key).is_empty() {
            wrong.push((format!("{at}.failoverPriority[{index}]"), format!("{label:?} names no label")));
        }
    }
}

/// `REGION/ZONE/SUBZONE`, shorter, or with `*` at the end.
fn check_place(wrong: &mut Mistaken, field: String, place: &str) {
    let parts: Vec<&str> = place.split('/').collect();
    let (last, rest) = parts.split_last().unwrap_or((&"", &[]));
    let is_part = |part: &&str| !part.is_empty() && !part.contains('*');
    let ends = is_part(last) || *last == "*";
    if parts.len() > 3 || !ends || !rest.iter().all(is_part) {
        wrong.push((
            field,
            format!("{place:?} is no locality: REGION/ZONE/SUBZONE, shorter, or with * at the end"),
        ));
    }
}

/// Two localities that hold for one place.
fn overlapping<'a>(places: impl Iterator<Item = &'a String>) -> Option<(&'a str, &'a str)> {
    let places: Vec<&str> = places.map(|place| &**place).collect();
    let holds = |one: &str, other: &str| {
        let one = one.trim_end_matches('*').trim_end_matches('/');
        one.is_empty() || other == one || other.strip_prefix(one).is_some_and(|rest| rest.starts_with('/'))
    };
    places.iter().enumerate().find_map(|(index, one)| {
        let other = places[index + 1..].iter().find(|other| holds(one, other) || holds(other, one))?;
        Some((*one, *other))
    })
}

fn check_pool(wrong: &mut Mistaken, at: &str, pool: &ConnectionPool) {
    if let Some(tcp) = &pool.tcp {
        check_number(wrong, format!("{at}.tcp.maxConnections"), tcp.max_connections);
    }
    if let Some(http) = &pool.http {
        check_number(wrong, format!("{at}.http.http1MaxPendingRequests"), http.http1_max_pending_requests);
    }
}

fn check_outliers(wrong: &mut Mistaken, at: &str, outliers: &OutlierDetection) {
    check_number(wrong, format!("{at}.consecutiveErrors"), outliers.consecutive_errors);
    let percents = [
        ("maxEjectionPercent", outliers.max_ejection_percent),
        ("minHealthPercent", outliers.min_health_percent),
    ];
    for (field, percent) in percents {
        if let Some(percent) = percent.filter(|percent| !(0..=100).contains(percent)) {
            wrong.push((format!("{at}.{field}"), format!("{percent} is not from 0 to 100")));
        }
    }
}

fn check_number(wrong: &mut Mistaken, field: String, number: Option<i32>) {
    if let Some(number) = number.filter(|&number| number < 0) {
        wrong.push((field, format!("{number} is below 0")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mistakes(spec: Value) -> Vec<String> {
        let rule: DestinationRule = serde_json::from_value(json!({"spec": spec})).unwrap();
        let mut wrong = Mistaken::default();
        check_destination_rule(&mut wrong, &rule);
        wrong.into_iter().map(|wrong| wrong.field).collect()
    }

    #[test]
    fn hosts() {
        for (host, is_one) in [
            ("web", true),
            ("web.shop.svc.cluster.local", true),
            ("*", true),
            ("*.shop.svc.cluster.local", true),
            ("*.local", true),
            ("*web", false),
            ("web.*", false),
            ("*.*", false),
            ("*..local", false),
        ] {
            assert_eq!(mistakes(json!({"host": host})).is_empty(), is_one, "{host}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_policy_is_told_by_its_field() {
        let lb = |lb: Value| json!({"loadBalancer": lb});
        let locality = |setting: Value| lb(json!({"localityLbSetting": setting}));
        let distribute = |to: Value| locality(json!({"distribute": [{"from": "eu/*", "to": to}]}));
        let pool = |tcp: Value| json!({"connectionPool": {"tcp": tcp}});
        let outliers = |outliers: Value| json!({"outlierDetection": outliers});
        let hash = |hash: Value| lb(json!({"consistentHash": hash}));
        for (policy, field) in [
            (
                lb(json!({"simple": "RANDOM", "consistentHash": {"useSourceIp": true}})),
                "loadBalancer.consistentHash",
            ),
            (hash(json!({})), "loadBalancer.consistentHash"),
            (hash(json!({"useSourceIp": true, "httpHeaderName": "a"})), "loadBalancer.consistentHash"),
            (
                hash(json!({"useSourceIp": true, "maglev": {}, "ringHash": {}})),
                "loadBalancer.consistentHash.maglev",
            ),
            (hash(json!({"useSourceIp": true, "maglev": {}})), ""),
            (lb(json!({"warmup": {}})), "loadBalancer.warmup.duration"),
            (
                lb(json!({"warmup": {"duration": "1s", "minimumPercent": 101}})),
                "loadBalancer.warmup.minimumPercent",
            ),
            (lb(json!({"warmup": {"duration": "1s", "aggression": 0.5}})), "loadBalancer.warmup.aggression"),
            (lb(json!({"warmup": {"duration": "1s", "minimumPercent": 0, "aggression": 1}})), ""),
            (distribute(json!({"eu/a/*": 80, "eu/b/*": 20})), ""),
            (distribute(json!({"eu/a": 80, "eu/b": 10})), "loadBalancer.localityLbSetting.distribute[0].to"),
            (distribute(json!({"eu/a": 100, "eu/b": 0})), "loadBalancer.localityLbSetting.distribute[0].to"),
            (
                distribute(json!({"eu/*": 50, "eu/b/c": 50})),
                "loadBalancer.localityLbSetting.distribute[0].to",
            ),
            (distribute(json!({"*": 50, "eu": 50})), "loadBalancer.localityLbSetting.distribute[0].to"),
            (distribute(json!({"eu/*/c": 100})), "loadBalancer.localityLbSetting.distribute[0].to"),
            (distribute(json!({"eu/a": 50, "eu/ab": 50})), ""),
            (
                locality(json!({"distribute": [{"from": "", "to": {"eu": 100}}]})),
                "loadBalancer.localityLbSetting.distribute[0].from",
            ),
            (
                locality(
                    json!({"distribute": [{"from": "eu", "to": {"eu": 100}}], "failoverPriority": ["a"]}),
                ),
                "loadBalancer.localityLbSetting.distribute",
            ),
            (locality(json!({"failover": [{"from": "eu", "to": "us"}], "failoverPriority": ["a=b"]})), ""),
            (
                locality(json!({"failover": [{"from": "eu", "to": "eu"}]})),
                "loadBalancer.localityLbSetting.failover[0].to",
            ),
            (
                locality(json!({"failover": [{"from": "eu", "to": "us/a"}]})),
                "loadBalancer.localityLbSetting.failover[0].to",
            ),
            (
                locality(json!({"failoverPriority": ["=b"]})),
                "loadBalancer.localityLbSetting.failoverPriority[0]",
            ),
            (pool(json!({"maxConnections": -1})), "connectionPool.tcp.maxConnections"),
            (pool(json!({"idleTimeout": "0s"})), ""),
            (
                json!({"connectionPool": {"http": {"http1MaxPendingRequests": -1}}}),
                "connectionPool.http.http1MaxPendingRequests",
            ),
            (outliers(json!({"maxEjectionPercent": 101})), "outlierDetection.maxEjectionPercent"),
            (outliers(json!({"minHealthPercent": -1})), "outlierDetection.minHealthPercent"),
        ] {
            let wanted = |at: &str| if field.is_empty() { Vec::new() } else { vec![format!("{at}.{field}")] };
            let host = mistakes(json!({"host": "web", "trafficPolicy": policy.clone()}));
            assert_eq!(host, wanted("spec.trafficPolicy"), "{policy}");
            let subsets = json!([{"name": "a", "trafficPolicy": policy.clone()}]);
            let subset = mistakes(json!({"host": "web", "subsets": subsets}));
            assert_eq!(subset, wanted("spec.subsets[0].trafficPolicy"), "{policy}");
            let mut port = policy.clone();
            port["port"] = json!({"number": 80});
            let port = mistakes(json!({"host": "web", "trafficPolicy": {"portLevelSettings": [port]}}));
            assert_eq!(port, wanted("spec.trafficPolicy.portLevelSettings[0]"), "{policy}");
        }
        let port = json!({"port": {"number": 80}});
        let twice = json!({"host": "web", "trafficPolicy": {"portLevelSettings": [port, port, {}]}});
        let at = |index: usize| format!("spec.trafficPolicy.portLevelSettings[{index}].port.number");
        assert_eq!(mistakes(twice), [at(1), at(2)]);
    }
}
