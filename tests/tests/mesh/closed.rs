//! Pods that are not, or not wholly, what the agent has been told: one that cannot be enrolled, and one with several
//! interfaces. What is STRICT stays shut.

use anyhow::{Context, Result, ensure};
use mesh_tests::{Driver, Pod, PodSpec, SECONDS_10, eventually};

use crate::kubelet::{Cluster, state, wait_state};
use crate::policy::wait_mode;
use crate::world::{PORT, peer_authentication};

/// Three connections to each of these addresses, from a pod outside the mesh: whether all succeeded, or none did.
fn reaches(from: &Pod, addresses: &[&str]) -> Result<bool> {
    let mut outcomes = Vec::new();
    for address in addresses {
        let summary = from.connect(&[address, "--count", "3", "--timeout-ms", "2000"])?;
        let kinds = summary.errors.keys().all(|kind| ["refused", "reset"].contains(&kind.as_str()));
        ensure!(kinds, "refused, and at once: {summary:?}");
        ensure!(summary.ok == 0 || summary.failed == 0, "{address}: {summary:?}");
        outcomes.push(summary.ok > 0);
    }
    ensure!(outcomes.windows(2).all(|pair| pair[0] == pair[1]), "{addresses:?}: {outcomes:?}");
    outcomes.first().copied().context("an address")
}

fn until(from: &Pod, addresses: &[&str], reached: bool) -> Result<()> {
    let what = format!("{addresses:?} reached: {reached}");
    eventually(SECONDS_10, &what, || (reaches(from, addresses).ok()? == reached).then_some(()))
}

#[test]
fn a_strict_pod_that_cannot_be_enrolled_is_closed_until_it_can() -> Result<()> {
    let cluster = Cluster::new()?;
    let server = cluster.pod("server", 1, Driver::Systemd)?;
    let client = cluster.pod("client", 2, Driver::Systemd)?;
    let outside = cluster.node.pod(PodSpec::new("outside").label("istio.io/dataplane-mode", "none"))?;
    cluster.apply(&[&server, &client, &outside])?;
    cluster.strict()?;
    server.serve(&["--listen", &format!("[::]:{PORT}")])?;
    // No routes by `lo`: nothing can be laid inside.
    server.netns().ip("link set lo down\n")?;
    let (v4, v6) = (format!("{}:{PORT}", server.v4), format!("[{}]:{PORT}", server.v6));
    let all = [v4.as_str(), v6.as_str()];
    assert!(reaches(&outside, &all)?, "without an agent");
    let agent = cluster.node.agent().start()?;
    let why = wait_state(&agent, &server, "failed")?;
    assert!(why.contains("its strict ports are closed until it can be enrolled: cannot lay"), "{why}");
    assert!(!reaches(&outside, &all)?);
    let probe = cluster.node.connect(&[&v4, "--count", "3"])?;
    assert_eq!((probe.ok, probe.failed), (3, 0), "a probe of the kubelet's: {probe:?}");
    // It goes on so while no agent runs, and with the next one.
    agent.kill()?;
    assert!(!reaches(&outside, &all)?);
    assert_eq!(cluster.node.connect(&[&v4])?.ok, 1);
    let agent = agent.restart()?;
    wait_state(&agent, &server, "failed")?;
    assert!(!reaches(&outside, &all)?);
    // The policy still decides, and whether it is to be in the mesh.
    let mode = |mode: &str| {
        let text = peer_authentication("default", "istio-system", &format!("  mtls: {{mode: {mode}}}\n"));
        cluster.lab.manifests().apply("strict.yaml", &text)
    };
    mode("PERMISSIVE")?;
    until(&outside, &all, true)?;
    mode("STRICT")?;
    until(&outside, &all, false)?;
    let mut opted = server.clone();
    opted.spec = opted.spec.label("istio.io/dataplane-mode", "none");
    cluster.apply(&[&opted, &client, &outside])?;
    until(&outside, &all, true)?;
    assert_eq!(state(&agent, &server)?.0, "");
    cluster.apply(&[&server, &client, &outside])?;
    until(&outside, &all, false)?;
    // And then it can be enrolled.
    server.netns().ip("link set lo up\n")?;
    agent.wait_enrolled(&[&server, &client])?;
    assert!(!reaches(&outside, &all)?);
    assert!(reaches(&client, &all)?, "{}", agent.log());
    Ok(())
}

#[test]
fn an_interface_that_nobody_told_of_is_no_way_round_strict() -> Result<()> {
    let cluster = Cluster::new()?;
    let server = cluster.pod("server", 1, Driver::Systemd)?;
    let outside = cluster.node.pod(PodSpec::new("outside").label("istio.io/dataplane-mode", "none"))?;
    cluster.apply(&[&server, &outside])?;
    cluster.strict()?;
    server.serve(&["--listen", &format!("[::]:{PORT}")])?;
    outside.serve(&["--listen", &format!("[::]:{PORT}")])?;
    // Secondary networks, as Multus lays them: no status names their addresses, and their plugins run after the chain of
    // the first network.
    let add = |number: u8| -> Result<()> {
        let (ends, net) = ([&outside, &server], format!("net{number}"));
        let to = server.netns().name();
        outside.netns().ip(&format!("link add {net} type veth peer name {net} netns {to}\n"))?;
        for (pod, host) in ends.into_iter().zip(1..) {
            pod.netns().ip(&format!(
                "link set {net} up\naddr add 192.168.{number}.{host}/24 dev {net}\naddr add fd77:{number}::{host}/64 dev {net} nodad\n"
            ))?;
        }
        Ok(())
    };
    let at = |number: u8| [format!("192.168.{number}.2:{PORT}"), format!("[fd77:{number}::2]:{PORT}")];
    add(1)?;
    let (first, second) = (at(1), at(2));
    let (first, second) = (first.each_ref().map(String::as_str), second.each_ref().map(String::as_str));
    assert!(reaches(&outside, &first)?, "without an agent");
    let agent = cluster.node.agent().start()?;
    agent.wait_enrolled(&[&server])?;
    wait_mode(&agent, "STRICT")?;
    assert!(!reaches(&outside, &first)?, "it was there before the pod was enrolled");
    let mends = || agent.metric("mesh_pod_mends_total", &["what=\"addresses\""]);
    let before = mends()?;
    add(2)?;
    assert!(!reaches(&outside, &second)?, "it came afterwards, and the agent may not have seen it");
    eventually(SECONDS_10, "the agent has", || (mends().ok()? > before).then_some(()))?;
    assert!(!reaches(&outside, &second)?, "now it has");
    // What the pod itself sends by it goes as it would without a mesh.
    assert!(reaches(&server, &[&format!("192.168.1.1:{PORT}"), &format!("[fd77:2::1]:{PORT}")])?);
    // A policy that lets plaintext in does so there as well.
    let text = peer_authentication("default", "istio-system", "  mtls: {mode: PERMISSIVE}\n");
    cluster.lab.manifests().apply("strict.yaml", &text)?;
    until(&outside, &[first, second].concat(), true)?;
    // With the agent dead it is as it was last.
    cluster.strict()?;
    until(&outside, &[first, second].concat(), false)?;
    agent.kill()?;
    assert!(!reaches(&outside, &[first, second].concat())?);
    Ok(())
}
