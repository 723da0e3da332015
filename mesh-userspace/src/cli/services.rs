//! Services as tables: all of them, or one with everything.

use std::fmt::Write as _;

use super::print::{View, mode};
use super::table::{Rows, Tone, list, plain, span, yes};
use crate::admin::api::{LiveReport, RuleReport, ServicePortReport, ServiceReport, TargetReport};
use crate::model::{EndpointState, Protocol, ServiceKind, TrafficPolicy};

/// All services, a line a port.
pub(super) fn list_of(reports: &[ServiceReport], view: View) -> String {
    let header = [
        "NAMESPACE",
        "NAME",
        "TYPE",
        "ADDRESSES",
        "EXTERNAL",
        "PORT",
        "PROTOCOL",
        "BACKENDS",
        "ROUTE",
        "PORT NAME",
        "TARGETS",
    ];
    let mut rows = Rows::new(if view.wide { &header } else { &header[..9] }, view.colour);
    for service in reports {
        let external = || list(service.external_addresses.iter().chain(&service.load_balancer));
        let names = || (plain(&service.namespace), plain(&service.name), plain(kind(service.kind)));
        for port in &service.ports {
            let usable = usable(port);
            let tone = if usable == 0 { Tone::Warn } else { Tone::Plain };
            let (namespace, name, kind) = names();
            rows.add([
                namespace,
                name,
                kind,
                list(&service.addresses),
                external(),
                plain(numbers(port)),
                plain(protocol(port.protocol)),
                (usable.to_string(), tone),
                plain(port.rule.as_deref().unwrap_or_default()),
                plain(&port.name),
                list(target_words(port)),
            ]);
        }
        if service.ports.is_empty() {
            let nothing = || plain("");
            let (namespace, name, kind) = names();
            let addresses = list(&service.addresses);
            rows.add([
                namespace,
                name,
                kind,
                addresses,
                external(),
                nothing(),
                nothing(),
                plain(0),
                nothing(),
            ]);
        }
    }
    rows.render()
}

/// `80`, or `80:30080` with a node port, as `kubectl` writes it.
fn numbers(port: &ServicePortReport) -> String {
    match port.node_port {
        Some(node_port) => format!("{}:{node_port}", port.port),
        None => port.port.to_string(),
    }
}

fn target_words(port: &ServicePortReport) -> Vec<String> {
    let target = |target: &TargetReport| match &target.subset {
        Some(subset) => format!("{}/{subset}={}", target.service, target.weight),
        None => format!("{}={}", target.service, target.weight),
    };
    port.targets.iter().map(target).collect()
}

const fn kind(kind: ServiceKind) -> &'static str {
    match kind {
        ServiceKind::ClusterIp => "ClusterIP",
        ServiceKind::NodePort => "NodePort",
        ServiceKind::LoadBalancer => "LoadBalancer",
        ServiceKind::ServiceEntry => "ServiceEntry",
    }
}

const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

const fn policy(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

/// One service, with every backend of every port.
pub(super) fn one(report: &ServiceReport, view: View) -> String {
    let mut text = format!("{}/{}\n", report.namespace, report.name);
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _infallible = writeln!(text, "  {name:<16}{value}");
        }
    };
    line("Type", kind(report.kind).to_owned());
    line("Addresses", list(&report.addresses).0);
    line("External", list(&report.external_addresses).0);
    line("Load balancer", list(&report.load_balancer).0);
    line("Source ranges", report.source_ranges.join(","));
    let (internal, external) = (policy(report.internal_policy), policy(report.external_policy));
    line("Policies", format!("internal {internal}, external {external}"));
    line(
        "Affinity",
        report.affinity_seconds.map(|seconds| format!("ClientIP, {seconds} s")).unwrap_or_default(),
    );
    line("Health check", report.health_check_port.map(|port| format!("port {port}")).unwrap_or_default());
    for port in &report.ports {
        let _infallible = write!(text, "\n{}/{}", port.port, protocol(port.protocol));
        if !port.name.is_empty() {
            let _infallible = write!(text, " ({})", port.name);
        }
        if let Some(node_port) = port.node_port {
            let _infallible = write!(text, ", node port {node_port}");
        }
        match &port.rule {
            Some(rule) => {
                let _infallible = writeln!(text, ", routed by {rule}");
                text.push_str(&targets(&port.targets, &port.actions));
            }
            None => text.push('\n'),
        }
        for rule in &port.rules {
            let _infallible = writeln!(text, "  before it, for enrolled clients: {}", rule_words(rule));
            text.push_str(&indented(&targets(&rule.targets, &rule.actions)));
        }
        text.push_str(&backends(report, port, view));
    }
    text
}

/// Targets and what is done to connections, a line each.
pub(super) fn targets<'a>(targets: impl IntoIterator<Item = &'a TargetReport>, actions: &[String]) -> String {
    let mut text = String::new();
    for TargetReport { service, subset, weight, endpoints } in targets {
        let subset = subset.as_deref().map(|name| format!(" subset {name}")).unwrap_or_default();
        let _infallible = writeln!(text, "  weight {weight}: {service}{subset}, {endpoints} endpoints");
    }
    for action in actions {
        let _infallible = writeln!(text, "  {action}");
    }
    text
}

/// Whose a route for some connections is, and for which.
pub(super) fn rule_words(rule: &RuleReport) -> String {
    let by = rule.rule.as_deref().unwrap_or("all endpoints alike");
    format!("{by}, for {}", rule.matches.join("; or "))
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |text, line| text + "  " + line + "\n")
}

/// Backends of the family that has the more: a pod with two addresses is one to each client.
fn usable(port: &ServicePortReport) -> usize {
    let addresses =
        || port.backends.iter().filter(|backend| backend.weight > 0).filter_map(|backend| backend.address);
    let v4 = addresses().filter(std::net::SocketAddr::is_ipv4).count();
    v4.max(addresses().count() - v4)
}

fn backends(report: &ServiceReport, port: &ServicePortReport, view: View) -> String {
    let header = [
        "BACKEND",
        "WEIGHT",
        "SHARE",
        "STATE",
        "CONNECTIONS",
        "OPEN",
        "FAILURES",
        "EJECTED",
        "WORKLOAD",
        "NODE",
        "ZONE",
        "MODE",
        "ENROLLED",
        "LOCAL",
    ];
    let has_local =
        report.internal_policy == TrafficPolicy::Local || report.external_policy == TrafficPolicy::Local;
    let mut rows = Rows::new(if has_local { &header } else { &header[..13] }, view.colour);
    for backend in &port.backends {
        let address = match backend.address {
            Some(address) => plain(address),
            None => ("(refused: no endpoint)".to_owned(), Tone::Warn),
        };
        let state = match backend.state {
            None => plain(""),
            Some(EndpointState::Ready) => ("ready".to_owned(), Tone::Good),
            Some(EndpointState::Terminating) => ("terminating".to_owned(), Tone::Warn),
            Some(EndpointState::Unready) => ("not ready".to_owned(), Tone::Warn),
        };
        let live =
            |value: fn(&LiveReport) -> u32| plain(backend.live.as_ref().map(value).unwrap_or_default());
        rows.add([
            address,
            plain(backend.weight),
            plain(share(backend.share_ppm)),
            state,
            plain(backend.connections + backend.live.as_ref().map_or(0, |live| live.begun)),
            live(|live| live.open),
            live(|live| live.failures),
            ejected(backend.live.as_ref(), view),
            plain(backend.workload.as_deref().unwrap_or_default()),
            plain(backend.node.as_deref().unwrap_or_default()),
            plain(backend.zone.as_deref().unwrap_or_default()),
            plain(mode(backend.mode)),
            yes(backend.enrolled),
            yes(backend.local),
        ]);
    }
    rows.render()
}

/// For how much longer an endpoint is left out, and how often that has happened.
fn ejected(live: Option<&LiveReport>, view: View) -> (String, Tone) {
    match live {
        None | Some(LiveReport { ejected_until: None, ejections: 0, .. }) => plain(""),
        Some(LiveReport { ejected_until: None, ejections, .. }) => plain(format!("no (was {ejections}x)")),
        Some(LiveReport { ejected_until: Some(until), ejections, .. }) => {
            let left = span(until.saturating_sub(view.now));
            (format!("for {left} ({ejections}x)"), Tone::Bad)
        }
    }
}

/// Millionths as per cent.
pub(super) fn share(ppm: u32) -> String {
    format!("{}.{:02}%", ppm / 10_000, ppm % 10_000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::BackendReport;
    use crate::model::Mode;

    const VIEW: View = View { wide: false, colour: false, now: 1_000_000 };

    fn report() -> ServiceReport {
        let backend = BackendReport {
            address: Some(([10, 0, 0, 1], 9080).into()),
            weight: 9,
            share_ppm: 900_000,
            state: Some(EndpointState::Ready),
            connections: 10,
            workload: Some("default/reviews-1".to_owned()),
            zone: Some("eu-1".to_owned()),
            mode: Mode::Strict,
            enrolled: true,
            live: Some(LiveReport {
                open: 4,
                begun: 7,
                failures: 2,
                ejections: 3,
                ejected_until: Some(VIEW.now + 12),
            }),
            ..BackendReport::default()
        };
        let port = ServicePortReport {
            name: "http".to_owned(),
            port: 80,
            protocol: Protocol::Tcp,
            node_port: Some(30080),
            rule: Some("default/split".to_owned()),
            targets: vec![TargetReport {
                service: "default/reviews".to_owned(),
                subset: Some("v1".to_owned()),
                weight: 90,
                endpoints: 1,
            }],
            actions: vec!["given up after 1s".to_owned()],
            rules: vec![RuleReport {
                rule: Some("default/front".to_owned()),
                matches: vec!["client with app=front".to_owned(), "server name a.com".to_owned()],
                targets: vec![TargetReport {
                    service: "default/reviews".to_owned(),
                    weight: 1,
                    endpoints: 2,
                    ..TargetReport::default()
                }],
                actions: vec!["50% are reset".to_owned()],
                holds: None,
            }],
            backends: vec![
                backend,
                BackendReport { weight: 1, share_ppm: 100_000, ..BackendReport::default() },
            ],
        };
        ServiceReport {
            namespace: "default".to_owned(),
            name: "reviews".to_owned(),
            kind: ServiceKind::NodePort,
            addresses: vec![[10, 96, 0, 1].into()],
            affinity_seconds: Some(600),
            ports: vec![port],
            ..ServiceReport::default()
        }
    }

    #[test]
    fn a_service_shows_where_connections_go() {
        let text = one(&report(), VIEW);
        for part in [
            "  Type            NodePort\n  Addresses       10.96.0.1\n",
            "  Policies        internal Cluster, external Cluster\n  Affinity        ClientIP, 600 s\n",
            "80/TCP (http), node port 30080, routed by default/split",
            "  weight 90: default/reviews subset v1, 1 endpoints\n  given up after 1s\n",
            "  before it, for enrolled clients: default/front, for client with app=front; or server name a.com\n    \
             weight 1: default/reviews, 2 endpoints\n    50% are reset\n",
            "10.0.0.1:9080            9        90.00%   ready   17            4      2          for 12s (3x)   default/reviews-1   -      eu-1   STRICT",
            "(refused: no endpoint)   1        10.00%   -       0             0      0          -",
        ] {
            assert!(text.contains(part), "{part:?} not in\n{text}");
        }
        assert!(!text.contains("LOCAL"), "{text}");
        let local = ServiceReport { external_policy: TrafficPolicy::Local, ..report() };
        assert!(one(&local, VIEW).contains("LOCAL"));
    }

    #[test]
    fn a_list_has_a_line_a_port() {
        let text = list_of(&[report()], VIEW);
        let line = "default     reviews   NodePort   10.96.0.1   -          80:30080   TCP        1          default/split";
        assert!(text.contains(line), "{text}");
    }
}
