//! Fields of `DestinationRule`s.
//!
//! A traffic policy stands in four places (of the host and of a subset, for all ports and for one); its fields are listed once.

use super::Field;
use super::State::{self, Carried, Honoured, Layer7, NotYet, Partly};

const FAILURES: &str = "as a connection can fail: refused, timed out, reset before the first byte";
const LOCALITY: &str =
    "locality: the node's labels topology.kubernetes.io/region, /zone and topology.istio.io/subzone";
const REQUESTS: &str = "requests are layer 7; connections are limited by tcp.maxConnections";
const NO_TLS: &str = "the mesh originates no TLS but its own; the application's TLS passes through";
const TABLE: &str =
    "the key is honoured as a Maglev table in either case; its size follows from the number of endpoints";

const fn field(path: &'static str, state: State, note: &'static str) -> Field {
    Field { path, state, note }
}

pub(super) const FIELDS: &[Field] = &[
    field(
        "spec.host",
        Honoured,
        "short by the rule's namespace, full, or with a wildcard `*.` in front; the most specific holds",
    ),
    field("spec.trafficPolicy", Honoured, "of the oldest rule for the host that has one"),
    field("spec.trafficPolicy.loadBalancer", Honoured, ""),
    field(
        "spec.trafficPolicy.loadBalancer.simple",
        Partly,
        "RANDOM in both planes; ROUND_ROBIN and LEAST_REQUEST (LEAST_CONN) where the agent carries the connection, else at random; PASSTHROUGH: at random, as without a mesh; nothing or UNSPECIFIED: at random",
    ),
    field("spec.trafficPolicy.loadBalancer.consistentHash", Partly, "useSourceIp alone"),
    field(
        "spec.trafficPolicy.loadBalancer.consistentHash.useSourceIp",
        Honoured,
        "by the pod or, from outside, the client's address; a pod that is not enrolled by its network namespace",
    ),
    field(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpHeaderName",
        Layer7,
        "endpoints are picked at random",
    ),
    field(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie",
        Layer7,
        "endpoints are picked at random",
    ),
    field(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName",
        Layer7,
        "endpoints are picked at random",
    ),
    field("spec.trafficPolicy.loadBalancer.consistentHash.ringHash", Partly, TABLE),
    field("spec.trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize", Partly, TABLE),
    field("spec.trafficPolicy.loadBalancer.consistentHash.maglev", Honoured, ""),
    field("spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize", Partly, TABLE),
    field("spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize", Partly, TABLE),
    field("spec.trafficPolicy.loadBalancer.localityLbSetting", Honoured, LOCALITY),
    field(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[]",
        Honoured,
        "endpoints in none of the localities get nothing",
    ),
    field(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[].from",
        Honoured,
        "of the client's node",
    ),
    field("spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[].to", Honoured, "exact shares"),
    field(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.failover[]",
        Carried,
        "needs outlierDetection; other clients stay with the first priority that has a ready endpoint",
    ),
    field(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.failover[].from",
        Carried,
        "region of the client's node",
    ),
    field("spec.trafficPolicy.loadBalancer.localityLbSetting.failover[].to", Carried, ""),
    field(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.failoverPriority",
        Partly,
        "needs outlierDetection, and holds as failover does; KEY=VALUE, and KEY of the topology (region, zone, sub-zone, kubernetes.io/hostname): a node has many clients, their own labels are not compared",
    ),
    field("spec.trafficPolicy.loadBalancer.localityLbSetting.enabled", Honoured, ""),
    field(
        "spec.trafficPolicy.loadBalancer.warmup",
        Carried,
        "with ROUND_ROBIN, LEAST_REQUEST or nothing for simple",
    ),
    field("spec.trafficPolicy.loadBalancer.warmup.duration", Carried, ""),
    field("spec.trafficPolicy.loadBalancer.warmup.minimumPercent", Carried, "10"),
    field("spec.trafficPolicy.loadBalancer.warmup.aggression", Carried, "1"),
    field("spec.trafficPolicy.loadBalancer.warmupDurationSecs", Carried, "deprecated: warmup.duration"),
    field("spec.trafficPolicy.connectionPool", Carried, "counted by each node's agent for itself"),
    field("spec.trafficPolicy.connectionPool.tcp", Carried, ""),
    field(
        "spec.trafficPolicy.connectionPool.tcp.maxConnections",
        Carried,
        "one more is refused at once; 0: no limit",
    ),
    field("spec.trafficPolicy.connectionPool.tcp.connectTimeout", Carried, "of each try"),
    field("spec.trafficPolicy.connectionPool.tcp.tcpKeepalive", Carried, ""),
    field("spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.probes", Carried, ""),
    field("spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.time", Carried, ""),
    field("spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.interval", Carried, ""),
    field("spec.trafficPolicy.connectionPool.tcp.idleTimeout", Carried, "0s: none"),
    field("spec.trafficPolicy.connectionPool.tcp.maxConnectionDuration", Carried, ""),
    field("spec.trafficPolicy.connectionPool.http", Partly, "http1MaxPendingRequests alone"),
    field(
        "spec.trafficPolicy.connectionPool.http.http1MaxPendingRequests",
        Carried,
        "connections that are being established at once; 0: no limit",
    ),
    field("spec.trafficPolicy.connectionPool.http.http2MaxRequests", Layer7, REQUESTS),
    field("spec.trafficPolicy.connectionPool.http.maxRequestsPerConnection", Layer7, REQUESTS),
    field(
        "spec.trafficPolicy.connectionPool.http.maxRetries",
        Layer7,
        "how many connects may be tried again at once is bounded by a budget",
    ),
    field(
        "spec.trafficPolicy.connectionPool.http.idleTimeout",
        Layer7,
        "without a request; tcp.idleTimeout is without a byte",
    ),
    field(
        "spec.trafficPolicy.connectionPool.http.h2UpgradePolicy",
        Layer7,
        "the application's protocol stays what it is",
    ),
    field(
        "spec.trafficPolicy.connectionPool.http.useClientProtocol",
        Layer7,
        "the application's protocol stays what it is",
    ),
    field("spec.trafficPolicy.connectionPool.http.maxConcurrentStreams", Layer7, REQUESTS),
    field("spec.trafficPolicy.outlierDetection", Carried, "seen by each node's agent for itself"),
    field("spec.trafficPolicy.outlierDetection.splitExternalLocalOriginErrors", Carried, ""),
    field(
        "spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
        Carried,
        "5; with splitExternalLocalOriginErrors alone",
    ),
    field("spec.trafficPolicy.outlierDetection.consecutiveGatewayErrors", Carried, FAILURES),
    field(
        "spec.trafficPolicy.outlierDetection.consecutive5xxErrors",
        Carried,
        "5; as a connection can fail: refused, timed out, reset before the first byte; 0: off",
    ),
    field(
        "spec.trafficPolicy.outlierDetection.consecutiveErrors",
        Carried,
        "deprecated: consecutiveGatewayErrors, where neither of the other two is given",
    ),
    field("spec.trafficPolicy.outlierDetection.interval", Carried, "10s"),
    field("spec.trafficPolicy.outlierDetection.baseEjectionTime", Carried, "30s"),
    field("spec.trafficPolicy.outlierDetection.maxEjectionPercent", Carried, "10"),
    field("spec.trafficPolicy.outlierDetection.minHealthPercent", Carried, "0"),
    field("spec.trafficPolicy.tls", Partly, "mode alone"),
    field(
        "spec.trafficPolicy.tls.mode",
        Partly,
        "whether the mesh's mutual TLS is spoken follows from PeerAuthentication; analyze tells where the two differ. SIMPLE and MUTUAL are not carried out",
    ),
    field("spec.trafficPolicy.tls.clientCertificate", NotYet, NO_TLS),
    field("spec.trafficPolicy.tls.privateKey", NotYet, NO_TLS),
    field("spec.trafficPolicy.tls.caCertificates", NotYet, NO_TLS),
    field("spec.trafficPolicy.tls.caCrl", NotYet, NO_TLS),
    field("spec.trafficPolicy.tls.credentialName", NotYet, NO_TLS),
    field("spec.trafficPolicy.tls.subjectAltNames", NotYet, NO_TLS),
    field("spec.trafficPolicy.tls.sni", NotYet, NO_TLS),
    field("spec.trafficPolicy.tls.insecureSkipVerify", NotYet, NO_TLS),
    field(
        "spec.trafficPolicy.portLevelSettings[]",
        Honoured,
        "in place of all of the policy's other settings, as in Istio: none is inherited",
    ),
    field("spec.trafficPolicy.portLevelSettings[].port", Honoured, ""),
    field("spec.trafficPolicy.portLevelSettings[].port.number", Honoured, "of the service"),
    field("spec.trafficPolicy.tunnel", NotYet, "connections go where they are routed, without a tunnel"),
    field(
        "spec.trafficPolicy.proxyProtocol",
        NotYet,
        "the endpoint sees the client's own address where it is enrolled",
    ),
    field("spec.trafficPolicy.retryBudget", NotYet, "the budget is the mesh's own"),
    field("spec.subsets[]", Honoured, "of all rules for the host; of one that two rules name the first's"),
    field("spec.subsets[].name", Honoured, ""),
    field("spec.subsets[].labels", Honoured, ""),
    field("spec.subsets[].trafficPolicy", Honoured, "stands above that of the host"),
    field("spec.exportTo", NotYet, "the rule holds for clients of every namespace"),
    field("spec.workloadSelector", NotYet, "the rule holds for every client"),
];

/// The field with this path, wherever a traffic policy stands.
pub(in crate::resources) fn find(path: &str) -> Option<&'static Field> {
    let path = path.replacen("spec.subsets[].trafficPolicy", "spec.trafficPolicy", 1);
    let at_port = "spec.trafficPolicy.portLevelSettings[].";
    let of_port = path.strip_prefix(at_port).filter(|rest| !rest.starts_with("port"));
    let path = of_port.map_or_else(|| path.clone(), |rest| format!("spec.trafficPolicy.{rest}"));
    FIELDS.iter().find(|field| field.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every path of the API, from the definition that the cluster has.
    fn of_the_api() -> impl Iterator<Item = &'static str> {
        let all = include_str!("../../../tests/data/istio-fields.txt").lines();
        all.filter_map(|line| line.strip_prefix("DestinationRule "))
    }

    /// Where nothing of what is beneath a field is listed, what is said of the field holds for all of it.
    #[test]
    fn every_field_of_the_api_is_here() {
        let paths: Vec<&str> = of_the_api().collect();
        assert!(paths.len() > 300, "{}", paths.len());
        let is_leaf = |field: &Field| {
            let below = |other: &Field| {
                other
                    .path
                    .strip_prefix(field.path)
                    .is_some_and(|rest| rest.starts_with('.') || rest.starts_with('['))
            };
            !FIELDS.iter().any(below)
        };
        let is_here = |path: &str| {
            let mut above = path;
            loop {
                if let Some(field) = find(above) {
                    return above == path || is_leaf(field);
                }
                let Some((rest, _)) = above.rsplit_once('.') else { return false };
                above = rest;
            }
        };
        let missing: Vec<&&str> = paths.iter().filter(|path| !is_here(path)).collect();
        assert!(missing.is_empty(), "{missing:#?}");
    }

    #[test]
    fn every_field_here_is_one_of_the_api() {
        let paths: BTreeSet<&str> = of_the_api().collect();
        let strange: Vec<&str> =
            FIELDS.iter().map(|field| field.path).filter(|path| !paths.contains(path)).collect();
        assert!(strange.is_empty(), "{strange:#?}");
    }
}
