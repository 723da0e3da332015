//! Pipes for `splice(2)`, borrowed while bytes flow in bulk and given back when they stop.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Wanted capacity in bytes; an unprivileged agent gets the kernel's default of 64 KiB.
const CAPACITY: i32 = 1024 * 1024;
/// Idle pipes that a worker keeps.
const KEPT: usize = 16;

thread_local! {
    static IDLE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// An empty pipe.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// An idle pipe of this worker, or a new one.
    pub(super) fn take() -> io::Result<Self> {
        if let Some(pipe) = IDLE.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // A smaller pipe is slower, not wrong.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(CAPACITY));
        Ok(Self { read, write })
    }

    /// Gives back a pipe, which must be empty.
    pub(super) fn give_back(self) {
        IDLE.with_borrow_mut(|idle| {
            if idle.len() < KEPT {
                idle.push(self);
            }
        });
    }

    /// Moves what the socket holds into the pipe; `Ok(0)` at the end of the stream.
    pub(super) fn fill(&self, from: &TcpStream) -> io::Result<usize> {
        from.try_io(Interest::READABLE, || {
            move_bytes(from, &self.write, usize::try_from(CAPACITY).unwrap_or(0))
        })
    }

    /// Moves all of what the pipe holds into the socket.
    pub(super) async fn drain(&self, to: &TcpStream, mut length: usize) -> io::Result<()> {
        while length > 0 {
            match to.try_io(Interest::WRITABLE, || move_bytes(&self.read, to, length)) {
                Ok(moved) => length -= moved,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn move_bytes(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, length, flags)?)
}
