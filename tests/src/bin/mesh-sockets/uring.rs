//! The same calls through `io_uring`, one at a time.

use std::os::fd::RawFd;

use anyhow::{Context, Result, bail};
use io_uring::{IoUring, opcode, squeue, types::Fd};
use nix::errno::Errno;

use crate::message::Message;
use crate::script::{Statement, payload};
use crate::sockets::{Sockets, outcome};

/// `uring-connect`, `uring-send`, `uring-sendmsg`, `uring-recvmsg`.
pub(crate) fn call(sockets: &mut Sockets, fd: RawFd, statement: &Statement) -> Result<String> {
    match statement.call.as_str() {
        "uring-connect" => {
            let to = sockets.destination(statement)?;
            let entry = opcode::Connect::new(Fd(fd), to.as_ptr(), to.length).build();
            Ok(outcome(submit(&entry)?))
        }
        "uring-send" => {
            let bytes = payload(statement.arg(0)?)?;
            let entry = opcode::Send::new(Fd(fd), bytes.as_ptr(), u32::try_from(bytes.len())?).build();
            Ok(outcome(submit(&entry)?))
        }
        "uring-sendmsg" => {
            let mut message = Message::to(sockets.destination(statement)?, payload(statement.arg(1)?)?);
            let header = message.header();
            let entry = opcode::SendMsg::new(Fd(fd), &raw const header).build();
            Ok(outcome(submit(&entry)?))
        }
        "uring-recvmsg" => {
            let mut message = Message::room();
            let mut header = message.header();
            let entry = opcode::RecvMsg::new(Fd(fd), &raw mut header).build();
            Ok(match submit(&entry)? {
                Ok(length) => message.show(sockets, &header, usize::try_from(length)?),
                Err(errno) => format!("{errno:?}"),
            })
        }
        other => bail!("no call is called {other}"),
    }
}

/// Makes the call and waits for what it returns. All that the entry points to must live until then.
fn submit(entry: &squeue::Entry) -> Result<nix::Result<i32>> {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let mut ring = IoUring::new(2)
        .with_context(|| format!("set up io_uring (kernel.io_uring_disabled = {})", disabled.trim()))?;
    // SAFETY: what the entry points to is held by the caller until this function has the completion.
    unsafe { ring.submission().push(entry) }.context("push to an empty ring")?;
    ring.submit_and_wait(1).context("submit to io_uring")?;
    let result = ring.completion().next().context("a completion")?.result();
    Ok(if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(result) })
}
