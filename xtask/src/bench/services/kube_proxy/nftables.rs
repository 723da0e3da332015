//! The nftables mode: input of `nft -f -`, a line an object as knftables writes it, each rule as `nft list` prints it.

use std::fmt::Write as _;

use super::names::{nftables_chain, nftables_endpoint_name};
use super::service::{Endpoint, Service};
use super::{Config, Sync};

const REJECT_CHAIN: &str = "reject-chain";
const MASQUERADE: &str = "meta mark set meta mark | 0x00004000";

/// Chains on the netfilter hooks.
const BASE_CHAINS: [(&str, &str); 8] = [
    ("filter-prerouting-pre-dnat", "type filter hook prerouting priority dstnat - 10; policy accept;"),
    ("filter-output-pre-dnat", "type filter hook output priority -110; policy accept;"),
    ("filter-input", "type filter hook input priority filter; policy accept;"),
    ("filter-forward", "type filter hook forward priority filter; policy accept;"),
    ("filter-output", "type filter hook output priority filter; policy accept;"),
    ("nat-prerouting", "type nat hook prerouting priority dstnat; policy accept;"),
    ("nat-output", "type nat hook output priority -100; policy accept;"),
    ("nat-postrouting", "type nat hook postrouting priority srcnat; policy accept;"),
];

/// Chains that those jump to: chain, from, for what.
const JUMP_CHAINS: [(&str, &str, &str); 11] = [
    ("nodeport-endpoints-check", "filter-input", "ct state new "),
    ("service-endpoints-check", "filter-input", "ct state new "),
    ("service-endpoints-check", "filter-forward", "ct state new "),
    ("service-endpoints-check", "filter-output", "ct state new "),
    ("firewall-check", "filter-prerouting-pre-dnat", "ct state new "),
    ("firewall-check", "filter-output-pre-dnat", "ct state new "),
    ("services", "nat-output", ""),
    ("services", "nat-prerouting", ""),
    ("masquerading", "nat-postrouting", ""),
    ("cluster-ips-check", "filter-forward", "ct state new "),
    ("cluster-ips-check", "filter-output", "ct state new "),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// One sync of both families; no service here has an IPv6 address. A partial one takes nothing out of the sets and maps that
/// all share: it is for changes of endpoints on other nodes, which have no element there.
pub(crate) fn transaction(config: &Config, services: &[Service], sync: Sync) -> String {
    let mut tx = Transaction { family: Family::V4, text: String::new() };
    if sync == Sync::Full {
        set_up(config, &mut tx);
    }
    for (_, service) in services.iter().enumerate().filter(|(index, _)| sync.writes(*index)) {
        let own = own_chains(service);
        for chain in &own {
            tx.command("add chain", chain, "");
            tx.command("flush chain", chain, "");
        }
        if sync == Sync::Full {
            elements(service, &mut tx);
        }
        hairpins(service, &mut tx);
        rules(config, service, &mut tx);
    }
    if sync == Sync::Full {
        tx.family = Family::V6;
        set_up(config, &mut tx);
    }
    tx.text
}

fn set_up(config: &Config, tx: &mut Transaction) {
    let (ip, address) = match tx.family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let is_v4 = tx.family == Family::V4;
    let tuple = format!("{ip} daddr . meta l4proto . th dport");
    let service_key = format!("{address} . inet_proto . inet_service : verdict");
    tx.command("add table", "", r#"{ comment "rules for kube-proxy"; }"#);
    for (chain, hook) in BASE_CHAINS {
        tx.command("add chain", chain, &format!("{{ {hook} }}"));
        tx.command("flush chain", chain, "");
    }
    for (chain, from, when) in JUMP_CHAINS {
        tx.command("add chain", chain, "");
        tx.rule(from, &format!("{when}jump {chain}"));
    }
    tx.command(
        "add chain",
        REJECT_CHAIN,
        r#"{ comment "helper for @no-endpoint-services / @no-endpoint-nodeports"; }"#,
    );

    let hairpin = format!("{address} . {address} . inet_proto . inet_service");
    tx.declare("set", "hairpin-connections", &hairpin, "service hairpin connections");
    tx.declare("set", "cluster-ips", address, "Active ClusterIPs");
    let reject = "vmap to drop or reject packets to services with no endpoints";
    tx.declare("map", "no-endpoint-services", &service_key, reject);
    let port_key = "inet_proto . inet_service : verdict";
    let reject = "vmap to drop or reject packets to service nodeports with no endpoints";
    tx.declare("map", "no-endpoint-nodeports", port_key, reject);
    let ranges = "destinations that are subject to LoadBalancerSourceRanges";
    tx.declare("map", "firewall-ips", &service_key, ranges);
    tx.declare("map", "service-ips", &service_key, "ClusterIP, ExternalIP and LoadBalancer IP traffic");
    tx.declare("map", "service-nodeports", port_key, "NodePort traffic");

    tx.rule(
        "masquerading",
        "meta mark & 0x00004000 != 0x00000000 meta mark set meta mark ^ 0x00004000 masquerade fully-random",
    );
    tx.rule(
        "masquerading",
        &format!("ct status dnat {ip} saddr . {tuple} @hairpin-connections masquerade fully-random"),
    );
    tx.rule(
        "cluster-ips-check",
        &format!(r#"{ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs""#),
    );
    if is_v4 {
        let unallocated = format!(
            r#"ip daddr {} drop comment "Drop traffic to unallocated ClusterIPs""#,
            config.service_cidr
        );
        tx.rule("cluster-ips-check", &unallocated);
        tx.declare("set", "nodeport-ips", address, "IPs that accept NodePort traffic");
        tx.element("nodeport-ips", &config.node_ip.to_string());
    }
    tx.rule(REJECT_CHAIN, "reject");
    tx.rule("service-endpoints-check", &format!("{tuple} vmap @no-endpoint-services"));
    let (node_check, node_ports) = if is_v4 {
        ("ip daddr @nodeport-ips", "ip daddr @nodeport-ips")
    } else {
        ("ip6 daddr != ::1", "fib daddr type local ip6 daddr != ::1")
    };
    tx.rule(
        "nodeport-endpoints-check",
        &format!("{node_check} meta l4proto . th dport vmap @no-endpoint-nodeports"),
    );
    tx.rule("firewall-check", &format!("{tuple} vmap @firewall-ips"));
    if is_v4 {
        let outside = format!(
            r#"ip daddr @cluster-ips ip saddr != {} {MASQUERADE} comment "masquerade clusterIP traffic from outside cluster""#,
            config.cluster_cidr
        );
        tx.rule("services", &outside);
    }
    tx.rule("services", &format!("{tuple} vmap @service-ips"));
    tx.rule("services", &format!("{node_ports} meta l4proto . th dport vmap @service-nodeports"));
}

/// Names of a service's own chains, in the order in which kube-proxy makes them.
fn own_chains(service: &Service) -> Vec<String> {
    let endpoints = if service.affinity.is_some() { service.reachable_endpoints() } else { Vec::new() };
    let kinds = [
        ("service", !service.cluster_endpoints().is_empty()),
        ("local", !service.local_endpoints().is_empty()),
        ("external", service.has_external_chain()),
        ("firewall", service.has_firewall()),
    ];
    let endpoints =
        endpoints.into_iter().map(|endpoint| nftables_endpoint_name("endpoint", service, endpoint));
    let kinds = kinds.into_iter().filter(|(_, used)| *used).map(|(kind, _)| nftables_chain(kind, service));
    endpoints.chain(kinds).collect()
}

/// Endpoints of this node, which may reach themselves through the service.
fn hairpins(service: &Service, tx: &mut Transaction) {
    for Endpoint { address, port, .. } in
        service.reachable_endpoints().iter().filter(|endpoint| endpoint.local)
    {
        tx.element("hairpin-connections", &format!("{address} . {address} . {} . {port}", service.protocol));
    }
}

/// A service's elements in the sets and maps that all services share.
fn elements(service: &Service, tx: &mut Transaction) {
    let Service { protocol, port, cluster_ip, .. } = service;
    let label = service.port_label();
    let external = nftables_chain("external", service);
    // What becomes of traffic that no endpoint is for.
    let verdict = if service.has_endpoints() { "drop".to_owned() } else { format!("goto {REJECT_CHAIN}") };
    let refuse = |key: &str| format!(r#"{key} comment "{label}" : {verdict}"#);

    tx.element("cluster-ips", &cluster_ip.to_string());
    let key = format!("{cluster_ip} . {protocol} . {port}");
    if service.has_internal_endpoints() {
        let chain = nftables_chain(if service.internal_local { "local" } else { "service" }, service);
        tx.element("service-ips", &format!("{key} : goto {chain}"));
    } else {
        tx.element("no-endpoint-services", &refuse(&key));
    }
    for address in service.external_ips.iter().chain(&service.load_balancer_ips) {
        let key = format!("{address} . {protocol} . {port}");
        if service.has_endpoints() {
            tx.element("service-ips", &format!("{key} : goto {external}"));
        }
        if !service.has_external_endpoints() {
            tx.element("no-endpoint-services", &refuse(&key));
        }
    }
    if service.has_firewall() {
        for address in &service.load_balancer_ips {
            let chain = nftables_chain("firewall", service);
            tx.element("firewall-ips", &format!("{address} . {protocol} . {port} : goto {chain}"));
        }
    }
    if let Some(node_port) = service.node_port {
        let key = format!("{protocol} . {node_port}");
        if service.has_endpoints() {
            tx.element("service-nodeports", &format!("{key} : goto {external}"));
        }
        if !service.has_external_endpoints() {
            tx.element("no-endpoint-nodeports", &refuse(&key));
        }
    }
}

/// Rules of a service's own chains.
fn rules(config: &Config, service: &Service, tx: &mut Transaction) {
    if service.has_external_chain() {
        external_rules(config, service, tx);
    }
    if service.has_firewall() {
        let mut sources: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
        if service.source_ranges.iter().any(|range| range.contains(config.node_ip)) {
            sources.extend(service.load_balancer_ips.iter().map(ToString::to_string));
        }
        tx.rule(
            &nftables_chain("firewall", service),
            &format!("ip saddr != {{ {} }} drop", sources.join(", ")),
        );
    }
    let policies = [("service", service.cluster_endpoints()), ("local", service.local_endpoints())];
    let policies = policies.iter().filter(|(_, endpoints)| !endpoints.is_empty());
    if let Some(seconds) = service.affinity {
        for endpoint in service.reachable_endpoints() {
            tx.command(
                "add set",
                &nftables_endpoint_name("affinity", service, endpoint),
                &format!("{{ type ipv4_addr; flags dynamic,timeout; timeout {seconds}s; }}"),
            );
        }
        for (kind, endpoints) in policies {
            sticky_rules(service, kind, endpoints, tx);
        }
        for endpoint in service.reachable_endpoints() {
            let chain = nftables_endpoint_name("endpoint", service, endpoint);
            let remembered = nftables_endpoint_name("affinity", service, endpoint);
            tx.rule(&chain, &format!("update @{remembered} {{ ip saddr }}"));
            tx.rule(&chain, &format!("meta l4proto {} dnat to {endpoint}", service.protocol));
        }
    } else {
        for (kind, endpoints) in policies {
            let to = numbered(endpoints, |endpoint| format!("{} . {}", endpoint.address, endpoint.port));
            tx.rule(
                &nftables_chain(kind, service),
                &format!(
                    "meta l4proto {} dnat ip addr . port to numgen random mod {} map {{ {to} }}",
                    service.protocol,
                    endpoints.len()
                ),
            );
        }
    }
}

fn external_rules(config: &Config, service: &Service, tx: &mut Transaction) {
    let (chain, cluster) = (nftables_chain("external", service), nftables_chain("service", service));
    if service.external_local {
        let pods = config.cluster_cidr;
        tx.rule(&chain, &format!(r#"ip saddr {pods} goto {cluster} comment "short-circuit pod traffic""#));
        tx.rule(&chain, &format!(r#"fib saddr type local {MASQUERADE} comment "masquerade local traffic""#));
        tx.rule(
            &chain,
            &format!(r#"fib saddr type local goto {cluster} comment "short-circuit local traffic""#),
        );
    } else {
        tx.rule(&chain, &format!(r#"{MASQUERADE} comment "masquerade""#));
    }
    if service.has_external_endpoints() {
        let policy = nftables_chain(if service.external_local { "local" } else { "service" }, service);
        tx.rule(&chain, &format!("goto {policy}"));
    }
}

/// The endpoint remembered for the client, then one by chance.
fn sticky_rules(service: &Service, kind: &str, endpoints: &[Endpoint], tx: &mut Transaction) {
    let chain = nftables_chain(kind, service);
    for endpoint in endpoints {
        let remembered = nftables_endpoint_name("affinity", service, *endpoint);
        let target = nftables_endpoint_name("endpoint", service, *endpoint);
        tx.rule(&chain, &format!("ip saddr @{remembered} goto {target}"));
    }
    let to = numbered(endpoints, |endpoint| {
        format!("goto {}", nftables_endpoint_name("endpoint", service, endpoint))
    });
    tx.rule(&chain, &format!("numgen random mod {} vmap {{ {to} }}", endpoints.len()));
}

/// `0 : A, 1 : B`.
fn numbered(endpoints: &[Endpoint], text: impl Fn(Endpoint) -> String) -> String {
    let elements: Vec<String> = endpoints
        .iter()
        .enumerate()
        .map(|(index, endpoint)| format!("{index} : {}", text(*endpoint)))
        .collect();
    elements.join(", ")
}

/// What `nft -f -` reads.
struct Transaction {
    family: Family,
    text: String,
}

impl Transaction {
    fn command(&mut self, verb: &str, object: &str, rest: &str) {
        let family = if self.family == Family::V4 { "ip" } else { "ip6" };
        let object = if object.is_empty() { String::new() } else { format!(" {object}") };
        let rest = if rest.is_empty() { String::new() } else { format!(" {rest}") };
        let _infallible = writeln!(self.text, "{verb} {family} kube-proxy{object}{rest}");
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        self.command("add rule", chain, rule);
    }

    fn element(&mut self, set: &str, element: &str) {
        self.command("add element", set, &format!("{{ {element} }}"));
    }

    fn declare(&mut self, kind: &str, name: &str, key: &str, comment: &str) {
        self.command(&format!("add {kind}"), name, &format!(r#"{{ type {key}; comment "{comment}"; }}"#));
    }
}
