//! `cgroup/sock_release`: forget what is kept of a socket, and notice at once that the agent has ended.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use mesh_common::abi::{Counter, FLOW_RELEASED};
use mesh_common::flow::state;

use crate::address::{DGRAM, STREAM};
use crate::count::count;
use crate::maps::{OPEN_FLOWS, STATE};
use crate::udp_peers;

const ALLOW: i32 = 1;

#[cgroup_sock(sock_release)]
fn mesh_sock_release(ctx: SockContext) -> i32 {
    // SAFETY: reads the context that the kernel gave.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: a valid context; both fields are readable in this hook.
    let (kind, tcp_state) = unsafe { ((*ctx.sock).type_, (*ctx.sock).state) };
    if kind == DGRAM {
        udp_peers::forget(cookie);
        end_of_lifeline(cookie);
    } else if kind == STREAM && tcp_state == state::CLOSE {
        // Never connected, or closed already; an open connection is reported and deleted by sock_ops.
        // An absent entry is the usual case.
        let _ = OPEN_FLOWS.remove(&cookie);
    } else if kind == STREAM
        && let Some(flow) = OPEN_FLOWS.get_ptr_mut(&cookie)
    {
        // SAFETY: memory of the map while this program runs (what may be in it: maps.rs); the socket's owner orders its hooks.
        unsafe { (*flow).flags |= FLOW_RELEASED };
    }
    ALLOW
}

/// A lifeline of the agent closes before its listeners do: from here on nothing is captured.
#[inline(always)]
fn end_of_lifeline(cookie: u64) {
    if let Some(state) = STATE.get_ptr_mut(0) {
        // SAFETY: the array's one element lives as long as the map.
        let state = unsafe { &mut *state };
        if state.lifeline_cookies.contains(&cookie) {
            // Whoever gets the process id next is not the agent.
            state.agent_tgid = 0;
            state.lifeline_cookies = [0; 2];
            state.heartbeat_ns = 0;
            count(Counter::AgentGone);
        }
    }
}
