//! `DestinationRule` as it is written (`networking.istio.io/v1`). What a field comes to is in `translate::settings` and
//! `translate::spread`, what of it is honoured in `fields::destination_rule`.
//!
//! Fields that are not understood are kept in `rest`, so that `lint` can name them.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::duration;
use super::istio::{self, Rest};

/// `networking.istio.io` `DestinationRule`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestinationRule {
    /// Name, namespace, age.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: DestinationRuleSpec,
    /// Everything else, `apiVersion` and `kind` among it.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `DestinationRule.spec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DestinationRuleSpec {
    /// The service's host, or hosts by a wildcard.
    #[serde(deserialize_with = "istio::host")]
    pub host: String,
    /// What holds for all of its connections.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named sets of its endpoints.
    pub subsets: Vec<Subset>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// A named set of a service's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Subset {
    /// Its name.
    pub name: String,
    /// Labels that an endpoint's workload must have.
    pub labels: BTreeMap<String, String>,
    /// What holds for connections to it.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `TrafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// How an endpoint is picked.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    pub connection_pool: Option<ConnectionPool>,
    /// Which endpoints are left out for a while.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS of the client.
    pub tls: Option<ClientTls>,
    /// What holds at single ports instead.
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `TrafficPolicy.PortTrafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PortTrafficPolicy {
    /// The service's port.
    pub port: Option<PortNumber>,
    /// As in [`TrafficPolicy`].
    pub load_balancer: Option<LoadBalancer>,
    /// As in [`TrafficPolicy`].
    pub connection_pool: Option<ConnectionPool>,
    /// As in [`TrafficPolicy`].
    pub outlier_detection: Option<OutlierDetection>,
    /// As in [`TrafficPolicy`].
    pub tls: Option<ClientTls>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `PortSelector`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortNumber {
    /// Port number.
    pub number: u32,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `LoadBalancerSettings`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancer {
    /// The algorithm.
    pub simple: Option<SimpleLb>,
    /// By a hash instead.
    pub consistent_hash: Option<ConsistentHash>,
    /// By where client and endpoint are.
    pub locality_lb_setting: Option<LocalityLbSetting>,
    /// New endpoints get less at first.
    pub warmup: Option<WarmupConfiguration>,
    /// Deprecated form of `warmup.duration`.
    #[serde(deserialize_with = "positive_duration", serialize_with = "written")]
    pub warmup_duration_secs: Option<Duration>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `LoadBalancerSettings.SimpleLB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// The mesh's own choice.
    Unspecified,
    /// Deprecated name of [`Self::LeastRequest`].
    LeastConn,
    /// At random.
    Random,
    /// Where the client asked to go.
    Passthrough,
    /// In turn.
    RoundRobin,
    /// The less busy of two.
    LeastRequest,
}

/// `ConsistentHashLB`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsistentHash {
    /// By the client's address.
    pub use_source_ip: Option<bool>,
    /// Everything else: keys of layer 7, sizes of tables.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `LocalityLoadBalancerSetting`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LocalityLbSetting {
    /// Shares of localities.
    pub distribute: Vec<Distribute>,
    /// From region to region.
    pub failover: Vec<Failover>,
    /// Labels that client and endpoint have alike, the weightiest first: `KEY` or `KEY=VALUE`.
    pub failover_priority: Vec<String>,
    /// `false`: localities do not matter.
    pub enabled: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `LocalityLoadBalancerSetting.Distribute`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Distribute {
    /// Where clients are: `REGION/ZONE/SUBZONE`, shorter, or with `*` at the end.
    pub from: String,
    /// Per cent by where endpoints are, in the same form.
    pub to: BTreeMap<String, u32>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `LocalityLoadBalancerSetting.Failover`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failover {
    /// Region of the clients.
    pub from: String,
    /// Region where they go when their own serves no more.
    pub to: String,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `WarmupConfiguration`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WarmupConfiguration {
    /// For how long.
    #[serde(deserialize_with = "positive_duration", serialize_with = "written")]
    pub duration: Option<Duration>,
    /// Share at the beginning.
    pub minimum_percent: Option<f64>,
    /// How the share grows.
    pub aggression: Option<f64>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `ConnectionPoolSettings`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionPool {
    /// Of connections.
    pub tcp: Option<TcpPool>,
    /// Of requests.
    pub http: Option<HttpPool>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `ConnectionPoolSettings.TCPSettings`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpPool {
    /// Open at once.
    pub max_connections: Option<i32>,
    /// For one try.
    #[serde(deserialize_with = "positive_duration", serialize_with = "written")]
    pub connect_timeout: Option<Duration>,
    /// `SO_KEEPALIVE`.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Without a byte.
    #[serde(deserialize_with = "optional_duration", serialize_with = "written")]
    pub idle_timeout: Option<Duration>,
    /// At most.
    #[serde(deserialize_with = "positive_duration", serialize_with = "written")]
    pub max_connection_duration: Option<Duration>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `ConnectionPoolSettings.TCPSettings.TcpKeepalive`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpKeepalive {
    /// Probes without an answer.
    pub probes: Option<u32>,
    /// Idle before the first.
    #[serde(deserialize_with = "positive_duration", serialize_with = "written")]
    pub time: Option<Duration>,
    /// Between them.
    #[serde(deserialize_with = "positive_duration", serialize_with = "written")]
    pub interval: Option<Duration>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `ConnectionPoolSettings.HTTPSettings`, as far as it has a meaning for connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpPool {
    /// Waiting for a connection at once.
    pub http1_max_pending_requests: Option<i32>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `OutlierDetection`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OutlierDetection {
    /// Whether failures to connect are counted apart.
    pub split_external_local_origin_errors: Option<bool>,
    /// Failures to connect in a row.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Gateway errors in a row.
    pub consecutive_gateway_errors: Option<u32>,
    /// Errors of any kind in a row.
    pub consecutive5xx_errors: Option<u32>,
    /// Deprecated.
    pub consecutive_errors: Option<i32>,
    /// Between looks.
    #[serde(deserialize_with = "positive_duration", serialize_with = "written")]
    pub interval: Option<Duration>,
    /// Of the first ejection.
    #[serde(deserialize_with = "positive_duration", serialize_with = "written")]
    pub base_ejection_time: Option<Duration>,
    /// Of the endpoints at once.
    pub max_ejection_percent: Option<i32>,
    /// With fewer well nobody is left out.
    pub min_health_percent: Option<i32>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `ClientTLSSettings`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientTls {
    /// `DISABLE` where nothing is said.
    pub mode: TlsMode,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `ClientTLSSettings.TLSmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// None.
    #[default]
    Disable,
    /// TLS that the proxy originates.
    Simple,
    /// The same, with certificates of the rule's own.
    Mutual,
    /// The mesh's own.
    IstioMutual,
}

/// A duration, or none; what cannot be one is the field's mistake.
fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let written = Option::<String>::deserialize(deserializer)?;
    written.map(|text| duration::duration(&text).map_err(D::Error::custom)).transpose()
}

/// As [`optional_duration`] reads it.
#[expect(clippy::ref_option, reason = "as serde calls it")]
fn written<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    let text = duration.map(|duration| format!("{}.{:09}s", duration.as_secs(), duration.subsec_nanos()));
    text.serialize(serializer)
}

/// The same, of a millisecond at least (`duration(self) >= duration('1ms')` in the API's own definition).
fn positive_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let written = Option::<String>::deserialize(deserializer)?;
    written.map(|text| duration::positive_duration(&text).map_err(D::Error::custom)).transpose()
}

impl DestinationRule {
    /// Every traffic policy with the path of its field, and the subset that it is of.
    pub(super) fn policies(&self) -> impl Iterator<Item = (String, &TrafficPolicy, Option<&Subset>)> {
        let whole =
            self.spec.traffic_policy.iter().map(|policy| ("spec.trafficPolicy".to_owned(), policy, None));
        let subsets = self.spec.subsets.iter().enumerate().filter_map(|(index, subset)| {
            let policy = subset.traffic_policy.as_ref()?;
            Some((format!("spec.subsets[{index}].trafficPolicy"), policy, Some(subset)))
        });
        whole.chain(subsets)
    }
}

/// What stands both in a traffic policy and in one of a single port.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts<'a> {
    pub(super) load_balancer: Option<&'a LoadBalancer>,
    pub(super) connection_pool: Option<&'a ConnectionPool>,
    pub(super) outlier_detection: Option<&'a OutlierDetection>,
    pub(super) tls: Option<&'a ClientTls>,
}

impl TrafficPolicy {
    pub(super) const fn parts(&self) -> Parts<'_> {
        Parts {
            load_balancer: self.load_balancer.as_ref(),
            connection_pool: self.connection_pool.as_ref(),
            outlier_detection: self.outlier_detection.as_ref(),
            tls: self.tls.as_ref(),
        }
    }

    /// The settings of single ports, with the port and the path behind the policy's own.
    pub(super) fn ports(&self) -> impl Iterator<Item = (String, u32, &PortTrafficPolicy)> {
        self.port_level_settings.iter().enumerate().map(|(index, one)| {
            let number = one.port.as_ref().map_or(0, |port| port.number);
            (format!("portLevelSettings[{index}]"), number, one)
        })
    }
}

impl PortTrafficPolicy {
    pub(super) const fn parts(&self) -> Parts<'_> {
        Parts {
            load_balancer: self.load_balancer.as_ref(),
            connection_pool: self.connection_pool.as_ref(),
            outlier_detection: self.outlier_detection.as_ref(),
            tls: self.tls.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::resources::decode;

    #[test]
    fn what_cannot_be_read_is_told_by_its_field() {
        for (policy, field) in [
            ("loadBalancer: {simple: FASTEST}", "loadBalancer.simple"),
            ("loadBalancer: {warmup: {duration: 1us}}", "loadBalancer.warmup.duration"),
            ("loadBalancer: {warmupDurationSecs: 10}", "loadBalancer.warmupDurationSecs"),
            ("connectionPool: {tcp: {connectTimeout: 0s}}", "connectionPool.tcp.connectTimeout"),
            (
                "connectionPool: {tcp: {maxConnectionDuration: 1 hour}}",
                "connectionPool.tcp.maxConnectionDuration",
            ),
            ("connectionPool: {tcp: {tcpKeepalive: {time: 0s}}}", "connectionPool.tcp.tcpKeepalive.time"),
            ("connectionPool: {tcp: {maxConnections: many}}", "connectionPool.tcp.maxConnections"),
            ("connectionPool: {tcp: {idleTimeout: 0s}}", ""),
            ("outlierDetection: {interval: 0s}", "outlierDetection.interval"),
            ("outlierDetection: {baseEjectionTime: 1us}", "outlierDetection.baseEjectionTime"),
            ("outlierDetection: {consecutive5xxErrors: -1}", "outlierDetection.consecutive5xxErrors"),
            ("tls: {mode: NONE}", "tls.mode"),
        ] {
            let decoded = decode(&format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a}}\nspec: {{host: a, trafficPolicy: {{{policy}}}}}\n"
            ));
            let fields: Vec<&str> = decoded.mistakes.iter().map(|mistake| mistake.field.as_str()).collect();
            let wanted = if field.is_empty() { vec![] } else { vec![format!("spec.trafficPolicy.{field}")] };
            assert_eq!(fields, wanted, "{policy}");
        }
    }
}
