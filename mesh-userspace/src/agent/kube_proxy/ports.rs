//! The ports that kube-proxy has, taken while the agent is in its place.

use std::sync::Arc;

use tokio::net::TcpListener;

use super::{Bind, KubeProxyConfig};
use crate::admin::{AdminData, serve_health, serve_proxy_metrics};
use crate::agent::AgentError;

/// The listeners; `None` where there is to be none.
pub(in crate::agent) struct ProxyPorts {
    health: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

impl ProxyPorts {
    /// Listens, if the agent is in kube-proxy's place.
    pub(in crate::agent) async fn bind(config: &KubeProxyConfig, replaces: bool) -> Result<Self, AgentError> {
        if !replaces {
            return Ok(Self { health: None, metrics: None });
        }
        Ok(Self {
            health: listen("--healthz-bind-address", config.healthz_bind_address).await?,
            metrics: listen("--proxy-metrics-bind-address", config.proxy_metrics_bind_address).await?,
        })
    }

    /// Serves until both futures have completed.
    pub(in crate::agent) async fn serve<D: AdminData>(
        self,
        data: Arc<D>,
        health_shutdown: impl Future<Output = ()>,
        metrics_shutdown: impl Future<Output = ()>,
    ) {
        let health = async {
            if let Some(listener) = self.health {
                serve_health(listener, Arc::clone(&data), health_shutdown).await;
            }
        };
        let metrics = async {
            if let Some(listener) = self.metrics {
                serve_proxy_metrics(listener, Arc::clone(&data), metrics_shutdown).await;
            }
        };
        tokio::join!(health, metrics);
    }
}

async fn listen(flag: &'static str, bind: Bind) -> Result<Option<TcpListener>, AgentError> {
    let Some(address) = bind.0 else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|source| AgentError::Port { address, flag, source })
}
