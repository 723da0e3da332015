//! What the agent tells: flow records, metrics, `meshctl`.

use std::process::Command;

use anyhow::{Context, Result};
use mesh_tests::{Agent, SECONDS_10, binary};
use serde_json::Value;

use crate::world::{World, v4};

fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

#[test]
fn every_flow_is_recorded_once_at_each_end_with_both_identities() -> Result<()> {
    let world = World::start(true)?;
    world.serve("echo")?;
    let summary =
        world.client.connect(&[&v4("far"), "--mode", "echo", "--bytes", "12345", "--count", "10"])?;
    assert_eq!(summary.ok, 10, "{summary:?}");
    for (agent, reporter, direction) in
        [(&world.agent_a, "source", "outbound"), (&world.agent_b, "destination", "inbound")]
    {
        let flows = agent.wait_flows(10, "a record a connection", |flow| flow["reporter"] == reporter)?;
        assert_eq!(flows.len(), 10, "{flows:#?}");
        for flow in &flows {
            assert_eq!(flow["direction"], direction, "{flow:#}");
            assert_eq!(flow["source"]["identity"], identity("client"), "{flow:#}");
            assert_eq!(flow["destination"]["identity"], identity("far"), "{flow:#}");
            assert_eq!(
                (&flow["bytes_sent"], &flow["bytes_received"]),
                (&12345.into(), &12345.into()),
                "{flow:#}"
            );
            assert_eq!(
                (&flow["security"], &flow["outcome"]),
                (&"mutual_tls".into(), &"closed".into()),
                "{flow:#}"
            );
            assert_eq!(flow["source"]["pod"], "default/client", "{flow:#}");
        }
    }
    Ok(())
}

#[test]
fn direct_flows_are_recorded_by_the_kernel() -> Result<()> {
    let world = World::start(false)?;
    world.serve("echo")?;
    let summary =
        world.client.connect(&[&v4("far"), "--mode", "echo", "--bytes", "54321", "--count", "10"])?;
    assert_eq!(summary.ok, 10, "{summary:?}");
    let flows = world.agent_a.wait_flows(10, "a record a connection", |flow| flow["reporter"] == "kernel")?;
    assert_eq!(flows.len(), 10, "{flows:#?}");
    for flow in &flows {
        assert_eq!(
            (&flow["bytes_sent"], &flow["bytes_received"]),
            (&54321.into(), &54321.into()),
            "{flow:#}"
        );
        assert_eq!((&flow["security"], &flow["direction"]), (&"none".into(), &"direct".into()), "{flow:#}");
        assert_eq!(flow["outcome"], "closed", "{flow:#}");
        assert_eq!(flow["original_destination"], v4("far"), "{flow:#}");
        assert_eq!(flow["service"]["name"], "far", "{flow:#}");
        assert!(flow["source"]["identity"].is_null(), "plaintext proves nobody: {flow:#}");
    }
    Ok(())
}

#[test]
fn metrics_have_istios_names() -> Result<()> {
    let world = World::start(true)?;
    world.serve("echo")?;
    assert_eq!(
        world.client.connect(&[&v4("far"), "--mode", "echo", "--bytes", "1000", "--count", "7"])?.ok,
        7
    );
    for (agent, reporter) in [(&world.agent_a, "source"), (&world.agent_b, "destination")] {
        let labels = [
            format!("reporter=\"{reporter}\""),
            "source_workload=\"client\"".to_owned(),
            "destination_workload=\"far\"".to_owned(),
            format!("source_principal=\"{}\"", identity("client")),
            format!("destination_principal=\"{}\"", identity("far")),
            "connection_security_policy=\"mutual_tls\"".to_owned(),
        ];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        for (name, value) in [
            ("istio_tcp_connections_opened_total", 7.0),
            ("istio_tcp_connections_closed_total", 7.0),
            ("istio_tcp_sent_bytes_total", 7000.0),
            ("istio_tcp_received_bytes_total", 7000.0),
        ] {
            let reached = || agent.metric(name, &labels).ok().filter(|held| (held - value).abs() < 0.5);
            mesh_tests::eventually(SECONDS_10, name, reached).with_context(|| {
                let text = agent.metrics().unwrap_or_default();
                text.lines().filter(|line| line.starts_with("istio_")).collect::<Vec<_>>().join("\n")
            })?;
        }
    }
    for name in ["mesh_enrolled_pods", "mesh_config_generation", "mesh_certificate_expiry_timestamp_seconds"]
    {
        assert!(world.agent_a.metric(name, &[])? > 0.0, "{name}");
    }
    assert!(world.agent_a.metric("mesh_kernel_plane_attached", &[])? > 5.0, "programs attached");
    Ok(())
}

fn meshctl(agent: &Agent, args: &[&str]) -> Result<(bool, Vec<Value>)> {
    let output = Command::new(binary("meshctl")?)
        .arg("--socket")
        .arg(agent.socket())
        .args(args)
        .args(["-o", "json"])
        .output()?;
    let documents = serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter::<Value>()
        .collect::<Result<Vec<_>, _>>();
    let said = || {
        format!(
            "{args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    };
    Ok((output.status.success(), documents.with_context(said)?))
}

#[test]
fn meshctl_shows_a_healthy_node() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    assert_eq!(world.client.connect(&[&v4("far"), "--count", "3"])?.ok, 3);
    world.agent_a.wait_flows(3, "three flows", |flow| flow["direction"] == "outbound")?;
    let agent = &world.agent_a;
    for (args, has) in [
        (&["status"][..], "default/client"),
        (&["check"], "mesh_connect4"),
        (&["services"], "both"),
        (&["services", "default/far"], "far"),
        (&["workloads"], "spiffe://cluster.local/ns/default/sa/far"),
        (&["flows"], "outbound"),
        (&["certs"], "spiffe://cluster.local/ns/default/sa/near"),
    ] {
        let (passed, documents) = meshctl(agent, args)?;
        let text = serde_json::to_string_pretty(&documents)?;
        assert!(passed, "{args:?} failed: {text}");
        assert!(text.contains(has), "{args:?} says nothing of {has}: {text}");
    }
    let status = agent.status()?;
    assert_eq!(status["problems"].as_array().map(Vec::len), Some(0), "{status:#}");
    for pod in status["pods"].as_array().into_iter().flatten() {
        assert_eq!(pod["canary"]["result"], "ok", "{pod:#}");
    }
    // And says so when something was missing: here one of the pod's rules.
    world.client.netns().ip("rule del pref 20\n")?;
    agent.wait_for("status", "the pod's last mend is told", |status| {
        let mut pods = status["pods"].as_array().into_iter().flatten();
        pods.any(|pod| pod["mend"].as_str().is_some_and(|what| what.contains("rule")))
    })?;
    let (passed, documents) = meshctl(agent, &["check"])?;
    assert!(passed, "{documents:#?}");
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_state_is_refused() -> Result<()> {
    let world = World::start(false)?;
    let second = world.a.agent().spawn()?.wait(SECONDS_10)?;
    assert!(!second.status.success());
    assert!(second.stderr.contains("another agent (pid"), "{}", second.stderr);
    assert!(world.agent_a.status().is_ok());
    Ok(())
}
