//! Carrying bytes between two sides: one task, both directions, no lock, no channel, nothing held while idle.
//!
//! Half-close and reset are handled here and nowhere else: a FIN on one side becomes a FIN on the other, in its own
//! direction; a reset on one side ends both.

mod pipe;
mod tap;
mod tcp;
mod tunnel;

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::pin::pin;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

pub(crate) use tap::{NoTap, Tap};
pub(super) use tcp::tcp_to_tcp;
pub(super) use tunnel::{SocketIs, Tunnel, tcp_to_tunnel};

use crate::socket::reset_on_close;
use crate::telemetry::Outcome;

/// Size of the buffer that every connection of a worker reads into; a read that fills it means bulk.
const SCRATCH: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Lends the worker's buffer for a few system calls.
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| work(buffer))
}

/// The side that ended a connection out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Client,
    Server,
}

impl From<Broken> for Outcome {
    fn from(side: Broken) -> Self {
        match side {
            Broken::Client => Self::ResetByClient,
            Broken::Server => Self::ResetByServer,
        }
    }
}

/// Runs both directions to their ends. Once one has ended, its source is watched for a reset, which nothing else would
/// notice while the other direction is silent.
async fn both(
    up: impl Future<Output = Result<(), Broken>>,
    down: impl Future<Output = Result<(), Broken>>,
    client_broke: impl Future<Output = ()>,
    server_broke: impl Future<Output = ()>,
) -> Result<(), Broken> {
    let (mut up, mut down) = (pin!(up), pin!(down));
    tokio::select! {
        result = &mut up => {
            result?;
            tokio::select! {
                biased;
                result = down => result,
                () = client_broke => Err(Broken::Client),
            }
        }
        result = &mut down => {
            result?;
            tokio::select! {
                biased;
                result = up => result,
                () = server_broke => Err(Broken::Server),
            }
        }
    }
}

/// Returns once the socket has an error.
pub(crate) async fn broke(stream: &TcpStream) {
    // An error of the runtime itself means that it is being shut down.
    while stream.ready(Interest::ERROR).await.is_ok_and(|ready| !ready.is_error()) {}
}

/// Ends the direction towards a socket.
pub(super) fn finish(stream: &TcpStream) {
    // A socket that is gone already needs no FIN; the other direction reports it.
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
}

/// Writes all of it.
async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sockets that are reset unless their connection came to its end in order: one that broke, and one that is cut while it
/// is carried. An application must not take what it got so far for all.
pub(super) struct ResetUnlessDone<'a, const N: usize>(Option<[&'a TcpStream; N]>);

impl<'a, const N: usize> ResetUnlessDone<'a, N> {
    pub(super) const fn new(sockets: [&'a TcpStream; N]) -> Self {
        Self(Some(sockets))
    }

    /// Their connection came to its end in order.
    pub(super) fn done(mut self) {
        self.0 = None;
    }

    /// What the record says.
    fn end(self, result: Result<(), Broken>) -> Outcome {
        match result {
            Ok(()) => {
                self.done();
                Outcome::Closed
            }
            Err(side) => side.into(),
        }
    }
}

impl<const N: usize> Drop for ResetUnlessDone<'_, N> {
    fn drop(&mut self) {
        for socket in self.0.iter().flatten() {
            reset_on_close(*socket);
        }
    }
}
