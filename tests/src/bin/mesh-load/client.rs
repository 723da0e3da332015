//! The side that connects, and measures.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

use crate::{BUFFER, MESSAGE};

pub(crate) fn open(target: SocketAddr, mode: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(&[mode])?;
    Ok(stream)
}

pub(crate) fn ask(stream: &mut TcpStream) -> Result<()> {
    let mut message = [7; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)?;
    Ok(())
}

/// One connection: mode and question in one write, one answer, the server's close.
pub(crate) fn exchange(target: SocketAddr) -> Result<()> {
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

pub(crate) type Latency = Histogram<u64>;

/// Has the whole of `work` as the time that it took.
pub(crate) fn timed<S>(
    work: impl Fn(&mut S) -> Result<()> + Clone,
) -> impl Fn(&mut S) -> Result<Duration> + Clone {
    move |state| {
        let begun = Instant::now();
        work(state)?;
        Ok(begun.elapsed())
    }
}

/// Runs `work`, which tells how long it took, on so many threads for so long; count, latencies in nanoseconds, time taken.
pub(crate) fn repeat<S: 'static>(
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

pub(crate) fn print(count: u64, latency: &Latency, elapsed: Duration) {
    print_with(count, latency, elapsed, &serde_json::json!({}));
}

pub(crate) fn print_with(count: u64, latency: &Latency, elapsed: Duration, more: &serde_json::Value) {
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

pub(crate) fn throughput(target: SocketAddr, streams: usize, seconds: f64) -> Result<()> {
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

pub(crate) fn hold(target: SocketAddr, connections: usize) -> Result<()> {
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

/// Time of `connect()` alone, on a blocking socket. The server closes first, so that ports do not run out in `TIME_WAIT`.
pub(crate) fn connect(target: SocketAddr) -> Result<Duration> {
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
pub(crate) fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micro = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micro)?).as_secs_f64())
}

pub(crate) fn udp_open(target: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target).with_context(|| format!("connect to {target}"))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

pub(crate) fn udp_ask(kept: &mut Option<UdpSocket>, target: SocketAddr) -> Result<()> {
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
    // Before rules are there nobody answers (the kernel limits how often it says that there is no route): a try must be
    // short, or it hides when they came.
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_millis(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"W")?;
    let mut address = [0; 16];
    stream.read_exact(&mut address)?;
    Ok(Ipv6Addr::from(address).to_canonical())
}

pub(crate) fn watch(target: SocketAddr, until: Option<IpAddr>) -> Result<()> {
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
