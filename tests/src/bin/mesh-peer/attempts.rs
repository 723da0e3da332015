//! Connections without a pause, each with a line of its own: when, to which target, and which endpoint answered.

use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use mesh_tests::peer::{Attempt, Outcome, monotonic_us};
use serde_json::Value;
use socket2::SockRef;

use crate::print;
use crate::tally::kind;

/// How long a step may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Args)]
pub(crate) struct Attempts {
    /// Where to, in turn; servers that speak `http`.
    #[arg(long = "target", required = true)]
    targets: Vec<SocketAddr>,
    /// How many at a time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Goes on until standard input closes.
pub(crate) fn attempts(args: &Attempts) -> io::Result<()> {
    let (stop, lines) = (AtomicBool::new(false), Mutex::new(BufWriter::new(io::stdout())));
    print(&serde_json::json!({ "running": true }));
    thread::scope(|scope| {
        for first in 0..args.threads {
            let (stop, lines) = (&stop, &lines);
            scope.spawn(move || {
                // Each thread begins elsewhere, so that no two are at the same target for long.
                let mut target = first * args.targets.len() / args.threads;
                while !stop.load(Ordering::Relaxed) {
                    let attempt = attempt(target, args.targets[target]);
                    let mut lines = lines.lock().expect("no thread panics while it writes a line");
                    let text = serde_json::to_string(&attempt).expect("plain fields");
                    writeln!(lines, "{text}").expect("standard output is a file");
                    drop(lines);
                    target = (target + 1) % args.targets.len();
                }
            });
        }
        let ended = io::stdin().read_to_end(&mut Vec::new());
        stop.store(true, Ordering::Relaxed);
        ended
    })?;
    lines.into_inner().expect("no thread panics while it writes a line").flush()
}

fn attempt(target: usize, address: SocketAddr) -> Attempt {
    let begun_us = monotonic_us();
    let connected = TcpStream::connect_timeout(&address, PATIENCE);
    let connected_us = monotonic_us();
    let outcome = match connected {
        Err(error) => Outcome::Failed(kind(&error)),
        Ok(stream) => ask(&stream).map_or_else(|error| Outcome::Cut(kind(&error)), Outcome::Reached),
    };
    Attempt { target, begun_us, connected_us, ended_us: monotonic_us(), outcome }
}

/// The address at which the server took the connection.
fn ask(mut stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    // Reset at the end: nothing of it lingers to take a port.
    SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: endpoint\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if answer.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    line.clear();
    answer.read_line(&mut line)?;
    let body: Value = serde_json::from_str(&line)?;
    body["local"].as_str().unwrap_or_default().parse().map_err(io::Error::other)
}
