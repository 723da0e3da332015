//! What the `sk_lookup` programs share: their verdicts, and reading the context.

use aya_ebpf::programs::SkLookupContext;
use mesh_common::abi::{Address, mapped};

/// `SK_DROP`: the client gets RST, or ICMP port unreachable.
pub(crate) const DROP: u32 = 0;
/// `SK_PASS`.
pub(crate) const PASS: u32 = 1;

const AF_INET: u32 = 2;

/// (local, remote) address of the connection.
#[inline(always)]
pub(crate) fn addresses(ctx: &SkLookupContext) -> (Address, Address) {
    // SAFETY: a valid context.
    if unsafe { (*ctx.lookup).family } == AF_INET {
        // SAFETY: a valid context.
        let (local, remote) = unsafe { ((*ctx.lookup).local_ip4, (*ctx.lookup).remote_ip4) };
        return (mapped(local.to_ne_bytes()), mapped(remote.to_ne_bytes()));
    }
    let (mut local, mut remote) = ([0; 16], [0; 16]);
    let (local_words, _) = local.as_chunks_mut::<4>();
    let (remote_words, _) = remote.as_chunks_mut::<4>();
    for index in 0..4 {
        // SAFETY: a valid context, an index below 4; volatile keeps the load at the 4 bytes the verifier allows.
        local_words[index] =
            unsafe { core::ptr::read_volatile(&raw const (*ctx.lookup).local_ip6[index]) }.to_ne_bytes();
        // SAFETY: as above.
        remote_words[index] =
            unsafe { core::ptr::read_volatile(&raw const (*ctx.lookup).remote_ip6[index]) }.to_ne_bytes();
    }
    (local, remote)
}
