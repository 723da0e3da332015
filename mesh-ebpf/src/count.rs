//! Counters: why a hook did what it did.

use mesh_common::abi::Counter;

use crate::maps::COUNTERS;

/// Adds one on this CPU.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU value that only programs on this CPU write; a lost count under preemption is accepted.
        unsafe { *value += 1 };
    }
}
