//! The authority's folder while it is in use: its root replaced, its files spoilt, itself gone; and certificates of
//! accounts that leave.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::peer::Summary;
use mesh_tests::{Agent, Pod, Process, SECONDS_10, SECONDS_30, binary, eventually};
use serde_json::Value;

use crate::world::{World, v4, v6};

/// Life of a certificate: short, so that a rotation fits a test.
const LIFE: &str = "8s";

/// `meshd rotate-root STEP`: whether it was done, and what it said.
fn rotate(ca_dir: &Path, args: &[&str]) -> Result<(bool, String)> {
    let mut command = Command::new(binary("meshd")?);
    let output =
        command.arg("rotate-root").args(["--cert-ttl", LIFE, "--ca-dir"]).arg(ca_dir).args(args).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// Runs a step that must wait for its time as soon as it may.
fn rotate_in_time(ca_dir: &Path, step: &str) -> Result<()> {
    let (done, said) = rotate(ca_dir, &[step])?;
    ensure!(!done && said.contains("is safe in"), "{step} was not too early: {said}");
    eventually(SECONDS_30, step, || rotate(ca_dir, &[step]).ok().filter(|(done, _)| *done)).map(drop)
}

fn meshctl_certs(agent: &Agent) -> Result<String> {
    let output =
        Command::new(binary("meshctl")?).arg("--socket").arg(agent.socket()).arg("certs").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn certs(agent: &Agent) -> Result<Vec<Value>> {
    Ok(agent.json("/v1/certs")?.as_array().context("a list")?.clone())
}

fn fingerprint(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The roots that the certificates are from, and the sets of roots that they trust.
fn roots(agents: [&Agent; 2]) -> Result<(BTreeSet<String>, BTreeSet<Vec<String>>)> {
    let all = [certs(agents[0])?, certs(agents[1])?].concat();
    let issuers = all.iter().map(|cert| fingerprint(&cert["root_fingerprint"])).collect();
    let trusted = all.iter().map(|cert| {
        cert["trusted_roots"].as_array().into_iter().flatten().map(fingerprint).collect::<Vec<_>>()
    });
    Ok((issuers, trusted.collect()))
}

/// Connections all over: new and long ones, both ways between the nodes, through the mesh and past it, IPv4 and IPv6.
fn loads(world: &World) -> Result<Vec<Process>> {
    let load =
        |from: &Pod, to: String, more: &[&str]| from.load(&[&[to.as_str(), "--mode", "echo"], more].concat());
    Ok(vec![
        load(&world.client, v4("far"), &["--keep", "--concurrency", "4"])?,
        load(&world.client, v6("far"), &[])?,
        load(&world.far, v4("near"), &[])?,
        load(&world.twin, v6("near"), &["--keep", "--concurrency", "2"])?,
        load(&world.outside, v4("far"), &[])?,
        load(&world.twin, v4("outside"), &[])?,
    ])
}

fn end(loads: &[Process], agents: [&Agent; 2]) -> Result<()> {
    for load in loads {
        let summary = Summary::end(load)?;
        assert!(summary.failed == 0 && summary.ok > 20, "{summary:?}");
    }
    for agent in agents {
        let failures = agent.metric("mesh_tls_handshake_failures_total", &[])?;
        let log = || format!("{:#?}\n{}", agent.flows(), agent.log());
        assert!(failures < 0.5, "{failures} handshakes failed: {}", log());
    }
    Ok(())
}

#[test]
fn a_root_is_replaced_and_no_connection_fails() -> Result<()> {
    let world = World::start_with(true, &[("--cert-ttl", LIFE)])?;
    world.serve("echo")?;
    let (agents, ca) = ([&world.agent_a, &world.agent_b], world.a.ca_dir());
    let loads = loads(&world)?;
    let (issuers, trusted) = roots(agents)?;
    let old = issuers.first().context("a root")?.clone();
    assert_eq!((issuers.len(), trusted), (1, BTreeSet::from([vec![old.clone()]])));

    let (added, said) = rotate(&ca, &["add"])?;
    assert!(
        added && said.contains("both roots are trusted") && said.contains("rotate-root switch"),
        "{said}"
    );
    let both = eventually(SECONDS_30, "every certificate trusts both", || {
        let (issuers, trusted) = roots(agents).ok()?;
        let both = trusted.first()?.clone();
        (issuers.len() == 1 && trusted.len() == 1 && both.len() == 2).then_some(both)
    })?;
    let new = both.iter().find(|root| **root != old).context("another root")?.clone();
    let shown = meshctl_certs(agents[0])?;
    assert!(shown.contains("2 roots trusted; all"), "{shown}");

    rotate_in_time(&ca, "switch")?;
    eventually(SECONDS_30, "meshctl says how far it is", || {
        let shown = meshctl_certs(agents[0]).ok()?;
        shown.contains("rotation: 2 roots trusted; ").then_some(())
    })?;
    eventually(SECONDS_30, "every certificate is from the new one", || {
        (roots(agents).ok()?.0 == BTreeSet::from([new.clone()])).then_some(())
    })?;
    assert_eq!(roots(agents)?.1, BTreeSet::from([both]));

    rotate_in_time(&ca, "drop")?;
    eventually(SECONDS_30, "the old one is trusted no longer", || {
        (roots(agents).ok()? == (BTreeSet::from([new.clone()]), BTreeSet::from([vec![new.clone()]])))
            .then_some(())
    })?;
    let (_, said) = rotate(&ca, &["status"])?;
    assert!(said.starts_with("no rotation is under way") && said.contains(&new), "{said}");
    // A whole round of renewals more, with that root alone.
    renewed(agents, "/far")?;
    end(&loads, agents)
}

/// Waits until each node has renewed what it has now of an account, and of `client`.
fn renewed(agents: [&Agent; 2], account: &str) -> Result<()> {
    let serial = |agent: &Agent, account: &str| -> Option<String> {
        let certs = certs(agent).ok()?;
        let mut of =
            certs.iter().filter(|cert| cert["identity"].as_str().is_some_and(|name| name.ends_with(account)));
        of.next()?["serial"].as_str().map(str::to_owned)
    };
    for (agent, account) in [(agents[0], "/client"), (agents[1], account)] {
        let before = serial(agent, account).context("a certificate")?;
        let now = || serial(agent, account).filter(|now| *now != before);
        eventually(SECONDS_10, &format!("{account} is renewed"), now)?;
    }
    Ok(())
}

#[test]
fn a_spoilt_folder_leaves_the_last_good_authority() -> Result<()> {
    let world = World::start_with(true, &[("--cert-ttl", LIFE)])?;
    world.serve("echo")?;
    let (agents, ca) = ([&world.agent_a, &world.agent_b], world.a.ca_dir());
    let loads = loads(&world)?;
    let told = |what: &str| -> Result<()> {
        for agent in agents {
            let problem = || {
                let shown = meshctl_certs(agent).ok()?;
                shown.lines().any(|line| line.starts_with("authority: ") && line.contains(what)).then_some(())
            };
            eventually(SECONDS_10, &format!("meshctl tells: {what}"), problem)?;
            ensure!(agent.problems()?.iter().any(|problem| problem.contains(what)), "status says nothing");
        }
        Ok(())
    };
    let key = ca.join("ca-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640))?;
    told("has mode 0640; a private key must be 0600")?;
    renewed(agents, "/far")?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    // Away, for more than half of every certificate's life.
    let aside = ca.with_extension("aside");
    fs::rename(&ca, &aside)?;
    let since = Instant::now();
    told("holds no authority")?;
    renewed(agents, "/far")?;
    renewed(agents, "/far")?;
    assert!(since.elapsed() > Duration::from_secs(4));
    fs::rename(&aside, &ca)?;
    renewed(agents, "/far")?;
    for agent in agents {
        assert!(!meshctl_certs(agent)?.contains("authority: "));
        // Once for each of the two, however often there was something to sign.
        let log = agent.log();
        assert_eq!(log.matches("cannot be used: its last good state signs").count(), 2, "{log}");
    }
    end(&loads, agents)
}

#[test]
fn the_certificate_of_an_account_that_left_goes_away() -> Result<()> {
    let world = World::start(true)?;
    let agent = &world.agent_b;
    let accounts = || -> Result<BTreeSet<String>> {
        Ok(certs(agent)?
            .iter()
            .filter_map(|cert| Some(cert["identity"].as_str()?.rsplit('/').next()?.to_owned()))
            .collect())
    };
    let are = |wanted: &[&str]| {
        let wanted: BTreeSet<String> = wanted.iter().map(|&account| account.to_owned()).collect();
        let held = || accounts().ok().filter(|held| *held == wanted);
        eventually(SECONDS_10, &format!("certificates are of {wanted:?}"), held)
            .with_context(|| format!("{:?}", accounts()))
    };
    // Before any connection: those of the pods, and the agent's own.
    are(&["far", "twin", "meshd"])?;
    let rest = [&world.client, &world.near, &world.far, &world.outside];
    world.lab.manifests().apply("pods.yaml", &rest.map(Pod::manifest).join("---\n"))?;
    agent.wait_enrolled(&[&world.far])?;
    are(&["far", "meshd"])?;
    let gone = agent.metrics()?;
    assert!(!gone.contains("sa/twin\""), "{gone}");
    world.enrol(false)?;
    are(&["meshd"])?;
    Ok(())
}
