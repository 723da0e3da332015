//! Which connections to a service's port a route is for: what is known of the port decides at once, the rest becomes a condition.
//!
//! Source: `matchTLS` and `matchTCP` in pilot/pkg/networking/core/tls.go, which decide by port, gateways, labels and namespace when a proxy
//! is configured, and leave subnets and server names to the proxy. Here labels and namespaces are conditions too: one state of the model serves
//! every client.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::visibility::Namespaces;
use crate::model::{ConnectionMatch, ServerNames};
use crate::resources::virtual_service::{List, Match, RouteEntry, is_for_mesh};

/// When something holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) enum Held {
    /// For no connection.
    Never,
    /// Where one of these does.
    When(Vec<ConnectionMatch>),
    /// For every connection.
    Always,
}

/// What connections to a port have in common.
#[derive(Clone, Copy, Debug)]
pub(in crate::resources) struct Port<'a> {
    /// Its number.
    pub(in crate::resources) number: u16,
    /// The addresses that clients ask for.
    pub(in crate::resources) addresses: &'a [IpAddr],
    /// Whether they may ask for others too: those of the nodes.
    pub(in crate::resources) on_every_node: bool,
}

/// When an entry of a list holds for connections of clients in these namespaces.
pub(in crate::resources) fn held(
    entry: &RouteEntry,
    list: List,
    port: Port<'_>,
    namespaces: &Namespaces,
) -> Held {
    let nothing = Match::default();
    let alternatives = if entry.matches.is_empty() { std::slice::from_ref(&nothing) } else { &entry.matches };
    let mut conditions = Vec::new();
    for condition in alternatives.iter().filter_map(|one| condition(one, list, port, namespaces)) {
        if condition.always() {
            return Held::Always;
        }
        if !conditions.contains(&condition) {
            conditions.push(condition);
        }
    }
    if conditions.is_empty() { Held::Never } else { Held::When(conditions) }
}

/// Whether an alternative asks for nothing that layer 4 cannot tell.
pub(in crate::resources) fn is_layer4(one: &Match, list: List) -> bool {
    let in_place = match list {
        List::Http => {
            one.sni_hosts.is_empty() && one.destination_subnets.is_empty() && one.source_subnet.is_none()
        }
        List::Tls => one.source_subnet.is_none() && one.name.is_none() && one.stat_prefix.is_none(),
        List::Tcp => one.sni_hosts.is_empty() && one.name.is_none() && one.stat_prefix.is_none(),
    };
    one.rest.is_empty() && in_place
}

/// What an alternative asks of connections to the port; `None`: it holds for none of them.
fn condition(one: &Match, list: List, port: Port<'_>, namespaces: &Namespaces) -> Option<ConnectionMatch> {
    let is_of_port = one.port.is_none_or(|wanted| wanted == u32::from(port.number));
    if !is_layer4(one, list) || !is_of_port || !is_for_mesh(&one.gateways) {
        return None;
    }
    let of_source = one.source_namespace.as_deref().filter(|name| !name.is_empty());
    let of_source = of_source.map_or(Namespaces::All, Namespaces::only);
    let subnets: Vec<IpNet> = one.destination_subnets.iter().filter_map(|written| subnet(written)).collect();
    Some(ConnectionMatch {
        source_namespaces: namespaces.and(&of_source).condition()?,
        source_labels: one.source_labels.clone(),
        source_subnet: one.source_subnet.as_deref().filter(|written| !written.is_empty()).and_then(subnet),
        destination_subnets: decided(subnets, port)?,
        sni_hosts: one.sni_hosts.iter().map(|host| ServerNames::new(host)).collect(),
    })
}

/// What is left to ask of the address that was asked for: nothing where all are in the subnets; `None` where none is.
fn decided(subnets: Vec<IpNet>, port: Port<'_>) -> Option<Vec<IpNet>> {
    if subnets.is_empty() || port.on_every_node {
        return Some(subnets);
    }
    let is_in = |address: &IpAddr| subnets.iter().any(|subnet| subnet.contains(address));
    match port.addresses.iter().filter(|address| is_in(address)).count() {
        0 => None,
        count if count == port.addresses.len() => Some(Vec::new()),
        _ => Some(subnets),
    }
}

/// A subnet as Istio takes it: an address, or one with the number of its bits.
pub(in crate::resources) fn subnet(written: &str) -> Option<IpNet> {
    let net = written.parse::<IpNet>().ok().or_else(|| written.parse::<IpAddr>().ok().map(IpNet::from))?;
    Some(net.trunc())
}

/// The condition that clients are in these namespaces; `None` where there is none.
pub(in crate::resources) fn from_namespaces(namespaces: &Namespaces) -> Option<ConnectionMatch> {
    let source_namespaces: Vec<Arc<str>> = namespaces.condition()?;
    Some(ConnectionMatch { source_namespaces, ..ConnectionMatch::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(matches: &str) -> RouteEntry {
        serde_json::from_value(serde_json::json!({
            "match": serde_json::from_str::<serde_json::Value>(matches).unwrap()
        }))
        .unwrap()
    }

    /// `-` never, `+` always, else the conditions.
    fn told(held: Held) -> String {
        match held {
            Held::Never => "-".to_owned(),
            Held::Always => "+".to_owned(),
            Held::When(all) => all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        }
    }

    #[test]
    fn what_holds_when() {
        use List::{Http, Tcp, Tls};
        let cases = [
            ("nothing said", Tcp, "[]", "+"),
            ("an empty alternative", Tcp, "[{}]", "+"),
            ("the port", Tcp, r#"[{"port": 80}]"#, "+"),
            ("another port", Tcp, r#"[{"port": 81}]"#, "-"),
            ("one of two", Tcp, r#"[{"port": 81}, {"port": 80}]"#, "+"),
            ("the mesh", Tcp, r#"[{"gateways": ["shop/gate", "mesh"]}]"#, "+"),
            ("a gateway", Tcp, r#"[{"gateways": ["shop/gate"]}]"#, "-"),
            ("names", Http, r#"[{"name": "all", "statPrefix": "a"}]"#, "+"),
            ("what is no field of TCP", Tcp, r#"[{"name": "all"}]"#, "-"),
            ("layer 7", Http, r#"[{"uri": {"prefix": "/"}}]"#, "-"),
            ("layer 7, or the port", Http, r#"[{"uri": {"prefix": "/"}}, {"port": 80}]"#, "+"),
            ("labels", Http, r#"[{"sourceLabels": {"app": "front"}}]"#, "client with app=front"),
            ("a namespace", Tcp, r#"[{"sourceNamespace": "bank"}]"#, "client in namespace bank"),
            (
                "both, or one of them",
                Tcp,
                r#"[{"sourceNamespace": "bank", "sourceLabels": {"a": "b"}}, {"sourceNamespace": "shop"}]"#,
                "client in namespace bank, client with a=b; client in namespace shop",
            ),
            (
                "the same twice",
                Tcp,
                r#"[{"sourceNamespace": "bank"}, {"sourceNamespace": "bank"}]"#,
                "client in namespace bank",
            ),
            (
                "where the client is",
                Tcp,
                r#"[{"sourceSubnet": "10.244.1.7/24"}]"#,
                "client from 10.244.1.0/24",
            ),
            ("not of http", Http, r#"[{"sourceSubnet": "10.244.1.0/24"}]"#, "-"),
            ("all addresses", Tcp, r#"[{"destinationSubnets": ["10.96.0.0/16", "fd00::/8"]}]"#, "+"),
            ("no address", Tcp, r#"[{"destinationSubnets": ["10.97.0.0/16"]}]"#, "-"),
            (
                "one of the addresses",
                Tcp,
                r#"[{"destinationSubnets": ["10.96.0.1"]}]"#,
                "asks for 10.96.0.1/32",
            ),
            ("not of http either", Http, r#"[{"destinationSubnets": ["10.96.0.0/16"]}]"#, "-"),
            ("server names", Tls, r#"[{"sniHosts": ["a.com", "*.b.com"]}]"#, "server name a.com or *.b.com"),
            ("not of tcp", Tcp, r#"[{"sniHosts": ["a.com"]}]"#, "-"),
        ];
        let addresses = ["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let port = Port { number: 80, addresses: &addresses, on_every_node: false };
        for (name, list, matches, wanted) in cases {
            assert_eq!(told(held(&entry(matches), list, port, &Namespaces::All)), wanted, "{name}");
        }
        let on_nodes = Port { on_every_node: true, ..port };
        let some = entry(r#"[{"destinationSubnets": ["10.96.0.0/16", "fd00::/8"]}]"#);
        assert_eq!(
            told(held(&some, Tcp, on_nodes, &Namespaces::All)),
            "asks for 10.96.0.0/16 or fd00::/8",
            "nodes have other addresses"
        );
        let bank = Namespaces::only("bank");
        for (matches, wanted) in [
            ("[]", "client in namespace bank"),
            (r#"[{"sourceNamespace": "bank"}]"#, "client in namespace bank"),
            (r#"[{"sourceNamespace": "shop"}]"#, "-"),
        ] {
            assert_eq!(told(held(&entry(matches), Tcp, port, &bank)), wanted, "exported to bank: {matches}");
        }
        assert_eq!(from_namespaces(&bank).unwrap().to_string(), "client in namespace bank");
    }
}
