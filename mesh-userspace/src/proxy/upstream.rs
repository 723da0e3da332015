//! Sockets that the agent opens inside pods: towards another endpoint, and towards the application.

use std::io;
use std::net::SocketAddr;

use mesh_common::abi::MARK_DELIVER;
use socket2::{Domain, Socket};
use tokio::net::{TcpSocket, TcpStream};

use crate::datapath::Deliveries;
use crate::node::NetNs;
use crate::socket::{prepare, set_transparent, tcp};

/// Connects from a pod's namespace, so that the pod's address and its network policy apply.
pub(super) async fn plain(netns: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = netns.visit(|| tcp(to))?;
    prepare(&socket)?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// Ports that clients do not take by themselves: below `ip_local_port_range` as it is by default.
const FREE_PORTS: std::ops::Range<u16> = 1024..32768;
/// How many of them are tried.
const PORT_TRIES: usize = 16;

/// Connects to an application in a pod's namespace with the true client's address.
///
/// `from` with port 0 takes another port of the client's address, none that the client itself may take for another
/// connection to the same application: the two would be one to this namespace. Left to itself, the kernel walks the
/// same ports here as it does for the client. A port that is taken falls back to another.
///
/// `admit` names the connection to the kernel: the client may itself be a pod of this node.
pub(super) async fn deliver(
    netns: &NetNs,
    from: SocketAddr,
    to: SocketAddr,
    admit: &Deliveries,
) -> io::Result<TcpStream> {
    let own = (from.port() != 0).then_some(from.port());
    let mut ports = own.into_iter().chain((0..PORT_TRIES).map(|_| fastrand::u16(FREE_PORTS))).peekable();
    loop {
        let port = ports.next().unwrap_or_else(|| fastrand::u16(FREE_PORTS));
        let from = SocketAddr::new(from.ip(), port);
        match deliver_from(netns, from, to, admit).await {
            Err(error) if is_taken(&error, port) && ports.peek().is_some() => {}
            result => return result,
        }
    }
}

/// Whether another port may do. One below 1024 takes `CAP_NET_BIND_SERVICE`, or a lower `ip_unprivileged_port_start`.
fn is_taken(error: &io::Error, port: u16) -> bool {
    match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => true,
        io::ErrorKind::PermissionDenied => port < FREE_PORTS.start,
        _ => false,
    }
}

async fn deliver_from(
    netns: &NetNs,
    from: SocketAddr,
    to: SocketAddr,
    admit: &Deliveries,
) -> io::Result<TcpStream> {
    let socket = netns.visit(|| transparent(from, to))?;
    prepare(&socket)?;
    let _admitted = admit.admit(from, to).map_err(io::Error::other)?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

fn transparent(from: SocketAddr, to: SocketAddr) -> io::Result<Socket> {
    let socket = tcp(to)?;
    let domain = Domain::for_address(to);
    set_transparent(&socket, domain)?;
    socket.set_mark(MARK_DELIVER)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_or_not_allowed_is_no_reason_to_give_up() {
        let cases = [
            (libc::EADDRINUSE, 40000, true),
            (libc::EADDRNOTAVAIL, 40000, true),
            (libc::EACCES, 1023, true),
            (libc::EACCES, 1024, false),
            (libc::ECONNREFUSED, 1023, false),
        ];
        for (errno, port, wanted) in cases {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(is_taken(&error, port), wanted, "{error} with port {port}");
        }
    }
}
