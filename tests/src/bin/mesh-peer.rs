//! The programs that run inside the pods of a lab: servers and clients that print what they saw as lines of JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_tests::peer::{Digest, Noise, Report, Summary};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Bytes that are read or written at once.
const CHUNK: usize = 64 << 10;
/// Pause between two exchanges of a load on one connection.
const PACE: Duration = Duration::from_millis(20);

/// Servers and clients for a pod of the lab.
#[derive(Debug, Parser)]
#[command(name = "mesh-peer")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until killed.
    Serve(Serve),
    /// Make a number of connections, and print what they came to.
    Connect(Connect),
    /// Make connections until standard input closes, and print what they came to.
    Loop(Connect),
    /// Send datagrams to an echo server (`serve --udp`), and print what they came to.
    Udp(Udp),
}

/// What is said on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// An HTTP/1.1 request; the answer says who served it and whom it saw.
    Http,
    /// The client sends bytes and half-closes; the server sends them back as they come, and half-closes.
    Echo,
    /// The client sends bytes and half-closes; the server answers with their digest.
    Discard,
    /// The client sends 16 bytes, a seed and a length; the server sends that stream and half-closes.
    Source,
    /// The server resets the connection once it has a byte.
    Reset,
    /// The client resets the connection once the server (`echo`) has answered.
    Abort,
    /// The server half-closes at once; the client sees that, and only then sends its bytes (see the server's report).
    HalfClose,
}

#[derive(Clone, Debug, Args)]
struct Serve {
    /// Where; `[::]:PORT` serves IPv4 as well.
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// Answer datagrams instead, with the name before what they hold.
    #[arg(long)]
    udp: bool,
    /// Who answers.
    #[arg(long, default_value = "mesh-peer")]
    name: String,
    #[arg(long, value_enum, default_value_t = Mode::Http)]
    mode: Mode,
    /// Wait so long before each answer.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Print a line about each connection when it ends.
    #[arg(long)]
    report: bool,
}

#[derive(Clone, Debug, Args)]
struct Connect {
    /// Where to.
    target: SocketAddr,
    #[arg(long, value_enum, default_value_t = Mode::Http)]
    mode: Mode,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// How many at a time.
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// Bytes to send (`echo`, `discard`, `half-close`) or to ask for (`source`).
    #[arg(long, default_value_t = 1000)]
    bytes: u64,
    /// Text to send at the head of the bytes, and in the HTTP request.
    #[arg(long, default_value = "")]
    marker: String,
    /// Reach an IPv4 target from an IPv6 socket.
    #[arg(long)]
    source_v6_mapped: bool,
    /// Keep the connections: `connect` holds each until all stand and then exchanges once more; `loop` exchanges on the
    /// same ones all the time. For `http` and `echo`.
    #[arg(long)]
    keep: bool,
    /// Milliseconds that an exchange may take.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
}

#[derive(Clone, Debug, Args)]
struct Udp {
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

#[tokio::main]
async fn main() -> ExitCode {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where it stays as it is, many connections fail and say so.
        let _limited = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let result = match Cli::parse().command {
        Command::Serve(args) if args.udp => serve_udp(args).await,
        Command::Serve(args) => serve(args).await,
        Command::Connect(args) => connect(args).await,
        Command::Loop(args) => load(args).await,
        Command::Udp(args) => udp(&args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is what it is for")]
fn print(line: &impl serde::Serialize) {
    println!("{}", serde_json::to_string(line).expect("maps with text as keys"));
}

// ---- servers

async fn serve(args: Serve) -> io::Result<()> {
    let mut accepting = JoinSet::new();
    let args = Arc::new(args);
    for address in &args.listen {
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.bind(&(*address).into())?;
        socket.listen(4096)?;
        let listener = TcpListener::from_std(socket.into())?;
        accepting.spawn(accept(listener, Arc::clone(&args)));
    }
    print(&json!({ "listening": args.listen }));
    while accepting.join_next().await.is_some() {}
    Ok(())
}

async fn accept(listener: TcpListener, args: Arc<Serve>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let args = Arc::clone(&args);
        tokio::spawn(async move {
            let (peer, local) = (text(stream.peer_addr()), text(stream.local_addr()));
            let mut digest = Digest::default();
            let result = answer(stream, &args, &peer, &local, &mut digest).await;
            if args.report {
                let end = result.map_or_else(|error| kind(&error), |()| "eof".to_owned());
                print(&Report { peer, local, bytes: digest.count(), digest: digest.hex(), end });
            }
        });
    }
}

async fn answer(
    mut stream: TcpStream,
    args: &Serve,
    peer: &str,
    local: &str,
    digest: &mut Digest,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let delay = Duration::from_millis(args.delay_ms);
    let mut chunk = vec![0; CHUNK];
    match args.mode {
        Mode::Http => {
            let mut head = Vec::new();
            while let Some(length) = read_head(&mut stream, &mut head).await? {
                digest.update(&head[..length]);
                head.drain(..length);
                tokio::time::sleep(delay).await;
                let body = json!({ "name": args.name, "peer": peer, "local": local }).to_string() + "\n";
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).await?;
            }
        }
        Mode::Echo | Mode::Abort => loop {
            let length = stream.read(&mut chunk).await?;
            digest.update(&chunk[..length]);
            if length == 0 {
                tokio::time::sleep(delay).await;
                return stream.shutdown().await;
            }
            stream.write_all(&chunk[..length]).await?;
        },
        Mode::Discard => {
            take(&mut stream, digest).await?;
            tokio::time::sleep(delay).await;
            let answer = json!({ "name": args.name, "peer": peer, "local": local, "digest": digest.hex() });
            stream.write_all(answer.to_string().as_bytes()).await?;
            stream.shutdown().await?;
        }
        Mode::Source => {
            let (seed, length) = (stream.read_u64().await?, stream.read_u64().await?);
            send(&mut stream, seed, length, "", digest).await?;
            stream.shutdown().await?;
            take(&mut stream, &mut Digest::default()).await?;
        }
        Mode::Reset => {
            stream.read_exact(&mut chunk[..1]).await?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        Mode::HalfClose => {
            stream.shutdown().await?;
            take(&mut stream, digest).await?;
        }
    }
    Ok(())
}

async fn serve_udp(args: Serve) -> io::Result<()> {
    let mut serving = JoinSet::new();
    for address in &args.listen {
        let socket = UdpSocket::bind(*address).await?;
        let name = args.name.clone();
        serving.spawn(async move {
            let mut datagram = vec![0; CHUNK];
            loop {
                // An ICMP error of an earlier answer comes out here.
                let Ok((length, from)) = socket.recv_from(&mut datagram).await else { continue };
                let answer = [name.as_bytes(), b" ", &datagram[..length]].concat();
                let _unreachable = socket.send_to(&answer, from).await;
            }
        });
    }
    print(&json!({ "listening": args.listen }));
    while serving.join_next().await.is_some() {}
    Ok(())
}

// ---- clients

/// What is being counted.
#[derive(Default)]
struct Tally {
    summary: Mutex<(Summary, Vec<u64>)>,
}

impl Tally {
    fn add(&self, took: Duration, result: Result<Seen, Failure>) {
        let mut guard = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        let (summary, times) = &mut *guard;
        match result {
            Ok(seen) => {
                summary.ok += 1;
                summary.sent += seen.sent;
                summary.received += seen.received;
                times.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                for (map, value) in [
                    (&mut summary.by_name, seen.name),
                    (&mut summary.peers_seen, seen.peer),
                    (&mut summary.locals, seen.local),
                    (&mut summary.getpeername, seen.getpeername),
                    (&mut summary.replies_from, seen.reply_from),
                ] {
                    count(map, value);
                }
            }
            Err(failure) => {
                summary.failed += 1;
                count(&mut summary.errors, Some(failure.0));
                summary.failed_max_ms =
                    summary.failed_max_ms.max(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            }
        }
    }

    fn finish(&self, started: Instant) -> Summary {
        let mut guard = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        let (summary, times) = &mut *guard;
        times.sort_unstable();
        let at =
            |percent: usize| times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0);
        (summary.p50_us, summary.p99_us) = (at(50), at(99));
        summary.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        summary.clone()
    }
}

fn count(map: &mut BTreeMap<String, u64>, value: Option<String>) {
    if let Some(value) = value {
        // Ports differ each time: beyond a few, only that there are more is worth a line.
        let value = if map.len() >= 100 && !map.contains_key(&value) { "...".to_owned() } else { value };
        *map.entry(value).or_default() += 1;
    }
}

#[derive(Default)]
struct Seen {
    name: Option<String>,
    peer: Option<String>,
    local: Option<String>,
    getpeername: Option<String>,
    reply_from: Option<String>,
    sent: u64,
    received: u64,
}

/// The kind of a failure.
struct Failure(String);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(kind(&error))
    }
}

async fn connect(args: Connect) -> io::Result<()> {
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

async fn load(args: Connect) -> io::Result<()> {
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

async fn exchange(stream: &mut TcpStream, args: &Connect, number: u64) -> Result<Seen, Failure> {
    match args.mode {
        Mode::Http => http(stream, args).await,
        Mode::Echo if args.keep => echo_kept(stream, args, number).await,
        Mode::Echo => echo(stream, args, number).await,
        Mode::Discard => {
            let mut digest = Digest::default();
            send(stream, number, args.bytes, &args.marker, &mut digest).await?;
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            let answer: Value =
                serde_json::from_slice(&answer).map_err(|_error| Failure("eof".to_owned()))?;
            same(answer["digest"].as_str() == Some(&digest.hex()))?;
            Ok(Seen { sent: digest.count(), ..seen_in(&answer) })
        }
        Mode::Source => {
            stream.write_all(&[number.to_be_bytes(), args.bytes.to_be_bytes()].concat()).await?;
            let (mut expected, mut received) = (Digest::default(), Digest::default());
            let (mut noise, mut chunk) = (Noise::new(number, args.bytes), vec![0; CHUNK]);
            loop {
                let bytes = noise.fill(&mut chunk);
                if bytes.is_empty() {
                    break;
                }
                expected.update(bytes);
            }
            take(stream, &mut received).await?;
            same(expected.hex() == received.hex())?;
            Ok(Seen { received: received.count(), ..Seen::default() })
        }
        Mode::Reset => {
            stream.write_all(b"x").await?;
            match stream.read(&mut [0; 16]).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Seen::default()),
                Err(error) => Err(error.into()),
                Ok(_) => Err(Failure("eof".to_owned())),
            }
        }
        Mode::Abort => {
            stream.write_all(b"x").await?;
            stream.read_exact(&mut [0; 1]).await?;
            SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
            Ok(Seen::default())
        }
        Mode::HalfClose => {
            same(stream.read(&mut [0; 16]).await? == 0)?;
            let mut digest = Digest::default();
            send(stream, number, args.bytes, &args.marker, &mut digest).await?;
            stream.shutdown().await?;
            Ok(Seen { sent: digest.count(), ..Seen::default() })
        }
    }
}

fn same(is: bool) -> Result<(), Failure> {
    if is { Ok(()) } else { Err(Failure("mismatch".to_owned())) }
}

async fn http(stream: &mut TcpStream, args: &Connect) -> Result<Seen, Failure> {
    let request = format!("GET /{} HTTP/1.1\r\nhost: {}\r\n\r\n", args.marker, args.target);
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let head = read_head(stream, &mut answer).await?.ok_or_else(|| Failure("eof".to_owned()))?;
    let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    let length = length.ok_or_else(|| Failure("mismatch".to_owned()))?;
    while answer.len() < head + length {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(Failure("eof".to_owned()));
        }
    }
    let body: Value =
        serde_json::from_slice(&answer[head..]).map_err(|_error| Failure("mismatch".to_owned()))?;
    Ok(Seen { sent: request.len() as u64, received: answer.len() as u64, ..seen_in(&body) })
}

fn seen_in(answer: &Value) -> Seen {
    let field = |name: &str| answer[name].as_str().map(str::to_owned);
    Seen { name: field("name"), peer: field("peer"), ..Seen::default() }
}

async fn echo(stream: &mut TcpStream, args: &Connect, number: u64) -> Result<Seen, Failure> {
    let (mut sent, mut received) = (Digest::default(), Digest::default());
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        send(&mut writer, number, args.bytes, &args.marker, &mut sent).await?;
        writer.shutdown().await
    };
    tokio::try_join!(sending, take(&mut reader, &mut received))?;
    same(sent.hex() == received.hex())?;
    Ok(Seen { sent: sent.count(), received: received.count(), ..Seen::default() })
}

/// As `echo`, on a connection that goes on: the bytes are few enough to be sent before any is read.
async fn echo_kept(stream: &mut TcpStream, args: &Connect, number: u64) -> Result<Seen, Failure> {
    let mut bytes = vec![0; usize::try_from(args.bytes.clamp(8, 16 << 10)).unwrap_or(8) & !7];
    fastrand::Rng::with_seed(number).fill(&mut bytes);
    stream.write_all(&bytes).await?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).await?;
    same(bytes == back)?;
    Ok(Seen { sent: bytes.len() as u64, received: back.len() as u64, ..Seen::default() })
}

async fn udp(args: &Udp) -> io::Result<()> {
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

// ---- streams

/// Sends a marker and the bytes that a seed stands for.
async fn send(
    stream: &mut (impl AsyncWriteExt + Unpin),
    seed: u64,
    length: u64,
    marker: &str,
    digest: &mut Digest,
) -> io::Result<()> {
    stream.write_all(marker.as_bytes()).await?;
    digest.update(marker.as_bytes());
    let (mut noise, mut chunk) = (Noise::new(seed, length), vec![0; CHUNK]);
    loop {
        let bytes = noise.fill(&mut chunk);
        if bytes.is_empty() {
            return Ok(());
        }
        digest.update(bytes);
        stream.write_all(bytes).await?;
    }
}

/// Reads to the end.
async fn take(stream: &mut (impl AsyncRead + Unpin), digest: &mut Digest) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = stream.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        digest.update(&chunk[..length]);
    }
}

/// Reads until the empty line and returns the length up to there; `None` at the end of the stream.
async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(Some(end + 4));
        }
        if stream.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// An IPv4 address without its IPv6 form.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn text(address: io::Result<SocketAddr>) -> String {
    address.map_or_else(|error| error.to_string(), |address| plain(address).to_string())
}

fn kind(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused",
        io::ErrorKind::ConnectionReset => "reset",
        io::ErrorKind::TimedOut => "timeout",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable",
        io::ErrorKind::UnexpectedEof => "eof",
        other => return format!("{other:?}"),
    }
    .to_owned()
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
