//! The plugin's commands.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout_at};

use super::config::{self, Config, Valid};
use super::error::{Code, Failure, LATEST, VERSIONS};
use super::invocation::{Env, Subject, Verb, invalid, subject_id};
use super::remote::{AwayError, Machine, Surroundings};
use super::{PLUGIN, log};
use crate::admin::cni::{AttachmentId, CniAnswer, CniAttachment, CniRequest, PodName};

/// Longest configuration: with the attachments of GC, far more than a node's.
const MAX_STDIN: u64 = 4 << 20;
/// Longest that the runtime may take to write it.
const STDIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before an agent that is away is looked for again.
const RETRY: Duration = Duration::from_millis(200);

/// What a call came to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    stdout: Vec<u8>,
    /// For the log; `Err` where the call failed.
    said: Result<String, String>,
}

/// Whether this process was called as the plugin, by the name of its binary.
pub fn is_plugin(argv0: Option<&OsStr>) -> bool {
    argv0.is_some_and(|argv0| Path::new(argv0).file_name() == Some(OsStr::new(PLUGIN)))
}

/// Runs the plugin once: environment and stdin in, result on stdout.
pub fn main() -> ExitCode {
    let started = std::time::Instant::now();
    let env = |name: &str| std::env::var_os(name);
    let (outcome, log_file) = match read_stdin() {
        Ok(stdin) => {
            let config = Config::read(&stdin).ok();
            let log_file = config.as_ref().and_then(|config| config.plugin.log_file.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let outcome = match runtime {
                Ok(runtime) => runtime.block_on(call(&env, &stdin, |config| Machine {
                    socket: config.plugin.socket.clone(),
                    state_file: config.plugin.state_file.clone(),
                })),
                Err(error) => failed(&Failure::new(Code::Io, "cannot start", error.to_string()), None),
            };
            (outcome, log_file)
        }
        Err(failure) => (failed(&failure, None), None),
    };
    let printed = io::stdout().write_all(&outcome.stdout).and_then(|()| io::stdout().flush());
    let (text, code) = match &outcome.said {
        Ok(said) if printed.is_ok() => (said.clone(), ExitCode::SUCCESS),
        Ok(said) => (format!("{said}; the result cannot be printed"), ExitCode::FAILURE),
        Err(said) => (said.clone(), ExitCode::FAILURE),
    };
    let about = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_ARGS"]
        .map(|name| env(name).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default());
    log::line(log_file.as_deref(), &format!("{} {:?} {text}", about.join(" "), started.elapsed()));
    code
}

/// stdin to its end, within bounds of size and time.
fn read_stdin() -> Result<Vec<u8>, Failure> {
    let (sender, read) = mpsc::channel();
    let reader = std::thread::Builder::new().spawn(move || {
        let mut bytes = Vec::new();
        let done = io::stdin().lock().take(MAX_STDIN + 1).read_to_end(&mut bytes);
        // Nobody waits any more where this fails.
        let _ = sender.send(done.map(|_length| bytes));
    });
    let io_failure =
        |error: String| Failure::new(Code::Io, "cannot read the network configuration from stdin", error);
    reader.map_err(|error| io_failure(error.to_string()))?;
    let bytes = match read.recv_timeout(STDIN_TIMEOUT) {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(io_failure(error.to_string())),
        Err(_elapsed) => return Err(io_failure(format!("it did not end within {STDIN_TIMEOUT:?}"))),
    };
    if bytes.len() as u64 > MAX_STDIN {
        let details = format!("it is longer than {MAX_STDIN} bytes");
        return Err(Failure::new(Code::Decode, "cannot decode the network configuration", details));
    }
    Ok(bytes)
}

async fn call<S: Surroundings>(
    env: &Env<'_>,
    stdin: &[u8],
    surroundings: impl FnOnce(&Config<'_>) -> S,
) -> Outcome {
    match command(env, stdin, surroundings).await {
        Ok((stdout, said)) => Outcome { stdout, said: Ok(said) },
        Err(failure) => failed(&failure, config::version(stdin).as_deref()),
    }
}

fn failed(failure: &Failure, version: Option<&str>) -> Outcome {
    let said = format!("failed with code {}: {}: {}", failure.code as u32, failure.msg, failure.details);
    Outcome { stdout: failure.result(version), said: Err(said) }
}

async fn command<S: Surroundings>(
    env: &Env<'_>,
    stdin: &[u8],
    surroundings: impl FnOnce(&Config<'_>) -> S,
) -> Result<(Vec<u8>, String), Failure> {
    let verb = Verb::read(env)?;
    if verb == Verb::Version {
        // A version that the plugin does not speak is no error here, nor is no configuration at all.
        let asked = config::version(stdin).unwrap_or_else(|| LATEST.to_owned());
        let result = json!({ "cniVersion": asked, "supportedVersions": VERSIONS });
        return Ok((result.to_string().into_bytes(), "told the versions".to_owned()));
    }
    let config = Config::read(stdin)?;
    if !speaks(&config.version, verb) {
        let details = format!(
            "{} came with CNI {}, the configuration has {}",
            verb.name(),
            verb.since(),
            config.version
        );
        return Err(Failure::new(Code::Version, "incompatible CNI version", details));
    }
    let node = surroundings(&config);
    let nothing = |said: &str| (Vec::new(), said.to_owned());
    match verb {
        Verb::Add => add(&Subject::read(env)?, &config, &node).await,
        Verb::Del => {
            // Whose sandbox it was, the agent knows.
            Ok(nothing(&del(subject_id(env)?, &node).await))
        }
        Verb::Check => {
            check(Subject::read(env)?, &config, &node).await?;
            Ok(nothing("as it should be"))
        }
        Verb::Gc => {
            let valid = match config.valid {
                Valid::These(valid) => valid,
                Valid::Null => Vec::new(),
                Valid::Absent => {
                    let details = "GC needs `cni.dev/valid-attachments`";
                    return Err(Failure::new(Code::Config, "invalid network configuration", details));
                }
            };
            let request = CniRequest::Gc { network: config.network, valid };
            node.ask(&request).await.map_err(|away| try_again(&away))?;
            Ok(nothing("collected"))
        }
        Verb::Status => {
            // A runtime that hears that this is not available gives the node up: it is, where ADD can decide without an agent.
            let Err(away) = node.health().await else { return Ok(nothing("available")) };
            let unavailable = |error: io::Error| {
                let details =
                    format!("{away}, and what it knew of enrolled namespaces cannot be read: {error}");
                Failure::new(Code::Unavailable, "the agent of the mesh is not available", details)
            };
            node.known().map_err(unavailable)?;
            Ok(nothing("available for pods that are not to be in the mesh: there is no agent"))
        }
        Verb::Version => Ok(nothing("")),
    }
}

/// Whether a version of the specification has a command.
fn speaks(version: &str, verb: Verb) -> bool {
    let place = |version| VERSIONS.iter().position(|known| *known == version);
    place(version) >= place(verb.since())
}

/// The part of a result that says where the pod is; the rest is nobody's business here.
#[derive(Deserialize)]
struct NetworkResult<'a> {
    #[serde(default, borrow)]
    interfaces: Option<Vec<Interface<'a>>>,
    #[serde(default, borrow)]
    ips: Option<Vec<Ip<'a>>>,
}

#[derive(Deserialize)]
struct Interface<'a> {
    #[serde(default, borrow)]
    name: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    sandbox: std::borrow::Cow<'a, str>,
}

#[derive(Deserialize)]
struct Ip<'a> {
    #[serde(borrow)]
    address: std::borrow::Cow<'a, str>,
    #[serde(default)]
    interface: Option<usize>,
}

/// The addresses that a result gives the interface in the sandbox.
fn addresses(result: &RawValue, ifname: &str) -> Result<Vec<IpAddr>, Failure> {
    let invalid = |details: String| Failure::new(Code::Config, "invalid prevResult", details);
    let result: NetworkResult<'_> =
        serde_json::from_str(result.get()).map_err(|error| invalid(error.to_string()))?;
    let interfaces = result.interfaces.unwrap_or_default();
    let mut addresses = Vec::new();
    for ip in result.ips.into_iter().flatten() {
        if let Some(index) = ip.interface {
            let Some(interface) = interfaces.get(index) else {
                return Err(invalid(format!("an address is on interface {index}, which there is not")));
            };
            if interface.sandbox.is_empty() || interface.name != ifname {
                continue;
            }
        }
        let (address, _) = ip.address.split_once('/').unwrap_or((&*ip.address, ""));
        let address: IpAddr =
            address.parse().map_err(|_error| invalid(format!("{:?} is no address", ip.address)))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

async fn add(
    subject: &Subject,
    config: &Config<'_>,
    node: &impl Surroundings,
) -> Result<(Vec<u8>, String), Failure> {
    let Some(result) = config.prev_result else {
        let details = format!("{PLUGIN} gives no pod a network: chain it after the plugin that does");
        return Err(Failure::new(Code::Config, "no prevResult", details));
    };
    let netns = subject.netns.as_deref().ok_or_else(|| invalid("CNI_NETNS is not set".to_owned()))?;
    match is_own_netns(netns) {
        Ok(false) => {}
        Ok(true) => {
            return Err(invalid(format!(
                "CNI_NETNS {} is the node's own network namespace",
                netns.display()
            )));
        }
        Err(error) => return Err(invalid(format!("CNI_NETNS {}: {error}", netns.display()))),
    }
    let addresses = addresses(result, &subject.id.ifname)?;
    let passed_on = |said: &str| Ok((result.get().as_bytes().to_vec(), said.to_owned()));
    let Some(pod) = &subject.pod else {
        return passed_on("passed: no pod of Kubernetes");
    };
    let attachment = CniAttachment {
        id: subject.id.clone(),
        network: config.network.clone(),
        pod: pod.clone(),
        netns: netns.to_owned(),
        addresses,
    };
    passed_on(&enrol(&attachment, config.plugin.timeout, node).await?)
}

/// Asks until the pod is in the mesh, or is not to be, or there is no more time.
async fn enrol(
    attachment: &CniAttachment,
    limit: Duration,
    node: &impl Surroundings,
) -> Result<String, Failure> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // So that its answer still comes in time.
        let wait_ms = u64::try_from(left.saturating_sub(RETRY).as_millis()).unwrap_or(u64::MAX);
        let request = CniRequest::Add { attachment: attachment.clone(), wait_ms };
        match timeout_at(deadline, node.ask(&request)).await.unwrap_or(Err(AwayError::Timeout)) {
            Ok(CniAnswer::Enrolled) => return Ok("enrolled".to_owned()),
            Ok(CniAnswer::Passed) => return Ok("passed: not to be in the mesh".to_owned()),
            Ok(CniAnswer::Refused { reason }) => {
                return Err(Failure::new(Code::Refused, "the pod cannot be enrolled", reason));
            }
            Ok(CniAnswer::Pending { reason, may_pass }) if Instant::now() + RETRY >= deadline => {
                return out_of_time(may_pass, &reason);
            }
            // It has waited; one that has not must not be asked without a pause.
            Ok(CniAnswer::Pending { .. }) => sleep(RETRY / 10).await,
            Ok(CniAnswer::Done | CniAnswer::Starting { .. }) => {
                return Err(Failure::new(Code::Refused, "the agent answered what was not asked", ""));
            }
            Err(away) if Instant::now() + RETRY >= deadline => {
                return decide_alone(&attachment.pod, &away, node);
            }
            Err(_away) => sleep(RETRY).await,
        }
    }
}

/// Without an agent, what it has last left on the disk decides.
fn decide_alone(pod: &PodName, away: &AwayError, node: &impl Surroundings) -> Result<String, Failure> {
    match node.known() {
        Ok(None) => out_of_time(true, &format!("{away}, and none has ever run here")),
        Ok(Some(known)) => out_of_time(!known.enrols(pod), &away.to_string()),
        Err(error) => out_of_time(
            false,
            &format!("{away}, and what it knew of enrolled namespaces cannot be read: {error}"),
        ),
    }
}

fn out_of_time(may_pass: bool, reason: &str) -> Result<String, Failure> {
    if may_pass {
        Ok(format!("passed: nothing says that it is to be in the mesh, but {reason}"))
    } else {
        Err(Failure::new(Code::TryAgain, "the pod is to be in the mesh, and is not yet", reason))
    }
}

/// Never fails: the runtime would try for ever to take down what is gone.
async fn del(id: AttachmentId, node: &impl Surroundings) -> String {
    match node.ask(&CniRequest::Del(id)).await {
        Ok(_) => "released".to_owned(),
        Err(away) => format!("not told to the agent, which will see for itself: {away}"),
    }
}

async fn check(subject: Subject, config: &Config<'_>, node: &impl Surroundings) -> Result<(), Failure> {
    let Some(result) = config.prev_result else {
        return Err(Failure::new(Code::Config, "no prevResult", "CHECK needs the result of ADD"));
    };
    addresses(result, &subject.id.ifname)?;
    if subject.netns.is_none() {
        return Err(invalid("CNI_NETNS is not set".to_owned()));
    }
    if subject.pod.is_none() {
        return Ok(());
    }
    match node.ask(&CniRequest::Check(subject.id)).await {
        Ok(CniAnswer::Done) => Ok(()),
        Ok(CniAnswer::Refused { reason }) => {
            Err(Failure::new(Code::Broken, "the pod is not in the mesh as it should be", reason))
        }
        Ok(_) => Err(Failure::new(Code::Refused, "the agent answered what was not asked", "")),
        Err(away) => Err(try_again(&away)),
    }
}

fn try_again(away: &AwayError) -> Failure {
    Failure::new(Code::TryAgain, "the agent of the mesh is not available", away.to_string())
}

/// Whether a path is this process's own network namespace, which is the node's.
pub fn is_own_netns(path: &Path) -> io::Result<bool> {
    let key = |path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    Ok(key(path)? == key(Path::new("/proc/thread-self/ns/net"))?)
}

#[cfg(test)]
mod tests;
