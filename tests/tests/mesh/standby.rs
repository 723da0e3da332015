//! `--standby`: an agent that is there before the one it follows has ended.

use std::fs;

use anyhow::{Context, Result};
use mesh_tests::{Agent, Process, SECONDS_10, SECONDS_30, eventually};

use crate::world::{World, v4};

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

    let second = world.a.agent().arg("--standby").launch()?;
    let told = wait_log(&second, "standing by")?;
    let first = u64::from(world.agent_a.process().pid());
    assert!(told.contains(&first.to_string()), "it names the other: {told}");
    connects()?;
    assert_eq!(answering(&second)?, first, "the socket is the first one's");
    assert!(held(world.agent_a.process())? > 0);
    assert_eq!(held(second.process())?, 0, "it has nothing to do with the kernel yet");
    assert!(!second.log().contains("taking over"), "{}", second.log());
    assert_eq!(rules()?, before);

    world.agent_a.terminate(SECONDS_30)?;
    assert_eq!(rules()?, before, "the pod stays enrolled while nobody serves it");
    wait_log(&second, "taking over")?;
    second.wait_enrolled(&[&world.client, &world.near])?;
    assert_eq!(answering(&second)?, u64::from(second.process().pid()));
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
