//! What is kept of a UDP socket: the services that it talks to and the backends behind them, each found by the other.
//!
//! The services of a socket are chained, so that all goes when it is released; nothing leans on eviction. An entry for a
//! backend that has none yields: the datagram goes out, the answer shows the backend's own address.

use mesh_common::abi::{
    Address, Counter, PEER_BACKEND, PEER_SERVICE, Service, ServiceKey, UDP_SOCKET_PEERS, UdpPeer, UdpPeerKey,
    UdpSocket,
};

use crate::count::count;
use crate::maps::{UDP_PEERS, UDP_SOCKETS};
use crate::service::{self, Choice};

/// A socket whose peers are asked for.
#[derive(Clone, Copy)]
pub(crate) struct Peers {
    pub(crate) cookie: u64,
    /// Cookie of its network namespace.
    pub(crate) netns: u64,
}

impl Peers {
    /// The backend that the socket has sent to for this service, while it serves.
    #[inline(always)]
    pub(crate) fn known(self, asked: &ServiceKey, service: &Service) -> Option<Choice> {
        let peer = peer_at(self.cookie, &asked.address, asked.port, PEER_SERVICE)?;
        let choice = service::member(service, &peer.address, peer.port, false)?;
        // The application may have called the same pod by its own address since.
        if peer_at(self.cookie, &peer.address, peer.port, PEER_BACKEND)
            .is_none_or(|back| back.port != asked.port || back.address != asked.address)
        {
            self.write(&peer.address, peer.port, PEER_BACKEND, &asked.address, asked.port);
        }
        Some(choice)
    }

    /// Keeps the backend of a service. A function of its own: inlined everywhere, it makes LLVM 22 run out of registers
    /// while it expands a copy, and crash.
    #[inline(never)]
    pub(crate) fn remember(self, asked: &ServiceKey, choice: &Choice) {
        let (address, port) = (choice.address, choice.port);
        if let Some(peer) = UDP_PEERS.get_ptr_mut(key(self.cookie, &asked.address, asked.port, PEER_SERVICE))
        {
            // SAFETY: memory of the map while this program runs (what may be in it: maps.rs); the socket's lock orders its hooks.
            let peer = unsafe { &mut *peer };
            if peer.port != port || peer.address != *address {
                // Late answers of the one before show its own address. An entry that gave way already is no loss.
                let _ = UDP_PEERS.remove(key(self.cookie, &peer.address, peer.port, PEER_BACKEND));
                peer.address = *address;
                peer.port = port;
            }
        } else if !self.chain(asked, address, port) {
            return;
        }
        self.write(address, port, PEER_BACKEND, &asked.address, asked.port);
    }

    /// Begins an entry for a service at the head of the socket's chain.
    #[inline(always)]
    fn chain(self, asked: &ServiceKey, backend: &Address, port: u16) -> bool {
        let mut socket = UdpSocket { last: asked.address, last_port: asked.port, pad: 0, services: 1 };
        let mut peer = UdpPeer {
            netns_cookie: self.netns,
            address: *backend,
            port,
            previous_port: 0,
            pad: 0,
            previous: [0; 16],
        };
        // SAFETY: memory of the map while this program runs (what may be in it: maps.rs).
        if let Some(before) = unsafe { UDP_SOCKETS.get(self.cookie) } {
            if before.services >= UDP_SOCKET_PEERS {
                count(Counter::PeerMapFull);
                return false;
            }
            peer.previous = before.last;
            peer.previous_port = before.last_port;
            socket.services = before.services + 1;
        }
        let entry = key(self.cookie, &asked.address, asked.port, PEER_SERVICE);
        if UDP_PEERS.insert(entry, peer, 0).is_err() {
            count(Counter::PeerMapFull);
            return false;
        }
        if UDP_SOCKETS.insert(self.cookie, socket, 0).is_err() {
            count(Counter::PeerMapFull);
            // It was written a moment ago.
            let _ = UDP_PEERS.remove(entry);
            return false;
        }
        true
    }

    #[inline(always)]
    fn write(self, address: &Address, port: u16, kind: u16, other: &Address, other_port: u16) {
        let peer = UdpPeer {
            netns_cookie: self.netns,
            address: *other,
            port: other_port,
            previous_port: 0,
            pad: 0,
            previous: [0; 16],
        };
        if UDP_PEERS.insert(key(self.cookie, address, port, kind), peer, 0).is_err() {
            count(Counter::PeerMapFull);
        }
    }
}

/// The service that a backend answers for.
#[inline(always)]
pub(crate) fn asked(cookie: u64, backend: &Address, port: u16) -> Option<&'static UdpPeer> {
    peer_at(cookie, backend, port, PEER_BACKEND)
}

/// The application calls an address by its own name: its answers are shown under that.
#[inline(always)]
pub(crate) fn forget_backend(cookie: u64, called: &ServiceKey) {
    if peer_at(cookie, &called.address, called.port, PEER_BACKEND).is_some() {
        // It was there a moment ago.
        let _ = UDP_PEERS.remove(key(cookie, &called.address, called.port, PEER_BACKEND));
    }
}

/// Deletes all that is kept of a socket.
#[inline(always)]
pub(crate) fn forget(cookie: u64) {
    // SAFETY: not preallocated, copied at once.
    let Some(UdpSocket { last, last_port, .. }) = (unsafe { UDP_SOCKETS.get(cookie) }).copied() else {
        return;
    };
    let mut entry = key(cookie, &last, last_port, PEER_SERVICE);
    for _ in 0..UDP_SOCKET_PEERS {
        // SAFETY: as above; what follows is read before the entry is deleted, which gives its memory away.
        let Some(peer) = (unsafe { UDP_PEERS.get(entry) }) else { break };
        let (previous, previous_port) = (peer.previous, peer.previous_port);
        // An entry that gave way already is no loss.
        let _ = UDP_PEERS.remove(key(cookie, &peer.address, peer.port, PEER_BACKEND));
        let _ = UDP_PEERS.remove(entry);
        if previous_port == 0 {
            break;
        }
        entry.address = previous;
        entry.port = previous_port;
    }
    let _ = UDP_SOCKETS.remove(cookie);
}

#[inline(always)]
fn peer_at(cookie: u64, address: &Address, port: u16, kind: u16) -> Option<&'static UdpPeer> {
    // SAFETY: memory of the map while this program runs (what may be in it: maps.rs).
    unsafe { UDP_PEERS.get(key(cookie, address, port, kind)) }
}

#[inline(always)]
const fn key(cookie: u64, address: &Address, port: u16, kind: u16) -> UdpPeerKey {
    UdpPeerKey { cookie, address: *address, port, kind, pad: 0 }
}
