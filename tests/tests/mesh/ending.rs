//! Sockets whose endpoint goes: ended where they came through a service, and nothing else touched.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use mesh_tests::{Agent, Pod, PodSpec, Process, SECONDS_10, SECONDS_30, eventually};
use serde_json::Value;

use crate::held::{assert_alive, holder, last_line};
use crate::world::{PORT, UDP_PORT, World};

/// How an endpoint is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    Ready,
    Unready,
    Terminating,
}

/// A dual-stack service without a selector, at 10.96.0.`number`, and slices that list these pods for it.
fn held(name: &str, number: u8, pods: &[(&Pod, Listed)]) -> String {
    let (v4, v6) = addresses(number);
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  clusterIP: {v4}\n  \
         clusterIPs: [{v4}, \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: PreferDualStack\n  ports:\n  \
         - {{name: tcp, port: {PORT}, protocol: TCP}}\n  - {{name: dns, port: {UDP_PORT}, protocol: UDP}}\n"
    );
    for (family, of) in [("IPv4", 4), ("IPv6", 6)] {
        let endpoints: Vec<String> = pods
            .iter()
            .map(|(pod, listed)| {
                let address = if of == 4 { IpAddr::from(pod.v4) } else { pod.v6.into() };
                let (ready, serving) = (*listed == Listed::Ready, *listed != Listed::Unready);
                let terminating = *listed == Listed::Terminating;
                format!(
                    "- addresses: [\"{address}\"]\n  conditions: {{ready: {ready}, serving: {serving}, \
                     terminating: {terminating}}}\n"
                )
            })
            .collect();
        let endpoints =
            if endpoints.is_empty() { " []\n".to_owned() } else { format!("\n{}", endpoints.concat()) };
        // A string takes what it is given.
        let _ = write!(
            yaml,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{of}\n  \
             namespace: default\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\nports:\n\
             - {{name: tcp, port: {PORT}, protocol: TCP}}\n- {{name: dns, port: {UDP_PORT}, protocol: UDP}}\n\
             endpoints:{endpoints}"
        );
    }
    yaml
}

fn addresses(number: u8) -> (IpAddr, IpAddr) {
    (IpAddr::from([10, 96, 0, number]), IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number)]))
}

/// IPv4, IPv6, and IPv4 from an IPv6 socket.
#[derive(Clone, Copy, Debug)]
enum Form {
    V4,
    V6,
    Mapped,
}

const FORMS: [Form; 3] = [Form::V4, Form::V6, Form::Mapped];

impl Form {
    fn of(self, (v4, v6): (IpAddr, IpAddr), port: u16) -> Vec<String> {
        let ip = if matches!(self, Self::V6) { v6 } else { v4 };
        let mut args = vec![SocketAddr::new(ip, port).to_string()];
        args.extend(matches!(self, Self::Mapped).then(|| "--mapped".to_owned()));
        args
    }
}

/// Waits until all of a holder's connections have ended, and each was told at once that it was aborted.
fn wait_aborted(process: &Process, count: u64) -> Result<()> {
    eventually(SECONDS_30, "the connections end", || {
        (last_line(process)["total"].as_u64() >= Some(count)).then_some(())
    })
    .with_context(|| process.stdout())?;
    let ended = &last_line(process)["ended"];
    assert_eq!(ended["aborted"], count, "{ended}");
    Ok(())
}

fn ended(agent: &Agent, labels: &[&str]) -> Result<f64> {
    agent.metric("mesh_sockets_ended_total", labels)
}

fn serve(world: &World) -> Result<Vec<Process>> {
    let mut servers = Vec::new();
    for pod in [&world.far, &world.twin] {
        let listen = format!("[::]:{PORT}");
        servers.push(pod.serve(&["--listen", &listen, "--mode", "echo", "--report"])?);
        servers.push(pod.serve(&["--udp", "--listen", &format!("[::]:{UDP_PORT}")])?);
    }
    Ok(servers)
}

/// Waits until the kernel sends to these servers and to no other.
fn wait_serves(world: &World, number: u8, names: &[&str]) -> Result<()> {
    let target = SocketAddr::new(addresses(number).0, UDP_PORT).to_string();
    eventually(SECONDS_30, &format!("service {number} is served by {names:?}"), || {
        let summary = world.client.udp(&[&target, "--count", "20", "--fresh"]).ok()?;
        (summary.failed == 0 && summary.by_name.keys().eq(names)).then_some(())
    })
}

#[test]
fn connections_to_an_endpoint_that_went_are_ended_wherever_they_are() -> Result<()> {
    let world = World::start(false)?;
    let servers = serve(&world)?;
    let manifests = world.lab.manifests();
    let apply = |pods: &[(&Pod, Listed)]| manifests.apply("held.yaml", &held("held", 50, pods));
    manifests.apply("other.yaml", &held("other", 51, &[(&world.far, Listed::Ready)]))?;
    // Of this one no manifest knows, and its namespace has no name any more: only its processes lead there.
    let stranger = world.a.pod(PodSpec::new("stranger"))?;
    let mut before = 0.0;
    for (round, form) in (0_u8..).zip(FORMS) {
        apply(&[(&world.far, Listed::Ready)])?;
        wait_serves(&world, 50, &["far"])?;
        wait_serves(&world, 51, &["far"])?;
        let to = |number| form.of(addresses(number), PORT);
        let direct = form.of((world.far.v4.into(), world.far.v6.into()), PORT);
        let count = &["--count", "5"][..];
        let doomed = [
            holder(|argv| world.client.spawn(argv), "tcp", &to(50), count)?,
            holder(|argv| world.a.spawn(argv), "tcp", &to(50), count)?,
            holder(|argv| stranger.spawn(argv), "tcp", &to(50), count)?,
        ];
        if matches!(form, Form::Mapped) {
            let name = stranger.netns().name();
            assert!(std::process::Command::new("ip").args(["netns", "del", name]).status()?.success());
        }
        let spared = [
            ("direct", holder(|argv| world.client.spawn(argv), "tcp", &direct, count)?),
            ("direct from the node", holder(|argv| world.a.spawn(argv), "tcp", &direct, count)?),
            ("another service", holder(|argv| world.client.spawn(argv), "tcp", &to(51), count)?),
        ];
        // A second endpoint, and the first one away.
        apply(&[(&world.far, Listed::Ready), (&world.twin, Listed::Ready)])?;
        apply(&[(&world.twin, Listed::Ready)])?;
        for process in &doomed {
            wait_aborted(process, 5).with_context(|| format!("{form:?}\n{}", world.agent_a.log()))?;
        }
        let counted = || {
            let now = ended(&world.agent_a, &["protocol=\"tcp\"", "reason=\"endpoint_gone\""]).ok()?;
            (now >= before + 15.0).then_some(now)
        };
        before = eventually(SECONDS_10, "all are counted", counted)?;
        assert!(before < 15.0 * f64::from(round + 1) + 1.0, "{form:?}: others were ended as well: {before}");
        for (what, process) in &spared {
            assert_alive(process, 5, &format!("{form:?} {what}"))?;
        }
    }
    // The servers were told.
    eventually(SECONDS_10, "the servers see resets", || {
        (servers[0].stdout().matches("\"end\":\"reset\"").count() >= 45).then_some(())
    })
    .with_context(|| servers[0].stdout())?;
    // And the records say who did it.
    let withdrawn = world.agent_a.wait_flows(45, "the flows are withdrawn", |flow| {
        flow["reporter"] == "kernel" && flow["outcome"] == "withdrawn"
    })?;
    assert_eq!(withdrawn.len(), 45);
    Ok(())
}

#[test]
fn connections_to_an_endpoint_that_is_still_listed_are_left_alone() -> Result<()> {
    let world = World::start(false)?;
    let _servers = serve(&world)?;
    let manifests = world.lab.manifests();
    let apply = |name, number, pods: &[(&Pod, Listed)]| {
        manifests.apply(&format!("{name}.yaml"), &held(name, number, pods))
    };
    apply("held", 50, &[(&world.far, Listed::Ready)])?;
    apply("other", 51, &[(&world.far, Listed::Ready)])?;
    wait_serves(&world, 50, &["far"])?;
    wait_serves(&world, 51, &["far"])?;
    let hold = |number, form: Form| {
        holder(|argv| world.client.spawn(argv), "tcp", &form.of(addresses(number), PORT), &[])
    };
    let spared: Vec<Process> = FORMS.into_iter().map(|form| hold(50, form)).collect::<Result<_>>()?;
    // A connection that is ended in the same breath proves that the sockets were looked at.
    for (round, listed) in (0_u8..).zip([Listed::Terminating, Listed::Unready]) {
        apply("other", 51, &[(&world.far, Listed::Ready)])?;
        wait_serves(&world, 51, &["far"])?;
        let witness = hold(51, Form::V4)?;
        apply("held", 50, &[(&world.far, listed), (&world.twin, Listed::Ready)])?;
        wait_serves(&world, 50, &["twin"])?;
        apply("other", 51, &[(&world.twin, Listed::Ready)])?;
        wait_aborted(&witness, 1).with_context(|| world.agent_a.log())?;
        let counted = || ended(&world.agent_a, &[]).ok().filter(|now| *now >= f64::from(round + 1));
        let count = eventually(SECONDS_10, "it is counted", counted)?;
        assert!(count < f64::from(round + 2), "{listed:?}: others were ended as well: {count}");
    }
    for process in &spared {
        assert_alive(process, 1, "still listed")?;
    }
    Ok(())
}

#[test]
fn datagram_sockets_move_on_to_an_endpoint_that_serves() -> Result<()> {
    let world = World::start(false)?;
    let _servers = serve(&world)?;
    let manifests = world.lab.manifests();
    let apply = |pods: &[(&Pod, Listed)]| manifests.apply("held.yaml", &held("held", 50, pods));
    for listed in [None, Some(Listed::Unready), Some(Listed::Terminating)] {
        for form in FORMS {
            apply(&[(&world.far, Listed::Ready)])?;
            wait_serves(&world, 50, &["far"])?;
            let arguments = form.of(addresses(50), UDP_PORT);
            let ask = |more: &[&str]| holder(|argv| world.client.spawn(argv), "udp", &arguments, more);
            let (connected, unconnected) = (ask(&[])?, ask(&["--unconnected"])?);
            let mut pods = vec![(&world.twin, Listed::Ready)];
            pods.extend(listed.map(|listed| (&world.far, listed)));
            apply(&pods)?;
            for process in [&connected, &unconnected] {
                let line = process
                    .wait_line("that it moved on", |line| line.contains("twin"))
                    .with_context(|| format!("{form:?} {listed:?}\n{}", world.agent_a.log()))?;
                let failures = &serde_json::from_str::<Value>(&line)?["failures"];
                let count = |name: &str| failures[name].as_u64().unwrap_or(0);
                let all: u64 =
                    failures.as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
                if std::ptr::eq(process, &raw const connected) {
                    // A send that comes right then finds the socket without a peer before it finds the error.
                    assert_eq!(
                        (count("aborted"), all),
                        (1, 1 + count("no_peer")),
                        "{form:?} {listed:?} {line}"
                    );
                } else {
                    assert_eq!(all, 0, "{form:?} {listed:?} {line}");
                }
                process.close_stdin();
            }
        }
    }
    Ok(())
}

#[test]
fn what_went_while_the_agent_was_away_is_mended() -> Result<()> {
    let world = World::start(false)?;
    let _servers = serve(&world)?;
    let manifests = world.lab.manifests();
    let apply = |pods: &[(&Pod, Listed)]| manifests.apply("held.yaml", &held("held", 50, pods));
    apply(&[(&world.far, Listed::Ready)])?;
    wait_serves(&world, 50, &["far"])?;
    let doomed: Vec<Process> = FORMS
        .into_iter()
        .map(|form| holder(|argv| world.client.spawn(argv), "tcp", &form.of(addresses(50), PORT), &[]))
        .collect::<Result<_>>()?;
    world.agent_a.kill()?;
    apply(&[(&world.twin, Listed::Ready)])?;
    let agent = world.agent_a.restart()?;
    for process in &doomed {
        wait_aborted(process, 1).with_context(|| agent.log())?;
    }
    Ok(())
}

#[test]
fn five_thousand_connections_are_ended_in_one_pass() -> Result<()> {
    const COUNT: u32 = 5000;
    let world = World::start(false)?;
    let _servers = serve(&world)?;
    let manifests = world.lab.manifests();
    let apply = |pods: &[(&Pod, Listed)]| manifests.apply("held.yaml", &held("held", 50, pods));
    apply(&[(&world.far, Listed::Ready)])?;
    wait_serves(&world, 50, &["far"])?;
    let count = COUNT.to_string();
    let target = Form::V4.of(addresses(50), PORT);
    let doomed = holder(|argv| world.client.spawn(argv), "tcp", &target, &["--count", &count])?;
    apply(&[(&world.twin, Listed::Ready)])?;
    wait_aborted(&doomed, COUNT.into()).with_context(|| world.agent_a.log())?;
    eventually(SECONDS_10, "they are counted", || {
        (ended(&world.agent_a, &["protocol=\"tcp\""]).ok()? >= f64::from(COUNT)).then_some(())
    })?;
    let log = world.agent_a.log();
    assert!(world.agent_a.metric("mesh_sockets_not_ended_total", &[])? < 1.0, "{log}");
    Ok(())
}

#[test]
fn an_enrolled_clients_connections_end_with_their_endpoint() -> Result<()> {
    let world = World::start(true)?;
    let _servers = serve(&world)?;
    for pod in [&world.near, &world.outside] {
        pod.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "echo"])?;
    }
    let manifests = world.lab.manifests();
    // To another node, to a pod of this one, and past the agent.
    let pods = [&world.far, &world.near, &world.outside];
    for (pod, number) in pods.into_iter().zip(50..) {
        let name = format!("to-{number}");
        manifests.apply(&format!("{name}.yaml"), &held(&name, number, &[(pod, Listed::Ready)]))?;
        let connects = || {
            let target = SocketAddr::new(addresses(number).0, PORT).to_string();
            let summary = world.client.connect(&[&target, "--mode", "echo"]).ok()?;
            (summary.ok == 1).then_some(())
        };
        eventually(SECONDS_30, "the service is served", connects)?;
    }
    for (index, number) in (50..53).enumerate() {
        let hold =
            || holder(|argv| world.client.spawn(argv), "tcp", &Form::V4.of(addresses(number), PORT), &[]);
        let (doomed, other) = (
            hold()?,
            holder(
                |argv| world.client.spawn(argv),
                "tcp",
                &Form::V4.of(addresses(50 + (number - 49) % 3), PORT),
                &[],
            )?,
        );
        let name = format!("to-{number}");
        manifests.apply(&format!("{name}.yaml"), &held(&name, number, &[(&world.twin, Listed::Ready)]))?;
        eventually(SECONDS_30, "the connection ends", || (last_line(&doomed)["total"] == 1).then_some(()))
            .with_context(|| format!("{}\n{}", doomed.stdout(), world.agent_a.log()))?;
        let expected = if index == 2 { "aborted" } else { "reset" };
        assert_eq!(last_line(&doomed)["ended"][expected], 1, "{name}: {}", doomed.stdout());
        world.agent_a.wait_flows(index + 1, "the flow is withdrawn", |flow| {
            flow["outcome"] == "withdrawn" && flow["reporter"] != "destination"
        })?;
        assert_alive(&other, 1, &name)?;
        manifests.apply(&format!("{name}.yaml"), &held(&name, number, &[(pods[index], Listed::Ready)]))?;
    }
    Ok(())
}
