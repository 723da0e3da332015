//! `sockops`: one record for each direct TCP connection that connect noted, when it closes; and the node's own
//! connections to its pods admitted by name, so that probes pass whatever the mode. No cost per packet.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::abi::{
    ADMITTED_NODE, Address, Client, Counter, FLOW_ABORTED, FLOW_ADMITTED, FLOW_ESTABLISHED, FLOW_GRACEFUL,
    FLOW_RELEASED, FLOW_SERVICE, FLOW_SHOWN, FlowEvent, LAYOUT_VERSION, OpenFlow, PodKey, PresentedKey, TCP,
    Tuple, mapped,
};
use mesh_common::flow::{carried, state};

use crate::address;
use crate::count::count;
use crate::maps::{
    ADMITTED, CLIENTS, EVENTS, EVENTS_SIZE, INBOUND_MODES, OPEN_FLOWS, PENDING, PRESENTED, STATE,
};

const AF_INET: u32 = 2;

#[sock_ops]
fn mesh_sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            // A socket that stands in for a client from outside is none of the node's own: the agent names each of those
            // that it opens here, so that none of them is let through to a pod like kubelet's probes.
            let noted = is_in_node(&ctx) && (present(&ctx) || admit(&ctx));
            if begin(&ctx, noted) || noted {
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
    // SAFETY: memory of the map while this program runs (what may be in it: maps.rs); the socket's lock orders its hooks.
    Some(unsafe { &mut *flow })
}

/// Whether the connection that begins is noted. A note of an earlier connect of the socket, which failed before it sent
/// anything, goes.
#[inline(always)]
fn begin(ctx: &SockOpsContext, admitted: bool) -> bool {
    let mptcp = is_mptcp(ctx);
    if mptcp {
        take_up(ctx);
    }
    let Some(flow) = flow(ctx) else { return false };
    let (own, peer) = addresses(ctx);
    if flow.backend != peer || flow.backend_port != peer_port(ctx) {
        // It was there a moment ago.
        let _ = OPEN_FLOWS.remove(cookie(ctx));
        return false;
    }
    if admitted {
        flow.flags |= FLOW_ADMITTED;
    }
    if flow.flags & FLOW_SERVICE != 0 && mptcp {
        flow.flags |= FLOW_SHOWN;
        // getpeername is asked of the MPTCP socket, which has another cookie than its subflow.
        let asked = Client { receiver: 0, address: flow.asked.address, port: flow.asked.port, pad: [0; 3] };
        show(ctx, peer, own, &asked, Shown::Peer);
    }
    true
}

#[inline(always)]
fn is_mptcp(ctx: &SockOpsContext) -> bool {
    // SAFETY: a valid context; the field may be null.
    address::is_mptcp(unsafe { (*ctx.ops).__bindgen_anon_2.sk })
}

/// Makes the note of an MPTCP subflow one like others, now that its SYN leaves.
#[inline(always)]
fn take_up(ctx: &SockOpsContext) {
    let cookie = cookie(ctx);
    // SAFETY: copied at once; nobody else has this socket's cookie.
    if let Some(flow) = unsafe { PENDING.get(&cookie) }.copied() {
        if OPEN_FLOWS.insert(&cookie, &flow, 0).is_err() {
            count(Counter::FlowMapFull);
        }
        // It was there a moment ago.
        let _ = PENDING.remove(&cookie);
    }
}

/// A process of the node itself connects to a pod of this node, before its SYN leaves: the pod's `sk_lookup` will let
/// exactly this connection through. Fails closed: a full map leaves the connection to the agent's policy.
#[inline(always)]
fn admit(ctx: &SockOpsContext) -> bool {
    // SAFETY: not preallocated; the value is not used.
    let is_pod = |address| unsafe { INBOUND_MODES.get(PodKey { address, selector: 0 }) }.is_some();
    let (client, server) = addresses(ctx);
    if !is_pod(server) {
        return false;
    }
    let admitted = ADMITTED.insert(tuple(ctx, client, server), ADMITTED_NODE, 0).is_ok();
    if !admitted {
        count(Counter::AdmittedMapFull);
    }
    admitted
}

/// Whether the socket belongs to the node's own namespace.
#[inline(always)]
fn is_in_node(ctx: &SockOpsContext) -> bool {
    // SAFETY: reads the context that the kernel gave.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    STATE.get(0).is_some_and(|state| state.node_netns_cookie == netns)
}

/// The agent connects for a client from outside: the application will be shown that client. Fails open: with a full map
/// it is shown the agent's address.
#[inline(always)]
fn present(ctx: &SockOpsContext) -> bool {
    let cookie = cookie(ctx);
    // SAFETY: memory of the map while this program runs (what may be in it: maps.rs).
    let Some(client) = (unsafe { CLIENTS.get(cookie) }) else { return false };
    let (source, server) = addresses(ctx);
    show(ctx, source, server, client, Shown::Own);
    // It was there a moment ago, and nobody else takes it.
    let _ = CLIENTS.remove(cookie);
    true
}

/// Which end of the connection is shown under another address.
#[derive(Clone, Copy)]
enum Shown {
    /// This one, to the application at the other end.
    Own,
    /// The other one, to this end's application.
    Peer,
}

#[inline(always)]
fn show(ctx: &SockOpsContext, peer: Address, own: Address, client: &Client, shown: Shown) {
    if PRESENTED.insert(presented_key(ctx, peer, own, shown), client, 0).is_err() {
        count(Counter::PresentedMapFull);
    }
}

#[inline(always)]
fn presented_key(ctx: &SockOpsContext, peer: Address, own: Address, shown: Shown) -> PresentedKey {
    let (here, there) = (ctx.local_port() as u16, peer_port(ctx));
    let (peer_port, own_port) = match shown {
        Shown::Own => (here, there),
        Shown::Peer => (there, here),
    };
    PresentedKey { peer, own, peer_port, own_port, protocol: TCP, pad: [0; 3] }
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
    let Some(flow) = flow(ctx) else {
        // One of the node's own that was admitted, or one of the agent's that stood in for a client.
        let _ = ADMITTED.remove(tuple(ctx, source, peer));
        let _ = PRESENTED.remove(presented_key(ctx, source, peer, Shown::Own));
        return;
    };
    if flow.flags & FLOW_ADMITTED != 0 {
        let _ = ADMITTED.remove(tuple(ctx, source, peer));
    }
    if flow.flags & FLOW_SHOWN != 0 {
        let _ = PRESENTED.remove(presented_key(ctx, peer, source, Shown::Peer));
    }
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
            // Waking the agent for each event would cost the client an interrupt; it looks by itself ten times a second.
            let filling = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) > EVENTS_SIZE / 2;
            entry.submit(u64::from(if filling { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }));
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
