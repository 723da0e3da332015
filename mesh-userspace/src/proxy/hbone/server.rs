//! Taking tunnels: TLS with a client certificate, HTTP/2, one CONNECT a tunnel.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::io::LargeReads;
use super::{
    CONNECTION_WINDOW, DEADLINE, MAX_FRAME, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW, headers, keepalive,
};
use crate::identity::{PeerError, PeerSession, Roots};
use crate::proxy::copy::Tunnel;
use crate::proxy::pod::Leave;

/// Ports that are the mesh's own and lead nowhere else.
const OWN_PORTS: [u16; 3] = [15001, 15006, mesh_common::abi::HBONE_PORT];

/// Why a connection was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// The handshake took too long.
    #[error("{0} took too long")]
    Deadline(&'static str),
    /// TLS failed.
    #[error("TLS handshake")]
    Tls(#[source] io::Error),
    /// The client's certificate names nobody.
    #[error("the client's certificate")]
    Identity(#[source] PeerError),
    /// The client's certificate has ended, or its root is trusted no longer, since the handshake.
    #[error("the client's certificate is no longer trusted")]
    NoLongerTrusted,
    /// HTTP/2 failed.
    #[error("HTTP/2")]
    Http(#[source] h2::Error),
}

/// A request for a tunnel, not yet answered.
pub(crate) struct TunnelRequest {
    /// Who asks.
    pub(crate) client: Rc<PeerSession>,
    /// Where its connection comes from.
    pub(crate) peer: SocketAddr,
    /// The original client's port, where the source named it and it is the peer's own.
    pub(crate) client_port: u16,
    /// Whom the source names as its client, be it who it may: to be believed of node agents alone.
    pub(crate) forwarded: Option<SocketAddr>,
    /// What it asks for; the address is the connection's own destination.
    pub(crate) destination: SocketAddr,
    respond: SendResponse<Bytes>,
    receive: RecvStream,
}

impl TunnelRequest {
    /// The connection to the application stands.
    pub(crate) fn accept(mut self) -> Result<Tunnel, h2::Error> {
        let send = self.respond.send_response(Response::new(()), false)?;
        Ok(Tunnel { send, receive: self.receive })
    }

    /// It was not looked at: the client may ask again on another connection.
    pub(crate) fn send_back(mut self) {
        self.respond.send_reset(Reason::REFUSED_STREAM);
    }

    /// It does not, or may not.
    pub(crate) fn refuse(mut self, status: StatusCode) {
        refuse(&mut self.respond, status);
    }
}

fn refuse(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if respond.send_response(response, true).is_err() {
        respond.send_reset(Reason::REFUSED_STREAM);
    }
}

/// Serves one connection, whose handshake `roots` verify, until the peer closes it, or its tunnels have ended after `drain`
/// said so or after the end of the client's certificate. The leave for its handshake is given back when that is done.
pub(crate) async fn serve<Handled: Future<Output = ()> + 'static>(
    socket: TcpStream,
    config: Arc<ServerConfig>,
    roots: Arc<Roots>,
    mut drain: watch::Receiver<bool>,
    leave: Leave,
    handle: impl Fn(TunnelRequest) -> Handled,
) -> Result<(), ServerError> {
    let addresses = socket.local_addr().and_then(|local| Ok((local, socket.peer_addr()?)));
    let (local, peer) = addresses.map_err(ServerError::Tls)?;
    let tls = timeout(DEADLINE, TlsAcceptor::from(config).accept(LargeReads::new(socket)))
        .await
        .map_err(|_elapsed| ServerError::Deadline("TLS handshake"))?
        .map_err(ServerError::Tls)?;
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let client = Rc::new(PeerSession::new(chain, roots).map_err(ServerError::Identity)?);
    let left = client.not_after().duration_since(SystemTime::now());
    let expired = tokio::time::sleep(left.unwrap_or_default());
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(64 * 1024)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(tls);
    let mut connection = timeout(DEADLINE, handshake)
        .await
        .map_err(|_elapsed| ServerError::Deadline("HTTP/2 preface"))?
        .map_err(ServerError::Http)?;
    drop(leave);
    let ping = connection.ping_pong();
    let dead = async {
        match ping {
            Some(ping) => keepalive::until_dead(ping).await,
            None => std::future::pending().await,
        }
    };
    let (mut dead, mut expired) = (std::pin::pin!(dead), std::pin::pin!(expired));
    let mut draining = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = &mut dead => return Ok(()),
            () = &mut expired, if !draining => {
                // Its tunnels stay; for another one the client has to say anew who it is.
                draining = true;
                connection.graceful_shutdown();
                continue;
            }
            _changed = drain.wait_for(|drain| *drain), if !draining => {
                draining = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let (request, mut respond) = match accepted {
            Some(accepted) => accepted.map_err(ServerError::Http)?,
            None => return Ok(()),
        };
        match destination(&request, local) {
            Err(status) => refuse(&mut respond, status),
            Ok(destination) => {
                let forwarded = headers::client(request.headers());
                let named = forwarded.filter(|client| client.ip() == peer.ip());
                let tunnel = TunnelRequest {
                    client: Rc::clone(&client),
                    peer,
                    client_port: named.map_or(0, |client| client.port()),
                    forwarded,
                    destination,
                    respond,
                    receive: request.into_body(),
                };
                tokio::task::spawn_local(handle(tunnel));
            }
        }
    }
}

/// What a request asks for, or the status that refuses it.
fn destination<T>(request: &Request<T>, local: SocketAddr) -> Result<SocketAddr, StatusCode> {
    if request.method() != Method::CONNECT {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let authority = request.uri().authority().ok_or(StatusCode::BAD_REQUEST)?;
    let asked: SocketAddr = authority.as_str().parse().map_err(|_error| StatusCode::BAD_REQUEST)?;
    if asked.ip() != local.ip() || asked.port() == 0 {
        return Err(StatusCode::BAD_REQUEST);
    }
    if OWN_PORTS.contains(&asked.port()) {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, uri: &str) -> Result<SocketAddr, StatusCode> {
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        destination(&request, "10.0.0.1:15008".parse().unwrap())
    }

    #[test]
    fn requests_are_checked_as_ztunnel_does() {
        let cases = [
            (Method::CONNECT, "10.0.0.1:80", Ok("10.0.0.1:80".parse().unwrap())),
            (Method::GET, "10.0.0.1:80", Err(StatusCode::METHOD_NOT_ALLOWED)),
            (Method::CONNECT, "10.0.0.2:80", Err(StatusCode::BAD_REQUEST)),
            (Method::CONNECT, "[fd00::1]:80", Err(StatusCode::BAD_REQUEST)),
            (Method::CONNECT, "reviews:80", Err(StatusCode::BAD_REQUEST)),
            (Method::CONNECT, "10.0.0.1", Err(StatusCode::BAD_REQUEST)),
            (Method::CONNECT, "10.0.0.1:0", Err(StatusCode::BAD_REQUEST)),
            (Method::CONNECT, "10.0.0.1:15008", Err(StatusCode::SERVICE_UNAVAILABLE)),
            (Method::CONNECT, "10.0.0.1:15001", Err(StatusCode::SERVICE_UNAVAILABLE)),
            (Method::CONNECT, "10.0.0.1:15006", Err(StatusCode::SERVICE_UNAVAILABLE)),
        ];
        for (method, uri, expected) in cases {
            assert_eq!(ask(method, uri), expected, "{uri}");
        }
    }
}
