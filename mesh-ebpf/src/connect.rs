//! `cgroup/connect4`, `cgroup/connect6`: translate a service address to a backend, or steer the connection to the agent.
//!
//! Fails open where the destination is none of ours; fails closed where a service's slots are missing, where a capture
//! mark cannot be set, and where strict says so.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie,
    bpf_ktime_get_ns, bpf_set_retval, bpf_setsockopt,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{
    Counter, FLOW_SERVICE, MARK_CAPTURE, MARK_DELIVER, OpenFlow, Service, ServiceKey, Slot, SlotKey, State,
    TCP,
};
use mesh_common::capture::{self, Verdict};
use mesh_common::pick;

use crate::address::{self, Family, V4, V6};
use crate::count::count;
use crate::maps::{DESTINATIONS, OPEN_FLOWS, PODS, SERVICES, SLOTS, STATE};
use crate::udp;

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
    let asked = ServiceKey { address: F::address(ctx), port: address::port(ctx), protocol, pad: 0 };
    let cookie = socket_cookie(ctx);
    let Some(state) = STATE.get_ptr_mut(0) else { return Verdict::Pass };
    // SAFETY: the array's one element lives as long as the map; its words are written whole.
    let state = unsafe { &mut *state };
    if is_agents_own(state, cookie) {
        return Verdict::Pass;
    }
    if cookie == state.canary_cookie {
        return capture(ctx);
    }
    let tcp = protocol == TCP;
    if !tcp {
        udp::forget_connected(cookie);
    }
    // SAFETY: reads the context that the kernel gave.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the map is not preallocated; the value is not used beyond this test.
    let enrolled = unsafe { PODS.get(netns) }.is_some();
    if enrolled && tcp {
        clear_own_marks(ctx);
    }
    // SAFETY: the map is not preallocated: the value is freed only after this program has run.
    let verdict = match unsafe { SERVICES.get(&asked) } {
        Some(service) => to_service::<F>(ctx, &asked, service, state, enrolled, cookie),
        None if enrolled && tcp => to_workload(&asked, state),
        None => Verdict::Pass,
    };
    match verdict {
        Verdict::Capture => return capture(ctx),
        Verdict::Translate if tcp => watch(cookie, netns, asked, FLOW_SERVICE),
        Verdict::Pass | Verdict::Direct if enrolled && tcp => watch(cookie, netns, asked, 0),
        _ => {}
    }
    verdict
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
    enrolled: bool,
    cookie: u64,
) -> Verdict {
    let tcp = asked.protocol == TCP;
    if capture::to_service(enrolled, tcp, service.flags, alive(state)) == Verdict::Capture {
        return Verdict::Capture;
    }
    let random = if tcp { random() } else { pick::spread(cookie) };
    let Some(slot) = pick_slot(service, random) else { return Verdict::Refuse };
    if capture::to_backend(enrolled, tcp, slot.flags) == Verdict::Refuse {
        count(if slot.flags & mesh_common::abi::BACKEND_NONE != 0 {
            Counter::NoEndpoint
        } else {
            Counter::StrictWithoutAgent
        });
        return Verdict::Refuse;
    }
    F::set_address(ctx, &slot.address);
    address::set_port(ctx, slot.port);
    if !tcp {
        udp::remember_connected(cookie, asked, slot);
    }
    Verdict::Translate
}

#[inline(always)]
fn to_workload(asked: &ServiceKey, state: &State) -> Verdict {
    // SAFETY: not preallocated, copied at once.
    let Some(flags) = (unsafe { DESTINATIONS.get(&asked.address) }).map(|destination| destination.flags)
    else {
        return Verdict::Pass;
    };
    let verdict = capture::to_workload(flags, alive(state));
    if verdict == Verdict::Refuse {
        count(Counter::StrictWithoutAgent);
    }
    verdict
}

/// The weighted pick: one slot, and its alias where the draw does not stay.
#[inline(always)]
pub(crate) fn pick_slot(service: &Service, random: u64) -> Option<&'static Slot> {
    if service.slots == 0 {
        count(Counter::NoEndpoint);
        return None;
    }
    let mut key = SlotKey {
        service: service.id,
        generation: service.generation,
        slot: pick::slot(random, service.slots),
    };
    // SAFETY: not preallocated: freed only after this program has run.
    let mut slot = unsafe { SLOTS.get(&key) };
    if let Some(first) = slot
        && !pick::stays(random, first.threshold)
    {
        key.slot = first.alias;
        // SAFETY: as above.
        slot = unsafe { SLOTS.get(&key) };
    }
    if slot.is_none() {
        // Fail closed: the agent writes a generation in full before it points at it, so this is a defect or a full map.
        count(Counter::SlotMissing);
    }
    slot
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

/// Notes a direct connection, so that `sock_ops` reports it when it closes. Fails open: a full map loses the record.
#[inline(always)]
fn watch(cookie: u64, netns_cookie: u64, asked: ServiceKey, flags: u32) {
    let flow = OpenFlow { start_ns: now(), netns_cookie, asked, acked_before: 0, flags, pad: 0 };
    if OPEN_FLOWS.insert(&cookie, &flow, 0).is_err() {
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
fn now() -> u64 {
    // SAFETY: takes no argument.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn random() -> u64 {
    // SAFETY: takes no argument.
    let (high, low) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    u64::from(high) << 32 | u64::from(low)
}
