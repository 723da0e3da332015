//! Pods laid as a kubelet lays them: found by their cgroups, enrolled, followed to their ends.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_tests::peer::Summary;
use mesh_tests::{Agent, Driver, Lab, LaidOut, Node, Pod, PodSpec, SECONDS_10, SECONDS_30, eventually};

use crate::world::{PORT, namespace, peer_authentication};

/// A node whose pods are a kubelet's.
pub(crate) struct Cluster {
    pub(crate) node: Node,
    pub(crate) lab: Lab,
}

impl Cluster {
    pub(crate) fn new() -> Result<Self> {
        let lab = Lab::unique()?;
        let node = lab.node("node-a")?;
        lab.manifests().apply("namespace.yaml", &namespace("default", true))?;
        Ok(Self { node, lab })
    }

    pub(crate) fn pod(&self, name: &str, number: u32, driver: Driver) -> Result<Pod> {
        self.node.pod(PodSpec::new(name).kubelet(LaidOut::new(number, driver)))
    }

    pub(crate) fn apply(&self, pods: &[&Pod]) -> Result<()> {
        let all: Vec<String> = pods.iter().map(|pod| pod.manifest()).collect();
        self.lab.manifests().apply("pods.yaml", &all.join("---\n"))
    }

    pub(crate) fn strict(&self) -> Result<()> {
        let strict = peer_authentication("default", "istio-system", "  mtls: {mode: STRICT}\n");
        self.lab.manifests().apply("strict.yaml", &strict)
    }
}

/// The state of a pod in the agent's status, and why.
pub(crate) fn state(agent: &Agent, pod: &Pod) -> Result<(String, String)> {
    let status = agent.status()?;
    let all = status["pods"].as_array().into_iter().flatten();
    let found = all.into_iter().find(|known| known["uid"] == pod.uid());
    let text = |key: &str| found.and_then(|pod| pod[key].as_str()).unwrap_or_default().to_owned();
    Ok((text("state"), text("detail")))
}

pub(crate) fn wait_state(agent: &Agent, pod: &Pod, wanted: &str) -> Result<String> {
    let found = eventually(SECONDS_30, &format!("{} is {wanted}", pod.uid()), || {
        let (state, detail) = state(agent, pod).ok()?;
        (state == wanted).then_some(detail)
    });
    found.with_context(|| format!("{:#}\n{}", agent.status().unwrap_or_default(), agent.log()))
}

#[test]
fn an_agent_finds_the_pods_that_were_there_before_it_and_those_that_come() -> Result<()> {
    let cluster = Cluster::new()?;
    let drivers = [Driver::Systemd, Driver::Crio, Driver::Cgroupfs, Driver::Kind];
    let mut pods = Vec::new();
    for (number, driver) in (1..).zip(drivers) {
        pods.push(cluster.pod(&format!("before-{number}"), number, driver)?);
    }
    let host = LaidOut { host_network: true, ..LaidOut::new(90, Driver::Systemd) };
    let host = cluster.node.pod(PodSpec::new("host").kubelet(host))?;
    // Its manifest does not say so: the namespace does.
    let mut liar = host.clone();
    liar.spec = PodSpec::new("liar").kubelet(LaidOut::new(90, Driver::Systemd));
    let all = |pods: &[Pod]| -> Vec<Pod> { pods.to_vec() };
    cluster.apply(&all(&pods).iter().chain([&host]).collect::<Vec<_>>())?;
    let agent = cluster.node.agent().start()?;
    agent.wait_enrolled(&pods.iter().collect::<Vec<_>>())?;
    for (number, driver) in (11..).zip(drivers) {
        pods.push(cluster.pod(&format!("after-{number}"), number, driver)?);
    }
    cluster.apply(&all(&pods).iter().chain([&host]).collect::<Vec<_>>())?;
    agent.wait_enrolled(&pods.iter().collect::<Vec<_>>())?;
    for server in &pods {
        server.serve(&["--listen", &format!("[::]:{PORT}")])?;
    }
    for (client, server) in pods.iter().zip(pods.iter().rev()) {
        let summary = client.connect(&[&format!("{}:{PORT}", server.v4), "--count", "3"])?;
        assert_eq!((summary.ok, summary.failed), (3, 0), "{} to {}", client.uid(), server.uid());
    }
    let flows = agent.wait_flows(3 * pods.len(), "all went through the agent", |flow| {
        flow["direction"] == "outbound" && flow["outcome"] == "closed"
    })?;
    assert_eq!(flows.len(), 3 * pods.len());
    // Whatever its manifest says, what has the node's network is not touched.
    let rules = cluster.node.netns().show(&["rule", "show"])?;
    cluster.apply(&[&liar])?;
    let why = wait_state(&agent, &liar, "waiting")?;
    assert!(why.contains("is not known"), "{why}");
    assert_eq!(cluster.node.netns().show(&["rule", "show"])?, rules);
    // What has no cgroup any more has no namespace either.
    pods[0].remove()?;
    cluster.apply(&[&pods[0], &pods[1]])?;
    wait_state(&agent, &pods[0], "waiting")?;
    wait_state(&agent, &pods[1], "enrolled")?;
    Ok(())
}

#[test]
fn a_pod_goes_on_when_the_process_that_it_was_found_by_ends() -> Result<()> {
    let cluster = Cluster::new()?;
    let (client, server) =
        (cluster.pod("client", 1, Driver::Crio)?, cluster.pod("server", 2, Driver::Systemd)?);
    cluster.apply(&[&client, &server])?;
    server.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "echo"])?;
    let agent = cluster.node.agent().start()?;
    agent.wait_enrolled(&[&client, &server])?;
    let load = client.load(&[&format!("{}:{PORT}", server.v4), "--mode", "echo"])?;
    let before = netns(&agent, &server)?;
    server.pause().context("its sandbox")?.kill()?;
    eventually(SECONDS_10, "it is found at another process", || {
        let now = netns(&agent, &server).ok()?;
        (now != before && now.starts_with("/proc/")).then_some(())
    })?;
    // Flips of the label bring it out of the mesh and back, under load.
    for enrolled in [false, true, false, true] {
        cluster.lab.manifests().apply("namespace.yaml", &namespace("default", enrolled))?;
        let all: Vec<&Pod> = if enrolled { vec![&client, &server] } else { vec![] };
        eventually(SECONDS_30, "the label is followed", || {
            let status = agent.status().ok()?;
            (status["enrolled"].as_u64()? == all.len() as u64).then_some(())
        })?;
        let steady =
            client.connect(&[&format!("{}:{PORT}", server.v4), "--mode", "echo", "--count", "20"])?;
        assert_eq!((steady.ok, steady.failed), (20, 0), "{enrolled}: {steady:?}");
    }
    let summary = Summary::end(&load)?;
    // What is under way at a flip may be cut, and nothing else is.
    let cut = summary.errors.get("reset").copied().unwrap_or(0);
    assert!(summary.failed == cut && cut * 20 <= summary.ok, "{summary:?}");
    // An agent that ends while its pods' first processes have ended takes all of it out of them, another agent's as well.
    agent.kill()?;
    cluster.lab.manifests().apply("namespace.yaml", &namespace("default", false))?;
    let agent = agent.restart()?;
    eventually(SECONDS_10, "both are released", || {
        let rules = |pod: &Pod| pod.netns().show(&["rule", "show"]).ok();
        let is_clean = |rules: String| !rules.contains("15001") && rules.starts_with("0:");
        (is_clean(rules(&client)?) && is_clean(rules(&server)?)).then_some(())
    })
    .with_context(|| agent.log())
}

fn netns(agent: &Agent, pod: &Pod) -> Result<String> {
    let status = agent.status()?;
    let all = status["pods"].as_array().into_iter().flatten();
    let found = all.into_iter().find(|known| known["uid"] == pod.uid()).context("the pod is known")?;
    Ok(found["netns"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn two_pods_that_have_one_address_seconds_apart_are_two() -> Result<()> {
    let cluster = Cluster::new()?;
    let client = cluster.pod("client", 1, Driver::Systemd)?;
    let spec = |name: &str, netns: &str, number| {
        PodSpec::new(name).host(77).netns(netns).kubelet(LaidOut::new(number, Driver::Systemd))
    };
    let first = cluster.node.pod(spec("first", "first", 2))?;
    cluster.apply(&[&client, &first])?;
    let agent = cluster.node.agent().start()?;
    agent.wait_enrolled(&[&client, &first])?;
    let target = format!("{}:{PORT}", first.v4);
    first.serve(&["--listen", &format!("[::]:{PORT}")])?;
    assert_eq!(client.connect(&[&target])?.by_name.get("first"), Some(&1));
    // The kubelet is faster than the API: for a while both are said to be there.
    first.remove()?;
    let second = cluster.node.pod(spec("second", "second", 3))?;
    second.serve(&["--listen", &format!("[::]:{PORT}")])?;
    cluster.apply(&[&client, &first, &second])?;
    wait_state(&agent, &second, "enrolled")?;
    cluster.apply(&[&client, &second])?;
    agent.wait_enrolled(&[&client, &second])?;
    eventually(SECONDS_10, "the second answers", || {
        (client.connect(&[&target]).ok()?.by_name.get("second") == Some(&1)).then_some(())
    })?;
    // The same name, another pod.
    second.remove()?;
    let again = cluster.node.pod(spec("second", "third", 4))?;
    again.serve(&["--listen", &format!("[::]:{PORT}")])?;
    cluster.apply(&[&client, &again])?;
    agent.wait_enrolled(&[&client, &again])?;
    eventually(SECONDS_10, "its successor answers", || {
        (client.connect(&[&target]).ok()?.by_name.get("second") == Some(&1)).then_some(())
    })?;
    // One with the same name whose old namespace was deleted under the agent, sandbox and all, and that never comes back.
    again.remove()?;
    wait_state(&agent, &again, "waiting")?;
    Ok(())
}

#[test]
fn probes_of_a_kubelet_reach_a_strict_pod() -> Result<()> {
    let cluster = Cluster::new()?;
    let pod = cluster.pod("strict", 1, Driver::Cgroupfs)?;
    cluster.apply(&[&pod])?;
    cluster.strict()?;
    let agent = cluster.node.agent().start()?;
    agent.wait_enrolled(&[&pod])?;
    crate::policy::wait_mode(&agent, "STRICT")?;
    pod.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "http"])?;
    let (v4, v6) = (format!("{}:{PORT}", pod.v4), format!("[{}]:{PORT}", pod.v6));
    for target in [&v4, &v6] {
        // httpGet, of which tcpSocket is the first half.
        let summary = cluster.node.connect(&[target, "--mode", "http", "--count", "3"])?;
        assert_eq!((summary.ok, summary.failed), (3, 0), "{target}: {summary:?}");
    }
    // A process that was put into the pod's cgroup and namespaces, as an exec probe is.
    let targets = [format!("127.0.0.1:{PORT}"), format!("[::1]:{PORT}"), v4, v6];
    for target in &targets {
        let summary = pod.connect(&[target, "--mode", "http", "--count", "3"])?;
        assert_eq!((summary.ok, summary.failed), (3, 0), "exec {target}: {summary:?}");
    }
    Ok(())
}

#[test]
fn a_node_that_has_booted_has_its_pods_in_the_mesh_again() -> Result<()> {
    let cluster = Cluster::new()?;
    let first = cluster.pod("web", 1, Driver::Systemd)?;
    cluster.apply(&[&first])?;
    let agent = cluster.node.agent().start()?;
    agent.wait_enrolled(&[&first])?;
    agent.kill()?;
    // What is in memory is gone: pins, state, namespaces, cgroups.
    first.remove()?;
    fs::remove_dir_all(cluster.node.bpffs())?;
    fs::remove_dir_all(cluster.node.state_dir())?;
    let spec = PodSpec::new("web").netns("web-2").kubelet(LaidOut::new(1, Driver::Systemd));
    let again = cluster.node.pod(spec)?;
    cluster.apply(&[&again])?;
    let agent = agent.restart()?;
    agent.wait_enrolled(&[&again])?;
    again.serve(&["--listen", &format!("[::]:{PORT}")])?;
    assert_eq!(again.connect(&[&format!("{}:{PORT}", again.v4), "--count", "3"])?.ok, 3);
    Ok(())
}

#[test]
fn two_hundred_and_fifty_pods_are_enrolled_in_five_seconds() -> Result<()> {
    const PODS: u32 = 250;
    let cluster = Cluster::new()?;
    cluster.lab.manifests().apply("namespace.yaml", &namespace("default", false))?;
    let mut pods = Vec::new();
    for number in 0..PODS {
        pods.push(cluster.pod(&format!("pod-{number}"), number, Driver::Systemd)?);
    }
    cluster.apply(&pods.iter().collect::<Vec<_>>())?;
    let agent = cluster.node.agent().start()?;
    agent.wait_for("status", "the pods are known", |status| status["workloads"] == PODS)?;
    let began = Instant::now();
    cluster.lab.manifests().apply("namespace.yaml", &namespace("default", true))?;
    agent.wait_for("status", "all are enrolled", |status| status["enrolled"] == PODS)?;
    let took = began.elapsed();
    eprintln!("{PODS} pods are enrolled {} ms after their label", took.as_millis());
    let used = |pid| ticks(pid).unwrap_or(0);
    let (before, from) = (used(agent.process().pid()), Instant::now());
    // A rate needs a span of time; nothing is asserted of it.
    eventually(SECONDS_30, "a while", || (from.elapsed() > Duration::from_secs(6)).then_some(()))?;
    let spent = Duration::from_millis(10 * (used(agent.process().pid()) - before));
    eprintln!("and cost {spent:?} of CPU in {:?} from then on", from.elapsed());
    assert!(took < Duration::from_secs(5), "{took:?}");
    for what in
        ["link", "listeners", "modes", "pods", "destinations", "rules", "routes", "sysctl", "programs"]
    {
        let mends = agent.metric("mesh_pod_mends_total", &[&format!("what=\"{what}\"")])?;
        assert!(mends < 0.5, "{what}: {}", agent.log());
    }
    Ok(())
}

/// Hundredths of a second of CPU that a process has used.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("a stat line")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}
