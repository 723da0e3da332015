//! What a cluster does with the objects of a test's API server: pods for `DaemonSets` and Deployments, endpoints for
//! Services, and on each node of the lab a kubelet that runs the pods' containers as processes there, in file systems of
//! their own, with no more rights than their manifests give them.
//!
//! It does what the Kubernetes documentation says of each, as far as an installation needs it: a `DaemonSet`'s rolling update
//! with surge, volumes (hostPath below a folder that stands for the node's disk, configMap, projected tokens, emptyDir), init
//! containers, HTTP and exec probes, restarts, graceful ends, exec. There is no cluster DNS: `/etc/hosts` has the services.

mod container;
mod controllers;
mod pods;
mod probes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use self::pods::Running;
use crate::api::{ApiServer, ExecCall, ExecResult};
use crate::lab::Lab;
use crate::node::Node;

/// How often it looks at everything.
const LOOK: Duration = Duration::from_millis(50);

/// The cluster's controllers and its kubelets; dropped, it ends what it has started.
#[derive(Debug)]
pub struct Kubelet {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    api: ApiServer,
    nodes: Vec<Node>,
    folder: PathBuf,
    /// By the pods' UIDs.
    running: Mutex<BTreeMap<String, Running>>,
    stop: AtomicBool,
}

impl Kubelet {
    /// Begins with these nodes, which become Node objects.
    pub fn start(lab: &Lab, api: &ApiServer, nodes: &[&Node]) -> Result<Self> {
        for node in nodes {
            api.put(json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": node.name(), "labels": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": node.name()}},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": node.v4.to_string()}, {"type": "Hostname", "address": node.name()}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }))?;
        }
        let shared = Arc::new(Shared {
            api: api.clone(),
            nodes: nodes.iter().map(|node| (*node).clone()).collect(),
            folder: lab.folder().join("kubelet"),
            running: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let exec = Arc::downgrade(&shared);
        api.on_exec(move |call| match exec.upgrade() {
            Some(shared) => shared.exec(call),
            None => {
                ExecResult { stderr: b"the kubelet is gone".to_vec(), code: 255, ..ExecResult::default() }
            }
        });
        let looks = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !looks.stop.load(Ordering::Relaxed) {
                if let Err(error) = looks.look() {
                    eprintln!("kubelet: {error:#}");
                }
                std::thread::sleep(LOOK);
            }
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The folder that stands for a node's disk.
    pub fn disk(&self, node: &Node) -> PathBuf {
        self.shared.disk(node.name())
    }

    /// What the containers of a pod have logged.
    pub fn log(&self, pod: &str) -> String {
        let running = self.shared.running();
        let of = running.values().filter(|running| running.name == pod);
        of.map(Running::log).collect()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It was told already if it panicked.
            let _ = thread.join();
        }
        if std::thread::panicking() {
            for running in self.shared.running().values() {
                eprintln!("--- {}: {}", running.name, running.log());
            }
        }
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self, node: &str) -> PathBuf {
        self.folder.join(format!("disk-{node}"))
    }

    fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name() == name)
    }

    fn look(&self) -> Result<()> {
        self.services()?;
        self.daemon_sets()?;
        self.deployments()?;
        self.pods()
    }

    fn exec(&self, call: &ExecCall) -> ExecResult {
        let refused =
            |why: String| ExecResult { stderr: why.into_bytes(), code: 255, ..ExecResult::default() };
        let target = {
            let running = self.running();
            let pod = running
                .values()
                .find(|running| running.namespace == call.namespace && running.name == call.pod);
            pod.and_then(|pod| pod.pid(call.container.as_deref()))
        };
        let Some(pid) = target else { return refused("container not found: it does not run".to_owned()) };
        let pid = pid.to_string();
        let entered = ["-t", &pid, "--mount", "--net", "--root", "--wd=/"];
        match std::process::Command::new("nsenter").args(entered).args(&call.argv).output() {
            Ok(output) => ExecResult {
                stdout: output.stdout,
                stderr: output.stderr,
                code: output.status.code().unwrap_or(255),
            },
            Err(error) => refused(error.to_string()),
        }
    }
}

/// A text below an object, empty where there is none.
fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A list below an object, empty where there is none.
fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
