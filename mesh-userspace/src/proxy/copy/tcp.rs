//! Socket to socket. What fits one read goes through the worker's buffer in two system calls; bulk is spliced and
//! never enters the agent.

use std::io::ErrorKind;

use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::task::yield_now;

use super::pipe::Pipe;
use super::{Broken, NoTap, ResetUnlessDone, SCRATCH, Tap, both, broke, finish, with_scratch, write_all};
use crate::telemetry::{ByteCounters, End, Outcome};

/// Carries a connection between two sockets to its end; `tap` is shown what the client sends.
pub(crate) async fn tcp_to_tcp(
    client: &TcpStream,
    server: &TcpStream,
    bytes: &ByteCounters,
    tap: &impl Tap,
) -> Outcome {
    let up = async {
        let sides = (Broken::Client, Broken::Server);
        pump(client, server, tap, sides, |count| bytes.add_to_server(count)).await?;
        bytes.ended(End::Client);
        Ok(())
    };
    let down = async {
        let sides = (Broken::Server, Broken::Client);
        pump(server, client, &NoTap, sides, |count| bytes.add_to_client(count)).await?;
        bytes.ended(End::Server);
        Ok(())
    };
    let guard = ResetUnlessDone::new([client, server]);
    guard.end(both(up, down, broke(client), broke(server)).await)
}

/// One step through the worker's buffer.
enum Step {
    Moved(usize),
    /// The receiver took only part; the rest is kept for it.
    Left(usize, Vec<u8>),
    Wait,
    End,
}

async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    tap: &impl Tap,
    (source, sink): (Broken, Broken),
    count: impl Fn(u64),
) -> Result<(), Broken> {
    loop {
        from.readable().await.map_err(|_error| source)?;
        let moved = match step(from, to, tap, source, sink)? {
            Step::Wait => continue,
            Step::End => break,
            Step::Moved(moved) => moved,
            Step::Left(moved, rest) => {
                write_all(to, &rest).await.map_err(|_error| sink)?;
                moved
            }
        };
        count(moved as u64);
        // Reads that are always ready would keep the worker from its other connections.
        consume_budget().await;
        if moved < SCRATCH {
            continue;
        }
        if tap.is_open() {
            // In bulk, whoever takes the copy gets its turn for each part of it.
            yield_now().await;
            continue;
        }
        let count = |moved| {
            count(moved);
            tap.skip(moved);
        };
        if splice(from, to, source, sink, &count).await? {
            break;
        }
    }
    finish(to);
    tap.finish();
    Ok(())
}

fn step(
    from: &TcpStream,
    to: &TcpStream,
    tap: &impl Tap,
    source: Broken,
    sink: Broken,
) -> Result<Step, Broken> {
    with_scratch(|buffer| {
        let read = match from.try_read(buffer) {
            Ok(0) => return Ok(Step::End),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Step::Wait),
            Err(_) => return Err(source),
        };
        let written = to.try_write(&buffer[..read]);
        tap.show(&buffer[..read]);
        match written {
            Ok(written) if written == read => Ok(Step::Moved(read)),
            Ok(written) => Ok(Step::Left(read, buffer[written..read].to_vec())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Ok(Step::Left(read, buffer[..read].to_vec()))
            }
            Err(_) => Err(sink),
        }
    })
}

/// Splices for as long as the source has more at once. True at the end of the stream.
async fn splice(
    from: &TcpStream,
    to: &TcpStream,
    source: Broken,
    sink: Broken,
    count: &impl Fn(u64),
) -> Result<bool, Broken> {
    // Without a pipe (too many open files) the buffer goes on serving.
    let Ok(pipe) = Pipe::take() else { return Ok(false) };
    loop {
        match pipe.fill(from) {
            Ok(0) => {
                pipe.give_back();
                return Ok(true);
            }
            Ok(moved) => {
                // A pipe whose drain failed still holds bytes: it is closed, not given back.
                pipe.drain(to, moved).await.map_err(|_error| sink)?;
                count(moved as u64);
                consume_budget().await;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                pipe.give_back();
                return Ok(false);
            }
            Err(_) => return Err(source),
        }
    }
}
