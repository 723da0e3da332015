//! Grace periods: waiting until every eBPF program that was running has ended.
//!
//! To write to a map of maps from userspace is to wait for one RCU grace period (`maybe_wait_bpf_programs`,
//! kernel/bpf/syscall.c, since 5.0): that is its contract, on every kernel. membarrier(2) would do the same but is refused
//! by kernels with `nohz_full` CPUs.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::bpf::call;

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
const ARRAY_OF_MAPS: u32 = 12;

/// The part of `union bpf_attr` that makes a map.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
}

/// The part that writes an element.
#[repr(C)]
struct Element {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Returns when every program that was running at the time of the call has ended.
pub(super) fn wait_for_programs() -> io::Result<()> {
    let inner = array(ARRAY, 0)?;
    let number = |fd: &OwnedFd| fd.as_raw_fd().cast_unsigned();
    let outer = array(ARRAY_OF_MAPS, number(&inner))?;
    let (key, value) = (0_u32, number(&inner));
    let mut element = Element {
        map: number(&outer),
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    call(MAP_UPDATE_ELEM, &mut element).map(drop)
}

fn array(kind: u32, inner_map: u32) -> io::Result<OwnedFd> {
    let mut attribute = MapCreate { kind, key_size: 4, value_size: 4, max_entries: 1, flags: 0, inner_map };
    let fd = RawFd::try_from(call(MAP_CREATE, &mut attribute)?).map_err(io::Error::other)?;
    // SAFETY: the call made the descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_grace_period_ends() {
        super::wait_for_programs().unwrap();
    }
}
