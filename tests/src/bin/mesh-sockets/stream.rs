//! A question to a server of `mesh-peer serve`, on a connected stream.

use std::net::SocketAddr;
use std::os::fd::RawFd;

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::PollFlags;
use serde_json::Value;

use crate::sockaddr::Raw;
use crate::sockets::{Sockets, outcome, wait};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: service\r\n\r\n";

/// Who answers, and whom it sees.
pub(crate) fn http(sockets: &mut Sockets, fd: RawFd) -> Result<String> {
    // SAFETY: as many bytes as the length says.
    let sent = unsafe { libc::send(fd, REQUEST.as_ptr().cast(), REQUEST.len(), libc::MSG_NOSIGNAL) };
    if let Err(errno) = Errno::result(sent) {
        return Ok(outcome::<isize>(Err(errno)));
    }
    answer(sockets, fd)
}

/// Reads the answer to a request that was sent already.
pub(crate) fn answer(sockets: &mut Sockets, fd: RawFd) -> Result<String> {
    let mut answer = Vec::new();
    let body = loop {
        let mut chunk = [0; 4096];
        // SAFETY: room and its length.
        let length = unsafe { libc::recv(fd, chunk.as_mut_ptr().cast(), chunk.len(), 0) };
        match Errno::result(length) {
            Ok(0) => return Ok("the end".to_owned()),
            Ok(length) => answer.extend_from_slice(&chunk[..length.unsigned_abs()]),
            // A socket that does not block: it is this that waits.
            Err(Errno::EAGAIN) if wait(fd, PollFlags::POLLIN)? => {}
            Err(errno) => return Ok(outcome::<isize>(Err(errno))),
        }
        let text = String::from_utf8_lossy(&answer);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && body.ends_with('\n')
        {
            break body.to_owned();
        }
    };
    let body: Value = serde_json::from_str(&body)?;
    let peer: SocketAddr = body["peer"].as_str().unwrap_or_default().parse()?;
    Ok(format!("{} sees {}", body["name"].as_str().unwrap_or_default(), sockets.print(&Raw::new(peer))))
}
