//! A workload: a pod, or what a `WorkloadEntry` stands for, with addresses, an identity and labels.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Identity, Maglev, MtlsModes, NodeName, WorkloadUid};

/// Label of a namespace or a pod: `ambient` brings it into the mesh, `none` keeps it out.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// What a workload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WorkloadKind {
    /// A pod of this cluster.
    #[default]
    Pod,
    /// A `WorkloadEntry`: something that runs elsewhere. It is on no node, and no agent of this mesh serves it.
    WorkloadEntry,
    /// An endpoint that is written into a `ServiceEntry`; the same holds for it.
    ServiceEntry,
}

/// A pod, or something elsewhere, as the mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Unique in the cluster: [`WorkloadUid`] says how it is made.
    pub uid: WorkloadUid,
    /// What it is.
    pub kind: WorkloadKind,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name of the pod, or of the entry.
    pub name: Arc<str>,
    /// What the pod belongs to (`Deployment` name where it can be told, otherwise the pod's own name): Istio's
    /// `source_workload` and `destination_workload`.
    pub workload_name: Arc<str>,
    /// `status.podIPs`, or what the CNI plugin has said of a pod of this node; empty until the pod has one.
    pub addresses: Vec<IpAddr>,
    /// `spec.nodeName`.
    pub node: Option<NodeName>,
    /// SPIFFE identity. Of an entry that names no service account it is that of `default`, and nothing is asked of it: such an
    /// entry is never [`enrolled`](Self::enrolled).
    pub identity: Identity,
    /// `metadata.labels`.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Istio's canonical service (`service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, workload name).
    pub canonical_name: Arc<str>,
    /// Istio's canonical revision (`service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`,
    /// `latest`).
    pub canonical_revision: Arc<str>,
    /// Whether the mesh plane carries its traffic; of an entry, whether it takes HBONE (`networking.istio.io/tunnel: http`).
    pub enrolled: bool,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// The UID that kubelet and runtime know the pod by: tells it from its successor of the same name, and finds its
    /// namespace in Kubernetes. `metadata.uid`, but for a static pod, whose object is but a mirror with a UID of its own.
    pub pod_uid: Option<Arc<str>>,
    /// Where the pod's network namespace is: as the CNI plugin has said, else, on a machine without Kubernetes, the
    /// annotation `mesh.dev/netns`.
    pub netns: Option<PathBuf>,
    /// What its `PeerAuthentication`s say.
    pub mtls: MtlsModes,
    /// Whether an `AuthorizationPolicy` in force may refuse its clients: with an agent away on the way, none is sent on as
    /// nobody. Of policies with `targetRefs` it is enough that they are in its namespace.
    pub guarded: bool,
}

impl Workload {
    /// A workload without labels or addresses, on no node and not enrolled.
    #[cfg(test)]
    pub(crate) fn for_tests(namespace: &str, name: &str) -> Self {
        Self {
            uid: WorkloadUid::pod(namespace, name),
            kind: WorkloadKind::Pod,
            namespace: namespace.into(),
            name: name.into(),
            workload_name: name.into(),
            addresses: Vec::new(),
            node: None,
            identity: format!("spiffe://cluster.local/ns/{namespace}/sa/{name}")
                .parse()
                .expect("an identity"),
            labels: Arc::default(),
            canonical_name: name.into(),
            canonical_revision: "latest".into(),
            enrolled: false,
            host_network: false,
            pod_uid: None,
            netns: None,
            mtls: MtlsModes::default(),
            guarded: false,
        }
    }

    /// Whether the pod itself says that it is not to be in the mesh, whatever its namespace says.
    pub fn opts_out(&self) -> bool {
        self.labels.get(DATAPLANE_MODE).is_some_and(|mode| mode == "none")
    }

    /// Whether it is a pod of this cluster.
    pub const fn is_pod(&self) -> bool {
        matches!(self.kind, WorkloadKind::Pod)
    }

    /// Its key where a client's own decides where it is sent: by its first address, whatever the family that it asks for. `None`
    /// while it has none.
    pub fn client(&self) -> Option<u64> {
        self.addresses.first().map(|&address| Maglev::client(address))
    }

    /// Whether the pod runs on `node`.
    pub fn is_on(&self, node: &NodeName) -> bool {
        self.node.as_ref() == Some(node)
    }
}
