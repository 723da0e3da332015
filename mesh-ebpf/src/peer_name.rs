//! `cgroup/getpeername4/6`: a connected socket's peer is the service address that the application asked for.
//!
//! The kernel runs this hook for `accept4` as well; such a socket asked for nothing and is left alone.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{FLOW_SERVICE, TCP, UDP};

use crate::address::{self, Family, V4, V6};
use crate::connect::{ALLOW, socket_cookie};
use crate::maps::OPEN_FLOWS;
use crate::udp;

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
    let asked = match address::protocol(ctx) {
        // SAFETY: not preallocated, copied at once.
        Some(TCP) => unsafe { OPEN_FLOWS.get(&cookie) }
            .filter(|flow| flow.flags & FLOW_SERVICE != 0)
            .map(|flow| flow.asked),
        Some(UDP) => udp::connected(cookie),
        _ => None,
    };
    if let Some(asked) = asked {
        F::set_address(ctx, &asked.address);
        address::set_port(ctx, asked.port);
    }
    ALLOW
}
