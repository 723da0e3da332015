//! The agent's listening sockets inside a pod's namespace.
//!
//! Transparent and bound to loopback on a port of the kernel's choosing: nothing reaches them but what `sk_lookup`
//! hands them, and no application's port is taken.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::datapath::Role;
use crate::socket::set_transparent;

/// Longest queue of connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// A listening socket for one role and one family.
#[derive(Debug)]
pub struct Listener {
    /// What it takes.
    pub role: Role,
    /// Whether it serves the pod's IPv4 or its IPv6 addresses.
    pub v4: bool,
    /// The socket, non-blocking.
    pub socket: TcpListener,
}

impl Listener {
    /// A second handle on the same socket. Both must be closed for the socket to end.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { role: self.role, v4: self.v4, socket: self.socket.try_clone()? })
    }

    /// Whether the socket still listens (`ss -K` and the like end it).
    pub(super) fn listens(&self) -> bool {
        SockRef::from(&self.socket).is_listener().unwrap_or(false)
    }
}

/// Opens the listeners for a pod with these addresses. Call on a thread inside the namespace.
pub(super) fn open(addresses: &[IpAddr]) -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for v4 in [true, false] {
        if addresses.iter().any(|address| address.is_ipv4() == v4) {
            for role in [Role::Outbound, Role::Inbound, Role::Hbone] {
                listeners.push(Listener { role, v4, socket: listen(v4)? });
            }
        }
    }
    Ok(listeners)
}

fn listen(v4: bool) -> io::Result<TcpListener> {
    let (domain, loopback) = if v4 {
        (Domain::IPV4, IpAddr::from(Ipv4Addr::LOCALHOST))
    } else {
        (Domain::IPV6, IpAddr::from(Ipv6Addr::LOCALHOST))
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if !v4 {
        socket.set_only_v6(true)?;
    }
    set_transparent(&socket, domain)?;
    socket.bind(&SocketAddr::new(loopback, 0).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
