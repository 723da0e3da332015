//! Socket to HBONE stream and back. `END_STREAM` is the half-close, `RST_STREAM` the reset.

use std::future::poll_fn;
use std::io::ErrorKind;

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::task::yield_now;

use super::{Broken, ResetUnlessDone, SCRATCH, Tap, both, broke, finish, with_scratch, write_all};
use crate::telemetry::{ByteCounters, End, Outcome};

/// Size of a read in bulk, and of the DATA frames that come of it.
const BULK: usize = 256 * 1024;

/// Both halves of an HBONE stream.
pub(crate) struct Tunnel {
    /// Towards the peer.
    pub(crate) send: SendStream<Bytes>,
    /// From the peer.
    pub(crate) receive: RecvStream,
}

/// Which end of the connection the socket is; the tunnel is the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketIs {
    /// The client's (the agent at the source).
    Client,
    /// The application's (the agent at the destination).
    Server,
}

/// Carries a connection between a socket and a tunnel to its end; `tap` is shown what comes from the socket.
pub(crate) async fn tcp_to_tunnel(
    socket: &TcpStream,
    tunnel: Tunnel,
    socket_is: SocketIs,
    bytes: &ByteCounters,
    tap: &impl Tap,
) -> Outcome {
    let Tunnel { mut send, mut receive } = tunnel;
    let (near, far) = match socket_is {
        SocketIs::Client => (Broken::Client, Broken::Server),
        SocketIs::Server => (Broken::Server, Broken::Client),
    };
    let count_out = |count| match socket_is {
        SocketIs::Client => bytes.add_to_server(count),
        SocketIs::Server => bytes.add_to_client(count),
    };
    let count_in = |count| match socket_is {
        SocketIs::Client => bytes.add_to_client(count),
        SocketIs::Server => bytes.add_to_server(count),
    };
    let guard = ResetUnlessDone::new([socket]);
    let (near_end, far_end) = match socket_is {
        SocketIs::Client => (End::Client, End::Server),
        SocketIs::Server => (End::Server, End::Client),
    };
    let result = {
        let outgoing = async {
            into_tunnel(socket, &mut send, tap, near, far, count_out).await?;
            bytes.ended(near_end);
            Ok(())
        };
        let incoming = async {
            out_of_tunnel(&mut receive, socket, near, far, count_in).await?;
            bytes.ended(far_end);
            Ok(())
        };
        match socket_is {
            SocketIs::Client => both(outgoing, incoming, broke(socket), std::future::pending()).await,
            SocketIs::Server => both(incoming, outgoing, std::future::pending(), broke(socket)).await,
        }
    };
    if result.is_err() {
        send.send_reset(Reason::CANCEL);
    }
    guard.end(result)
}

async fn into_tunnel(
    socket: &TcpStream,
    send: &mut SendStream<Bytes>,
    tap: &impl Tap,
    near: Broken,
    far: Broken,
    count: impl Fn(u64),
) -> Result<(), Broken> {
    let mut bulk = BytesMut::new();
    let mut large = false;
    loop {
        tokio::select! {
            biased;
            // The peer's reset, which nothing else would tell after its END_STREAM.
            _reset = poll_fn(|context| send.poll_reset(context)) => return Err(far),
            readable = socket.readable() => readable.map_err(|_error| near)?,
        }
        let read = if large { read_bulk(socket, &mut bulk) } else { read_small(socket) };
        let chunk = match read {
            Ok(chunk) if chunk.is_empty() => break,
            Ok(chunk) => chunk,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Idle: hold nothing.
                bulk = BytesMut::new();
                large = false;
                continue;
            }
            Err(_) => return Err(near),
        };
        large = chunk.len() >= SCRATCH;
        tap.show(&chunk);
        let length = chunk.len() as u64;
        send_all(send, chunk).await.map_err(|_error| far)?;
        count(length);
        consume_budget().await;
        if large && tap.is_open() {
            // In bulk, whoever takes the copy gets its turn for each part of it.
            yield_now().await;
        }
    }
    send.send_data(Bytes::new(), true).map_err(|_error| far)?;
    tap.finish();
    Ok(())
}

fn read_small(socket: &TcpStream) -> std::io::Result<Bytes> {
    with_scratch(|buffer| socket.try_read(buffer).map(|read| Bytes::copy_from_slice(&buffer[..read])))
}

fn read_bulk(socket: &TcpStream, buffer: &mut BytesMut) -> std::io::Result<Bytes> {
    // Takes its old memory again where the frames that were cut from it have been sent.
    buffer.reserve(BULK);
    socket.try_read_buf(buffer)?;
    Ok(buffer.split().freeze())
}

async fn send_all(send: &mut SendStream<Bytes>, mut chunk: Bytes) -> Result<(), h2::Error> {
    while !chunk.is_empty() {
        send.reserve_capacity(chunk.len());
        let capacity = match poll_fn(|context| send.poll_capacity(context)).await {
            Some(capacity) => capacity?,
            None => return Err(Reason::STREAM_CLOSED.into()),
        };
        let part = chunk.split_to(capacity.min(chunk.len()));
        send.send_data(part, false)?;
    }
    Ok(())
}

async fn out_of_tunnel(
    receive: &mut RecvStream,
    socket: &TcpStream,
    near: Broken,
    far: Broken,
    count: impl Fn(u64),
) -> Result<(), Broken> {
    while let Some(chunk) = receive.data().await {
        let chunk = chunk.map_err(|_error| far)?;
        write_all(socket, &chunk).await.map_err(|_error| near)?;
        count(chunk.len() as u64);
        receive.flow_control().release_capacity(chunk.len()).map_err(|_error| far)?;
    }
    finish(socket);
    Ok(())
}
