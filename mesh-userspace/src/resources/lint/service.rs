//! What of a Service is not served, told from the object alone. Fields that ask nothing of a proxy
//! (`allocateLoadBalancerNodePorts`, `loadBalancerClass`, `loadBalancerIP`, `ipFamilyPolicy`, `externalName`) are somebody
//! else's to carry out.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::Notices;
use crate::model::{ServiceKind, TrafficPolicy};
use crate::resources::Code;
use crate::resources::translate::external::{
    external_policy, has_family, health_check_port, kind, left_alone, node_port, source_ranges,
    virtual_addresses,
};
use crate::resources::translate::service::cluster_addresses;

/// Values of `trafficDistribution` that somebody carries out.
const DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];

pub(super) fn service(notices: &mut Notices, service: &Service) {
    let Some(spec) = &service.spec else { return };
    if spec.type_.as_deref() == Some("ExternalName") {
        notices.add(Code::LeftToOthers, "spec.type", "left to DNS");
        return;
    }
    if let Some(label) = left_alone(service) {
        notices.add(Code::LeftToOthers, format!("metadata.labels[{label}]"), "left to another proxy");
        return;
    }
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        if port.protocol.as_deref() == Some("SCTP") {
            let message = "SCTP is not carried: connections to this port are not translated";
            notices.add(Code::Sctp, format!("spec.ports[{index}].protocol"), message);
        }
    }
    let distribution = spec.traffic_distribution.as_deref();
    if let Some(unknown) = distribution.filter(|value| !value.is_empty() && !DISTRIBUTIONS.contains(value)) {
        notices.add(Code::UnknownWord, "spec.trafficDistribution", format!("{unknown} is unknown, ignored"));
    }
    let own = cluster_addresses(spec);
    if own.is_empty() {
        without_address(notices, service, spec);
    } else {
        other_family(notices, service, spec, &own);
        without_effect(notices, service, spec);
    }
}

/// kube-proxy serves nothing of a service without a cluster address.
fn without_address(notices: &mut Notices, service: &Service, spec: &ServiceSpec) {
    let mut add = |field: String| {
        notices.add(Code::WithoutClusterAddress, field, "not served: the service has no cluster address");
    };
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        if node_port(port).is_some() {
            add(format!("spec.ports[{index}].nodePort"));
        }
    }
    if spec.external_ips.as_ref().is_some_and(|addresses| !addresses.is_empty()) {
        add("spec.externalIPs".to_owned());
    }
    if virtual_addresses(service).next().is_some() {
        add("status.loadBalancer.ingress".to_owned());
    }
    for (field, is_local) in local_policies(spec) {
        if is_local {
            add(field.to_owned());
        }
    }
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        add("spec.sessionAffinity".to_owned());
    }
}

/// kube-proxy serves outside addresses of those families alone in which the service has a cluster address.
fn other_family(notices: &mut Notices, service: &Service, spec: &ServiceSpec, own: &[IpAddr]) {
    let external = spec.external_ips.iter().flatten().filter_map(|address| address.parse().ok());
    let external = external.map(|address: IpAddr| ("spec.externalIPs", address));
    let balancer = virtual_addresses(service).map(|address| ("status.loadBalancer.ingress", address));
    for (field, address) in external.chain(balancer).filter(|(_, address)| !has_family(own, *address)) {
        let message = format!("{address} is not served: the service has no cluster address of its family");
        notices.add(Code::OtherFamily, field, message);
    }
}

/// What stands there and holds nothing.
fn without_effect(notices: &mut Notices, service: &Service, spec: &ServiceSpec) {
    let is_balanced = kind(spec) == ServiceKind::LoadBalancer;
    let ranges = source_ranges(service);
    let has_ranges = !ranges.allowed.is_empty();
    for (field, range) in ranges.bad {
        notices.add(Code::NotARange, field, format!("{range:?} is no range of addresses: it is passed over"));
    }
    if has_ranges && !is_balanced && virtual_addresses(service).next().is_none() {
        let message = "no effect: it holds at the addresses of a load balancer alone";
        notices.add(Code::WithoutEffect, "spec.loadBalancerSourceRanges", message);
    }
    let asks_for_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let is_local = external_policy(spec) == TrafficPolicy::Local;
    if asks_for_local && !is_local {
        let message = "no effect: the service is not reached from outside";
        notices.add(Code::WithoutEffect, "spec.externalTrafficPolicy", message);
    }
    let has_port = spec.health_check_node_port.is_some_and(|port| port != 0);
    if has_port && health_check_port(spec).is_none() {
        let message = "no effect: it needs type LoadBalancer and externalTrafficPolicy Local";
        notices.add(Code::WithoutEffect, "spec.healthCheckNodePort", message);
    } else if is_balanced && is_local && !has_port {
        let message = "absent: load balancers cannot ask this node whether it has endpoints";
        notices.add(Code::NoHealthCheckPort, "spec.healthCheckNodePort", message);
    }
    let has_config = spec.session_affinity_config.as_ref().is_some_and(|config| config.client_ip.is_some());
    if has_config && spec.session_affinity.as_deref() != Some("ClientIP") {
        let message = "no effect: sessionAffinity is not ClientIP";
        notices.add(Code::WithoutEffect, "spec.sessionAffinityConfig", message);
    }
}

fn local_policies(spec: &ServiceSpec) -> [(&'static str, bool); 2] {
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    [
        ("spec.internalTrafficPolicy", is_local(&spec.internal_traffic_policy)),
        ("spec.externalTrafficPolicy", is_local(&spec.external_traffic_policy)),
    ]
}

#[cfg(test)]
mod tests {
    use crate::resources::decode;
    use crate::resources::lint::lint;

    const EVERYTHING: &str = "
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd00::1']
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  ports: [{name: http, port: 80, nodePort: 30080, targetPort: 8080, appProtocol: http}]
  externalIPs: [192.0.2.1, '2001:db8::1']
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  healthCheckNodePort: 32000
  allocateLoadBalancerNodePorts: false
  loadBalancerClass: example.com/lb
  loadBalancerIP: 192.0.2.9
  loadBalancerSourceRanges: [192.0.2.0/24]
  publishNotReadyAddresses: true
  selector: {app: web}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  trafficDistribution: PreferSameZone
status: {loadBalancer: {ingress: [{ip: 192.0.2.2, ipMode: VIP}, {hostname: lb.example.com}]}}
";

    #[test]
    fn what_is_not_served_is_named() {
        let cluster = "clusterIP: 10.96.0.1, ports: [{port: 80}]";
        let headless = "clusterIP: None, ports: [{port: 80, nodePort: 30080}]";
        let cases: Vec<(&str, &str, String, Vec<(&str, &str)>)> = vec![
            ("every field that is honoured", "", EVERYTHING.to_owned(), vec![]),
            (
                "left to DNS",
                "",
                "{type: ExternalName, externalName: example.com}".into(),
                vec![("spec.type", "DNS")],
            ),
            (
                "another proxy's",
                "service.kubernetes.io/service-proxy-name: other",
                format!("{{{cluster}, externalTrafficPolicy: Local}}"),
                vec![("metadata.labels[service.kubernetes.io/service-proxy-name]", "another proxy")],
            ),
            (
                "SCTP",
                "",
                "{clusterIP: 10.96.0.1, ports: [{name: a, port: 80}, {name: b, port: 81, protocol: SCTP}]}"
                    .into(),
                vec![("spec.ports[1].protocol", "SCTP is not carried")],
            ),
            (
                "without a cluster address",
                "",
                format!(
                    "{{{headless}, externalIPs: [192.0.2.1], internalTrafficPolicy: Local, sessionAffinity: ClientIP}}"
                ),
                vec![
                    ("spec.ports[0].nodePort", "no cluster address"),
                    ("spec.externalIPs", "no cluster address"),
                    ("spec.internalTrafficPolicy", "no cluster address"),
                    ("spec.sessionAffinity", "no cluster address"),
                ],
            ),
            (
                "another family",
                "",
                format!("{{{cluster}, externalIPs: ['2001:db8::1', 192.0.2.1]}}"),
                vec![("spec.externalIPs", "2001:db8::1 is not served")],
            ),
            (
                "policies of what nobody reaches from outside",
                "",
                format!("{{{cluster}, externalTrafficPolicy: Local, healthCheckNodePort: 32000}}"),
                vec![("spec.externalTrafficPolicy", "no effect"), ("spec.healthCheckNodePort", "no effect")],
            ),
            (
                "a health check that nobody serves",
                "",
                format!("{{type: LoadBalancer, {cluster}, externalTrafficPolicy: Local}}"),
                vec![("spec.healthCheckNodePort", "absent")],
            ),
            (
                "no range",
                "",
                format!(
                    "{{type: LoadBalancer, {cluster}, loadBalancerSourceRanges: [10.0.0.0/8, 10.0.0.0/33]}}"
                ),
                vec![("spec.loadBalancerSourceRanges[1]", "no range")],
            ),
            (
                "ranges without a load balancer",
                "",
                format!("{{{cluster}, loadBalancerSourceRanges: [10.0.0.0/8]}}"),
                vec![("spec.loadBalancerSourceRanges", "no effect")],
            ),
            (
                "words that nobody knows",
                "",
                format!(
                    "{{{cluster}, trafficDistribution: Near, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: 1}}}}}}"
                ),
                vec![("spec.trafficDistribution", "unknown"), ("spec.sessionAffinityConfig", "no effect")],
            ),
        ];
        for (name, label, spec, wanted) in cases {
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: a, labels: {{{label}}}}}\nspec: {spec}\n"
            );
            let decoded = decode(&text);
            assert!(decoded.mistakes.is_empty(), "{name}: {decoded:?}");
            let notices = lint(&decoded.objects[0].object, "istio-system");
            assert_eq!(notices.len(), wanted.len(), "{name}: {notices:?}");
            for (notice, (field, message)) in notices.iter().zip(wanted) {
                assert_eq!(notice.field, field, "{name}");
                assert!(notice.message.contains(message), "{name}: {notice}");
            }
        }
    }
}
