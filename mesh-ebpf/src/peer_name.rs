//! `cgroup/getpeername4/6`: a connected socket's peer is the service address that the application asked for; an accepted
//! one's is the client from outside that the agent stands in for.
//!
//! The kernel runs this hook for `accept4` as well.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{Address, FLOW_SERVICE, OpenFlow, PresentedKey, TCP, UDP};

use crate::address::{self, Family, V4, V6};
use crate::connect::{ALLOW, socket_cookie};
use crate::maps::{OPEN_FLOWS, PRESENTED};
use crate::udp_peers;

#[cgroup_sock_addr(getpeername4)]
fn mesh_getpeername4(ctx: SockAddrContext) -> i32 {
    peer_name::<V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
fn mesh_getpeername6(ctx: SockAddrContext) -> i32 {
    peer_name::<V6>(&ctx)
}

#[inline(always)]
fn peer_name<F: Family>(ctx: &SockAddrContext) -> i32 {
    let cookie = socket_cookie(ctx);
    let shown = match address::protocol(ctx) {
        // SAFETY: not preallocated, copied at once.
        Some(TCP) => match unsafe { OPEN_FLOWS.get(&cookie) } {
            // A connect that failed before it sent anything leaves its entry: it is not what the socket is connected to.
            Some(flow) if is_translated(flow, &F::address(ctx), address::port(ctx)) => {
                Some((flow.asked.address, flow.asked.port))
            }
            _ => presented::<F>(ctx),
        },
        Some(UDP) => udp_peers::asked(cookie, &F::address(ctx), address::port(ctx))
            .map(|asked| (asked.address, asked.port)),
        _ => None,
    };
    if let Some((address, port)) = shown {
        F::set_address(ctx, &address);
        address::set_port(ctx, port);
    }
    ALLOW
}

#[inline(always)]
fn is_translated(flow: &OpenFlow, peer: &Address, port: u16) -> bool {
    flow.flags & FLOW_SERVICE != 0 && flow.backend_port == port && flow.backend == *peer
}

/// The client from outside for whom the agent connected to this socket; the service that an MPTCP socket asked for, whose
/// connections are those of its subflows, under cookies of their own.
#[inline(always)]
fn presented<F: Family>(ctx: &SockAddrContext) -> Option<(Address, u16)> {
    let (own, own_port) = F::own(ctx);
    let key = PresentedKey {
        peer: F::address(ctx),
        own,
        peer_port: address::port(ctx),
        own_port,
        protocol: TCP,
        pad: [0; 3],
    };
    // SAFETY: not preallocated, copied at once.
    unsafe { PRESENTED.get(key) }.map(|shown| (shown.address, shown.port))
}
