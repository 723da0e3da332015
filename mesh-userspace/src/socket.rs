//! Socket options that the standard library and socket2 do not have, the cookies that name sockets and namespaces, and
//! addresses as sockets show them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::model::Keepalive;

/// `SO_NETNS_COOKIE` (`include/uapi/asm-generic/socket.h`, Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;
/// `IPV6_TRANSPARENT`.
const IPV6_TRANSPARENT: libc::c_int = 75;

fn option<T: Default>(fd: RawFd, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).expect("a small type");
    // SAFETY: value and length are live and agree.
    let result = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("a small type");
    // SAFETY: the value is live and has the length that is given.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Cookie of a socket: unique for as long as the kernel runs.
pub(crate) fn cookie(socket: &impl AsRawFd) -> io::Result<u64> {
    option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE)
}

/// Cookie of the calling thread's network namespace, as `bpf_get_netns_cookie` gives it.
pub(crate) fn own_netns_cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    option(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE)
}

/// Lets a socket use addresses that are not its host's (`IP_TRANSPARENT`, `IPV6_TRANSPARENT`; needs `CAP_NET_ADMIN`).
pub(crate) fn set_transparent(socket: &Socket, domain: Domain) -> io::Result<()> {
    if domain == Domain::IPV6 {
        set_option(socket.as_raw_fd(), libc::IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    } else {
        socket.set_ip_transparent_v4(true)
    }
}

/// Has a UDP socket tell what each datagram was sent to (`IP_RECVORIGDSTADDR`, `IPV6_RECVORIGDSTADDR`).
pub(crate) fn set_original_destination(socket: &Socket, domain: Domain) -> io::Result<()> {
    if domain == Domain::IPV6 {
        set_option(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR, 1)
    } else {
        set_option(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR, 1)
    }
}

/// A TCP socket for an address's family, non-blocking, closed on exec.
pub(crate) fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Options of every connection that the agent carries: no delay, and a peer that vanished is noticed.
pub(crate) fn prepare(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_mins(3))
        .with_interval(Duration::from_mins(3))
        .with_retries(9);
    socket.set_tcp_keepalive(&keepalive)
}

/// Keepalive as a rule has it; what it leaves open stays as [`prepare`] has set it.
pub(crate) fn set_keepalive(socket: &impl std::os::fd::AsFd, settings: &Keepalive) -> io::Result<()> {
    let mut keepalive = TcpKeepalive::new();
    if let Some(time) = settings.time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = settings.interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = settings.probes {
        keepalive = keepalive.with_retries(probes);
    }
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// Makes the close that follows a reset: the peer sees RST instead of FIN.
pub(crate) fn reset_on_close(socket: &impl std::os::fd::AsFd) {
    // On a socket that has been reset already there is nothing left to do.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// An IPv4 address that an IPv6 socket shows mapped, as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
