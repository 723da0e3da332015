//! A socket whose reads are large: rustls asks for 4 KiB at a time, which at line rate is mostly system calls.
//!
//! The buffer exists only while it holds bytes.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes read at once.
const SIZE: usize = 128 * 1024;
/// Buffers that a worker keeps for its connections.
const KEPT: usize = 8;

thread_local! {
    static IDLE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A socket with large reads.
pub(super) struct LargeReads {
    socket: TcpStream,
    held: Option<Held>,
}

struct Held {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl LargeReads {
    pub(super) const fn new(socket: TcpStream) -> Self {
        Self { socket, held: None }
    }
}

impl AsyncRead for LargeReads {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.held.is_none() {
            if into.remaining() >= SIZE {
                return Pin::new(&mut this.socket).poll_read(context, into);
            }
            ready!(this.socket.poll_read_ready(context))?;
            let mut buffer =
                IDLE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE].into_boxed_slice());
            let mut large = ReadBuf::new(&mut buffer);
            let result = Pin::new(&mut this.socket).poll_read(context, &mut large);
            let end = large.filled().len();
            if end == 0 {
                give_back(buffer);
                return result;
            }
            this.held = Some(Held { buffer, start: 0, end });
        }
        if let Some(mut held) = this.held.take() {
            let count = into.remaining().min(held.end - held.start);
            into.put_slice(&held.buffer[held.start..held.start + count]);
            held.start += count;
            if held.start == held.end {
                give_back(held.buffer);
            } else {
                this.held = Some(held);
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn give_back(buffer: Box<[u8]>) {
    IDLE.with_borrow_mut(|idle| {
        if idle.len() < KEPT {
            idle.push(buffer);
        }
    });
}

impl AsyncWrite for LargeReads {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
