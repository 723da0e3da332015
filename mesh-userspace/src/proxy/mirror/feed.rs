//! From a shadow's queue to the shadow. What it answers is read and thrown away.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;

use super::End;
use super::queue::{Next, Queue};
use crate::proxy::copy::{ResetUnlessDone, Tunnel, finish, with_scratch};
use crate::proxy::forward::Server;
use crate::telemetry::ByteCounters;

/// How long a shadow may go on after the client's connection has ended.
pub(super) const LINGER: Duration = Duration::from_secs(10);
/// Bytes of one DATA frame to a shadow at most.
const FRAME: usize = 64 * 1024;

/// Sends all to the shadow, to its end; on another end the shadow is reset.
pub(super) async fn feed(queue: &Queue, server: Server, bytes: &ByteCounters) -> End {
    let result = match server {
        Server::Socket(socket) => {
            // Cut as well: a shadow must not take what it got so far for all.
            let guard = ResetUnlessDone::new([&socket]);
            let fed = both(queue, to_socket(queue, &socket, bytes), discard_socket(&socket, bytes)).await;
            if fed.is_ok() {
                guard.done();
            }
            fed
        }
        Server::Tunnel(Tunnel { mut send, mut receive }, _lease) => {
            let fed =
                both(queue, to_tunnel(queue, &mut send, bytes), discard_tunnel(&mut receive, bytes)).await;
            if fed.is_err() {
                send.send_reset(Reason::CANCEL);
            }
            fed
        }
    };
    result.err().unwrap_or(End::Closed)
}

/// Both directions to their ends, as long as the copy may last.
async fn both(
    queue: &Queue,
    up: impl Future<Output = Result<(), End>>,
    down: impl Future<Output = Result<(), End>>,
) -> Result<(), End> {
    let (mut up, mut down) = (pin!(up), pin!(down));
    let directions = async {
        tokio::select! {
            fed = &mut up => {
                fed?;
                down.await
            }
            read = &mut down => {
                read?;
                up.await
            }
        }
    };
    tokio::select! {
        biased;
        result = directions => result,
        end = over(queue) => Err(end),
    }
}

/// Returns once the copy has ended by itself, or its time is over.
pub(super) async fn over(queue: &Queue) -> End {
    if let Err(end) = queue.ended().await {
        return end;
    }
    tokio::time::sleep(LINGER).await;
    End::Lingered
}

async fn to_socket(queue: &Queue, socket: &TcpStream, bytes: &ByteCounters) -> Result<(), End> {
    while queue.next().await? == Next::Send {
        match queue.send(|waiting| socket.try_write(waiting)) {
            Ok(sent) => bytes.add_to_server(sent as u64),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                socket.writable().await.map_err(|_error| End::ShadowReset)?;
            }
            Err(_) => return Err(End::ShadowReset),
        }
        consume_budget().await;
    }
    finish(socket);
    Ok(())
}

async fn discard_socket(socket: &TcpStream, bytes: &ByteCounters) -> Result<(), End> {
    loop {
        socket.readable().await.map_err(|_error| End::ShadowReset)?;
        match with_scratch(|buffer| socket.try_read(buffer)) {
            Ok(0) => return Ok(()),
            Ok(read) => bytes.add_to_client(read as u64),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Err(End::ShadowReset),
        }
        consume_budget().await;
    }
}

async fn to_tunnel(queue: &Queue, send: &mut SendStream<Bytes>, bytes: &ByteCounters) -> Result<(), End> {
    loop {
        let next = tokio::select! {
            biased;
            _reset = poll_fn(|context| send.poll_reset(context)) => return Err(End::ShadowReset),
            next = queue.next() => next?,
        };
        if next == Next::Finish {
            return send.send_data(Bytes::new(), true).map_err(|_error| End::ShadowReset);
        }
        // As much as the peer takes now: what it does not take goes on waiting where it is counted.
        send.reserve_capacity(queue.waiting().min(FRAME));
        let capacity = match poll_fn(|context| send.poll_capacity(context)).await {
            Some(Ok(capacity)) => capacity.min(FRAME),
            Some(Err(_)) | None => return Err(End::ShadowReset),
        };
        let sent = queue.send(|waiting| {
            let part = &waiting[..waiting.len().min(capacity)];
            send.send_data(Bytes::copy_from_slice(part), false).map(|()| part.len())
        });
        bytes.add_to_server(sent.map_err(|_error| End::ShadowReset)? as u64);
        consume_budget().await;
    }
}

async fn discard_tunnel(receive: &mut RecvStream, bytes: &ByteCounters) -> Result<(), End> {
    while let Some(chunk) = receive.data().await {
        let chunk = chunk.map_err(|_error| End::ShadowReset)?;
        bytes.add_to_client(chunk.len() as u64);
        receive.flow_control().release_capacity(chunk.len()).map_err(|_error| End::ShadowReset)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
