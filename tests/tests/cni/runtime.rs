//! A container runtime that calls the plugin, and what it and the API server say of the lab's pods.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Agent, Node, Pod, PodSpec, binary};
use serde_json::{Value, json};

pub(crate) const PORT: u16 = 8080;
pub(crate) const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\n\
                      spec: {mtls: {mode: STRICT}}\n";

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Called {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) took: Duration,
}

impl Called {
    pub(crate) fn code(&self) -> Option<u64> {
        serde_json::from_str::<Value>(&self.stdout).ok()?["code"].as_u64().filter(|_| !self.ok)
    }
}

/// The runtime of a node.
#[derive(Clone)]
pub(crate) struct Runtime {
    pub(crate) node: Node,
    pub(crate) config: Value,
}

impl Runtime {
    pub(crate) fn new(node: &Node, seconds: u64) -> Self {
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "lab",
            "type": "mesh-cni",
            "socket": node.state_dir().join("meshd.sock"),
            "timeoutSeconds": seconds,
            "stateFile": known(node),
            "logFile": node.state_dir().join("mesh-cni.log"),
        });
        Self { node: node.clone(), config }
    }

    pub(crate) fn call(&self, command: &str, pod: Option<&Pod>, more: &[(&str, Value)]) -> Result<Called> {
        self.call_as(&[&binary("meshd")?.to_string_lossy(), "cni"], command, pod, more)
    }

    pub(crate) fn call_as(
        &self,
        argv: &[&str],
        command: &str,
        pod: Option<&Pod>,
        more: &[(&str, Value)],
    ) -> Result<Called> {
        let mut config = self.config.clone();
        for (key, value) in more {
            config[*key] = value.clone();
        }
        let mut env = vec![("CNI_COMMAND", command.to_owned()), ("CNI_PATH", "/opt/cni/bin".to_owned())];
        if let Some(pod) = pod {
            let PodSpec { namespace, name, .. } = &pod.spec;
            env.extend([
                ("CNI_CONTAINERID", container(pod)),
                ("CNI_NETNS", pod.netns().path().display().to_string()),
                ("CNI_IFNAME", "eth0".to_owned()),
                (
                    "CNI_ARGS",
                    format!(
                        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                         K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                        container(pod),
                        uid(pod)
                    ),
                ),
            ]);
        }
        let started = Instant::now();
        let mut child = Command::new("ip")
            .args(["netns", "exec", self.node.netns().name()])
            .args(argv)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run the plugin")?;
        child.stdin.take().context("its stdin")?.write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let stdout = String::from_utf8(output.stdout)?;
        Ok(Called { ok: output.status.success(), stdout, took: started.elapsed() })
    }

    pub(crate) fn add(&self, pod: &Pod) -> Result<Called> {
        self.call("ADD", Some(pod), &[("prevResult", result(pod))])
    }

    /// ADD that must succeed, and pass on what came.
    pub(crate) fn added(&self, pod: &Pod) -> Result<Called> {
        let called = self.add(pod)?;
        ensure!(called.ok, "{called:?}");
        ensure!(serde_json::from_str::<Value>(&called.stdout)? == result(pod), "{called:?}");
        Ok(called)
    }
}

pub(crate) fn known(node: &Node) -> std::path::PathBuf {
    node.state_dir().with_extension("cni.json")
}

pub(crate) fn uid(pod: &Pod) -> String {
    let laid = pod.spec.kubelet.as_ref().map(|kubelet| kubelet.uid.clone());
    laid.unwrap_or_else(|| format!("uid-of-{}", pod.spec.name))
}

pub(crate) fn container(pod: &Pod) -> String {
    format!("sandbox-of-{}", pod.spec.name)
}

/// As the bridge plugin answers.
pub(crate) fn result(pod: &Pod) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "pods", "mac": "00:00:00:00:00:01"},
            {"name": "eth0", "mac": "00:00:00:00:00:02", "sandbox": pod.netns().path()},
        ],
        "ips": [
            {"address": format!("{}/24", pod.v4), "interface": 1},
            {"address": format!("{}/64", pod.v6), "interface": 1},
        ],
        "of the primary": {"kept": [1.50, null]},
    })
}

/// The pod as the API server has it before the kubelet has written its status.
pub(crate) fn object(pod: &Pod) -> String {
    let PodSpec { name, namespace, account, labels, .. } = &pod.spec;
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}: \"{value}\"")).collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  uid: {}\n  labels: {{{}}}\n\
         spec:\n  serviceAccountName: {account}\n  nodeName: {}\n  containers: [{{name: app}}]\n",
        uid(pod),
        labels.join(", "),
        pod.node(),
    )
}

/// The same once the kubelet has.
pub(crate) fn running(pod: &Pod) -> String {
    // IPv6 first: the plugins' order need not be the kubelet's.
    format!(
        "{}status: {{phase: Running, podIP: \"{v6}\", podIPs: [{{ip: \"{v6}\"}}, {{ip: {}}}]}}\n",
        object(pod),
        pod.v4,
        v6 = pod.v6
    )
}

pub(crate) fn namespace(name: &str, enrolled: bool) -> String {
    let labels = if enrolled { ", labels: {istio.io/dataplane-mode: ambient}" } else { "" };
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}{labels}}}\n")
}

pub(crate) fn start(node: &Node) -> Result<Agent> {
    node.agent().flag("--cni-state", &known(node).to_string_lossy()).start()
}

pub(crate) fn state_of(agent: &Agent, pod: &Pod) -> Option<Value> {
    let status = agent.status().ok()?;
    status["pods"].as_array()?.iter().find(|known| known["uid"] == *pod.uid()).cloned()
}

pub(crate) fn is_enrolled(agent: &Agent, pod: &Pod) -> bool {
    state_of(agent, pod).is_some_and(|known| known["state"] == "enrolled")
}
