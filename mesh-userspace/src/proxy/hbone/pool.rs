//! HBONE connections of one worker, shared by the tunnels of the same (source, destination).
//!
//! The pool grows before a tunnel would have to wait for a stream, and shrinks when its connections fall idle. It belongs
//! to one thread: there is no lock.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::time::Instant;

use super::client::{self, ClientError};
use super::headers::Baggage;
use crate::identity::{CertificateStore, Expected, client_config};
use crate::model::Identity;
use crate::node::NetNs;
use crate::proxy::copy::Tunnel;

/// Tunnels on one connection; below every peer's limit, so that no tunnel waits, and few enough that one lost packet
/// does not stall many.
const STREAMS: usize = 100;
/// An idle connection is closed after this.
const IDLE: Duration = Duration::from_mins(1);

/// Two ends that share connections: a pod's own namespace and identity, and whom it talks to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    /// Cookie of the source pod's namespace.
    pub(crate) netns_cookie: u64,
    /// Identity of the source.
    pub(crate) source: Identity,
    /// HBONE address of the destination.
    pub(crate) address: SocketAddr,
    /// Identity that the destination must have.
    pub(crate) destination: Identity,
    /// Whether its tunnels carry copies: one that is not read takes its part of the connection's window, which others must not
    /// lack.
    pub(crate) is_copy: bool,
}

struct Connection {
    send: SendRequest<Bytes>,
    streams: Rc<Cell<usize>>,
    idle_since: Instant,
    /// A new certificate of the source takes new connections.
    serial: Arc<str>,
}

#[derive(Default)]
struct Entry {
    connections: RefCell<Vec<Connection>>,
    /// Held while a connection is being made, so that a burst makes as few as it needs.
    connecting: tokio::sync::Mutex<()>,
}

/// The pool of one worker.
#[derive(Default)]
pub(crate) struct Pool {
    entries: RefCell<HashMap<Peer, Rc<Entry>>>,
}

/// Counts a tunnel on its connection until it is dropped.
pub(crate) struct Lease(Rc<Cell<usize>>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Pool {
    /// A tunnel to `destination`, on a connection that is there or a new one.
    pub(crate) async fn tunnel(
        &self,
        peer: &Peer,
        netns: &NetNs,
        certificates: &CertificateStore,
        destination: SocketAddr,
        client: SocketAddr,
        baggage: Option<&Baggage>,
    ) -> Result<(Tunnel, Lease), ClientError> {
        let entry = Rc::clone(self.entries.borrow_mut().entry(peer.clone()).or_default());
        loop {
            let (mut send, lease, fresh) = self.connection(&entry, peer, netns, certificates).await?;
            // A connection that the peer has closed or is closing takes no more streams; it is dropped from the pool.
            let ready = std::future::poll_fn(|context| send.poll_ready(context)).await;
            let error = match ready {
                Ok(()) => match client::open(&mut send, destination, client, baggage).await {
                    Ok(tunnel) => return Ok((tunnel, lease)),
                    Err(ClientError::Http(error) | ClientError::Alert(error))
                        if is_of_the_connection(&error) =>
                    {
                        error
                    }
                    Err(error) => return Err(error),
                },
                Err(error) => error,
            };
            entry.connections.borrow_mut().retain(|connection| !Rc::ptr_eq(&connection.streams, &lease.0));
            if fresh {
                return Err(error.into());
            }
        }
    }

    async fn connection(
        &self,
        entry: &Entry,
        peer: &Peer,
        netns: &NetNs,
        certificates: &CertificateStore,
    ) -> Result<(SendRequest<Bytes>, Lease, bool), ClientError> {
        let certificate = certificates.certificate(&peer.source).await.map_err(ClientError::Certificate)?;
        if let Some((send, lease)) = entry.least_used(certificate.serial()) {
            return Ok((send, lease, false));
        }
        let _one_at_a_time = entry.connecting.lock().await;
        if let Some((send, lease)) = entry.least_used(certificate.serial()) {
            return Ok((send, lease, false));
        }
        let expected = Expected::identity(peer.destination.clone());
        let config = client_config(&certificate, &expected).map_err(ClientError::Config)?;
        let send = client::connect(netns, peer.address, config).await?;
        let streams = Rc::new(Cell::new(1));
        entry.connections.borrow_mut().push(Connection {
            send: send.clone(),
            streams: Rc::clone(&streams),
            idle_since: Instant::now(),
            serial: certificate.serial().into(),
        });
        Ok((send, Lease(streams), true))
    }

    /// Closes what has been idle, and forgets peers without connections. To be called now and then.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.entries.borrow_mut().retain(|_, entry| {
            let mut connections = entry.connections.borrow_mut();
            connections.retain_mut(|connection| {
                if connection.streams.get() > 0 {
                    connection.idle_since = now;
                }
                now - connection.idle_since < IDLE
            });
            !connections.is_empty() || Rc::strong_count(entry) > 1
        });
    }

    /// Forgets the connections of a namespace; those with tunnels on them last until these end.
    pub(crate) fn forget(&self, netns_cookie: u64) {
        self.entries.borrow_mut().retain(|peer, _| peer.netns_cookie != netns_cookie);
    }

    /// Connections, and tunnels on them.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        let entries = self.entries.borrow();
        entries.values().fold((0, 0, 0), |(active, idle, streams), entry| {
            let connections = entry.connections.borrow();
            let busy = connections.iter().filter(|connection| connection.streams.get() > 0).count();
            let tunnels: usize = connections.iter().map(|connection| connection.streams.get()).sum();
            (active + busy, idle + connections.len() - busy, streams + tunnels)
        })
    }
}

/// Whether the connection takes nothing more, or took nothing of the request (RFC 9113, section 8.7).
fn is_of_the_connection(error: &h2::Error) -> bool {
    error.is_go_away() || error.is_io() || error.reason() == Some(h2::Reason::REFUSED_STREAM)
}

impl Entry {
    fn least_used(&self, serial: &str) -> Option<(SendRequest<Bytes>, Lease)> {
        let connections = self.connections.borrow();
        let best = connections
            .iter()
            .filter(|connection| &*connection.serial == serial && connection.streams.get() < STREAMS)
            .min_by_key(|connection| connection.streams.get())?;
        best.streams.set(best.streams.get() + 1);
        Some((best.send.clone(), Lease(Rc::clone(&best.streams))))
    }
}
