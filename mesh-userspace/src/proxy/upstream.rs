//! Sockets that the agent opens inside pods: towards another endpoint, and towards the application.

use std::io;
use std::net::SocketAddr;

use mesh_common::abi::MARK_DELIVER;
use socket2::{Domain, Socket};
use tokio::net::{TcpSocket, TcpStream};

use crate::node::NetNs;
use crate::socket::{prepare, set_transparent, tcp};

/// Connects from a pod's namespace, so that the pod's address and its network policy apply.
pub(super) async fn plain(netns: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = netns.visit(|| tcp(to))?;
    prepare(&socket)?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// Ports that stand for a client's own where that cannot be used. Below what systems hand out to clients (Linux: from
/// 32768): the application's side of such a connection looks like one that the client made from this port itself, so a
/// connection that the client does make from it would be taken for this one, and would end it.
const STAND_IN: std::ops::Range<u16> = 1024..10_000;
/// How many of these are tried before the kernel chooses.
const STAND_IN_TRIES: usize = 8;

/// Connects to an application in a pod's namespace with the true client's address.
///
/// `from` with port 0 takes a port that the client itself will hardly use, and so does one whose port is taken there.
pub(super) async fn deliver(netns: &NetNs, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let taken = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
    };
    let own = (from.port() != 0).then_some(from.port());
    let stand_ins = std::iter::repeat_with(|| fastrand::u16(STAND_IN)).take(STAND_IN_TRIES);
    for port in own.into_iter().chain(stand_ins) {
        match deliver_from(netns, SocketAddr::new(from.ip(), port), to).await {
            Err(error) if taken(&error) => {}
            result => return result,
        }
    }
    deliver_from(netns, SocketAddr::new(from.ip(), 0), to).await
}

async fn deliver_from(netns: &NetNs, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = netns.visit(|| transparent(from, to))?;
    prepare(&socket)?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

fn transparent(from: SocketAddr, to: SocketAddr) -> io::Result<Socket> {
    let socket = tcp(to)?;
    let domain = Domain::for_address(to);
    set_transparent(&socket, domain)?;
    socket.set_mark(MARK_DELIVER)?;
    socket.set_reuse_address(true)?;
    if from.port() == 0 {
        set_bind_no_port(&socket)?;
    }
    socket.bind(&from.into())?;
    Ok(socket)
}

/// `IP_BIND_ADDRESS_NO_PORT` (also for IPv6 sockets): the port is chosen when the connection's four parts are known, so
/// that 28,000 connections of one client to different applications do not run out of ports.
fn set_bind_no_port(socket: &Socket) -> io::Result<()> {
    nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
    Ok(())
}
