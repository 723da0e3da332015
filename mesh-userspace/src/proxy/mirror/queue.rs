//! What one shadow has yet to be sent, and the account of its copy.
//!
//! Invariants: a queue never holds more than [`LONGEST`] bytes, all queues of an agent together never more than [`Room`]
//! says; whoever adds never waits; what did not fit breaks the copy off for good, since a byte stream with a hole is no copy.
//! Each byte of the client's is in the end counted once, as copied or as dropped.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::End;
use crate::telemetry::Metrics;

/// Bytes that may wait for one shadow: a client in bulk sends that much while the shadow is being connected.
pub(super) const LONGEST: usize = 4 * 1024 * 1024;
/// Bytes that may wait for all shadows of an agent.
const ROOM: usize = 64 * 1024 * 1024;
/// Copies that may be made at once by an agent.
const MOST: usize = 8 * 1024;

/// What all copies of an agent share.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: Semaphore,
    copies: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        Self::of(ROOM, MOST)
    }
}

impl Room {
    fn of(bytes: usize, copies: usize) -> Self {
        Self { bytes: Semaphore::new(bytes), copies: Arc::new(Semaphore::new(copies)) }
    }

    fn take(&self, bytes: usize) -> bool {
        let permits = u32::try_from(bytes).ok().and_then(|bytes| self.bytes.try_acquire_many(bytes).ok());
        // Given back by their number.
        permits.map(SemaphorePermit::forget).is_some()
    }

    fn give_back(&self, bytes: usize) {
        self.bytes.add_permits(bytes);
    }
}

/// How far the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Sending,
    /// It has sent its FIN.
    Finished,
    /// After its FIN the connection ended.
    Gone,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<u8>,
    client: Client,
    /// Why the copy ended, once it has.
    end: Option<End>,
    offered: u64,
    copied: u64,
}

/// See the module. Its drop counts the copy: that is when neither the client's side nor the shadow's is left.
#[derive(Debug)]
pub(super) struct Queue {
    state: RefCell<State>,
    /// For those who wait at the shadow's side; they look before they wait, and nothing comes between the two: all is on one
    /// worker.
    changed: Notify,
    room: Arc<Room>,
    metrics: Arc<Metrics>,
}

/// What the shadow's side is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// There is something to send.
    Send,
    /// All has been sent, and the client sends no more.
    Finish,
}

impl Queue {
    pub(super) fn new(room: Arc<Room>, metrics: Arc<Metrics>) -> Self {
        metrics.actions().mirror_begun();
        let state =
            State { waiting: VecDeque::new(), client: Client::Sending, end: None, offered: 0, copied: 0 };
        Self { state: RefCell::new(state), changed: Notify::new(), room, metrics }
    }

    /// A place for the shadow's connection, if there is one.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room.copies).try_acquire_owned().ok()
    }

    /// Whether the copy goes on.
    pub(super) fn is_open(&self) -> bool {
        self.state.borrow().end.is_none()
    }

    /// The client sent this.
    pub(super) fn show(&self, bytes: &[u8]) {
        let mut state = self.state.borrow_mut();
        state.offered += bytes.len() as u64;
        if state.end.is_some() {
            return;
        }
        let end = if state.waiting.len() + bytes.len() > LONGEST {
            End::Behind
        } else if self.room.take(bytes.len()) {
            state.waiting.extend(bytes);
            drop(state);
            return self.changed.notify_waiters();
        } else {
            End::NoRoom
        };
        drop(state);
        self.end(end);
    }

    /// It sent so many bytes more.
    pub(super) fn skip(&self, count: u64) {
        self.state.borrow_mut().offered += count;
    }

    /// It sends no more.
    pub(super) fn finish(&self) {
        self.state.borrow_mut().client = Client::Finished;
        self.changed.notify_waiters();
    }

    /// Its connection ended. Without its FIN it is no end that a shadow may take for one.
    pub(super) fn client_gone(&self) {
        let client = self.state.borrow().client;
        if client == Client::Sending {
            return self.end(End::ClientReset);
        }
        self.state.borrow_mut().client = Client::Gone;
        self.changed.notify_waiters();
    }

    /// The copy ends; the first reason counts.
    pub(super) fn end(&self, end: End) {
        let mut state = self.state.borrow_mut();
        if state.end.is_none() {
            state.end = Some(end);
            self.room.give_back(state.waiting.len());
            state.waiting = VecDeque::new();
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Returns once there is something to do, or with the reason for which the copy has ended. Cancel safe.
    pub(super) async fn next(&self) -> Result<Next, End> {
        self.when(|state| match state.client {
            _ if !state.waiting.is_empty() => Some(Next::Send),
            Client::Sending => None,
            Client::Finished | Client::Gone => Some(Next::Finish),
        })
        .await
    }

    /// Returns once the client's connection has ended, or with the reason for which the copy has. Cancel safe.
    pub(super) async fn ended(&self) -> Result<(), End> {
        self.when(|state| (state.client == Client::Gone).then_some(())).await
    }

    async fn when<T>(&self, is_so: impl Fn(&State) -> Option<T>) -> Result<T, End> {
        loop {
            {
                let state = self.state.borrow();
                if let Some(end) = state.end {
                    return Err(end);
                }
                if let Some(result) = is_so(&state) {
                    return Ok(result);
                }
            }
            self.changed.notified().await;
        }
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.state.borrow().waiting.len()
    }

    /// Lends what waits, as far as it is in one piece, and takes away as many of its bytes as `send` says it has sent.
    pub(super) fn send<E>(&self, send: impl FnOnce(&[u8]) -> Result<usize, E>) -> Result<usize, E> {
        let mut state = self.state.borrow_mut();
        let sent = send(state.waiting.as_slices().0)?;
        state.waiting.drain(..sent);
        state.copied += sent as u64;
        self.room.give_back(sent);
        if state.waiting.is_empty() {
            // Idle: hold nothing.
            state.waiting = VecDeque::new();
        }
        Ok(sent)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        self.room.give_back(state.waiting.len());
        // Without a reason the task of the one or the other side was dropped.
        let end = state.end.unwrap_or(End::Shutdown);
        let dropped = state.offered - state.copied;
        self.metrics.actions().mirror_ended(end.as_str(), state.copied, dropped);
    }
}

#[cfg(test)]
mod tests;
