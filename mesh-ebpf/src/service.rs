//! Which service a destination is, and which backend a client of it gets: shared by connect and sendmsg.
//!
//! A weighted pick is one random number and at most two look-ups, and one more where the client's key decides. A client that must stay with its backend (affinity, or
//! a UDP socket) does so for as long as the backend is a member of the set.

use core::arch::asm;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{
    ADDRESS_CLUSTER, ADDRESS_LOCAL, ADDRESS_LOOPBACK, ADDRESS_NODE_PORTS, Address, Affinity, AffinityKey,
    BACKEND_NONE, BACKEND_TABLE, Counter, Member, MemberKey, SERVICE_WORDS, Service, ServiceKey, Slot,
    SlotKey, State,
};
use mesh_common::{affinity, pick};

use crate::count::count;
use crate::maps::{ADDRESSES, AFFINITY, MEMBERS, PODS, SERVICES, SLOTS};

/// What a destination is.
pub(crate) enum Found {
    /// A port of a service.
    Service(Service),
    /// A port that no service has, of a cluster address.
    ClosedPort,
    /// None of ours.
    Nothing,
}

/// The backend that a client is sent to.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    /// Where it stands in a map: a copy would cost stack.
    pub(crate) address: &'static Address,
    pub(crate) port: u16,
    /// `BACKEND_*` bits.
    pub(crate) flags: u16,
}

/// The service behind a destination: its own port first, then the node port where the address takes those.
#[inline(always)]
pub(crate) fn find(ctx: &SockAddrContext, asked: &ServiceKey, state: &State) -> Found {
    if let Some(service) = read(asked) {
        return Found::Service(service);
    }
    // SAFETY: not preallocated, copied at once.
    let Some(bits) = (unsafe { ADDRESSES.get(&asked.address) }).copied() else { return Found::Nothing };
    let takes = bits & ADDRESS_NODE_PORTS != 0 || (bits & ADDRESS_LOOPBACK != 0 && is_in_node(ctx, state));
    if takes && let Some(service) = read(&asked.node_port()) {
        return Found::Service(service);
    }
    if bits & ADDRESS_CLUSTER != 0 && bits & ADDRESS_LOCAL == 0 { Found::ClosedPort } else { Found::Nothing }
}

/// Whether a Kubernetes service has it as its cluster address.
#[inline(always)]
pub(crate) fn is_cluster_address(address: &Address) -> bool {
    // SAFETY: not preallocated, copied at once.
    unsafe { ADDRESSES.get(address) }.is_some_and(|bits| *bits & ADDRESS_CLUSTER != 0)
}

/// The value under a key, whole: the element may be given to another service while it is read ([`Service::sealed`]).
/// Twice in a row it is refused and counted.
#[inline(always)]
pub(crate) fn read(key: &ServiceKey) -> Option<Service> {
    let mut torn = None;
    for _ in 0..2 {
        let held = SERVICES.get_ptr(key)?.cast::<u32>();
        let mut words = [0; SERVICE_WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: within the value; volatile, so that nothing is read a second time after the seal was looked at.
            *word = unsafe { held.add(index).read_volatile() };
        }
        let service = Service::from_words(words);
        if service.is_of(key) {
            return Some(service);
        }
        torn = Some(service);
    }
    count(Counter::SlotMissing);
    torn.map(|service| Service { slots: 0, drawn: 0, affinity_seconds: 0, flags: 0, ..service })
}

/// Whether the socket belongs to the node's own namespace.
#[inline(always)]
fn is_in_node(ctx: &SockAddrContext, state: &State) -> bool {
    netns_cookie(ctx) == state.node_netns_cookie
}

#[inline(always)]
pub(crate) fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: reads the context that the kernel gave.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The backend for a client that comes from the namespace `netns`; `random` decides where nothing else does. `None`
/// refuses and is counted.
#[inline(always)]
pub(crate) fn choose(service: &Service, netns: u64, random: u64) -> Option<Choice> {
    if service.affinity_seconds == 0 {
        return draw(service, netns, random);
    }
    let key = AffinityKey::netns(service.affinity_id, netns);
    let now = now();
    if let Some(kept) = AFFINITY.get_ptr_mut(key) {
        // SAFETY: memory of the map while this program runs (what may be in it: maps.rs); its words are written whole.
        let kept = unsafe { &mut *kept };
        if affinity::holds(kept.seen_ns, now, service.affinity_seconds)
            && let Some(choice) = member(service, &kept.address, kept.port, true)
        {
            kept.seen_ns = now;
            return Some(choice);
        }
    }
    let choice = draw(service, netns, random)?;
    if choice.flags & BACKEND_NONE == 0 {
        let kept = Affinity { seen_ns: now, address: *choice.address, port: choice.port, pad: [0; 3] };
        if AFFINITY.insert(key, kept, 0).is_err() {
            // Fails open: the client is served, the next connection may go elsewhere.
            count(Counter::AffinityMapFull);
        }
    }
    Some(choice)
}

/// The backend at an address, while it is a member of the set.
#[inline(always)]
pub(crate) fn member(
    service: &Service,
    address: &'static Address,
    port: u16,
    counts: bool,
) -> Option<Choice> {
    let key = MemberKey { service: service.id, port, pad: 0, address: *address };
    let member = MEMBERS.get_ptr_mut(key)?;
    if counts {
        count(Counter::MemberKept);
        // SAFETY: memory of the map while this program runs (what may be in it: maps.rs); the field is aligned and only ever added to.
        unsafe { add_one(&raw mut (*member).connections) };
    }
    // SAFETY: as above.
    let Member { flags, .. } = unsafe { *member };
    Some(Choice { address, port, flags: flags as u16 })
}

/// The weighted pick: one slot, and its alias where the draw does not stay; where that slot is a table, the one of its entries that
/// the client's key falls into.
#[inline(always)]
fn draw(service: &Service, netns: u64, random: u64) -> Option<Choice> {
    if service.drawn == 0 {
        count(Counter::NoEndpoint);
        return None;
    }
    let mut key = SlotKey {
        service: service.id,
        generation: service.generation,
        slot: pick::slot(random, service.drawn),
    };
    let mut slot = SLOTS.get_ptr_mut(key);
    if let Some(first) = slot {
        // SAFETY: memory of the map while this program runs (what may be in it: maps.rs).
        let Slot { threshold, alias, .. } = unsafe { *first };
        if !pick::stays(random, threshold) {
            key.slot = alias;
            slot = SLOTS.get_ptr_mut(key);
        }
    }
    if let Some(drawn) = slot {
        // SAFETY: as above.
        let drawn = unsafe { &*drawn };
        if drawn.flags & BACKEND_TABLE != 0 {
            let (first, length) = drawn.table();
            // A table without entries is never written; its slot would be taken for a backend.
            slot = if length == 0 {
                None
            } else {
                key.slot = first + pick::entry(client(netns), length);
                SLOTS.get_ptr_mut(key)
            };
        }
    }
    let Some(slot) = slot else {
        // Fail closed: the agent writes a generation in full before it points at it, so this is a defect.
        count(Counter::SlotMissing);
        return None;
    };
    // SAFETY: as above; the field is aligned and only ever added to.
    unsafe { add_one(&raw mut (*slot).connections) };
    // SAFETY: as above.
    let slot = unsafe { &*slot };
    Some(Choice { address: &slot.address, port: slot.port, flags: slot.flags })
}

/// The key of a client that comes from the namespace `netns`: by its address where that is an enrolled pod's, as the agent knows it
/// too; the cookie otherwise.
#[inline(always)]
fn client(netns: u64) -> u64 {
    // SAFETY: not preallocated, copied at once.
    match unsafe { PODS.get(netns) } {
        Some(pod) => u64::from(pod.client),
        None => netns,
    }
}

/// # Safety
///
/// `counter` is valid and aligned, and everybody else adds to it atomically too.
#[inline(always)]
unsafe fn add_one(counter: *mut u64) {
    // The target has atomic addition, but core's AtomicU64 wants compare-and-swap as well.
    // SAFETY: by this function's contract.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) 1_u64) };
}

#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: takes no argument.
    unsafe { bpf_ktime_get_ns() }
}
