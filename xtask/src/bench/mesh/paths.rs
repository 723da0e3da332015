//! The paths, and the figures of each.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::{Agent, Lab, Node, Pod, PodSpec, Process, SECONDS_10, SECONDS_30, binary, eventually};
use serde_json::Value;

use super::{LAB, Options};
use crate::bench::usage::{Cpu, resident};

/// Port of the server in its pod, of the service, and of the relays.
const PORT: u16 = 8080;
const SERVICE: &str = "10.96.0.1";
const LOCAL_SERVICE: &str = "10.96.0.2";

/// A way from the client to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Path {
    /// Pod to pod on two nodes, no mesh.
    Direct,
    /// The same through a service address, translated in the kernel.
    ClusterIp,
    /// Two plain relays in the agents' places.
    Floor,
    /// Enrolled pods on two nodes: HBONE.
    Mesh,
    /// Pod to pod on one node, no mesh.
    LocalDirect,
    /// Enrolled pods on one node.
    LocalMesh,
}

impl Path {
    pub(super) const ALL: [Self; 6] =
        [Self::Direct, Self::ClusterIp, Self::Floor, Self::Mesh, Self::LocalDirect, Self::LocalMesh];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::ClusterIp => "ClusterIP (kernel plane)",
            Self::Floor => "floor (two plain relays)",
            Self::Mesh => "mesh, mTLS, two nodes",
            Self::LocalDirect => "direct, one node",
            Self::LocalMesh => "mesh, one node",
        }
    }

    /// What its ratio is taken to.
    pub(super) const fn base(self) -> Self {
        match self {
            Self::LocalDirect | Self::LocalMesh => Self::LocalDirect,
            _ => Self::Direct,
        }
    }

    const fn is_enrolled(self) -> bool {
        matches!(self, Self::Mesh | Self::LocalMesh)
    }
}

/// What is measured on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    /// Gbit/s with so many streams.
    Throughput(u32),
    /// Connections a second, each with a question and an answer, so many in flight.
    Rate(u32),
    /// Median of one of those, µs.
    RateP50(u32),
    /// 99th percentile of one of those, µs.
    RateP99(u32),
    /// Questions a second on so many kept connections.
    Ask(u32),
    /// Median of one, µs.
    AskP50(u32),
    /// 99th percentile of one, µs.
    AskP99(u32),
    /// CPU seconds of both agents a Gbit.
    CpuPerGbit,
    /// CPU microseconds of both agents a connection.
    CpuPerConnection,
}

/// The figures of all paths (one sample a round), and the agents' memory in bytes.
#[derive(Default)]
pub(super) struct Results {
    pub(super) samples: BTreeMap<(Path, Figure), Vec<f64>>,
    pub(super) memory: Vec<(&'static str, u64)>,
}

impl Results {
    fn add(&mut self, path: Path, figure: Figure, value: f64) {
        self.samples.entry((path, figure)).or_default().push(value);
    }

    /// The median of a figure's samples.
    pub(super) fn median(&self, path: Path, figure: Figure) -> Option<f64> {
        let mut samples = self.samples.get(&(path, figure))?.clone();
        samples.sort_by(f64::total_cmp);
        Some(samples[samples.len() / 2])
    }
}

struct Bench {
    client: Pod,
    server: Pod,
    neighbour: Pod,
    agents: [Agent; 2],
    lab: Lab,
    // Held so that they run.
    _serving: Vec<Process>,
    floor: String,
}

pub(super) fn measure(options: &Options) -> Result<Results> {
    let bench = Bench::set_up()?;
    let mut results = Results::default();
    for round in 1..=options.rounds {
        for enrolled in [false, true] {
            bench.enrol(enrolled)?;
            if enrolled && round == 1 {
                results.memory.push(("idle, no connection yet", bench.memory()?));
            }
            for path in Path::ALL.into_iter().filter(|path| path.is_enrolled() == enrolled) {
                eprintln!("round {round}/{}: {}", options.rounds, path.name());
                bench.figures(path, options.seconds, &mut results)?;
            }
        }
    }
    bench.hold(options.idle, &mut results)?;
    Ok(results)
}

impl Bench {
    fn set_up() -> Result<Self> {
        let lab = Lab::new(LAB)?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let client = a.pod(PodSpec::new("client"))?;
        let neighbour = a.pod(PodSpec::new("neighbour"))?;
        let server = b.pod(PodSpec::new("server"))?;
        let load = binary("mesh-load")?.to_string_lossy().into_owned();
        let mut serving = Vec::new();
        for pod in [&server, &neighbour] {
            serving.push(listening(pod.spawn(&[&load, "serve", &format!("[::]:{PORT}")])?)?);
        }
        let floor = format!("10.244.1.1:{PORT}");
        for (node, listen, target) in [
            (&b, format!("{}:{PORT}", b.v4), format!("{}:{PORT}", server.v4)),
            (&a, floor.clone(), format!("{}:{PORT}", b.v4)),
        ] {
            serving.push(listening(node.spawn(&[&load, "relay", &listen, &target])?)?);
        }
        let manifests = [
            client.manifest(),
            neighbour.manifest(),
            server.manifest(),
            service("server", SERVICE),
            service("neighbour", LOCAL_SERVICE),
        ];
        lab.manifests().apply("bench.yaml", &manifests.join("---\n"))?;
        lab.manifests().apply("namespace.yaml", &namespace(false))?;
        let start = |node: &Node| node.agent().start();
        let agents = [start(&a)?, start(&b)?];
        Ok(Self { client, server, neighbour, agents, lab, _serving: serving, floor })
    }

    fn enrol(&self, enrolled: bool) -> Result<()> {
        self.lab.manifests().apply("namespace.yaml", &namespace(enrolled))?;
        for (agent, pods) in self.agents.iter().zip([2, 1]) {
            let wanted = if enrolled { pods } else { 0 };
            eventually(SECONDS_30, "the pods are enrolled or released", || {
                let status = agent.status().ok()?;
                let pods = status["pods"].as_array()?;
                (pods.len() == wanted && pods.iter().all(|pod| pod["state"] == "enrolled")).then_some(())
            })?;
        }
        Ok(())
    }

    fn target(&self, path: Path) -> String {
        match path {
            Path::Direct => format!("{}:{PORT}", self.server.v4),
            Path::ClusterIp | Path::Mesh => format!("{SERVICE}:{PORT}"),
            Path::Floor => self.floor.clone(),
            Path::LocalDirect => format!("{}:{PORT}", self.neighbour.v4),
            Path::LocalMesh => format!("{LOCAL_SERVICE}:{PORT}"),
        }
    }

    fn figures(&self, path: Path, seconds: f64, results: &mut Results) -> Result<()> {
        let target = self.target(path);
        for streams in [1, 4] {
            let cpu = self.cpu()?;
            let result = self.load("throughput", &target, "--streams", streams, seconds)?;
            let gbit = number(&result, "bytes")? * 8.0 / 1e9;
            results.add(path, Figure::Throughput(streams), gbit / number(&result, "seconds")?);
            if streams == 1 && path.is_enrolled() {
                results.add(path, Figure::CpuPerGbit, self.cpu()?.since(&cpu) / gbit);
            }
        }
        for in_flight in [1, 8, 64] {
            let cpu = self.cpu()?;
            let result = self.load("rate", &target, "--in-flight", in_flight, seconds)?;
            let count = number(&result, "count")?;
            results.add(path, Figure::Rate(in_flight), count / number(&result, "seconds")?);
            results.add(path, Figure::RateP50(in_flight), number(&result, "p50_us")?);
            results.add(path, Figure::RateP99(in_flight), number(&result, "p99_us")?);
            if in_flight == 8 && path.is_enrolled() {
                results.add(path, Figure::CpuPerConnection, self.cpu()?.since(&cpu) * 1e6 / count);
            }
        }
        for connections in [1, 32] {
            let result = self.load("ask", &target, "--connections", connections, seconds)?;
            results.add(
                path,
                Figure::Ask(connections),
                number(&result, "count")? / number(&result, "seconds")?,
            );
            results.add(path, Figure::AskP50(connections), number(&result, "p50_us")?);
            results.add(path, Figure::AskP99(connections), number(&result, "p99_us")?);
        }
        Ok(())
    }

    fn load(&self, command: &str, target: &str, flag: &str, count: u32, seconds: f64) -> Result<Value> {
        let load = binary("mesh-load")?.to_string_lossy().into_owned();
        let (count, duration) = (count.to_string(), seconds.to_string());
        let process = self.client.spawn(&[&load, command, target, flag, &count, "--seconds", &duration])?;
        let finished = process.wait(Duration::from_secs_f64(seconds) + SECONDS_30)?;
        if !finished.status.success() {
            bail!("{command} to {target} failed: {}", finished.stderr.trim());
        }
        serde_json::from_str(finished.stdout.trim()).context("read the client's result")
    }

    /// Memory with many idle connections through the mesh, and after they are gone.
    fn hold(&self, connections: u32, results: &mut Results) -> Result<()> {
        let load = binary("mesh-load")?.to_string_lossy().into_owned();
        let target = self.target(Path::Mesh);
        let holder =
            self.client.spawn(&[&load, "hold", &target, "--connections", &connections.to_string()])?;
        eventually(SECONDS_30, "the connections are open", || {
            holder.stdout().contains("holding").then_some(())
        })?;
        results.memory.push(("with the idle connections", self.memory()?));
        holder.close_stdin();
        for agent in &self.agents {
            eventually(SECONDS_30, "the connections are gone", || {
                (agent.status().ok()?["connections"] == 0).then_some(())
            })?;
        }
        results.memory.push(("right after they closed", self.memory()?));
        std::thread::sleep(SECONDS_10);
        results.memory.push(("ten seconds later", self.memory()?));
        Ok(())
    }

    fn pids(&self) -> Result<Vec<u64>> {
        let pid = |agent: &Agent| agent.status()?["pid"].as_u64().context("the agent tells no pid");
        self.agents.iter().map(pid).collect()
    }

    fn cpu(&self) -> Result<Cpu> {
        Cpu::of(&self.pids()?)
    }

    /// Resident memory of the larger of the two agents.
    fn memory(&self) -> Result<u64> {
        let sizes: Vec<u64> = self.pids()?.into_iter().map(resident).collect::<Result<_>>()?;
        sizes.into_iter().max().context("no agent")
    }
}

fn listening(process: Process) -> Result<Process> {
    process.wait_line("that it listens", |line| line == "listening")?;
    Ok(process)
}

fn number(result: &Value, field: &str) -> Result<f64> {
    result[field].as_f64().with_context(|| format!("the client tells no {field}: {result}"))
}

fn namespace(enrolled: bool) -> String {
    let label = if enrolled { "  labels: {istio.io/dataplane-mode: ambient}\n" } else { "" };
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n{label}")
}

fn service(app: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {app}, namespace: default}}\n\
         spec:\n  clusterIP: {address}\n  selector: {{app: {app}}}\n  ports: [{{port: {PORT}, targetPort: {PORT}}}]\n"
    )
}
