//! Whose endpoints are near on two nodes in two zones, and what is new among them: shares, failover and warm-up.

use anyhow::{Context, Result};
use mesh_tests::{SECONDS_10, SECONDS_30, eventually};

use crate::traffic_stage::{Stage, WEB, connect, of, place, service, settle};
use crate::world::PORT;

#[test]
fn localities_share_and_take_over() -> Result<()> {
    for enrolled in [false, true] {
        let stage = Stage::start(1, enrolled)?;
        let client = &stage.clients[0];
        let all = ["near-1", "near-2", "far-1", "far-2"];
        settle(client, &all)?;
        stage.rule(
            "loadBalancer: {localityLbSetting: {distribute: [{from: eu/a/*, to: {eu/a/*: 90, eu/b/*: 10}}]}}",
        )?;
        let summary = eventually(SECONDS_10, "most connections stay near", || {
            let few = connect(client, 400).ok()?;
            if of(&few, "near") < 320 {
                return None;
            }
            connect(client, 4000).ok()
        })?;
        // 6 sigma of n = 4000 at p = 9/10: 114.
        assert!(of(&summary, "near").abs_diff(3600) < 114, "{enrolled}: {summary:?}");
        stage.rule("loadBalancer: {localityLbSetting: {distribute: [{from: eu/a, to: {eu/b: 100}}]}}")?;
        settle(client, &["far-1", "far-2"])?;
        // By default the nearest, and the next where there is none.
        stage.rule("outlierDetection: {}")?;
        settle(client, &["near-1", "near-2"])?;
        stage.serving(&stage.servers[2..].iter().collect::<Vec<_>>())?;
        settle(client, &["far-1", "far-2"])?;
        stage.serving(&stage.servers[1..].iter().collect::<Vec<_>>())?;
        settle(client, &["near-2"])?;
        // The node moves to the other zone.
        stage
            .lab
            .manifests()
            .apply("nodes.yaml", &(place("node-a", "b") + "---\n" + &place("node-b", "b")))?;
        settle(client, &["near-2", "far-1", "far-2"])?;
    }
    Ok(())
}

#[test]
fn labels_say_who_comes_first() -> Result<()> {
    for enrolled in [false, true] {
        let stage = Stage::start(1, enrolled)?;
        let client = &stage.clients[0];
        // The label goes before the place: what is far has it.
        stage.rule(
            "outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: [\"side=far\"]}}",
        )?;
        settle(client, &["far-1", "far-2"])?;
        stage.serving(&stage.servers[..2].iter().collect::<Vec<_>>())?;
        settle(client, &["near-1", "near-2"])?;
        stage.serving(&stage.servers.iter().collect::<Vec<_>>())?;
        settle(client, &["far-1", "far-2"])?;
        // The client's own node, whatever the zones are.
        stage
            .lab
            .manifests()
            .apply("nodes.yaml", &(place("node-a", "a") + "---\n" + &place("node-b", "a")))?;
        let by_node = "failoverPriority: [topology.kubernetes.io/region, kubernetes.io/hostname]";
        stage.rule(&format!("outlierDetection: {{}}, loadBalancer: {{localityLbSetting: {{{by_node}}}}}"))?;
        settle(client, &["near-1", "near-2"])?;
        stage.serving(&stage.servers[2..].iter().collect::<Vec<_>>())?;
        settle(client, &["far-1", "far-2"])?;
    }
    Ok(())
}

#[test]
fn a_region_that_is_named_takes_over_before_others() -> Result<()> {
    for enrolled in [false, true] {
        let stage = Stage::start(1, enrolled)?;
        let client = &stage.clients[0];
        // The clients' node is in a region of its own, and each server's zone says in which it is.
        let region =
            |name: &str, region: &str| place(name, "a").replace("region: eu", &format!("region: {region}"));
        let nodes = |near: &str, far: &str| region("node-a", near) + "---\n" + &region("node-b", far);
        stage.lab.manifests().apply("nodes.yaml", &nodes("eu", "us"))?;
        stage.rule(
            "outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}",
        )?;
        settle(client, &["near-1", "near-2"])?;
        stage.serving(&stage.servers[2..].iter().collect::<Vec<_>>())?;
        settle(client, &["far-1", "far-2"])?;
    }
    Ok(())
}

#[test]
fn what_is_said_for_a_port_or_a_subset_goes_before_the_rest() -> Result<()> {
    for enrolled in [false, true] {
        let stage = Stage::start(1, enrolled)?;
        let client = &stage.clients[0];
        let to = |zone: &str| {
            format!(
                "loadBalancer: {{localityLbSetting: {{distribute: [{{from: eu/*, to: {{eu/{zone}: 100}}}}]}}}}"
            )
        };
        // The host's near, the port's far.
        let of_port = format!("{}, portLevelSettings: [{{port: {{number: {PORT}}}, {}}}]", to("a"), to("b"));
        stage.rule(&of_port)?;
        settle(client, &["far-1", "far-2"])?;
        // Of another port that holds nothing here.
        stage.rule(&of_port.replace(&format!("number: {PORT}"), "number: 1"))?;
        settle(client, &["near-1", "near-2"])?;
        // A subset of all, with another setting than the host.
        let manifests = stage.lab.manifests();
        manifests.apply(
            "rule.yaml",
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: default}}\nspec:\n  \
                 host: web\n  trafficPolicy: {{{}}}\n  subsets:\n  - {{name: all, labels: {{group: web}}, trafficPolicy: {{{}}}}}\n",
                to("a"),
                to("b")
            ),
        )?;
        manifests.apply(
            "route.yaml",
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: default}\nspec:\n  \
             hosts: [web]\n  tcp:\n  - route:\n    - {destination: {host: web, subset: all}}\n",
        )?;
        settle(client, &["far-1", "far-2"])?;
    }
    Ok(())
}

#[test]
fn an_enrolled_clients_failover_follows_what_is_ejected() -> Result<()> {
    let stage = Stage::start(1, true)?;
    let client = &stage.clients[0];
    stage.rule(
        "outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}",
    )?;
    settle(client, &["near-1", "near-2"])?;
    // Nobody listens in those that are near any more; they are listed all the same.
    for process in &stage.processes[..2] {
        process.kill()?;
    }
    let moved = || {
        let summary = client.connect(&[&format!("{WEB}:{PORT}"), "--count", "20"]).ok()?;
        (summary.failed == 0 && of(&summary, "far") == 20).then_some(())
    };
    eventually(SECONDS_30, "the far ones take over", moved)?;
    // They are left out, and not tried before each connection.
    let count = |metric: &str| stage.agents[0].metric(metric, &["default/web:8080"]);
    eventually(SECONDS_10, "both are ejected", || {
        moved()?;
        (count("mesh_outlier_ejections_active").ok()? > 1.5).then_some(())
    })?;
    let retries = count("mesh_connect_retries_total")?;
    moved().context("the far ones alone")?;
    assert!((count("mesh_connect_retries_total")? - retries).abs() < 0.5, "nobody is tried in vain");
    Ok(())
}

#[test]
fn a_services_own_distribution_narrows_what_a_rule_spreads_over() -> Result<()> {
    for enrolled in [false, true] {
        let stage = Stage::start(1, enrolled)?;
        let client = &stage.clients[0];
        let manifests = stage.lab.manifests();
        manifests.apply("service.yaml", &(service() + "  trafficDistribution: PreferSameZone\n"))?;
        settle(client, &["near-1", "near-2"])?;
        // Half of it for the other zone, of which nothing is left to spread over; nothing is refused for it.
        stage.rule(
            "loadBalancer: {localityLbSetting: {distribute: [{from: eu/*, to: {eu/a: 50, eu/b: 50}}]}}",
        )?;
        settle(client, &["near-1", "near-2"])?;
        stage.serving(&stage.servers[1..].iter().collect::<Vec<_>>())?;
        settle(client, &["near-2"])?;
        // Without the service's word the rule's holds.
        manifests.apply("service.yaml", &service())?;
        settle(client, &["near-2", "far-1", "far-2"])?;
        let summary = connect(client, 4000)?;
        // 6 sigma of n = 4000 at p = 1/2: 190.
        assert!(of(&summary, "near").abs_diff(2000) < 190, "{enrolled}: {summary:?}");
        // Nobody of the zone is left: the service's word has nothing to narrow to.
        manifests.apply("service.yaml", &(service() + "  trafficDistribution: PreferSameZone\n"))?;
        settle(client, &["near-2"])?;
        stage.serving(&stage.servers[2..].iter().collect::<Vec<_>>())?;
        settle(client, &["far-1", "far-2"])?;
    }
    Ok(())
}

#[test]
fn an_endpoint_that_is_new_gets_little_at_first() -> Result<()> {
    let stage = Stage::start(1, true)?;
    let client = &stage.clients[0];
    stage.serving(&stage.servers[..3].iter().collect::<Vec<_>>())?;
    stage.wait_serving(3)?;
    stage.rule("loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 3600s, minimumPercent: 10}}")?;
    // Those that are there at first are not new.
    settle(client, &["near-1", "near-2", "far-1"])?;
    let before = connect(client, 3000)?;
    for (server, count) in &before.by_name {
        // 6 sigma of n = 3000 at p = 1/3: 155.
        assert!(count.abs_diff(1000) < 155, "{server}: {before:?}");
    }
    stage.serving(&stage.servers.iter().collect::<Vec<_>>())?;
    settle(client, &["near-1", "near-2", "far-1", "far-2"])?;
    let early = connect(client, 4000)?;
    // A tenth of a share, of 3.1; 6 sigma of n = 4000 at p = 1/31: 67.
    assert!(early.by_name["far-2"].abs_diff(129) < 68, "{early:?}");
    // By a shorter duration it is warm by now.
    stage.rule("loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 1s, minimumPercent: 10}}")?;
    let warm = eventually(SECONDS_10, "it is warm", || {
        let few = connect(client, 400).ok()?;
        (few.by_name.get("far-2").copied().unwrap_or(0) > 60).then(|| connect(client, 4000).ok())?
    })?;
    // 6 sigma of n = 4000 at p = 1/4: 164.
    assert!(warm.by_name["far-2"].abs_diff(1000) < 164, "{warm:?}");
    Ok(())
}
