//! Entries counted: `BPF_MAP_LOOKUP_BATCH` (Linux 5.6) hands out thousands with one system call, and costs the kernel's
//! copying alone.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::datapath::bpf;

const LOOKUP_BATCH: libc::c_long = 24;
/// Entries that are asked for at once; more where a bucket holds more.
const BATCH: u32 = 4096;
const MAX_BATCH: u32 = 1 << 20;
/// Longest key of any map, in bytes.
const MAX_KEY: usize = 64;

/// The part of `union bpf_attr` that the command reads.
#[repr(C)]
struct Batch {
    at: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// How many entries a hash or trie has, whose keys and values have these lengths. What comes and goes meanwhile is counted
/// or not.
pub(super) fn count(map: BorrowedFd<'_>, key: usize, value: usize) -> io::Result<u64> {
    if key > MAX_KEY {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut size = BATCH;
    let (mut keys, mut values) = (vec![0_u8; size as usize * key], vec![0_u8; size as usize * value]);
    // A place in the map: a key of its own, or the number of a bucket.
    let (mut at, mut next) = ([0_u8; MAX_KEY], [0_u8; MAX_KEY]);
    let (mut begun, mut total) = (false, 0);
    loop {
        let mut batch = Batch {
            at: if begun { at.as_ptr() as u64 } else { 0 },
            next: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: size,
            map: u32::try_from(map.as_raw_fd()).map_err(|_error| io::ErrorKind::InvalidInput)?,
            element_flags: 0,
            flags: 0,
        };
        match bpf::call(LOOKUP_BATCH, &mut batch) {
            Ok(_) => total += u64::from(batch.count),
            Err(error) => match error.raw_os_error() {
                // These were the last.
                Some(libc::ENOENT) => return Ok(total + u64::from(batch.count)),
                // The next bucket alone is longer than what is asked for.
                Some(libc::ENOSPC) if size < MAX_BATCH => {
                    size *= 4;
                    keys.resize(size as usize * key, 0);
                    values.resize(size as usize * value, 0);
                    continue;
                }
                _ => return Err(error),
            },
        }
        (at, begun) = (next, true);
    }
}
