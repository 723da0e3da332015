//! Probes of containers: HTTP and exec, startup before liveness, and what becomes of a container that fails them.
//!
//! Each is asked more often than its manifest says, and given more failures: tests are not to wait, nor to end what a busy
//! machine has kept from answering.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::pods::Running;
use super::{Shared, list, text};
use crate::process::Process;

/// How often a container is probed.
const PERIOD: Duration = Duration::from_millis(300);
/// So long a container may fail to start, and so long one that has started may fail to live.
const TO_START: Duration = Duration::from_mins(1);
const TO_LIVE: Duration = Duration::from_secs(10);
/// Longest that a probe may take.
const LIMIT: &str = "5";

/// What the probes of a container have come to.
#[derive(Debug, Default)]
pub(super) struct Probes {
    pub(super) ready: bool,
    started: bool,
    last: Option<Instant>,
    failing: Option<Instant>,
    /// Why it is not ready, as it was told.
    told: String,
}

impl Shared {
    /// Probes a container when that is due, and ends one that is not what its probes ask for.
    pub(super) fn probe(
        &self,
        pod: &Value,
        container: &Value,
        process: &Process,
        probes: &mut Probes,
        running: &Running,
    ) -> Result<()> {
        if probes.last.is_some_and(|at| at.elapsed() < PERIOD) {
            return Ok(());
        }
        probes.last = Some(Instant::now());
        let ask = |probe: &str| match &container[probe] {
            Value::Null => Ok(()),
            asked => self.answers(asked, process, running),
        };
        let (probe, patience) =
            if probes.started { ("livenessProbe", TO_LIVE) } else { ("startupProbe", TO_START) };
        if let Err(why) = ask(probe) {
            probes.ready = false;
            let since = *probes.failing.get_or_insert_with(Instant::now);
            if since.elapsed() > patience {
                self.tell_unhealthy(pod, &format!("{probe} failed, will be restarted: {why}"))?;
                process.kill()?;
            }
            return Ok(());
        }
        (probes.started, probes.failing) = (true, None);
        let asked = ask("readinessProbe");
        probes.ready = asked.is_ok();
        let why = asked.err().unwrap_or_default();
        if !why.is_empty() && why != probes.told {
            self.tell_unhealthy(pod, &format!("Readiness probe failed: {why}"))?;
        }
        probes.told = why;
        Ok(())
    }

    fn answers(&self, probe: &Value, process: &Process, running: &Running) -> Result<(), String> {
        match (&probe["exec"], &probe["httpGet"]) {
            (Value::Object(_), _) => executed(list(probe, "/exec/command"), process.pid()),
            (_, Value::Object(_)) => self.asked(&probe["httpGet"], running),
            _ => Err(format!("a probe that is not known here: {probe}")),
        }
    }

    /// An HTTP probe, asked from where a kubelet is: the node.
    fn asked(&self, probe: &Value, running: &Running) -> Result<(), String> {
        let host = match (probe["host"].as_str(), &running.pod) {
            (Some(host), _) => host.to_owned(),
            (None, Some(pod)) => pod.v4.to_string(),
            (None, None) => "127.0.0.1".to_owned(),
        };
        let (Some(node), Some(port)) = (self.node(&running.node), probe["port"].as_u64()) else {
            return Err(format!("it names no port: {probe}"));
        };
        let address: SocketAddr = format!("{host}:{port}").parse().map_err(|error| format!("{error}"))?;
        let path = probe["path"].as_str().unwrap_or("/").to_owned();
        let asked = node.netns().run(move || -> std::io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        });
        match asked {
            Ok(Ok(answer)) if answer.starts_with(b"HTTP/1.1 200") => Ok(()),
            Ok(Ok(answer)) => Err(String::from_utf8_lossy(&answer).into_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    /// As a kubelet tells it, but once a pod: `kubectl describe pod` and `meshctl install` show it.
    fn tell_unhealthy(&self, pod: &Value, message: &str) -> Result<()> {
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"namespace": namespace, "name": format!("{name}.unhealthy")},
            "involvedObject": {"kind": "Pod", "namespace": namespace, "name": name, "uid": pod["metadata"]["uid"]},
            "type": "Warning", "reason": "Unhealthy", "message": message,
        });
        self.api.put(event).map(drop)
    }
}

/// An exec probe: a program of the container, in its namespaces and its root.
fn executed(command: &[Value], pid: u32) -> Result<(), String> {
    let pid = pid.to_string();
    let entered = [LIMIT, "nsenter", "-t", &pid, "--mount", "--net", "--root", "--wd=/"];
    let words = command.iter().filter_map(Value::as_str);
    match Command::new("timeout").args(entered).args(words).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Err(format!("{}: {}", output.status, String::from_utf8_lossy(&said).trim()))
        }
        Err(error) => Err(error.to_string()),
    }
}
