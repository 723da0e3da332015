//! The pods that run: their containers one after another and side by side, their state told to the API server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::container::Place;
use super::probes::Probes;
use super::{Shared, list, text};
use crate::node::{Pod, PodSpec};
use crate::process::Process;

/// How long a container that has ended rests, for the first ten seconds of a kubelet's.
const BACK_OFF: Duration = Duration::from_millis(300);

/// A pod that this node has begun with.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: String,
    /// Its network, where it has one of its own.
    pub(super) pod: Option<Pod>,
    place: Place,
    /// Init containers that have done their work.
    initialised: usize,
    containers: BTreeMap<String, Container>,
    ending: Option<Instant>,
    told: Value,
}

#[derive(Debug, Default)]
struct Container {
    process: Option<Process>,
    last: Option<(i32, String)>,
    rests: Option<Instant>,
    restarts: u32,
    probes: Probes,
}

impl Running {
    /// A container's process, of the first where none is named.
    pub(super) fn pid(&self, container: Option<&str>) -> Option<u32> {
        let mut all = self.containers.iter();
        let found = all.find(|(name, _)| container.is_none_or(|wanted| wanted == *name));
        found?.1.process.as_ref().filter(|process| process.is_running()).map(Process::pid)
    }

    /// What its containers have said.
    pub(super) fn log(&self) -> String {
        let said = |container: &Container| {
            let last = container.last.as_ref().map(|(code, said)| format!("(ended with {code})\n{said}"));
            let now = container.process.as_ref().map(|process| process.stderr() + &process.stdout());
            format!("{}{}", last.unwrap_or_default(), now.unwrap_or_default())
        };
        self.containers.values().map(said).collect()
    }
}

impl Shared {
    pub(super) fn pods(&self) -> Result<()> {
        let pods = self.api.objects("Pod");
        let mine = pods.iter().filter(|pod| self.node(text(pod, "/spec/nodeName")).is_some());
        let mine: Vec<&Value> =
            mine.filter(|pod| !list(pod, "/metadata/ownerReferences").is_empty()).collect();
        let mut running = self.running();
        for pod in &mine {
            let uid = text(pod, "/metadata/uid").to_owned();
            if !running.contains_key(&uid) {
                if !pod["metadata"]["deletionTimestamp"].is_null() {
                    self.api.delete("Pod", text(pod, "/metadata/namespace"), text(pod, "/metadata/name"))?;
                    continue;
                }
                running.insert(uid.clone(), self.begin(pod)?);
            }
            if let Some(one) = running.get_mut(&uid) {
                self.step(pod, one)?;
            }
        }
        // Those that were deleted by force end as well.
        let gone: Vec<String> = running
            .iter()
            .filter(|(uid, _)| !mine.iter().any(|pod| text(pod, "/metadata/uid") == *uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            let Some(one) = running.get_mut(&uid) else { continue };
            if end(one, Duration::from_secs(30))? {
                running.remove(&uid);
            }
        }
        Ok(())
    }

    fn begin(&self, pod: &Value) -> Result<Running> {
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let node_name = text(pod, "/spec/nodeName");
        let own = match self.node(node_name) {
            Some(node) if pod["spec"]["hostNetwork"] != true => {
                let mut spec = PodSpec::new(name).namespace(namespace);
                spec.netns = format!("{}-{:x}", node.name(), fastrand::u32(..));
                Some(node.pod(spec)?)
            }
            _ => None,
        };
        Ok(Running {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node_name.to_owned(),
            pod: own,
            place: Place::new(&self.folder, pod),
            initialised: 0,
            containers: BTreeMap::new(),
            ending: None,
            told: Value::Null,
        })
    }

    /// Brings a pod one step on.
    fn step(&self, pod: &Value, running: &mut Running) -> Result<()> {
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
            if end(running, Duration::from_secs(grace))? {
                self.api.delete("Pod", &running.namespace, &running.name)?;
            }
            return Ok(());
        }
        let waits = match self.volumes(pod, &running.place) {
            Ok(()) => {
                let inits = list(pod, "/spec/initContainers");
                if let Some(init) = inits.get(running.initialised) {
                    self.run(pod, init, running)?;
                    let name = text(init, "/name");
                    if running
                        .containers
                        .get(name)
                        .is_some_and(|one| one.last.as_ref().is_some_and(|(code, _)| *code == 0))
                    {
                        running.initialised += 1;
                    }
                } else {
                    for container in list(pod, "/spec/containers") {
                        self.run(pod, container, running)?;
                    }
                }
                None
            }
            Err(reason) => Some(format!("{reason:#}")),
        };
        self.tell(pod, running, waits.as_deref())
    }

    fn run(&self, pod: &Value, container: &Value, running: &mut Running) -> Result<()> {
        let name = text(container, "/name").to_owned();
        let mut state = running.containers.remove(&name).unwrap_or_default();
        let ended = state.process.as_ref().is_some_and(|process| !process.is_running());
        if ended && let Some(process) = state.process.take() {
            let finished = process.wait(Duration::from_secs(1))?;
            state.last = Some((finished.status.code().unwrap_or(255), finished.stderr + &finished.stdout));
            (state.probes, state.rests) = (Probes::default(), Some(Instant::now() + BACK_OFF));
            state.restarts += 1;
        }
        let is_init = list(pod, "/spec/initContainers").iter().any(|init| init["name"] == name.as_str());
        let is_done = is_init && state.last.as_ref().is_some_and(|(code, _)| *code == 0);
        if state.process.is_none() && !is_done && state.rests.is_none_or(|until| Instant::now() >= until) {
            state.process =
                Some(self.spawn(pod, container, &running.place, running.pod.as_ref(), &running.node)?);
        }
        if let Some(process) = state.process.clone() {
            self.probe(pod, container, &process, &mut state.probes, running)?;
        }
        running.containers.insert(name, state);
        Ok(())
    }

    fn tell(&self, pod: &Value, running: &mut Running, waits: Option<&str>) -> Result<()> {
        let told = |container: &Value, initialised: bool| {
            let name = text(container, "/name");
            let none = Container::default();
            let one = running.containers.get(name).unwrap_or(&none);
            let last = one.last.as_ref().map(|(code, said)| {
                let lines: Vec<&str> = said.trim().lines().collect();
                let message = lines[lines.len().saturating_sub(20)..].join("\n");
                json!({"terminated": {"exitCode": code, "reason": "Error", "message": message}})
            });
            let state = match (&one.process, waits) {
                _ if initialised => json!({"terminated": {"exitCode": 0, "reason": "Completed"}}),
                (_, Some(why)) => json!({"waiting": {"reason": "ContainerCreating", "message": why}}),
                (Some(_), None) => json!({"running": {}}),
                (None, None) if last.is_some() => json!({"waiting": {"reason": "CrashLoopBackOff"}}),
                (None, None) => json!({"waiting": {"reason": "PodInitializing"}}),
            };
            json!({
                "name": name, "image": container["image"], "imageID": "", "ready": one.probes.ready || initialised,
                "restartCount": one.restarts, "state": state, "lastState": last.unwrap_or_else(|| json!({})),
            })
        };
        let init: Vec<Value> = list(pod, "/spec/initContainers")
            .iter()
            .enumerate()
            .map(|(number, container)| told(container, number < running.initialised))
            .collect();
        let main: Vec<Value> =
            list(pod, "/spec/containers").iter().map(|container| told(container, false)).collect();
        let ready = main.iter().all(|container| container["ready"] == true);
        let ready_text = if ready { "True" } else { "False" };
        let Some(node) = self.node(&running.node) else { return Ok(()) };
        let address = running.pod.as_ref().map_or(node.v4, |pod| pod.v4).to_string();
        let status = json!({
            "phase": if ready { "Running" } else { "Pending" },
            "hostIP": node.v4.to_string(), "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": ready_text}],
            "initContainerStatuses": init, "containerStatuses": main,
        });
        if status != running.told {
            self.api.edit("Pod", &running.namespace, &running.name, |pod| pod["status"] = status.clone())?;
            running.told = status;
        }
        Ok(())
    }
}

/// Ends the containers of a pod, gracefully for a while; returns whether they are gone.
fn end(running: &mut Running, grace: Duration) -> Result<bool> {
    let since = *running.ending.get_or_insert_with(Instant::now);
    let is_first = since.elapsed() < Duration::from_millis(1);
    let processes: Vec<&Process> =
        running.containers.values().filter_map(|one| one.process.as_ref()).collect();
    let left: Vec<&&Process> = processes.iter().filter(|process| process.is_running()).collect();
    for process in &left {
        if is_first {
            process.signal(Signal::SIGTERM)?;
        } else if since.elapsed() > grace {
            process.kill()?;
        }
    }
    Ok(left.is_empty())
}
