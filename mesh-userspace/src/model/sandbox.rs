//! Where this node's pods are, as the CNI plugin has said: known before the pods' objects say it, and better.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use imbl::HashMap;

use super::WorkloadUid;

/// What the plugin has said of a pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// It has these addresses in this network namespace.
    At {
        /// Those of the interface that was added.
        addresses: Vec<IpAddr>,
        /// A path such as `/var/run/netns/cni-…`.
        netns: PathBuf,
    },
    /// It was taken down; whatever the pod's status says, its addresses may be another's.
    Gone,
}

/// A pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The pod that it belongs to, which must have the UID that it is kept under.
    pub workload: WorkloadUid,
    /// Where it is.
    pub sandbox: Sandbox,
}

/// Sandboxes by their pod's `metadata.uid`.
pub type Sandboxes = HashMap<Arc<str>, Placed>;
