//! Services, `EndpointSlice`s and Nodes as kube-proxy reads them, a rule a case.

use std::net::IpAddr;
use std::sync::Arc;

use super::{MeshConfig, addresses, objects, upserts};
use crate::model::{
    EndpointState, External, Fate, Frontend, NodeName, Protocol, Route, Service, ServiceKind, ServiceName,
    Snapshot, TrafficPolicy,
};
use crate::resources::{Change, Kind, Notice, ObjectRef, Translator};

/// A service `web` with this spec, and what stands beside it.
fn web(spec: &str, status: &str) -> String {
    named("web", "", spec, status)
}

fn named(name: &str, labels: &str, spec: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\nspec: {{{spec}}}\nstatus: {{loadBalancer: {{ingress: [{status}]}}}}\n"
    )
}

/// A slice of `web` with these endpoints at port 8080.
fn slice(name: &str, endpoints: &[&str]) -> String {
    let endpoints = endpoints.join(", ");
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\nports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints: [{endpoints}]\n"
    )
}

fn node(name: &str, zone: &str, rest: &str) -> String {
    let label = if zone.is_empty() { String::new() } else { format!("topology.kubernetes.io/zone: {zone}") };
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{{label}}}}}\n{rest}")
}

fn pod(name: &str, address: &str, node: &str, metadata: &str, ready: bool) -> String {
    let ready = if ready { "True" } else { "False" };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web}}{metadata}}}\nspec: {{nodeName: {node}, containers: []}}\nstatus: {{podIP: {address}, conditions: [{{type: Ready, status: \"{ready}\"}}]}}\n"
    )
}

const PORTS: &str = "ports: [{name: http, port: 80, nodePort: 30080, targetPort: 8080}]";

/// A translator on `node-a`.
fn translator() -> Translator {
    Translator::new(MeshConfig { node: Some(NodeName::new("node-a")), ..MeshConfig::default() })
}

fn translate(text: &str) -> (Snapshot, Arc<[Notice]>) {
    translator().apply(upserts(text))
}

fn service<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Service {
    &snapshot.services[&ServiceName::new("shop", name)]
}

fn drawn(route: &Route) -> Vec<String> {
    let backends = route.v4.backends().iter().chain(route.v6.backends());
    addresses(backends.filter_map(|backend| backend.endpoint.as_ref()))
}

/// The last number of each address that is drawn under Cluster, and under Local where that is there.
fn policies(snapshot: &Snapshot) -> (Vec<String>, Option<Vec<String>>) {
    let short = |route: &Route| -> Vec<String> {
        let last = |address: String| {
            address
                .trim_end_matches(":8080")
                .rsplit(['.', ':', '[', ']'])
                .find(|part| !part.is_empty())
                .unwrap()
                .to_owned()
        };
        drawn(route).into_iter().map(last).collect()
    };
    let port = &service(snapshot, "web").ports[0];
    (short(&port.route), port.local.as_ref().map(short))
}

fn frontends(snapshot: &Snapshot) -> Vec<String> {
    let mut all: Vec<Frontend> = snapshot.frontends.keys().copied().collect();
    all.sort();
    all.iter().map(ToString::to_string).collect()
}

#[test]
fn addresses_and_ports() {
    let both = "clusterIPs: [10.96.0.1, 'fd00::1'], ipFamilies: [IPv4, IPv6]";
    let one = "clusterIP: 10.96.0.1";
    let cases: Vec<(&str, String, Vec<&str>)> = vec![
        (
            "cluster addresses of both families",
            web(&format!("{both}, ports: [{{port: 80}}]"), ""),
            vec!["10.96.0.1:80 Tcp", "[fd00::1]:80 Tcp"],
        ),
        (
            "a node port",
            web(&format!("{one}, type: NodePort, {PORTS}"), ""),
            vec!["node port 30080 Tcp", "10.96.0.1:80 Tcp"],
        ),
        (
            "node port 0 is none",
            web(&format!("{one}, ports: [{{port: 80, nodePort: 0}}]"), ""),
            vec!["10.96.0.1:80 Tcp"],
        ),
        (
            "external addresses of the service's families",
            web(&format!("{one}, externalIPs: [192.0.2.1, '2001:db8::1'], ports: [{{port: 80}}]"), ""),
            vec!["10.96.0.1:80 Tcp", "192.0.2.1:80 Tcp"],
        ),
        (
            "a load balancer's addresses that packets arrive with",
            web(
                &format!("{both}, type: LoadBalancer, ports: [{{port: 80, protocol: UDP}}]"),
                "{ip: 192.0.2.1}, {ip: '2001:db8::1', ipMode: VIP}, {ip: 192.0.2.2, ipMode: Proxy}, {hostname: lb.example.com}",
            ),
            vec!["10.96.0.1:80 Udp", "192.0.2.1:80 Udp", "[2001:db8::1]:80 Udp", "[fd00::1]:80 Udp"],
        ),
        (
            "SCTP is left alone",
            web(&format!("{one}, ports: [{{port: 80, protocol: SCTP, nodePort: 30080}}]"), ""),
            vec![],
        ),
        (
            "headless",
            web(&format!("clusterIP: None, externalIPs: [192.0.2.1], {PORTS}"), "{ip: 192.0.2.2}"),
            vec![],
        ),
        ("no address at all", web(&format!("externalIPs: [192.0.2.1], {PORTS}"), ""), vec![]),
        ("left to DNS", web(&format!("type: ExternalName, externalName: example.com, {PORTS}"), ""), vec![]),
        (
            "left to another proxy",
            named(
                "web",
                "service.kubernetes.io/service-proxy-name: ''",
                &format!("{one}, externalIPs: [192.0.2.1], {PORTS}"),
                "",
            ),
            vec![],
        ),
        (
            "one external address of two services",
            web(&format!("{one}, externalIPs: [192.0.2.1], ports: [{{port: 80}}]"), "")
                + &named(
                    "zzz",
                    "",
                    "clusterIP: 10.96.0.2, externalIPs: [192.0.2.1], ports: [{port: 81}]",
                    "",
                ),
            vec!["10.96.0.1:80 Tcp", "10.96.0.2:81 Tcp", "192.0.2.1:80 Tcp", "192.0.2.1:81 Tcp"],
        ),
    ];
    for (name, text, wanted) in cases {
        let (snapshot, _) = translate(&text);
        assert_eq!(frontends(&snapshot), wanted, "{name}");
    }
}

#[test]
fn a_node_port_that_two_claim() {
    let spec = |address: &str| format!("clusterIP: {address}, type: NodePort, {PORTS}");
    let (snapshot, notices) =
        translate(&(web(&spec("10.96.0.1"), "") + &named("zzz", "", &spec("10.96.0.2"), "")));
    let (owner, port) = snapshot.service_at_node_port(30080, Protocol::Tcp).unwrap();
    assert_eq!((&*owner.name.name, port.port), ("web", 80));
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert_eq!(notices[0].object.to_string(), "Service shop/zzz");
    assert!(notices[0].message.contains("node port 30080"), "{}", notices[0]);
}

#[test]
fn what_a_service_says_of_itself() {
    let spec = "clusterIP: 10.96.0.1, type: LoadBalancer, externalTrafficPolicy: Local, internalTrafficPolicy: Local, healthCheckNodePort: 32000, \
                sessionAffinity: ClientIP, loadBalancerSourceRanges: [192.0.2.0/24]";
    let (snapshot, notices) = translate(&web(&format!("{spec}, {PORTS}"), "{ip: 192.0.2.9}"));
    let found = service(&snapshot, "web");
    assert_eq!(*notices, []);
    let external = External {
        policy: TrafficPolicy::Local,
        addresses: vec![],
        load_balancer: vec![IpAddr::from([192, 0, 2, 9])],
        source_ranges: vec!["192.0.2.0/24".parse().unwrap(), "::/0".parse().unwrap()],
        health_check_port: Some(32000),
    };
    assert_eq!(
        (found.kind, found.internal, &found.external),
        (ServiceKind::LoadBalancer, TrafficPolicy::Local, &external)
    );
    assert_eq!((found.affinity_seconds, found.ports[0].node_port), (Some(10_800), Some(30080)));
    let (snapshot, _) = translate(&web(
        &format!(
            "clusterIP: 10.96.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: 30}}}}, {PORTS}"
        ),
        "",
    ));
    assert_eq!(service(&snapshot, "web").affinity_seconds, Some(30));
    let (snapshot, _) = translate(&web(
        &format!("clusterIP: None, {spec}, {PORTS}").replace("clusterIP: 10.96.0.1, ", ""),
        "{ip: 192.0.2.9}",
    ));
    let headless = service(&snapshot, "web");
    assert_eq!(
        (headless.internal, &headless.external, headless.affinity_seconds),
        (TrafficPolicy::Cluster, &External::default(), None)
    );
}

#[test]
fn where_the_policy_local_holds() {
    let cases = [
        ("clusterIP: 10.96.0.1", false),
        ("clusterIP: 10.96.0.1, internalTrafficPolicy: Local", true),
        ("clusterIP: 10.96.0.1, externalTrafficPolicy: Local", false),
        ("clusterIP: 10.96.0.1, externalTrafficPolicy: Local, externalIPs: [192.0.2.1]", true),
        ("clusterIP: 10.96.0.1, externalTrafficPolicy: Local, type: NodePort", false),
        ("clusterIP: None, internalTrafficPolicy: Local", false),
    ];
    for (spec, wanted) in cases {
        let (snapshot, _) = translate(&web(&format!("{spec}, ports: [{{port: 80}}]"), ""));
        assert_eq!(service(&snapshot, "web").ports[0].local.is_some(), wanted, "{spec}");
    }
    let (snapshot, _) = translate(&web(
        &format!("clusterIP: 10.96.0.1, externalTrafficPolicy: Local, type: NodePort, {PORTS}"),
        "",
    ));
    assert!(service(&snapshot, "web").ports[0].local.is_some(), "with a node port");
}

#[test]
fn which_endpoints_take_connections() {
    let service = web(&format!("clusterIP: 10.96.0.1, internalTrafficPolicy: Local, {PORTS}"), "");
    let here = node("node-a", "a", "");
    let leaving = "conditions: {ready: false, serving: true, terminating: true}";
    let cases: Vec<(&str, Vec<String>, Vec<&str>, Vec<&str>)> = vec![
        ("nothing said is ready", vec!["{addresses: [10.0.0.1]}".into()], vec!["1"], vec![]),
        ("here", vec!["{addresses: [10.0.0.1], nodeName: node-a}".into(), "{addresses: [10.0.0.2], nodeName: node-b}".into()], vec!["1", "2"], vec!["1"]),
        (
            "one that terminates, beside a ready one elsewhere",
            vec![format!("{{addresses: [10.0.0.1], nodeName: node-a, {leaving}}}"), "{addresses: [10.0.0.2], nodeName: node-b}".into()],
            vec!["2"],
            vec!["1"],
        ),
        ("serving that is not said is serving", vec!["{addresses: [10.0.0.1], nodeName: node-a, conditions: {ready: false, terminating: true}}".into()], vec!["1"], vec!["1"]),
        ("terminating and not serving", vec!["{addresses: [10.0.0.1], nodeName: node-a, conditions: {ready: false, serving: false, terminating: true}}".into()], vec![], vec![]),
        ("serving and not ready", vec!["{addresses: [10.0.0.1], nodeName: node-a, conditions: {ready: false, serving: true}}".into()], vec![], vec![]),
        (
            "for this zone",
            vec!["{addresses: [10.0.0.1], hints: {forZones: [{name: a}]}}".into(), "{addresses: [10.0.0.2], nodeName: node-a, hints: {forZones: [{name: b}]}}".into()],
            vec!["1"],
            vec!["2"],
        ),
        (
            "no endpoint for this zone",
            vec!["{addresses: [10.0.0.1], hints: {forZones: [{name: b}]}}".into(), "{addresses: [10.0.0.2], hints: {forZones: [{name: c}]}}".into()],
            vec!["1", "2"],
            vec![],
        ),
        (
            "a ready one without a hint",
            vec!["{addresses: [10.0.0.1], hints: {forZones: [{name: a}]}}".into(), "{addresses: [10.0.0.2]}".into()],
            vec!["1", "2"],
            vec![],
        ),
        (
            "an unready one without a hint",
            vec!["{addresses: [10.0.0.1], hints: {forZones: [{name: a}]}}".into(), "{addresses: [10.0.0.2], conditions: {ready: false}}".into(), "{addresses: [10.0.0.3], hints: {forZones: [{name: b}]}}".into()],
            vec!["1"],
            vec![],
        ),
        (
            "for this node before this zone",
            vec![
                "{addresses: [10.0.0.1], hints: {forZones: [{name: a}], forNodes: [{name: node-b}]}}".into(),
                "{addresses: [10.0.0.2], hints: {forZones: [{name: a}], forNodes: [{name: node-a}]}}".into(),
            ],
            vec!["2"],
            vec![],
        ),
        (
            "this zone where nothing is for this node",
            vec![
                "{addresses: [10.0.0.1], hints: {forZones: [{name: a}], forNodes: [{name: node-b}]}}".into(),
                "{addresses: [10.0.0.2], hints: {forZones: [{name: b}], forNodes: [{name: node-c}]}}".into(),
            ],
            vec!["1"],
            vec![],
        ),
        ("addresses beyond the first", vec!["{addresses: [10.0.0.1, 10.0.0.2]}".into()], vec!["1"], vec![]),
        ("an address of another family than the slice's", vec!["{addresses: ['fd00::1']}".into()], vec![], vec![]),
    ];
    for (name, endpoints, cluster, local) in cases {
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let (snapshot, _) = translate(&(service.clone() + &here + &slice("web-1", &endpoints)));
        let wanted = |all: Vec<&str>| all.into_iter().map(ToOwned::to_owned).collect::<Vec<_>>();
        assert_eq!(policies(&snapshot), (wanted(cluster), Some(wanted(local))), "{name}");
    }
}

#[test]
fn slices_of_a_service() {
    let v4 = web(&format!("clusterIP: 10.96.0.1, {PORTS}"), "");
    let both = web(&format!("clusterIPs: [10.96.0.1, 'fd00::f'], {PORTS}"), "");
    let one = slice("web-1", &["{addresses: [10.0.0.1]}"]);
    let v6 = slice("web-6", &["{addresses: ['fd00::1']}"]).replace("IPv4", "IPv6");
    let cases: Vec<(&str, String, Vec<&str>)> = vec![
        (
            "many slices",
            v4.clone() + &one + &slice("web-2", &["{addresses: [10.0.0.2]}"]),
            vec!["10.0.0.1:8080", "10.0.0.2:8080"],
        ),
        (
            "a port of its own",
            v4.clone() + &one + &slice("web-2", &["{addresses: [10.0.0.2]}"]).replace("8080", "9090"),
            vec!["10.0.0.1:8080", "10.0.0.2:9090"],
        ),
        ("a port of another protocol", v4.clone() + &one.replace("protocol: TCP", "protocol: UDP"), vec![]),
        ("a port of another name", v4.clone() + &one.replace("name: http", "name: other"), vec![]),
        ("both families", both.clone() + &one + &v6, vec!["10.0.0.1:8080", "[fd00::1]:8080"]),
        ("a family that the service has not", v4.clone() + &one + &v6, vec!["10.0.0.1:8080"]),
        (
            "names",
            v4.clone() + &one + &slice("web-2", &["{addresses: [a.example.com]}"]).replace("IPv4", "FQDN"),
            vec!["10.0.0.1:8080"],
        ),
        ("another service's", v4.clone() + &one.replace("service-name: web", "service-name: other"), vec![]),
        (
            "an address in two slices",
            v4.clone() + &one + &slice("web-0", &["{addresses: [10.0.0.1], conditions: {ready: false}}"]),
            vec!["10.0.0.1:8080"],
        ),
        (
            "an address taken over from a pod that terminates",
            v4.clone()
                + &slice(
                    "web-1",
                    &[
                        "{addresses: [10.0.0.1], conditions: {ready: false, serving: true, terminating: true}}",
                        "{addresses: [10.0.0.1]}",
                    ],
                ),
            vec!["10.0.0.1:8080"],
        ),
    ];
    for (name, text, wanted) in cases {
        let (snapshot, notices) = translate(&text);
        let port = &service(&snapshot, "web").ports[0];
        assert_eq!(drawn(&port.route), wanted, "{name}");
        assert_eq!(addresses(port.endpoints.iter()), wanted, "{name}");
        assert_eq!(*notices, [], "{name}");
    }
    // What does not terminate is preferred, even where it is not ready.
    let text = both
        + &slice(
            "web-1",
            &[
                "{addresses: [10.0.0.1], conditions: {ready: false}}",
                "{addresses: [10.0.0.1], conditions: {ready: false, serving: true, terminating: true}}",
            ],
        );
    assert_eq!(service(&translate(&text).0, "web").ports[0].listed[0].state, EndpointState::Unready);
}

#[test]
fn what_is_listed() {
    let text = web(&format!("clusterIP: 10.96.0.1, {PORTS}"), "")
        + &slice(
            "web-1",
            &[
                "{addresses: [10.0.0.1], nodeName: node-b, zone: b}",
                "{addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}",
                "{addresses: [10.0.0.3], conditions: {ready: false}}",
            ],
        );
    let (snapshot, _) = translate(&text);
    let port = &service(&snapshot, "web").ports[0];
    let states: Vec<EndpointState> = port.listed.iter().map(|endpoint| endpoint.state).collect();
    assert_eq!(states, [EndpointState::Ready, EndpointState::Terminating, EndpointState::Unready]);
    assert_eq!(addresses(port.endpoints.iter()), ["10.0.0.1:8080"]);
    assert_eq!(
        (port.listed[0].node.clone(), port.listed[0].zone.as_deref()),
        (Some(NodeName::new("node-b")), Some("b"))
    );
    let asked = Frontend { address: Some([10, 96, 0, 1].into()), port: 80, protocol: Protocol::Tcp };
    let fates = [1, 2, 3, 4].map(|last| snapshot.fate(asked, ([10, 0, 0, last], 8080).into()));
    assert_eq!(fates, [Fate::Serving, Fate::Listed, Fate::Listed, Fate::Gone]);
}

#[test]
fn endpoints_of_pods() {
    let gone = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    let nodes = node("node-a", "a", "") + &node("node-b", "b", "") + &node("node-c", "a", "");
    let here = pod("p1", "10.0.0.1", "node-a", "", true);
    let zone = pod("p2", "10.0.0.2", "node-c", "", true);
    let away = pod("p3", "10.0.0.3", "node-b", "", true);
    let leaving = pod("p4", "10.0.0.4", "node-a", gone, true);
    let unready = pod("p5", "10.0.0.5", "node-a", "", false);
    let all = here.clone() + &zone + &away + &leaving + &unready;
    let cases: Vec<(&str, &str, String, Vec<&str>, Vec<&str>)> = vec![
        ("ready ones", "", all.clone(), vec!["1", "2", "3"], vec!["1"]),
        ("those that terminate where none is ready", "", leaving.clone() + &unready, vec!["4"], vec!["4"]),
        ("the same here alone", "", away.clone() + &leaving, vec!["3"], vec!["4"]),
        (
            "unready ones that are published",
            ", publishNotReadyAddresses: true",
            all.clone(),
            vec!["1", "2", "3", "4", "5"],
            vec!["1", "4", "5"],
        ),
        ("the same zone", ", trafficDistribution: PreferClose", all.clone(), vec!["1", "2"], vec!["1"]),
        (
            "the same zone by its newer name",
            ", trafficDistribution: PreferSameZone",
            all.clone(),
            vec!["1", "2"],
            vec!["1"],
        ),
        ("the same node", ", trafficDistribution: PreferSameNode", all.clone(), vec!["1"], vec!["1"]),
        (
            "the same zone where the node has none",
            ", trafficDistribution: PreferSameNode",
            zone.clone() + &away,
            vec!["2"],
            vec![],
        ),
        (
            "elsewhere where the zone has none",
            ", trafficDistribution: PreferSameNode",
            away.clone(),
            vec!["3"],
            vec![],
        ),
    ];
    for (name, extra, pods, cluster, local) in cases {
        let spec = format!(
            "clusterIP: 10.96.0.1, internalTrafficPolicy: Local, selector: {{app: web}}{extra}, {PORTS}"
        );
        let (snapshot, notices) = translate(&(web(&spec, "") + &nodes + &pods));
        let wanted = |all: Vec<&str>| all.into_iter().map(ToOwned::to_owned).collect::<Vec<_>>();
        assert_eq!(policies(&snapshot), (wanted(cluster), Some(wanted(local))), "{name}");
        assert_eq!(*notices, [], "{name}");
        assert_eq!(
            service(&snapshot, "web").ports[0].listed.len(),
            pods.matches("kind: Pod").count(),
            "{name}"
        );
    }
}

#[test]
fn this_node() {
    let rest = "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}\nstatus: {addresses: [{type: InternalIP, address: 172.18.0.2}, {type: InternalIP, address: 'fd00::2'}, {type: Hostname, address: node-a}]}\n";
    let mut translator = translator();
    let (snapshot, _) = translator.apply(upserts(&(node("node-b", "b", "") + &node("node-a", "a", rest))));
    assert_eq!((snapshot.node.zone.as_deref(), snapshot.node.leaving), (Some("a"), true));
    assert_eq!(
        snapshot.node.addresses,
        ["172.18.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]
    );
    let deleted = node("node-a", "", "").replace("labels: {}", "deletionTimestamp: '2026-01-01T00:00:00Z'");
    let (snapshot, _) = translator.apply(upserts(&deleted));
    assert_eq!((snapshot.node.zone.as_deref(), snapshot.node.leaving), (None, true));
    let (snapshot, _) = translator.apply([Change::Delete(ObjectRef::new(Kind::Node, "", "node-a"))]);
    assert_eq!(*snapshot.node, crate::model::LocalNode::default());
}

#[test]
fn a_node_that_moves_takes_its_services_along() {
    let hinted = slice(
        "web-1",
        &[
            "{addresses: [10.0.0.1], hints: {forZones: [{name: a}]}}",
            "{addresses: [10.0.0.2], hints: {forZones: [{name: b}]}}",
        ],
    );
    let text = web(&format!("clusterIP: 10.96.0.1, {PORTS}"), "")
        + &hinted
        + &named("other", "", "clusterIP: 10.96.0.2, ports: [{port: 80}]", "");
    let mut translator = translator();
    let (before, _) = translator.apply(upserts(&(text + &node("node-a", "a", ""))));
    assert_eq!(policies(&before).0, ["1"]);
    let (after, _) = translator.apply(upserts(&node("node-a", "b", "")));
    assert_eq!(policies(&after).0, ["2"]);
    let other = ServiceName::new("shop", "other");
    assert!(Arc::ptr_eq(&before.services[&other], &after.services[&other]), "no concern of this one");
    let (last, _) = translator.apply([Change::Delete(ObjectRef::new(Kind::Node, "", "node-a"))]);
    assert_eq!(policies(&last).0, ["1", "2"]);
}

#[test]
fn routes_under_both_policies() {
    let rule = |weights: (u32, u32)| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: split, namespace: shop}}\nspec: {{hosts: [web], tcp: [{{route: [{{destination: {{host: web}}, weight: {}}}, {{destination: {{host: canary}}, weight: {}}}]}}]}}\n",
            weights.0, weights.1
        )
    };
    let text = web(&format!("clusterIP: 10.96.0.1, internalTrafficPolicy: Local, {PORTS}"), "")
        + &named("canary", "", "clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]", "")
        + &slice(
            "web-1",
            &["{addresses: [10.0.0.1], nodeName: node-a}", "{addresses: [10.0.0.2], nodeName: node-b}"],
        )
        + &slice(
            "canary-1",
            &["{addresses: [10.0.1.1], nodeName: node-a}", "{addresses: [10.0.1.2], nodeName: node-b}"],
        )
        .replace("service-name: web", "service-name: canary");
    let mut translator = translator();
    let (snapshot, notices) = translator.apply(upserts(&(text + &rule((90, 10)))));
    assert_eq!(*notices, []);
    let port = &service(&snapshot, "web").ports[0];
    assert_eq!(drawn(&port.route), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.1.1:8080", "10.0.1.2:8080"]);
    let local = port.local.as_ref().unwrap();
    assert_eq!(drawn(local), ["10.0.0.1:8080", "10.0.1.1:8080"]);
    let shares: Vec<u64> = local.v4.backends().iter().map(|backend| backend.weight).collect();
    assert_eq!(shares[0], 9 * shares[1]);
    assert_eq!(addresses(port.endpoints.iter()), ["10.0.0.1:8080", "10.0.0.2:8080"], "whatever the route");
    // Nothing new goes to what has weight 0, but what went there before is left alone.
    let (snapshot, _) = translator.apply(upserts(&rule((1, 0))));
    let asked = Frontend { address: Some([10, 96, 0, 1].into()), port: 80, protocol: Protocol::Tcp };
    assert_eq!(snapshot.fate(asked, ([10, 0, 1, 1], 8080).into()), Fate::Listed);
    assert_eq!(snapshot.fate(asked, ([10, 0, 0, 2], 8080).into()), Fate::Serving);
}

#[test]
fn a_subset_in_another_zone_serves() {
    let labelled = |name: &str, address: &str, version: &str| {
        pod(name, address, "node-b", "", true).replace("app: web", &format!("app: web, v: {version}"))
    };
    let hint = |address: &str, zone: &str| {
        format!("{{addresses: [{address}], hints: {{forZones: [{{name: {zone}}}]}}}}")
    };
    let text = web(&format!("clusterIP: 10.96.0.1, {PORTS}"), "")
        + &slice("web-1", &[&hint("10.0.0.1", "a"), &hint("10.0.0.2", "b")])
        + &labelled("p1", "10.0.0.1", "one")
        + &labelled("p2", "10.0.0.2", "two")
        + &node("node-a", "a", "")
        + "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\nspec: {host: web, subsets: [{name: two, labels: {v: two}}]}\n"
        + "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\nspec: {hosts: [web], tcp: [{route: [{destination: {host: web, subset: two}}]}]}\n";
    let (snapshot, notices) = translate(&text);
    assert_eq!(*notices, []);
    assert_eq!(policies(&snapshot).0, ["2"]);
}

#[test]
fn what_the_api_server_would_refuse() {
    let cases = [
        ("type: Cluster", "spec.type"),
        ("sessionAffinity: Cookie", "spec.sessionAffinity"),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        ("internalTrafficPolicy: Node", "spec.internalTrafficPolicy"),
        ("externalTrafficPolicy: local", "spec.externalTrafficPolicy"),
        ("healthCheckNodePort: 70000", "spec.healthCheckNodePort"),
        ("externalIPs: [example.com]", "spec.externalIPs[0]"),
        ("externalIPs: [192.0.2.1, 127.0.0.1]", "spec.externalIPs[1]"),
        ("externalIPs: ['fe80::1']", "spec.externalIPs[0]"),
        ("ports: [{port: 80, nodePort: 70000}]", "spec.ports[0].nodePort"),
    ];
    for (spec, field) in cases {
        let decoded = crate::resources::decode(&web(spec, ""));
        let fields: Vec<&str> = decoded.mistakes.iter().map(|mistake| mistake.field.as_str()).collect();
        assert_eq!(fields, [field], "{spec}");
    }
    let decoded = crate::resources::decode(&web("clusterIP: 10.96.0.1", "{ip: here}"));
    assert_eq!(decoded.mistakes[0].field, "status.loadBalancer.ingress[0].ip");
    assert_eq!(objects(&web("type: ExternalName, externalName: example.com", "")).len(), 1);
}
