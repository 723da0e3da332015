//! The environment that the plugin is called with.

use std::ffi::OsString;
use std::path::PathBuf;

use super::error::{Code, Failure};
use crate::admin::cni::{AttachmentId, PodName};

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// Reads variables.
pub(super) type Env<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

impl Verb {
    pub(super) fn read(env: &Env<'_>) -> Result<Self, Failure> {
        match &*required(env, "CNI_COMMAND")? {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "GC" => Ok(Self::Gc),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            other => Err(invalid(format!(
                "CNI_COMMAND is {other:?}: it must be ADD, DEL, CHECK, GC, STATUS or VERSION"
            ))),
        }
    }

    /// The first version of the specification that has it.
    pub(super) const fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del | Self::Version => "0.1.0",
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// What ADD and CHECK are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) id: AttachmentId,
    /// `CNI_NETNS`.
    pub(super) netns: Option<PathBuf>,
    /// The Kubernetes pod; `None`: the runtime did not name one, so it is no pod of Kubernetes.
    pub(super) pod: Option<PodName>,
}

impl Subject {
    pub(super) fn read(env: &Env<'_>) -> Result<Self, Failure> {
        let id = subject_id(env)?;
        let netns = env("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
        let pod = pod(&optional(env, "CNI_ARGS")?)?;
        Ok(Self { id, netns, pod })
    }
}

/// What names the attachment.
pub(super) fn subject_id(env: &Env<'_>) -> Result<AttachmentId, Failure> {
    let id = AttachmentId {
        container_id: required(env, "CNI_CONTAINERID")?,
        ifname: required(env, "CNI_IFNAME")?,
    };
    match id.problem() {
        Some(problem) => Err(invalid(problem.to_owned())),
        None => Ok(id),
    }
}

/// The pod of `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`. Keys that mean nothing here are for other plugins, with or without
/// `IgnoreUnknown`.
fn pod(args: &str) -> Result<Option<PodName>, Failure> {
    let mut found = [const { None }; 3];
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(invalid(format!("CNI_ARGS has {pair:?}, which is no KEY=VALUE")));
        };
        let place = match key {
            "K8S_POD_NAMESPACE" => 0,
            "K8S_POD_NAME" => 1,
            "K8S_POD_UID" => 2,
            _ => continue,
        };
        found[place] = Some(value).filter(|value| !value.is_empty());
    }
    match found {
        [None, None, _] => Ok(None),
        [Some(namespace), Some(name), Some(uid)] => {
            for (key, value) in [("NAMESPACE", namespace), ("NAME", name), ("UID", uid)] {
                // Names of Kubernetes: at most 253 of these; UIDs of static pods are hexadecimal digests.
                let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
                if value.len() > 253 || !value.chars().all(is_legal) {
                    return Err(invalid(format!("K8S_POD_{key} in CNI_ARGS is no name: {value:?}")));
                }
            }
            Ok(Some(PodName { namespace: namespace.into(), name: name.into(), uid: uid.into() }))
        }
        [namespace, name, _] => {
            let missing = if namespace.is_none() {
                "K8S_POD_NAMESPACE"
            } else if name.is_none() {
                "K8S_POD_NAME"
            } else {
                "K8S_POD_UID, without which a pod cannot be told from its successor (containerd 1.6 and CRI-O 1.22 give it)"
            };
            Err(invalid(format!("CNI_ARGS lacks {missing}")))
        }
    }
}

fn required(env: &Env<'_>, name: &str) -> Result<String, Failure> {
    let value = optional(env, name)?;
    if value.is_empty() { Err(invalid(format!("{name} is not set"))) } else { Ok(value) }
}

fn optional(env: &Env<'_>, name: &str) -> Result<String, Failure> {
    match env(name).map(OsString::into_string) {
        None => Ok(String::new()),
        Some(Ok(value)) => Ok(value),
        Some(Err(_)) => Err(invalid(format!("{name} is no UTF-8"))),
    }
}

pub(super) fn invalid(details: String) -> Failure {
    Failure::new(Code::Environment, "invalid environment variables", details)
}
