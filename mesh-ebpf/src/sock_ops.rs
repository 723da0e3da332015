//! `sockops`: one record for each direct TCP connection that connect noted, when it closes; and the node's own
//! connections to its pods admitted by name, so that probes pass whatever the mode. No cost per packet.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB,
};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::abi::{
    ADMITTED_NODE, Address, Counter, FLOW_ABORTED, FLOW_ESTABLISHED, FLOW_GRACEFUL, FLOW_RELEASED, FlowEvent,
    LAYOUT_VERSION, OpenFlow, PodKey, Tuple, mapped,
};
use mesh_common::flow::{carried, state};

use crate::count::count;
use crate::maps::{ADMITTED, EVENTS, INBOUND_MODES, OPEN_FLOWS, STATE};

const AF_INET: u32 = 2;

#[sock_ops]
fn mesh_sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            let admitted = admit(&ctx);
            if admitted || flow(&ctx).is_some() {
                // Refused only for a socket that is no full one, which a connecting socket always is.
                let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG).cast_signed());
            }
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == state::CLOSE => closed(&ctx),
        _ => {}
    }
    0
}

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: reads the context that the kernel gave.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn flow(ctx: &SockOpsContext) -> Option<&'static mut OpenFlow> {
    let flow = OPEN_FLOWS.get_ptr_mut(cookie(ctx))?;
    // SAFETY: not preallocated: freed only after this program has run; the socket's lock orders its hooks.
    Some(unsafe { &mut *flow })
}

/// A process of the node itself connects to a pod of this node, before its SYN leaves: the pod's `sk_lookup` will let
/// exactly this connection through. Fails closed: a full map leaves the connection to the agent's policy.
#[inline(always)]
fn admit(ctx: &SockOpsContext) -> bool {
    // SAFETY: not preallocated; the value is not used.
    let is_pod = |address| unsafe { INBOUND_MODES.get(PodKey { address, selector: 0 }) }.is_some();
    let (client, server) = addresses(ctx);
    let Some(state) = STATE.get(0) else { return false };
    // SAFETY: reads the context that the kernel gave.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if netns != state.node_netns_cookie || !is_pod(server) {
        return false;
    }
    let admitted = ADMITTED.insert(tuple(ctx, client, server), ADMITTED_NODE, 0).is_ok();
    if !admitted {
        count(Counter::AdmittedMapFull);
    }
    admitted
}

#[inline(always)]
fn tuple(ctx: &SockOpsContext, client: Address, server: Address) -> Tuple {
    Tuple { client, server, client_port: ctx.local_port() as u16, server_port: peer_port(ctx) }
}

/// `remote_port` holds the port in network byte order in its upper half.
#[inline(always)]
fn peer_port(ctx: &SockOpsContext) -> u16 {
    u32::from_be(ctx.remote_port()) as u16
}

#[inline(always)]
fn established(ctx: &SockOpsContext) {
    if let Some(flow) = flow(ctx) {
        // SAFETY: a valid context; the counter of a handshake fits.
        flow.acked_before = unsafe { (*ctx.ops).bytes_acked } as u32;
        flow.flags |= FLOW_ESTABLISHED;
    }
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let (source, peer) = addresses(ctx);
    // Most connections were not admitted by name.
    let _ = ADMITTED.remove(tuple(ctx, source, peer));
    let Some(flow) = flow(ctx) else { return };
    // SAFETY: a valid context.
    let (acked, received) = unsafe { ((*ctx.ops).bytes_acked, (*ctx.ops).bytes_received) };
    // SAFETY: a valid context.
    let (srtt, retransmits) = unsafe { ((*ctx.ops).srtt_us, (*ctx.ops).total_retrans) };
    let released = flow.flags & FLOW_RELEASED != 0;
    let carried = carried(ctx.arg(0), acked, received, u64::from(flow.acked_before), released);
    let event = FlowEvent {
        version: LAYOUT_VERSION,
        flags: flow.flags
            | if carried.graceful { FLOW_GRACEFUL } else { 0 }
            | if carried.aborted { FLOW_ABORTED } else { 0 },
        start_ns: flow.start_ns,
        // SAFETY: takes no argument.
        duration_ns: unsafe { bpf_ktime_get_ns() }.saturating_sub(flow.start_ns),
        netns_cookie: flow.netns_cookie,
        sent: carried.sent,
        received: carried.received,
        // tcp_sock.srtt_us is kept shifted left by three.
        srtt_us: srtt >> 3,
        retransmits,
        asked: flow.asked,
        source_port: ctx.local_port() as u16,
        peer_port: peer_port(ctx),
        source,
        peer,
        pad: [0; 2],
    };
    // An entry that sock_release took first is no loss.
    let _ = OPEN_FLOWS.remove(cookie(ctx));
    match EVENTS.reserve::<FlowEvent>(0) {
        Some(mut entry) => {
            entry.write(event);
            entry.submit(0);
        }
        None => count(Counter::EventLost),
    }
}

#[inline(always)]
fn addresses(ctx: &SockOpsContext) -> (Address, Address) {
    if ctx.family() == AF_INET {
        (mapped(ctx.local_ip4().to_ne_bytes()), mapped(ctx.remote_ip4().to_ne_bytes()))
    } else {
        (octets(|index| local_word(ctx, index)), octets(|index| remote_word(ctx, index)))
    }
}

#[inline(always)]
fn octets(word: impl Fn(usize) -> u32) -> Address {
    let mut address = [0; 16];
    let (words, _) = address.as_chunks_mut::<4>();
    for (index, bytes) in words.iter_mut().enumerate() {
        *bytes = word(index).to_ne_bytes();
    }
    address
}

#[inline(always)]
fn local_word(ctx: &SockOpsContext, index: usize) -> u32 {
    // SAFETY: a valid context, an index below 4; volatile keeps the load at the 4 bytes the verifier allows.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.ops).local_ip6[index]) }
}

#[inline(always)]
fn remote_word(ctx: &SockOpsContext, index: usize) -> u32 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.ops).remote_ip6[index]) }
}
