//! The server: connections accepted within their bounds, the handshake made, requests answered, and a drain at the end.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::audit::Audit;
use super::authorise::Authoriser;
use super::caller::Callers;
use super::limits::{Place, Places, Quiet};
use super::metrics::CaMetrics;
use super::service::{Front, Office};
use super::serving::Serving;
use super::stream::Connection;
use crate::identity::{Signer, handshake_reason};
use crate::socket;

/// Wait after a failed `accept`, which mostly means that there are no more file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Longest list of headers, in bytes; a token is in it.
const MAX_HEADERS: u32 = 32 << 10;
/// What a connection or a stream may send ahead, in bytes.
const WINDOW: u32 = 64 << 10;
/// Lines about connections that brought no request, in [`QUIET`].
const LINES: u64 = 10;
const QUIET: Duration = Duration::from_secs(10);

/// What callers may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections.
    pub connections: usize,
    /// Connections from one address.
    pub per_address: usize,
    /// Requests at once on one connection.
    pub per_connection: u32,
    /// Requests that are decided at once.
    pub requests: usize,
    /// The same from one address.
    pub requests_per_address: usize,
    /// Longest handshake.
    pub handshake: Duration,
    /// Longest request, from its head to its answer.
    pub request: Duration,
    /// Longest time without a request.
    pub idle: Duration,
    /// Longest life of a connection.
    pub age: Duration,
    /// Longest wait for requests under way when the server ends.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            per_address: 64,
            per_connection: 32,
            requests: 256,
            requests_per_address: 32,
            handshake: Duration::from_secs(5),
            request: Duration::from_secs(8),
            idle: Duration::from_mins(1),
            age: Duration::from_mins(10),
            drain: Duration::from_secs(10),
        }
    }
}

/// What a server is made of.
pub struct ServerConfig {
    /// Who may call.
    pub callers: Callers,
    /// For what.
    pub authoriser: Authoriser,
    /// Who signs.
    pub signer: Arc<dyn Signer>,
    /// Who hears of it.
    pub audit: Audit,
    /// Metrics.
    pub metrics: Arc<CaMetrics>,
    /// What is shown in the handshake.
    pub serving: Arc<Serving>,
    /// Longest life of a certificate.
    pub max_life: Duration,
    /// Bounds.
    pub limits: Limits,
}

/// The server of an authority.
pub struct Server {
    front: Front,
    shared: Arc<Shared>,
}

struct Shared {
    serving: Arc<Serving>,
    metrics: Arc<CaMetrics>,
    limits: Limits,
    quiet: Quiet,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

impl Server {
    /// A server that has not begun.
    pub fn new(config: ServerConfig) -> Self {
        let ServerConfig { callers, authoriser, signer, audit, metrics, serving, max_life, limits } = config;
        let office = Office {
            callers,
            authoriser,
            signer,
            audit,
            metrics: Arc::clone(&metrics),
            max_life,
            deadline: limits.request,
            at_once: Places::new(limits.requests, limits.requests_per_address),
        };
        let shared = Shared { serving, metrics, limits, quiet: Quiet::new(LINES, QUIET) };
        Self { front: Front::new(office), shared: Arc::new(shared) }
    }

    /// Serves until `shutdown` completes; then takes no more connections and gives requests under way their time.
    pub async fn run(self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let (sender, receiver) = mpsc::channel(16);
        let incoming = futures_util::stream::unfold(receiver, async |mut receiver| {
            let connection: Connection = receiver.recv().await?;
            Some((Ok::<_, std::io::Error>(connection), receiver))
        });
        let limits = self.shared.limits;
        let (end, ending) = oneshot::channel::<()>();
        let served = tonic::transport::Server::builder()
            .max_concurrent_streams(limits.per_connection)
            .http2_max_header_list_size(MAX_HEADERS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_connection_age(limits.age)
            .serve_with_incoming_shutdown(self.front, incoming, async {
                // Told or forgotten, it ends: idle connections at once, others with their requests.
                let _ = ending.await;
            });
        // Ends with the last connection, once there is nobody any more to send others.
        let served = tokio::spawn(served);
        accept(&self.shared, &listener, &sender, shutdown).await;
        drop((sender, listener, end));
        if tokio::time::timeout(limits.drain, served).await.is_err() {
            tracing::warn!("requests were still under way after {:?}", limits.drain);
        }
    }
}

/// Accepts until the shutdown. A connection is handed on once its handshake has been made.
async fn accept(
    shared: &Arc<Shared>,
    listener: &TcpListener,
    ready: &mpsc::Sender<Connection>,
    shutdown: impl Future<Output = ()>,
) {
    let places = Places::new(shared.limits.connections, shared.limits.per_address);
    let mut handshakes = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            Some(_) = handshakes.join_next(), if !handshakes.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match places.take(peer.ip()) {
                    Ok(place) => {
                        let (shared, ready) = (Arc::clone(shared), ready.clone());
                        handshakes.spawn(handshake(shared, stream, peer, place, ready));
                    }
                    Err(reason) => shared.refused(peer, reason),
                },
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
}

async fn handshake(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    ready: mpsc::Sender<Connection>,
) {
    // One that cannot be prepared fails in what follows.
    let _ = socket::prepare(&stream);
    let made = TlsAcceptor::from(shared.serving.current()).accept(stream);
    match tokio::time::timeout(shared.limits.handshake, made).await {
        Ok(Ok(stream)) => {
            shared.metrics.connection_opened();
            let idle = shared.limits.idle;
            let on_end = Box::new(move |peer, requests| {
                shared.metrics.connection_closed();
                if requests == 0 {
                    shared.refused(peer, "no_request");
                }
            });
            // Nobody takes it: the server ends.
            let _ = ready.send(Connection::new(stream, peer, idle, place, on_end)).await;
        }
        Ok(Err(error)) => shared.refused(peer, handshake_reason(&error)),
        Err(_elapsed) => shared.refused(peer, "timeout"),
    }
}

impl Shared {
    fn refused(&self, peer: SocketAddr, reason: &'static str) {
        self.metrics.connection_refused(reason);
        if let Some(unsaid) = self.quiet.pass() {
            tracing::warn!(%peer, reason, unsaid, "connection without a request");
        }
    }
}
