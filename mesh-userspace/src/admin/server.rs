//! The HTTP server of the node's API. Bounded in every way: connections, followers, headers, time.

use std::borrow::Borrow;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use futures_util::stream;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::AdminSocket;
use super::analysis::AnalysisReport;
use super::api::{
    CertReport, CheckReport, ErrorReport, FlowLine, ServiceReport, StatusReport, WorkloadReport,
};
use super::cni::{CniAnswer, CniRequest};
use super::explain::{ExplainQuery, ExplainReport};
use super::plane::{MapReport, QueryError};
use super::policy::{PoliciesReport, PolicyQuery};
use crate::telemetry::{CONTENT_TYPE, FlowLog, Metrics};

/// Connections served at once on one listener: a node's pods may all be starting, each with a plugin that waits.
const MAX_CONNECTIONS: usize = 512;
/// Of those, followers of flows.
const MAX_FOLLOWERS: usize = 16;
/// Longest that a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that an answer may take to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest request head.
const MAX_HEAD: usize = 16 << 10;
/// Flows that are listed where no limit is given.
const DEFAULT_FLOWS: usize = 100;
/// Entries of a map that are listed at most.
const MAX_ROWS: usize = 100_000;
/// Wait after a failed `accept`, which mostly means that there are no more file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What an agent can tell that waits for its first state.
const ALWAYS_KNOWN: [&str; 5] = ["/v1/status", "/v1/check", "/metrics", "/healthz", "/livez"];

/// Where the documents come from. The agent implements it; none of it may block.
pub trait AdminData: Send + Sync + 'static {
    /// `GET /v1/status`.
    fn status(&self) -> impl Future<Output = StatusReport> + Send;
    /// `GET /v1/check`.
    fn check(&self) -> impl Future<Output = CheckReport> + Send;
    /// `GET /v1/services`.
    fn services(&self) -> impl Future<Output = Vec<ServiceReport>> + Send;
    /// `GET /v1/workloads`.
    fn workloads(&self) -> impl Future<Output = Vec<WorkloadReport>> + Send;
    /// `GET /v1/certs`.
    fn certs(&self) -> impl Future<Output = Vec<CertReport>> + Send;
    /// `GET /v1/maps`: the map of that name, or all, each with so many of its entries.
    ///
    /// # Errors
    /// There is no such map, or it cannot be read.
    fn maps(
        &self,
        name: Option<String>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<MapReport>, QueryError>> + Send;
    /// `GET /v1/explain`.
    ///
    /// # Errors
    /// The question makes no sense, is about something unknown, or the maps cannot be read.
    fn explain(&self, query: ExplainQuery) -> impl Future<Output = Result<ExplainReport, QueryError>> + Send;
    /// `GET /v1/policies`: all of them, or those that apply to a workload.
    ///
    /// # Errors
    /// The workload is not known.
    fn policies(&self, query: PolicyQuery)
    -> impl Future<Output = Result<PoliciesReport, QueryError>> + Send;
    /// `GET /v1/analysis`.
    ///
    /// # Errors
    /// The answer could not be had.
    fn analysis(&self) -> impl Future<Output = Result<AnalysisReport, QueryError>> + Send;
    /// `POST /v1/cni`: what the CNI plugin has to say. Answers within a few seconds, if only that it is not done yet.
    fn cni(&self, request: CniRequest) -> impl Future<Output = CniAnswer> + Send;
    /// `GET /v1/flows`.
    fn flows(&self) -> &FlowLog;
    /// `GET /metrics`.
    fn metrics(&self) -> &Metrics;
    /// `GET /healthz`: why the agent is not healthy.
    ///
    /// # Errors
    /// The reason, for a human.
    fn health(&self) -> Result<(), String>;
    /// Whether load balancers should send nothing to this node any more.
    fn node_is_leaving(&self) -> bool;
    /// Why only status, check, metrics and health can be told yet.
    fn waits_for(&self) -> Option<String> {
        None
    }
}

pub(super) struct Shared<D> {
    pub(super) data: Arc<D>,
    followers: Arc<Semaphore>,
}

impl<D> Clone for Shared<D> {
    fn clone(&self) -> Self {
        Self { data: Arc::clone(&self.data), followers: Arc::clone(&self.followers) }
    }
}

/// Serves the whole API until `shutdown` completes.
pub async fn serve_socket<D: AdminData>(
    socket: impl Borrow<AdminSocket>,
    data: Arc<D>,
    shutdown: impl Future<Output = ()>,
) {
    let socket = socket.borrow();
    let router = Router::new()
        .route("/v1/status", get(async |State(on): State<Shared<D>>| Json(on.data.status().await)))
        .route("/v1/check", get(async |State(on): State<Shared<D>>| Json(on.data.check().await)))
        .route("/v1/services", get(async |State(on): State<Shared<D>>| Json(on.data.services().await)))
        .route("/v1/workloads", get(async |State(on): State<Shared<D>>| Json(on.data.workloads().await)))
        .route("/v1/certs", get(async |State(on): State<Shared<D>>| Json(on.data.certs().await)))
        .route("/v1/maps", get(maps))
        .route("/v1/explain", get(explain))
        .route("/v1/policies", get(policies))
        .route("/v1/analysis", get(async |State(on): State<Shared<D>>| document(on.data.analysis().await)))
        .route("/v1/cni", post(cni))
        .route("/v1/flows", get(flows))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/livez", get(lives));
    accept(|| socket.accept(), finish(router, data), shutdown).await;
}

/// Serves `/metrics`, `/healthz` and `/livez` alone until `shutdown` completes.
pub async fn serve_metrics<D: AdminData>(
    listener: impl Borrow<TcpListener>,
    data: Arc<D>,
    shutdown: impl Future<Output = ()>,
) {
    let listener = listener.borrow();
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/livez", get(lives));
    accept(async || Ok(listener.accept().await?.0), finish(router, data), shutdown).await;
}

pub(super) fn finish<D: AdminData>(router: Router<Shared<D>>, data: Arc<D>) -> Router {
    let shared = Shared { data, followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)) };
    router
        .fallback(async || error(StatusCode::NOT_FOUND, "no such document"))
        .layer(middleware::from_fn_with_state(shared.clone(), once_known))
        .layer(middleware::from_fn(in_time))
        .with_state(shared)
}

/// An agent that waits for its first state has none to tell of.
async fn once_known<D: AdminData>(State(on): State<Shared<D>>, request: Request, next: Next) -> Response {
    match on.data.waits_for() {
        Some(reason) if !ALWAYS_KNOWN.contains(&request.uri().path()) => {
            error(StatusCode::SERVICE_UNAVAILABLE, &reason)
        }
        _ => next.run(request).await,
    }
}

pub(super) async fn in_time(request: Request, next: Next) -> Response {
    tokio::time::timeout(ANSWER_TIMEOUT, next.run(request))
        .await
        .unwrap_or_else(|_elapsed| error(StatusCode::GATEWAY_TIMEOUT, "the agent took too long"))
}

/// Accepts until the shutdown; connections that are open then end with their tasks' runtime.
pub(crate) async fn accept<S, F>(
    mut next: impl FnMut() -> F,
    router: Router,
    shutdown: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = tokio::task::JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = async {
            let permit = Arc::clone(&slots).acquire_owned().await;
            (permit, next().await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            (permit, accepted) = accepted => match accepted {
                Ok(stream) => {
                    tasks.spawn(connection(stream, router.clone(), permit.ok()));
                }
                Err(error) => {
                    tracing::warn!(%error, "admin connection not accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
}

async fn connection<S>(stream: S, router: Router, _slot: Option<OwnedSemaphorePermit>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // One request a connection: an idle one is always one that has not asked yet.
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "admin connection ended");
    }
}

#[derive(Debug, Deserialize)]
struct FlowsQuery {
    limit: Option<usize>,
    #[serde(default)]
    follow: bool,
}

async fn flows<D: AdminData>(State(on): State<Shared<D>>, Query(query): Query<FlowsQuery>) -> Response {
    let limit = query.limit.unwrap_or(DEFAULT_FLOWS);
    if !query.follow {
        let lines: Vec<u8> = on.data.flows().last(limit).iter().flat_map(|record| line(&**record)).collect();
        return ndjson(Body::from(lines));
    }
    let Ok(permit) = Arc::clone(&on.followers).try_acquire_owned() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "too many followers");
    };
    let (before, after) = on.data.flows().follow(limit);
    let first: Vec<u8> = before.iter().flat_map(|record| line(&**record)).collect();
    let following = stream::unfold((Some(first), after, permit), async |(first, mut after, permit)| {
        let bytes = match first {
            Some(first) => first,
            None => match after.recv().await {
                Ok(record) => line(&*record),
                Err(RecvError::Lagged(missed)) => line(&FlowLine::Missed { missed }),
                Err(RecvError::Closed) => return None,
            },
        };
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), (None, after, permit)))
    });
    ndjson(Body::from_stream(following))
}

#[derive(Debug, Deserialize)]
struct MapsQuery {
    name: Option<String>,
    #[serde(default)]
    limit: usize,
}

async fn maps<D: AdminData>(State(on): State<Shared<D>>, Query(query): Query<MapsQuery>) -> Response {
    document(on.data.maps(query.name, query.limit.min(MAX_ROWS)).await)
}

async fn explain<D: AdminData>(State(on): State<Shared<D>>, Query(query): Query<ExplainQuery>) -> Response {
    document(on.data.explain(query).await)
}

async fn policies<D: AdminData>(State(on): State<Shared<D>>, Query(query): Query<PolicyQuery>) -> Response {
    document(on.data.policies(query).await)
}

async fn cni<D: AdminData>(
    State(on): State<Shared<D>>,
    request: Result<Json<CniRequest>, JsonRejection>,
) -> Response {
    match request {
        Ok(Json(request)) => Json(on.data.cni(request).await).into_response(),
        Err(rejection) => error(StatusCode::BAD_REQUEST, &rejection.body_text()),
    }
}

fn document(answer: Result<impl Serialize, QueryError>) -> Response {
    match answer {
        Ok(document) => Json(document).into_response(),
        Err(failure) => {
            let status = match failure {
                QueryError::Bad(_) => StatusCode::BAD_REQUEST,
                QueryError::NotFound(_) => StatusCode::NOT_FOUND,
                QueryError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            error(status, &failure.to_string())
        }
    }
}

fn line(record: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).unwrap_or_default();
    line.push(b'\n');
    line
}

fn ndjson(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

async fn metrics<D: AdminData>(State(on): State<Shared<D>>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], on.data.metrics().render()).into_response()
}

/// It turns; whether it is well is another question.
pub(super) async fn lives() -> &'static str {
    "ok\n"
}

async fn health<D: AdminData>(State(on): State<Shared<D>>) -> Response {
    match on.data.health() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

pub(super) fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(ErrorReport { error: message.to_owned() })).into_response()
}

#[cfg(test)]
pub(crate) mod testing {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::admin::analysis::Finding;
    use crate::admin::api::{CheckItem, KernelReport, ProgramStatus};
    use crate::admin::explain::Verdict;
    use crate::admin::plane::MapRow;
    use crate::admin::policy::PolicyReport;
    use crate::resources::{Kind, ObjectRef, Severity};

    /// A folder for sockets, which have short names.
    pub(crate) fn socket_dir() -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("mesh-admin-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// An agent that has little to say.
    pub(crate) struct FakeAgent {
        pub(crate) flows: FlowLog,
        pub(crate) metrics: Metrics,
        pub(crate) leaving: AtomicBool,
    }

    impl FakeAgent {
        pub(crate) fn new() -> Arc<Self> {
            let metrics = Metrics::following("test", Arc::default(), true);
            Arc::new(Self { flows: FlowLog::default(), metrics, leaving: AtomicBool::new(false) })
        }
    }

    /// The whole answer to one request.
    pub(crate) async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    impl AdminData for FakeAgent {
        async fn status(&self) -> StatusReport {
            let program = ProgramStatus {
                name: "mesh_connect4".to_owned(),
                attached: true,
                ..ProgramStatus::default()
            };
            let kernel = KernelReport { programs: vec![program], ..KernelReport::default() };
            StatusReport { node: "node-1".to_owned(), pid: 7, kernel, ..StatusReport::default() }
        }

        async fn check(&self) -> CheckReport {
            let item =
                CheckItem { name: "maps".to_owned(), ok: true, required: true, ..CheckItem::default() };
            CheckReport { items: vec![item] }
        }

        async fn services(&self) -> Vec<ServiceReport> {
            vec![ServiceReport {
                namespace: "default".to_owned(),
                name: "reviews".to_owned(),
                ..ServiceReport::default()
            }]
        }

        async fn workloads(&self) -> Vec<WorkloadReport> {
            // Longer than any answer may take.
            tokio::time::sleep(Duration::from_hours(1)).await;
            Vec::new()
        }

        async fn certs(&self) -> Vec<CertReport> {
            Vec::new()
        }

        async fn maps(&self, name: Option<String>, limit: usize) -> Result<Vec<MapReport>, QueryError> {
            if name.as_deref().is_some_and(|name| name != "SERVICES") {
                return Err(QueryError::NotFound("there is no such map".to_owned()));
            }
            let object = |key: &str, value: u64| [(key.to_owned(), value.into())].into_iter().collect();
            let row = MapRow { key: object("port", 80), value: object("set", 7) };
            let rows = vec![row; limit.min(1)];
            let (name, kind) = ("SERVICES".to_owned(), "hash".to_owned());
            Ok(vec![MapReport { name, kind, entries: Some(1), max_entries: 10, rows }])
        }

        async fn explain(&self, query: ExplainQuery) -> Result<ExplainReport, QueryError> {
            if query.from == "?" {
                return Err(QueryError::Bad("`?` is nobody who connects".to_owned()));
            }
            let verdict = if query.to.ends_with(":80") { Verdict::Translated } else { Verdict::Refused };
            let asked = format!("{} {:?}", query.to, query.protocol);
            Ok(ExplainReport { client: query.from, asked, verdict, ..ExplainReport::default() })
        }

        async fn policies(&self, query: PolicyQuery) -> Result<PoliciesReport, QueryError> {
            if let Some(unknown) = query.workload.filter(|uid| uid != "shop/web") {
                return Err(QueryError::NotFound(format!("no pod {unknown} is known")));
            }
            let policy = PolicyReport {
                namespace: "shop".to_owned(),
                name: "allow-web".to_owned(),
                ..PolicyReport::default()
            };
            Ok(PoliciesReport {
                policies: vec![policy; query.limit.min(1)],
                total: 1,
                ..PoliciesReport::default()
            })
        }

        async fn analysis(&self) -> Result<AnalysisReport, QueryError> {
            let finding = Finding {
                code: "MESH0109".to_owned(),
                severity: Severity::Warning,
                object: Some(ObjectRef::new(Kind::VirtualService, "shop", "web")),
                message: "not honoured at layer 4".to_owned(),
                ..Finding::default()
            };
            Ok(AnalysisReport::new(vec![finding], 0))
        }

        async fn cni(&self, request: CniRequest) -> CniAnswer {
            match request {
                CniRequest::Add { .. } => CniAnswer::Enrolled,
                CniRequest::Check(_) => CniAnswer::Refused { reason: "never seen".to_owned() },
                CniRequest::Del(_) | CniRequest::Gc { .. } => CniAnswer::Done,
            }
        }

        fn flows(&self) -> &FlowLog {
            &self.flows
        }

        fn metrics(&self) -> &Metrics {
            &self.metrics
        }

        fn health(&self) -> Result<(), String> {
            Err("no programs attached".to_owned())
        }

        fn node_is_leaving(&self) -> bool {
            self.leaving.load(Ordering::Relaxed)
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpStream, UnixStream};

    use super::testing::{FakeAgent, ask, socket_dir};
    use super::*;
    use crate::telemetry::{Direction, FlowRecord, Outcome, Party, Reporter, ResponseFlags, Security};

    fn flow() -> FlowRecord {
        FlowRecord {
            id: 0,
            start: 1,
            duration_ms: 2,
            reporter: Reporter::Source,
            direction: Direction::Outbound,
            source: Party::default(),
            destination: Party::default(),
            original_destination: None,
            service: None,
            bytes_sent: 1,
            bytes_received: 2,
            security: Security::None,
            outcome: Outcome::Closed,
            response_flags: ResponseFlags::None.into(),
            error: None,
            policy: None,
            srtt_us: None,
            retransmits: None,
        }
    }

    #[tokio::test]
    async fn documents_are_served_on_the_socket() {
        let dir = socket_dir();
        let path = dir.join("meshd.sock");
        let agent = FakeAgent::new();
        agent.flows.record(flow());
        let socket = AdminSocket::bind(&path).unwrap();
        tokio::spawn(serve_socket(socket, agent, std::future::pending()));
        let cases = [
            ("/v1/status", "200", "\"node\":\"node-1\""),
            ("/v1/check", "200", "\"name\":\"maps\""),
            ("/v1/services", "200", "\"name\":\"reviews\""),
            ("/v1/certs", "200", "[]"),
            ("/v1/flows?limit=5", "200", "\"id\":1"),
            ("/v1/flows?limit=x", "400", ""),
            ("/v1/maps", "200", "\"max_entries\":10,\"rows\":[]"),
            ("/v1/maps?name=SERVICES&limit=5", "200", "\"value\":{\"set\":7}"),
            ("/v1/maps?name=X", "404", "there is no such map"),
            (
                "/v1/explain?from=a%2Fb&to=%5B%3A%3A1%5D%3A80&protocol=UDP",
                "200",
                "\"asked\":\"[::1]:80 Udp\"",
            ),
            ("/v1/explain?from=%3F&to=x&protocol=TCP", "400", "nobody who connects"),
            ("/v1/explain?from=x", "400", ""),
            ("/v1/policies", "200", "\"name\":\"allow-web\""),
            ("/v1/policies?workload=shop%2Fweb&limit=0", "200", "\"policies\":[],\"total\":1"),
            ("/v1/policies?workload=shop%2Fnone", "404", "no pod shop/none is known"),
            ("/v1/policies?limit=-1", "400", ""),
            ("/metrics", "200", "mesh_build_info{version=\"test\""),
            ("/healthz", "503", "no programs attached"),
            ("/v1/nothing", "404", "no such document"),
        ];
        for (document, status, content) in cases {
            let answer = ask(UnixStream::connect(&path).await.unwrap(), document).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{document}: {answer}");
            assert!(answer.contains(content), "{document}: {answer}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn the_port_has_metrics_and_health_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_metrics(listener, FakeAgent::new(), std::future::pending()));
        for (document, status) in [
            ("/metrics", "200"),
            ("/healthz", "503"),
            ("/livez", "200"),
            ("/v1/status", "404"),
            ("/v1/certs", "404"),
        ] {
            let answer = ask(TcpStream::connect(address).await.unwrap(), document).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{document}: {answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_ones_are_not_waited_for() {
        let dir = socket_dir();
        let path = dir.join("meshd.sock");
        let socket = AdminSocket::bind(&path).unwrap();
        tokio::spawn(serve_socket(socket, FakeAgent::new(), std::future::pending()));
        // An answer that does not come.
        let answer = ask(UnixStream::connect(&path).await.unwrap(), "/v1/workloads").await;
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
        // A client that asks nothing.
        let mut silent = UnixStream::connect(&path).await.unwrap();
        silent.write_all(b"GET /v1/sta").await.unwrap();
        let mut rest = Vec::new();
        let _ = silent.read_to_end(&mut rest).await;
        // A client that asks too much.
        let mut long = UnixStream::connect(&path).await.unwrap();
        let request = format!("GET /v1/status HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(2 * MAX_HEAD));
        let _ = long.write_all(request.as_bytes()).await;
        let mut answer = String::new();
        let _ = long.read_to_string(&mut answer).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn followers_see_what_comes_and_are_bounded() {
        let dir = socket_dir();
        let path = dir.join("meshd.sock");
        let agent = FakeAgent::new();
        agent.flows.record(flow());
        let socket = AdminSocket::bind(&path).unwrap();
        tokio::spawn(serve_socket(socket, Arc::clone(&agent), std::future::pending()));
        let mut followers = Vec::new();
        for _ in 0..MAX_FOLLOWERS {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(b"GET /v1/flows?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while !line.contains("\"id\":1,") {
                line.clear();
                stream.read_line(&mut line).await.unwrap();
            }
            followers.push(stream);
        }
        let refused = ask(UnixStream::connect(&path).await.unwrap(), "/v1/flows?follow=true").await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        agent.flows.record(flow());
        let mut line = String::new();
        while !line.contains("\"id\":2,") {
            line.clear();
            followers[0].read_line(&mut line).await.unwrap();
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
