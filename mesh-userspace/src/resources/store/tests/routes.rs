//! `VirtualService`s: for which connections each of their routes is, in which order, and where they lead.

use std::fmt::Write as _;
use std::time::Duration;

use super::*;
use crate::model::{ConditionalRoute, Route, ServicePort};

/// Services of `shop`, each with one endpoint, and `c` of `bank`: `web` of HTTP, `db` of TCP, `tls` of HTTPS, `any` of which nothing
/// is said, and `a` and `b`, where routes lead.
fn cluster() -> String {
    let mut text = String::new();
    let services = [
        ("shop", "web", "http", 80),
        ("shop", "db", "tcp", 80),
        ("shop", "tls", "https", 80),
        ("shop", "any", "some", 80),
        ("shop", "a", "tcp", 80),
        ("shop", "b", "tcp", 80),
        ("bank", "c", "tcp", 80),
    ];
    for ((namespace, name, port, number), last) in services.into_iter().zip(1..) {
        let _infallible = write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
             clusterIP: 10.96.0.{last}\n  selector: {{app: {name}}}\n  ports: [{{name: {port}-main, port: {number}}}]\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
             spec: {{containers: []}}\nstatus: {{podIP: 10.244.0.{last}}}\n---\n"
        );
    }
    text
}

/// A rule of `shop`; the youngest has the highest `age`.
fn rule(name: &str, age: u32, spec: &str) -> String {
    rule_in("shop", name, age, spec)
}

fn rule_in(namespace: &str, name: &str, age: u32, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: \"2026-01-01T00:00:0{age}Z\"}}\nspec: {{{spec}}}\n---\n"
    )
}

/// `route: [{destination: ...}]` for each service with its weight.
fn to(targets: &[(&str, u32)]) -> String {
    let targets =
        targets.iter().map(|(host, weight)| format!("{{destination: {{host: {host}}}, weight: {weight}}}"));
    format!("route: [{}]", targets.collect::<Vec<_>>().join(", "))
}

fn told_of(route: &Route) -> String {
    let shares = route.v4.backends().iter().map(|backend| {
        let last = |address: SocketAddr| address.ip().to_string().rsplit('.').next().unwrap().to_owned();
        let to = backend.endpoint.as_ref().map_or("-".to_owned(), |endpoint| last(endpoint.address));
        format!("{to}:{}", backend.weight)
    });
    shares.collect::<Vec<_>>().join(" ")
}

/// The routes of a port in their order, as `CONDITIONS => SHARES`, shares by the last part of the endpoint's address.
fn told(port: &ServicePort) -> Vec<String> {
    let rule = |rule: &ConditionalRoute| {
        let matches: Vec<String> = rule.matches.iter().map(ToString::to_string).collect();
        format!("{} => {}", matches.join("; "), told_of(&rule.route))
    };
    port.rules.iter().map(rule).chain([told_of(&port.route)]).collect()
}

fn port<'a>(snapshot: &'a Snapshot, name: &str) -> &'a ServicePort {
    &snapshot.services[&ServiceName::new("shop", name)].ports[0]
}

/// The same whatever the order in which the objects come.
fn translated(texts: &[String]) -> (Snapshot, Arc<[Notice]>) {
    let mut translator = Translator::new(MeshConfig::default());
    let (snapshot, notices) = translator.apply(texts.iter().flat_map(|text| upserts(text)));
    let mut one_by_one = Translator::new(MeshConfig::default());
    for change in texts.iter().rev().flat_map(|text| upserts(text)) {
        one_by_one.apply([change]);
    }
    let (again, said) = one_by_one.apply([]);
    assert_eq!(again.services, snapshot.services, "{texts:#?}");
    assert_eq!(said, notices, "{texts:#?}");
    (snapshot, notices)
}

#[test]
fn routes_are_taken_in_order() {
    let (a, b) = (to(&[("a", 1)]), to(&[("b", 1)]));
    let labels = "match: [{sourceLabels: {app: front}}]";
    let sni = |name: &str| format!("match: [{{sniHosts: [{name}]}}]");
    let cases: Vec<(&str, &str, String, Vec<&str>)> = vec![
        (
            "weights",
            "db",
            format!("hosts: [db], tcp: [{{{}}}]", to(&[("a", 90), ("b", 10)])),
            vec!["5:90 6:10"],
        ),
        (
            "some, then all",
            "db",
            format!(
                "hosts: [db], tcp: [{{{labels}, {a}}}, {{{b}}}, {{match: [{{sourceNamespace: bank}}], {a}}}]"
            ),
            vec!["client with app=front => 5:1", "6:1"],
        ),
        (
            "some alone",
            "db",
            format!("hosts: [db], tcp: [{{{labels}, {a}}}]"),
            vec!["client with app=front => 5:1", "2:1"],
        ),
        (
            "http without layer 7",
            "web",
            format!(
                "hosts: [web], http: [{{match: [{{uri: {{prefix: /}}}}], {b}}}, {{{labels}, {a}}}, {{name: rest, {b}}}]"
            ),
            vec!["client with app=front => 5:1", "6:1"],
        ),
        (
            "http before tcp where HTTP is spoken",
            "web",
            format!("hosts: [web], tcp: [{{{b}}}], http: [{{{labels}, {a}}}]"),
            vec!["client with app=front => 5:1", "6:1"],
        ),
        ("http where TCP is spoken", "db", format!("hosts: [db], http: [{{{a}}}]"), vec!["2:1"]),
        (
            "by server name, then tcp, where TLS is spoken",
            "tls",
            format!(
                "hosts: [tls, '*.com'], tcp: [{{{b}}}], tls: [{{{}, {a}}}], http: [{{{a}}}]",
                sni("'*.com'")
            ),
            vec!["server name *.com => 5:1", "6:1"],
        ),
        (
            "by server name where TCP is spoken",
            "db",
            format!("hosts: [db], tls: [{{{}, {a}}}]", sni("db")),
            vec!["2:1"],
        ),
        (
            "all lists where nothing is said",
            "any",
            format!(
                "hosts: [any, '*.com'], http: [{{{b}}}], tcp: [{{{labels}, {a}}}], tls: [{{{}, {b}}}]",
                sni("a.com")
            ),
            vec!["server name a.com => 6:1", "client with app=front => 5:1", "6:1"],
        ),
        (
            "a subnet with the address",
            "db",
            format!("hosts: [db], tcp: [{{match: [{{destinationSubnets: [10.96.0.0/24]}}], {a}}}, {{{b}}}]"),
            vec!["5:1"],
        ),
        (
            "another subnet",
            "db",
            format!("hosts: [db], tcp: [{{match: [{{destinationSubnets: [10.97.0.0/24]}}], {a}}}, {{{b}}}]"),
            vec!["6:1"],
        ),
        (
            "what is not there refuses",
            "db",
            format!("hosts: [db], tcp: [{{{labels}, {}}}]", to(&[("a", 1), ("nobody", 1)])),
            vec!["client with app=front => 5:1 -:1", "2:1"],
        ),
        (
            "in the rule's namespace",
            "db",
            format!("hosts: [db.shop], tcp: [{{{}}}]", to(&[("c.bank", 1)])),
            vec!["7:1"],
        ),
    ];
    for (name, service, spec, wanted) in cases {
        let (snapshot, notices) = translated(&[cluster(), rule("r", 0, &spec)]);
        assert_eq!(told(port(&snapshot, service)), wanted, "{name}: {notices:?}");
    }
}

#[test]
fn one_rule_is_in_force_for_each_client() {
    let (a, b) = (to(&[("a", 1)]), to(&[("b", 1)]));
    let all = |hosts: &str, more: &str, to: &str| format!("hosts: [{hosts}]{more}, tcp: [{{{to}}}]");
    let bank = "client in namespace bank";
    let cases: Vec<(&str, Vec<String>, Vec<&str>, Vec<(&str, &str)>)> = vec![
        (
            "the older of two",
            vec![rule("y", 5, &all("db", "", &a)), rule("o", 1, &all("db.shop.svc.cluster.local", "", &b))],
            vec!["6:1"],
            vec![("y", "MESH0107")],
        ),
        (
            "of one age, by name",
            vec![rule("y", 5, &all("db", "", &a)), rule("x", 5, &all("db", "", &b))],
            vec!["6:1"],
            vec![("y", "MESH0107")],
        ),
        (
            "a name before a wildcard",
            vec![rule("w", 1, &all("'*.shop.svc.cluster.local'", "", &a)), rule("n", 5, &all("db", "", &b))],
            vec!["6:1"],
            vec![],
        ),
        (
            "the longer wildcard first",
            vec![rule("w", 1, &all("'*'", "", &a)), rule("n", 5, &all("'*.shop.svc.cluster.local'", "", &b))],
            vec!["6:1"],
            vec![],
        ),
        (
            "the older of two wildcards",
            vec![rule("y", 5, &all("'*'", "", &a)), rule("o", 1, &all("'*'", "", &b))],
            vec!["6:1"],
            vec![("y", "MESH0107")],
        ),
        (
            "exported to its own namespace, which has no other then",
            vec![
                rule_in(
                    "bank",
                    "own",
                    9,
                    "hosts: [db.shop], exportTo: ['.'], tcp: [{match: [{sourceLabels: {x: y}}], route: [{destination: {host: c}}]}]",
                ),
                rule("all", 1, &all("db", "", &a)),
            ],
            vec![
                "client in namespace bank, client with x=y => 7:100",
                "client in namespace bank => 2:1",
                "5:1",
            ],
            vec![("own", "MESH0122"), ("own", "MESH0122")],
        ),
        (
            "to two, after that to one of them",
            vec![
                rule_in(
                    "bank",
                    "one",
                    9,
                    "hosts: [db.shop], exportTo: ['.'], tcp: [{route: [{destination: {host: c}}]}]",
                ),
                rule("two", 1, &all("db", ", exportTo: [bank, shop]", &a)),
            ],
            vec!["client in namespace bank => 7:100", "client in namespace bank or shop => 5:1", "2:1"],
            vec![("one", "MESH0122"), ("two", "MESH0107"), ("two", "MESH0122")],
        ),
        (
            "and from a namespace that it is not exported to",
            vec![rule(
                "r",
                1,
                "hosts: [db], exportTo: [bank], tcp: [{match: [{sourceNamespace: shop}], route: [{destination: {host: a}}]}]",
            )],
            vec!["2:1"],
            vec![("r", "MESH0110"), ("r", "MESH0122"), ("r", "MESH0122")],
        ),
        (
            "to nobody",
            vec![rule("r", 1, &all("db", ", exportTo: ['~']", &a)), rule("s", 2, &all("db", "", &b))],
            vec!["6:1"],
            vec![("r", "MESH0123")],
        ),
        (
            "from a gateway",
            vec![rule("r", 1, &all("db", ", gateways: [shop/gate]", &a)), rule("s", 2, &all("db", "", &b))],
            vec!["6:1"],
            vec![("r", "MESH0113")],
        ),
    ];
    for (name, rules, wanted, codes) in cases {
        let texts: Vec<String> = [cluster()].into_iter().chain(rules).collect();
        let (snapshot, notices) = translated(&texts);
        assert_eq!(told(port(&snapshot, "db")), wanted, "{name}: {notices:?}");
        let mut said: Vec<(&str, &str)> =
            notices.iter().map(|notice| (&*notice.object.name, notice.code.as_str())).collect();
        said.sort_unstable();
        assert_eq!(said, codes, "{name}: {notices:?} {bank}");
    }
}

#[test]
fn a_wildcard_is_for_services_that_come_later_too() {
    let mut translator = Translator::new(MeshConfig::default());
    let spec = format!("hosts: ['*.shop.svc.cluster.local'], tcp: [{{{}}}]", to(&[("a", 1)]));
    translator.apply(upserts(&rule("r", 1, &spec)));
    let (snapshot, _) = translator.apply(upserts(&cluster()));
    assert_eq!(told(port(&snapshot, "db")), ["5:1"]);
    assert!(snapshot.services[&ServiceName::new("bank", "c")].ports[0].route.rule.is_none());
    let narrower = spec.replace("*.shop", "*.bank");
    let (snapshot, _) = translator.apply(upserts(&rule("r", 1, &narrower)));
    assert_eq!(told(port(&snapshot, "db")), ["2:1"]);
    assert!(snapshot.services[&ServiceName::new("bank", "c")].ports[0].route.rule.is_some());
}

#[test]
fn actions_and_where_copies_go() {
    let spec = |mirror: &str| {
        format!(
            "hosts: [web], http: [{{timeout: 2s, retries: {{attempts: 3}}, mirrors: [{{destination: {{host: a}}, percentage: {{value: 25}}}}, {{destination: {{host: {mirror}}}}}], {}}}]",
            to(&[("b", 1)])
        )
    };
    let mut translator = Translator::new(MeshConfig::default());
    let (snapshot, notices) =
        translator.apply([cluster(), rule("r", 0, &spec("late"))].iter().flat_map(|text| upserts(text)));
    let actions = |snapshot: &Snapshot| Arc::clone(&port(snapshot, "web").route.actions);
    let found = actions(&snapshot);
    assert_eq!((found.timeout, found.retries.unwrap().attempts), (Some(Duration::from_secs(2)), 3));
    let copied = |actions: &crate::model::RouteActions| -> Vec<(String, u32, Vec<String>)> {
        let told = |mirror: &crate::model::Mirror| {
            let target = &mirror.target;
            (target.service.to_string(), mirror.share.millionths(), addresses(&*target.endpoints))
        };
        actions.mirrors.iter().map(told).collect()
    };
    let a = ("shop/a".to_owned(), 250_000, vec!["10.244.0.5:80".to_owned()]);
    assert_eq!(copied(&found), std::slice::from_ref(&a), "what is not there gets nothing");
    let unknown: Vec<_> = notices.iter().filter(|notice| notice.code == Code::DestinationUnknown).collect();
    assert_eq!(unknown.len(), 1, "{notices:?}");
    assert_eq!(unknown[0].field, "spec.http[0].mirrors[1].destination.host");
    assert!(unknown[0].message.contains("nothing is copied there"), "{}", unknown[0]);
    // It is waited for.
    let late = cluster()
        .split("---\n")
        .nth(8)
        .unwrap()
        .replace("name: a", "name: late")
        .replace("10.96.0.5", "10.96.0.9");
    let (snapshot, notices) = translator.apply(upserts(&late));
    assert_eq!(copied(&actions(&snapshot)).len(), 2, "{notices:?}");
    // Routes of tcp have none of it, and those that are for some connections have their own.
    let (snapshot, _) = translated(&[
        cluster(),
        rule(
            "r",
            0,
            &format!(
                "hosts: [web], http: [{{match: [{{sourceNamespace: bank}}], timeout: 2s, {0}}}, {{{0}}}]",
                to(&[("b", 1)])
            ),
        ),
    ]);
    let web = port(&snapshot, "web");
    assert!(web.route.actions.is_empty() && web.rules[0].route.actions.timeout.is_some());
}

#[test]
fn the_policy_local_has_its_own_endpoints_in_every_route() {
    let local =
        cluster().replace("clusterIP: 10.96.0.2\n", "clusterIP: 10.96.0.2\n  internalTrafficPolicy: Local\n");
    let spec = format!("hosts: [db], tcp: [{{match: [{{sourceNamespace: bank}}], {}}}]", to(&[("a", 1)]));
    let (snapshot, _) = translated(&[local, rule("r", 0, &spec)]);
    let db = port(&snapshot, "db");
    let local = db.rules[0].local.as_ref().unwrap();
    assert_eq!((told_of(&db.rules[0].route), told_of(local)), ("5:1".to_owned(), String::new()));
    assert_eq!(local.targets.len(), 1, "no endpoint of it is on this node");
}

#[test]
fn a_rule_that_goes_takes_its_routes_along() {
    let mut translator = Translator::new(MeshConfig::default());
    let spec =
        format!("hosts: [db], tcp: [{{match: [{{sourceNamespace: bank}}], {0}}}, {{{0}}}]", to(&[("a", 1)]));
    translator.apply([cluster(), rule("r", 0, &spec)].iter().flat_map(|text| upserts(text)));
    let (snapshot, _) = translator.apply([Change::Delete(ObjectRef::new(Kind::VirtualService, "shop", "r"))]);
    assert_eq!(told(port(&snapshot, "db")), ["2:1"]);
    assert!(port(&snapshot, "db").route.actions.is_empty());
}
