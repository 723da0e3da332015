//! Routes of layer 4: for some clients, addresses and server names alone; and changes of routes under connections.

use anyhow::{Context, Result};
use mesh_tests::peer::Summary;
use mesh_tests::{Agent, Pod, PodSpec, SECONDS_10, eventually};

use crate::world::{PORT, World, namespace, split, subsets, v4, v6};

/// Of servers that speak TLS, and of the service `secure` in front of them.
const TLS_PORT: u16 = 8443;
const SECURE: &str = "10.96.1.7";

/// A `VirtualService` in `default`.
fn rule(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: default}}\nspec:\n{spec}"
    )
}

/// What is sent to a service before its agent knows of it is lost, and must not keep the test waiting.
fn connect(client: &Pod, to: &str, more: &[&str]) -> Result<Summary> {
    client.connect(&[&[to, "--count", "20", "--concurrency", "4", "--timeout-ms", "1000"], more].concat())
}

/// Waits until all connections of a client go to one server.
fn all_to(client: &Pod, to: &str, more: &[&str], server: &str) -> Result<()> {
    eventually(SECONDS_10, &format!("{} {more:?} to {to} is served by {server}", client.uid()), || {
        let summary = connect(client, to, more).ok()?;
        (summary.by_name.get(server) == Some(&20)).then_some(())
    })
    .with_context(|| format!("last: {:?}", connect(client, to, more)))
}

/// With a pod in the namespace `bank`, which is enrolled, and another there that is not.
fn bank(world: &World) -> Result<[Pod; 2]> {
    let spec = |name: &str| PodSpec::new(name).namespace("bank");
    let teller = world.a.pod(spec("teller"))?;
    let guard = world.a.pod(spec("guard").label("istio.io/dataplane-mode", "none"))?;
    let manifests = [namespace("bank", true), teller.manifest(), guard.manifest()].join("---\n");
    world.lab.manifests().apply("bank.yaml", &manifests)?;
    world.agent_a.wait_enrolled(&[&world.client, &world.near, &teller])?;
    Ok([teller, guard])
}

#[test]
fn routes_are_for_clients_by_namespace_labels_and_address() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    let [teller, guard] = bank(&world)?;
    let manifests = world.lab.manifests();
    manifests.apply("subsets.yaml", &subsets())?;
    let (twin, far) = ("destination: {host: both, subset: twin}", "destination: {host: both, subset: far}");
    manifests.apply(
        "route.yaml",
        &rule(
            "both",
            &format!(
                "  hosts: [both]\n  tcp:\n  - match: [{{sourceNamespace: bank}}]\n    route: [{{{twin}}}]\n  \
                 - match: [{{sourceLabels: {{app: near}}, destinationSubnets: [\"fd00:96::/64\"]}}]\n    route: [{{{twin}}}]\n  \
                 - route: [{{{far}}}]\n"
            ),
        ),
    )?;
    let (four, six) = (v4("both"), v6("both"));
    for (client, to, server) in [
        (&teller, &four, "twin"),
        (&world.client, &four, "far"),
        (&world.client, &six, "far"),
        (&world.near, &four, "far"),
        (&world.near, &six, "twin"),
        // Of those that are not enrolled nobody knows the namespace.
        (&guard, &four, "far"),
        (&world.outside, &six, "far"),
    ] {
        all_to(client, to, &[], server)?;
    }
    let told = world.agent_a.get(&format!("/v1/explain?from=bank/teller&to={four}&protocol=TCP"))?;
    assert!(told.contains("client in namespace bank"), "{told}");
    // A rule that is exported to its own namespace alone is for that one's clients.
    manifests.apply(
        "route.yaml",
        &rule(
            "both",
            &format!("  hosts: [both.default]\n  exportTo: [\".\"]\n  tcp: [{{route: [{{{far}}}]}}]\n"),
        ),
    )?;
    all_to(&world.client, &four, &[], "far")?;
    eventually(SECONDS_10, "the bank has both", || {
        let summary = teller.connect(&[&four, "--count", "100", "--concurrency", "4"]).ok()?;
        (summary.by_name.len() == 2).then_some(())
    })?;
    Ok(())
}

#[test]
fn routes_are_by_server_name() -> Result<()> {
    let world = World::start(true)?;
    for pod in [&world.near, &world.far, &world.twin] {
        pod.serve(&["--listen", &format!("[::]:{TLS_PORT}"), "--mode", "tls"])?;
    }
    let manifests = world.lab.manifests();
    let service = |name: &str, address: &str, selector: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  clusterIP: {address}\n  \
             selector: {{{selector}}}\n  ports: [{{name: tls-web, port: {TLS_PORT}}}]\n"
        )
    };
    let services = [
        service("secure", SECURE, "app: near"),
        service("secure-far", "10.96.1.8", "app: far"),
        service("secure-twin", "10.96.1.9", "app: twin"),
    ];
    manifests.apply("secure.yaml", &services.join("---\n"))?;
    let secure = format!("{SECURE}:{TLS_PORT}");
    let tls = |name: &'static str| ["--mode", "tls", "--marker", name];
    all_to(&world.client, &secure, &tls("a.example.com"), "near")?;
    manifests.apply(
        "route.yaml",
        &rule(
            "secure",
            "  hosts: [secure, \"*.example.com\"]\n  tls:\n  - match: [{sniHosts: [a.example.com]}]\n    \
             route: [{destination: {host: secure-far}}]\n  - match: [{sniHosts: [\"*.example.com\"]}]\n    \
             route: [{destination: {host: secure-twin}}]\n",
        ),
    )?;
    for (client, name, server) in [
        (&world.client, "a.example.com", "far"),
        (&world.client, "A.Example.Com", "far"),
        (&world.client, "b.c.example.com", "twin"),
        (&world.client, "example.com", "near"),
        // An address is no server name: the hello asks for none.
        (&world.client, "10.0.0.1", "near"),
        (&world.outside, "a.example.com", "near"),
    ] {
        all_to(client, &secure, &tls(name), server)?;
    }
    // A TLSRoute goes before VirtualServices; for other names those hold as before.
    manifests.apply(
        "tls-route.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{name: secure, namespace: default}}\nspec:\n  \
             parentRefs: [{{group: \"\", kind: Service, name: secure}}]\n  hostnames: [a.example.com]\n  \
             rules: [{{backendRefs: [{{name: secure-twin, port: {TLS_PORT}}}]}}]\n"
        ),
    )?;
    all_to(&world.client, &secure, &tls("a.example.com"), "twin")?;
    all_to(&world.client, &secure, &tls("example.com"), "near")
}

/// Which state of the mesh each agent has in force.
fn generations(world: &World) -> Result<[u64; 2]> {
    let of = |agent: &Agent| -> Result<u64> {
        let status = agent.status()?;
        status["generation"].as_u64().with_context(|| format!("{status:#}"))
    };
    Ok([of(&world.agent_a)?, of(&world.agent_b)?])
}

/// Kept connections through a route, from a client in the mesh and one outside it, while the routes change in every way.
#[test]
fn a_change_of_routes_ends_no_connection() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    let manifests = world.lab.manifests();
    manifests.apply("subsets.yaml", &subsets())?;
    manifests.apply("split.yaml", &split(100, 0))?;
    let elsewhere = |spec: &str| rule("near", &format!("  hosts: [near]\n  tcp:\n{spec}"));
    manifests.apply("near.yaml", &elsewhere("  - route: [{destination: {host: far}}]\n"))?;
    let clients = [&world.client, &world.outside];
    for client in clients {
        all_to(client, &v4("both"), &[], "twin")?;
        all_to(client, &v4("near"), &[], "far")?;
    }
    let held = |client: &Pod, to: &str| client.load(&[to, "--keep", "--concurrency", "3"]);
    let mut loads = Vec::new();
    for client in clients {
        for name in ["both", "near"] {
            loads.push(held(client, &v4(name))?);
        }
    }
    for load in &loads {
        eventually(SECONDS_10, "the load runs", || load.stdout().contains("running").then_some(()))?;
    }
    let conditional = "  - match: [{sourceLabels: {app: nobody}}]\n    route: [{destination: {host: far}}]\n";
    let changes: [(&str, Option<String>); 5] = [
        ("split.yaml", Some(split(0, 100))),
        ("near.yaml", Some(elsewhere(conditional))),
        ("split.yaml", None),
        ("near.yaml", None),
        ("subsets.yaml", None),
    ];
    for (file, text) in changes {
        let generations = generations(&world)?;
        match text {
            Some(text) => manifests.apply(file, &text)?,
            None => manifests.delete(file)?,
        }
        eventually(SECONDS_10, &format!("{file} is in force"), || {
            let now = self::generations(&world).ok()?;
            now.iter().zip(&generations).all(|(now, before)| now > before).then_some(())
        })?;
    }
    for client in clients {
        all_to(client, &v4("near"), &[], "near")?;
    }
    for load in loads {
        let summary = Summary::end(&load)?;
        assert_eq!(summary.failed, 0, "{summary:?}");
        assert!(summary.ok > 3, "{summary:?}");
    }
    Ok(())
}

/// A user brings a new version out: first nobody has it, then a tenth, then half, then all.
#[test]
fn a_canary_takes_over_under_load_without_a_failure() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    let manifests = world.lab.manifests();
    manifests.apply("subsets.yaml", &subsets())?;
    manifests.apply("split.yaml", &split(100, 0))?;
    let clients = [&world.client, &world.outside];
    for client in clients {
        all_to(client, &v4("both"), &[], "twin")?;
    }
    let loads = clients.map(|client| client.load(&[&v4("both"), "--concurrency", "2"]));
    // Of 400 connections; six standard deviations at most beside what is expected.
    for (twin, far, expected) in [(90, 10, 4..=76), (50, 50, 140..=260), (0, 100, 400..=400)] {
        manifests.apply("split.yaml", &split(twin, far))?;
        for client in clients {
            eventually(SECONDS_10, &format!("{twin}/{far} at {}", client.uid()), || {
                let summary = client.connect(&[&v4("both"), "--count", "400", "--concurrency", "8"]).ok()?;
                assert_eq!(summary.failed, 0, "{summary:?}");
                let share = summary.by_name.get("far").copied().unwrap_or(0);
                expected.contains(&share).then_some(())
            })?;
        }
    }
    for load in loads {
        let summary = Summary::end(&load?)?;
        assert_eq!(summary.failed, 0, "{summary:?}");
        assert!(summary.by_name.len() == 2 && summary.ok > 100, "{summary:?}");
    }
    Ok(())
}

/// Of a client for whom a route is, and of another.
#[test]
fn what_explain_tells_of_a_route() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    world.lab.manifests().apply(
        "route.yaml",
        &rule(
            "far",
            "  hosts: [far]\n  tcp:\n  - match: [{sourceLabels: {app: near}}]\n    route: [{destination: {host: near}}]\n",
        ),
    )?;
    all_to(&world.near, &v4("far"), &[], "near")?;
    all_to(&world.client, &v4("far"), &[], "far")?;
    let services = world.agent_a.json("/v1/services")?;
    let far = services.as_array().into_iter().flatten().find(|service| service["name"] == "far");
    let port = far.and_then(|far| far["ports"].as_array()?.iter().find(|port| port["port"] == PORT).cloned());
    let rules = &port.unwrap_or_default()["rules"];
    assert_eq!(rules[0]["matches"][0], "client with app=near", "{services:#}");
    for (client, taken) in [("near", true), ("client", false)] {
        let asked = format!("/v1/explain?from=default/{client}&to={}&protocol=TCP", v4("far"));
        let route = &world.agent_a.json(&asked)?["route"];
        assert_eq!(route["rule"] == "default/far", taken, "{route:#}");
        assert_eq!(route["before"][0]["holds"] == false, !taken, "{route:#}");
    }
    Ok(())
}
