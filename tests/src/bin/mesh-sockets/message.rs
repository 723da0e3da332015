//! Sending and receiving, in every form that there is.

use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use anyhow::{Context, Result, bail};
use libc::{c_int, iovec, mmsghdr, msghdr};
use mesh_tests::peer::Digest;
use nix::errno::Errno;

use crate::options::UDP_SEGMENT;
use crate::script::{Statement, payload};
use crate::sockaddr::Raw;
use crate::sockets::{Sockets, outcome};
use crate::stream;

/// More than any datagram.
const ROOM: usize = 1 << 16;
/// `sizeof(struct cmsghdr)`.
const CONTROL_HEAD: usize = 16;
/// `sizeof(struct sock_extended_err)`; the offender's address follows it.
const EXTENDED_ERROR: usize = 16;

/// A call of this kind.
pub(crate) fn call(sockets: &mut Sockets, fd: RawFd, statement: &Statement) -> Result<String> {
    match statement.call.as_str() {
        "send" => {
            let bytes = payload(statement.arg(0)?)?;
            // SAFETY: as many bytes as the length says.
            let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags(statement)) };
            Ok(outcome(Errno::result(sent)))
        }
        "sendto" => {
            let (to, bytes) = (sockets.destination(statement)?, payload(statement.arg(1)?)?);
            let (pointer, length) = (bytes.as_ptr().cast(), bytes.len());
            // SAFETY: bytes and an address, each at least as long as its length says.
            let sent = unsafe { libc::sendto(fd, pointer, length, flags(statement), to.as_ptr(), to.length) };
            Ok(outcome(Errno::result(sent)))
        }
        "sendmsg" => {
            let mut message = Message::to(sockets.destination(statement)?, payload(statement.arg(1)?)?);
            if let Some(size) = statement.value("segment") {
                message.segment(size.parse().context("a size")?);
            }
            let header = message.header();
            // SAFETY: the header points into the message, which outlives the call.
            let sent = unsafe { libc::sendmsg(fd, &raw const header, flags(statement)) };
            Ok(outcome(Errno::result(sent)))
        }
        "sendmmsg" => send_many(sockets, fd, statement),
        "recv" => {
            let mut bytes = vec![0; ROOM];
            // SAFETY: room and its length.
            let length = unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), flags(statement)) };
            Ok(match Errno::result(length) {
                Ok(length) => show(&bytes[..length.unsigned_abs()]),
                Err(errno) => format!("{errno:?}"),
            })
        }
        "recvfrom" => {
            let (mut bytes, mut from) = (vec![0; ROOM], Raw::room());
            let (pointer, length) = (bytes.as_mut_ptr().cast(), bytes.len());
            // SAFETY: room for bytes and for an address, with their lengths.
            let length = unsafe {
                libc::recvfrom(fd, pointer, length, flags(statement), from.as_mut_ptr(), from.length_ptr())
            };
            Ok(match Errno::result(length) {
                Ok(length) => {
                    format!("{} from {}", show(&bytes[..length.unsigned_abs()]), sockets.print(&from))
                }
                Err(errno) => format!("{errno:?}"),
            })
        }
        "recvmsg" => {
            let mut message = Message::room();
            let mut header = message.header();
            // SAFETY: the header points into the message, which outlives the call.
            let length = unsafe { libc::recvmsg(fd, &raw mut header, flags(statement)) };
            Ok(match Errno::result(length) {
                Ok(length) => message.show(sockets, &header, length.unsigned_abs()),
                Err(errno) => format!("{errno:?}"),
            })
        }
        "recvmmsg" => receive_many(sockets, fd, statement),
        "answer" => stream::answer(sockets, fd),
        other => bail!("no call is called {other}"),
    }
}

/// The flags among the words of a statement.
pub(crate) fn flags(statement: &Statement) -> c_int {
    let known = [
        ("fastopen", libc::MSG_FASTOPEN),
        ("more", libc::MSG_MORE),
        ("peek", libc::MSG_PEEK),
        ("errqueue", libc::MSG_ERRQUEUE),
        ("dontwait", libc::MSG_DONTWAIT),
    ];
    known
        .iter()
        .filter(|(word, _)| {
            statement
                .args
                .iter()
                .skip(usize::from(!statement.call.starts_with("recv")))
                .any(|arg| arg == word)
        })
        .fold(libc::MSG_NOSIGNAL, |all, (_, flag)| all | flag)
}

/// `sendmmsg TO=BYTES...`.
fn send_many(sockets: &Sockets, fd: RawFd, statement: &Statement) -> Result<String> {
    let mut messages = Vec::new();
    for arg in &statement.args {
        let (to, bytes) = arg.split_once('=').context("TO=BYTES")?;
        let to = sockets.family.address(sockets.names.resolve(to)?);
        messages.push(Message::to(Raw::new(to), payload(bytes)?));
    }
    let mut headers: Vec<mmsghdr> = messages.iter_mut().map(Message::numbered_header).collect();
    let count = u32::try_from(headers.len())?;
    // SAFETY: as many headers as the count says; they point into the messages, which outlive the call.
    let sent = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), count, libc::MSG_NOSIGNAL) };
    let lengths: Vec<String> = headers.iter().map(|header| header.msg_len.to_string()).collect();
    Ok(format!("{} of {}", outcome(Errno::result(sent)), lengths.join(",")))
}

/// `recvmmsg COUNT`. What comes from several peers comes in any order: it is sorted.
fn receive_many(sockets: &mut Sockets, fd: RawFd, statement: &Statement) -> Result<String> {
    let count: u32 = statement.arg(0)?.parse().context("a number")?;
    let mut messages: Vec<Message> = (0..count).map(|_| Message::room()).collect();
    let mut headers: Vec<mmsghdr> = messages.iter_mut().map(Message::numbered_header).collect();
    // SAFETY: as many headers as the count says; they point into the messages, which outlive the call.
    let received = unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), count, 0, std::ptr::null_mut()) };
    let received = match Errno::result(received) {
        Ok(received) => usize::try_from(received)?,
        Err(errno) => return Ok(format!("{errno:?}")),
    };
    let mut lines = Vec::new();
    for (message, header) in messages.iter().zip(&headers).take(received) {
        lines.push(message.show(sockets, &header.msg_hdr, header.msg_len as usize));
    }
    lines.sort_unstable();
    Ok(format!("{received}: {}", lines.join(", ")))
}

/// What a `msghdr` points to.
pub(crate) struct Message {
    name: Raw,
    bytes: Vec<u8>,
    /// Aligned as control messages must be.
    control: Vec<u64>,
    parts: [iovec; 1],
}

impl Message {
    /// To be sent.
    pub(crate) fn to(name: Raw, bytes: Vec<u8>) -> Self {
        let parts = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }];
        Self { name, bytes, control: Vec::new(), parts }
    }

    /// To be filled.
    pub(crate) fn room() -> Self {
        let mut message = Self::to(Raw::room(), vec![0; ROOM]);
        message.control = vec![0; 64];
        message
    }

    /// Lets the kernel cut it into datagrams of this size: a control message `UDP_SEGMENT`.
    fn segment(&mut self, size: u16) {
        // `struct cmsghdr` (length with itself, level, type), the size, zeros up to the next multiple of 8.
        let mut bytes = [0_u8; 24];
        bytes[..8].copy_from_slice(&(CONTROL_HEAD + 2).to_ne_bytes());
        bytes[8..12].copy_from_slice(&libc::IPPROTO_UDP.to_ne_bytes());
        bytes[12..16].copy_from_slice(&UDP_SEGMENT.to_ne_bytes());
        bytes[CONTROL_HEAD..][..2].copy_from_slice(&size.to_ne_bytes());
        let (words, _) = bytes.as_chunks::<8>();
        self.control = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    }

    /// Points into this message, wherever it is now.
    pub(crate) fn header(&mut self) -> msghdr {
        self.parts = [iovec { iov_base: self.bytes.as_mut_ptr().cast(), iov_len: self.bytes.len() }];
        // SAFETY: a header of zeros names nothing.
        let mut header = unsafe { MaybeUninit::<msghdr>::zeroed().assume_init() };
        header.msg_name = self.name.as_mut_ptr().cast();
        header.msg_namelen = self.name.length;
        header.msg_iov = self.parts.as_mut_ptr();
        header.msg_iovlen = 1;
        header.msg_control = self.control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(self.control.as_slice());
        header
    }

    fn numbered_header(&mut self) -> mmsghdr {
        mmsghdr { msg_hdr: self.header(), msg_len: 0 }
    }

    /// What was received, from whom, and what else the kernel said of it.
    pub(crate) fn show(&self, sockets: &mut Sockets, header: &msghdr, length: usize) -> String {
        let mut name = self.name;
        name.length = header.msg_namelen;
        let mut text = format!("{} from {}", show(&self.bytes[..length]), sockets.print(&name));
        for (flag, word) in [
            (libc::MSG_ERRQUEUE, "errqueue"),
            (libc::MSG_TRUNC, "truncated"),
            (libc::MSG_CTRUNC, "control-truncated"),
        ] {
            if header.msg_flags & flag != 0 {
                text = format!("{text} {word}");
            }
        }
        if header.msg_flags & libc::MSG_ERRQUEUE != 0 {
            text = format!("{text} {}", self.extended_error(sockets));
        }
        text
    }

    /// The first control message of an error queue: a `struct sock_extended_err` and the offender.
    fn extended_error(&self, sockets: &mut Sockets) -> String {
        let bytes: Vec<u8> = self.control.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let error = &bytes[CONTROL_HEAD..];
        let word = |at: usize| u32::from_ne_bytes([error[at], error[at + 1], error[at + 2], error[at + 3]]);
        let errno = Errno::from_raw(word(0).cast_signed());
        let (origin, kind, code, info) = (error[4], error[5], error[6], word(8));
        let offender = Raw::from_bytes(&error[EXTENDED_ERROR..]);
        let offender =
            offender.address().map_or_else(|| "nobody".to_owned(), |address| sockets.names.print(address));
        format!("{errno:?} origin {origin} type {kind} code {code} info {info} offender {offender}")
    }
}

/// Bytes as text where there are few, else their number and digest.
fn show(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= 64 && !text.contains(char::is_control) => {
            format!("{} {text:?}", bytes.len())
        }
        _ => {
            let mut digest = Digest::default();
            digest.update(bytes);
            format!("{} {}", bytes.len(), digest.hex())
        }
    }
}
