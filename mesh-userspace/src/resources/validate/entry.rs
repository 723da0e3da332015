//! What must hold of a `ServiceEntry` and of a `WorkloadEntry`: what the API's own definition and Istio's validation refuse
//! (istio, `pkg/config/validation`, `ValidateServiceEntry`, `ValidateWorkloadEntry`), and addresses to which nobody can connect.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Mistaken, check_address, check_name, check_port};
use crate::resources::entry::{EndpointAddress, EntryPort, ServiceEntry, WorkloadEntry, WorkloadEntrySpec};

/// What Istio knows as a port's protocol (`pkg/config/protocol`), in lower case.
const PROTOCOLS: [&str; 12] = [
    "tcp",
    "udp",
    "grpc",
    "grpc-web",
    "http",
    "http_proxy",
    "http2",
    "https",
    "tls",
    "mongo",
    "redis",
    "mysql",
];
/// Most hosts, addresses and ports of an entry.
const MOST: usize = 256;
/// Most endpoints of an entry.
const MOST_ENDPOINTS: usize = 4096;

/// Everything that is wrong with a `ServiceEntry`.
pub(super) fn check_service_entry(wrong: &mut Mistaken, entry: &ServiceEntry) {
    let spec = &entry.spec;
    let lists = [
        ("hosts", spec.hosts.len(), MOST),
        ("addresses", spec.addresses.len(), MOST),
        ("ports", spec.ports.len(), MOST),
        ("endpoints", spec.endpoints.len(), MOST_ENDPOINTS),
    ];
    for (list, count, most) in lists {
        if count > most {
            wrong.push((format!("spec.{list}"), format!("{count} of them, {most} may be")));
        }
    }
    if spec.hosts.is_empty() {
        wrong.push(("spec.hosts".to_owned(), "missing".to_owned()));
    }
    for (index, host) in spec.hosts.iter().enumerate() {
        check_host(wrong, format!("spec.hosts[{index}]"), host);
    }
    for (index, address) in spec.addresses.iter().enumerate() {
        let field = format!("spec.addresses[{index}]");
        match address.parse::<IpNet>() {
            Ok(network) if network.prefix_len() == network.max_prefix_len() => {
                check_address(wrong, field, &network.addr().to_string());
            }
            Ok(_) => {}
            Err(_) => check_address(wrong, field, address),
        }
    }
    check_ports(wrong, &spec.ports);
    if !spec.endpoints.is_empty() && spec.workload_selector.is_some() {
        let reason = "endpoints and workloadSelector exclude each other".to_owned();
        wrong.push(("spec.workloadSelector".to_owned(), reason));
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let at = format!("spec.endpoints[{index}]");
        check_endpoint(wrong, &at, endpoint);
        let is_named = |name: &str| spec.ports.iter().any(|port| port.name == name);
        for name in endpoint.ports.keys().filter(|name| !is_named(name)) {
            wrong.push((format!("{at}.ports.{name}"), format!("the entry has no port {name:?}")));
        }
    }
    for (index, namespace) in spec.export_to.iter().enumerate() {
        if !matches!(namespace.as_str(), "." | "*" | "~") {
            check_name(wrong, &format!("spec.exportTo[{index}]"), namespace);
        }
    }
}

/// Everything that is wrong with a `WorkloadEntry`.
pub(super) fn check_workload_entry(wrong: &mut Mistaken, entry: &WorkloadEntry) {
    check_endpoint(wrong, "spec", &entry.spec);
}

/// A host of DNS, whose first part may be a wildcard.
fn check_host(wrong: &mut Mistaken, field: String, host: &str) {
    let rest = host.strip_prefix("*.").unwrap_or(host);
    let is_label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.len() > 253 || !rest.split('.').all(is_label) {
        wrong.push((field, format!("{host:?} is no host")));
    }
}

fn check_ports(wrong: &mut Mistaken, ports: &[EntryPort]) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        check_port(wrong, format!("{at}.number"), port.number);
        if !numbers.insert(port.number) {
            wrong.push((format!("{at}.number"), format!("{} is there twice", port.number)));
        }
        if port.name.is_empty() {
            wrong.push((format!("{at}.name"), "missing".to_owned()));
        } else if !names.insert(&port.name) {
            wrong.push((format!("{at}.name"), format!("{:?} is there twice", port.name)));
        }
        let protocol = port.protocol.to_ascii_lowercase();
        if !protocol.is_empty() && !PROTOCOLS.contains(&protocol.as_str()) {
            let known = PROTOCOLS.join(", ").to_ascii_uppercase();
            wrong.push((format!("{at}.protocol"), format!("{:?} is none of {known}", port.protocol)));
        }
        if port.target_port != 0 {
            check_port(wrong, format!("{at}.targetPort"), port.target_port);
        }
    }
}

/// An endpoint of an entry, or a workload.
fn check_endpoint(wrong: &mut Mistaken, at: &str, endpoint: &WorkloadEntrySpec) {
    let field = format!("{at}.address");
    match endpoint.target() {
        EndpointAddress::Ip(_) => check_address(wrong, field, &endpoint.address),
        EndpointAddress::Nothing if endpoint.network.is_empty() => {
            wrong.push((field, "missing: it is needed where there is no network".to_owned()));
        }
        EndpointAddress::Nothing => {}
        EndpointAddress::Unix(path) => {
            let path = path.strip_prefix("unix://").unwrap_or(path);
            if !path.starts_with(['/', '@']) || path.ends_with('/') {
                wrong.push((field, format!("{path:?} is no absolute path of a socket")));
            }
            if !endpoint.ports.is_empty() {
                wrong.push((format!("{at}.ports"), "a socket has no ports".to_owned()));
            }
        }
        // What looks like an address and is none must not be taken for a name.
        EndpointAddress::Name(name) if name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => {
            wrong.push((field, format!("{name:?} is no IP address")));
        }
        EndpointAddress::Name(name) if name.contains('*') => {
            wrong.push((field, format!("{name:?} is no host")));
        }
        EndpointAddress::Name(name) => check_host(wrong, field, name),
    }
    for (name, &port) in &endpoint.ports {
        check_port(wrong, format!("{at}.ports.{name}"), port);
    }
    if let Some(account) = endpoint.account() {
        check_name(wrong, &format!("{at}.serviceAccount"), account);
    }
}

#[cfg(test)]
mod tests {
    use crate::resources::decode;

    #[test]
    fn what_cannot_be_is_rejected_with_its_field() {
        let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n";
        let ports = "ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC";
        let cases: &[(&str, String, &str, &str)] = &[
            ("no host", format!("  {{{ports}}}"), "spec.hosts", "missing"),
            ("any host", format!("  {{hosts: ['*'], {ports}}}"), "spec.hosts[0]", "no host"),
            ("a wildcard inside", format!("  {{hosts: [a.*.com], {ports}}}"), "spec.hosts[0]", "no host"),
            ("an empty part", format!("  {{hosts: [a..com], {ports}}}"), "spec.hosts[0]", "no host"),
            (
                "no address",
                format!("  {{hosts: [a.com], addresses: [10.0.0.256], {ports}}}"),
                "spec.addresses[0]",
                "no IP address",
            ),
            (
                "a network that is none",
                format!("  {{hosts: [a.com], addresses: [10.0.0.0/33], {ports}}}"),
                "spec.addresses[0]",
                "no IP address",
            ),
            (
                "loopback, written as a network",
                format!("  {{hosts: [a.com], addresses: [127.0.0.1/32], {ports}}}"),
                "spec.addresses[0]",
                "no address that others can come to",
            ),
            (
                "port out of range",
                "  {hosts: [a.com], ports: [{number: 70000, name: a}]}".into(),
                "spec.ports[0].number",
                "1 to 65535",
            ),
            ("no name", "  {hosts: [a.com], ports: [{number: 80}]}".into(), "spec.ports[0].name", "missing"),
            (
                "a name twice",
                "  {hosts: [a.com], ports: [{number: 80, name: a}, {number: 81, name: a}]}".into(),
                "spec.ports[1].name",
                "twice",
            ),
            (
                "a number twice",
                "  {hosts: [a.com], ports: [{number: 80, name: a}, {number: 80, name: b}]}".into(),
                "spec.ports[1].number",
                "twice",
            ),
            (
                "a protocol that nobody knows",
                "  {hosts: [a.com], ports: [{number: 80, name: a, protocol: QUICK}]}".into(),
                "spec.ports[0].protocol",
                "none of TCP",
            ),
            (
                "target port",
                "  {hosts: [a.com], ports: [{number: 80, name: a, targetPort: 65536}]}".into(),
                "spec.ports[0].targetPort",
                "1 to 65535",
            ),
            (
                "resolution",
                "  {hosts: [a.com], resolution: STATC}".into(),
                "spec.resolution",
                "unknown variant",
            ),
            ("location", "  {hosts: [a.com], location: HERE}".into(), "spec.location", "unknown variant"),
            (
                "both kinds of endpoints",
                format!(
                    "  {{hosts: [a.com], {ports}, endpoints: [{{address: 10.0.0.1}}], workloadSelector: {{labels: {{a: b}}}}}}"
                ),
                "spec.workloadSelector",
                "exclude each other",
            ),
            (
                "an endpoint without an address",
                format!("  {{hosts: [a.com], {ports}, endpoints: [{{weight: 3}}]}}"),
                "spec.endpoints[0].address",
                "missing",
            ),
            (
                "an endpoint's address",
                format!("  {{hosts: [a.com], {ports}, endpoints: [{{address: 10.0.0.300}}]}}"),
                "spec.endpoints[0].address",
                "no IP address",
            ),
            (
                "a port of an endpoint that the entry does not have",
                format!(
                    "  {{hosts: [a.com], {ports}, endpoints: [{{address: 10.0.0.1, ports: {{web: 80}}}}]}}"
                ),
                "spec.endpoints[0].ports.web",
                "no port",
            ),
            (
                "a port of an endpoint out of range",
                format!(
                    "  {{hosts: [a.com], {ports}, endpoints: [{{address: 10.0.0.1, ports: {{http: 0}}}}]}}"
                ),
                "spec.endpoints[0].ports.http",
                "1 to 65535",
            ),
            (
                "a negative weight",
                format!("  {{hosts: [a.com], {ports}, endpoints: [{{address: 10.0.0.1, weight: -1}}]}}"),
                "spec.endpoints[0].weight",
                "u32",
            ),
            (
                "a socket with ports",
                format!(
                    "  {{hosts: [a.com], {ports}, endpoints: [{{address: 'unix:///a', ports: {{http: 1}}}}]}}"
                ),
                "spec.endpoints[0].ports",
                "socket",
            ),
            (
                "a socket without a path",
                format!("  {{hosts: [a.com], {ports}, endpoints: [{{address: 'unix://a'}}]}}"),
                "spec.endpoints[0].address",
                "absolute path",
            ),
            (
                "an account",
                format!(
                    "  {{hosts: [a.com], {ports}, endpoints: [{{address: 10.0.0.1, serviceAccount: a/b}}]}}"
                ),
                "spec.endpoints[0].serviceAccount",
                "no Kubernetes name",
            ),
            (
                "a namespace",
                format!("  {{hosts: [a.com], {ports}, exportTo: ['a b']}}"),
                "spec.exportTo[0]",
                "no Kubernetes name",
            ),
        ];
        for (name, spec, field, reason) in cases {
            let decoded = decode(&format!("{entry}{spec}\n"));
            let [mistake] = &decoded.mistakes[..] else { panic!("{name}: {decoded:?}") };
            assert!(decoded.objects.is_empty(), "{name}");
            assert_eq!(mistake.field, *field, "{name}: {mistake:?}");
            assert!(mistake.reason.contains(reason), "{name}: {mistake:?}");
        }
    }

    #[test]
    fn every_version_and_every_form_is_read() {
        for version in ["v1", "v1beta1", "v1alpha3"] {
            let text = format!(
                "apiVersion: networking.istio.io/{version}\nkind: ServiceEntry\nmetadata: {{name: a}}\nspec:\n  hosts: [a.com, '*.b.com']\n  \
                 addresses: [10.0.0.1, 10.1.0.0/16, 'fd00::/64', 10.2.0.1/32]\n  location: MESH_INTERNAL\n  resolution: DNS_ROUND_ROBIN\n  \
                 ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}, {{number: 81, name: any}}]\n  \
                 endpoints: [{{address: vm.example.com}}, {{address: 'unix:///run/a'}}, {{network: there, weight: 7}}]\n  exportTo: [., bank]\n---\n\
                 apiVersion: networking.istio.io/{version}\nkind: WorkloadEntry\nmetadata: {{name: a}}\nspec:\n  \
                 {{address: 10.0.0.1, ports: {{http: 80}}, labels: {{a: b}}, locality: r/z, serviceAccount: sa, weight: 3}}\n"
            );
            let decoded = decode(&text);
            assert!(decoded.mistakes.is_empty(), "{:?}", decoded.mistakes);
            assert_eq!(decoded.objects.len(), 2);
        }
        let decoded = decode(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec: {weight: 1}\n",
        );
        assert_eq!(decoded.mistakes[0].field, "spec.address");
    }
}
