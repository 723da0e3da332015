//! Why the mesh cannot be installed, looked at or taken away.

use std::io;

use super::chart::ChartError;
use crate::kubernetes::KubernetesError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The chart or its values.
    #[error(transparent)]
    Chart(#[from] ChartError),
    /// The kubeconfig.
    #[error("cannot use the kubeconfig")]
    Kubeconfig(#[source] Box<kube::config::KubeconfigError>),
    /// No cluster to ask.
    #[error("there is no cluster to ask: give --kubeconfig or KUBECONFIG")]
    NoCluster(#[source] Box<kube::config::InferConfigError>),
    /// The client.
    #[error(transparent)]
    Client(#[from] KubernetesError),
    /// A question.
    #[error("cannot {operation} {object}")]
    Ask {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// Somebody else has set what is to be set.
    #[error(
        "{object} has fields that somebody else has set: {message}; if they are the mesh's, --force-conflicts takes them over"
    )]
    Conflict {
        /// Which object.
        object: String,
        /// As the API server says it.
        message: String,
    },
    /// A kind that this knows nothing of.
    #[error("the chart has an object of the kind `{0}`, which is not known here")]
    Kind(String),
    /// What was kept of the last installation.
    #[error("cannot read what was installed in the ConfigMap {object}: {reason}")]
    Record {
        /// Which.
        object: String,
        /// Why.
        reason: String,
    },
    /// The CNI plugin would stay on the nodes.
    #[error(
        "the CNI plugin is on the nodes as installed with {0}, and agents with other values would leave it there: install with \
         these, or `meshctl uninstall` first"
    )]
    OtherCni(String),
    /// Nothing to look at.
    #[error("no mesh is installed in the namespace {0}")]
    NotInstalled(String),
    /// The output.
    #[error("write the output")]
    Write(#[from] io::Error),
}

impl From<super::chart::ValuesError> for InstallError {
    fn from(error: super::chart::ValuesError) -> Self {
        Self::Chart(error.into())
    }
}
