//! Holds sockets open inside a pod of a lab, and prints what becomes of them as lines of JSON, until standard input closes.
//!
//! `tcp`: connections that wait for an end which they did not ask for; those that had none are then tried. `udp`: one socket
//! that asks an echo server (`mesh-peer serve --udp`) again and again and, like a resolver, connects anew after an error.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Milliseconds between two questions.
const PACE: u8 = 10;

/// Holds sockets open until standard input closes.
#[derive(Debug, Parser)]
#[command(name = "mesh-holder")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Hold connections to an echo server.
    Tcp(Target),
    /// Ask an echo server with datagrams.
    Udp(Target),
}

#[derive(Debug, Args)]
struct Target {
    /// Where to.
    #[arg(value_name = "TARGET")]
    to: SocketAddr,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Use `sendto` and `recvfrom` instead of a connected socket.
    #[arg(long)]
    unconnected: bool,
    /// Reach an IPv4 target from an IPv6 socket.
    #[arg(long)]
    mapped: bool,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Tcp(target) => hold(&target),
        Command::Udp(target) => ask(&target),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-holder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Counts by what happened.
type Counts = BTreeMap<String, u64>;

fn say(line: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

fn name(result: &io::Result<usize>) -> String {
    match result {
        Ok(0) => "eof".to_owned(),
        Ok(_) => "answer".to_owned(),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionAborted => "aborted".to_owned(),
            io::ErrorKind::ConnectionReset => "reset".to_owned(),
            io::ErrorKind::ConnectionRefused => "refused".to_owned(),
            io::ErrorKind::WouldBlock => "timeout".to_owned(),
            // Of datagrams: the socket is no longer connected.
            _ if error.raw_os_error() == Some(libc::EDESTADDRREQ) => "no_peer".to_owned(),
            kind => format!("{kind:?}"),
        },
    }
}

impl Target {
    fn address(&self) -> SocketAddr {
        match self.to.ip() {
            IpAddr::V4(ip) if self.mapped => SocketAddr::new(ip.to_ipv6_mapped().into(), self.to.port()),
            ip => SocketAddr::new(ip, self.to.port()),
        }
    }

    fn socket(&self, kind: Type) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.address()), kind, None)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }
}

fn hold(target: &Target) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let mut held: Vec<TcpStream> = Vec::with_capacity(target.count);
    for _ in 0..target.count {
        let socket = target.socket(Type::STREAM)?;
        socket.connect(&target.address().into())?;
        held.push(socket.into());
    }
    // The server has accepted whatever answered.
    for stream in &mut held {
        exchange(stream)?;
    }
    say(&json!({ "holding": held.len() }))?;
    let mut ended = Counts::new();
    let stdin = io::stdin();
    loop {
        let mut watched = vec![PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        watched.extend(held.iter().map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)));
        poll(&mut watched, PollTimeout::NONE)?;
        let ready: Vec<bool> = watched.iter().map(|one| one.any() == Some(true)).collect();
        if ready[0] {
            break;
        }
        let mut rest = Vec::with_capacity(held.len());
        for (mut stream, is_ready) in held.into_iter().zip(&ready[1..]) {
            if *is_ready {
                *ended.entry(name(&stream.read(&mut [0]))).or_default() += 1;
            } else {
                rest.push(stream);
            }
        }
        held = rest;
        say(&json!({ "ended": ended, "total": ended.values().sum::<u64>() }))?;
    }
    let mut alive = 0;
    for stream in &mut held {
        match exchange(stream) {
            Ok(()) => alive += 1,
            Err(error) => *ended.entry(name(&Err(error))).or_default() += 1,
        }
    }
    Ok(say(&json!({ "alive": alive, "ended": ended }))?)
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

fn ask(target: &Target) -> Result<()> {
    let socket: UdpSocket = target.socket(Type::DGRAM)?.into();
    let (mut failures, mut last) = (Counts::new(), String::new());
    let stdin = io::stdin();
    let mut is_connected = false;
    loop {
        let answer = (|| {
            if target.unconnected {
                socket.send_to(b"?", target.address())?;
            } else {
                if !is_connected {
                    socket.connect(target.address())?;
                    is_connected = true;
                }
                socket.send(b"?")?;
            }
            let mut buffer = [0; 256];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })();
        match answer {
            Ok(from) if from == last => {}
            Ok(from) => {
                last = from;
                say(&json!({ "from": last, "failures": failures }))?;
            }
            Err(error) => {
                is_connected = false;
                *failures.entry(name(&Err(error))).or_default() += 1;
            }
        }
        let mut watched = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        if poll(&mut watched, PollTimeout::from(PACE))? > 0 {
            return Ok(say(&json!({ "from": last, "failures": failures }))?);
        }
    }
}
