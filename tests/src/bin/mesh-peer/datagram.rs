//! The client of datagrams.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use clap::Args;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::address::{mapped, plain, text};
use crate::print;
use crate::tally::{Failure, Seen, Tally};

#[derive(Clone, Debug, Args)]
pub(crate) struct Udp {
    /// Where to.
    target: SocketAddr,
    /// How many datagrams.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Use `sendto` and `recvfrom` instead of a connected socket.
    #[arg(long)]
    unconnected: bool,
    /// Take a new socket for each datagram.
    #[arg(long)]
    fresh: bool,
    /// Reach an IPv4 target from an IPv6 socket.
    #[arg(long)]
    source_v6_mapped: bool,
    /// Milliseconds that an answer may take.
    #[arg(long, default_value_t = 2_000)]
    timeout_ms: u64,
}

pub(crate) async fn udp(args: &Udp) -> io::Result<()> {
    let (tally, started) = (Tally::default(), Instant::now());
    let target = if args.source_v6_mapped { mapped(args.target) } else { args.target };
    let mut kept = None;
    for number in 0..args.count {
        let begun = Instant::now();
        let result = match kept.take() {
            Some(socket) => Ok(socket),
            None => udp_socket(target, args.unconnected).await,
        };
        let result = match result {
            Ok(socket) => {
                let deadline = Duration::from_millis(args.timeout_ms);
                let exchanged = timeout(deadline, datagram(&socket, target, args.unconnected, number)).await;
                if !args.fresh {
                    kept = Some(socket);
                }
                exchanged.unwrap_or_else(|_elapsed| Err(Failure("timeout".to_owned())))
            }
            Err(error) => Err(error.into()),
        };
        tally.add(begun.elapsed(), result);
    }
    print(&tally.finish(started));
    Ok(())
}

async fn udp_socket(target: SocketAddr, unconnected: bool) -> io::Result<UdpSocket> {
    let any = if target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
    let socket = UdpSocket::bind((any, 0)).await?;
    if !unconnected {
        socket.connect(target).await?;
    }
    Ok(socket)
}

async fn datagram(
    socket: &UdpSocket,
    target: SocketAddr,
    unconnected: bool,
    number: u64,
) -> Result<Seen, Failure> {
    let question = format!("question {number}");
    if unconnected {
        socket.send_to(question.as_bytes(), target).await?;
    } else {
        socket.send(question.as_bytes()).await?;
    }
    let mut answer = vec![0; 2000];
    let (length, from) = socket.recv_from(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    let name = answer.strip_suffix(&question).ok_or_else(|| Failure("mismatch".to_owned()))?;
    Ok(Seen {
        name: Some(name.trim_end().to_owned()),
        getpeername: (!unconnected).then(|| text(socket.peer_addr())),
        reply_from: Some(plain(from).to_string()),
        ..Seen::default()
    })
}
