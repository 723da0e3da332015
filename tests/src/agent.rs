//! A node's agent: started, asked and ended.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::api::{Account, ApiServer};
use crate::node::{Node, Pod};
use crate::process::{Finished, Process, binary};
use crate::wait::{SECONDS_30, eventually};

/// Where the agent's metrics are, inside its node's namespace.
const METRICS: &str = "127.0.0.1:15020";

/// How an agent is to be started.
#[derive(Clone, Debug)]
pub struct AgentBuilder {
    node: Node,
    args: Vec<String>,
    log: String,
    kubeconfig: Option<PathBuf>,
    /// Arguments of `setpriv`, where it is not to have all rights.
    rights: Option<String>,
}

impl AgentBuilder {
    pub(crate) fn new(node: &Node) -> Self {
        let log = std::env::var("MESH_LOG").unwrap_or_else(|_unset| "info,access=warn".to_owned());
        Self { node: node.clone(), args: Vec::new(), log, kubeconfig: None, rights: None }
    }

    /// A further flag of `meshd run`, with its value.
    #[must_use]
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.args.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// A further argument of `meshd run`, such as `--FLAG=VALUE`.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Follows this API server instead of the lab's manifests, as the service account `mesh-agent` of `mesh-system`, by a
    /// token of its own bound to the node.
    pub fn kubernetes(self, api: &ApiServer) -> Result<Self> {
        let account = Account::service("mesh-system", "mesh-agent").node(self.node.name());
        let account =
            account.pod(&format!("mesh-agent-{}", self.node.name()), "00000000-0000-4000-8000-000000000001");
        let token = api.issue(account);
        self.kubeconfig(&api.kubeconfig(&token)?)
    }

    /// Follows the API server of a kubeconfig instead of the lab's manifests.
    pub fn kubeconfig(mut self, file: &Path) -> Result<Self> {
        ensure!(file.exists(), "there is no {}", file.display());
        self.kubeconfig = Some(file.to_owned());
        Ok(self)
    }

    /// With these capabilities alone, named as in a container's `securityContext`.
    #[must_use]
    pub fn capabilities(mut self, names: &[&str]) -> Self {
        self.rights = Some(rights(names));
        self
    }

    /// Starts it without waiting for anything, for an agent that should refuse.
    pub fn spawn(&self) -> Result<Process> {
        let node = &self.node;
        let fixed = [
            ("--manifests", node.manifests().folder().to_owned()),
            ("--node", PathBuf::from(node.name())),
            ("--ca-dir", node.ca_dir()),
            ("--bpffs", node.bpffs()),
            ("--state-dir", node.state_dir()),
            ("--source-state", node.source_state()),
            ("--cgroup", node.cgroup().to_owned()),
            ("--metrics-addr", PathBuf::from(METRICS)),
        ];
        let limited = self.rights.iter().flat_map(|rights| ["setpriv"].into_iter().chain(rights.split(' ')));
        let mut argv: Vec<String> = limited.map(str::to_owned).collect();
        argv.extend([binary("meshd")?.to_string_lossy().into_owned(), "run".to_owned()]);
        if self.kubeconfig.is_some() {
            argv.push("--kubernetes".to_owned());
        }
        let elsewhere = self.args.iter().any(|given| given == "--ca-addr");
        for (flag, value) in &fixed {
            let contradicts =
                (elsewhere && *flag == "--ca-dir") || (self.kubeconfig.is_some() && *flag == "--manifests");
            if !contradicts && !self.args.iter().any(|given| given == flag) {
                argv.extend([(*flag).to_owned(), value.to_string_lossy().into_owned()]);
            }
        }
        argv.extend(self.args.iter().cloned());
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let kubeconfig = self.kubeconfig.as_ref().map(|file| file.to_string_lossy());
        let environment = kubeconfig.as_ref().map(|file| ("KUBECONFIG", &**file));
        let environment: Vec<(&str, &str)> =
            environment.into_iter().chain([("MESH_LOG", self.log.as_str())]).collect();
        node.spawn_agent(&argv, &environment)
    }

    /// Starts it without waiting for anything, for an agent that stands by.
    pub fn launch(&self) -> Result<Agent> {
        Ok(Agent { builder: self.clone(), process: self.spawn()? })
    }

    /// Starts it and waits until it answers: programs and the first snapshot are then in force.
    pub fn start(&self) -> Result<Agent> {
        self.start_within(SECONDS_30)
    }

    /// As [`Self::start`], with another deadline.
    pub fn start_within(&self, deadline: Duration) -> Result<Agent> {
        let agent = self.launch()?;
        let answers = || {
            if agent.process.is_running() { agent.get("/healthz").ok().map(|_| true) } else { Some(false) }
        };
        match eventually(deadline, "the agent answers", answers) {
            Ok(true) => Ok(agent),
            Ok(false) => bail!("meshd ended: {}", agent.log()),
            Err(error) => Err(error.context(agent.log())),
        }
    }
}

/// A running agent.
#[derive(Clone, Debug)]
pub struct Agent {
    builder: AgentBuilder,
    process: Process,
}

impl Agent {
    /// The process.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Its socket for `meshctl`.
    pub fn socket(&self) -> PathBuf {
        self.builder.node.state_dir().join("meshd.sock")
    }

    /// A document of its API.
    pub fn get(&self, document: &str) -> Result<String> {
        let stream = UnixStream::connect(self.socket()).context("connect to the agent's socket")?;
        stream.set_read_timeout(Some(SECONDS_30))?;
        http_get(stream, document)
    }

    /// A document of its API, as JSON.
    pub fn json(&self, document: &str) -> Result<Value> {
        let text = self.get(document)?;
        serde_json::from_str(&text).with_context(|| format!("{document}: {text}"))
    }

    /// `/v1/status`.
    pub fn status(&self) -> Result<Value> {
        self.json("/v1/status")
    }

    /// What does not work, in its own words.
    pub fn problems(&self) -> Result<Vec<String>> {
        let status = self.status()?;
        let problems = status["problems"].as_array().into_iter().flatten();
        Ok(problems.filter_map(|problem| problem.as_str().map(str::to_owned)).collect())
    }

    /// The last flows, the oldest first.
    pub fn flows(&self) -> Result<Vec<Value>> {
        let text = self.get("/v1/flows?limit=4096")?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// Waits for flows that satisfy `is` until there are `count`, and returns those.
    pub fn wait_flows(&self, count: usize, what: &str, is: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let found = eventually(SECONDS_30, what, || {
            let flows: Vec<Value> = self.flows().ok()?.into_iter().filter(|flow| is(flow)).collect();
            (flows.len() >= count).then_some(flows)
        });
        found.with_context(|| format!("flows: {:#?}", self.flows()))
    }

    /// `/metrics`, asked inside the node's namespace.
    pub fn metrics(&self) -> Result<String> {
        self.builder.node.netns().run(|| {
            let address: SocketAddr = METRICS.parse()?;
            let stream = TcpStream::connect_timeout(&address, SECONDS_30)?;
            stream.set_read_timeout(Some(SECONDS_30))?;
            http_get(stream, "/metrics")
        })?
    }

    /// The sum of a metric's samples whose labels contain all of `labels` (as text, `side="server"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let text = self.metrics()?;
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let is_whole = rest.starts_with('{') || rest.starts_with(' ');
            (is_whole && labels.iter().all(|label| rest.contains(label))).then(|| rest.rsplit(' ').next())?
        });
        Ok(samples.filter_map(|value| value.parse::<f64>().ok()).sum())
    }

    /// Waits until these pods are enrolled, those and no others when `pods` is all that the node should have.
    pub fn wait_enrolled(&self, pods: &[&Pod]) -> Result<()> {
        let wanted: Vec<String> = pods.iter().map(|pod| pod.uid()).collect();
        let enrolled = || {
            let status = self.status().ok()?;
            let all = status["pods"].as_array()?;
            let enrolled =
                all.iter().filter(|pod| pod["state"] == "enrolled" && pod["canary"]["result"] != "failed");
            let enrolled: Vec<&str> = enrolled.filter_map(|pod| pod["uid"].as_str()).collect();
            let held = wanted.iter().all(|uid| enrolled.contains(&uid.as_str()));
            (held && all.len() == wanted.len()).then_some(())
        };
        eventually(SECONDS_30, &format!("enrolled are {wanted:?}"), enrolled)
            .with_context(|| format!("status: {:#}\n{}", self.status().unwrap_or_default(), self.log()))
    }

    /// Waits until a snapshot is in force that satisfies `is`, asked of `/v1/DOCUMENT`.
    pub fn wait_for(&self, document: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let path = format!("/v1/{document}");
        eventually(SECONDS_30, what, || self.json(&path).ok().filter(|value| is(value)))
            .with_context(|| format!("{path}: {:#}\n{}", self.json(&path).unwrap_or_default(), self.log()))
    }

    /// SIGKILL.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&self, deadline: Duration) -> Result<Finished> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(deadline)
    }

    /// Starts another with the same flags, once this one has ended.
    pub fn restart(&self) -> Result<Self> {
        ensure!(!self.process.is_running(), "the agent still runs");
        self.builder.start()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.stderr()
    }
}

/// What `setpriv` is told so that a program has these capabilities and cannot get others.
pub(crate) fn rights(capabilities: &[&str]) -> String {
    let kept: Vec<String> = capabilities.iter().map(|name| format!("+{}", name.to_lowercase())).collect();
    let kept = ["-all".to_owned()].into_iter().chain(kept).collect::<Vec<_>>().join(",");
    format!("--bounding-set={kept} --inh-caps=-all --no-new-privs")
}

/// One request over a connection of its own; the body of a 200.
pub(crate) fn http_get(mut stream: impl Read + Write, path: &str) -> Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: mesh\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("an HTTP answer without an end of its head")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let body = &answer[end + 4..];
    let body = if head.contains("transfer-encoding: chunked") { dechunk(body)? } else { body.to_vec() };
    let body = String::from_utf8(body).context("a body that is text")?;
    ensure!(head.starts_with("http/1.1 200"), "{path}: {head}: {body}");
    Ok(body)
}

fn dechunk(mut chunks: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|two| two == b"\r\n").context("a chunk's length")?;
        let length = usize::from_str_radix(std::str::from_utf8(&chunks[..end])?.trim(), 16)?;
        let (from, to) = (end + 2, end + 2 + length);
        ensure!(chunks.len() >= to + 2, "a chunk that is cut off");
        if length == 0 {
            return Ok(body);
        }
        body.extend_from_slice(&chunks[from..to]);
        chunks = &chunks[to + 2..];
    }
}
