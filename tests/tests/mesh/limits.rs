//! Maps that are full or change their size, and ports of the node that are taken.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use mesh_tests::peer::Summary;
use mesh_tests::{Agent, SECONDS_10, SECONDS_30, binary, eventually};

use crate::world::{PORT, World, service, v4, v6};

/// Services with one address each, without endpoints.
fn services(count: u16) -> String {
    let mut text = String::new();
    for number in 0..count {
        let [high, low] = number.to_be_bytes();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: many-{number}, namespace: default}}\nspec:\n  \
             clusterIP: 10.97.{high}.{low}\n  ports: [{{port: 80}}]"
        );
    }
    text
}

/// Waits until the metrics tell the size of `SERVICES`.
fn wait_max(agent: &Agent, size: &str) -> Result<()> {
    eventually(SECONDS_10, "the metrics tell the map's size", || {
        let max = agent.metric("mesh_map_max_entries", &["map=\"SERVICES\""]).ok()?;
        (max.to_string() == size).then_some(())
    })
}

#[test]
fn a_full_map_keeps_what_it_has_and_takes_the_rest_once_there_is_room() -> Result<()> {
    // Six services of two ports in two families: 24 frontends.
    let world = World::start_with(false, &[("--max-services", "32")])?;
    world.serve("http")?;
    let manifests = world.lab.manifests();
    manifests.apply("many.yaml", &services(100))?;
    eventually(SECONDS_10, "the full map is told, with the flag that makes it larger", || {
        let problems = world.agent_a.problems().ok()?;
        problems
            .iter()
            .any(|problem| problem.contains("full") && problem.contains("--max-services"))
            .then_some(())
    })?;
    wait_max(&world.agent_a, "32")?;
    for name in ["near", "far", "both"] {
        for target in [v4(name), v6(name)] {
            let summary = world.client.connect(&[&target, "--count", "5"])?;
            assert_eq!((summary.ok, summary.failed), (5, 0), "{target}: {summary:?}");
        }
    }
    manifests.apply("many.yaml", &services(2))?;
    let settled = eventually(SECONDS_10, "all is written once there is room", || {
        world.agent_a.problems().ok()?.is_empty().then_some(())
    });
    settled.with_context(|| format!("{:?}", world.agent_a.problems()))?;
    let last = world.client.connect(&["10.97.0.1:80"])?;
    assert_eq!(last.errors.get("refused"), Some(&1), "no endpoint: {last:?}");
    Ok(())
}

#[test]
fn maps_of_another_size_take_over_without_a_failing_connect() -> Result<()> {
    let world = World::start(false)?;
    world.serve("http")?;
    let text = service("both", "both: \"yes\"") + "  sessionAffinity: ClientIP\n";
    world.lab.manifests().apply("both.yaml", &text)?;
    eventually(SECONDS_10, "the affinity is in force", || {
        let summary = world.client.connect(&[&v4("both"), "--count", "40"]).ok()?;
        (summary.by_name.len() == 1).then_some(())
    })?;
    let kept = world.client.connect(&[&v4("both")])?.by_name;
    let load = world.client.load(&[&v4("far"), "--concurrency", "4"])?;
    let held = world.client.load(&[&v4("near"), "--keep", "--concurrency", "2"])?;
    for size in ["4096", "65536", "512"] {
        world.agent_a.kill()?;
        let agent = world.a.agent().flag("--max-services", size).start()?;
        wait_max(&agent, size)?;
        for _ in 0..20 {
            assert_eq!(world.client.connect(&[&v4("both")])?.by_name, kept, "{size}");
        }
        agent.kill()?;
        let mut names = Vec::new();
        crate::carry::collect(&world.a.bpffs(), &mut names);
        let tables = names.iter().filter(|path| path.ends_with("SERVICES")).count();
        assert_eq!(tables, 1, "{names:?}");
    }
    for load in [load, held] {
        let summary = Summary::end(&load)?;
        assert_eq!(summary.failed, 0, "{summary:?}");
        assert!(summary.getpeername.keys().all(|name| name.starts_with("10.96.0.")), "{summary:?}");
    }
    Ok(())
}

#[test]
fn a_process_of_the_node_is_told_that_a_node_port_is_taken() -> Result<()> {
    let world = World::start(false)?;
    let text = service("near", "app: near")
        .replace("spec:\n", "spec:\n  type: NodePort\n")
        .replace("protocol: TCP}", "protocol: TCP, nodePort: 30080}");
    world.lab.manifests().apply("services.yaml", &text)?;
    let peer = binary("mesh-peer")?.to_string_lossy().into_owned();
    for listen in [format!("{}:30080", world.a.v4), "0.0.0.0:30080".to_owned(), "[::]:30080".to_owned()] {
        eventually(SECONDS_10, "the port is refused", || {
            let process = world.a.spawn(&[&peer, "serve", "--listen", &listen]).ok()?;
            match process.wait_line("that it listens", |line| line.contains("listening")) {
                Ok(_) => {
                    process.kill().ok()?;
                    None
                }
                Err(_) => Some(process.wait(SECONDS_30).ok()?.stderr),
            }
        })
        .and_then(|told| {
            ensure!(told.contains("Address already in use"), "{listen}: {told}");
            Ok(())
        })?;
    }
    // Other ports, and the same port in a pod, are theirs.
    let other = world.a.spawn(&[&peer, "serve", "--listen", "0.0.0.0:30081"])?;
    other.wait_line("that it listens", |line| line.contains("listening")).context("another port")?;
    world.near.serve(&["--listen", &format!("[::]:{PORT}")])?;
    world.near.serve(&["--listen", "[::]:30080"])?;
    Ok(())
}
