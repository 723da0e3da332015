//! The mesh plane: what enrolled pods send and receive, over mutual TLS between nodes and without on one node.

use std::time::Duration;

use anyhow::Result;
use mesh_tests::peer::{Report, Summary};
use mesh_tests::{Pod, Process, SECONDS_10, SECONDS_30, binary, eventually};

use crate::world::{PORT, World, namespace, v4, v6};

/// Every way in which the client can name an address: services and pods, IPv4, IPv6 and IPv4 from an IPv6 socket.
fn targets(pod: &Pod) -> Vec<(String, bool)> {
    let name = &pod.spec.name;
    let (pod4, pod6) = (format!("{}:{PORT}", pod.v4), format!("[{}]:{PORT}", pod.v6));
    vec![
        (v4(name), false),
        (v6(name), false),
        (v4(name), true),
        (pod4.clone(), false),
        (pod6, false),
        (pod4, true),
    ]
}

fn reports(server: &Process, count: usize) -> Result<Vec<Report>> {
    eventually(SECONDS_10, "the server reports", || {
        let stdout = server.stdout();
        let reports: Vec<Report> =
            stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (reports.len() >= count).then_some(reports)
    })
}

#[test]
fn both_ends_see_the_addresses_that_they_would_see_without_a_mesh() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    for server in [&world.far, &world.near] {
        for (target, mapped) in targets(server) {
            let mut args = vec![target.as_str(), "--count", "10", "--concurrency", "2"];
            args.extend(mapped.then_some("--source-v6-mapped"));
            let summary = world.client.connect(&args)?;
            assert_eq!((summary.ok, summary.failed), (10, 0), "{target} {mapped}: {summary:?}");
            assert_eq!(summary.by_name.get(&server.spec.name), Some(&10), "{target} {mapped}");
            assert_eq!(summary.getpeername.keys().collect::<Vec<_>>(), [&target], "{mapped}");
            let client = if target.starts_with('[') {
                format!("[{}]:", world.client.v6)
            } else {
                format!("{}:", world.client.v4)
            };
            let seen: Vec<&String> = summary.peers_seen.keys().collect();
            assert!(seen.iter().all(|peer| peer.starts_with(&client)), "{target} {mapped}: {seen:?}");
        }
    }
    assert_eq!(world.agent_b.problems()?, Vec::<String>::new());
    let flows = world.agent_b.wait_flows(60, "all came over mutual TLS", |flow| {
        flow["security"] == "mutual_tls" && flow["direction"] == "inbound" && flow["outcome"] == "closed"
    })?;
    assert_eq!(flows.len(), 60);
    Ok(())
}

#[test]
fn nothing_is_readable_on_the_wire_once_the_pods_are_enrolled() -> Result<()> {
    let world = World::start(false)?;
    world.serve("echo")?;
    let wire = world.lab.wire()?;
    let send = |marker: &str| {
        world.client.connect(&[
            &v4("far"),
            "--mode",
            "echo",
            "--count",
            "20",
            "--marker",
            marker,
            "--bytes",
            "100",
        ])
    };
    assert_eq!(send("PLAIN-BEFORE")?.ok, 20);
    eventually(SECONDS_10, "plaintext is on the wire", || (wire.count("PLAIN-BEFORE") >= 40).then_some(()))?;
    world.enrol(true)?;
    assert_eq!(send("SECRET-AFTER")?.ok, 20);
    world.enrol(false)?;
    assert_eq!(send("PLAIN-AGAIN")?.ok, 20);
    eventually(SECONDS_10, "plaintext is on the wire", || (wire.count("PLAIN-AGAIN") >= 40).then_some(()))?;
    assert_eq!(wire.count("SECRET-AFTER"), 0);
    Ok(())
}

#[test]
fn either_side_may_close_its_half_first() -> Result<()> {
    let world = World::start(true)?;
    for server in [&world.far, &world.near] {
        let host = server.v4;
        for (mode, port) in [("echo", 9001), ("discard", 9002), ("source", 9003), ("half-close", 9004)] {
            let process = server.serve(&["--listen", &format!("[::]:{port}"), "--mode", mode, "--report"])?;
            let target = format!("{host}:{port}");
            let summary = world.client.connect(&[
                &target,
                "--mode",
                mode,
                "--bytes",
                "1000003",
                "--count",
                "6",
                "--concurrency",
                "3",
            ])?;
            assert_eq!((summary.ok, summary.failed), (6, 0), "{mode} at {}: {summary:?}", server.spec.name);
            for report in reports(&process, 6)? {
                assert_eq!((report.bytes, report.end.as_str()), (1_000_003, "eof"), "{mode}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_reset_reaches_the_other_end_as_a_reset() -> Result<()> {
    let world = World::start(true)?;
    for server in [&world.far, &world.near] {
        let host = server.v4;
        server.serve(&["--listen", "[::]:9001", "--mode", "reset"])?;
        let summary = world.client.connect(&[&format!("{host}:9001"), "--mode", "reset", "--count", "10"])?;
        assert_eq!((summary.ok, summary.failed), (10, 0), "{}: {summary:?}", server.spec.name);
        let echo = server.serve(&["--listen", "[::]:9002", "--mode", "echo", "--report"])?;
        let summary = world.client.connect(&[&format!("{host}:9002"), "--mode", "abort", "--count", "10"])?;
        assert_eq!((summary.ok, summary.failed), (10, 0), "{}: {summary:?}", server.spec.name);
        let ends: Vec<String> = reports(&echo, 10)?.into_iter().map(|report| report.end).collect();
        assert!(ends.iter().all(|end| end == "reset"), "{}: {ends:?}", server.spec.name);
    }
    Ok(())
}

#[test]
fn a_port_that_nobody_serves_ends_the_connection_at_once() -> Result<()> {
    let world = World::start(true)?;
    for server in [&world.far, &world.near] {
        let summary = world.client.connect(&[&format!("{}:9999", server.v4), "--count", "3"])?;
        assert_eq!((summary.ok, summary.failed), (0, 3), "{summary:?}");
        assert!(summary.failed_max_ms < 1000, "{}: {summary:?}", server.spec.name);
    }
    Ok(())
}

#[test]
fn a_gibibyte_arrives_whole_through_mutual_tls() -> Result<()> {
    let world = World::start(true)?;
    let gibibyte = (1_u64 << 30).to_string();
    for mode in ["discard", "source"] {
        let port = if mode == "discard" { 9001 } else { 9002 };
        world.far.serve(&["--listen", &format!("[::]:{port}"), "--mode", mode])?;
        let target = format!("{}:{port}", world.far.v4);
        let summary = world.client.connect(&[
            &target,
            "--mode",
            mode,
            "--bytes",
            &gibibyte,
            "--timeout-ms",
            "80000",
        ])?;
        assert_eq!((summary.ok, summary.failed), (1, 0), "{mode}: {summary:?}");
        assert_eq!(summary.sent + summary.received, 1 << 30, "{mode}");
        eprintln!("{mode}: {} ms", summary.elapsed_ms);
    }
    world.agent_a.wait_flows(2, "two flows of a gibibyte", |flow| {
        let bytes = flow["bytes_sent"].as_u64().unwrap_or(0) + flow["bytes_received"].as_u64().unwrap_or(0);
        bytes > 1 << 30 && flow["security"] == "mutual_tls" && flow["outcome"] == "closed"
    })?;
    Ok(())
}

#[test]
fn two_thousand_connections_at_a_time_lose_none() -> Result<()> {
    let world = World::start(true)?;
    world.serve("echo")?;
    let args =
        ["--mode", "echo", "--keep", "--count", "2000", "--concurrency", "256", "--timeout-ms", "60000"];
    let summary = world.client.connect(&[&[&*v4("far")], &args[..]].concat())?;
    assert_eq!((summary.ok, summary.failed), (2000, 0), "{summary:?}");
    eventually(SECONDS_30, "no connection is left", || {
        let left = |agent: &mesh_tests::Agent| agent.status().ok()?["connections"].as_u64();
        (left(&world.agent_a)? == 0 && left(&world.agent_b)? == 0).then_some(())
    })
}

#[test]
fn what_is_outside_the_mesh_is_reached_in_plaintext() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    // A service with one endpoint in the mesh and one that is not.
    let summary = world.client.connect(&[&v4("mixed"), "--count", "200", "--concurrency", "4"])?;
    assert_eq!((summary.ok, summary.failed), (200, 0), "{summary:?}");
    assert!(summary.by_name.values().all(|count| *count > 50) && summary.by_name.len() == 2, "{summary:?}");
    // A pod that is not, an address that is nobody's pod, and the other way round.
    let outside = format!("{}:{PORT}", world.outside.v4);
    assert_eq!(world.client.connect(&[&outside, "--count", "5"])?.ok, 5);
    let node = world.b.spawn(&[&binary("mesh-peer")?.to_string_lossy(), "serve", "--listen", "[::]:7000"])?;
    node.wait_line("that it listens", |line| line.contains("listening"))?;
    assert_eq!(world.client.connect(&[&format!("{}:7000", world.b.v4), "--count", "5"])?.ok, 5);
    for name in ["near", "far"] {
        let summary = world.outside.connect(&[&v4(name), "--count", "5"])?;
        assert_eq!((summary.ok, summary.failed), (5, 0), "{name}: {summary:?}");
    }
    // An enrolled pod reaches itself, by its own address and through its service.
    for target in [format!("{}:{PORT}", world.near.v4), format!("127.0.0.1:{PORT}"), v4("near")] {
        let summary = world.near.connect(&[&target, "--count", "5"])?;
        assert_eq!((summary.ok, summary.failed), (5, 0), "{target}: {summary:?}");
    }
    Ok(())
}

#[test]
fn probes_of_the_node_reach_a_strict_pod() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    let strict = crate::world::peer_authentication("default", "istio-system", "  mtls: {mode: STRICT}\n");
    world.lab.manifests().apply("strict.yaml", &strict)?;
    crate::policy::wait_mode(&world.agent_a, "STRICT")?;
    let probe = |pod: &Pod| world.a.connect(&[&format!("{}:{PORT}", pod.v4), "--count", "5"]);
    assert_eq!(probe(&world.near)?.ok, 5);
    // From the other node it is plaintext like any other.
    assert_eq!(probe(&world.far)?.ok, 0);
    world.agent_a.kill()?;
    assert_eq!(probe(&world.near)?.ok, 5, "with the agent dead");
    Ok(())
}

#[test]
fn enrolment_leaves_a_pod_as_it_was() -> Result<()> {
    let world = World::start(false)?;
    let look = |pod: &Pod| -> Result<Vec<String>> {
        let netns = pod.netns();
        let mut seen = Vec::new();
        for family in ["-4", "-6"] {
            seen.push(netns.show(&[family, "rule", "show"])?);
            let mut routes: Vec<String> =
                netns.show(&[family, "route", "show", "table", "all"])?.lines().map(str::to_owned).collect();
            routes.sort();
            seen.push(routes.join("\n"));
        }
        seen.push(netns.show(&["-o", "link", "show"])?);
        seen.push(netns.show(&["-o", "addr", "show"])?);
        seen.push(netns.run(sysctls)?);
        Ok(seen)
    };
    let pins = |world: &World| -> Vec<_> {
        let mut pins = Vec::new();
        collect(&world.a.bpffs(), &mut pins);
        pins.sort();
        pins
    };
    let (before, pins_before) = (look(&world.client)?, pins(&world));
    for _round in 0..2 {
        world.enrol(true)?;
        assert_ne!(look(&world.client)?[0], before[0], "nothing was enrolled");
        assert_ne!(pins(&world), pins_before);
        world.enrol(false)?;
        for (now, then) in look(&world.client)?.iter().zip(&before) {
            assert_eq!(now, then);
        }
        assert_eq!(pins(&world), pins_before);
    }
    assert_eq!(std::fs::read_dir(world.a.state_dir().join("pods"))?.count(), 0);
    // An agent that finds no pod of its own left behind by another releases it.
    world.enrol(true)?;
    world.agent_a.kill()?;
    world.lab.manifests().apply("namespace.yaml", &namespace("default", false))?;
    let agent = world.agent_a.restart()?;
    agent.wait_enrolled(&[])?;
    for (now, then) in look(&world.client)?.iter().zip(&before) {
        assert_eq!(now, then, "after a crash");
    }
    // A node that is cleaned has nothing of an agent left.
    world.lab.manifests().apply("namespace.yaml", &namespace("default", true))?;
    agent.wait_enrolled(&[&world.client, &world.near])?;
    agent.kill()?;
    let (meshd, bpffs, state) = (binary("meshd")?, world.a.bpffs(), world.a.state_dir());
    let argv = ["uninstall", "--bpffs", &bpffs.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    let uninstall = world.a.spawn(&[&[&*meshd.to_string_lossy()], &argv[..]].concat())?;
    let finished = uninstall.wait(SECONDS_10)?;
    assert!(finished.status.success(), "{}", finished.stderr);
    for (now, then) in look(&world.client)?.iter().zip(&before) {
        assert_eq!(now, then, "after uninstall");
    }
    assert!(!bpffs.exists() && !state.exists(), "{} or {} is left", bpffs.display(), state.display());
    Ok(())
}

/// Every sysctl below `net` that can be read, but for counters that move by themselves.
fn sysctls() -> String {
    let mut files = Vec::new();
    collect(std::path::Path::new("/proc/sys/net/ipv4"), &mut files);
    collect(std::path::Path::new("/proc/sys/net/ipv6"), &mut files);
    files.sort();
    let read = |path: &std::path::PathBuf| {
        Some(format!("{}={}", path.display(), std::fs::read_to_string(path).ok()?.trim()))
    };
    let moves = |line: &String| line.contains("stable_secret") || line.contains("fib_multipath_hash_seed");
    files.iter().filter_map(read).filter(|line| !moves(line)).collect::<Vec<_>>().join("\n")
}

/// Every file below a folder.
pub(crate) fn collect(folder: &std::path::Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), files);
        } else {
            files.push(entry.path());
        }
    }
}

#[test]
fn connections_end_in_order_when_their_agent_is_told_to_stop() -> Result<()> {
    let world = World::start_with(true, &[("--drain", "20s")])?;
    world.serve("echo")?;
    let load = world.client.load(&[&v4("far"), "--mode", "echo", "--keep", "--concurrency", "4"])?;
    world.agent_a.process().signal(nix::sys::signal::Signal::SIGTERM)?;
    // Established connections go on until they end by themselves; only then the agent does.
    std::thread::sleep(Duration::from_millis(500));
    assert!(world.agent_a.process().is_running());
    let summary = Summary::end(&load)?;
    assert_eq!(summary.failed, 0, "{summary:?}");
    let finished = world.agent_a.process().wait(SECONDS_10)?;
    assert!(finished.status.success(), "{finished:?}");
    Ok(())
}
