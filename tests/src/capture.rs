//! What passes on the wire between the nodes, as an observer there sees it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::NetNs;

/// `ETH_P_ALL`, in network byte order.
const ALL: u16 = 0x0003_u16.to_be();

/// Every frame on the wire between the nodes, from its start until it is dropped.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<u8>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Begins to listen on all interfaces of a namespace.
    pub(crate) fn start(netns: &NetNs) -> Result<Self> {
        let socket = netns.run(|| -> Result<Socket> {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ALL))))
                .context("open a packet socket")?;
            socket.set_recv_buffer_size(16 << 20)?;
            socket.set_read_timeout(Some(std::time::Duration::from_millis(20)))?;
            Ok(socket)
        })??;
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (frames, stop) = (Arc::clone(&frames), Arc::clone(&stop));
            move || {
                let mut file = File::from(OwnedFd::from(socket));
                let mut frame = vec![0; 1 << 16];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(length) = file.read(&mut frame) {
                        let mut frames = frames.lock().unwrap_or_else(PoisonError::into_inner);
                        frames.extend_from_slice(&frame[..length]);
                    }
                }
            }
        });
        Ok(Self { frames, stop, thread: Some(thread) })
    }

    /// How often a text has passed in one frame.
    pub fn count(&self, marker: &str) -> usize {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.windows(marker.len()).filter(|window| *window == marker.as_bytes()).count()
    }

    /// Bytes seen so far.
    pub fn len(&self) -> usize {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing has passed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only reads; there is nothing to be learnt from how it ended.
            let _ended = thread.join();
        }
    }
}
