//! How this program reaches the Kubernetes API server: one place that knows where its address and credentials are.

mod list;
pub mod permissions;

use std::time::Duration;

pub use self::list::{ListError, Listed, list_all};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no API server to ask.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The file that KUBECONFIG names.
    #[error("cannot use the kubeconfig that KUBECONFIG names")]
    Kubeconfig(#[source] kube::config::KubeconfigError),
    /// The file of the user.
    #[error("no API server to ask: KUBECONFIG is not set, and ~/.kube/config cannot be used")]
    UserConfig(#[source] kube::config::KubeconfigError),
    /// The account of the pod.
    #[error("cannot use the pod's service account")]
    InCluster(#[source] kube::config::InClusterError),
    /// The client.
    #[error("cannot make a client for the Kubernetes API server")]
    Client(#[source] kube::Error),
}

/// Whether the surroundings name an API server: `KUBECONFIG`, or a pod's `KUBERNETES_SERVICE_HOST`.
pub fn is_near() -> bool {
    ["KUBECONFIG", "KUBERNETES_SERVICE_HOST"].iter().any(|name| std::env::var_os(name).is_some())
}

/// The API server that `KUBECONFIG` names, else that of the cluster that this runs in.
///
/// # Errors
/// There is none, or what is known of it makes no sense. It is not asked anything yet.
pub async fn config() -> Result<Config, KubernetesError> {
    let mut config = if std::env::var_os("KUBECONFIG").is_some() {
        let files = Kubeconfig::from_env().map_err(KubernetesError::Kubeconfig)?.unwrap_or_default();
        Config::from_custom_kubeconfig(files, &KubeConfigOptions::default())
            .await
            .map_err(KubernetesError::Kubeconfig)?
    } else {
        Config::incluster().map_err(KubernetesError::InCluster)?
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Ok(config)
}

/// The API server that a user's `kubectl` asks: as [`config`], or the one of `~/.kube/config`.
///
/// # Errors
/// There is none, or what is known of it makes no sense.
pub async fn user_config() -> Result<Config, KubernetesError> {
    if is_near() {
        return config().await;
    }
    let files = Kubeconfig::read().map_err(KubernetesError::UserConfig)?;
    let config = Config::from_custom_kubeconfig(files, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(KubernetesError::UserConfig)?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Ok(config)
}

/// A client of the API server that a configuration names.
///
/// # Errors
/// The configuration makes no sense.
pub fn client(config: Config) -> Result<Client, KubernetesError> {
    Client::try_from(config).map_err(KubernetesError::Client)
}
