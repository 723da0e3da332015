//! The eBPF programs of the mesh: one hook a file, maps in one file, decisions in mesh-common.
//!
//! They act on sockets, never on packets. Each early exit is counted and says in its comment whether it fails open or
//! closed. Nothing is logged: what is to be told goes through the ring buffer.

#![no_std]
#![feature(asm_experimental_arch)]
#![no_main]
#![allow(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::needless_borrows_for_generic_args,
    clippy::needless_pass_by_value,
    reason = "one function a program is what the verifier wants; contexts widen their 16-bit fields to 32 bits; keys are \
              lent because a copy costs stack; the macros of aya-ebpf pass contexts by value"
)]

mod address;
mod connect;
mod count;
mod lookup;
mod maps;
mod node_lookup;
mod peer_name;
mod pod_lookup;
mod post_bind;
mod service;
mod sock_ops;
mod sock_release;
mod udp;
mod udp_peers;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this could be reached.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
