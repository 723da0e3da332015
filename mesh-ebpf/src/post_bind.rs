//! `cgroup/post_bind4`, `cgroup/post_bind6`: a process of the node that binds a port that services have on this node is
//! told so (`EADDRINUSE`) instead of waiting for connections that would never come.
//!
//! Fails open for everybody else: pods, other ports, the agent itself.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use mesh_common::abi::{
    ADDRESS_LOOPBACK, ADDRESS_NODE_PORTS, ANY_V4, ANY_V6, Address, Counter, SCOPE_ADDRESS, STATE_TRANSLATE,
    ServiceKey, mapped,
};

use crate::address;
use crate::count::count;
use crate::maps::{ADDRESSES, SERVICES, STATE};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
/// `-EADDRINUSE`.
const IN_USE: i32 = -98;

#[cgroup_sock(post_bind4)]
fn mesh_post_bind4(ctx: SockContext) -> i32 {
    // SAFETY: a valid context; src_ip4 is readable in this hook.
    let address = unsafe { (*ctx.sock).src_ip4 };
    post_bind(&ctx, mapped(address.to_ne_bytes()))
}

#[cgroup_sock(post_bind6)]
fn mesh_post_bind6(ctx: SockContext) -> i32 {
    let mut address = [0; 16];
    let (words, _) = address.as_chunks_mut::<4>();
    for (index, word) in words.iter_mut().enumerate() {
        // SAFETY: a valid context, an index below 4; volatile keeps the loads at the 4 bytes the verifier allows.
        *word = unsafe { core::ptr::read_volatile(&raw const (*ctx.sock).src_ip6[index]) }.to_ne_bytes();
    }
    post_bind(&ctx, address)
}

#[inline(always)]
fn post_bind(ctx: &SockContext, address: Address) -> i32 {
    if !is_taken(ctx, address) {
        return ALLOW;
    }
    count(Counter::PortTaken);
    // SAFETY: takes a plain integer.
    unsafe { bpf_set_retval(IN_USE) };
    DENY
}

#[inline(always)]
fn is_taken(ctx: &SockContext, address: Address) -> bool {
    let Some(state) = STATE.get(0) else { return false };
    // SAFETY: reads the context that the kernel gave.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if netns != state.node_netns_cookie || state.flags & STATE_TRANSLATE == 0 {
        return false;
    }
    if state.agent_tgid == (bpf_get_current_pid_tgid() >> 32) as u32 {
        return false;
    }
    // SAFETY: a valid context; the three fields are readable in this hook.
    let (kind, protocol, port) = unsafe { ((*ctx.sock).type_, (*ctx.sock).protocol, (*ctx.sock).src_port) };
    let Some(protocol) = address::transport(kind, protocol) else { return false };
    let key = ServiceKey { address, port: port as u16, protocol, scope: SCOPE_ADDRESS };
    if address == ANY_V4 {
        return has(&key.node_port());
    }
    if address == ANY_V6 {
        // Most such sockets take IPv4 too.
        return has(&key.node_port()) || has(&ServiceKey { address: ANY_V4, ..key }.node_port());
    }
    // SAFETY: not preallocated, copied at once.
    let bits = unsafe { ADDRESSES.get(&address) }.copied().unwrap_or(0);
    has(&key) || (bits & (ADDRESS_NODE_PORTS | ADDRESS_LOOPBACK) != 0 && has(&key.node_port()))
}

#[inline(always)]
fn has(key: &ServiceKey) -> bool {
    // SAFETY: not preallocated; the value is not used.
    unsafe { SERVICES.get(key) }.is_some()
}
