//! What of a `DestinationRule` is not carried out, holds for some clients alone, or asks for what has no effect.

use serde_json::Value;

use super::{IGNORED, Notices, pattern};
use crate::model::Balancer;
use crate::resources::Code;
use crate::resources::destination_rule::{ConnectionPool, DestinationRule, LoadBalancer, Parts, TlsMode};
use crate::resources::fields::{Field, State, destination_rule as fields};
use crate::resources::istio::Rest;
use crate::resources::translate::settings::{balancer, takes_warmup};
use crate::resources::translate::spread::is_comparable;

pub(super) fn destination_rule(notices: &mut Notices, rule: &DestinationRule) {
    notices.top_level(&rule.rest);
    unhonoured(notices, "spec", &rule.spec.rest);
    for (index, subset) in rule.spec.subsets.iter().enumerate() {
        unhonoured(notices, &format!("spec.subsets[{index}]"), &subset.rest);
    }
    for (at, policy, _) in rule.policies() {
        unhonoured(notices, &at, &policy.rest);
        parts(notices, &at, &policy.parts());
        for (below, _, own) in policy.ports() {
            let at = format!("{at}.{below}");
            unhonoured(notices, &at, &own.rest);
            if let Some(port) = &own.port {
                unhonoured(notices, &format!("{at}.port"), &port.rest);
            }
            parts(notices, &at, &own.parts());
        }
    }
}

/// Names the fields that have no place of their own, with what becomes of them.
fn unhonoured(notices: &mut Notices, at: &str, rest: &Rest) {
    for (name, value) in rest {
        tell(notices, &format!("{at}.{name}"), value);
    }
}

fn tell(notices: &mut Notices, at: &str, value: &Value) {
    let path = pattern(at);
    let Some(Field { state, note, .. }) = fields::find(&path) else {
        return notices.add(Code::UnknownField, at, IGNORED);
    };
    match state {
        State::Layer7 => notices.add(Code::Layer7, at, format!("not honoured at layer 4: {note}")),
        State::NotYet => notices.add(Code::NotHonouredYet, at, format!("not honoured yet: {note}")),
        State::Partly | State::Honoured | State::Enrolled | State::Carried => match value {
            Value::Object(below) => {
                below.iter().for_each(|(name, value)| tell(notices, &format!("{at}.{name}"), value));
            }
            _ => notices.add(Code::SettingWithoutEffect, at, *note),
        },
    }
}

fn parts(notices: &mut Notices, at: &str, parts: &Parts<'_>) {
    if let Some(lb) = parts.load_balancer {
        load_balancer(notices, &format!("{at}.loadBalancer"), lb, parts.outlier_detection.is_some());
    }
    if let Some(pool) = parts.connection_pool {
        connection_pool(notices, &format!("{at}.connectionPool"), pool);
    }
    if let Some(outliers) = parts.outlier_detection {
        let at = format!("{at}.outlierDetection");
        unhonoured(notices, &at, &outliers.rest);
        needs_enrolled(
            notices,
            &at,
            "endpoints are watched and left out for the connections that agents carry: those of enrolled clients, and of clients from outside",
        );
        let splits = outliers.split_external_local_origin_errors == Some(true);
        if outliers.consecutive_local_origin_failures.is_some() && !splits {
            let message = "without effect: splitExternalLocalOriginErrors is not true";
            let field = format!("{at}.consecutiveLocalOriginFailures");
            notices.add(Code::SettingWithoutEffect, field, message);
        }
    }
    if let Some(tls) = parts.tls {
        let at = format!("{at}.tls");
        unhonoured(notices, &at, &tls.rest);
        if matches!(tls.mode, TlsMode::Simple | TlsMode::Mutual) {
            let message = "not honoured yet: the mesh originates no TLS but its own, which follows PeerAuthentication alone";
            notices.add(Code::NotHonouredYet, format!("{at}.mode"), message);
        }
    }
}

fn needs_enrolled(notices: &mut Notices, at: &str, message: &str) {
    notices.add(Code::NeedsEnrolledClients, at, message);
}

fn load_balancer(notices: &mut Notices, at: &str, lb: &LoadBalancer, has_outliers: bool) {
    unhonoured(notices, at, &lb.rest);
    let balancer = balancer(lb);
    if matches!(balancer, Balancer::RoundRobin | Balancer::LeastRequest) {
        let message = "what the kernel sends itself, for clients of this node that are not enrolled, goes to endpoints at random, by weight";
        notices.add(Code::ApproximatedInKernel, format!("{at}.simple"), message);
    }
    if let Some(hash) = &lb.consistent_hash {
        unhonoured(notices, &format!("{at}.consistentHash"), &hash.rest);
    }
    for (field, is_there) in
        [("warmup", lb.warmup.is_some()), ("warmupDurationSecs", lb.warmup_duration_secs.is_some())]
    {
        let at = format!("{at}.{field}");
        if is_there && takes_warmup(balancer) {
            needs_enrolled(
                notices,
                &at,
                "new endpoints get less at first of the connections that agents carry: those of enrolled clients, and of clients from outside",
            );
        } else if is_there {
            let message = "without effect: it is for ROUND_ROBIN and LEAST_REQUEST";
            notices.add(Code::SettingWithoutEffect, at, message);
        }
    }
    if let Some(warmup) = &lb.warmup {
        unhonoured(notices, &format!("{at}.warmup"), &warmup.rest);
    }
    let Some(setting) = &lb.locality_lb_setting else { return };
    let at = format!("{at}.localityLbSetting");
    unhonoured(notices, &at, &setting.rest);
    for (index, rule) in setting.distribute.iter().enumerate() {
        unhonoured(notices, &format!("{at}.distribute[{index}]"), &rule.rest);
    }
    for (index, rule) in setting.failover.iter().enumerate() {
        unhonoured(notices, &format!("{at}.failover[{index}]"), &rule.rest);
    }
    for (index, _) in setting.failover_priority.iter().enumerate().filter(|(_, label)| !is_comparable(label))
    {
        let message = "the clients of a node are many, their own labels are not compared: write KEY=VALUE, or a label of the topology";
        notices.add(Code::SettingWithoutEffect, format!("{at}.failoverPriority[{index}]"), message);
    }
    let lists = [
        ("failover", setting.failover.is_empty()),
        ("failoverPriority", setting.failover_priority.is_empty()),
    ];
    for (field, _) in lists.into_iter().filter(|(_, is_empty)| !is_empty && !has_outliers) {
        let message =
            "without effect: without outlierDetection beside it no endpoint is ever left for another";
        notices.add(Code::SettingWithoutEffect, format!("{at}.{field}"), message);
    }
}

fn connection_pool(notices: &mut Notices, at: &str, pool: &ConnectionPool) {
    unhonoured(notices, at, &pool.rest);
    if let Some(tcp) = &pool.tcp {
        let at = format!("{at}.tcp");
        unhonoured(notices, &at, &tcp.rest);
        if let Some(keepalive) = &tcp.tcp_keepalive {
            unhonoured(notices, &format!("{at}.tcpKeepalive"), &keepalive.rest);
        }
        needs_enrolled(
            notices,
            &at,
            "limits hold for the connections that agents carry: those of enrolled clients, and of clients from outside",
        );
    }
    if let Some(http) = &pool.http {
        let at = format!("{at}.http");
        unhonoured(notices, &at, &http.rest);
        if http.http1_max_pending_requests.is_some() {
            let at = format!("{at}.http1MaxPendingRequests");
            needs_enrolled(
                notices,
                &at,
                "it bounds the connects that agents carry: those of enrolled clients, and of clients from outside",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::{Kind, ObjectRef};

    fn told(policy: &Value) -> Vec<(Code, String)> {
        let spec = json!({"host": "web", "trafficPolicy": policy});
        let rule: DestinationRule = serde_json::from_value(json!({"spec": spec})).unwrap();
        let mut notices =
            Notices { object: ObjectRef::new(Kind::DestinationRule, "shop", "web"), list: Vec::new() };
        destination_rule(&mut notices, &rule);
        let field = |field: &str| field.strip_prefix("spec.trafficPolicy.").unwrap_or(field).to_owned();
        notices.list.iter().map(|notice| (notice.code, field(&notice.field))).collect()
    }

    #[test]
    fn paths() {
        for (field, wanted) in [
            ("spec.host", "spec.host"),
            (
                "spec.subsets[12].trafficPolicy.portLevelSettings[0].tls",
                "spec.subsets[].trafficPolicy.portLevelSettings[].tls",
            ),
            ("spec.a[1]", "spec.a[]"),
        ] {
            assert_eq!(pattern(field), wanted);
        }
    }

    #[test]
    fn each_field_is_told_once() {
        use Code::{
            ApproximatedInKernel, Layer7, NeedsEnrolledClients, NotHonouredYet, SettingWithoutEffect,
            UnknownField,
        };
        let cases = [
            (json!({"loadBalancer": {"simple": "RANDOM"}}), vec![]),
            (
                json!({"loadBalancer": {"simple": "LEAST_REQUEST"}}),
                vec![(ApproximatedInKernel, "loadBalancer.simple")],
            ),
            (
                json!({"loadBalancer": {"consistentHash": {"httpCookie": {"name": "a", "ttl": "0s"}}}}),
                vec![(Layer7, "loadBalancer.consistentHash.httpCookie")],
            ),
            (
                json!({"loadBalancer": {"consistentHash": {"useSourceIp": true, "maglev": {"tableSize": 7}}}}),
                vec![(SettingWithoutEffect, "loadBalancer.consistentHash.maglev.tableSize")],
            ),
            (
                json!({"loadBalancer": {"consistentHash": {"useSourceIp": true, "minimumRingSize": 7}}}),
                vec![(SettingWithoutEffect, "loadBalancer.consistentHash.minimumRingSize")],
            ),
            (
                json!({"loadBalancer": {"simple": "RANDOM", "warmup": {"duration": "1s"}}}),
                vec![(SettingWithoutEffect, "loadBalancer.warmup")],
            ),
            (
                json!({"loadBalancer": {"warmupDurationSecs": "1s"}}),
                vec![(NeedsEnrolledClients, "loadBalancer.warmupDurationSecs")],
            ),
            (
                json!({"loadBalancer": {"localityLbSetting": {"failoverPriority": ["version", "a=b", "topology.kubernetes.io/zone"]}}}),
                vec![
                    (SettingWithoutEffect, "loadBalancer.localityLbSetting.failoverPriority[0]"),
                    (SettingWithoutEffect, "loadBalancer.localityLbSetting.failoverPriority"),
                ],
            ),
            (
                json!({"loadBalancer": {"localityLbSetting": {"failover": [{"from": "eu", "to": "us"}]}}, "outlierDetection": {}}),
                vec![(NeedsEnrolledClients, "outlierDetection")],
            ),
            (
                json!({"connectionPool": {"tcp": {"maxConnections": 1}, "http": {"maxRetries": 1, "http1MaxPendingRequests": 1}}}),
                vec![
                    (NeedsEnrolledClients, "connectionPool.tcp"),
                    (Layer7, "connectionPool.http.maxRetries"),
                    (NeedsEnrolledClients, "connectionPool.http.http1MaxPendingRequests"),
                ],
            ),
            (
                json!({"outlierDetection": {"consecutiveLocalOriginFailures": 1}}),
                vec![
                    (NeedsEnrolledClients, "outlierDetection"),
                    (SettingWithoutEffect, "outlierDetection.consecutiveLocalOriginFailures"),
                ],
            ),
            (
                json!({"tls": {"mode": "SIMPLE", "sni": "a"}}),
                vec![(NotHonouredYet, "tls.sni"), (NotHonouredYet, "tls.mode")],
            ),
            (json!({"tls": {"mode": "ISTIO_MUTUAL"}}), vec![]),
            (
                json!({"tunnel": {"targetHost": "a"}, "proxyProtocol": {}, "retryBudget": {}}),
                vec![
                    (NotHonouredYet, "proxyProtocol"),
                    (NotHonouredYet, "retryBudget"),
                    (NotHonouredYet, "tunnel"),
                ],
            ),
            (json!({"loadBalncer": {}}), vec![(UnknownField, "loadBalncer")]),
            (
                json!({"portLevelSettings": [{"port": {"number": 80, "name": "a"}, "tls": {"sni": "a"}, "loadBalancer": {"simpel": 1}}]}),
                vec![
                    (UnknownField, "portLevelSettings[0].port.name"),
                    (UnknownField, "portLevelSettings[0].loadBalancer.simpel"),
                    (NotHonouredYet, "portLevelSettings[0].tls.sni"),
                ],
            ),
        ];
        for (policy, wanted) in cases {
            let told = told(&policy);
            let told: Vec<_> = told.iter().map(|(code, field)| (*code, field.as_str())).collect();
            assert_eq!(told, wanted, "{policy}");
        }
    }
}
