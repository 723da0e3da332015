//! Opening tunnels: TCP from the source pod's namespace, TLS, HTTP/2, CONNECT.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode, Uri};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::headers::{self, Baggage};
use super::io::LargeReads;
use super::{CONNECTION_WINDOW, DEADLINE, MAX_FRAME, SEND_BUFFER, STREAM_WINDOW, keepalive};
use crate::identity::handshake_reason;
use crate::node::NetNs;
use crate::proxy::copy::Tunnel;
use crate::proxy::upstream;

/// Why no tunnel could be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The destination's agent cannot be reached.
    #[error("connect to {address} for HBONE")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something took longer than it may.
    #[error("{0} took too long")]
    Deadline(&'static str),
    /// TLS failed: the peer is not who it should be, or does not take us for who we are.
    #[error("TLS handshake for HBONE")]
    Tls(#[source] io::Error),
    /// The destination's agent ended TLS: in TLS 1.3 it looks at the client's certificate when the client's handshake is
    /// over already.
    #[error("TLS ended by the destination's agent")]
    Alert(#[source] h2::Error),
    /// HTTP/2 failed.
    #[error("HTTP/2 to the destination's agent")]
    Http(#[source] h2::Error),
    /// The destination's agent refused.
    #[error("the destination's agent answered {0}")]
    Refused(StatusCode),
    /// The request could not be written down.
    #[error("the destination is no HTTP authority")]
    Authority(#[source] http::Error),
    /// There is no certificate to present.
    #[error("no certificate for the source's identity")]
    Certificate(#[source] crate::identity::StoreError),
    /// The certificate cannot be used.
    #[error("TLS configuration")]
    Config(#[source] crate::identity::TlsError),
}

impl ClientError {
    /// Whether another endpoint may be tried: nothing of the application's has been sent.
    pub(crate) const fn is_retryable(&self) -> bool {
        !matches!(
            self,
            Self::Certificate(_)
                | Self::Config(_)
                | Self::Authority(_)
                // Policy: another endpoint that lets it pass would hide that, and take another's share.
                | Self::Refused(StatusCode::UNAUTHORIZED)
        )
    }

    /// Bounded label, where the handshake failed.
    pub(crate) fn handshake_reason(&self) -> Option<&'static str> {
        match self {
            Self::Tls(error) => Some(handshake_reason(error)),
            Self::Alert(_) => Some("refused_by_peer"),
            Self::Deadline("TLS handshake") => Some("timeout"),
            _ => None,
        }
    }
}

impl From<h2::Error> for ClientError {
    fn from(error: h2::Error) -> Self {
        // What TLS says comes through as the kind that no socket gives; its own error is text by then.
        let is_tls = error.get_io().is_some_and(|error| error.kind() == io::ErrorKind::InvalidData);
        if is_tls { Self::Alert(error) } else { Self::Http(error) }
    }
}

/// An HTTP/2 connection to a destination's agent, its driver running on this worker.
pub(super) async fn connect(
    netns: &NetNs,
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<SendRequest<Bytes>, ClientError> {
    let socket = timeout(DEADLINE, upstream::plain(netns, address))
        .await
        .map_err(|_elapsed| ClientError::Deadline("TCP connect"))?
        .map_err(|source| ClientError::Connect { address, source })?;
    let name = ServerName::IpAddress(address.ip().into());
    let tls = timeout(DEADLINE, TlsConnector::from(config).connect(name, LargeReads::new(socket)))
        .await
        .map_err(|_elapsed| ClientError::Deadline("TLS handshake"))?
        .map_err(ClientError::Tls)?;
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(16 * 1024)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(tls);
    let (send, mut connection) = timeout(DEADLINE, handshake)
        .await
        .map_err(|_elapsed| ClientError::Deadline("HTTP/2 preface"))?
        .map_err(ClientError::from)?;
    let ping = connection.ping_pong();
    tokio::task::spawn_local(async move {
        let dead = async {
            match ping {
                Some(ping) => keepalive::until_dead(ping).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The streams of a connection that failed report it, each to its own.
            _result = connection => {}
            () = dead => tracing::debug!(dst.addr = %address, "hbone connection does not answer"),
        }
    });
    Ok(send)
}

/// Asks for a tunnel to `destination` on a connection. Returns once the connection to the application stands.
pub(super) async fn open(
    send: &mut SendRequest<Bytes>,
    destination: SocketAddr,
    client: SocketAddr,
    baggage: Option<&Baggage>,
) -> Result<Tunnel, ClientError> {
    let authority =
        Uri::builder().authority(destination.to_string()).build().map_err(ClientError::Authority)?;
    let mut request =
        Request::builder().method(Method::CONNECT).uri(authority).body(()).map_err(ClientError::Authority)?;
    *request.headers_mut() = headers::request(client, baggage);
    let (response, stream) = send.send_request(request, false).map_err(ClientError::from)?;
    let response = timeout(DEADLINE * 2, response)
        .await
        .map_err(|_elapsed| ClientError::Deadline("the destination's agent"))?
        .map_err(ClientError::from)?;
    if response.status() != StatusCode::OK {
        return Err(ClientError::Refused(response.status()));
    }
    Ok(Tunnel { send: stream, receive: response.into_body() })
}
