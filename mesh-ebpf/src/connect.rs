//! `cgroup/connect4`, `cgroup/connect6`: translate a service address to a backend, or steer the connection to the agent.
//!
//! Fails open where the destination is none of ours; fails closed where a service's slots are missing, where a capture
//! mark cannot be set, and where strict says so.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval, bpf_setsockopt,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{
    Address, BACKEND_NONE, Counter, FLOW_SERVICE, MARK_CAPTURE, MARK_DELIVER, OpenFlow, SCOPE_ADDRESS,
    Service, ServiceKey, State, TCP,
};
use mesh_common::capture::{self, Agent, Verdict};
use mesh_common::pick;

use crate::address::{self, Family, V4, V6};
use crate::count::count;
use crate::maps::{DESTINATIONS, OPEN_FLOWS, PENDING, PODS, STATE};
use crate::service::{self, Found, now};
use crate::udp;
use crate::udp_peers::Peers;

/// The hook lets the call go on.
pub(crate) const ALLOW: i32 = 1;
/// The hook ends the call with the error that was set.
const DENY: i32 = 0;
/// `-ECONNREFUSED`.
const REFUSED: i32 = -111;

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;

#[cgroup_sock_addr(connect4)]
fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    connect::<V6>(&ctx)
}

#[inline(always)]
fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    match try_connect::<F>(ctx) {
        Verdict::Pass => ALLOW,
        Verdict::Capture => {
            count(Counter::Captured);
            ALLOW
        }
        Verdict::Translate => {
            count(Counter::Translated);
            ALLOW
        }
        Verdict::Direct => {
            count(Counter::DirectWithoutAgent);
            ALLOW
        }
        Verdict::Refuse => refuse(),
    }
}

#[inline(always)]
fn try_connect<F: Family>(ctx: &SockAddrContext) -> Verdict {
    let Some(protocol) = address::protocol(ctx) else { return Verdict::Pass };
    let asked =
        ServiceKey { address: F::address(ctx), port: address::port(ctx), protocol, scope: SCOPE_ADDRESS };
    let cookie = socket_cookie(ctx);
    let Some(state) = STATE.get_ptr_mut(0) else { return Verdict::Pass };
    // SAFETY: the array's one element lives as long as the map; its words are written whole.
    let state = unsafe { &mut *state };
    let own = is_agents_own(state, cookie);
    let netns = service::netns_cookie(ctx);
    // What the agent connects to is an endpoint that it has picked; translated, it would be another. From the node's own namespace
    // a cluster address is none: there it asks for what serves itself, the cluster's DNS or its certificate authority, as any
    // process of the node.
    let for_itself = own && netns == state.node_netns_cookie && service::is_cluster_address(&asked.address);
    if own && !for_itself {
        return Verdict::Pass;
    }
    if cookie == state.canary_cookie {
        return capture(ctx);
    }
    let tcp = protocol == TCP;
    // SAFETY: the map is not preallocated; the value is not used beyond this test.
    let enrolled = !own && unsafe { PODS.get(netns) }.is_some();
    if enrolled && tcp {
        clear_own_marks(ctx);
    }
    let socket = Socket { cookie, netns, enrolled };
    match service::find(ctx, &asked, state) {
        Found::Service(service) => to_service::<F>(ctx, &asked, &service, state, socket),
        Found::ClosedPort => {
            count(Counter::NoSuchPort);
            Verdict::Refuse
        }
        Found::Nothing if !tcp => {
            udp::connect_other::<F>(ctx, socket, &asked);
            Verdict::Pass
        }
        Found::Nothing if enrolled => to_workload(ctx, &asked, state, socket),
        Found::Nothing => Verdict::Pass,
    }
}

/// The socket that connects.
#[derive(Clone, Copy)]
pub(crate) struct Socket {
    pub(crate) cookie: u64,
    /// Cookie of its network namespace.
    pub(crate) netns: u64,
    enrolled: bool,
}

/// Whether the socket belongs to the agent. The agent is known by its thread group, learnt when the socket connects
/// whose cookie it wrote into `STATE`: marks, uids and ports can be had by anybody.
#[inline(always)]
fn is_agents_own(state: &mut State, cookie: u64) -> bool {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if state.lifeline_cookies.contains(&cookie) {
        state.agent_tgid = tgid;
        return true;
    }
    state.agent_tgid != 0 && tgid == state.agent_tgid && cookie != state.canary_cookie
}

#[inline(always)]
fn to_service<F: Family>(
    ctx: &SockAddrContext,
    asked: &ServiceKey,
    service: &Service,
    state: &State,
    socket: Socket,
) -> Verdict {
    let tcp = asked.protocol == TCP;
    match capture::to_service(socket.enrolled, tcp, service.flags, Agent::at(state, now())) {
        Verdict::Capture => return capture(ctx),
        Verdict::Refuse => {
            count(Counter::StrictWithoutAgent);
            return Verdict::Refuse;
        }
        Verdict::Translate => {}
        Verdict::Pass | Verdict::Direct => {
            count(Counter::LeftAlone);
            return Verdict::Pass;
        }
    }
    let random = if tcp { random() } else { pick::spread(socket.cookie) };
    let Some(choice) = service::choose(service, socket.netns, random) else { return Verdict::Refuse };
    if capture::to_backend(socket.enrolled, tcp, choice.flags) == Verdict::Refuse {
        count(if choice.flags & BACKEND_NONE != 0 {
            Counter::NoEndpoint
        } else {
            Counter::StrictWithoutAgent
        });
        return Verdict::Refuse;
    }
    F::set_address(ctx, choice.address);
    address::set_port(ctx, choice.port);
    if tcp {
        watch(ctx, socket, asked, choice.address, choice.port, FLOW_SERVICE);
    } else {
        Peers { cookie: socket.cookie, netns: socket.netns }.remember(asked, &choice);
    }
    Verdict::Translate
}

#[inline(always)]
fn to_workload(ctx: &SockAddrContext, asked: &ServiceKey, state: &State, socket: Socket) -> Verdict {
    // SAFETY: not preallocated, copied at once.
    let flags = unsafe { DESTINATIONS.get(&asked.address) }.map(|destination| destination.flags);
    let verdict = flags.map_or(Verdict::Pass, |flags| capture::to_workload(flags, alive(state)));
    match verdict {
        Verdict::Capture => return capture(ctx),
        Verdict::Refuse => count(Counter::StrictWithoutAgent),
        _ => watch(ctx, socket, asked, &asked.address, asked.port, 0),
    }
    verdict
}

/// Marks the socket so that its SYN is routed to the agent's listener in the pod.
#[inline(always)]
fn capture(ctx: &SockAddrContext) -> Verdict {
    // SAFETY: sk is the full socket in these hooks, and bound_dev_if one of the fields that may be read.
    if unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).bound_dev_if } != 0 {
        // Fail closed: bound to a device (SO_BINDTODEVICE), its packets would not take the way to the agent.
        count(Counter::BoundToDevice);
        return Verdict::Refuse;
    }
    if set_mark(ctx, MARK_CAPTURE) {
        Verdict::Capture
    } else {
        // Fail closed: without the mark the connection would go out in plaintext.
        count(Counter::MarkFailed);
        Verdict::Refuse
    }
}

/// Takes a mark of ours from a pod's socket that the application set itself.
#[inline(always)]
fn clear_own_marks(ctx: &SockAddrContext) {
    // SAFETY: sk is the full socket in these hooks, and mark one of the fields that may be read.
    let mark = unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).mark };
    if (mark == MARK_CAPTURE || mark == MARK_DELIVER) && set_mark(ctx, 0) {
        count(Counter::MarkCleared);
    }
}

#[inline(always)]
fn set_mark(ctx: &SockAddrContext, mut mark: u32) -> bool {
    // SAFETY: the value lives on the stack for the length of the call and has the length that is given.
    unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_MARK, (&raw mut mark).cast(), 4) == 0 }
}

/// Notes a direct connection, so that `sock_ops` reports it when it closes and the agent ends it when its backend goes.
/// Fails open: a full map loses the record.
#[inline(always)]
fn watch(
    ctx: &SockAddrContext,
    socket: Socket,
    asked: &ServiceKey,
    backend: &Address,
    port: u16,
    flags: u32,
) {
    let flow = OpenFlow {
        start_ns: now(),
        netns_cookie: socket.netns,
        asked: *asked,
        acked_before: 0,
        flags,
        backend_port: port,
        pad: 0,
        backend: *backend,
    };
    // SAFETY: sk is the full socket in these hooks.
    let is_subflow = address::is_mptcp(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk });
    let noted = if is_subflow {
        PENDING.insert(&socket.cookie, &flow, 0)
    } else {
        OPEN_FLOWS.insert(&socket.cookie, &flow, 0)
    };
    if noted.is_err() {
        count(Counter::FlowMapFull);
    }
}

/// Ends the call with `ECONNREFUSED`.
#[inline(always)]
pub(crate) fn refuse() -> i32 {
    // SAFETY: takes a plain integer.
    unsafe { bpf_set_retval(REFUSED) };
    DENY
}

#[inline(always)]
pub(crate) fn socket_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: reads the context that the kernel gave.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn alive(state: &State) -> bool {
    capture::alive(state, now())
}

#[inline(always)]
fn random() -> u64 {
    // SAFETY: takes no argument.
    let (high, low) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    u64::from(high) << 32 | u64::from(low)
}
