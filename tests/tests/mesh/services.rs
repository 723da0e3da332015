//! The kernel plane: service addresses, for processes that are in no mesh.

use anyhow::Result;
use mesh_tests::peer::Summary;
use mesh_userspace::datapath::{Datapath, DatapathConfig, Lifeline};
use mesh_userspace::model::MeshConfig;
use mesh_userspace::source::{self, Input, Source};

use crate::world::{PORT, UDP_PORT, World, service_ips, split, subsets, v4, v6};

#[test]
fn a_service_address_reaches_its_pods_and_stays_the_peers_name() -> Result<()> {
    let world = World::start(false)?;
    world.serve("http")?;
    for name in ["near", "far"] {
        for (target, mapped) in [(v4(name), false), (v6(name), false), (v4(name), true)] {
            let mut args = vec![target.as_str(), "--count", "20"];
            args.extend(mapped.then_some("--source-v6-mapped"));
            let summary = world.client.connect(&args)?;
            assert_eq!((summary.ok, summary.failed), (20, 0), "{target} {mapped}: {summary:?}");
            assert_eq!(summary.by_name.get(name), Some(&20), "{target} {mapped}");
            assert_eq!(summary.getpeername.keys().collect::<Vec<_>>(), [&target], "{mapped}");
            // No address is translated but the destination's: the server sees the client's own.
            assert_eq!(summary.peers_seen, summary.locals, "{target} {mapped}");
        }
    }
    // The node's own processes are served as well.
    assert_eq!(world.a.connect(&[&v4("far"), "--count", "5"])?.ok, 5);
    // What is no service goes where it was sent.
    let direct = world.client.connect(&[&format!("{}:{PORT}", world.far.v4)])?;
    assert_eq!(direct.by_name.get("far"), Some(&1), "{direct:?}");
    Ok(())
}

#[test]
fn datagrams_reach_a_service_and_replies_come_from_its_address() -> Result<()> {
    let world = World::start(false)?;
    for pod in [&world.far, &world.twin] {
        pod.serve(&["--udp", "--listen", &format!("[::]:{UDP_PORT}")])?;
    }
    let (ip4, ip6) = service_ips("both");
    let (ip4, ip6) = (format!("{ip4}:{UDP_PORT}"), format!("[{ip6}]:{UDP_PORT}"));
    for (target, flags) in [
        (&ip4, &[][..]),
        (&ip4, &["--unconnected"][..]),
        (&ip4, &["--source-v6-mapped"][..]),
        (&ip4, &["--source-v6-mapped", "--unconnected"][..]),
        (&ip6, &[][..]),
        (&ip6, &["--unconnected"][..]),
    ] {
        let summary = world.client.udp(&[&[target.as_str(), "--count", "20"], flags].concat())?;
        assert_eq!((summary.ok, summary.failed), (20, 0), "{target} {flags:?}: {summary:?}");
        assert_eq!(summary.replies_from.keys().collect::<Vec<_>>(), [target], "{flags:?}");
        if !flags.contains(&"--unconnected") {
            assert_eq!(summary.getpeername.keys().collect::<Vec<_>>(), [target], "{flags:?}");
        }
        assert_eq!(summary.by_name.len(), 1, "one socket, one backend: {target} {flags:?}: {summary:?}");
    }
    let many = world.client.udp(&[&ip4, "--count", "200", "--fresh"])?;
    assert_eq!(many.failed, 0, "{many:?}");
    // By the socket's cookie, 1 to 1: 200 of p = 1/2 stay within 6 sigma (42) of 100.
    assert!(many.by_name.values().all(|count| count.abs_diff(100) < 43), "{many:?}");
    Ok(())
}

#[test]
fn a_split_holds_in_the_kernel_for_clients_outside_the_mesh() -> Result<()> {
    let world = World::start(false)?;
    world.serve("http")?;
    let connect = || world.client.connect(&[&v4("both"), "--count", "4000", "--concurrency", "16"]);
    let twin = |summary: &Summary| summary.by_name.get("twin").copied().unwrap_or(0);
    // 6 sigma of a binomial with n = 4000: 190 at p = 1/2, 114 at p = 9/10.
    let even = connect()?;
    assert_eq!(even.failed, 0, "{even:?}");
    assert!(twin(&even).abs_diff(2000) < 190, "{even:?}");
    world.lab.manifests().apply("subsets.yaml", &subsets())?;
    world.lab.manifests().apply("split.yaml", &split(90, 10))?;
    world.agent_a.wait_for("services", "the split is known", |services| {
        services.as_array().into_iter().flatten().any(|service| service["ports"][0]["rule"].is_string())
    })?;
    // What the API tells is written to the kernel right after: the first of it must have come.
    mesh_tests::eventually(mesh_tests::SECONDS_10, "the split is in the kernel", || {
        let few = world.client.connect(&[&v4("both"), "--count", "100"]).ok()?;
        (twin(&few) > 75).then_some(())
    })?;
    let uneven = connect()?;
    assert_eq!(uneven.failed, 0, "{uneven:?}");
    assert!(twin(&uneven).abs_diff(3600) < 114, "{uneven:?}");
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_at_once() -> Result<()> {
    let world = World::start(false)?;
    for target in [v4("nobody"), v6("nobody")] {
        let summary = world.client.connect(&[&target, "--count", "5"])?;
        assert_eq!(summary.errors.get("refused"), Some(&5), "{target}: {summary:?}");
        assert!(summary.failed_max_ms < 100, "{target}: {summary:?}");
    }
    Ok(())
}

#[test]
fn services_outlive_the_agent() -> Result<()> {
    let world = World::start(false)?;
    world.serve("http")?;
    world.agent_a.kill()?;
    for name in ["near", "far", "both"] {
        for target in [v4(name), v6(name)] {
            let summary = world.client.connect(&[&target, "--count", "50", "--concurrency", "4"])?;
            assert_eq!((summary.ok, summary.failed), (50, 0), "{target}: {summary:?}");
        }
    }
    assert_eq!(world.client.connect(&[&v4("nobody")])?.errors.get("refused"), Some(&1));
    Ok(())
}

#[test]
fn restarts_under_load_lose_no_connect_to_a_service() -> Result<()> {
    let world = World::start(false)?;
    world.serve("http")?;
    let loads = [v4("both"), v6("both")].map(|target| world.client.load(&[&target, "--concurrency", "4"]));
    let mut agent = world.agent_a.clone();
    for round in 0..4 {
        if round % 2 == 0 {
            agent.kill()?;
        } else {
            agent.terminate(mesh_tests::SECONDS_30)?;
        }
        agent = agent.restart()?;
    }
    for load in loads {
        let summary = Summary::end(&load?)?;
        assert_eq!(summary.failed, 0, "{summary:?}");
        assert!(summary.ok > 100, "{summary:?}");
    }
    Ok(())
}

#[test]
fn a_new_layout_replaces_the_pinned_state_without_a_failing_connect() -> Result<()> {
    let world = World::start(false)?;
    world.serve("http")?;
    let load = world.client.load(&[&v4("both"), "--concurrency", "4"])?;
    world.agent_a.kill()?;
    let pins = |layout: u32| {
        let mut names = Vec::new();
        crate::carry::collect(&world.a.bpffs(), &mut names);
        let folder = format!("maps-v{layout}");
        names.into_iter().filter(|path| path.iter().any(|part| *part == *folder)).count()
    };
    let mut config = DatapathConfig::new(world.a.bpffs(), world.a.cgroup().to_owned());
    let old = config.layout;
    config.layout += 1;
    assert!(pins(old) > 0 && pins(old + 1) == 0, "old {} new {}", pins(old), pins(old + 1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let manifests = Input::Manifests(vec![world.lab.manifests().folder().to_owned()]);
        let source = Source::begin(manifests)?;
        let feed = source::run(source, MeshConfig::default(), std::future::pending()).await?;
        let (mut datapath, _events) = Datapath::load(&config, Lifeline::open()?)?;
        let errors = datapath.sync(&feed.current.load());
        anyhow::ensure!(errors.is_empty(), "{errors:?}");
        datapath.attach()?;
        anyhow::Ok(())
    })?;
    assert!(pins(old) == 0 && pins(old + 1) > 0, "old {} new {}", pins(old), pins(old + 1));
    let after = world.client.connect(&[&v4("far"), "--count", "100", "--concurrency", "4"])?;
    assert_eq!((after.ok, after.failed), (100, 0), "{after:?}");
    let summary = Summary::end(&load)?;
    assert_eq!(summary.failed, 0, "{summary:?}");
    assert!(summary.ok > 100, "{summary:?}");
    Ok(())
}
