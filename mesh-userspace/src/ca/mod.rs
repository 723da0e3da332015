//! The certificate authority as a whole, `meshd ca`: its parts made, joined and taken down in order.
//!
//! It needs no privileges: a folder for the authority, two ports, and a way to tell who calls.

mod config;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub use self::config::{CaConfig, CallerConfig, PodConfig, UseKubernetes};

use crate::admin::serve_router;
use crate::identity::ca::caller::TokenReviewer;
use crate::identity::ca::serving::Serving;
use crate::identity::ca::{
    Audit, AuditError, Authoriser, CaMetrics, Callers, Kubernetes, Limits, NodeTokens, Placement, Server,
    ServerConfig, ServingConfig, ServingError, SnapshotPlacement, TokensError,
};
use crate::identity::{Authority, AuthorityError};
use crate::kubernetes::{self, KubernetesError};
use crate::model::MeshConfig;
use crate::source::{self, Input, Source, SourceError};
use crate::telemetry::CONTENT_TYPE;

/// Most threads that answer requests.
const MAX_THREADS: usize = 4;
/// Longest wait for what is still running when all has been told to end.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Why an authority cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is no way to tell who calls.
    #[error(
        "no way to tell who calls, and an open certificate authority is none: give --node-tokens FILE or --client-ca \
         FILE, or run where Kubernetes is (--kubernetes, with KUBECONFIG or in a pod)"
    )]
    Open,
    /// The folder.
    #[error("cannot open the certificate authority")]
    Authority(#[source] AuthorityError),
    /// The tokens.
    #[error("cannot take --node-tokens")]
    Tokens(#[source] TokensError),
    /// Kubernetes.
    #[error("cannot use Kubernetes (--kubernetes=false does without)")]
    Kubernetes(#[source] KubernetesError),
    /// The audit log.
    #[error("cannot keep an audit log")]
    Audit(#[source] AuditError),
    /// The server's own certificate, or --client-ca.
    #[error("cannot serve TLS")]
    Serving(#[source] ServingError),
    /// A path of `--manifests` is not there.
    #[error("cannot read {}: what --manifests names must be there at the start", path.display())]
    Manifests {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The source.
    #[error("cannot read the manifests")]
    Source(#[source] SourceError),
    /// A port.
    #[error("cannot listen on {address}: give another with {flag}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What says so.
        flag: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Threads or signals.
    #[error("cannot start {what}")]
    Start {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn starting(what: &'static str) -> impl FnOnce(io::Error) -> CaError {
    move |source| CaError::Start { what, source }
}

/// Runs an authority until SIGTERM or SIGINT.
pub fn run(config: CaConfig) -> Result<(), CaError> {
    crate::agent::raise_file_limit();
    let (audit, written) = Audit::open(config.audit_log.as_deref()).map_err(CaError::Audit)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(starting("the runtime"))?;
    let result = runtime.block_on(serve(config, audit));
    // What still holds the log goes with the runtime; then all lines are written.
    runtime.shutdown_timeout(LAST_WAIT);
    if written.join().is_err() {
        tracing::error!("the audit log's thread panicked");
    }
    result
}

async fn serve(config: CaConfig, audit: Audit) -> Result<(), CaError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(starting("the signal handlers"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(starting("the signal handlers"))?;
    let (stop, stopped) = watch::channel(false);
    let kubernetes = kubernetes(&config.callers).await?;
    let callers = callers(&config, kubernetes.clone())?;
    let authoriser = authoriser(&config, kubernetes, stopped.clone()).await?;
    let authority = Authority::open(&config.ca_dir, &config.trust_domain).map_err(CaError::Authority)?;
    let authority = Arc::new(authority);
    let metrics = Arc::new(CaMetrics::new(env!("CARGO_PKG_VERSION")));
    let names = ServingConfig { names: config.dns_name, client_roots: config.callers.client_ca };
    let serving = Serving::open(Arc::clone(&authority), &names, Arc::clone(&metrics));
    let serving = Arc::new(serving.map_err(CaError::Serving)?);
    let listener = listen(config.listen, "--listen").await?;
    let scraped = listen(config.metrics_addr, "--metrics-addr").await?;
    let server = Server::new(ServerConfig {
        callers,
        authoriser,
        signer: authority,
        audit,
        metrics: Arc::clone(&metrics),
        serving: Arc::clone(&serving),
        max_life: config.max_cert_ttl,
        limits: Limits::default(),
    });
    let keep = tokio::spawn(async move { serving.run().await });
    let router = router(metrics);
    let until = on(stopped.clone());
    let observe = tokio::spawn(async move {
        serve_router(async || Ok(scraped.accept().await?.0), router, until).await;
    });
    tracing::info!(listen = %config.listen, metrics = %config.metrics_addr, trust_domain = %config.trust_domain,
        "certificate authority serving");
    let ended = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: requests under way are answered");
        stop.send_replace(true);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("told twice: ending at once");
    };
    tokio::select! {
        () = server.run(listener, on(stopped)) => {}
        () = ended => {}
    }
    keep.abort();
    observe.abort();
    Ok(())
}

/// Completes once the flag is set, or its owner is gone.
async fn on(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}

async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, CaError> {
    TcpListener::bind(address).await.map_err(|source| CaError::Listen { address, flag, source })
}

async fn kubernetes(config: &CallerConfig) -> Result<Option<Arc<Kubernetes>>, CaError> {
    let wanted = match config.kubernetes {
        UseKubernetes::Auto => kubernetes::is_near(),
        UseKubernetes::True => true,
        UseKubernetes::False => false,
    };
    if !wanted {
        return Ok(None);
    }
    Ok(Some(Arc::new(Kubernetes::open().await.map_err(CaError::Kubernetes)?)))
}

fn callers(config: &CaConfig, kubernetes: Option<Arc<Kubernetes>>) -> Result<Callers, CaError> {
    let tokens = config.callers.node_tokens.as_deref().map(NodeTokens::open).transpose();
    let tokens = tokens.map_err(CaError::Tokens)?;
    let reviewer = kubernetes.map(|kubernetes| kubernetes as Arc<dyn TokenReviewer>);
    let certificates = config.callers.client_ca.is_some();
    Callers::new(config.trust_domain.clone(), tokens, reviewer, certificates).ok_or(CaError::Open)
}

async fn authoriser(
    config: &CaConfig,
    kubernetes: Option<Arc<Kubernetes>>,
    stopped: watch::Receiver<bool>,
) -> Result<Authoriser, CaError> {
    let mut placements: Vec<Arc<dyn Placement>> = Vec::new();
    if !config.pods.manifests.is_empty() {
        config.pods.manifests.iter().try_for_each(|path| check(path))?;
        let mesh = MeshConfig { trust_domain: config.trust_domain.clone(), ..MeshConfig::default() };
        let manifests = Source::begin(Input::Manifests(config.pods.manifests.clone()));
        let feed = source::run(manifests.map_err(CaError::Source)?, mesh, on(stopped)).await;
        let feed = feed.map_err(CaError::Source)?;
        placements.push(Arc::new(SnapshotPlacement::new(feed.current)));
    }
    if let Some(kubernetes) = kubernetes {
        placements.push(kubernetes);
    }
    if placements.is_empty() {
        tracing::warn!(
            "nothing says which pods are where: callers get their own identity alone (give --manifests, or Kubernetes)"
        );
    }
    let accounts = config.pods.node_account.iter().cloned();
    Ok(Authoriser::new(config.trust_domain.clone(), accounts, placements))
}

/// Whether what the flag names can be read now.
fn check(path: &Path) -> Result<(), CaError> {
    let read =
        if path.is_dir() { std::fs::read_dir(path).map(drop) } else { std::fs::File::open(path).map(drop) };
    read.map_err(|source| CaError::Manifests { path: path.into(), source })
}

fn router(metrics: Arc<CaMetrics>) -> Router {
    let scraped = Arc::clone(&metrics);
    Router::new()
        .route("/metrics", get(async move || ([(header::CONTENT_TYPE, CONTENT_TYPE)], scraped.render())))
        .route("/healthz", get(async move || health(&metrics)))
}

/// Healthy is an authority that can sign, and be believed.
fn health(metrics: &CaMetrics) -> (StatusCode, &'static str) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let has_ended = |end: i64| u64::try_from(end).unwrap_or(0) <= now;
    let (serving, root) = metrics.expiries();
    match () {
        () if has_ended(root) => (StatusCode::SERVICE_UNAVAILABLE, "a root certificate has expired\n"),
        () if has_ended(serving) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the server's own certificate has expired: look at the log\n")
        }
        () => (StatusCode::OK, "ok\n"),
    }
}
