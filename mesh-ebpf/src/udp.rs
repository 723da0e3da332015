//! `cgroup/sendmsg4/6` and `cgroup/recvmsg4/6`: UDP to a service goes to one backend a socket, and the answers bear the
//! address that the application asked.
//!
//! A socket's peers are kept under its cookie, in a bounded number of slots, and deleted when it is released; nothing
//! leans on eviction.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{
    BACKEND_NONE, Counter, ServiceKey, Slot, UDP, UDP_CONNECTED, UDP_PEER_SLOTS, UdpPeer, UdpPeerKey,
};
use mesh_common::pick;

use crate::address::{self, Family, V4, V6};
use crate::connect::{ALLOW, pick_slot, refuse, socket_cookie};
use crate::count::count;
use crate::maps::{SERVICES, UDP_PEERS};

#[cgroup_sock_addr(sendmsg4)]
fn mesh_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
fn mesh_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg::<V6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
fn mesh_recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
fn mesh_recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg::<V6>(&ctx)
}

/// Translates a datagram that names a service. Fails open for all others, closed where nothing serves.
#[inline(always)]
fn sendmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    if address::protocol(ctx) != Some(UDP) {
        return ALLOW;
    }
    let asked = ServiceKey { address: F::address(ctx), port: address::port(ctx), protocol: UDP, pad: 0 };
    // SAFETY: not preallocated: freed only after this program has run.
    let Some(service) = (unsafe { SERVICES.get(&asked) }) else { return ALLOW };
    let cookie = socket_cookie(ctx);
    let Some(slot) = pick_slot(service, pick::spread(cookie)) else { return refuse() };
    if slot.flags & BACKEND_NONE != 0 {
        count(Counter::NoEndpoint);
        return refuse();
    }
    remember(cookie, &peer(&asked, slot));
    F::set_address(ctx, &slot.address);
    address::set_port(ctx, slot.port);
    count(Counter::Translated);
    ALLOW
}

/// Gives the application back the address that it asked.
#[inline(always)]
fn recvmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    if address::protocol(ctx) != Some(UDP) {
        return ALLOW;
    }
    let cookie = socket_cookie(ctx);
    let from = (F::address(ctx), address::port(ctx));
    if let Some(asked) = asked_of(cookie, &from) {
        F::set_address(ctx, &asked.address);
        address::set_port(ctx, asked.port);
    }
    ALLOW
}

#[inline(always)]
fn asked_of(cookie: u64, from: &([u8; 16], u16)) -> Option<ServiceKey> {
    if let Some(connected) = peer_at(cookie, UDP_CONNECTED)
        && connected.backend == from.0
        && connected.port == from.1
    {
        return Some(connected.asked);
    }
    for slot in 0..UDP_PEER_SLOTS {
        let peer = peer_at(cookie, slot)?;
        if peer.backend == from.0 && peer.port == from.1 {
            return Some(peer.asked);
        }
    }
    None
}

/// What the socket is connected to, where that was a service.
#[inline(always)]
pub(crate) fn connected(cookie: u64) -> Option<ServiceKey> {
    peer_at(cookie, UDP_CONNECTED).map(|peer| peer.asked)
}

/// Keeps what a socket connects to.
#[inline(always)]
pub(crate) fn remember_connected(cookie: u64, asked: &ServiceKey, slot: &Slot) {
    insert(cookie, UDP_CONNECTED, &peer(asked, slot));
}

/// A socket connects anew: what it was connected to no longer holds.
#[inline(always)]
pub(crate) fn forget_connected(cookie: u64) {
    // An absent entry is the usual case.
    let _ = UDP_PEERS.remove(key(cookie, UDP_CONNECTED));
}

/// Deletes all that is kept of a socket.
#[inline(always)]
pub(crate) fn forget(cookie: u64) {
    forget_connected(cookie);
    for slot in 0..UDP_PEER_SLOTS {
        if UDP_PEERS.remove(key(cookie, slot)).is_err() {
            return;
        }
    }
}

/// Keeps a peer in the first free slot; with all taken, the one that its port falls into gives way.
#[inline(always)]
fn remember(cookie: u64, peer: &UdpPeer) {
    for slot in 0..UDP_PEER_SLOTS {
        match peer_at(cookie, slot) {
            None => return insert(cookie, slot, peer),
            Some(known) if known.backend == peer.backend && known.port == peer.port => {
                if known.asked != peer.asked {
                    insert(cookie, slot, peer);
                }
                return;
            }
            Some(_) => {}
        }
    }
    insert(cookie, u32::from(peer.port) % UDP_PEER_SLOTS, peer);
}

#[inline(always)]
fn insert(cookie: u64, slot: u32, peer: &UdpPeer) {
    if UDP_PEERS.insert(key(cookie, slot), peer, 0).is_err() {
        // Fails open: the datagram goes out, the answer will show the backend's own address.
        count(Counter::PeerMapFull);
    }
}

#[inline(always)]
fn peer_at(cookie: u64, slot: u32) -> Option<&'static UdpPeer> {
    // SAFETY: not preallocated: freed only after this program has run.
    unsafe { UDP_PEERS.get(key(cookie, slot)) }
}

#[inline(always)]
fn peer(asked: &ServiceKey, slot: &Slot) -> UdpPeer {
    UdpPeer { asked: *asked, port: slot.port, pad: 0, backend: slot.address }
}

#[inline(always)]
fn key(cookie: u64, slot: u32) -> UdpPeerKey {
    UdpPeerKey { cookie, slot, pad: 0 }
}
