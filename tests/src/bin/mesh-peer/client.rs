//! Clients of streams: a number of connections, or as many as go until told to stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::address::{mapped, text};
use crate::exchange::exchange;
use crate::mode::Mode;
use crate::print;
use crate::tally::{Failure, Seen, Tally};

/// Pause between two exchanges of a load on one connection.
const PACE: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, Args)]
pub(crate) struct Connect {
    /// Where to.
    pub(crate) target: SocketAddr,
    #[arg(long, value_enum, default_value_t = Mode::Http)]
    pub(crate) mode: Mode,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// How many at a time.
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// Bytes to send (`echo`, `discard`, `half-close`) or to ask for (`source`).
    #[arg(long, default_value_t = 1000)]
    pub(crate) bytes: u64,
    /// Text to send at the head of the bytes, and in the HTTP request.
    #[arg(long, default_value = "")]
    pub(crate) marker: String,
    /// Reach an IPv4 target from an IPv6 socket.
    #[arg(long)]
    source_v6_mapped: bool,
    /// Keep the connections: `connect` holds each until all stand and then exchanges once more; `loop` exchanges on the
    /// same ones all the time. For `http` and `echo`.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Milliseconds that an exchange may take.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
}

pub(crate) async fn connect(args: Connect) -> io::Result<()> {
    let (args, tally, started) = (Arc::new(args), Arc::new(Tally::default()), Instant::now());
    let permits = Arc::new(Semaphore::new(args.concurrency));
    let all = args.keep.then(|| Arc::new(Barrier::new(usize::try_from(args.count).unwrap_or(usize::MAX))));
    let mut connections = JoinSet::new();
    for number in 0..args.count {
        // With `--keep`, what limits is how many are being set up.
        let permit = Arc::clone(&permits).acquire_owned().await.expect("never closed");
        let (args, tally, all) = (Arc::clone(&args), Arc::clone(&tally), all.clone());
        connections.spawn(async move {
            let begun = Instant::now();
            let result = within(&args, exchange_once(&args, number)).await;
            let took = begun.elapsed();
            drop(permit);
            let Some(all) = all else { return tally.add(took, result.map(|(seen, _)| seen)) };
            all.wait().await;
            let result = match result {
                Ok((_, mut stream)) => within(&args, exchange(&mut stream, &args, number)).await,
                Err(failure) => Err(failure),
            };
            tally.add(took, result);
        });
    }
    while connections.join_next().await.is_some() {}
    print(&tally.finish(started));
    Ok(())
}

pub(crate) async fn load(args: Connect) -> io::Result<()> {
    let (args, tally, started) = (Arc::new(args), Arc::new(Tally::default()), Instant::now());
    let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for worker in 0..args.concurrency {
        let (args, tally, stop, told) =
            (Arc::clone(&args), Arc::clone(&tally), Arc::clone(&stop), Arc::clone(&told));
        workers.spawn(async move {
            let mut number = worker as u64;
            let mut kept: Option<TcpStream> = None;
            while !stop.load(Ordering::Relaxed) {
                number += 1_000_000;
                let begun = Instant::now();
                let result = match &mut kept {
                    Some(stream) => within(&args, exchange(stream, &args, number)).await,
                    None => within(&args, exchange_once(&args, number)).await.map(|(seen, stream)| {
                        kept = args.keep.then_some(stream);
                        seen
                    }),
                };
                if result.is_err() {
                    kept = None;
                } else if told.fetch_add(1, Ordering::Relaxed) == 0 {
                    print(&json!({ "running": true }));
                }
                tally.add(begun.elapsed(), result);
                if args.keep || args.concurrency == 1 {
                    tokio::time::sleep(PACE / 10).await;
                }
            }
        });
    }
    // A thread of the runtime's own; it ends with the process.
    let mut nothing = Vec::new();
    let _ended = tokio::io::stdin().read_to_end(&mut nothing).await;
    stop.store(true, Ordering::Relaxed);
    while workers.join_next().await.is_some() {}
    print(&tally.finish(started));
    Ok(())
}

async fn within<T>(args: &Connect, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let elapsed = |_elapsed| Failure("timeout".to_owned());
    timeout(Duration::from_millis(args.timeout_ms), work).await.map_err(elapsed)?
}

async fn exchange_once(args: &Connect, number: u64) -> Result<(Seen, TcpStream), Failure> {
    let target = if args.source_v6_mapped { mapped(args.target) } else { args.target };
    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let mut stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    let mut seen = exchange(&mut stream, args, number).await?;
    seen.getpeername = Some(text(stream.peer_addr()));
    seen.local = Some(text(stream.local_addr()));
    Ok((seen, stream))
}
