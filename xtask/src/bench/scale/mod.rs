//! `cargo xtask bench scale`: the agent in a large cluster, which is synthetic, behind the tests' own API server.
//!
//! The API server is a thread of the process that measures and shares the machine's cores with the agent, so the time until
//! all is in force includes what the server itself takes for it. Memory and CPU time are the agent's own.

mod cluster;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mesh_tests::{Agent, ApiServer, Lab, binary, eventually};

use self::cluster::{Cluster, NODE};
use super::{machine, usage};

/// The lab of a run.
pub(super) const LAB: &str = "mesh-scale";
/// What the project holds itself to.
const MAX_RESIDENT_MIB: f64 = 300.0;
const MAX_SYNC: Duration = Duration::from_secs(20);
/// When a run is given up.
const PATIENCE: Duration = Duration::from_mins(3);

/// Flags of `cargo xtask bench scale`.
#[derive(Args)]
pub(super) struct Options {
    /// Services
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    services: u32,
    /// Pods; each is an endpoint of one service
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pods: u32,
    /// Nodes that the pods are on
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    nodes: u32,
    /// Endpoints that change each second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    churn: u32,
    /// Seconds that they change for
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

struct Sync {
    seconds: f64,
    cpu: f64,
    bytes: u64,
}

struct Churn {
    changes: u32,
    seconds: f64,
    cpu: f64,
    behind: Duration,
}

/// Measures and prints.
pub(super) fn run(options: &Options) -> Result<()> {
    let cluster = Cluster {
        services: options.services as usize,
        pods: options.pods as usize,
        nodes: options.nodes as usize,
    };
    ensure!(cluster.endpoints() > 0, "--pods must not be less than --services");
    let lab = Lab::new(LAB)?;
    let node = lab.node(NODE)?;
    let api = lab.api_server()?;
    let began = Instant::now();
    cluster.put(&api)?;
    eprintln!(
        "the cluster is there after {:.1} s; a pod has {} bytes",
        began.elapsed().as_secs_f64(),
        cluster::pod_size(&api)?
    );
    let services = cluster.services;

    let (began, before) = (Instant::now(), api.bytes_sent());
    let agent = node.agent().kubernetes(&api)?.start_within(PATIENCE)?;
    wait_services(&agent, services)?;
    let elapsed = began.elapsed();
    let pid = agent.process().pid();
    let sync = Sync { seconds: elapsed.as_secs_f64(), cpu: cpu(pid)?, bytes: api.bytes_sent() - before };
    let workloads = agent.status()?["workloads"].as_u64().context("workloads in the status")?;
    ensure!(workloads >= u64::from(options.pods), "the agent knows {workloads} workloads");
    let at_once = memory(pid, "VmRSS:")?;
    // What it frees it gives back in a while.
    thread::sleep(Duration::from_secs(5));
    let (settled, peak) = (memory(pid, "VmRSS:")?, memory(pid, "VmHWM:")?);
    let churn = churn(options, cluster, &api, &agent)?;
    let (after, peak_after) = (memory(pid, "VmRSS:")?, memory(pid, "VmHWM:")?);

    let limit = |held: bool| if held { "held" } else { "**not held**" };
    let profile = binary("meshd")?;
    let profile = profile
        .parent()
        .and_then(Path::file_name)
        .map_or("?".into(), |name| name.to_string_lossy().into_owned());
    let markdown = format!(
        "`cargo xtask bench scale`: {} services, {} pods on {} nodes, {} endpoints, {} of Istio's objects; {}, `{profile}` binaries.\n\n\
         | | | limit |\n|---|---:|---|\n\
         | from the start of the process until all is in force, s | {:.2} | {:.0}: {} |\n\
         | agent's CPU until then, s | {:.2} | |\n\
         | received, MiB | {:.1} | |\n\
         | resident then, MiB | {at_once:.1} | |\n\
         | resident, settled, MiB | {settled:.1} | {MAX_RESIDENT_MIB:.0}: {} |\n\
         | resident, at most, MiB | {peak:.1} | {MAX_RESIDENT_MIB:.0}: {} |\n\
         | changes of endpoints, a second | {:.0} | |\n\
         | agent's CPU while they came, of one core | {:.1}% | |\n\
         | in force after the last of them, ms | {:.0} | |\n\
         | resident after them, MiB | {after:.1} | {MAX_RESIDENT_MIB:.0}: {} |\n\
         | resident, at most, with them, MiB | {peak_after:.1} | {MAX_RESIDENT_MIB:.0}: {} |\n",
        services,
        options.pods,
        options.nodes,
        cluster.endpoints() * services,
        3 * cluster::POLICIES.min(services),
        machine::describe(),
        sync.seconds,
        MAX_SYNC.as_secs_f64(),
        limit(elapsed <= MAX_SYNC),
        sync.cpu,
        mib(sync.bytes),
        limit(settled <= MAX_RESIDENT_MIB),
        limit(peak <= MAX_RESIDENT_MIB),
        f64::from(churn.changes) / churn.seconds,
        100.0 * churn.cpu / churn.seconds,
        churn.behind.as_secs_f64() * 1000.0,
        limit(after <= MAX_RESIDENT_MIB),
        limit(peak_after <= MAX_RESIDENT_MIB),
    );
    println!("{markdown}");
    let folder = crate::repo::root().join("target/bench");
    crate::repo::create_dir(&folder)?;
    fs::write(folder.join("scale.md"), &markdown)?;
    if elapsed > MAX_SYNC || peak_after > MAX_RESIDENT_MIB {
        bail!("a limit is not held: see the table");
    }
    Ok(())
}

/// Endpoints become unready and ready again, as many a second as asked for.
fn churn(options: &Options, cluster: Cluster, api: &ApiServer, agent: &Agent) -> Result<Churn> {
    let pid = agent.process().pid();
    let (began, before) = (Instant::now(), cpu(pid)?);
    let changes = options.churn * options.seconds;
    for change in 0..changes {
        let due = Duration::from_secs_f64(f64::from(change) / f64::from(options.churn));
        thread::sleep(due.saturating_sub(began.elapsed()));
        // Each service in turn loses an endpoint, and gets it back in the next round.
        let (round, number) = (change as usize / cluster.services, change as usize % cluster.services);
        let unready = (round.is_multiple_of(2)).then_some(0);
        api.put(cluster.slice(number, unready))?;
    }
    let (seconds, told) = (began.elapsed().as_secs_f64(), Instant::now());
    api.put(cluster::marker(cluster.services))?;
    wait_services(agent, cluster.services + 1)?;
    Ok(Churn { changes, seconds, cpu: cpu(pid)? - before, behind: told.elapsed() })
}

fn wait_services(agent: &Agent, count: usize) -> Result<()> {
    eventually(PATIENCE, &format!("{count} services are in force"), || {
        let status = agent.status().ok()?;
        (status["services"].as_u64()? == count as u64).then_some(())
    })
    .with_context(|| format!("status: {:#}\n{}", agent.status().unwrap_or_default(), agent.log()))
}

fn cpu(pid: u32) -> Result<f64> {
    usage::scheduled(pid)
}

/// MiB, by a field of `/proc/PID/status`.
fn memory(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

#[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
