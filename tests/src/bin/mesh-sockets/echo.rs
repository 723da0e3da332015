//! An echo request on an ICMP socket (`SOCK_DGRAM`), and its answer.

use std::os::fd::RawFd;
use std::ptr;

use anyhow::{Result, bail};
use nix::errno::Errno;

use crate::script::Statement;
use crate::sockaddr::{Family, Raw};
use crate::sockets::{Sockets, outcome};

/// `sendecho [TO]`, `recvecho`. The kernel fills in checksum and identifier.
pub(crate) fn call(sockets: &mut Sockets, fd: RawFd, statement: &Statement) -> Result<String> {
    let (request, reply) = if sockets.family == Family::V4 { (8, 0) } else { (128, 129) };
    match statement.call.as_str() {
        "sendecho" => {
            let message = [request, 0, 0, 0, 0, 0, 0, 1_u8];
            let to = (!statement.args.is_empty()).then(|| sockets.destination(statement)).transpose()?;
            let (name, length) = to.as_ref().map_or((ptr::null(), 0), |to| (to.as_ptr(), to.length));
            // SAFETY: bytes and an address (or none), each at least as long as its length says.
            let sent = unsafe { libc::sendto(fd, message.as_ptr().cast(), message.len(), 0, name, length) };
            Ok(outcome(Errno::result(sent)))
        }
        "recvecho" => {
            let (mut message, mut from) = ([0_u8; 64], Raw::room());
            let (bytes, length) = (message.as_mut_ptr().cast(), message.len());
            // SAFETY: room for bytes and for an address, with their lengths.
            let received =
                unsafe { libc::recvfrom(fd, bytes, length, 0, from.as_mut_ptr(), from.length_ptr()) };
            Ok(match Errno::result(received) {
                Ok(8) if message[0] == reply && message[7] == 1 => {
                    format!("reply from {}", sockets.print(&from))
                }
                Ok(length) => format!("{length} bytes of type {} from {}", message[0], sockets.print(&from)),
                Err(errno) => format!("{errno:?}"),
            })
        }
        other => bail!("no call is called {other}"),
    }
}
