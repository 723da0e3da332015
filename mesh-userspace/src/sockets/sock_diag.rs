//! `sock_diag(7)`: the kernel's list of sockets, and the end of one (`SOCK_DESTROY`).
//!
//! The messages are written here because the netlink crates have no filter programs (`INET_DIAG_REQ_BYTECODE`), without
//! which every socket of a namespace would be copied out to find a few. Kernel minimum: 4.9 with `CONFIG_INET_DIAG_DESTROY`.
//! Layouts: `include/uapi/linux/inet_diag.h`, `sock_diag.h`, `netlink.h`; everything is in native byte order but addresses
//! and ports.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::model::Protocol;

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY`.
const DESTROY: u16 = 21;
/// `INET_DIAG_REQ_BYTECODE`.
const BYTECODE: u16 = 1;
/// `INET_DIAG_BC_JMP`.
const JUMP: u8 = 1;
/// `INET_DIAG_BC_D_COND`.
const DESTINATION: u8 = 8;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// Where `struct inet_diag_msg` has it.
const ID_IN_ANSWER: usize = 4;
/// Destinations beyond which a filter costs more than it saves.
const FILTERED: usize = 64;
/// The kernel answers a dump in parts of at most this (`NLMSG_GOODSIZE` and above, by the size that it is read with).
const BUFFER: usize = 32 * 1024;
/// How long the kernel may take for an answer: it answers inside the call, so this is for a defect.
const PATIENCE: i64 = 5;

/// `1 << TCP_*` for every state between the SYN and the last ACK (`include/net/tcp_states.h`): ESTABLISHED, both SENT and
/// WAIT states of a client, CLOSING; not listening, closed and TIME-WAIT.
const TCP_STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// A connected datagram socket is ESTABLISHED.
const UDP_STATES: u32 = 1 << 1;

/// A connected socket, as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connected {
    family: u8,
    protocol: u8,
    id: [u8; ID],
}

impl Connected {
    /// Its cookie.
    pub(super) fn cookie(&self) -> u64 {
        u64::from(self.word(40)) | u64::from(self.word(44)) << 32
    }

    /// Its own address.
    pub(super) fn source(&self) -> SocketAddr {
        SocketAddr::new(self.address(4), self.port(0))
    }

    /// What it is connected to.
    pub(super) fn peer(&self) -> SocketAddr {
        SocketAddr::new(self.address(20), self.port(2))
    }

    fn word(&self, at: usize) -> u32 {
        word(&self.id, at).expect("an id is long enough")
    }

    fn port(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.id[at], self.id[at + 1]])
    }

    fn address(&self, at: usize) -> IpAddr {
        let octets: [u8; 16] = self.id[at..at + 16].try_into().expect("an id is long enough");
        if i32::from(self.family) == libc::AF_INET {
            let [a, b, c, d, ..] = octets;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            Ipv6Addr::from(octets).to_canonical()
        }
    }
}

/// What came of ending a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was ended.
    Ended,
    /// It had gone, or is connected elsewhere by now.
    Absent,
}

/// A `NETLINK_SOCK_DIAG` socket. It sees and ends the sockets of the namespace that it was opened in, wherever its thread
/// goes afterwards.
pub(super) struct SockDiag {
    netlink: OwnedFd,
    buffer: Vec<u8>,
}

impl SockDiag {
    /// Opens one in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        Ok(Self { netlink, buffer: vec![0; BUFFER] })
    }

    /// Shows the sockets that are connected, or are connecting, to one of these, and maybe others: the IPv4 ones in either
    /// of the two forms that a socket can have them in.
    pub(super) fn connected(
        &mut self,
        protocol: Protocol,
        to: &[SocketAddr],
        mut each: impl FnMut(Connected),
    ) -> io::Result<()> {
        let filter = if to.len() <= FILTERED { bytecode(to) } else { Vec::new() };
        let families = [(libc::AF_INET, to.iter().any(SocketAddr::is_ipv4)), (libc::AF_INET6, true)];
        for (family, _) in families.into_iter().filter(|(_, wanted)| *wanted) {
            let family = u8::try_from(family).expect("families are small numbers");
            self.send(&dump(family, protocol, &filter))?;
            self.answers(|answer| {
                if let Some(socket) = connected(protocol, answer) {
                    each(socket);
                }
            })?;
        }
        Ok(())
    }

    /// Ends one socket, that very one: its application sees `ECONNABORTED`, the peer of a TCP connection RST. A UDP socket
    /// stays open and may connect anew.
    pub(super) fn end(&mut self, socket: &Connected) -> io::Result<End> {
        self.send(&destroy(socket))?;
        match self.answers(|_| ()) {
            Ok(()) => Ok(End::Ended),
            // TCP: no such socket, or one that closed meanwhile. UDP: the same.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(End::Absent),
            Err(error) => Err(error),
        }
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        let sent = send(self.netlink.as_raw_fd(), message, MsgFlags::empty())?;
        if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads answers up to the one that is the last; an error that the kernel reports is returned.
    fn answers(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let length = match recv(self.netlink.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Err(nix::errno::Errno::EINTR) => continue,
                length => length?,
            };
            let answer = self.buffer.get(..length).ok_or_else(malformed)?;
            for message in Messages(answer) {
                match message? {
                    Message::Done(0) => return Ok(()),
                    Message::Done(error) => return Err(io::Error::from_raw_os_error(error)),
                    Message::Other(body) => each(body),
                }
            }
        }
    }
}

/// A message of the kernel.
#[derive(Debug, PartialEq, Eq)]
enum Message<'a> {
    /// The last, with an error number (`NLMSG_DONE`, `NLMSG_ERROR`).
    Done(i32),
    /// What was asked for.
    Other(&'a [u8]),
}

/// The messages in one datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = take_message(&mut self.0);
        if message.is_err() {
            self.0 = &[];
        }
        Some(message)
    }
}

fn take_message<'a>(bytes: &mut &'a [u8]) -> io::Result<Message<'a>> {
    let length = word(bytes, 0).ok_or_else(malformed)? as usize;
    let kind = bytes.get(4..6).ok_or_else(malformed)?;
    let kind = u16::from_ne_bytes([kind[0], kind[1]]);
    let body = bytes.get(HEADER..length).ok_or_else(malformed)?;
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    if i32::from(kind) != libc::NLMSG_DONE && i32::from(kind) != libc::NLMSG_ERROR {
        return Ok(Message::Other(body));
    }
    // A dump of old kernels ends without a number.
    let number = word(body, 0).map_or(0, u32::cast_signed);
    Ok(Message::Done(number.saturating_neg()))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "sock_diag answered what is no netlink message")
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// A `struct inet_diag_msg`, as far as it says which socket it is.
fn connected(protocol: Protocol, answer: &[u8]) -> Option<Connected> {
    let id = answer.get(ID_IN_ANSWER..ID_IN_ANSWER + ID)?.try_into().ok()?;
    Some(Connected { family: *answer.first()?, protocol: protocol.number(), id })
}

fn message(kind: u16, flags: libc::c_int, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).expect("a request is short");
    let flags = u16::try_from(flags).expect("flags of netlink have 16 bits");
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    // Sequence and sender: one request at a time, the kernel alone answers.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    message
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend_from_slice(&states.to_ne_bytes());
    body.extend_from_slice(id);
    body
}

fn dump(family: u8, protocol: Protocol, filter: &[u8]) -> Vec<u8> {
    let states = if protocol == Protocol::Udp { UDP_STATES } else { TCP_STATES };
    let mut body = request(family, protocol.number(), states, &[0; ID]);
    if !filter.is_empty() {
        let length = u16::try_from(4 + filter.len()).expect("a filter is short");
        body.extend_from_slice(&length.to_ne_bytes());
        body.extend_from_slice(&BYTECODE.to_ne_bytes());
        body.extend_from_slice(filter);
    }
    message(BY_FAMILY, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, &body)
}

fn destroy(socket: &Connected) -> Vec<u8> {
    let body = request(socket.family, socket.protocol, u32::MAX, &socket.id);
    message(DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK, &body)
}

/// A filter program that lets through what is connected to one of these: for each a condition, which jumps over the way
/// out (`yes`) to the next one (`no`). Falling off the end accepts, a jump beyond it rejects.
fn bytecode(to: &[SocketAddr]) -> Vec<u8> {
    const OPERATION: usize = 4;
    let conditions: Vec<Vec<u8>> = to.iter().map(condition).collect();
    let length: usize = conditions.iter().map(|condition| 2 * OPERATION + condition.len()).sum();
    let short = |value: usize| u16::try_from(value).expect("a filter is short").to_ne_bytes();
    let mut code = Vec::with_capacity(length);
    for condition in &conditions {
        let left = length - code.len();
        let own = OPERATION + condition.len();
        // Matched: on to the jump behind it. Not matched: past that jump, behind the last one out and beyond the end.
        let is_last = left == own + OPERATION;
        let no = own + if is_last { 2 * OPERATION } else { OPERATION };
        code.extend_from_slice(&[DESTINATION, u8::try_from(own).expect("a condition is short")]);
        code.extend_from_slice(&short(no));
        code.extend_from_slice(condition);
        // To the end: the socket is one of those.
        code.push(JUMP);
        code.push(u8::try_from(OPERATION).expect("a small number"));
        code.extend_from_slice(&short(left - own));
    }
    code
}

/// `struct inet_diag_hostcond`; one of IPv4 matches an IPv6 socket that has the address mapped.
fn condition(to: &SocketAddr) -> Vec<u8> {
    let (family, octets) = match to.ip() {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let bits = u8::try_from(octets.len() * 8).expect("an address has at most 128 bits");
    let mut condition = vec![u8::try_from(family).expect("families are small numbers"), bits, 0, 0];
    condition.extend_from_slice(&i32::from(to.port()).to_ne_bytes());
    condition.extend_from_slice(&octets);
    condition
}

#[cfg(test)]
mod tests;
