//! `VirtualServices` against the services that they are for, and those that they lead to.

use super::{World, add, reference};
use crate::model::{Protocol, ServiceName};
use crate::resources::service::ServicePort;
use crate::resources::translate::matching::{Held, Port, held};
use crate::resources::translate::route::{is_http, is_tcp, is_tls};
use crate::resources::translate::visibility::Namespaces;
use crate::resources::virtual_service::{List, Match, RouteDestination, RouteEntry};
use crate::resources::{Code, Kind, Notice, ObjectRef, Service, VirtualService};

/// What begins a port's name where it tells the protocol, beside those that are routed as HTTP or as TCP.
const OTHER_PROTOCOLS: [&str; 5] =
    ["udp", "hbone", "kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss"];

pub(super) fn analyse(world: &World<'_>, notices: &mut Vec<Notice>) {
    for (name, rule) in &world.virtual_services {
        let own = |host: &String| world.resolve(host, &name.namespace);
        for host in rule.spec.hosts.iter().filter_map(own) {
            if let Some(service) = world.services.get(&host) {
                ports(notices, name, rule, &host, service);
            }
        }
        for (field, destination, weight) in destinations(rule) {
            if weight {
                subset(world, notices, name, &field, destination);
            }
        }
    }
    selectors(world, notices);
}

/// Whether the routes fit the ports that they are for.
fn ports(
    notices: &mut Vec<Notice>,
    name: &ObjectRef,
    rule: &VirtualService,
    host: &ServiceName,
    service: &Service,
) {
    let spec = &rule.spec;
    let tcp = || service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    for list in [List::Http, List::Tcp, List::Tls] {
        for (at, port) in matched_ports(list.as_str(), spec.list(list)) {
            if !tcp().any(|own| u32::from(own.port) == port) {
                let message =
                    format!("service {host} has no TCP port {port}: this alternative never matches");
                add(notices, Code::MatchPortUnknown, name, at, message);
            }
        }
    }
    for port in tcp() {
        match port.application.as_deref() {
            Some(application) if is_http(application) => {
                other_list(notices, name, rule, host, (port, List::Http));
            }
            Some(application) if is_tls(application) => {
                other_list(notices, name, rule, host, (port, List::Tls));
            }
            Some(application) if is_tcp(application) || OTHER_PROTOCOLS.contains(&application) => {}
            _ if spec.http.is_empty() && spec.tcp.is_empty() => {}
            _ => {
                let object = reference(Kind::Service, host);
                let index = service.ports.iter().position(|own| std::ptr::eq(own, port)).unwrap_or_default();
                let message = format!(
                    "neither the port's name nor appProtocol tells what is spoken at {}, for which {name} has routes: those \
                     of tcp go before those of http, while Istio's proxies look into each connection",
                    port.port
                );
                add(notices, Code::PortProtocolUndeclared, &object, format!("spec.ports[{index}]"), message);
            }
        }
    }
}

/// Istio passes over routes of `tcp` there; here they hold where none of the port's own list does.
fn other_list(
    notices: &mut Vec<Notice>,
    name: &ObjectRef,
    rule: &VirtualService,
    host: &ServiceName,
    (port, own): (&ServicePort, List),
) {
    let asked = Port { number: port.port, addresses: &[], on_every_node: true };
    let held = |entry: &RouteEntry, list| held(entry, list, asked, &Namespaces::All);
    let holds = |list: List, so: Held| {
        rule.spec.list(list).iter().position(|entry| !entry.route.is_empty() && held(entry, list) == so)
    };
    let by_tcp = holds(List::Tcp, Held::Always).filter(|_| holds(own, Held::Always).is_none());
    if let Some(index) = by_tcp {
        let message = format!(
            "honoured for {host}:{}, though that is a port of {}: proxies of Istio's pass over it there",
            port.port,
            port.application.as_deref().unwrap_or_default()
        );
        add(notices, Code::TcpRouteForHttpPort, name, format!("spec.tcp[{index}]"), message);
    }
}

fn matched_ports<'a>(list: &'a str, entries: &'a [RouteEntry]) -> impl Iterator<Item = (String, u32)> + 'a {
    let of_entry = move |(index, entry): (usize, &'a RouteEntry)| {
        let at = move |(one, alternative): (usize, &Match)| {
            Some((format!("spec.{list}[{index}].match[{one}].port"), alternative.port?))
        };
        entry.matches.iter().enumerate().filter_map(at)
    };
    entries.iter().enumerate().flat_map(of_entry)
}

/// Every destination with its field, and whether it gets anything.
fn destinations(rule: &VirtualService) -> Vec<(String, &RouteDestination, bool)> {
    let mut destinations = Vec::new();
    for list in [List::Http, List::Tls, List::Tcp] {
        for (index, entry) in rule.spec.list(list).iter().enumerate() {
            let alone = entry.route.len() == 1;
            for (one, destination) in entry.route.iter().enumerate() {
                let gets = alone || destination.weight.unwrap_or(0) > 0;
                let field = format!("spec.{}[{index}].route[{one}].destination", list.as_str());
                destinations.push((field, destination, gets));
            }
        }
    }
    destinations
}

/// A subset that is named and empty; one that nobody names is the translator's to tell.
fn subset(
    world: &World<'_>,
    notices: &mut Vec<Notice>,
    name: &ObjectRef,
    field: &str,
    to: &RouteDestination,
) {
    let Some(subset) = to.destination.subset.as_deref().filter(|subset| !subset.is_empty()) else { return };
    let host = world.resolve(&to.destination.host, &name.namespace);
    let Some(service) = host.as_ref().and_then(|host| world.service(host)) else { return };
    let Some(labels) = world.subset(&service.name, subset) else { return };
    if world.has_endpoint(service, labels) == Some(false) {
        let message = format!("no endpoint of {} is in subset {subset}: its share is refused", service.host);
        add(notices, Code::SubsetWithoutEndpoints, name, format!("{field}.subset"), message);
    }
}

/// Services whose selector matches no pod.
fn selectors(world: &World<'_>, notices: &mut Vec<Notice>) {
    if world.workloads.is_empty() {
        return;
    }
    for (name, service) in &world.services {
        let labels = super::selector(service);
        if service.is_external_name || labels.is_empty() {
            continue;
        }
        if world.workloads.selected(Some(&name.namespace), &labels).all == 0 {
            let message =
                format!("no pod in {} has all these labels: connections are refused", name.namespace);
            add(notices, Code::SelectsNoPod, &reference(Kind::Service, name), "spec.selector", message);
        }
    }
}
