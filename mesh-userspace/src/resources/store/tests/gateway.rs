//! `TCPRoute`s with a Service for a parent: who gets which share, and what the status says.

use std::fmt::Write as _;

use super::*;
use crate::model::{RouteKind, RouteName, RouteState};

/// Services `web` (ports 80 and 81 by name), `a`, `b` in `shop` and `c` in `bank`, each with one endpoint.
fn cluster() -> String {
    let mut text = String::new();
    for (namespace, name, last) in [("shop", "web", 1), ("shop", "a", 2), ("shop", "b", 3), ("bank", "c", 4)]
    {
        let _infallible = write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
             clusterIP: 10.96.0.{last}\n  selector: {{app: {name}}}\n  ports:\n  - {{name: main, port: 80}}\n  \
             - {{name: other, port: 81}}\n  - {{name: udp, port: 53, protocol: UDP}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
             spec: {{containers: []}}\nstatus: {{podIP: 10.244.0.{last}}}\n---\n"
        );
    }
    text
}

/// A route `name` in `shop`; the youngest has the highest `age`.
fn route(name: &str, age: u32, parents: &str, backends: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {{name: {name}, namespace: shop, \
         generation: 3, creationTimestamp: \"2026-01-01T00:00:0{age}Z\"}}\nspec:\n  parentRefs: [{parents}]\n  \
         rules: [{{backendRefs: [{backends}]}}]\n---\n"
    )
}

const WEB: &str = "{group: \"\", kind: Service, name: web}";

fn translated(texts: &[String]) -> (Snapshot, Arc<[Notice]>) {
    let mut translator = Translator::new(MeshConfig::default());
    translator.apply(texts.iter().flat_map(|text| upserts(text)))
}

/// Shares by the last part of the address, `-` for one that refuses.
fn web(snapshot: &Snapshot, port: usize) -> String {
    let service = &snapshot.services[&ServiceName::new("shop", "web")];
    let shares = service.ports[port].route.v4.backends().iter().map(|backend| {
        let to = backend.endpoint.as_ref().map_or("-".to_owned(), |endpoint| {
            endpoint.address.ip().to_string().rsplit('.').next().unwrap().to_owned()
        });
        format!("{to}:{}", backend.weight)
    });
    shares.collect::<Vec<_>>().join(" ")
}

fn state<'a>(snapshot: &'a Snapshot, name: &str) -> &'a RouteState {
    let name = RouteName { kind: RouteKind::Tcp, name: ServiceName::new("shop", name) };
    snapshot.routes.get(&name).expect("the route has a state")
}

/// Reasons of both conditions of the first parent, `!` before one that does not hold.
fn reasons(snapshot: &Snapshot, name: &str) -> [String; 2] {
    let parent = &state(snapshot, name).parents[0];
    [&parent.accepted, &parent.resolved]
        .map(|one| format!("{}{}", if one.holds { "" } else { "!" }, one.reason))
}

#[test]
fn shares_and_conditions() {
    let grant = |kind: &str, from: &str, to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: bank}}\n\
             spec:\n  from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {from}}}]\n  \
             to: [{{group: \"\", kind: Service{to}}}]\n---\n"
        )
    };
    let (a, c) = ("{name: a, port: 80, weight: 3}", "{name: c, namespace: bank, port: 80}");
    let ok = ["Accepted", "ResolvedRefs"];
    let one = |parents: &str, backends: &str| vec![route("r", 0, parents, backends)];
    let with = |grant: String| vec![grant, route("r", 0, WEB, &format!("{a}, {c}"))];
    let cases: Vec<(&str, Vec<String>, &str, &str, [&str; 2])> = vec![
        ("split", one(WEB, &format!("{a}, {{name: b, port: 80}}")), "2:3 3:1", "2:3 3:1", ok),
        ("itself", one(WEB, "{name: web, port: 80, weight: 0}, {name: a, port: 81}"), "2:1", "2:1", ok),
        ("by number", one("{group: \"\", kind: Service, name: web, port: 81}", a), "1:1", "2:3", ok),
        ("by name", one("{group: \"\", kind: Service, name: web, sectionName: other}", a), "1:1", "2:3", ok),
        (
            "number and name of two ports",
            one("{group: \"\", kind: Service, name: web, sectionName: other, port: 80}", a),
            "1:1",
            "1:1",
            ["!NoMatchingParent", "ResolvedRefs"],
        ),
        (
            "not a TCP port",
            one("{group: \"\", kind: Service, name: web, sectionName: udp}", a),
            "1:1",
            "1:1",
            ["!NoMatchingParent", "ResolvedRefs"],
        ),
        (
            "no such service",
            one("{group: \"\", kind: Service, name: nobody}", a),
            "1:1",
            "1:1",
            ["!NoMatchingParent", "ResolvedRefs"],
        ),
        (
            "a parent in another namespace",
            one("{group: \"\", kind: Service, name: c, namespace: bank}", a),
            "1:1",
            "1:1",
            ok,
        ),
        (
            "a backend that is not there",
            one(WEB, &format!("{a}, {{name: nobody, port: 80}}")),
            "2:3 -:1",
            "2:3 -:1",
            ["Accepted", "!BackendNotFound"],
        ),
        (
            "a port that is not there",
            one(WEB, &format!("{a}, {{name: b, port: 7}}")),
            "2:3 -:1",
            "2:3 -:1",
            ["Accepted", "!BackendNotFound"],
        ),
        (
            "another kind",
            one(WEB, &format!("{a}, {{group: example.com, kind: Bucket, name: x}}")),
            "2:3 -:1",
            "2:3 -:1",
            ["Accepted", "!InvalidKind"],
        ),
        ("nothing at all", one(WEB, "{name: nobody, port: 80}"), "", "", ["Accepted", "!BackendNotFound"]),
        (
            "another namespace without leave",
            one(WEB, &format!("{a}, {c}")),
            "2:3 -:1",
            "2:3 -:1",
            ["Accepted", "!RefNotPermitted"],
        ),
        ("with leave", with(grant("TCPRoute", "shop", "")), "2:3 4:1", "2:3 4:1", ok),
        ("with leave for it by name", with(grant("TCPRoute", "shop", ", name: c")), "2:3 4:1", "2:3 4:1", ok),
        (
            "with leave for another",
            with(grant("TCPRoute", "shop", ", name: d")),
            "2:3 -:1",
            "2:3 -:1",
            ["Accepted", "!RefNotPermitted"],
        ),
        (
            "with leave from another namespace",
            with(grant("TCPRoute", "bank", "")),
            "2:3 -:1",
            "2:3 -:1",
            ["Accepted", "!RefNotPermitted"],
        ),
        (
            "with leave for another kind",
            with(grant("TLSRoute", "shop", "")),
            "2:3 -:1",
            "2:3 -:1",
            ["Accepted", "!RefNotPermitted"],
        ),
        (
            "an older one",
            vec![route("r", 5, WEB, a), route("z", 1, WEB, "{name: b, port: 80}")],
            "3:1",
            "3:1",
            ["!Conflicted", "ResolvedRefs"],
        ),
        (
            "an older one at one of its ports",
            vec![
                route("r", 5, WEB, a),
                route("z", 1, "{group: \"\", kind: Service, name: web, port: 80}", "{name: b, port: 80}"),
            ],
            "3:1",
            "2:3",
            ok,
        ),
        (
            "one as old whose name comes first",
            vec![route("r", 5, WEB, a), route("q", 5, WEB, "{name: b, port: 80}")],
            "3:1",
            "3:1",
            ["!Conflicted", "ResolvedRefs"],
        ),
        (
            "a VirtualService",
            vec![
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\nspec:\n  \
                 hosts: [web]\n  tcp: [{route: [{destination: {host: b, port: {number: 80}}}]}]\n---\n"
                    .to_owned(),
                route("r", 5, "{group: \"\", kind: Service, name: web, port: 80}", a),
            ],
            "2:3",
            "3:100",
            ok,
        ),
    ];
    for (name, texts, main, other, conditions) in cases {
        let all: Vec<String> = [cluster()].into_iter().chain(texts.clone()).collect();
        let (snapshot, notices) = translated(&all);
        assert_eq!(
            (web(&snapshot, 0).as_str(), web(&snapshot, 1).as_str()),
            (main, other),
            "{name}: {notices:?}"
        );
        assert_eq!(reasons(&snapshot, "r"), conditions, "{name}: {:?}", state(&snapshot, "r"));
        assert_eq!(state(&snapshot, "r").generation, 3, "{name}");
        // The order in which they come changes nothing, one at a time or all at once.
        let mut translator = Translator::new(MeshConfig::default());
        for change in all.iter().rev().flat_map(|text| upserts(text)) {
            translator.apply([change]);
        }
        let (again, _) = translator.apply([]);
        assert_eq!(again.routes, snapshot.routes, "{name}");
        assert_eq!(again.services, snapshot.services, "{name}");
    }
}

#[test]
fn what_goes_takes_its_share_and_its_state_along() {
    let mut translator = Translator::new(MeshConfig::default());
    let texts = [cluster(), route("r", 0, WEB, "{name: a, port: 80}")];
    translator.apply(texts.iter().flat_map(|text| upserts(text)));
    let service = ObjectRef::new(Kind::Service, "shop", "a");
    let (snapshot, notices) = translator.apply([Change::Delete(service)]);
    assert_eq!((web(&snapshot, 0).as_str(), &reasons(&snapshot, "r")[1][..]), ("", "!BackendNotFound"));
    assert!(notices.iter().any(|notice| notice.field == "spec.rules[0].backendRefs[0].name"), "{notices:?}");
    let (snapshot, notices) = translator.apply([Change::Delete(ObjectRef::new(Kind::TcpRoute, "shop", "r"))]);
    assert_eq!(web(&snapshot, 0), "1:1");
    assert!(snapshot.routes.is_empty() && notices.is_empty(), "{notices:?}");
}

#[test]
fn parents_that_are_no_services_are_none_of_our_business() {
    let (snapshot, notices) = translated(&[cluster(), route("r", 0, "{name: gate}", "{name: a, port: 80}")]);
    assert!(snapshot.routes.is_empty());
    assert!(notices[0].message.contains("a Gateway as a parent is not honoured"), "{notices:?}");
    let both = format!("{{name: gate}}, {WEB}");
    let (snapshot, _) = translated(&[cluster(), route("r", 0, &both, "{name: a, port: 80}")]);
    assert_eq!(state(&snapshot, "r").parents.len(), 1);
    assert_eq!(
        state(&snapshot, "r").parents[0].parent,
        serde_json::json!({"group": "", "kind": "Service", "name": "web"})
    );
}

/// A `TLSRoute` for these server names.
fn tls_route(namespace: &str, name: &str, age: u32, hostnames: &str, backend: &str) -> String {
    route(name, age, "{group: \"\", kind: Service, name: web, namespace: shop}", backend)
        .replace("TCPRoute", "TLSRoute")
        .replacen("namespace: shop,", &format!("namespace: {namespace},"), 1)
        .replace("spec:\n", &format!("spec:\n  hostnames: [{hostnames}]\n"))
}

/// The conditional routes of `web` at its first port, as `CONDITIONS => SHARES`, and the one for all others.
fn in_order(snapshot: &Snapshot) -> Vec<String> {
    let port = &snapshot.services[&ServiceName::new("shop", "web")].ports[0];
    let shares = |route: &crate::model::Route| {
        let backends = route.v4.backends().iter().map(|backend| {
            let to = backend.endpoint.as_ref().map_or("-".to_owned(), |one| one.address.ip().to_string());
            to.rsplit('.').next().unwrap().to_owned()
        });
        backends.collect::<Vec<_>>().join(" ")
    };
    let rules = port.rules.iter().map(|rule| {
        let matches: Vec<String> = rule.matches.iter().map(ToString::to_string).collect();
        format!("{} => {}", matches.join("; "), shares(&rule.route))
    });
    rules.chain([shares(&port.route)]).collect()
}

#[test]
fn routes_by_server_name_and_of_other_namespaces_go_first() {
    let (a, b, c) = ("{name: a, port: 80}", "{name: b, port: 80}", "{name: c, port: 80}");
    let consumer = |age| {
        route("k", age, "{group: \"\", kind: Service, name: web, namespace: shop}", c).replacen(
            "namespace: shop,",
            "namespace: bank,",
            1,
        )
    };
    let cases: Vec<(&str, Vec<String>, Vec<&str>)> = vec![
        ("a server name", vec![tls_route("shop", "r", 0, "a.com", a)], vec!["server name a.com => 2", "1"]),
        ("any", vec![tls_route("shop", "r", 0, "", a)], vec!["server name * => 2", "1"]),
        (
            "the most specific first",
            vec![
                tls_route("shop", "r", 0, "'*.com', b.a.com", a),
                tls_route("shop", "s", 1, "'*.a.com', c.com", b),
                route("t", 0, WEB, b),
            ],
            vec![
                "server name b.a.com => 2",
                "server name c.com or *.a.com => 3",
                "server name *.com => 2",
                "3",
            ],
        ),
        (
            "the older of two",
            vec![tls_route("shop", "r", 5, "a.com, b.com", a), tls_route("shop", "s", 1, "A.com", b)],
            vec!["server name a.com => 3", "server name b.com => 2", "1"],
        ),
        (
            "a consumer's before the producer's, whatever their age",
            vec![route("r", 0, WEB, a), consumer(9), tls_route("bank", "s", 9, "a.com", c)],
            vec!["client in namespace bank, server name a.com => 4", "client in namespace bank => 4", "2"],
        ),
    ];
    for (name, texts, wanted) in cases {
        let all: Vec<String> = [cluster()].into_iter().chain(texts).collect();
        let (snapshot, notices) = translated(&all);
        assert_eq!(in_order(&snapshot), wanted, "{name}: {notices:?}");
    }
    // What each is told.
    let texts = [
        cluster(),
        tls_route("shop", "r", 5, "a.com, b.com", a),
        tls_route("shop", "s", 1, "a.com", b),
        tls_route("shop", "t", 6, "b.com", b),
        consumer(9),
    ];
    let (snapshot, notices) = translated(&texts);
    let accepted = |kind, namespace: &str, name: &str| {
        let name = RouteName { kind, name: ServiceName::new(namespace, name) };
        let accepted = &snapshot.routes[&name].parents[0].accepted;
        (accepted.reason, accepted.message.clone())
    };
    let older = "TLSRoute shop/s at port 80 for a.com, TLSRoute shop/s at port 81 for a.com";
    let carried = "it is carried out for enrolled clients";
    assert_eq!(
        accepted(RouteKind::Tls, "shop", "r"),
        ("Accepted", format!("{carried}, but where older routes hold: {older}"))
    );
    assert_eq!(accepted(RouteKind::Tls, "shop", "s"), ("Accepted", carried.to_owned()));
    assert_eq!(accepted(RouteKind::Tls, "shop", "t").0, "Conflicted");
    assert_eq!(accepted(RouteKind::Tcp, "bank", "k"), ("Accepted", format!("{carried} in bank")));
    let needs: Vec<&str> = notices
        .iter()
        .filter(|notice| notice.code == Code::NeedsEnrolledClient)
        .map(|notice| &*notice.object.name)
        .collect();
    assert_eq!(needs, ["k", "r", "s", "t"], "{notices:?}");
}

#[test]
fn mistakes_in_a_route_are_named() {
    let cases = [
        ("weight", "{name: a, port: 80, weight: -1}", "spec.rules[0].backendRefs[0].weight"),
        ("no port", "{name: a}", "spec.rules[0].backendRefs[0].port"),
        ("port", "{name: a, port: 70000}", "spec.rules[0].backendRefs[0].port"),
        ("no name", "{port: 80}", "spec.rules[0].backendRefs[0].name"),
    ];
    for (name, backend, field) in cases {
        let decoded = decode(&route("r", 0, WEB, backend));
        let [mistake] = &decoded.mistakes[..] else { panic!("{name}: {decoded:?}") };
        assert_eq!(mistake.field, field, "{name}");
    }
}
