//! What the eBPF programs and the agent share: the layout of every kernel map, the names of maps and programs,
//! and the decisions that both sides make (so that the kernel's code is tested on the host).
//!
//! Invariants: `no_std`, no allocation, no `unsafe` beyond the `aya::Pod` markers, integers only in map types.
//! It does not talk to the kernel.

#![cfg_attr(not(test), no_std)]
#![allow(
    clippy::inline_always,
    reason = "the eBPF verifier sees one function; calls would cost stack and checks"
)]

pub mod abi;
pub mod affinity;
pub mod capture;
pub mod flow;
pub mod names;
pub mod pick;
