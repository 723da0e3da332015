//! `DestinationRule`s: which are in force, what they ask, and what is rebuilt when something changes.

use super::*;
use crate::model::{Balancer, RouteTarget};

fn pod(name: &str, address: &str, node: &str, version: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web, v: {version}}}}}\nspec: {{nodeName: {node}, containers: []}}\nstatus: {{podIP: {address}, conditions: [{{type: Ready, status: \"True\"}}]}}\n"
    )
}

fn node(name: &str, region: &str, zone: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: {zone}}}}}\n"
    )
}

fn named(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: {address}, selector: {{app: {name}}}, ports: [{{name: tcp, port: 80, targetPort: 8080}}, {{name: other, port: 81, targetPort: 8081}}]}}\n"
    )
}

fn rule(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// Two services; pods of `web` on this node, in its zone, in its region and elsewhere.
fn world() -> String {
    named("web", "10.96.0.1")
        + &named("db", "10.96.0.2")
        + &node("node-a", "eu", "a")
        + &node("node-b", "eu", "b")
        + &node("node-c", "us", "a")
        + &pod("p1", "10.0.0.1", "node-a", "one")
        + &pod("p2", "10.0.0.2", "node-b", "one")
        + &pod("p3", "10.0.0.3", "node-c", "two")
}

fn translator() -> Translator {
    Translator::new(MeshConfig { node: Some(NodeName::new("node-a")), ..MeshConfig::default() })
}

fn name(name: &str) -> ServiceName {
    ServiceName::new("shop", name)
}

fn of<'a>(snapshot: &'a Snapshot, name: &str, port: usize) -> &'a RouteTarget {
    &snapshot.services[&self::name(name)].ports[port].route.targets[0]
}

fn translate(text: &str) -> Snapshot {
    translator().apply(upserts(&(world() + text))).0
}

fn max(number: u32) -> String {
    format!("trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {number}}}}}}}")
}

/// Weights by the last part of the address.
fn weights(snapshot: &Snapshot) -> Vec<(u8, u64)> {
    let backends = snapshot.services[&name("web")].ports[0].route.v4.backends().iter();
    let last = |address: SocketAddr| match address.ip() {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => 0,
    };
    backends.map(|backend| (last(backend.endpoint.as_ref().unwrap().address), backend.weight)).collect()
}

#[test]
fn what_is_asked_is_that_of_the_rule_in_force() {
    let own = "web.shop.svc.cluster.local";
    let exact = |namespace: &str, number| rule(namespace, "exact", &format!("host: {own}, {}", max(number)));
    let wild = |namespace: &str, name: &str, host: &str, number| {
        rule(namespace, name, &format!("host: '{host}', {}", max(number)))
    };
    let aged = |text: String, year: u32| {
        text.replace("namespace:", &format!("creationTimestamp: '{year}-01-01T00:00:00Z', namespace:"))
    };
    for (case, text, wanted) in [
        ("none", String::new(), None),
        (
            "the service's namespace",
            exact("shop", 1) + &exact("istio-system", 2) + &exact("other", 3),
            Some(1),
        ),
        ("else the root namespace", exact("istio-system", 2) + &exact("other", 3), Some(2)),
        ("and of no other", exact("other", 3), None),
        (
            "the host before a wildcard",
            exact("shop", 1) + &wild("shop", "w", "*.shop.svc.cluster.local", 4),
            Some(1),
        ),
        (
            "the longer wildcard",
            wild("shop", "v", "*.local", 5)
                + &wild("shop", "w", "*.shop.svc.cluster.local", 4)
                + &wild("shop", "x", "*", 6),
            Some(4),
        ),
        (
            "a wildcard of the own namespace before another's host",
            wild("shop", "w", "*", 6) + &exact("other", 3),
            Some(6),
        ),
        ("a wildcard for others", wild("shop", "w", "*.other.svc.cluster.local", 4), None),
        (
            "a rule for the host without a policy",
            rule("shop", "exact", "host: web, subsets: [{name: one, labels: {v: one}}]")
                + &wild("shop", "w", "*", 6),
            None,
        ),
        (
            "two for the host: the oldest with a policy",
            aged(rule("shop", "a", "host: web"), 2020)
                + &aged(rule("shop", "b", &format!("host: {own}, {}", max(7))), 2021)
                + &aged(rule("shop", "c", &format!("host: web.shop, {}", max(8))), 2022),
            Some(7),
        ),
    ] {
        let snapshot = translate(&text);
        let settings = &of(&snapshot, "web", 0).settings;
        assert_eq!(settings.limits.max_connections, wanted, "{case}");
        assert_eq!(settings.rule.is_some(), wanted.is_some(), "{case}");
    }
}

#[test]
fn ports_and_subsets_have_their_own() {
    let text = rule(
        "shop",
        "web",
        &format!(
            "host: web, {}, subsets: [{{name: one, labels: {{v: one}}, trafficPolicy: {{loadBalancer: {{simple: LEAST_REQUEST}}}}}}]",
            "trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}, portLevelSettings: [{port: {number: 81}, loadBalancer: {simple: ROUND_ROBIN}}]}"
        ),
    ) + "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: db, namespace: shop}\nspec: {hosts: [db], tcp: [{route: [{destination: {host: web, subset: one, port: {number: 80}}}]}]}\n";
    let snapshot = translate(&text);
    let read = |target: &RouteTarget| (target.settings.limits.max_connections, target.settings.balancer);
    assert_eq!(read(of(&snapshot, "web", 0)), (Some(1), Balancer::Unspecified));
    assert_eq!(read(of(&snapshot, "web", 1)), (None, Balancer::RoundRobin));
    assert_eq!(read(of(&snapshot, "db", 0)), (Some(1), Balancer::LeastRequest), "where a route leads");
}

#[test]
fn nothing_asked_costs_nothing() {
    let snapshot = translate(&rule("shop", "web", "host: web, subsets: [{name: one, labels: {v: one}}]"));
    let (web, db) = (of(&snapshot, "web", 0), of(&snapshot, "db", 1));
    assert!(Arc::ptr_eq(&web.settings, &db.settings));
    let route = |name: &str| &snapshot.services[&self::name(name)].ports[0].route;
    assert!(Arc::ptr_eq(&route("web").actions, &route("db").actions));
    assert!(web.spread.is_none() && web.endpoints.iter().all(|endpoint| endpoint.locality.is_none()));
    assert!(Arc::ptr_eq(&web.endpoints, &snapshot.services[&name("web")].ports[0].endpoints));
}

#[test]
fn localities_decide_where_it_is_asked() {
    assert_eq!(weights(&translate("")), [(1, 1), (2, 1), (3, 1)]);
    let near = translate(&rule("shop", "web", "host: web, trafficPolicy: {outlierDetection: {}}"));
    assert_eq!(weights(&near), [(1, 1)]);
    let spread = of(&near, "web", 0).spread.as_ref().unwrap();
    let priorities: Vec<u8> = (0..3).map(|index| spread.priority(spread.group(index))).collect();
    assert_eq!(priorities, [0, 1, 2]);
    let localities: Vec<_> = of(&near, "web", 0)
        .endpoints
        .iter()
        .map(|endpoint| endpoint.locality.as_ref().unwrap().zone.to_string())
        .collect();
    assert_eq!(localities, ["a", "b", "a"]);
    let shared = translate(&rule(
        "shop",
        "web",
        "host: web, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: eu/*, to: {eu/*: 30, us: 70}}]}}}",
    ));
    assert_eq!(weights(&shared), [(1, 30), (2, 30), (3, 140)]);
    let only = translate(&rule(
        "shop",
        "web",
        "host: web, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: eu/a, to: {us/a: 100}}]}}}",
    ));
    assert_eq!(weights(&only), [(3, 100)], "the others get nothing, whatever becomes of it");
    assert_eq!(of(&only, "web", 0).endpoints.len(), 1);
    let passed = "host: web, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}, outlierDetection: {}}";
    assert_eq!(weights(&translate(&rule("shop", "web", passed))).len(), 3);
}

#[test]
fn a_change_of_a_rule_concerns_its_service_alone() {
    let mut translator = translator();
    let (before, _) = translator.apply(upserts(&world()));
    let same = |before: &Snapshot, after: &Snapshot, name: &str| {
        let service = |snapshot: &Snapshot| Arc::clone(&snapshot.services[&self::name(name)]);
        Arc::ptr_eq(&service(before), &service(after))
    };
    let minds = rule("shop", "web", "host: web, trafficPolicy: {outlierDetection: {}}");
    let (ruled, _) = translator.apply(upserts(&minds));
    assert!(!same(&before, &ruled, "web") && same(&before, &ruled, "db"));
    // A node on which it has an endpoint moves, one on which it has none, and a label that says nothing of places.
    let (moved, _) = translator.apply(upserts(&node("node-c", "eu", "a")));
    assert!(!same(&ruled, &moved, "web") && same(&ruled, &moved, "db"));
    assert_eq!(weights(&moved), [(1, 1), (3, 1)]);
    let (other, _) = translator.apply(upserts(&node("node-d", "eu", "a")));
    assert!(same(&moved, &other, "web") && same(&moved, &other, "db"));
    let labelled = node("node-c", "eu", "a").replace("labels: {", "labels: {disk: fast, ");
    let (labelled, _) = translator.apply(upserts(&labelled));
    assert!(same(&moved, &labelled, "web"));
    // This node moves.
    let (here, _) = translator.apply(upserts(&node("node-a", "eu", "b")));
    assert!(!same(&labelled, &here, "web") && same(&labelled, &here, "db"));
    assert_eq!(weights(&here), [(1, 1), (2, 1)]);
    let reference = ObjectRef::new(Kind::DestinationRule, "shop", "web");
    let (gone, _) = translator.apply([Change::Delete(reference)]);
    assert_eq!(weights(&gone).len(), 3);
    let (nobody, _) = translator.apply(upserts(&node("node-b", "us", "b")));
    assert!(same(&gone, &nobody, "web"), "nobody minds any more");
}

#[test]
fn a_client_keeps_its_endpoint_whatever_else_is_there() {
    let hash = "host: web, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}";
    let snapshot = translate(&rule("shop", "web", hash));
    let set = &snapshot.services[&name("web")].ports[0].route.v4;
    assert!(set.minds_the_client() && set.table_of(0).is_some());
    for client in 0..100 {
        let picked = |random| set.pick(random, client).unwrap().endpoint.as_ref().unwrap().address;
        assert_eq!(picked(0), picked(u64::MAX));
    }
}
