//! What the plugin answers when it fails: an error result by the specification.

use serde::Serialize;

/// Versions of the specification that this plugin speaks.
pub(super) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The last of them.
pub(super) const LATEST: &str = "1.1.0";

/// Codes of the specification ("Error"), and from 100 on the plugin's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Code {
    /// The configuration is of a version that the plugin does not speak, or that lacks the command.
    Version = 1,
    /// The environment.
    Environment = 4,
    /// Reading or writing.
    Io = 5,
    /// stdin is no JSON.
    Decode = 6,
    /// stdin is JSON, and no configuration.
    Config = 7,
    /// Something passes by itself.
    TryAgain = 11,
    /// No pod can be added now.
    Unavailable = 50,
    /// The agent refuses, for good.
    Refused = 100,
    /// The pod is not in the mesh as it should be.
    Broken = 101,
}

/// A command that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: Code,
    /// Short, the same for each cause.
    pub(super) msg: &'static str,
    /// What exactly, and what to do.
    pub(super) details: String,
}

impl Failure {
    pub(super) fn new(code: Code, msg: &'static str, details: impl Into<String>) -> Self {
        Self { code, msg, details: details.into() }
    }

    /// The result, as it is printed.
    pub(super) fn result(&self, version: Option<&str>) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct ErrorResult<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let cni_version = version.filter(|version| VERSIONS.contains(version)).unwrap_or(LATEST);
        let result =
            ErrorResult { cni_version, code: self.code as u32, msg: self.msg, details: &self.details };
        // Text and a number cannot fail to be written.
        serde_json::to_vec(&result).unwrap_or_default()
    }
}
