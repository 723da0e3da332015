//! `sk_lookup` on an enrolled pod's namespace: captured and inbound connections go to the agent's listeners.
//!
//! What comes in on `lo` for an address that is not the pod's own was captured (its mark routed it there). What comes
//! in elsewhere is inbound, whatever the port. Fails closed: without a listener of the agent a captured connection and
//! one to a strict port are refused; one to an open port reaches the application.

use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::abi::{
    ADMITTED_NODE, Address, Counter, HBONE_PORT, INBOUND_STRICT, PodKey, ROLE_HBONE, ROLE_INBOUND,
    ROLE_OUTBOUND, Tuple,
};

use crate::count::count;
use crate::lookup::{DROP, PASS, addresses};
use crate::maps::{ADMITTED, INBOUND_MODES, LISTENERS};

const IPPROTO_TCP: u32 = 6;
/// `LOOPBACK_IFINDEX`: the first device of every namespace.
const LOOPBACK: u32 = 1;

#[sk_lookup]
fn mesh_pod_lookup(ctx: SkLookupContext) -> u32 {
    // SAFETY: the kernel hands the hook a valid context.
    let (protocol, ingress) = unsafe { ((*ctx.lookup).protocol, (*ctx.lookup).ingress_ifindex) };
    if protocol != IPPROTO_TCP {
        return PASS;
    }
    let (local, remote) = addresses(&ctx);
    if ingress == LOOPBACK { from_inside(&ctx, local, remote) } else { from_outside(&ctx, local, remote) }
}

#[inline(always)]
fn from_inside(ctx: &SkLookupContext, local: Address, remote: Address) -> u32 {
    if is_loopback(&local) || is_delivered(ctx, local, remote) {
        return PASS;
    }
    if assign(ctx, remote, ROLE_OUTBOUND) {
        count(Counter::LookupOutbound);
        return PASS;
    }
    count(Counter::LookupRefused);
    DROP
}

/// Whether a connection on `lo` is for the pod's own application. Nothing here tells in whose namespace the program runs:
/// between two pods of this node, what the one sends (captured) and what the agent delivers in the other look alike, so
/// that the agent admits the latter by name.
#[inline(always)]
fn is_delivered(ctx: &SkLookupContext, local: Address, remote: Address) -> bool {
    if !is_own(local) {
        return false;
    }
    local == remote || !is_own(remote) || admitted(ctx, local, remote).is_some()
}

/// Fails closed for an address that the namespace had not when its pod was enrolled: STRICT holds for all ways in.
#[inline(always)]
fn from_outside(ctx: &SkLookupContext, local: Address, remote: Address) -> u32 {
    // SAFETY: a valid context; host byte order.
    let port = unsafe { (*ctx.lookup).local_port };
    if !is_own(local) {
        count(Counter::LookupRefused);
        return DROP;
    }
    if admitted(ctx, local, remote) == Some(ADMITTED_NODE) {
        count(Counter::LookupNode);
        return PASS;
    }
    let hbone = port == u32::from(HBONE_PORT);
    if assign(ctx, local, if hbone { ROLE_HBONE } else { ROLE_INBOUND }) {
        count(Counter::LookupInbound);
        return PASS;
    }
    if hbone || mode(local, port) == INBOUND_STRICT {
        count(Counter::LookupRefused);
        return DROP;
    }
    count(Counter::LookupOpen);
    PASS
}

#[inline(always)]
fn admitted(ctx: &SkLookupContext, local: Address, remote: Address) -> Option<u32> {
    // SAFETY: a valid context; local_port is in host, remote_port in network byte order.
    let (server_port, client_port) =
        unsafe { ((*ctx.lookup).local_port as u16, u16::from_be((*ctx.lookup).remote_port)) };
    // SAFETY: not preallocated, copied at once.
    unsafe { ADMITTED.get(Tuple { client: remote, server: local, client_port, server_port }) }.copied()
}

/// Whether the address is that of an enrolled pod: each has a mode for its ports.
#[inline(always)]
fn is_own(address: Address) -> bool {
    // SAFETY: not preallocated; the value is not used.
    unsafe { INBOUND_MODES.get(PodKey { address, selector: 0 }) }.is_some()
}

/// The mode of a port; strict where there is none.
#[inline(always)]
fn mode(address: Address, port: u32) -> u32 {
    // SAFETY: not preallocated, copied at once.
    let own = unsafe { INBOUND_MODES.get(PodKey { address, selector: port }) };
    // SAFETY: as above.
    let mode = own.or(unsafe { INBOUND_MODES.get(PodKey { address, selector: 0 }) });
    mode.map_or(INBOUND_STRICT, |mode| mode.mode)
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, address: Address, role: u32) -> bool {
    LISTENERS.redirect_sk_lookup(ctx, PodKey { address, selector: role }, 0).is_ok()
}

/// `127.0.0.0/8` and `::1`.
#[inline(always)]
fn is_loopback(address: &Address) -> bool {
    let (words, _) = address.as_chunks::<4>();
    let first = (u32::from_ne_bytes(words[0]), u32::from_ne_bytes(words[1]));
    let third = u32::from_ne_bytes(words[2]);
    let last = u32::from_be_bytes(words[3]);
    first == (0, 0)
        && ((third == 0 && last == 1)
            || (third == u32::from_ne_bytes([0, 0, 0xff, 0xff]) && last >> 24 == 127))
}
