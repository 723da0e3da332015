//! Manifests that change, and manifests that are wrong.

use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_tests::peer::Summary;
use mesh_tests::{SECONDS_10, eventually};

use crate::world::{World, service, split, subsets, v4};

#[test]
fn a_broken_file_is_told_and_the_last_good_state_stays() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    let manifests = world.lab.manifests();
    let good = std::fs::read_to_string(manifests.folder().join("services.yaml"))?;
    let far = service("far", "app: far");
    let bad = far.replace("port: 8080, protocol: TCP", "port: 99999, protocol: TCP");
    assert_ne!(far, bad);
    let spoilt = [
        ("a field", good.replace(&far, &bad), "ports"),
        ("the YAML", good.replace("kind: Service", "kind: Service: x"), "services.yaml"),
    ];
    for (what, text, field) in spoilt {
        manifests.apply("services.yaml", &text)?;
        let told = |problems: Vec<String>| {
            problems.into_iter().find(|problem| problem.contains("services.yaml:") && problem.contains(field))
        };
        let problem = eventually(SECONDS_10, what, || told(world.agent_a.problems().ok()?))?;
        let line = problem.split("services.yaml:").nth(1).and_then(|rest| rest.split(':').next());
        assert!(line.is_some_and(|line| line.parse::<u32>().is_ok()), "{what} has no line: {problem}");
        for client in [&world.client, &world.outside] {
            let summary = client.connect(&[&v4("far"), "--count", "20", "--concurrency", "4"])?;
            assert_eq!((summary.ok, summary.failed), (20, 0), "{what}: {summary:?}");
        }
        manifests.apply("services.yaml", &good)?;
        let none = || world.agent_a.problems().ok().filter(Vec::is_empty);
        eventually(SECONDS_10, "the problem is gone", none)?;
    }
    Ok(())
}

#[test]
fn a_changed_weight_holds_within_a_second_and_drops_nothing() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    let manifests = world.lab.manifests();
    manifests.apply("subsets.yaml", &subsets())?;
    manifests.apply("split.yaml", &split(100, 0))?;
    // One client in the mesh, one outside it.
    let clients = [&world.client, &world.outside];
    let all_to = |client: &mesh_tests::Pod, name: &str| -> Option<()> {
        let summary = client.connect(&[&v4("both"), "--count", "40", "--concurrency", "4"]).ok()?;
        (summary.by_name.get(name) == Some(&40)).then_some(())
    };
    for client in clients {
        eventually(SECONDS_10, "all go to twin", || all_to(client, "twin"))?;
    }
    let loads = clients.map(|client| client.load(&[&v4("both"), "--concurrency", "2"]));
    for (twin, far, name) in [(0, 100, "far"), (100, 0, "twin"), (0, 100, "far")] {
        manifests.apply("split.yaml", &split(twin, far))?;
        let changed = Instant::now();
        for client in clients {
            eventually(SECONDS_10, &format!("all go to {name}"), || all_to(client, name))?;
        }
        // Two times 40 connections under load are within the second as well.
        assert!(changed.elapsed() < Duration::from_secs(1), "{:?}", changed.elapsed());
    }
    for load in loads {
        let summary = Summary::end(&load?)?;
        assert_eq!(summary.failed, 0, "{summary:?}");
        assert!(summary.ok > 20, "{summary:?}");
    }
    Ok(())
}

#[test]
fn a_pod_that_leaves_the_manifests_leaves_its_services() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    let manifests = world.lab.manifests();
    let pods =
        [&world.client, &world.near, &world.far, &world.outside].map(mesh_tests::Pod::manifest).join("---\n");
    manifests.apply("pods.yaml", &pods)?;
    for client in [&world.client, &world.outside] {
        eventually(SECONDS_10, "all go to far", || {
            let summary = client.connect(&[&v4("both"), "--count", "40", "--concurrency", "4"]).ok()?;
            // A connection that was with the pod while it went is reset.
            let resets = summary.errors.get("reset").copied().unwrap_or(0);
            assert_eq!(summary.failed, resets, "{summary:?}");
            (summary.by_name.get("far") == Some(&40)).then_some(())
        })?;
    }
    Ok(())
}
