//! Names, each a type of its own so that none is taken for another. Cheap to clone.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{shared, shared_text};

/// Namespace and name of a service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ServiceName {
    /// Kubernetes namespace.
    #[serde(deserialize_with = "shared::text")]
    pub namespace: Arc<str>,
    /// Name in that namespace.
    pub name: Arc<str>,
}

impl ServiceName {
    /// A name from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `NAMESPACE/POD`, unique in a cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkloadUid(#[serde(deserialize_with = "shared::text")] Arc<str>);

impl WorkloadUid {
    /// The id of the pod `name` in `namespace`.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// The same, shared with all who name the pod: for what is kept.
    pub(crate) fn shared(namespace: &str, name: &str) -> Self {
        Self(shared_text(&format!("{namespace}/{name}")))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a node, as in `spec.nodeName`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(#[serde(deserialize_with = "shared::text")] Arc<str>);

impl NodeName {
    /// A node called `name`.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The same, shared with all who name the node: for what is kept.
    pub(crate) fn shared(name: &str) -> Self {
        Self(shared_text(name))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
