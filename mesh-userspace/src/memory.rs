//! What the allocator keeps of freed memory, given back to the kernel.
//!
//! Linked with glibc the agent has that library's allocator. A static binary, as the container image has it, is linked
//! with musl, whose allocator serves threads one after the other; there it is mimalloc (`bin/meshd.rs`).

/// Gives back what was freed: an agent that has carried a burst would keep it for ever.
#[cfg(not(target_env = "musl"))]
pub(crate) fn give_back() {
    // SAFETY: takes an integer and may be called at any time from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Gives back what was freed: an agent that has carried a burst would keep it for ever.
///
/// mimalloc does so by itself a second after a page became free, but only while somebody allocates. What threads keep
/// for themselves stays theirs; this is about the pages that all share.
#[cfg(target_env = "musl")]
pub(crate) fn give_back() {
    // SAFETY: takes a flag and may be called at any time from any thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
