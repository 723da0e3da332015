//! What must hold against those who try: STRICT on every address, silence at the handshake, a pod that takes another's place.

use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::{Pod, SECONDS_10, eventually};

use crate::policy::wait_mode;
use crate::world::{PORT, World, peer_authentication, v4};

const STRICT: &str = "  mtls: {mode: STRICT}\n";

fn strict_world() -> Result<World> {
    let world = World::start(true)?;
    world.serve("http")?;
    let policy = peer_authentication("default", "istio-system", STRICT);
    world.lab.manifests().apply("strict.yaml", &policy)?;
    wait_mode(&world.agent_a, "STRICT")?;
    Ok(world)
}

/// Whether somebody in the pod's namespace gets an answer in plaintext.
fn is_answered(from: &Pod, to: SocketAddr) -> Result<bool> {
    from.netns().run(move || {
        use std::io::{Read, Write};
        let exchange = || -> std::io::Result<usize> {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
            stream.read(&mut [0; 16])
        };
        matches!(exchange(), Ok(1..))
    })
}

#[test]
fn strict_holds_for_every_address_of_a_pod() -> Result<()> {
    let world = strict_world()?;
    let shown = world.near.netns().show(&["-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"])?;
    let link_local = shown.split_whitespace().skip_while(|word| *word != "inet6").nth(1);
    let link_local =
        link_local.and_then(|address| address.split('/').next()).context("no link-local address")?;
    let device = world.outside.netns().show(&["-o", "link", "show", "dev", "eth0"])?;
    let scope = device.split(':').next().context("no device")?.trim().parse()?;
    let link_local = SocketAddr::V6(SocketAddrV6::new(link_local.parse()?, PORT, 0, scope));
    world.near.netns().ip("addr add 10.244.1.200/24 dev eth0\n")?;
    let second = SocketAddr::new(IpAddr::from([10, 244, 1, 200]), PORT);
    for address in [SocketAddr::new(world.near.v4.into(), PORT), link_local, second] {
        assert!(!is_answered(&world.outside, address)?, "{address} answers in plaintext");
    }
    assert_eq!(world.client.connect(&[&v4("near"), "--count", "5"])?.ok, 5);
    Ok(())
}

#[test]
fn a_pod_that_takes_a_leaving_pods_namespace_is_enrolled_for_good() -> Result<()> {
    let world = strict_world()?;
    let pods = [&world.client, &world.near, &world.far, &world.twin, &world.outside].map(Pod::manifest);
    let renamed = pods.join("---\n").replace("  name: near\n", "  name: near2\n");
    world.lab.manifests().apply("pods.yaml", &renamed)?;
    let state = |status: &serde_json::Value, uid: &str| {
        let pods = status["pods"].as_array()?;
        pods.iter().find(|pod| pod["uid"] == uid).map(|pod| pod["state"].clone())
    };
    eventually(SECONDS_10, "near2 is enrolled and near gone", || {
        let status = world.agent_a.status().ok()?;
        (state(&status, "default/near2")? == "enrolled" && state(&status, "default/near").is_none())
            .then_some(())
    })?;
    assert!(
        !is_answered(&world.outside, SocketAddr::new(world.near.v4.into(), PORT))?,
        "plaintext is answered"
    );
    let check = world.agent_a.json("/v1/check")?;
    let failed = check["items"].as_array().into_iter().flatten().find(|item| item["ok"] == false);
    assert!(failed.is_none(), "{failed:?}");
    assert_eq!(world.near.connect(&[&v4("far"), "--count", "5"])?.ok, 5);
    Ok(())
}

#[test]
fn who_says_nothing_at_the_handshake_takes_nothing_from_others() -> Result<()> {
    let world = strict_world()?;
    let hbone = SocketAddr::new(world.far.v4.into(), 15008);
    let silent = world.outside.netns().run(move || {
        let open = |_| TcpStream::connect_timeout(&hbone, Duration::from_secs(2)).ok();
        (0..300).filter_map(open).collect::<Vec<_>>()
    })?;
    assert!(silent.len() > 64, "{} connections", silent.len());
    assert_eq!(world.client.connect(&[&v4("far"), "--count", "20"])?.ok, 20);
    drop(silent);
    Ok(())
}

#[test]
fn one_connection_is_one_record_however_many_endpoints_failed() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    world.agent_b.kill()?;
    assert_eq!(world.client.connect(&[&v4("both"), "--count", "1"])?.ok, 0);
    let flows = world.agent_a.wait_flows(1, "the failed connection", |flow| {
        flow["reporter"] == "source" && flow["service"]["name"] == "both"
    })?;
    assert_eq!(flows.len(), 1, "{flows:?}");
    assert_eq!(flows[0]["security"], "unknown", "{flows:?}");
    assert!(flows[0]["destination"]["identity"].is_null(), "{flows:?}");
    Ok(())
}
