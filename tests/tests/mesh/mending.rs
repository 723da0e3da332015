//! What somebody takes out of a pod, or out of the maps, is put back within seconds.

use std::collections::HashMap as Seen;
use std::fs;

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use mesh_common::abi::{InboundMode, PodKey};
use mesh_tests::{Agent, Driver, Pod, SECONDS_10, eventually};

use crate::kubelet::Cluster;
use crate::policy::wait_mode;
use crate::world::PORT;

fn mends(agent: &Agent, what: &str) -> Result<f64> {
    agent.metric("mesh_pod_mends_total", &[&format!("what=\"{what}\"")])
}

fn pinned<K: aya::Pod, V: aya::Pod>(cluster: &Cluster, name: &str) -> Result<HashMap<MapData, K, V>> {
    let folders = fs::read_dir(cluster.node.bpffs())?.flatten().map(|entry| entry.path().join(name));
    let path = folders.into_iter().find(|path| path.exists()).context("a pinned map")?;
    let map = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    Ok(Map::HashMap(map).try_into()?)
}

/// What somebody does to an enrolled pod.
type Damage<'a> = Box<dyn Fn() -> Result<()> + 'a>;

#[test]
fn what_is_taken_out_by_hand_is_put_back() -> Result<()> {
    let cluster = Cluster::new()?;
    let (client, server) =
        (cluster.pod("client", 1, Driver::Systemd)?, cluster.pod("server", 2, Driver::Cgroupfs)?);
    cluster.apply(&[&client, &server])?;
    cluster.strict()?;
    server.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "echo"])?;
    let agent = cluster.node.agent().start()?;
    agent.wait_enrolled(&[&client, &server])?;
    wait_mode(&agent, "STRICT")?;
    let target = format!("{}:{PORT}", server.v4);
    let works = || -> Result<()> {
        eventually(SECONDS_10, "connections work", || {
            let summary = client.connect(&[&target, "--mode", "echo", "--count", "3"]).ok()?;
            (summary.ok == 3).then_some(())
        })
    };
    let load = client.load(&[&target, "--mode", "echo", "--keep"])?;
    works()?;
    let ip = |pod: &Pod, line: &str| pod.netns().ip(line);
    let cookies: Vec<_> = fs::read_dir(cluster.node.bpffs().join("pods"))?.flatten().collect();
    assert_eq!(cookies.len(), 2);
    let damages: Vec<(&str, Damage<'_>)> = vec![
        ("rules", Box::new(|| ip(&client, "rule del pref 20\n"))),
        ("rules", Box::new(|| ip(&server, "rule del pref 10\n"))),
        ("rules", Box::new(|| ip(&client, "rule add pref 0 table local\n"))),
        ("routes", Box::new(|| ip(&client, "route flush table 15001\n"))),
        ("routes", Box::new(|| ip(&server, "route del local ::/0 dev lo table 15006\n"))),
        (
            "sysctl",
            Box::new(|| {
                server.netns().run(|| fs::write("/proc/sys/net/ipv4/tcp_fwmark_accept", "0"))??;
                Ok(())
            }),
        ),
        (
            "link",
            Box::new(|| {
                for cookie in &cookies {
                    fs::remove_file(cookie.path())?;
                }
                Ok(())
            }),
        ),
        (
            "pods",
            Box::new(|| {
                let mut map: HashMap<_, u64, u64> = pinned(&cluster, "PODS")?;
                let keys: Vec<u64> = map.keys().collect::<Result<_, _>>()?;
                keys.iter().try_for_each(|key| map.remove(key))?;
                Ok(())
            }),
        ),
        (
            "modes",
            Box::new(|| {
                let mut map: HashMap<_, PodKey, InboundMode> = pinned(&cluster, "INBOUND_MODES")?;
                let keys: Vec<PodKey> = map.keys().collect::<Result<_, _>>()?;
                keys.iter().try_for_each(|key| map.remove(key))?;
                Ok(())
            }),
        ),
        ("addresses", Box::new(|| ip(&server, "addr add 10.244.1.200/24 dev eth0\n"))),
        ("programs", Box::new(|| Ok(fs::remove_file(cluster.node.bpffs().join("links/mesh_connect4"))?))),
    ];
    let mut counts: Seen<&str, f64> = Seen::new();
    for (what, damage) in damages {
        damage()?;
        let before = counts.get(what).copied().unwrap_or_default();
        let after = eventually(SECONDS_10, &format!("{what} are mended"), || {
            mends(&agent, what).ok().filter(|count| *count > before)
        });
        counts.insert(what, after.with_context(|| agent.log())?);
        works().with_context(|| format!("after {what}: {}", agent.log()))?;
    }
    let status = agent.status()?;
    let pods = status["pods"].as_array().context("pods")?;
    assert!(pods.iter().all(|pod| pod["mended"].is_u64() && pod["mend"].is_string()), "{status:#}");
    assert!(pods.iter().all(|pod| pod["state"] == "enrolled" && pod["detail"].is_null()), "{status:#}");
    // The address that came is served as the others are.
    let added = format!("10.244.1.200:{PORT}");
    assert_eq!(cluster.node.connect(&[&added, "--mode", "echo"])?.ok, 1, "a probe of the node");
    assert!(load.is_running());
    let summary = mesh_tests::peer::Summary::end(&load)?;
    assert!(summary.ok > 100, "{summary:?}");
    Ok(())
}
