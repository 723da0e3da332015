//! The socket of one process alone, which a kubelet's exec probes ask: whether it is ready, and whether it turns.
//!
//! Two agents share the network of their node, and all other addresses are those of the one that serves. What an agent says
//! that stands by can only be asked here.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::AdminSocket;
use super::server::{accept, error, in_time, lives};

type Answer = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Whether this process is ready: what is to be asked changes with what it does. Clones are the same.
#[derive(Clone)]
pub struct Readiness(Arc<ArcSwap<Answer>>);

impl Default for Readiness {
    fn default() -> Self {
        let starts: Answer = Box::new(|| Err("the agent starts".to_owned()));
        Self(Arc::new(ArcSwap::from_pointee(starts)))
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.get()).finish()
    }
}

impl Readiness {
    /// Whether it is ready now.
    ///
    /// # Errors
    /// Why it is not, for a human.
    pub fn get(&self) -> Result<(), String> {
        (self.0.load())()
    }

    /// From now on this is asked. It may not block.
    pub fn ask(&self, answer: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        self.0.store(Arc::new(Box::new(answer)));
    }

    /// From now on it is not, for this reason.
    pub fn set_missing(&self, reason: String) {
        self.ask(move || Err(reason.clone()));
    }
}

/// Serves `/healthz` and `/livez` until `shutdown` completes.
pub async fn serve_probes(socket: AdminSocket, readiness: Readiness, shutdown: impl Future<Output = ()>) {
    let healthy = move || std::future::ready(answer(&readiness));
    let router = Router::new()
        .route("/healthz", get(healthy))
        .route("/livez", get(lives))
        .fallback(async || error(StatusCode::NOT_FOUND, "no such document"))
        .layer(middleware::from_fn(in_time));
    accept(|| socket.accept(), router, shutdown).await;
}

fn answer(readiness: &Readiness) -> Response {
    match readiness.get() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::net::UnixStream;

    use super::*;
    use crate::admin::testing::{ask, socket_dir};

    #[tokio::test]
    async fn what_is_asked_changes_with_what_the_process_does() {
        let dir = socket_dir();
        let path = dir.join("probe.sock");
        let readiness = Readiness::default();
        let socket = AdminSocket::bind(&path).unwrap();
        tokio::spawn(serve_probes(socket, readiness.clone(), std::future::pending()));
        let get = async |document: &str| ask(UnixStream::connect(&path).await.unwrap(), document).await;
        let answer = get("/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("the agent starts\n"), "{answer}");
        assert!(get("/livez").await.starts_with("HTTP/1.1 200"));
        readiness.set_missing("no certificate".to_owned());
        assert!(get("/healthz").await.ends_with("no certificate\n"));
        let well = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&well);
        readiness
            .ask(move || if asked.load(Ordering::Relaxed) { Ok(()) } else { Err("it ended".to_owned()) });
        assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
        well.store(false, Ordering::Relaxed);
        assert!(get("/healthz").await.ends_with("it ended\n"));
        assert!(get("/metrics").await.starts_with("HTTP/1.1 404"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
