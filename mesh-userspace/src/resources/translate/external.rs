//! What a Service says of clients outside the cluster: policies, addresses, who may come. Fields as kube-proxy reads them
//! (pkg/proxy/serviceport.go, pkg/api/v1/service/util.go, v1.36).

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServicePort, ServiceSpec};

use crate::model::{External, ServiceKind, TrafficPolicy};

/// A Service that has it is another proxy's business, whatever the value.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The same, of services without a cluster address.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Read where `spec.loadBalancerSourceRanges` is absent.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// The label that says so, where the service is not ours to serve.
pub(in crate::resources) fn left_alone(service: &Service) -> Option<&'static str> {
    let labels = service.metadata.labels.as_ref()?;
    [PROXY_NAME, HEADLESS].into_iter().find(|&label| labels.contains_key(label))
}

pub(in crate::resources) fn kind(spec: &ServiceSpec) -> ServiceKind {
    match spec.type_.as_deref() {
        Some("NodePort") => ServiceKind::NodePort,
        Some("LoadBalancer") => ServiceKind::LoadBalancer,
        _ => ServiceKind::ClusterIp,
    }
}

pub(in crate::resources) fn internal_policy(spec: &ServiceSpec) -> TrafficPolicy {
    policy(spec.internal_traffic_policy.as_deref())
}

/// `externalTrafficPolicy`, which holds only for what is meant to be reached from outside.
pub(in crate::resources) fn external_policy(spec: &ServiceSpec) -> TrafficPolicy {
    let is_meant_for_outside =
        kind(spec) != ServiceKind::ClusterIp || spec.external_ips.as_ref().is_some_and(|all| !all.is_empty());
    if is_meant_for_outside {
        policy(spec.external_traffic_policy.as_deref())
    } else {
        TrafficPolicy::Cluster
    }
}

fn policy(written: Option<&str>) -> TrafficPolicy {
    if written == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

/// Everything outside clients need; `own` are the service's cluster addresses, whose families alone are served.
pub(in crate::resources) fn external(service: &Service, spec: &ServiceSpec, own: &[IpAddr]) -> External {
    let policy = external_policy(spec);
    let has_family = |address: &IpAddr| has_family(own, *address);
    let addresses = spec.external_ips.iter().flatten().filter_map(|address| address.parse().ok());
    External {
        policy,
        addresses: addresses.filter(has_family).collect(),
        load_balancer: virtual_addresses(service).filter(has_family).collect(),
        source_ranges: source_ranges(service).allowed,
        health_check_port: health_check_port(spec),
    }
}

pub(in crate::resources) fn has_family(own: &[IpAddr], address: IpAddr) -> bool {
    own.iter().any(|own| own.is_ipv4() == address.is_ipv4())
}

/// The load balancer's addresses that packets arrive with.
pub(in crate::resources) fn virtual_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let is_virtual =
        |ingress: &&LoadBalancerIngress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
    ingress(service).filter(is_virtual).filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
}

pub(in crate::resources) fn ingress(service: &Service) -> impl Iterator<Item = &LoadBalancerIngress> {
    let status = service.status.iter().flat_map(|status| &status.load_balancer);
    status.flat_map(|balancer| balancer.ingress.iter().flatten())
}

/// `healthCheckNodePort` of a load balancer under the policy Local.
pub(in crate::resources) fn health_check_port(spec: &ServiceSpec) -> Option<u16> {
    let is_served = kind(spec) == ServiceKind::LoadBalancer && external_policy(spec) == TrafficPolicy::Local;
    let port = spec.health_check_node_port.filter(|_| is_served)?;
    u16::try_from(port).ok().filter(|&port| port != 0)
}

pub(in crate::resources) fn node_port(port: &ServicePort) -> Option<u16> {
    port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0)
}

/// Who may come to the load balancer's addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::resources) struct SourceRanges {
    /// Empty: everybody. Otherwise complete for both families.
    pub(in crate::resources) allowed: Vec<IpNet>,
    /// What is no range, and the field that it is in.
    pub(in crate::resources) bad: Vec<(String, String)>,
}

/// kube-proxy decides for each family by itself: one that has no range, or the range of everything, is open. Where only one
/// of them is, its range of everything is written out.
pub(in crate::resources) fn source_ranges(service: &Service) -> SourceRanges {
    let mut found = SourceRanges::default();
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (field, text) in written_ranges(service) {
        match text.trim().parse::<IpNet>() {
            Ok(IpNet::V4(range)) => v4.push(range.trunc()),
            Ok(IpNet::V6(range)) => v6.push(range.trunc()),
            Err(_) => found.bad.push((field, text.to_owned())),
        }
    }
    if v4.iter().any(|range| range.prefix_len() == 0) {
        v4.clear();
    }
    if v6.iter().any(|range| range.prefix_len() == 0) {
        v6.clear();
    }
    match (v4.is_empty(), v6.is_empty()) {
        (true, false) => v4.push(Ipv4Net::default()),
        (false, true) => v6.push(Ipv6Net::default()),
        _ => {}
    }
    found.allowed = v4.into_iter().map(IpNet::V4).chain(v6.into_iter().map(IpNet::V6)).collect();
    found
}

fn written_ranges(service: &Service) -> Vec<(String, &str)> {
    let spec = service.spec.iter().flat_map(|spec| spec.load_balancer_source_ranges.iter().flatten());
    let written: Vec<(String, &str)> = spec
        .enumerate()
        .map(|(index, range)| (format!("spec.loadBalancerSourceRanges[{index}]"), range.as_str()))
        .collect();
    if !written.is_empty() {
        return written;
    }
    let annotation = service.metadata.annotations.as_ref().and_then(|all| all.get(SOURCE_RANGES));
    let annotation = annotation.map(|ranges| ranges.trim()).filter(|ranges| !ranges.is_empty());
    let field = || format!("metadata.annotations[{SOURCE_RANGES}]");
    annotation.into_iter().flat_map(|ranges| ranges.split(',')).map(|range| (field(), range)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_may_come() {
        let cases: Vec<(&str, Vec<&str>, Option<&str>, Vec<&str>, usize)> = vec![
            ("nothing written", vec![], None, vec![], 0),
            ("one family", vec!["10.0.0.1/8"], None, vec!["10.0.0.0/8", "::/0"], 0),
            ("the other", vec!["fd00::/8"], None, vec!["0.0.0.0/0", "fd00::/8"], 0),
            ("both", vec!["fd00::/8", "10.0.0.0/8"], None, vec!["10.0.0.0/8", "fd00::/8"], 0),
            ("everything", vec!["10.0.0.0/8", "0.0.0.0/0"], None, vec![], 0),
            (
                "everything of one family",
                vec!["0.0.0.0/0", "fd00::/8"],
                None,
                vec!["0.0.0.0/0", "fd00::/8"],
                0,
            ),
            ("everything of both", vec!["0.0.0.0/0", "::/0"], None, vec![], 0),
            ("blanks around", vec![" 10.0.0.0/8 "], None, vec!["10.0.0.0/8", "::/0"], 0),
            ("no range", vec!["10.0.0.0/33", "10.0.0.0/8", "10.1.2.3"], None, vec!["10.0.0.0/8", "::/0"], 2),
            (
                "the annotation",
                vec![],
                Some("10.0.0.0/8, 11.0.0.0/8"),
                vec!["10.0.0.0/8", "11.0.0.0/8", "::/0"],
                0,
            ),
            ("the spec before it", vec!["12.0.0.0/8"], Some("10.0.0.0/8"), vec!["12.0.0.0/8", "::/0"], 0),
            ("no range in it", vec![], Some("10.0.0.0/8,x"), vec!["10.0.0.0/8", "::/0"], 1),
            ("an empty one", vec![], Some(" "), vec![], 0),
        ];
        for (name, ranges, annotation, wanted, bad) in cases {
            let annotations =
                annotation.map(|text| json!({ SOURCE_RANGES: text })).unwrap_or_else(|| json!({}));
            let service: Service = serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "annotations": annotations},
                "spec": {"loadBalancerSourceRanges": ranges},
            }))
            .unwrap();
            let found = source_ranges(&service);
            let wanted: Vec<IpNet> = wanted.into_iter().map(|range| range.parse().unwrap()).collect();
            assert_eq!((found.allowed, found.bad.len()), (wanted, bad), "{name}");
        }
    }
}
