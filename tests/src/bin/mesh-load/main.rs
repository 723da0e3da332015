//! Client, server and relay of `cargo xtask bench`: blocking threads, so that what is measured is the path between them.
//!
//! A connection begins with one byte: `S`, its bytes are swallowed and their number (8 bytes, big-endian) is the answer
//! to its end; `R`, each 64 bytes are sent back; `C`, 64 bytes are sent back and the server closes (so that the client's
//! ports do not run out in `TIME_WAIT`); `W`, the server tells its own address (16 bytes, as IPv6) and closes.
//! `greet` listens beside it: there a connection is closed as soon as it is accepted, so that what is measured is the
//! making of it. `udp-serve` sends each datagram back.

#![allow(clippy::print_stdout, reason = "the result is what it is for")]

mod client;
mod server;

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::client::{
    ask, connect, cpu_seconds, exchange, hold, open, print, print_with, repeat, throughput, timed, udp_ask,
    udp_open, watch,
};
use crate::server::{accept, answer, greet, relay, udp_serve};

const MESSAGE: usize = 64;
const BUFFER: usize = 256 * 1024;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve both modes.
    Serve { listen: SocketAddr },
    /// Carry every connection to a target: a thread a direction, 256 KiB buffers.
    Relay { listen: SocketAddr, target: SocketAddr },
    /// Accept and close, at once.
    Greet { listen: SocketAddr },
    /// Send datagrams back.
    UdpServe { listen: SocketAddr },
    /// Connect to `greet`, again and again: the time that `connect()` takes, connections a second, CPU time of this process
    /// for each (with the softirqs that the kernel ran in its context).
    Connect {
        target: SocketAddr,
        #[arg(long, default_value_t = 1)]
        clients: usize,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Send a datagram and wait for its answer, on one connected socket or on a new one each.
    UdpAsk {
        target: SocketAddr,
        #[arg(long)]
        fresh: bool,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Connect again and again until a server answers (of this address, where one is given); then the time on
    /// `CLOCK_MONOTONIC`, which all processes of the machine share.
    Watch {
        target: SocketAddr,
        #[arg(long)]
        until: Option<IpAddr>,
    },
    /// Send for a while; bits a second.
    Throughput {
        target: SocketAddr,
        #[arg(long, default_value_t = 1)]
        streams: usize,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Connect, ask, read the answer, close; again and again.
    Rate {
        target: SocketAddr,
        #[arg(long, default_value_t = 1)]
        in_flight: usize,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Ask and read on connections that stay.
    Ask {
        target: SocketAddr,
        #[arg(long, default_value_t = 1)]
        connections: usize,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Hold connections, each of which has asked once, until standard input ends.
    Hold {
        target: SocketAddr,
        #[arg(long, default_value_t = 5000)]
        connections: usize,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Serve { listen } => accept(listen, |stream| {
            // A client that goes away in the middle is its own business.
            let _ = answer(stream);
        }),
        Command::Relay { listen, target } => accept(listen, move |client| {
            let _ = relay(&client, target);
        }),
        Command::Throughput { target, streams, seconds } => throughput(target, streams, seconds),
        Command::Rate { target, in_flight, seconds } => {
            let (count, latency, elapsed) =
                repeat(in_flight, seconds, || Ok(()), timed(move |()| exchange(target)))?;
            print(count, &latency, elapsed);
            Ok(())
        }
        Command::Ask { target, connections, seconds } => {
            let open = move || open(target, b'R');
            let (count, latency, elapsed) = repeat(connections, seconds, open, timed(ask))?;
            print(count, &latency, elapsed);
            Ok(())
        }
        Command::Hold { target, connections } => hold(target, connections),
        Command::Greet { listen } => greet(listen),
        Command::UdpServe { listen } => udp_serve(listen),
        Command::Connect { target, clients, seconds } => {
            let before = cpu_seconds()?;
            let (count, latency, elapsed) = repeat(clients, seconds, || Ok(()), move |()| connect(target))?;
            let cpu = cpu_seconds()? - before;
            print_with(count, &latency, elapsed, &serde_json::json!({ "cpu_seconds": cpu }));
            Ok(())
        }
        Command::UdpAsk { target, fresh, seconds } => {
            let start = move || if fresh { Ok(None) } else { udp_open(target).map(Some) };
            let (count, latency, elapsed) =
                repeat(1, seconds, start, timed(move |kept| udp_ask(kept, target)))?;
            print(count, &latency, elapsed);
            Ok(())
        }
        Command::Watch { target, until } => watch(target, until),
    }
}
