//! Servers: streams in every mode, and datagrams that come back.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use mesh_tests::peer::{Digest, Report};
use serde_json::json;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::address::{plain, text};
use crate::mode::Mode;
use crate::print;
use crate::stream::{CHUNK, read_head, send, take};
use crate::tally::kind;
use crate::tls;

#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line")]
pub(crate) struct Serve {
    /// Where; `[::]:PORT` serves IPv4 as well.
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// Answer datagrams instead, with the name before what they hold.
    #[arg(long)]
    pub(crate) udp: bool,
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
    /// Share the port with others that do (`SO_REUSEPORT`).
    #[arg(long)]
    reuse_port: bool,
    /// Take what comes with a SYN (TCP Fast Open).
    #[arg(long)]
    fast_open: bool,
    /// Speak MPTCP with those who do.
    #[arg(long)]
    mptcp: bool,
}

pub(crate) async fn serve(args: Serve) -> io::Result<()> {
    let mut accepting = JoinSet::new();
    let args = Arc::new(args);
    for address in &args.listen {
        let socket = bound(*address, Type::STREAM, args.mptcp.then_some(Protocol::MPTCP), args.reuse_port)?;
        if args.fast_open {
            fast_open(&socket)?;
        }
        socket.listen(4096)?;
        let listener = TcpListener::from_std(socket.into())?;
        accepting.spawn(accept(listener, Arc::clone(&args)));
    }
    print(&json!({ "listening": args.listen }));
    while accepting.join_next().await.is_some() {}
    Ok(())
}

/// A socket with an address; `[::]` is IPv4's as well.
fn bound(
    address: SocketAddr,
    kind: Type,
    protocol: Option<Protocol>,
    reuse_port: bool,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, protocol)?;
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn fast_open(socket: &Socket) -> io::Result<()> {
    let queue = 1024_i32.to_ne_bytes();
    let length = libc::socklen_t::try_from(queue.len()).map_err(io::Error::other)?;
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_FASTOPEN);
    // SAFETY: an integer and its length.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, queue.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
        Mode::Tls => tls::answer(stream, &args.name, digest).await?,
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
        Mode::Stall => std::future::pending().await,
        Mode::Hang => {
            take(&mut stream, digest).await?;
            std::future::pending::<()>().await;
        }
        Mode::Close => {
            stream.shutdown().await?;
            // What comes all the same is read: a close with bytes unread is a reset.
            take(&mut stream, digest).await?;
        }
        Mode::HalfClose => {
            stream.shutdown().await?;
            take(&mut stream, digest).await?;
        }
    }
    Ok(())
}

pub(crate) async fn serve_udp(args: Serve) -> io::Result<()> {
    let mut serving = JoinSet::new();
    let report = args.report;
    for address in &args.listen {
        let socket = bound(*address, Type::DGRAM, None, args.reuse_port)?;
        let socket = UdpSocket::from_std(socket.into())?;
        let name = args.name.clone();
        serving.spawn(async move {
            let mut datagram = vec![0; CHUNK];
            loop {
                // An ICMP error of an earlier answer comes out here.
                let Ok((length, from)) = socket.recv_from(&mut datagram).await else { continue };
                if report {
                    print(&json!({ "from": plain(from), "bytes": length }));
                }
                let answer = [name.as_bytes(), b" ", &datagram[..length]].concat();
                let _unreachable = socket.send_to(&answer, from).await;
            }
        });
    }
    print(&json!({ "listening": args.listen }));
    while serving.join_next().await.is_some() {}
    Ok(())
}
