//! The server name that a client's TLS asks for: its `ClientHello` is looked at, nothing of it is taken from the socket and
//! nothing is answered. The TLS stays between the client and the server.
//!
//! Nothing is held while more of a hello is waited for, beyond what the kernel holds anyway.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use rustls::server::Acceptor;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::copy::with_scratch;

/// For how long a client's hello is waited for. Where the server speaks first (`MySQL`, SMTP) the client is silent and its
/// connection goes on after this, without a name: routes by server name belong to ports where TLS is spoken. Istio's
/// `protocolDetectionTimeout` was this long.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest hello that is looked at, with the headers of its records; what is longer has no name. With a certificate
/// chain of post-quantum keys in it, hellos are about 2 KiB.
const LONGEST: usize = 16 * 1024;
/// The first byte of TLS: a handshake record (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FirstBytes {
    /// Not enough of them to tell.
    Partial,
    /// A hello that asks for this server, in lower case.
    Named(String),
    /// TLS that names nobody or is not understood (before TLS 1.2), or no TLS at all.
    Nameless,
}

/// Reads what a client sent first.
pub(crate) fn first_bytes(mut bytes: &[u8]) -> FirstBytes {
    match bytes.first() {
        None => return FirstBytes::Partial,
        Some(&HANDSHAKE) => {}
        Some(_) => return FirstBytes::Nameless,
    }
    let is_full = bytes.len() >= LONGEST;
    let mut acceptor = Acceptor::default();
    // It takes some of them at a time.
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return FirstBytes::Nameless;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(hello)) => {
                let name = hello.client_hello().server_name().map(str::to_owned);
                return name.map_or(FirstBytes::Nameless, FirstBytes::Named);
            }
            Err(_) => return FirstBytes::Nameless,
        }
    }
    if is_full { FirstBytes::Nameless } else { FirstBytes::Partial }
}

/// The server name that the client's TLS asks for, in lower case; `None` where its first bytes are something else, name
/// nobody, or do not come in time. They stay in the socket. Cancel safe.
pub(super) async fn server_name(client: &TcpStream) -> Option<String> {
    // A socket that failed is for whoever carries it to notice.
    match timeout(DEADLINE, wait(client)).await.ok()?.ok()? {
        FirstBytes::Named(name) => Some(name),
        FirstBytes::Partial | FirstBytes::Nameless => None,
    }
}

/// Waits until it is clear what the first bytes are, or the client sends no more.
async fn wait(client: &TcpStream) -> io::Result<FirstBytes> {
    loop {
        let is_last = client.ready(Interest::READABLE).await?.is_read_closed();
        let seen = client.try_io(Interest::READABLE, || match peek(client)? {
            // The bytes stay, and so would the socket's readiness: only the next ones make it ready again.
            FirstBytes::Partial if !is_last => Err(io::ErrorKind::WouldBlock.into()),
            seen => Ok(seen),
        });
        match seen {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            seen => return seen,
        }
    }
}

fn peek(client: &TcpStream) -> io::Result<FirstBytes> {
    with_scratch(|buffer| {
        let length = recv(client.as_raw_fd(), &mut buffer[..LONGEST], MsgFlags::MSG_PEEK)?;
        Ok(first_bytes(&buffer[..length]))
    })
}

#[cfg(test)]
mod tests;
