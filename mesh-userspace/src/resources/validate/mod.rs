//! What must hold of an object beyond its types. What passes here can be translated without further checks.

mod authorization;
mod destination_rule;
mod entry;
mod virtual_service;

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use self::authorization::{check_authorization_policy, check_known, check_top_level};
use self::destination_rule::check_destination_rule;
use self::entry::{check_service_entry, check_workload_entry};
use self::virtual_service::check_virtual_service;
use super::gateway::GatewayRoute;
use super::istio::PeerAuthentication;
use super::translate::external::ingress;
use super::{Code, Object};

/// What is wrong with an object.
#[derive(Debug, Default)]
pub(super) struct Mistaken(Vec<Wrong>);

/// What is wrong with a field.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) code: Code,
    /// The field's path.
    pub(super) field: String,
    pub(super) reason: String,
}

impl Mistaken {
    /// A field that cannot be what it is, by its path, and why.
    fn push(&mut self, (field, reason): (String, String)) {
        self.0.push(Wrong { code: Code::Invalid, field, reason });
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl IntoIterator for Mistaken {
    type Item = Wrong;
    type IntoIter = std::vec::IntoIter<Wrong>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Everything that is wrong with the object; of Pods, Services and slices, what [`check_pod`],
/// [`check_service`] and [`check_slice`] do not tell.
pub(super) fn validate(object: &Object) -> Mistaken {
    let mut wrong = Mistaken::default();
    let reference = object.reference();
    check_name(&mut wrong, "metadata.name", &reference.name);
    if !reference.kind.is_cluster_wide() {
        check_name(&mut wrong, "metadata.namespace", &reference.namespace);
    }
    match object {
        Object::VirtualService(rule) => check_virtual_service(&mut wrong, rule, &reference.namespace),
        Object::DestinationRule(rule) => check_destination_rule(&mut wrong, rule),
        Object::ServiceEntry(entry) => check_service_entry(&mut wrong, entry),
        Object::WorkloadEntry(entry) => check_workload_entry(&mut wrong, entry),
        Object::PeerAuthentication(policy) => check_peer_authentication(&mut wrong, policy),
        Object::AuthorizationPolicy(policy) => {
            check_authorization_policy(&mut wrong, policy, &reference.namespace);
        }
        Object::TcpRoute(route) | Object::TlsRoute(route) => check_gateway_route(&mut wrong, route),
        Object::Namespace(_)
        | Object::ReferenceGrant(_)
        | Object::Node(_)
        | Object::Pod(_)
        | Object::Service(_)
        | Object::ServiceAccount(_)
        | Object::EndpointSlice(_)
        | Object::Unsupported(_) => {}
    }
    wrong
}

/// The names become parts of SPIFFE IDs and hosts.
fn check_name(wrong: &mut Mistaken, field: &str, name: &str) {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let valid =
        !name.is_empty() && name.len() <= 253 && name.bytes().all(allowed) && name != "." && name != "..";
    if !valid {
        wrong.push((field.to_owned(), format!("{name:?} is no Kubernetes name")));
    }
}

/// An address that others come to: of a pod, an endpoint or a service.
fn check_address(wrong: &mut Mistaken, field: String, address: &str) {
    match address.parse::<IpAddr>() {
        Ok(address) if is_special(address) => {
            wrong.push((field, format!("{address} is no address that others can come to")));
        }
        Ok(address) if address.to_canonical() != address => {
            wrong.push((field, format!("{address} is an IPv4 address: write it as one")));
        }
        Ok(_) => {}
        Err(_) => wrong.push((field, format!("{address:?} is no IP address"))),
    }
}

fn check_port(wrong: &mut Mistaken, field: String, port: impl Into<i64>) {
    let port = port.into();
    if !(1..=65535).contains(&port) {
        wrong.push((field, format!("{port} is no port, those are 1 to 65535")));
    }
}

fn check_protocol(wrong: &mut Mistaken, field: String, protocol: Option<&str>) {
    if let Some(protocol) = protocol
        && !matches!(protocol, "TCP" | "UDP" | "SCTP")
    {
        wrong.push((field, format!("{protocol:?} is none of TCP, UDP, SCTP")));
    }
}

/// Everything that is wrong with a Pod, its names aside.
pub(super) fn check_pod(wrong: &mut Mistaken, pod: &Pod) {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    if let Some(account) = account.filter(|account| !account.is_empty()) {
        check_name(wrong, "spec.serviceAccountName", account);
    }
    let Some(status) = &pod.status else { return };
    if let Some(address) = status.pod_ip.as_deref().filter(|address| !address.is_empty()) {
        check_address(wrong, "status.podIP".to_owned(), address);
    }
    for (index, address) in status.pod_ips.iter().flatten().enumerate() {
        check_address(wrong, format!("status.podIPs[{index}].ip"), &address.ip);
    }
}

/// Everything that is wrong with a Service, its names aside.
pub(super) fn check_service(wrong: &mut Mistaken, service: &Service) {
    let Some(spec) = &service.spec else {
        wrong.push(("spec".to_owned(), "missing".to_owned()));
        return;
    };
    let is_address = |address: &&str| !address.is_empty() && *address != "None";
    if let Some(address) = spec.cluster_ip.as_deref().filter(is_address) {
        check_address(wrong, "spec.clusterIP".to_owned(), address);
    }
    for (index, address) in spec.cluster_ips.iter().flatten().enumerate() {
        if is_address(&address.as_str()) {
            check_address(wrong, format!("spec.clusterIPs[{index}]"), address);
        }
    }
    check_reach(wrong, service, spec);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        check_port(wrong, format!("spec.ports[{index}].port"), port.port);
        check_protocol(wrong, format!("spec.ports[{index}].protocol"), port.protocol.as_deref());
        if let Some(number) = port.node_port.filter(|&number| number != 0) {
            check_port(wrong, format!("spec.ports[{index}].nodePort"), number);
        }
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            wrong.push((
                format!("spec.ports[{index}].name"),
                "needed where there are several ports".to_owned(),
            ));
        } else if !names.insert(name) {
            wrong.push((format!("spec.ports[{index}].name"), format!("{name:?} is there twice")));
        }
        if !numbers.insert((port.port, port.protocol.as_deref().unwrap_or("TCP"))) {
            wrong.push((format!("spec.ports[{index}].port"), format!("{} is there twice", port.port)));
        }
        if let Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(target)) = port.target_port
        {
            check_port(wrong, format!("spec.ports[{index}].targetPort"), target);
        }
    }
}

/// Type, policies, affinity and addresses: what the API server would refuse.
fn check_reach(wrong: &mut Mistaken, service: &Service, spec: &ServiceSpec) {
    let policies = ["Cluster", "Local"];
    let words: [(&str, &Option<String>, &[&str]); 4] = [
        ("type", &spec.type_, &["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
        ("sessionAffinity", &spec.session_affinity, &["None", "ClientIP"]),
        ("internalTrafficPolicy", &spec.internal_traffic_policy, &policies),
        ("externalTrafficPolicy", &spec.external_traffic_policy, &policies),
    ];
    for (field, word, known) in words {
        if let Some(word) = word.as_deref().filter(|word| !word.is_empty() && !known.contains(word)) {
            wrong.push((format!("spec.{field}"), format!("{word:?} is none of {}", known.join(", "))));
        }
    }
    let client = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    if let Some(seconds) = client.and_then(|client| client.timeout_seconds)
        && !(1..=86_400).contains(&seconds)
    {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds".to_owned();
        wrong.push((field, format!("{seconds} is not from 1 to 86400")));
    }
    if let Some(port) = spec.health_check_node_port.filter(|&port| port != 0) {
        check_port(wrong, "spec.healthCheckNodePort".to_owned(), port);
    }
    for (index, address) in spec.external_ips.iter().flatten().enumerate() {
        check_address(wrong, format!("spec.externalIPs[{index}]"), address);
    }
    for (index, ingress) in ingress(service).enumerate() {
        if let Some(address) = ingress.ip.as_deref().filter(|address| !address.is_empty()) {
            check_address(wrong, format!("status.loadBalancer.ingress[{index}].ip"), address);
        }
    }
}

/// Addresses that `ValidateNonSpecialIP` of the API server refuses.
const fn is_special(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => {
            address.is_link_local() || (address.is_multicast() && address.octets()[1] == 0)
        }
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || matches!(address.segments()[0], 0xff02 | 0xff01)
        }
    };
    address.is_unspecified() || address.is_loopback() || is_link_local
}

/// Everything that is wrong with an `EndpointSlice`, its names aside.
pub(super) fn check_slice(wrong: &mut Mistaken, slice: &EndpointSlice) {
    if slice.address_type == "FQDN" {
        return;
    }
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        for (at, address) in endpoint.addresses.iter().enumerate() {
            check_address(wrong, format!("endpoints[{index}].addresses[{at}]"), address);
        }
    }
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        if let Some(number) = port.port {
            check_port(wrong, format!("ports[{index}].port"), number);
        }
        check_protocol(wrong, format!("ports[{index}].protocol"), port.protocol.as_deref());
    }
}

/// As the API's own definition of a route has it.
fn check_gateway_route(wrong: &mut Mistaken, route: &GatewayRoute) {
    for (index, parent) in route.spec.parent_refs.iter().enumerate() {
        let field = format!("spec.parentRefs[{index}]");
        check_name(wrong, &format!("{field}.name"), &parent.name);
        if let Some(port) = parent.port {
            check_port(wrong, format!("{field}.port"), port);
        }
    }
    for (index, hostname) in route.spec.hostnames.iter().enumerate() {
        if let Err(reason) = virtual_service::domain(hostname) {
            wrong.push((format!("spec.hostnames[{index}]"), reason));
        } else if hostname == "*" || hostname.parse::<IpAddr>().is_ok() {
            wrong.push((format!("spec.hostnames[{index}]"), format!("{hostname:?} is no name of a server")));
        }
    }
    for (index, rule) in route.spec.rules.iter().enumerate() {
        for (at, backend) in rule.backend_refs.iter().enumerate() {
            let field = format!("spec.rules[{index}].backendRefs[{at}]");
            check_name(wrong, &format!("{field}.name"), &backend.name);
            match backend.port {
                Some(port) => check_port(wrong, format!("{field}.port"), port),
                None if backend.is_service() => {
                    wrong.push((format!("{field}.port"), "missing: a Service needs one".to_owned()));
                }
                None => {}
            }
            if let Some(weight) = backend.weight.filter(|weight| !(0..=1_000_000).contains(weight)) {
                wrong.push((format!("{field}.weight"), format!("{weight} is none of 0 to 1000000")));
            }
        }
    }
}

fn check_peer_authentication(wrong: &mut Mistaken, policy: &PeerAuthentication) {
    let spec = &policy.spec;
    check_top_level(wrong, &policy.rest);
    check_known(wrong, "spec", &spec.rest);
    if let Some(selector) = &spec.selector {
        check_known(wrong, "spec.selector", &selector.rest);
    }
    if let Some(mtls) = &spec.mtls {
        check_known(wrong, "spec.mtls", &mtls.rest);
    }
    for (port, mtls) in &spec.port_level_mtls {
        check_known(wrong, &format!("spec.portLevelMtls.{port}"), &mtls.rest);
    }
    for port in policy.spec.port_level_mtls.keys() {
        let field = format!("spec.portLevelMtls.{port}");
        match port.parse::<i64>() {
            Ok(number) => check_port(wrong, field, number),
            Err(_) => wrong.push((field, format!("{port:?} is no port, those are 1 to 65535"))),
        }
    }
}
