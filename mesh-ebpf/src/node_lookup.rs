//! `sk_lookup` on the node's own namespace: what comes from outside for a service goes to the agent's listeners.
//!
//! Clients on the node were translated when they connected and never come here, but those of addresses with source
//! ranges, whose own address only the packet tells. Fails closed: a service's port is never anybody else's, with the
//! agent away neither. Fails open for all that is no service's.

use aya_ebpf::macros::sk_lookup;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::abi::{
    ADDRESS_CLUSTER, ADDRESS_EXTERNAL, ADDRESS_LOCAL, ADDRESS_NODE_PORTS, Address, Counter, PodKey,
    RANGE_KEY_BITS, ROLE_NODE_TCP4, ROLE_NODE_TCP6, ROLE_NODE_UDP4, ROLE_NODE_UDP6, RangeKey, SCOPE_ADDRESS,
    SERVICE_CLOSED_OUTSIDE, SERVICE_RANGES, STATE_TRANSLATE, Service, ServiceKey, TCP, UDP, is_mapped,
};

use crate::count::count;
use crate::lookup::{DROP, PASS, addresses};
use crate::maps::{ADDRESSES, LISTENERS, RANGES, STATE};
use crate::service;

/// Length of a [`RangeKey`] in bits.
const WHOLE_KEY: u32 = RANGE_KEY_BITS + 128;

#[sk_lookup]
fn mesh_node_lookup(ctx: SkLookupContext) -> u32 {
    // SAFETY: the kernel hands the hook a valid context; the port is in host byte order.
    let (protocol, port) = unsafe { ((*ctx.lookup).protocol as u8, (*ctx.lookup).local_port as u16) };
    if STATE.get(0).is_none_or(|state| state.flags & STATE_TRANSLATE == 0)
        || (protocol != TCP && protocol != UDP)
    {
        return PASS;
    }
    let (local, remote) = addresses(&ctx);
    let key = ServiceKey { address: local, port, protocol, scope: SCOPE_ADDRESS };
    // SAFETY: not preallocated, copied at once.
    let bits = unsafe { ADDRESSES.get(&local) }.copied().unwrap_or(0);
    let Some(service) = service(&key, bits) else {
        if protocol == UDP && is_own(remote) {
            // The node talks to itself: the answer to a socket that sent from the very address that it asked.
            return PASS;
        }
        if bits & (ADDRESS_CLUSTER | ADDRESS_EXTERNAL) != 0 && bits & ADDRESS_LOCAL == 0 {
            // The address is routed here for its services' sake: what else listens on this node is not meant.
            count(Counter::LookupClosed);
            return DROP;
        }
        return PASS;
    };
    if service.flags & SERVICE_RANGES != 0 && !is_in_range(&service, remote) {
        count(Counter::LookupOutOfRange);
        return DROP;
    }
    if service.flags & SERVICE_CLOSED_OUTSIDE != 0 {
        count(Counter::LookupClosed);
        return DROP;
    }
    steer(&ctx, protocol, is_mapped(&local))
}

#[inline(always)]
fn service(key: &ServiceKey, bits: u32) -> Option<Service> {
    if let Some(service) = service::read(key) {
        return Some(service);
    }
    if bits & ADDRESS_NODE_PORTS == 0 {
        return None;
    }
    service::read(&key.node_port())
}

/// Whether an address is the node's own, or routed here for its services' sake: no packet with such a source comes from
/// outside.
#[inline(always)]
fn is_own(address: Address) -> bool {
    // SAFETY: not preallocated, copied at once.
    let bits = unsafe { ADDRESSES.get(&address) }.copied().unwrap_or(0);
    bits & (ADDRESS_EXTERNAL | ADDRESS_LOCAL) != 0
}

#[inline(always)]
fn is_in_range(service: &Service, client: Address) -> bool {
    RANGES.get(Key::new(WHOLE_KEY, RangeKey { service_be: service.id.to_be(), client })).is_some()
}

#[inline(always)]
fn steer(ctx: &SkLookupContext, protocol: u8, v4: bool) -> u32 {
    let selector = match (protocol, v4) {
        (TCP, true) => ROLE_NODE_TCP4,
        (TCP, false) => ROLE_NODE_TCP6,
        (_, true) => ROLE_NODE_UDP4,
        (_, false) => ROLE_NODE_UDP6,
    };
    if LISTENERS.redirect_sk_lookup(ctx, PodKey { address: [0; 16], selector }, 0).is_err() {
        count(Counter::LookupWithoutAgent);
        return DROP;
    }
    count(Counter::LookupExternal);
    PASS
}
