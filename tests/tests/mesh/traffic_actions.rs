//! What routes do to connections: copies to shadows, and faults, with exact accounts.

use anyhow::{Context, Result, ensure};
use mesh_tests::peer::{Report, Summary};
use mesh_tests::{Agent, Pod, Process, SECONDS_10, SECONDS_30, eventually};

use crate::world::{PORT, World, service, subsets, v4};

const MANY: &str = "10000";

/// The world, with services whose ports speak HTTP: those are the ones that `http` routes hold for.
fn start(flags: &[(&str, &str)]) -> Result<World> {
    let world = World::start_with(true, flags)?;
    let services = [
        ("near", "app: near"),
        ("far", "app: far"),
        ("outside", "app: outside"),
        ("both", "both: \"yes\""),
        ("nobody", "app: nobody"),
    ];
    let services =
        services.map(|(name, selector)| service(name, selector).replace("{name: tcp,", "{name: http,"));
    apply_as(&world, "services.yaml", &services.join("---\n"))?;
    Ok(world)
}

/// A `VirtualService` for the connections to a service of the world, with further lines of its one `http` route.
fn route(host: &str, lines: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {host}, namespace: default}}\nspec:\n  \
         hosts: [{host}]\n  http:\n  - route:\n    - destination: {{host: {host}}}\n{lines}"
    )
}

fn mirrored(host: &str, shadow: &str) -> String {
    route(host, &format!("    mirror: {{host: {shadow}}}\n"))
}

/// Applies it and waits until the client's agent has it in force.
fn apply(world: &World, manifest: &str) -> Result<()> {
    apply_as(world, "routes.yaml", manifest)
}

fn apply_as(world: &World, file: &str, manifest: &str) -> Result<()> {
    let generation = generation(world)?;
    world.lab.manifests().apply(file, manifest)?;
    eventually(SECONDS_10, "it is in force", || (self::generation(world).ok()? > generation).then_some(()))
}

fn generation(world: &World) -> Result<u64> {
    let status = world.agent_a.status()?;
    status["generation"].as_u64().with_context(|| format!("{status:#}"))
}

fn reports(server: &Process) -> Vec<Report> {
    server.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn metric(agent: &Agent, name: &str, label: &str) -> Result<u64> {
    let value = agent.metric(name, &[label])?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    Ok(value as u64)
}

/// Waits until all copies have ended, and returns how many there were, and the bytes that were copied and dropped.
fn copies(agent: &Agent, count: u64) -> Result<(u64, u64)> {
    let ended = || {
        let ended = metric(agent, "mesh_mirror_connections_total", "").ok()?;
        let active = metric(agent, "mesh_mirror_connections_active", "").ok()?;
        (ended == count && active == 0).then_some(())
    };
    eventually(SECONDS_30, "all copies have ended", ended)
        .with_context(|| agent.metrics().unwrap_or_default())?;
    Ok((
        metric(agent, "mesh_mirror_copied_bytes_total", "")?,
        metric(agent, "mesh_mirror_dropped_bytes_total", "")?,
    ))
}

fn whole(summary: &Summary, count: u64) -> Result<()> {
    ensure!((summary.ok, summary.failed) == (count, 0), "{summary:?}");
    Ok(())
}

/// Starts `mesh-peer serve` with reports in each of two pods.
fn serve(primary: &Pod, primary_mode: &str, shadow: &Pod, shadow_mode: &str) -> Result<[Process; 2]> {
    let listen = format!("[::]:{PORT}");
    let serve = |pod: &Pod, mode: &str| pod.serve(&["--listen", &listen, "--mode", mode, "--report"]);
    Ok([serve(primary, primary_mode)?, serve(shadow, shadow_mode)?])
}

#[test]
fn ten_thousand_connections_are_copied_to_the_last_byte() -> Result<()> {
    let world = start(&[])?;
    let [primary, shadow] = serve(&world.far, "echo", &world.near, "discard")?;
    apply(&world, &mirrored("far", "near"))?;
    let summary = world.client.connect(&[
        &v4("far"),
        "--mode",
        "echo",
        "--count",
        MANY,
        "--concurrency",
        "32",
        "--bytes",
        "3000",
        "--timeout-ms",
        "60000",
    ])?;
    whole(&summary, 10_000)?;
    assert_eq!(copies(&world.agent_a, 10_000)?, (summary.sent, 0));
    let ended = metric(&world.agent_a, "mesh_mirror_connections_total", "end=\"closed\"")?;
    assert_eq!(ended, 10_000);
    // The shadow got, connection by connection, what the primary got: its answers went nowhere.
    let digests = |server: &Process| {
        eventually(SECONDS_30, "the server reports", || {
            let reports = reports(server);
            (reports.len() >= 10_000).then_some(reports)
        })
    };
    let of = |reports: Vec<Report>| {
        let mut all: Vec<_> = reports.into_iter().map(|one| (one.bytes, one.digest, one.end)).collect();
        all.sort();
        all
    };
    assert_eq!(of(digests(&primary)?), of(digests(&shadow)?));
    // Policy and records at the shadow's end are those of any client.
    let flows =
        world.agent_a.wait_flows(1, "the shadow's own record", |flow| flow["direction"] == "mirrored")?;
    assert_eq!(flows[0]["service"]["name"], "near", "{:#}", flows[0]);
    assert_eq!(flows[0]["source"]["pod"], "default/client", "{:#}", flows[0]);
    assert_eq!(flows[0]["security"], "mutual_tls", "{:#}", flows[0]);
    Ok(())
}

#[test]
fn a_share_of_the_connections_is_copied() -> Result<()> {
    let world = start(&[])?;
    let [_primary, shadow] = serve(&world.far, "discard", &world.near, "discard")?;
    apply(
        &world,
        &route("far", "    mirrors:\n    - {destination: {host: near}, percentage: {value: 30}}\n"),
    )?;
    let args = ["--mode", "discard", "--count", "1000", "--concurrency", "8", "--bytes", "1000"];
    whole(&world.client.connect(&[&[&*v4("far")], &args[..]].concat())?, 1000)?;
    let count = metric(&world.agent_a, "mesh_mirror_connections_total", "")?
        + metric(&world.agent_a, "mesh_mirror_connections_active", "")?;
    assert_eq!(copies(&world.agent_a, count)?, (count * 1000, 0));
    // 6 sigma of a binomial with n = 1000 and p = 3/10.
    assert!(count.abs_diff(300) < 87, "{count}");
    eventually(SECONDS_10, "the shadow has had them", || {
        (reports(&shadow).len() as u64 == count).then_some(())
    })
}

#[test]
fn a_shadow_is_reached_as_any_destination_whatever_way_the_primary_takes() -> Result<()> {
    let world = start(&[])?;
    let listen = format!("[::]:{PORT}");
    let pods = [&world.near, &world.far, &world.twin, &world.outside];
    let serving: Vec<_> = pods
        .iter()
        .map(|pod| pod.serve(&["--listen", &listen, "--mode", "discard", "--report"]))
        .collect::<Result<_>>()?;
    apply_as(&world, "subsets.yaml", &subsets())?;
    let mut copied = 0;
    let mut count = 0;
    // Within the node, over a tunnel, and in plaintext outside the mesh: each as the primary, the others as its shadows.
    for (primary, shadows) in [
        ("near", ["{host: both, subset: twin}", "{host: outside}"]),
        ("far", ["{host: near}", "{host: outside}"]),
        ("outside", ["{host: both, subset: twin}", "{host: near}"]),
    ] {
        let mirrors = shadows.map(|shadow| format!("    - destination: {shadow}\n")).concat();
        apply(&world, &route(primary, &format!("    mirrors:\n{mirrors}")))?;
        let summary = world.client.connect(&[
            &v4(primary),
            "--mode",
            "discard",
            "--count",
            "20",
            "--bytes",
            "200000",
        ])?;
        whole(&summary, 20)?;
        copied += 2 * summary.sent;
        count += 40;
        assert_eq!(copies(&world.agent_a, count)?, (copied, 0), "{primary}");
    }
    let expected = [60_usize, 20, 40, 60];
    for ((pod, server), expected) in pods.iter().zip(&serving).zip(expected) {
        let all = eventually(SECONDS_10, "the server reports", || {
            let reports = reports(server);
            (reports.len() >= expected).then_some(reports)
        })?;
        assert_eq!(all.len(), expected, "{}", pod.spec.name);
        assert!(all.iter().all(|one| one.end == "eof" && one.bytes == 200_000), "{}", pod.spec.name);
    }
    Ok(())
}

#[test]
fn what_a_shadow_does_or_does_not_is_nothing_to_the_primary() -> Result<()> {
    let world = start(&[])?;
    world.far.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "discard"])?;
    let connections = |bytes: &str| -> Result<Summary> {
        let args = ["--mode", "discard", "--count", "6", "--concurrency", "3", "--timeout-ms", "60000"];
        let summary = world.client.connect(&[&[&*v4("far")], &args[..], &["--bytes", bytes]].concat())?;
        whole(&summary, 6)?;
        Ok(summary)
    };
    let (mut sent, mut count, mut dropped_before, mut last) = (0, 0, 0, "");
    // Nobody listens; then one that reads nothing of more than fits anywhere; one that resets; and a service without an endpoint.
    for (shadow, mode, bytes, end) in [
        ("near", None, "200000", "connect_failed"),
        ("near", Some("stall"), "32000000", "behind"),
        ("outside", Some("reset"), "200000", "shadow_reset"),
        ("nobody", None, "200000", "no_endpoint"),
    ] {
        if let Some(mode) = mode {
            let pod = if shadow == "near" { &world.near } else { &world.outside };
            pod.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", mode])?;
        }
        if shadow != last {
            apply(&world, &mirrored("far", shadow))?;
            last = shadow;
        }
        sent += connections(bytes)?.sent;
        count += 6;
        let (copied, dropped) = copies(&world.agent_a, count)?;
        assert_eq!(copied + dropped, sent, "{shadow} {mode:?}");
        assert!(dropped > dropped_before || mode == Some("reset"), "{shadow} {mode:?}");
        dropped_before = dropped;
        let ended = metric(&world.agent_a, "mesh_mirror_connections_total", &format!("end=\"{end}\""))?;
        assert_eq!(ended, 6, "{shadow} {mode:?}: {}", world.agent_a.metrics()?);
    }
    Ok(())
}

#[test]
fn a_clients_reset_is_passed_on_to_the_shadow() -> Result<()> {
    let world = start(&[])?;
    let [_primary, shadow] = serve(&world.far, "echo", &world.near, "echo")?;
    apply(&world, &mirrored("far", "near"))?;
    let summary = world.client.connect(&[&v4("far"), "--mode", "abort", "--count", "50"])?;
    whole(&summary, 50)?;
    copies(&world.agent_a, 50)?;
    // The shadow's connection may not have stood yet when the client was gone; where it did, it was reset, and never ended as
    // if that were all.
    let ends: Vec<String> = reports(&shadow).into_iter().map(|one| one.end).collect();
    assert!(ends.iter().all(|end| end == "reset"), "{ends:?}");
    let ended = metric(&world.agent_a, "mesh_mirror_connections_total", "end=\"client_reset\"")?;
    assert_eq!(ended, 50);
    Ok(())
}

#[test]
fn ten_thousand_connections_are_aborted_and_delayed_by_the_seed() -> Result<()> {
    let world = start(&[("--seed", "7"), ("--workers", "1")])?;
    let server = world.far.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "echo", "--report"])?;
    let fault = "    fault:\n      delay: {percentage: {value: 10}, fixedDelay: 20ms}\n      \
                 abort: {percentage: {value: 25}, httpStatus: 503}\n";
    apply(&world, &route("far", fault))?;
    let connections = || {
        let args = ["--mode", "echo", "--count", MANY, "--concurrency", "16", "--bytes", "100"];
        world.client.connect(&[&[&*v4("far")], &args[..], &["--timeout-ms", "60000"]].concat())
    };
    let run = |agent: &Agent, served: usize| -> Result<(u64, u64)> {
        let summary = connections()?;
        let aborted = metric(agent, "mesh_faults_injected_total", "fault=\"abort\"")?;
        let delayed = metric(agent, "mesh_faults_injected_total", "fault=\"delay\"")?;
        // Each connection is either whole or was reset on purpose, and the server saw the former alone.
        assert_eq!((summary.ok, summary.failed), (10_000 - aborted, aborted), "{summary:?}");
        assert_eq!(summary.errors.get("reset"), Some(&aborted), "{summary:?}");
        let flows = metric(agent, "mesh_flows_total", "outcome=\"fault_aborted\"")?;
        assert_eq!(flows, aborted);
        assert_eq!(metric(agent, "mesh_faults_skipped_total", "")?, 0);
        assert_eq!(metric(agent, "mesh_fault_delays_active", "")?, 0);
        let served = served + usize::try_from(summary.ok)?;
        eventually(SECONDS_10, "the server reports", || (reports(&server).len() >= served).then_some(()))?;
        assert_eq!(reports(&server).len(), served);
        Ok((aborted, delayed))
    };
    let (aborted, delayed) = run(&world.agent_a, 0)?;
    // Five standard deviations of a draw of each; which of them it is the seed decides.
    assert!(aborted.abs_diff(2500) < 220 && delayed.abs_diff(1000) < 150, "{aborted} {delayed}");
    for (flags, label) in [("FI", "fault_aborted"), ("DI,FI", "fault_aborted"), ("DI", "closed")] {
        world
            .agent_a
            .wait_flows(1, flags, |flow| flow["response_flags"] == flags && flow["outcome"] == label)?;
    }
    world.agent_a.terminate(SECONDS_30)?;
    let again = world.agent_a.restart()?;
    again.wait_enrolled(&[&world.client, &world.near])?;
    assert_eq!(run(&again, usize::try_from(10_000 - aborted)?)?, (aborted, delayed), "the same seed");
    Ok(())
}

#[test]
fn actions_change_under_load_and_established_connections_go_on() -> Result<()> {
    let world = start(&[])?;
    serve(&world.far, "echo", &world.near, "discard")?;
    let load = |agent: &Agent| -> Result<Process> {
        let args = ["--mode", "echo", "--keep", "--concurrency", "8"];
        let load = world.client.load(&[&[&*v4("far")], &args[..]].concat())?;
        eventually(SECONDS_10, "all of them stand", || {
            (agent.status().ok()?["connections"].as_u64()? >= 8).then_some(())
        })?;
        Ok(load)
    };
    let kept = load(&world.agent_a)?;
    let once = |count: &str| {
        world.client.connect(&[&v4("far"), "--mode", "echo", "--count", count, "--bytes", "100"])
    };
    apply(&world, &mirrored("far", "near"))?;
    whole(&once("20")?, 20)?;
    assert_eq!(copies(&world.agent_a, 20)?, (20 * 100, 0), "those that came after the change are copied");
    apply(&world, &route("far", "    fault: {abort: {percentage: {value: 100}, httpStatus: 503}}\n"))?;
    let aborted = once("20")?;
    assert_eq!((aborted.ok, aborted.errors.get("reset")), (0, Some(&20)), "{aborted:?}");
    let delay = "    fault: {delay: {percentage: {value: 100}, fixedDelay: 50ms}}\n";
    apply(&world, &route("far", delay))?;
    whole(&once("20")?, 20)?;
    assert_eq!(metric(&world.agent_a, "mesh_faults_injected_total", "fault=\"delay\"")?, 20);
    world.lab.manifests().delete("routes.yaml")?;
    eventually(SECONDS_10, "nothing is done any more", || {
        let before = metric(&world.agent_a, "mesh_faults_injected_total", "").ok()?;
        whole(&once("5").ok()?, 5).ok()?;
        (metric(&world.agent_a, "mesh_faults_injected_total", "").ok()? == before).then_some(())
    })?;
    let kept = Summary::end(&kept)?;
    assert_eq!(kept.failed, 0, "{kept:?}");
    assert!(kept.ok > 0);
    Ok(())
}

#[test]
fn a_delayed_connection_ends_with_its_agent() -> Result<()> {
    let world = start(&[("--drain", "1s")])?;
    world.far.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "echo"])?;
    apply(&world, &route("far", "    fault: {delay: {percentage: {value: 100}, fixedDelay: 1h}}\n"))?;
    let waiting = world.client.peer(
        "connect",
        &[&v4("far"), "--mode", "echo", "--count", "4", "--concurrency", "4", "--timeout-ms", "600000"],
    )?;
    let delayed = |agent: &Agent, count: u64| {
        eventually(SECONDS_10, "so many are delayed", || {
            (metric(agent, "mesh_fault_delays_active", "").ok()? == count).then_some(())
        })
    };
    delayed(&world.agent_a, 4)?;
    let finished = world.agent_a.terminate(SECONDS_30)?;
    ensure!(finished.status.success(), "the agent did not end in order");
    let summary = Summary::of(&waiting, SECONDS_30)?;
    assert_eq!((summary.ok, summary.errors.get("reset")), (0, Some(&4)), "{summary:?}");
    Ok(())
}
