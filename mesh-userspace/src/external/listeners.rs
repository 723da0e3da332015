//! The agent's sockets in the node's namespace: one a family and protocol, whatever the number of services.
//!
//! Bound to loopback on a port of the kernel's choosing: `sk_lookup` hands them what is sent to service addresses and node
//! ports, with its real destination. Who connects to the port itself has asked for no service, and is reset.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use mesh_common::abi::{ROLE_NODE_TCP4, ROLE_NODE_TCP6, ROLE_NODE_UDP4, ROLE_NODE_UDP6};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::socket::{set_original_destination, set_transparent};

/// Longest queue of connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Bytes of first datagrams that may wait; the kernel's limit (`net.core.rmem_max`) does not hold for the agent.
const FIRST_DATAGRAMS: usize = 4 << 20;

/// All of them.
pub(super) struct Listeners {
    pub(super) tcp: Vec<TcpListener>,
    pub(super) udp: Vec<UdpSocket>,
}

impl Listeners {
    /// Opens them in this thread's namespace; a kernel without IPv6 has none of that family.
    pub(super) fn open() -> io::Result<Self> {
        let (v4, v6) =
            (SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0)));
        let mut listeners = Self { tcp: vec![tcp(v4)?], udp: vec![udp(v4)?] };
        match tcp(v6).and_then(|tcp| Ok((tcp, udp(v6)?))) {
            Ok((tcp, udp)) => {
                listeners.tcp.push(tcp);
                listeners.udp.push(udp);
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                tracing::info!(%error, "no IPv6: clients from outside are served over IPv4 alone");
            }
            Err(error) => return Err(error),
        }
        Ok(listeners)
    }

    /// Each with its role in the kernel map.
    pub(super) fn roles(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        let tcp = [ROLE_NODE_TCP4, ROLE_NODE_TCP6].into_iter().zip(self.tcp.iter().map(AsFd::as_fd));
        let udp = [ROLE_NODE_UDP4, ROLE_NODE_UDP6].into_iter().zip(self.udp.iter().map(AsFd::as_fd));
        tcp.chain(udp)
    }
}

/// A socket as the runtime of this thread watches it for something to read.
pub(super) fn watch<S: OwnsSocket>(socket: S) -> io::Result<AsyncFd<S>> {
    // SAFETY: the socket is owned, so that its descriptor is valid and the same for as long as it is watched.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// What holds a socket open and is always the same one.
pub(super) trait OwnsSocket: AsRawFd {}

impl OwnsSocket for TcpListener {}
impl OwnsSocket for UdpSocket {}
impl OwnsSocket for Arc<UdpSocket> {}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    set_original_destination(&socket, Domain::for_address(address))?;
    // Without CAP_NET_ADMIN the usual size has to do.
    if nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &FIRST_DATAGRAMS)
        .is_err()
    {
        socket.set_recv_buffer_size(FIRST_DATAGRAMS)?;
    }
    Ok(socket.into())
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    set_transparent(&socket, domain)?;
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
