//! `--standby`: an agent that is there before the one it follows has ended.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Agent, AgentBuilder, Driver, Lab, LaidOut, Node, PodSpec, Process, SECONDS_10, SECONDS_30, binary,
    eventually,
};

use crate::world::{PORT, World, namespace, service, v4};

/// A second agent of a node, and the socket at which it is asked about itself.
struct Standby {
    node: Node,
    agent: Agent,
    socket: PathBuf,
}

impl Standby {
    fn launch(node: &Node, builder: AgentBuilder) -> Result<Self> {
        let socket = node.state_dir().join("probe/probe.sock");
        let builder = builder.arg("--standby").flag("--probe-socket", &socket.to_string_lossy());
        Ok(Self { node: node.clone(), agent: builder.launch()?, socket })
    }

    /// As a kubelet's exec probe: whether it passes, and what is said.
    fn probe(&self, what: &str) -> Result<(bool, String)> {
        let (meshctl, socket) = (binary("meshctl")?, format!("--socket={}", self.socket.display()));
        let probe = self.node.spawn(&[&meshctl.to_string_lossy(), &socket, "probe", what])?;
        let done = probe.wait(SECONDS_10)?;
        Ok((done.status.success(), done.stdout + &done.stderr))
    }

    fn wait_ready(&self) -> Result<()> {
        eventually(SECONDS_30, "it is ready", || self.probe("ready").ok()?.0.then_some(()))
            .with_context(|| format!("{:?}\n{}", self.probe("ready"), self.agent.log()))
    }

    /// Waits until it is not ready and says this.
    fn wait_says(&self, what: &str) -> Result<()> {
        let says = || {
            let (ready, said) = self.probe("ready").ok()?;
            (!ready && said.contains("could not take over") && said.contains(what)).then_some(())
        };
        eventually(SECONDS_30, &format!("it says {what}"), says)
            .with_context(|| format!("{:?}\n{}", self.probe("ready"), self.agent.log()))
    }
}

/// What a process holds of BPF: programs, maps, links.
fn held(process: &Process) -> Result<usize> {
    let folder = format!("/proc/{}/fd", process.pid());
    let files = fs::read_dir(&folder).with_context(|| folder.clone())?.flatten();
    let targets = files.filter_map(|file| fs::read_link(file.path()).ok());
    Ok(targets.filter(|target| target.to_string_lossy().contains("bpf")).count())
}

/// Who answers at the agent's socket.
fn answering(agent: &Agent) -> Result<u64> {
    agent.status()?["pid"].as_u64().context("a process id")
}

fn wait_log(agent: &Agent, what: &str) -> Result<String> {
    let said = || agent.log().lines().find(|line| line.contains(what)).map(str::to_owned);
    eventually(SECONDS_10, &format!("it says that it is {what}"), said).with_context(|| agent.log())
}

#[test]
fn one_that_stands_by_does_nothing_until_the_one_before_has_ended() -> Result<()> {
    let world = World::start(true)?;
    world.serve("echo")?;
    let connects = || -> Result<()> {
        eventually(SECONDS_10, "connections succeed", || {
            let summary = world.client.connect(&[&v4("far"), "--mode", "echo", "--count", "5"]).ok()?;
            (summary.ok == 5).then_some(())
        })
    };
    connects()?;
    let rules = || world.client.netns().show(&["rule", "show"]);
    let before = rules()?;
    assert!(before.contains("15001"), "{before}");

    let standby = Standby::launch(&world.a, world.a.agent())?;
    let second = &standby.agent;
    let told = wait_log(second, "standing by: another")?;
    let first = u64::from(world.agent_a.process().pid());
    assert!(told.contains(&first.to_string()), "it names the other: {told}");
    connects()?;
    assert_eq!(answering(second)?, first, "the socket is the first one's");
    assert!(held(world.agent_a.process())? > 0);
    standby.wait_ready()?;
    wait_log(second, "ready to take over")?;
    assert!(standby.probe("live")?.0);
    assert_eq!(held(second.process())?, 0, "it holds nothing of the kernel yet");
    assert!(!second.log().contains("taking over"), "{}", second.log());
    assert_eq!(rules()?, before);

    world.agent_a.terminate(SECONDS_30)?;
    assert_eq!(rules()?, before, "the pod stays enrolled while nobody serves it");
    wait_log(second, "taking over")?;
    second.wait_enrolled(&[&world.client, &world.near])?;
    assert_eq!(answering(second)?, u64::from(second.process().pid()));
    standby.wait_ready()?;
    assert_eq!(rules()?, before);
    connects()?;
    let flows = second.wait_flows(5, "they are its own to tell of", |flow| {
        flow["direction"] == "outbound" && flow["security"] == "mutual_tls"
    })?;
    assert!(flows.iter().all(|flow| flow["source"]["pod"] == "default/client"), "{flows:#?}");
    // And those to pods of its node, from another one's.
    let summary = world.far.connect(&[&v4("near"), "--mode", "echo", "--count", "5"])?;
    assert_eq!(summary.ok, 5, "{summary:?}");
    Ok(())
}

/// Nothing of the API server is asked for once more: at large clusters that takes seconds, in which pods would be without an
/// agent.
#[test]
fn one_that_takes_over_knows_already_what_is_to_be_in_force() -> Result<()> {
    let lab = Lab::unique()?;
    let node = lab.node("node-a")?;
    let api = lab.api_server()?;
    let laid =
        |name: &str, number| node.pod(PodSpec::new(name).kubelet(LaidOut::new(number, Driver::Systemd)));
    let (client, server) = (laid("client", 1)?, laid("server", 2)?);
    server.serve(&["--listen", &format!("[::]:{PORT}")])?;
    let service = service("near", "app: server");
    let text = [namespace("default", true), client.manifest(), server.manifest(), service].join("---\n");
    api.apply(&text)?;
    let first = node.agent().kubernetes(&api)?.start()?;
    first.wait_enrolled(&[&client, &server])?;
    let elsewhere = lab.folder().join("state/kept.jsonl");
    let builder = node.agent().kubernetes(&api)?.flag("--source-state", &elsewhere.to_string_lossy());
    let standby = Standby::launch(&node, builder)?;
    standby.wait_ready()?;
    api.stop();
    first.terminate(SECONDS_30)?;
    let second = &standby.agent;
    second.wait_enrolled(&[&client, &server])?;
    eventually(SECONDS_10, "connections succeed", || {
        (client.connect(&[&v4("near"), "--count", "5"]).ok()?.ok == 5).then_some(())
    })?;
    second.wait_for("status", "the API server is away", |status| status["source"]["connected"] == false)?;
    eventually(SECONDS_30, "it keeps what it knows, in its own file", || elsewhere.exists().then_some(()))
}

/// Each of these would roll over all nodes if the agent that serves were asked instead.
#[test]
fn one_that_could_not_serve_is_not_ready_and_says_why() -> Result<()> {
    let lab = Lab::unique()?;
    let node = lab.node("node-a")?;
    let first = node.agent().start()?;
    let mended = lab.folder().join("another-ca");

    let incapable = Standby::launch(&node, node.agent().capabilities(&["NET_ADMIN", "BPF"]))?;
    incapable.wait_says("CAP_SYS_ADMIN")?;
    let (_, said) = incapable.probe("ready")?;
    ensure!(said.contains("CAP_SYS_PTRACE") && !said.contains("CAP_NET_ADMIN"), "{said}");
    ensure!(incapable.probe("live")?.0, "it lives all the same");
    incapable.agent.terminate(SECONDS_10)?;

    let api = lab.api_server()?;
    let follower = node.agent().kubernetes(&api)?;
    api.stop();
    let alone = Standby::launch(&node, follower)?;
    let says = || {
        alone.probe("ready").ok().filter(|(ready, said)| !ready && said.contains("waits for the API server"))
    };
    eventually(SECONDS_30, "it says what it waits for", says).with_context(|| alone.agent.log())?;
    api.restart()?;
    alone.wait_ready()?;
    // What was proved once is enough: with the API server away an agent serves by what it knows.
    api.stop();
    ensure!(alone.probe("ready")?.0);
    alone.agent.terminate(SECONDS_10)?;

    // An authority whose folder is somebody's, and not whole.
    fs::create_dir_all(&mended)?;
    fs::write(mended.join("root-cert.pem"), "nothing of the kind")?;
    let uncertified = Standby::launch(&node, node.agent().flag("--ca-dir", &mended.to_string_lossy()))?;
    uncertified.wait_says("the certificate authority")?;
    ensure!(
        uncertified.agent.log().matches("could not take over").count() == 1,
        "{}",
        uncertified.agent.log()
    );
    fs::remove_file(mended.join("root-cert.pem"))?;
    uncertified.wait_ready()?;
    uncertified.agent.terminate(SECONDS_10)?;

    let root = node.ca_dir().join("root-cert.pem");
    let builder =
        node.agent().flag("--ca-addr", "127.0.0.1:1").flag("--ca-root-cert", &root.to_string_lossy());
    let token = lab.folder().join("token");
    fs::write(&token, "nobody's")?;
    let builder = builder.flag("--ca-token", &token.to_string_lossy());
    Standby::launch(&node, builder)?.wait_says("127.0.0.1:1")?;
    ensure!(first.process().is_running());
    Ok(())
}
