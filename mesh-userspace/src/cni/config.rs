//! The configuration on the plugin's stdin.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::PLUGIN;
use super::error::{Code, Failure, VERSIONS};
use super::known::DEFAULT_KNOWN;
use crate::admin::DEFAULT_SOCKET;
use crate::admin::cni::AttachmentId;

/// How long the plugin waits for the agent if it is not told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest that it may: runtimes give a sandbox two to four minutes.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(90);

/// What is the plugin's own in its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginConfig {
    /// `socket`: the agent's.
    pub socket: PathBuf,
    /// `timeoutSeconds`: how long ADD waits for the agent.
    pub timeout: Duration,
    /// `logFile`: where the plugin says what it did; stderr if there is none.
    pub log_file: Option<PathBuf>,
    /// `stateFile`: who is known to be in the mesh while no agent can be asked.
    pub state_file: PathBuf,
}

impl PluginConfig {
    /// As an element of `plugins` in a configuration list.
    pub(super) fn to_json(&self) -> Value {
        let mut entry = json!({
            "type": PLUGIN,
            "socket": self.socket,
            "timeoutSeconds": self.timeout.as_secs(),
            "stateFile": self.state_file,
        });
        if let (Some(file), Some(fields)) = (&self.log_file, entry.as_object_mut()) {
            fields.insert("logFile".to_owned(), json!(file));
        }
        entry
    }
}

/// The whole configuration of one call.
#[derive(Debug)]
pub(super) struct Config<'a> {
    pub(super) version: String,
    pub(super) network: String,
    pub(super) plugin: PluginConfig,
    /// The result of the plugins before this one, as it came.
    pub(super) prev_result: Option<&'a RawValue>,
    /// `cni.dev/valid-attachments`.
    pub(super) valid: Valid,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    name: String,
    socket: Option<PathBuf>,
    timeout_seconds: Option<u64>,
    log_file: Option<PathBuf>,
    state_file: Option<PathBuf>,
    #[serde(borrow, default)]
    prev_result: Option<&'a RawValue>,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid: Valid,
}

/// The attachments that are still wanted.
#[derive(Debug, Default)]
pub(super) enum Valid {
    /// Not told.
    #[default]
    Absent,
    /// Told as `null`: none.
    Null,
    /// These.
    These(Vec<AttachmentId>),
}

impl<'de> Deserialize<'de> for Valid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let these = Option::<Vec<AttachmentId>>::deserialize(deserializer)?;
        Ok(these.map_or(Self::Null, Self::These))
    }
}

/// The version that stdin asks for, whatever else is wrong with it.
pub(super) fn version(stdin: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        cni_version: String,
    }
    serde_json::from_slice::<Version>(stdin).ok().map(|written| written.cni_version)
}

impl<'a> Config<'a> {
    /// Reads a configuration.
    pub(super) fn read(stdin: &'a [u8]) -> Result<Self, Failure> {
        let written: Written<'a> = serde_json::from_slice(stdin).map_err(|error| {
            // A value of the wrong type is JSON all the same.
            if error.is_data() {
                Failure::new(Code::Config, "invalid network configuration", error.to_string())
            } else {
                Failure::new(Code::Decode, "cannot decode the network configuration", error.to_string())
            }
        })?;
        let Written { cni_version, name, socket, timeout_seconds, log_file, state_file, prev_result, valid } =
            written;
        if !VERSIONS.contains(&&*cni_version) {
            let asked =
                if cni_version.is_empty() { "no cniVersion, which means 0.1.0" } else { &cni_version };
            let details =
                format!("the configuration has {asked}; this plugin speaks {}", VERSIONS.join(", "));
            return Err(Failure::new(Code::Version, "incompatible CNI version", details));
        }
        let invalid = |details: String| Failure::new(Code::Config, "invalid network configuration", details);
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(is_name) {
            return Err(invalid(
                "`name` must begin with a letter or digit and have none but those, `_`, `.` and `-`"
                    .to_owned(),
            ));
        }
        let timeout = timeout_seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
        if !(Duration::from_secs(1)..=MAX_TIMEOUT).contains(&timeout) {
            return Err(invalid(format!("`timeoutSeconds` must be from 1 to {}", MAX_TIMEOUT.as_secs())));
        }
        let prev_result = prev_result.filter(|result| result.get() != "null");
        let plugin = PluginConfig {
            socket: socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
            timeout,
            log_file,
            state_file: state_file.unwrap_or_else(|| DEFAULT_KNOWN.into()),
        };
        Ok(Self { version: cni_version, network: name, plugin, prev_result, valid })
    }
}
