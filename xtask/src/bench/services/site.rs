//! One mode's lab: two nodes, a client on one, the backends on the other.
//!
//! The way is that of a cluster: the client's packets come out of its pod into its node (PREROUTING, FORWARD,
//! POSTROUTING) and go to a pod of another node, so that translated answers come back through conntrack. kube-proxy's
//! rules, or the agent, are on the client's node alone. In a cluster the other node has them too, and its FORWARD
//! chains are walked once more by each connection: that is left out, in kube-proxy's favour.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::{Agent, Lab, Node, Pod, PodSpec, Process, SECONDS_10, SECONDS_30, binary};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::cluster::{Cluster, GREET_PORT, SERVE_PORT, SERVICE_PORT, UDP_PORT};
use super::kube_proxy::{Config, Service, Sync, iptables, nftables};
use super::load::Backend;
use super::memory;
use super::mode::Mode;
use crate::bench::usage::{resident, scheduled};

/// How long loading may take.
pub(super) const DEADLINE: Duration = Duration::from_mins(4);

/// A mode's lab, with what it measures once.
pub(super) struct Site {
    pub(super) mode: Mode,
    agent: Option<Agent>,
    cluster: Cluster,
    client: Pod,
    backends: [Pod; 3],
    node: Node,
    config: Config,
    // Held so that they run.
    _serving: Vec<Process>,
    lab: Lab,
    load: String,
}

/// What making all services known came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Programmed {
    /// From an empty kernel until a connection to the last service is answered.
    pub(super) seconds: f64,
    /// By the agent's own account.
    pub(super) own_seconds: Option<f64>,
    /// Growth of the kernel's own memory, of the whole machine.
    pub(super) kernel_bytes: u64,
    /// Maps and programs, as charged.
    pub(super) ebpf_bytes: Option<u64>,
    /// Resident memory of the agent.
    pub(super) agent_bytes: Option<u64>,
    /// CPU time of the agent, start included.
    pub(super) agent_cpu: Option<f64>,
    /// Rules that the node's namespace has.
    pub(super) rules: usize,
    /// Elements of its sets and maps.
    pub(super) elements: usize,
}

/// What a change came to.
pub(super) struct Changed {
    /// Until a connection reached the endpoint that is new.
    pub(super) seconds: f64,
    /// By the agent's own account.
    pub(super) own_seconds: Option<f64>,
}

impl Site {
    /// A lab with its servers, no service known.
    pub(super) fn set_up(mode: Mode, services: usize) -> Result<Self> {
        let lab = Lab::new(mode.lab())?;
        let (node, other) = (lab.node("node-a")?, lab.node("node-b")?);
        // As every node has one: without, a connect from the node to an address of no network fails before any rule.
        node.netns().ip(&format!("route add default via {}\n", other.v4))?;
        let client = node.pod(PodSpec::new("client"))?;
        let backend = |name: &str| other.pod(PodSpec::new(name));
        let backends = [backend("backend-1")?, backend("backend-2")?, backend("backend-3")?];
        let load = binary("mesh-load")?.to_string_lossy().into_owned();
        let mut serving = Vec::new();
        for pod in &backends {
            for (command, port) in [("greet", GREET_PORT), ("serve", SERVE_PORT), ("udp-serve", UDP_PORT)] {
                let process = pod.spawn(&[&load, command, &format!("0.0.0.0:{port}")])?;
                process.wait_line("that it listens", |line| line == "listening")?;
                serving.push(process);
            }
        }
        let config = Config {
            cluster_cidr: "10.244.0.0/16".parse()?,
            service_cidr: "10.96.0.0/12".parse()?,
            node_ip: node.v4,
            nfacct: false,
        };
        let cluster = Cluster::new(services, [backends[0].v4, backends[1].v4, backends[2].v4]);
        Ok(Self { mode, agent: None, cluster, client, backends, node, config, _serving: serving, lab, load })
    }

    /// Makes all services known; `None` where the mode has none to.
    pub(super) fn program(&mut self) -> Result<Option<Programmed>> {
        if self.mode == Mode::Direct {
            return Ok(None);
        }
        for (file, text) in self.cluster.manifests() {
            self.lab.manifests().apply(&file, &text)?;
        }
        let before = memory::kernel()?;
        // Of a service that is among the last, and on whose server it can be seen who answers.
        let watch = self.watch(None)?;
        let begun = monotonic()?;
        match self.mode.backend() {
            Some(backend) => self.load_all(backend)?,
            None => self.agent = Some(self.node.agent().start()?),
        }
        let seconds = watched(&watch)? - begun;
        let mut programmed = Programmed {
            seconds,
            kernel_bytes: memory::kernel()?.saturating_sub(before),
            ..Programmed::default()
        };
        (programmed.rules, programmed.elements) = self.count_rules()?;
        if let Some(agent) = &self.agent {
            let pid = agent.process().pid();
            programmed.own_seconds = own_seconds(agent)?;
            programmed.ebpf_bytes = Some(memory::ebpf(pid)?);
            programmed.agent_bytes = Some(resident(u64::from(pid))?);
            programmed.agent_cpu = Some(scheduled(pid)?);
        }
        Ok(Some(programmed))
    }

    /// Replaces an endpoint of one service; `None` where the mode knows of none.
    pub(super) fn change(&mut self) -> Result<Option<Changed>> {
        if self.mode == Mode::Direct {
            return Ok(None);
        }
        let old = self.cluster.ask().clone();
        let address = self.cluster.change();
        let own_before = self.agent.as_ref().map(own_seconds).transpose()?.flatten();
        let watch = self.watch(Some(&address.to_string()))?;
        let begun = monotonic()?;
        if let Some(backend) = self.mode.backend() {
            self.load_change(backend, &old)?;
        } else {
            let (file, text) = self.cluster.changing_manifest();
            self.lab.manifests().apply(&file, &text)?;
        }
        let seconds = watched(&watch)? - begun;
        let own = self.agent.as_ref().map(own_seconds).transpose()?.flatten();
        Ok(Some(Changed { seconds, own_seconds: own.zip(own_before).map(|(after, before)| after - before) }))
    }

    /// Runs a client to its end; what it printed. `from_node`: on the node itself, not in a pod.
    pub(super) fn measure(&self, from_node: bool, args: &[&str], seconds: f64) -> Result<Value> {
        let seconds_text = seconds.to_string();
        let argv = [&[self.load.as_str()], args, &["--seconds", &seconds_text]].concat();
        let process = if from_node { self.node.spawn(&argv)? } else { self.client.spawn(&argv)? };
        let finished = process.wait(Duration::from_secs_f64(seconds) + SECONDS_30)?;
        if !finished.status.success() {
            bail!("{}: {} failed: {}", self.mode.name(), args.join(" "), finished.stderr.trim());
        }
        serde_json::from_str(finished.stdout.trim()).context("read the client's result")
    }

    /// CPU seconds of the agent so far.
    pub(super) fn agent_cpu(&self) -> Result<Option<f64>> {
        self.agent.as_ref().map(|agent| scheduled(agent.process().pid())).transpose()
    }

    /// Where the last service is; the pod itself where nobody translates.
    pub(super) fn last(&self) -> String {
        self.target(self.cluster.last(), GREET_PORT)
    }

    /// Where requests go.
    pub(super) fn ask(&self) -> String {
        self.target(self.cluster.ask(), SERVE_PORT)
    }

    /// Where datagrams go.
    pub(super) fn datagrams(&self) -> String {
        self.target(self.cluster.datagrams(), UDP_PORT)
    }

    /// The pod itself, whatever the mode.
    pub(super) fn pod(&self) -> String {
        format!("{}:{GREET_PORT}", self.backends[0].v4)
    }

    fn target(&self, service: &Service, port: u16) -> String {
        match self.mode {
            Mode::Direct => format!("{}:{port}", self.backends[0].v4),
            _ => format!("{}:{SERVICE_PORT}", service.cluster_ip),
        }
    }

    /// A client that ends once `until` has answered it, or anybody.
    fn watch(&self, until: Option<&str>) -> Result<Process> {
        let target = self.ask();
        let mut argv = vec![self.load.as_str(), "watch", &target];
        argv.extend(until.iter().flat_map(|until| ["--until", until]));
        let process = self.client.spawn(&argv)?;
        process.wait_line("that it watches", |line| line == "watching")?;
        Ok(process)
    }

    /// What kube-proxy loads when it starts.
    fn load_all(&self, backend: Backend) -> Result<()> {
        let (config, services) = (&self.config, &self.cluster.services);
        let rules = match backend {
            Backend::Nftables => vec![nftables::transaction(config, services, Sync::Full)],
            Backend::IptablesNft | Backend::IptablesLegacy => {
                vec![iptables::BASE.to_owned(), iptables::restore(config, services, Sync::Full, &[])]
            }
        };
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        backend.load(&self.lab, &self.node, &[], &rules, DEADLINE)
    }

    /// What kube-proxy does when one service has changed: it looks at what is there, as far as it does so at each sync,
    /// then loads what is new.
    fn load_change(&self, backend: Backend, old: &Service) -> Result<()> {
        let (services, index) = (&self.cluster.services, self.cluster.ask_index());
        let sync = Sync::Partial(index);
        let (looks, rules): (&[&str], String) = match backend {
            Backend::Nftables => {
                let looks = &["nft --json list chains ip", "nft --json list sets ip"];
                (looks, nftables::transaction(&self.config, services, sync))
            }
            Backend::IptablesNft | Backend::IptablesLegacy if iptables::looks_for_stale_chains(services) => {
                let looks = if backend == Backend::IptablesNft {
                    &["iptables-nft-save -t nat"]
                } else {
                    &["iptables-legacy-save -t nat"]
                };
                let stale = iptables::stale_chains(old, &services[index]);
                (looks, iptables::restore(&self.config, services, sync, &stale))
            }
            Backend::IptablesNft | Backend::IptablesLegacy => {
                (&[], iptables::restore(&self.config, services, sync, &[]))
            }
        };
        backend.load(&self.lab, &self.node, looks, &[&rules], DEADLINE)
    }

    /// Rules, and elements of sets and maps, as the kernel tells.
    fn count_rules(&self) -> Result<(usize, usize)> {
        let backends = match self.mode.backend() {
            Some(Backend::Nftables) => vec![Backend::Nftables],
            Some(backend) => vec![backend],
            // Whatever the agent may have made: asked of all.
            None => vec![Backend::IptablesLegacy, Backend::IptablesNft, Backend::Nftables],
        };
        let mut total = (0, 0);
        for backend in backends {
            let (rules, elements) = backend.count(&self.node, DEADLINE)?;
            total = (total.0 + rules, total.1 + elements);
        }
        Ok(total)
    }
}

/// Seconds on the clock that all processes share.
fn monotonic() -> Result<f64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_secs_f64())
}

/// When a client saw what it waited for.
fn watched(watch: &Process) -> Result<f64> {
    let finished = watch.wait(SECONDS_10)?;
    let line = finished.stdout.lines().last().context("the client that watches printed nothing")?;
    let result: Value = serde_json::from_str(line).with_context(|| format!("{line}: {}", finished.stderr))?;
    result["monotonic"].as_f64().with_context(|| format!("no time in {result}"))
}

/// Seconds that the agent says it has spent on syncing, under kube-proxy's name for that; `None` where it does not say.
fn own_seconds(agent: &Agent) -> Result<Option<f64>> {
    let text = agent.metrics()?;
    let name = "kubeproxy_sync_proxy_rules_duration_seconds_sum";
    let samples: Vec<f64> = text
        .lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    Ok((!samples.is_empty()).then(|| samples.iter().sum()))
}
