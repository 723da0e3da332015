//! Client, server and relay of `cargo xtask bench`: blocking threads, so that what is measured is the path between them.
//!
//! A connection begins with one byte: `S`, its bytes are swallowed and their number (8 bytes, big-endian) is the answer
//! to its end; `R`, each 64 bytes are sent back; `C`, 64 bytes are sent back and the server closes (so that the client's
//! ports do not run out in `TIME_WAIT`); `W`, the server tells its own address (16 bytes, as IPv6) and closes.
//! `greet` listens beside it: there a connection is closed as soon as it is accepted, so that what is measured is the
//! making of it. `udp-serve` sends each datagram back.

#![allow(clippy::print_stdout, reason = "the result is what it is for")]

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

const MESSAGE: usize = 64;
const BUFFER: usize = 256 * 1024;
const STACK: usize = 64 * 1024;

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

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().stack_size(STACK).spawn(work).context("start a thread").map(drop)
}

fn accept(listen: SocketAddr, serve: impl Fn(TcpStream) + Clone + Send + 'static) -> Result<()> {
    for stream in listener(listen)?.incoming() {
        let (stream, serve) = (stream?, serve.clone());
        stream.set_nodelay(true)?;
        spawn(move || serve(stream))?;
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut mode = [0];
    stream.read_exact(&mut mode)?;
    let mut message = [0; MESSAGE];
    if mode == *b"W" {
        let address = match stream.local_addr()?.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        return stream.write_all(&address.octets());
    }
    if mode == *b"C" {
        stream.read_exact(&mut message)?;
        return stream.write_all(&message);
    }
    if mode == *b"R" {
        loop {
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
        }
    }
    let mut buffer = vec![0; BUFFER];
    let mut total = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            read => total += read as u64,
        }
    }
}

fn relay(client: &TcpStream, target: SocketAddr) -> Result<()> {
    let server = TcpStream::connect(target)?;
    server.set_nodelay(true)?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let up = thread::Builder::new().stack_size(STACK).spawn(move || copy(&from, &to))?;
    copy(&server, client);
    drop(up.join());
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // A socket that is gone needs no FIN.
    let _ = to.shutdown(Shutdown::Write);
}

fn open(target: SocketAddr, mode: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(&[mode])?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> Result<()> {
    let mut message = [7; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)?;
    Ok(())
}

/// One connection: mode and question in one write, one answer, the server's close.
fn exchange(target: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut message = [b'C'; MESSAGE + 1];
    stream.write_all(&message)?;
    stream.read_exact(&mut message[..MESSAGE])?;
    // The server closes first.
    anyhow::ensure!(stream.read(&mut message)? == 0, "the server said too much");
    Ok(())
}

type Latency = Histogram<u64>;

/// Has the whole of `work` as the time that it took.
fn timed<S>(work: impl Fn(&mut S) -> Result<()> + Clone) -> impl Fn(&mut S) -> Result<Duration> + Clone {
    move |state| {
        let begun = Instant::now();
        work(state)?;
        Ok(begun.elapsed())
    }
}

/// Runs `work`, which tells how long it took, on so many threads for so long; count, latencies in nanoseconds, time taken.
fn repeat<S: 'static>(
    threads: usize,
    seconds: f64,
    start: impl Fn() -> Result<S> + Clone + Send + 'static,
    work: impl Fn(&mut S) -> Result<Duration> + Clone + Send + 'static,
) -> Result<(u64, Latency, Duration)> {
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let threads: Vec<_> = (0..threads)
        .map(|_| {
            let (stop, start, work) = (Arc::clone(&stop), start.clone(), work.clone());
            thread::spawn(move || -> Result<Latency> {
                let mut latency = Latency::new(3)?;
                let mut state = start()?;
                while !stop.load(Ordering::Relaxed) {
                    let took = work(&mut state)?;
                    latency.record(u64::try_from(took.as_nanos())?)?;
                }
                Ok(latency)
            })
        })
        .collect();
    thread::sleep(Duration::from_secs_f64(seconds));
    stop.store(true, Ordering::Relaxed);
    let mut all = Latency::new(3)?;
    for thread in threads {
        let latency = thread.join().map_err(|_panic| anyhow::anyhow!("a client thread panicked"))??;
        all.add(latency)?;
    }
    Ok((all.len(), all, begun.elapsed()))
}

fn print(count: u64, latency: &Latency, elapsed: Duration) {
    print_with(count, latency, elapsed, &serde_json::json!({}));
}

fn print_with(count: u64, latency: &Latency, elapsed: Duration, more: &serde_json::Value) {
    let micro = |quantile| Duration::from_nanos(latency.value_at_quantile(quantile)).as_secs_f64() * 1e6;
    let mut result = serde_json::json!({
        "count": count,
        "seconds": elapsed.as_secs_f64(),
        "p50_us": micro(0.5),
        "p99_us": micro(0.99),
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        result[key] = value.clone();
    }
    println!("{result}");
}

fn throughput(target: SocketAddr, streams: usize, seconds: f64) -> Result<()> {
    let begun = Instant::now();
    let threads: Vec<_> = (0..streams)
        .map(|_| {
            thread::spawn(move || -> Result<u64> {
                let mut stream = open(target, b'S')?;
                let buffer = vec![7; BUFFER];
                while begun.elapsed().as_secs_f64() < seconds {
                    stream.write_all(&buffer)?;
                }
                stream.shutdown(Shutdown::Write)?;
                let mut total = [0; 8];
                stream.read_exact(&mut total)?;
                Ok(u64::from_be_bytes(total))
            })
        })
        .collect();
    let mut bytes = 0;
    for thread in threads {
        bytes += thread.join().map_err(|_panic| anyhow::anyhow!("a client thread panicked"))??;
    }
    let result = serde_json::json!({ "bytes": bytes, "seconds": begun.elapsed().as_secs_f64() });
    println!("{result}");
    Ok(())
}

fn hold(target: SocketAddr, connections: usize) -> Result<()> {
    let mut held = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut stream = open(target, b'R')?;
        ask(&mut stream)?;
        held.push(stream);
    }
    println!("holding");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn listener(listen: SocketAddr) -> Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&listen.into()).with_context(|| format!("listen on {listen}"))?;
    socket.listen(4096)?;
    println!("listening");
    Ok(socket.into())
}

fn greet(listen: SocketAddr) -> Result<()> {
    let listener = listener(listen)?;
    loop {
        drop(listener.accept()?);
    }
}

/// Time of `connect()` alone, on a blocking socket. The server closes first, so that ports do not run out in `TIME_WAIT`.
fn connect(target: SocketAddr) -> Result<Duration> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(target), socket2::Type::STREAM, None)?;
    let address = target.into();
    let begun = Instant::now();
    socket.connect(&address).with_context(|| format!("connect to {target}"))?;
    let took = begun.elapsed();
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    anyhow::ensure!(TcpStream::from(socket).read(&mut [0])? == 0, "the server said something");
    Ok(took)
}

/// User and system time of this process, all threads that have ended included.
fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micro = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micro)?).as_secs_f64())
}

fn udp_serve(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).with_context(|| format!("listen on {listen}"))?;
    println!("listening");
    let mut datagram = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut datagram)?;
        // A client that is gone needs no answer.
        let _ = socket.send_to(&datagram[..length], from);
    }
}

fn udp_open(target: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target).with_context(|| format!("connect to {target}"))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

fn udp_ask(kept: &mut Option<UdpSocket>, target: SocketAddr) -> Result<()> {
    let fresh;
    let socket = if let Some(socket) = kept {
        &*socket
    } else {
        fresh = udp_open(target)?;
        &fresh
    };
    let mut message = [7; MESSAGE];
    socket.send(&message)?;
    let length = socket.recv(&mut message).with_context(|| format!("no answer from {target}"))?;
    anyhow::ensure!(length == MESSAGE, "an answer of {length} bytes");
    Ok(())
}

/// Which server a connection reaches, by its own word.
fn who(target: SocketAddr) -> Result<IpAddr> {
    // A SYN that was lost must not hide for a second what has long been there.
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_millis(100))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"W")?;
    let mut address = [0; 16];
    stream.read_exact(&mut address)?;
    Ok(Ipv6Addr::from(address).to_canonical())
}

fn watch(target: SocketAddr, until: Option<IpAddr>) -> Result<()> {
    println!("watching");
    let begun = Instant::now();
    let (mut tries, mut failures) = (0_u64, 0_u64);
    loop {
        tries += 1;
        match who(target) {
            Ok(server) if until.is_none_or(|until| until == server) => break,
            Ok(_other) => {}
            Err(_not_yet) => failures += 1,
        }
        // A thousandth of what has passed: precise enough for what is quick, and no load beside what is slow.
        thread::sleep((begun.elapsed() / 1000).max(Duration::from_micros(100)));
    }
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    let result = serde_json::json!({ "monotonic": now.as_secs_f64(), "tries": tries, "failures": failures });
    println!("{result}");
    Ok(())
}
