//! `PeerAuthentication`, with real connections.

use std::time::Duration;

use anyhow::Result;
use mesh_tests::{Agent, eventually};

use crate::world::{PORT, World, peer_authentication, v4};

/// Waits until an agent knows every enrolled workload in a mode, and its kernel too.
pub(crate) fn wait_mode(agent: &Agent, mode: &str) -> Result<()> {
    agent.wait_for("workloads", &format!("every enrolled workload is {mode}"), |workloads| {
        let all = workloads.as_array().into_iter().flatten();
        all.filter(|workload| workload["enrolled"] == true)
            .all(|workload| workload["mode"].as_str().is_some_and(|held| held.eq_ignore_ascii_case(mode)))
    })?;
    wait_generation(agent)
}

/// Waits until the snapshot that the API tells is in force in the kernel.
pub(crate) fn wait_generation(agent: &Agent) -> Result<()> {
    eventually(mesh_tests::SECONDS_10, "the snapshot is in force", || {
        let generation = agent.metric("mesh_config_generation", &[]).ok()?;
        (agent.status().ok()?["generation"].as_f64()? >= generation).then_some(())
    })
}

/// What came of five plaintext connections from outside the mesh, and of five from an enrolled pod.
struct Outcome {
    plaintext: u64,
    mutual: u64,
}

fn try_both(world: &World, port: u16) -> Result<Outcome> {
    let target = format!("{}:{port}", world.far.v4);
    let plain = world.outside.connect(&[&target, "--count", "5"])?;
    // Refused or reset, and at once: never a timeout.
    let at_once = plain.failed == 0 || plain.failed_max_ms < 1000;
    let kinds = plain.errors.keys().all(|kind| ["refused", "reset"].contains(&kind.as_str()));
    assert!(at_once && kinds, "{plain:?}");
    Ok(Outcome { plaintext: plain.ok, mutual: world.client.connect(&[&target, "--count", "5"])?.ok })
}

fn expect(world: &World, what: &str, port: u16, plaintext: bool) -> Result<()> {
    let want = if plaintext { 5 } else { 0 };
    let settled = eventually(Duration::from_secs(3), what, || {
        let outcome = try_both(world, port).ok()?;
        (outcome.plaintext == want && outcome.mutual == 5).then_some(())
    });
    if settled.is_err() {
        let outcome = try_both(world, port)?;
        assert_eq!((outcome.plaintext, outcome.mutual), (want, 5), "{what}");
    }
    Ok(())
}

#[test]
fn peer_authentication_decides_by_istios_precedence() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    world.far.serve(&["--listen", "[::]:9090"])?;
    let manifests = world.lab.manifests();
    let apply = |file: &str, name: &str, namespace: &str, spec: &str| {
        manifests.apply(file, &peer_authentication(name, namespace, spec))
    };
    let far = "  selector: {matchLabels: {app: far}}\n";
    expect(&world, "no policy: permissive", PORT, true)?;
    apply("mesh.yaml", "default", "istio-system", "  mtls: {mode: STRICT}\n")?;
    expect(&world, "strict mesh", PORT, false)?;
    apply("namespace-policy.yaml", "default", "default", "  mtls: {mode: PERMISSIVE}\n")?;
    expect(&world, "a namespace's policy goes before the mesh's", PORT, true)?;
    apply("pod.yaml", "far", "default", &format!("{far}  mtls: {{mode: STRICT}}\n"))?;
    expect(&world, "a pod's policy goes before its namespace's", PORT, false)?;
    apply(
        "pod.yaml",
        "far",
        "default",
        &format!("{far}  mtls: {{mode: STRICT}}\n  portLevelMtls: {{9090: {{mode: PERMISSIVE}}}}\n"),
    )?;
    expect(&world, "a port's mode goes before the pod's", 9090, true)?;
    expect(&world, "which holds at the other ports", PORT, false)?;
    apply("pod.yaml", "far", "default", &format!("{far}  mtls: {{mode: DISABLE}}\n"))?;
    expect(&world, "disabled: plaintext all the way", PORT, true)?;
    manifests.delete("pod.yaml")?;
    apply("namespace-policy.yaml", "default", "default", "  mtls: {mode: UNSET}\n")?;
    expect(&world, "unset is inherited from the mesh", PORT, false)?;
    Ok(())
}

#[test]
fn plaintext_to_a_strict_pod_is_refused_on_every_way_in() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    world
        .lab
        .manifests()
        .apply("strict.yaml", &peer_authentication("default", "istio-system", "  mtls: {mode: STRICT}\n"))?;
    wait_mode(&world.agent_a, "STRICT")?;
    wait_mode(&world.agent_b, "STRICT")?;
    let (near, far) = (&world.near, &world.far);
    let ways = [
        format!("{}:{PORT}", near.v4),
        format!("[{}]:{PORT}", near.v6),
        format!("{}:{PORT}", far.v4),
        format!("[{}]:{PORT}", far.v6),
        v4("near"),
        v4("far"),
    ];
    for target in &ways {
        let summary = world.outside.connect(&[target, "--count", "5"])?;
        assert_eq!((summary.ok, summary.failed), (0, 5), "{target}: {summary:?}");
        assert!(summary.failed_max_ms < 1000, "{target}: {summary:?}");
        assert_eq!(world.client.connect(&[target, "--count", "5"])?.ok, 5, "{target}");
    }
    // A strict destination is never reached in plaintext, with its agent dead neither.
    world.agent_b.kill()?;
    for target in [format!("{}:{PORT}", far.v4), v4("far")] {
        let summary = world.outside.connect(&[&target, "--count", "3", "--timeout-ms", "3000"])?;
        assert_eq!(summary.ok, 0, "{target}: {summary:?}");
    }
    world.agent_a.kill()?;
    let summary = world.client.connect(&[&v4("far"), "--count", "3", "--timeout-ms", "3000"])?;
    assert_eq!(summary.ok, 0, "from an enrolled pod whose agent is dead: {summary:?}");
    Ok(())
}
