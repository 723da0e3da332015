//! The ports that kube-proxy has: health checks of load balancers, and its metrics.
//!
//! Answers are those of `pkg/proxy/healthcheck` and `cmd/kube-proxy` in Kubernetes 1.36. `/proxyMode` answers `ebpf`, which
//! kube-proxy never does: who asks for `iptables`, `ipvs` or `nftables` to learn where to look for rules finds none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::net::TcpListener;

use super::server::{AdminData, Shared, accept, finish};
use crate::telemetry::CONTENT_TYPE;

/// How this agent does kube-proxy's work.
const MODE: &str = "ebpf";
/// What Go's zero time is written as.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// What `/healthz` and `/livez` answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<&'static str, FamilyHealth>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyHealth {
    last_updated: String,
    healthy: bool,
}

/// Serves `/healthz` and `/livez` until `shutdown` completes.
pub async fn serve_health<D: AdminData>(
    listener: TcpListener,
    data: Arc<D>,
    shutdown: impl Future<Output = ()>,
) {
    let router = Router::new()
        .route("/healthz", get(async |State(on): State<Shared<D>>| answer(&*on.data, true)))
        .route("/livez", get(async |State(on): State<Shared<D>>| answer(&*on.data, false)));
    accept(async || Ok(listener.accept().await?.0), finish(router, data), shutdown).await;
}

/// Serves kube-proxy's metrics, `/proxyMode` and `/healthz` until `shutdown` completes.
pub async fn serve_proxy_metrics<D: AdminData>(
    listener: TcpListener,
    data: Arc<D>,
    shutdown: impl Future<Output = ()>,
) {
    let metrics = async |State(on): State<Shared<D>>| {
        ([(header::CONTENT_TYPE, CONTENT_TYPE)], on.data.metrics().render_proxy())
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/proxyMode", get(async || MODE))
        .route("/healthz", get(async || "ok"));
    accept(async || Ok(listener.accept().await?.0), finish(router, data), shutdown).await;
}

fn answer(data: &impl AdminData, is_healthz: bool) -> Response {
    let sync = data.metrics().sync();
    let (health, now) = (sync.health(), SystemTime::now());
    let eligible = is_healthz.then(|| !data.node_is_leaving());
    let healthy = health.in_time && eligible != Some(false);
    let last = health.last_updated.map_or_else(|| NEVER.to_owned(), time);
    let family = FamilyHealth { last_updated: last.clone(), healthy: health.in_time };
    let families = health.last_updated.map(|_| ["IPv4", "IPv6"]).into_iter().flatten();
    let body = Health {
        // As kube-proxy has it for the sake of old clients: whoever is healthy was updated just now.
        last_updated: if healthy { time(now) } else { last },
        current_time: time(now),
        node_eligible: eligible,
        healthy: health.in_time,
        status: families.map(|name| (name, family.clone())).collect(),
    };
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    sync.health_answered(is_healthz, status.as_u16());
    (status, [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], Json(body)).into_response()
}

/// RFC 3339 in UTC.
fn time(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let stamp = i128::try_from(since.as_nanos()).ok().and_then(|ns| Timestamp::from_nanosecond(ns).ok());
    stamp.unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use tokio::net::TcpStream;

    use super::*;
    use crate::admin::testing::{FakeAgent, ask};

    #[tokio::test]
    async fn health_is_told_as_kube_proxy_tells_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let agent = FakeAgent::new();
        tokio::spawn(serve_health(listener, Arc::clone(&agent), std::future::pending()));
        let get = async |path: &str| ask(TcpStream::connect(address).await.unwrap(), path).await;
        let answer = get("/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"nodeEligible\":true"), "{answer}");
        agent.metrics.sync().synced(1, Duration::from_millis(1), 0);
        agent.leaving.store(true, Ordering::Relaxed);
        let answer = get("/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"nodeEligible\":false"), "{answer}");
        let answer = get("/livez").await;
        assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("nodeEligible"), "{answer}");
        assert!(answer.contains("\"status\":{\"IPv4\":{\"lastUpdated\":\"20"), "{answer}");
        assert!(answer.contains("x-content-type-options: nosniff"), "{answer}");
        assert!(get("/metrics").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn the_metrics_port_says_how_it_works() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_proxy_metrics(listener, FakeAgent::new(), std::future::pending()));
        for (path, end) in
            [("/proxyMode", "\r\n\r\nebpf"), ("/healthz", "\r\n\r\nok"), ("/metrics", "# EOF\n")]
        {
            let answer = ask(TcpStream::connect(address).await.unwrap(), path).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(end), "{path}: {answer}");
        }
    }

    #[test]
    fn times_are_rfc_3339() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        assert_eq!(time(at), "2023-11-14T22:13:20.25Z");
    }
}
