//! A connection as the gRPC server gets it: after its handshake, in its place, ended when it brings no request.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::limits::Place;

/// What a connection does.
#[derive(Debug)]
pub(super) struct Activity {
    requests: AtomicU64,
    under_way: AtomicUsize,
    idle_since: Mutex<Instant>,
}

impl Activity {
    fn new() -> Self {
        Self {
            requests: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
        }
    }

    /// A request begins; it ends when what this returns is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// Since when there is no request, if there is none.
    fn idle_since(&self) -> Option<Instant> {
        (self.under_way.load(Ordering::Relaxed) == 0)
            .then(|| *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A request that has not ended.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Activity>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The other end of a connection; comes with each request.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) certificate: Option<Arc<[CertificateDer<'static>]>>,
    pub(super) activity: Arc<Activity>,
}

/// Told when a connection ends: who it was, and how many requests it has brought.
pub(super) type OnEnd = Box<dyn FnOnce(SocketAddr, u64) + Send + Sync>;

/// A connection.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    on_end: Option<OnEnd>,
    _place: Place,
}

impl Connection {
    /// One that is ended after `idle` without a request under way.
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        idle: Duration,
        place: Place,
        on_end: OnEnd,
    ) -> Self {
        let certificate = stream.get_ref().1.peer_certificates();
        let certificate =
            certificate.map(|chain| chain.iter().cloned().map(CertificateDer::into_owned).collect());
        let peer = Peer { address, certificate, activity: Arc::new(Activity::new()) };
        let timer = Box::pin(tokio::time::sleep(idle));
        Self { stream, peer, idle, timer, on_end: Some(on_end), _place: place }
    }

    /// Whether it has been idle for too long; if not, the task is woken when it might have been.
    fn is_overdue(&mut self, context: &mut Context<'_>) -> bool {
        loop {
            let now = Instant::now();
            let until = self.peer.activity.idle_since().map_or(now + self.idle, |since| since + self.idle);
            if until <= now {
                return true;
            }
            if self.timer.deadline() != until {
                self.timer.as_mut().reset(until);
            }
            if self.timer.as_mut().poll(context).is_pending() {
                return false;
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(tell) = self.on_end.take() {
            tell(self.peer.address, self.peer.activity.requests.load(Ordering::Relaxed));
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Before reading: whoever sends a byte now and then, and never a request, is idle.
        if self.is_overdue(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
