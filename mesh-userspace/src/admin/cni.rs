//! What the CNI plugin and the agent say to each other: `POST /v1/cni` on the agent's socket.
//!
//! The agent answers within its usual time, if need be that it is not done yet; the plugin then asks again, for as long
//! as its own limit allows. All requests may be repeated.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A request of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum CniRequest {
    /// A pod has a network: bring it into the mesh, if it is to be.
    Add {
        /// The sandbox.
        attachment: CniAttachment,
        /// How long the answer is worth waiting for, in milliseconds; the agent may wait for less.
        wait_ms: u64,
    },
    /// The sandbox is being taken down.
    Del(AttachmentId),
    /// Whether the pod is in the mesh as it should be.
    Check(AttachmentId),
    /// Forget all attachments to the network but these.
    Gc {
        /// Name of the network.
        network: String,
        /// Those that the runtime has.
        valid: Vec<AttachmentId>,
    },
}

/// What names an attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    /// `CNI_CONTAINERID`: the sandbox.
    #[serde(rename = "containerID", alias = "container_id")]
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl AttachmentId {
    /// Why this can be no attachment: by the specification, and because it becomes the name of a file.
    pub fn problem(&self) -> Option<&'static str> {
        let Self { container_id, ifname } = self;
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !container_id.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !container_id.chars().all(is_name)
        {
            return Some(
                "the container ID must begin with a letter or digit and have none but those, `_`, `.` and `-`",
            );
        }
        if container_id.len() > MAX_CONTAINER_ID {
            return Some("the container ID is longer than 128 characters");
        }
        if ifname.is_empty() || ifname.len() > MAX_IFNAME {
            return Some("the name of the interface must have 1 to 15 characters");
        }
        if ifname == "."
            || ifname == ".."
            || ifname.contains(['/', ':', '\0'])
            || ifname.contains(char::is_whitespace)
        {
            return Some(
                "the name of the interface must not be `.` or `..`, nor have `/`, `:` or space in it",
            );
        }
        None
    }
}

const MAX_CONTAINER_ID: usize = 128;
/// `IFNAMSIZ` with its NUL.
const MAX_IFNAME: usize = 15;

/// The pod that a sandbox is of, as the kubelet's runtime says in `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`.
    pub uid: String,
}

/// A sandbox that has been given a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniAttachment {
    /// What names it.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// Name of the network.
    pub network: String,
    /// The pod.
    pub pod: PodName,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// The addresses that the plugins before have given the interface.
    pub addresses: Vec<IpAddr>,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum CniAnswer {
    /// The pod is in the mesh.
    Enrolled,
    /// The pod is not to be in the mesh.
    Passed,
    /// Done.
    Done,
    /// Not yet: ask again.
    Pending {
        /// What is waited for.
        reason: String,
        /// Whether the pod may start all the same once there is no more time: nothing says that it is to be in the mesh.
        may_pass: bool,
    },
    /// The agent itself knows nothing yet: it is as if there were none.
    Starting {
        /// What it waits for.
        reason: String,
    },
    /// It cannot be, and asking again helps nothing.
    Refused {
        /// Why.
        reason: String,
    },
}
