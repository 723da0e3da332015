//! The translator against objects as people write them.

mod destinations;
mod entries;
mod gateway;
mod load;
mod routes;
mod services;

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::model::{Mode, Protocol, Service};
use crate::resources::decode;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/");

fn objects(text: &str) -> Vec<Arc<Object>> {
    let decoded = decode(text);
    assert!(decoded.mistakes.is_empty(), "{:?}", decoded.mistakes);
    decoded.objects.into_iter().map(|item| item.object).collect()
}

fn upserts(text: &str) -> Vec<Change> {
    objects(text).into_iter().map(Change::Upsert).collect()
}

fn demo(files: &[&str]) -> Vec<Change> {
    files
        .iter()
        .flat_map(|file| upserts(&std::fs::read_to_string(format!("{DEMO}{file}.yaml")).unwrap()))
        .collect()
}

#[test]
fn pods_come_to_this_node_move_and_go() {
    let mesh = MeshConfig { node: Some(NodeName::new("node-a")), ..MeshConfig::default() };
    let mut translator = Translator::new(mesh);
    let mut here_after = |pods: &[(&str, &str)]| {
        let pods = pods.iter().map(|(name, node)| {
            format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: {node}, containers: []}}\n")
        });
        let (snapshot, _) = translator.apply(upserts(&pods.collect::<String>()));
        (snapshot.here.keys().map(ToString::to_string).collect::<Vec<_>>(), snapshot)
    };
    let (names, first) = here_after(&[("a", "node-a"), ("b", "node-b")]);
    assert_eq!(names, ["shop/a"]);
    let (names, second) = here_after(&[("c", "node-b")]);
    assert_eq!(names, ["shop/a"]);
    assert!(first.here.ptr_eq(&second.here), "what is on other nodes leaves it as it is");
    assert_eq!(here_after(&[("b", "node-a")]).0, ["shop/a", "shop/b"]);
    assert_eq!(here_after(&[("a", "node-c")]).0, ["shop/b"]);
    let gone = Change::Delete(ObjectRef::new(Kind::Pod, "shop", "b"));
    assert!(translator.apply([gone]).0.here.is_empty());
}

fn bookinfo() -> Translator {
    let mut translator = Translator::new(MeshConfig::default());
    let (_, notices) = translator.apply(demo(&["namespace", "bookinfo", "destination-rule-reviews"]));
    assert_eq!(*notices, []);
    translator
}

fn service<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Arc<Service> {
    &snapshot.services[&ServiceName::new("bookinfo", name)]
}

fn addresses<'a>(endpoints: impl IntoIterator<Item = &'a crate::model::Endpoint>) -> Vec<String> {
    endpoints.into_iter().map(|endpoint| endpoint.address.to_string()).collect()
}

/// Weights of IPv4 endpoints by the last part of the address, `-` for a share that refuses.
fn shares(service: &Service) -> Vec<(String, u64)> {
    let backends = service.ports[0].route.v4.backends().iter();
    backends
        .map(|backend| {
            let to = backend
                .endpoint
                .as_ref()
                .map_or("-".to_owned(), |endpoint| endpoint.address.ip().to_string());
            (to, backend.weight)
        })
        .collect()
}

#[test]
fn bookinfo_is_translated() {
    let (snapshot, _) = bookinfo().apply([]);
    assert_eq!((snapshot.workloads.len(), snapshot.services.len(), snapshot.frontends.len()), (6, 4, 8));
    let asked: SocketAddr = "10.96.0.13:9080".parse().unwrap();
    let (reviews, port) = snapshot.service_at(asked, Protocol::Tcp).unwrap();
    assert_eq!(&*reviews.host, "reviews.bookinfo.svc.cluster.local");
    assert_eq!(
        addresses(port.endpoints.iter())[..3],
        ["10.244.1.12:9080", "10.244.2.11:9080", "10.244.2.12:9080"]
    );
    assert_eq!(port.route.v6.backends().len(), 3);
    assert!(port.route.rule.is_none());
    let workload = snapshot.workload_at("fd00:244:2::11".parse().unwrap()).unwrap();
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews");
    assert_eq!(workload.node.as_ref().unwrap().as_str(), "node-b");
    assert!(!workload.enrolled);
}

#[test]
fn routes_of_the_demo() {
    let cases: [(&str, Vec<(&str, u64)>); 3] = [
        ("reviews-v1", vec![("10.244.1.12", 100)]),
        ("reviews-50-50", vec![("10.244.1.12", 50), ("10.244.2.12", 50)]),
        ("reviews-90-10", vec![("10.244.1.12", 90), ("10.244.2.11", 10)]),
    ];
    let mut translator = bookinfo();
    for (file, wanted) in cases {
        let (snapshot, notices) = translator.apply(demo(&[file]));
        assert_eq!(*notices, [], "{file}");
        let reviews = service(&snapshot, "reviews");
        assert_eq!(reviews.ports[0].route.rule.as_deref(), Some("bookinfo/reviews"), "{file}");
        let wanted: Vec<_> =
            wanted.into_iter().map(|(address, weight)| (address.to_owned(), weight)).collect();
        assert_eq!(shares(reviews), wanted, "{file}");
    }
}

#[test]
fn policies_and_enrolment_of_the_demo() {
    let mut translator = bookinfo();
    let (before, _) = translator.apply([]);
    let modes = |snapshot: &Snapshot, name: &str| {
        let endpoint = &service(snapshot, name).ports[0].endpoints[0];
        (endpoint.enrolled, endpoint.mode)
    };
    assert_eq!(modes(&before, "reviews"), (false, Mode::Permissive));
    let (enrolled, _) = translator.apply(demo(&["enrol"]));
    assert_eq!(modes(&enrolled, "reviews"), (true, Mode::Permissive));
    let (selected, _) = translator.apply(demo(&["strict-reviews"]));
    assert_eq!(modes(&selected, "reviews"), (true, Mode::Strict));
    assert_eq!(modes(&selected, "ratings"), (true, Mode::Permissive));
    let (strict, _) = translator.apply(demo(&["strict"]));
    assert_eq!(modes(&strict, "ratings"), (true, Mode::Strict));
    let (mesh, _) = translator.apply(demo(&["strict-mesh", "permissive"]));
    assert_eq!(modes(&mesh, "ratings"), (true, Mode::Permissive));
    assert_eq!(modes(&mesh, "reviews"), (true, Mode::Strict));
}

#[test]
fn what_is_not_concerned_keeps_its_arc() {
    let mut translator = bookinfo();
    translator.apply(demo(&["reviews-90-10"]));
    let (before, _) = translator.apply([]);
    let kept = |after: &Snapshot, name: &str| Arc::ptr_eq(service(&before, name), service(after, name));

    let again: Vec<Change> = demo(&["bookinfo"]);
    let (after, _) = translator.apply(again);
    assert_eq!(after.generation, before.generation, "equal objects are no change");

    let gone = ObjectRef::new(Kind::Pod, "bookinfo", "reviews-v2");
    let (after, _) = translator.apply([Change::Delete(gone)]);
    assert_eq!(after.generation, before.generation + 1);
    assert!(!kept(&after, "reviews"));
    for name in ["productpage", "details", "ratings"] {
        assert!(kept(&after, name), "{name}");
    }
    for (uid, workload) in &after.workloads {
        assert!(Arc::ptr_eq(workload, &before.workloads[uid]), "{uid}");
    }
    assert_eq!(shares(service(&after, "reviews")), [("10.244.1.12".to_owned(), 90), ("-".to_owned(), 10)]);
}

const PORT: &str = "ports: [{name: http, port: 80, targetPort: 8080}]";

fn web(extra: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: bookinfo}}\nspec: {{clusterIP: 10.96.1.1, {PORT}{extra}}}\n"
    )
}

fn slice(endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: web-1, namespace: bookinfo, labels: {{kubernetes.io/service-name: web}}}}\n\
         ports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints:\n{endpoints}"
    )
}

fn pod(name: &str, address: &str, extra_labels: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: bookinfo, labels: {{app: web{extra_labels}}}}}\n\
         spec: {{containers: [{{name: a, ports: [{{name: main, containerPort: 8081}}]}}]}}\n\
         status: {{podIP: {address}{rest}}}\n"
    )
}

#[test]
fn endpoints() {
    let selector = ", selector: {app: web}";
    let unready = ", conditions: [{type: Ready, status: \"False\"}]";
    let cases: Vec<(&str, String, Vec<&str>)> = vec![
        ("no selector, no slice", web(""), vec![]),
        (
            "ready and unknown readiness count",
            web("")
                + &slice(
                    "- {addresses: [10.0.0.1], conditions: {ready: true}}\n- {addresses: [10.0.0.2]}\n- {addresses: [10.0.0.3], conditions: {ready: false}}\n",
                ),
            vec!["10.0.0.1:8080", "10.0.0.2:8080"],
        ),
        (
            "terminating ones only where none is ready",
            web("")
                + &slice(
                    "- {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}\n- {addresses: [10.0.0.4], conditions: {ready: false}}\n",
                ),
            vec!["10.0.0.3:8080"],
        ),
        (
            "a slice comes before the selector",
            web(selector) + &pod("a", "10.0.0.9", "", "") + &slice("- {addresses: [10.0.0.1]}\n"),
            vec!["10.0.0.1:8080"],
        ),
        (
            "ports are matched by name",
            web("").replace("http", "other") + &slice("- {addresses: [10.0.0.1]}\n"),
            vec![],
        ),
        (
            "ready pods of the selector",
            web(selector)
                + &pod("a", "10.0.0.2", "", "")
                + &pod("b", "10.0.0.1", "", "")
                + &pod("c", "10.0.0.3", "", unready),
            vec!["10.0.0.1:8080", "10.0.0.2:8080"],
        ),
        ("pods that have ended", web(selector) + &pod("a", "10.0.0.2", "", ", phase: Failed"), vec![]),
        (
            "a port by name",
            web(selector).replace("8080", "main") + &pod("a", "10.0.0.2", "", ""),
            vec!["10.0.0.2:8081"],
        ),
        ("an address of another family", web(selector) + &pod("a", "\"fd00::1\"", "", ""), vec![]),
        (
            "every label of the selector",
            web(", selector: {app: web, x: y}")
                + &pod("a", "10.0.0.2", "", "")
                + &pod("b", "10.0.0.3", ", x: y", ""),
            vec!["10.0.0.3:8080"],
        ),
    ];
    for (name, text, wanted) in cases {
        let (snapshot, _) = Translator::new(MeshConfig::default()).apply(upserts(&text));
        assert_eq!(addresses(service(&snapshot, "web").ports[0].endpoints.iter()), wanted, "{name}");
    }
}

fn rule(name: &str, created: u32, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: bookinfo, creationTimestamp: \"2024-01-01T00:00:{created:02}Z\"}}\n\
         spec: {{hosts: [reviews], {spec}}}\n"
    )
}

#[test]
fn routes() {
    let to = |subset: &str| format!("{{destination: {{host: reviews, subset: {subset}}}}}");
    let all = || vec![("10.244.1.12", 1), ("10.244.2.11", 1), ("10.244.2.12", 1)];
    let cases: Vec<(&str, String, Vec<(&str, u64)>, Vec<&str>)> = vec![
        (
            "tcp",
            rule("a", 0, &format!("tcp: [{{route: [{}]}}]", to("v2"))),
            vec![("10.244.2.11", 100)],
            vec![],
        ),
        (
            "an entry with a layer-7 match is passed over",
            rule(
                "a",
                0,
                &format!(
                    "http: [{{match: [{{uri: {{prefix: /}}}}], route: [{}]}}, {{route: [{}]}}]",
                    to("v1"),
                    to("v3")
                ),
            ),
            vec![("10.244.2.12", 100)],
            vec!["spec.http[0].match[0].uri"],
        ),
        (
            "layer-7 matches alone leave the service's own endpoints",
            rule("a", 0, &format!("http: [{{match: [{{uri: {{prefix: /}}}}], route: [{}]}}]", to("v1"))),
            all(),
            vec!["spec.http[0].match[0].uri", "spec"],
        ),
        (
            "a match on this port",
            rule(
                "a",
                0,
                &format!(
                    "tcp: [{{match: [{{port: 1}}], route: [{}]}}, {{match: [{{port: 9080}}], route: [{}]}}]",
                    to("v1"),
                    to("v2")
                ),
            ),
            vec![("10.244.2.11", 100)],
            vec![],
        ),
        (
            "a subset that nobody names",
            rule(
                "a",
                0,
                "tcp: [{route: [{destination: {host: reviews, subset: v9}, weight: 1}, {destination: {host: reviews, subset: v1}, weight: 3}]}]",
            ),
            vec![("-", 1), ("10.244.1.12", 3)],
            vec!["spec.tcp[0].route[0].destination.subset"],
        ),
        (
            "a host that is no service",
            rule("a", 0, "tcp: [{route: [{destination: {host: nothing}}]}]"),
            vec![],
            vec!["spec.tcp[0].route[0].destination.host"],
        ),
        (
            "another service, whose only port it is",
            rule("a", 0, "tcp: [{route: [{destination: {host: web}}]}]")
                + &web("")
                + &slice("- {addresses: [10.0.0.1]}\n"),
            vec![("10.0.0.1", 100)],
            vec![],
        ),
        (
            "a port that is not there",
            rule("a", 0, "tcp: [{route: [{destination: {host: reviews, port: {number: 7}}}]}]"),
            vec![],
            vec!["spec.tcp[0].route[0].destination.port.number"],
        ),
        (
            "the oldest wins",
            rule("a", 9, &format!("tcp: [{{route: [{}]}}]", to("v1")))
                + &rule("b", 3, &format!("tcp: [{{route: [{}]}}]", to("v2"))),
            vec![("10.244.2.11", 100)],
            vec!["spec.hosts"],
        ),
        (
            "another gateway's",
            rule("a", 0, &format!("gateways: [ingress], tcp: [{{route: [{}]}}]", to("v1"))),
            all(),
            vec!["spec.gateways"],
        ),
        (
            "weight 0",
            rule(
                "a",
                0,
                "tcp: [{route: [{destination: {host: reviews, subset: v1}, weight: 0}, {destination: {host: reviews, subset: v2}, weight: 5}]}]",
            ),
            vec![("10.244.2.11", 5)],
            vec![],
        ),
    ];
    for (name, text, wanted, fields) in cases {
        let (snapshot, notices) = bookinfo().apply(upserts(&text));
        let wanted: Vec<_> =
            wanted.into_iter().map(|(address, weight)| (address.to_owned(), weight)).collect();
        assert_eq!(shares(service(&snapshot, "reviews")), wanted, "{name}");
        let found: Vec<&str> = notices.iter().map(|notice| notice.field.as_str()).collect();
        assert_eq!(found, fields, "{name}: {notices:?}");
    }
}

#[test]
fn an_address_that_two_claim() {
    let text = web("") + &web("").replace("name: web", "name: zzz");
    let mut translator = Translator::new(MeshConfig::default());
    let (snapshot, notices) = translator.apply(upserts(&text));
    let asked = "10.96.1.1:80".parse().unwrap();
    assert_eq!(&*snapshot.service_at(asked, Protocol::Tcp).unwrap().0.name.name, "web");
    assert_eq!(notices.len(), 1);
    assert_eq!(notices[0].object.to_string(), "Service bookinfo/zzz");
    let (_, same) = translator.apply(upserts(&pod("a", "10.0.0.1", "", "")));
    assert!(Arc::ptr_eq(&notices, &same), "told again as it was");
    let (snapshot, notices) =
        translator.apply([Change::Delete(ObjectRef::new(Kind::Service, "bookinfo", "web"))]);
    assert_eq!(&*snapshot.service_at(asked, Protocol::Tcp).unwrap().0.name.name, "zzz");
    assert_eq!(*notices, []);
}

#[test]
fn policies_of_services_that_are_not_there() {
    let policy = |targets: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: bookinfo}}\nspec: {{targetRefs: [{targets}]}}\n"
        )
    };
    let mut translator = Translator::new(MeshConfig::default());
    let (_, notices) =
        translator.apply(upserts(&policy("{kind: Service, name: web}, {kind: Service, name: db}")));
    assert_eq!(notices.len(), 2, "{notices:?}");
    let (_, notices) = translator.apply(upserts(&web("")));
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert_eq!(
        notices[0].to_string(),
        "AuthorizationPolicy bookinfo/a: spec.targetRefs: there is no service bookinfo/db: the policy is not in force there"
    );
    let (snapshot, notices) = translator.apply(upserts(&policy("{kind: Service, name: web}")));
    assert_eq!((snapshot.policies.len(), notices.len()), (1, 0), "{notices:?}");
    let gone = Change::Delete(ObjectRef::new(Kind::Service, "bookinfo", "web"));
    assert_eq!(translator.apply([gone]).1.len(), 1);
    let gone = Change::Delete(ObjectRef::new(Kind::AuthorizationPolicy, "bookinfo", "a"));
    let (snapshot, notices) = translator.apply([gone]);
    assert!(snapshot.policies.is_empty() && notices.is_empty());
}

/// A policy that cannot be read any more leaves the one before in force.
#[test]
fn a_policy_that_is_wrong_changes_nothing() {
    let policy = |rules: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: bookinfo}}\nspec: {{action: DENY, rules: [{rules}]}}\n"
        )
    };
    let mut translator = Translator::new(MeshConfig::default());
    let (before, _) = translator.apply(upserts(&policy("{}")));
    let decoded = decode(&policy("{to: [{operation: {ports: [http]}}]}"));
    assert_eq!((decoded.objects.len(), decoded.mistakes.len()), (0, 1));
    let (after, _) = translator.apply(decoded.objects.into_iter().map(|item| Change::Upsert(item.object)));
    assert_eq!((after.generation, &after.policies), (before.generation, &before.policies));
}

/// A change from a small world in which everything meets everything else.
fn any_change() -> impl Strategy<Value = Change> {
    let node = || prop::sample::select(vec!["node-a", "node-b"]);
    let name = || prop::sample::select(vec!["web", "db"]);
    let address = || prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let selector = prop::sample::select(vec!["", ", selector: {app: web}", ", selector: {app: web, v: a}"]);
    let labels = prop::sample::select(vec!["", ", v: a", ", v: b"]);
    let rest =
        prop::sample::select(vec!["", ", phase: Failed", ", conditions: [{type: Ready, status: \"False\"}]"]);
    let namespace = prop::sample::select(vec!["{}", "{istio.io/dataplane-mode: ambient}"]);
    let mode = prop::sample::select(vec!["STRICT", "DISABLE", "UNSET"]);
    let whole = prop::sample::select(vec!["", "selector: {matchLabels: {v: a}}, "]);
    let subset = || prop::sample::select(vec!["a", "b", "c"]);
    let zone = || prop::sample::select(vec!["a", "b"]);
    let scope = prop::sample::select(vec![
        "",
        "selector: {matchLabels: {app: web}}, ",
        "selector: {matchLabels: {v: a}}, ",
        "targetRefs: [{kind: Service, name: web}, {kind: Service, name: db}], ",
    ]);
    let rules = prop::sample::select(vec![
        "",
        "rules: [{}]",
        "action: DENY, rules: [{from: [{source: {namespaces: [a]}}]}]",
        "action: CUSTOM, rules: [{to: [{operation: {ports: ['80']}}]}]",
    ]);
    let reach = prop::sample::select(vec![
        "",
        ", internalTrafficPolicy: Local",
        ", type: NodePort, externalTrafficPolicy: Local",
        ", externalIPs: [192.0.2.1], sessionAffinity: ClientIP",
        ", trafficDistribution: PreferSameZone",
        ", trafficDistribution: PreferSameNode, publishNotReadyAddresses: true",
    ]);
    let conditions =
        || prop::sample::select(vec!["{}", "{ready: false}", "{ready: false, terminating: true}"]);
    let hints = || {
        prop::sample::select(vec![
            "{}",
            "{forZones: [{name: a}]}",
            "{forZones: [{name: b}], forNodes: [{name: node-a}]}",
        ])
    };
    let host = || {
        prop::sample::select(vec!["web.bookinfo.svc.cluster.local", "example.com", "a.example.com", "web"])
    };
    let labelled = prop::sample::select(vec!["", ", v: a"]);
    let (selected, exported) =
        (prop::bool::ANY, prop::sample::select(vec!["", ", exportTo: [.]", ", exportTo: ['*']"]));
    let hosts = prop::sample::select(vec![
        "web.bookinfo",
        "db.bookinfo.svc.cluster.local",
        "'*.bookinfo.svc.cluster.local'",
        "'*.local'",
        "'*'",
    ]);
    let of_rules = prop::sample::select(vec!["bookinfo", "istio-system", "elsewhere"]);
    let policies = || {
        prop::sample::select(vec![
            "",
            ", trafficPolicy: {outlierDetection: {}}",
            ", trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a/*, to: {a/*: 80, b: 20}}]}}}",
            ", trafficPolicy: {outlierDetection: {}, loadBalancer: {simple: LEAST_REQUEST, localityLbSetting: {failoverPriority: [topology.kubernetes.io/zone]}}}",
            ", trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}",
            ", trafficPolicy: {portLevelSettings: [{port: {number: 80}, outlierDetection: {}}]}",
        ])
    };
    let leaving = prop::sample::select(vec![
        "",
        "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}\n",
    ]);
    let text = prop_oneof![
        2 => (name(), reach).prop_map(|(name, reach)| {
            let selector = format!("{reach}, selector: {{app: web}}");
            web(&selector).replace("name: web", &format!("name: {name}")).replace("port: 80,", "port: 80, nodePort: 30080,")
        }),
        2 => (name(), address(), conditions(), hints(), node(), name()).prop_map(|(name, address, conditions, hints, node, service)| {
            slice(&format!("- {{addresses: [{address}], conditions: {conditions}, hints: {hints}, nodeName: {node}}}\n- {{addresses: [10.0.0.1], hints: {{forZones: [{{name: b}}]}}}}\n"))
                .replace("name: web-1", &format!("name: {name}-2"))
                .replace("service-name: web", &format!("service-name: {service}"))
        }),
        2 => (node(), zone(), zone(), leaving, address()).prop_map(|(node, region, zone, leaving, address)| {
            format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {node}, labels: {{topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: {zone}}}}}\n{leaving}status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n")
        }),
        3 => (name(), selector).prop_map(|(name, selector)| web(selector).replace("name: web", &format!("name: {name}"))),
        5 => (name(), address(), labels, rest, node()).prop_map(|(name, address, labels, rest, node)| {
            pod(name, address, labels, rest).replace("spec: {", &format!("spec: {{nodeName: {node}, "))
        }),
        2 => (name(), address(), name()).prop_map(|(name, address, target)| {
            slice(&format!("- {{addresses: [{address}], targetRef: {{kind: Pod, name: {target}}}}}\n- {{addresses: [10.0.0.1]}}\n"))
                .replace("service-name: web", &format!("service-name: {name}"))
        }),
        1 => address().prop_map(|address| {
            slice(&format!("- {{addresses: [{address}]}}\n"))
                .replace("service-name: web", "service-name: kubernetes")
                .replace("namespace: bookinfo", "namespace: default")
        }),
        1 => namespace.prop_map(|labels| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: bookinfo, labels: {labels}}}\n")),
        2 => (name(), prop::bool::ANY, whole, mode).prop_map(|(name, root, selector, mode)| {
            let namespace = if root { "istio-system" } else { "bookinfo" };
            format!("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{selector}mtls: {{mode: {mode}}}}}\n")
        }),
        3 => (name(), prop::bool::ANY, scope, rules).prop_map(|(name, root, scope, rules)| {
            let namespace = if root { "istio-system" } else { "bookinfo" };
            format!("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{scope}{rules}}}\n")
        }),
        2 => (name(), name(), subset(), 0_u32..3).prop_map(|(host, to, subset, weight)| {
            let route = format!("tcp: [{{route: [{{destination: {{host: {to}, subset: {subset}}}, weight: {weight}}}, {{destination: {{host: web}}, weight: 1}}]}}]");
            rule(to, weight, &route).replace("[reviews]", &format!("[{host}]"))
        }),
        3 => (host(), address(), selected, exported, 1..4).prop_map(|(host, address, selected, exported, age)| {
            let labels = "{v: a, networking.istio.io/tunnel: http}";
            let own = format!("endpoints: [{{address: {address}, weight: 2, serviceAccount: a, labels: {labels}}}, {{address: 10.0.0.2}}]");
            let endpoints = if selected { "workloadSelector: {labels: {app: web}}".to_owned() } else { own };
            let (namespace, name) = if exported.is_empty() { ("com", "b") } else { ("bookinfo", "a") };
            format!("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-0{age}T00:00:00Z'}}\nspec: {{hosts: [{host}, b.c.d], addresses: [192.0.2.1, {address}], location: MESH_INTERNAL, resolution: STATIC, ports: [{{number: 80, name: http, protocol: TCP}}], {endpoints}{exported}}}\n")
        }),
        3 => (name(), address(), labelled, prop::bool::ANY, 1..4).prop_map(|(name, address, labels, tunnel, age)| {
            let tunnel = if tunnel { ", networking.istio.io/tunnel: http" } else { "" };
            format!("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: bookinfo, creationTimestamp: '2026-01-0{age}T00:00:00Z'}}\nspec: {{address: {address}, serviceAccount: a, labels: {{app: web{labels}{tunnel}}}}}\n")
        }),
        3 => (host(), host(), 1_u32..3).prop_map(|(name, to, weight)| {
            let route = format!("tcp: [{{route: [{{destination: {{host: {to}, subset: a}}, weight: {weight}}}, {{destination: {{host: {name}}}, weight: 1}}]}}]");
            rule("hosts", weight, &route).replace("[reviews]", &format!("[{name}]"))
        }),
        1 => (host(), subset()).prop_map(|(host, subset)| {
            format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: hosts, namespace: bookinfo}}\nspec: {{host: {host}, subsets: [{{name: {subset}, labels: {{v: a}}}}]}}\n")
        }),
        3 => (name(), hosts, subset(), of_rules, policies(), policies()).prop_map(|(name, host, subset, namespace, whole, own)| {
            format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{host: {host}{whole}, subsets: [{{name: {subset}, labels: {{v: a}}{own}}}]}}\n")
        }),
    ];
    (text, prop::bool::weighted(0.3)).prop_map(|(text, delete)| {
        let object = objects(&text).remove(0);
        if delete { Change::Delete(object.reference()) } else { Change::Upsert(object) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn step_by_step_equals_from_scratch(batches in prop::collection::vec(prop::collection::vec(any_change(), 1..4), 1..12)) {
        let mesh = MeshConfig { node: Some(NodeName::new("node-a")), ..MeshConfig::default() };
        let mut translator = Translator::new(mesh.clone());
        let mut objects: BTreeMap<ObjectRef, Arc<Object>> = BTreeMap::new();
        for batch in batches {
            for change in &batch {
                match change {
                    Change::Upsert(object) => { objects.insert(object.reference(), Arc::clone(object)); }
                    Change::Delete(reference) => { objects.remove(reference); }
                }
            }
            let (step, step_notices) = translator.apply(batch);
            let (whole, whole_notices) =
                Translator::new(mesh.clone()).apply(objects.values().cloned().map(Change::Upsert));
            prop_assert_eq!(&step.workloads, &whole.workloads);
            prop_assert_eq!(&step.addresses, &whole.addresses);
            prop_assert_eq!(&step.services, &whole.services);
            prop_assert_eq!(&step.frontends, &whole.frontends);
            prop_assert_eq!(&step.node, &whole.node);
            prop_assert_eq!(&step.policies, &whole.policies);
            prop_assert_eq!(step_notices, whole_notices);
        }
    }
}
