//! The iptables mode: input of `iptables-restore --noflush`, each rule as `iptables-save` prints it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::names::{iptables_chain, iptables_endpoint_chain};
use super::service::{Endpoint, Service};
use super::{Config, Sync};

/// Above so many endpoints kube-proxy leaves comments out of endpoints' rules and no longer looks for stale chains at
/// each sync (`largeClusterEndpointsThreshold`).
const LARGE_CLUSTER: usize = 1000;

/// Chains and jumps that kube-proxy makes before its first sync, one `iptables` call each; here in one restore.
pub(crate) const BASE: &str = "\
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
COMMIT
*nat
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
COMMIT
";

/// Whether kube-proxy runs `iptables-save` at each sync, to find chains that nobody uses any more.
pub(crate) fn looks_for_stale_chains(services: &[Service]) -> bool {
    services.iter().map(|service| service.endpoints.len()).sum::<usize>() <= LARGE_CLUSTER
}

/// Chains of endpoints that `old` has and `new` has not.
pub(crate) fn stale_chains(old: &Service, new: &Service) -> Vec<String> {
    let chains = |service: &Service| -> BTreeSet<String> {
        let endpoints = service.reachable_endpoints();
        endpoints.into_iter().map(|endpoint| iptables_endpoint_chain(service, endpoint)).collect()
    };
    chains(old).difference(&chains(new)).cloned().collect()
}

/// One sync. `stale` are chains that it removes.
pub(crate) fn restore(config: &Config, services: &[Service], sync: Sync, stale: &[String]) -> String {
    let mut filter = Table::new(
        &[
            "KUBE-SERVICES",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FORWARD",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-FIREWALL",
            "KUBE-FIREWALL",
        ],
        &[
            r#"-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"#,
        ],
    );
    let mut nat = Table::new(
        &["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"],
        &[
            "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
            r#"-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully"#,
            "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
        ],
    );
    let large = !looks_for_stale_chains(services);
    for (index, service) in services.iter().enumerate() {
        capture(config, service, &mut filter, &mut nat);
        if sync.writes(index) {
            own_chains(config, service, large, &mut nat);
        }
    }
    for chain in stale {
        nat.chain(chain);
        nat.rule(&format!("-X {chain}"));
    }
    nat.rule(
        r#"-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"#,
    );
    let counted = if config.nfacct { " -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts" } else { "" };
    filter.rule(&format!("-A KUBE-FORWARD -m conntrack --ctstate INVALID{counted} -j DROP"));
    filter.rule(
        r#"-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT"#,
    );
    filter.rule(
        r#"-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"#,
    );
    format!("{}{}", filter.text("filter"), nat.text("nat"))
}

/// Rules that lead to a service, in chains that all services share.
fn capture(config: &Config, service: &Service, filter: &mut Table, nat: &mut Table) {
    let Service { protocol, port, cluster_ip, .. } = service;
    let label = service.port_label();
    let external = iptables_chain("EXT", service);
    let firewall = iptables_chain("FW", service);
    let matches = |address, what: &str| {
        format!(
            r#"-d {address}/32 -p {protocol} -m comment --comment "{label} {what}" -m {protocol} --dport {port}"#
        )
    };
    // What becomes of traffic that no endpoint is for.
    let (reason, target) = if service.has_endpoints() {
        ("has no local endpoints", "DROP")
    } else {
        ("has no endpoints", "REJECT --reject-with icmp-port-unreachable")
    };
    if service.has_internal_endpoints() {
        let chain = iptables_chain(if service.internal_local { "SVL" } else { "SVC" }, service);
        nat.rule(&format!("-A KUBE-SERVICES {} -j {chain}", matches(cluster_ip, "cluster IP")));
    } else {
        filter.rule(&format!("-A KUBE-SERVICES {} -j {target}", matches(cluster_ip, reason)));
    }
    let uses_firewall = service.has_endpoints() && service.has_firewall();
    let load_balancer = if uses_firewall { &firewall } else { &external };
    let addresses =
        service.external_ips.iter().map(|address| (address, "external IP", &external)).chain(
            service.load_balancer_ips.iter().map(|address| (address, "loadbalancer IP", load_balancer)),
        );
    for (address, what, chain) in addresses {
        if service.has_endpoints() {
            nat.rule(&format!("-A KUBE-SERVICES {} -j {chain}", matches(address, what)));
        }
        if !service.has_external_endpoints() {
            filter.rule(&format!("-A KUBE-EXTERNAL-SERVICES {} -j {target}", matches(address, reason)));
        }
    }
    for address in service.load_balancer_ips.iter().filter(|_| uses_firewall) {
        let what = format!("traffic not accepted by {firewall}");
        filter.rule(&format!("-A KUBE-PROXY-FIREWALL {} -j DROP", matches(address, &what)));
    }
    if let Some(node_port) = service.node_port {
        let comment = format!(r#"-m comment --comment "{label}" -m {protocol} --dport {node_port}"#);
        if service.has_endpoints() && config.nfacct {
            nat.rule(&format!(
                "-A KUBE-NODEPORTS -d 127.0.0.0/8 -p {protocol} {comment} -m nfacct --nfacct-name  localhost_nps_accepted_pkts -j {external}"
            ));
        }
        if service.has_endpoints() {
            nat.rule(&format!("-A KUBE-NODEPORTS -p {protocol} {comment} -j {external}"));
        }
        if !service.has_external_endpoints() {
            filter.rule(&format!(
                r#"-A KUBE-EXTERNAL-SERVICES -p {protocol} -m comment --comment "{label} {reason}" -m addrtype --dst-type LOCAL -m {protocol} --dport {node_port} -j {target}"#
            ));
        }
    }
    if let Some(port) = service.health_check_node_port {
        filter.rule(&format!(
            r#"-A KUBE-NODEPORTS -p tcp -m comment --comment "{label} health check node port" -m tcp --dport {port} -j ACCEPT"#
        ));
    }
}

/// A service's own chains.
fn own_chains(config: &Config, service: &Service, large: bool, nat: &mut Table) {
    let Service { protocol, port, cluster_ip, .. } = service;
    let label = service.port_label();
    let (cluster, local) = (iptables_chain("SVC", service), iptables_chain("SVL", service));
    if service.has_internal_endpoints() {
        let chain = if service.internal_local { &local } else { &cluster };
        nat.rule(&format!(
            r#"-A {chain} ! -s {} -d {cluster_ip}/32 -p {protocol} -m comment --comment "{label} cluster IP" -m {protocol} --dport {port} -j KUBE-MARK-MASQ"#,
            config.cluster_cidr
        ));
    }
    if service.has_external_chain() {
        external_chain(config, service, nat);
    }
    if service.has_endpoints() && service.has_firewall() {
        firewall_chain(config, service, nat);
    }
    for (chain, endpoints) in [(&cluster, service.cluster_endpoints()), (&local, service.local_endpoints())] {
        if !endpoints.is_empty() {
            nat.chain(chain);
            balance(service, chain, &endpoints, large, nat);
        }
    }
    let comment = if large { String::new() } else { format!(r#" -m comment --comment "{label}""#) };
    for endpoint in service.reachable_endpoints() {
        let chain = iptables_endpoint_chain(service, endpoint);
        let remember = if service.affinity.is_some() {
            format!(" -m recent --set --name {chain} --mask 255.255.255.255 --rsource")
        } else {
            String::new()
        };
        nat.chain(&chain);
        nat.rule(&format!("-A {chain} -s {}/32{comment} -j KUBE-MARK-MASQ", endpoint.address));
        nat.rule(&format!(
            "-A {chain} -p {protocol}{comment}{remember} -m {protocol} -j DNAT --to-destination {endpoint}"
        ));
    }
}

fn external_chain(config: &Config, service: &Service, nat: &mut Table) {
    let label = service.port_label();
    let (chain, cluster) = (iptables_chain("EXT", service), iptables_chain("SVC", service));
    nat.chain(&chain);
    if service.external_local {
        nat.rule(&format!(
            r#"-A {chain} -s {} -m comment --comment "pod traffic for {label} external destinations" -j {cluster}"#,
            config.cluster_cidr
        ));
        for (verb, target) in [("masquerade", "KUBE-MARK-MASQ"), ("route", &cluster)] {
            nat.rule(&format!(
                r#"-A {chain} -m comment --comment "{verb} LOCAL traffic for {label} external destinations" -m addrtype --src-type LOCAL -j {target}"#
            ));
        }
    } else {
        nat.rule(&format!(
            r#"-A {chain} -m comment --comment "masquerade traffic for {label} external destinations" -j KUBE-MARK-MASQ"#
        ));
    }
    if service.has_external_endpoints() {
        let policy = iptables_chain(if service.external_local { "SVL" } else { "SVC" }, service);
        nat.rule(&format!("-A {chain} -j {policy}"));
    }
}

fn firewall_chain(config: &Config, service: &Service, nat: &mut Table) {
    let label = service.port_label();
    let (chain, external) = (iptables_chain("FW", service), iptables_chain("EXT", service));
    nat.chain(&chain);
    let mut sources: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
    if service.source_ranges.iter().any(|range| range.contains(config.node_ip)) {
        sources.extend(service.load_balancer_ips.iter().map(|address| format!("{address}/32")));
    }
    for source in sources {
        nat.rule(&format!(
            r#"-A {chain} -s {source} -m comment --comment "{label} loadbalancer IP" -j {external}"#
        ));
    }
    nat.rule(&format!(
        r#"-A {chain} -m comment --comment "other traffic to {label} will be dropped by KUBE-PROXY-FIREWALL""#
    ));
}

/// The chain that picks an endpoint: the one remembered, then by chance.
fn balance(service: &Service, chain: &str, endpoints: &[Endpoint], large: bool, nat: &mut Table) {
    let label = service.port_label();
    let rule = |endpoint: Endpoint, matches: &str| {
        let comment =
            if large { String::new() } else { format!(r#" -m comment --comment "{label} -> {endpoint}""#) };
        format!("-A {chain}{comment}{matches} -j {}", iptables_endpoint_chain(service, endpoint))
    };
    if let Some(seconds) = service.affinity {
        for endpoint in endpoints {
            let name = iptables_endpoint_chain(service, *endpoint);
            let remembered = format!(
                " -m recent --rcheck --seconds {seconds} --reap --name {name} --mask 255.255.255.255 --rsource"
            );
            nat.rule(&rule(*endpoint, &remembered));
        }
    }
    for (index, endpoint) in (0_u32..).zip(endpoints) {
        let left = u32::try_from(endpoints.len()).unwrap_or(u32::MAX) - index;
        let chance = if left > 1 {
            format!(" -m statistic --mode random --probability {:.11}", 1.0 / f64::from(left))
        } else {
            String::new()
        };
        nat.rule(&rule(*endpoint, &chance));
    }
}

/// A table of a restore: chains that are emptied or made, then rules.
struct Table {
    chains: String,
    rules: String,
}

impl Table {
    fn new(chains: &[&str], rules: &[&str]) -> Self {
        let mut table = Self { chains: String::new(), rules: String::new() };
        for chain in chains {
            table.chain(chain);
        }
        for rule in rules {
            table.rule(rule);
        }
        table
    }

    fn chain(&mut self, name: &str) {
        let _infallible = writeln!(self.chains, ":{name} - [0:0]");
    }

    fn rule(&mut self, rule: &str) {
        let _infallible = writeln!(self.rules, "{rule}");
    }

    fn text(&self, name: &str) -> String {
        format!("*{name}\n{}{}COMMIT\n", self.chains, self.rules)
    }
}
