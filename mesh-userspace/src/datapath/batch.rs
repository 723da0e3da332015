//! Reading a whole hash map in a few system calls (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), which aya 0.14 does not offer: an
//! entry at a time costs two calls each.
//!
//! The kernel hands out whole buckets: an entry that is there from beginning to end is seen once, one that comes or goes
//! meanwhile may be seen or not.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::bpf::call;

const MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries asked for at once.
const CHUNK: usize = 2048;

/// The part of `union bpf_attr` that the command reads and writes.
#[repr(C)]
struct LookupBatch {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Shows every entry of a hash map. `K` and `V` must be the map's own types.
pub(super) fn for_each<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(&K, &V),
) -> io::Result<()> {
    let (mut keys, mut values) = (Vec::<K>::with_capacity(CHUNK), Vec::<V>::with_capacity(CHUNK));
    // The kernel's place in a hash map: the number of a bucket. None yet: from the start.
    let (mut place, mut next_place) = (None::<u32>, 0_u32);
    loop {
        let capacity = keys.capacity().min(values.capacity());
        let mut batch = LookupBatch {
            from: place.as_ref().map_or(0, |place| std::ptr::from_ref(place) as u64),
            next: (&raw mut next_place) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(capacity).unwrap_or(u32::MAX),
            map: u32::try_from(map.as_raw_fd()).expect("an open descriptor is not negative"),
            element_flags: 0,
            flags: 0,
        };
        let is_last = match call(MAP_LOOKUP_BATCH, &mut batch) {
            Ok(_) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // A bucket that does not fit is not begun.
                Some(libc::ENOSPC) => {
                    keys.reserve(capacity * 2);
                    values.reserve(capacity * 2);
                    continue;
                }
                _ => return Err(error),
            },
        };
        let count = (batch.count as usize).min(capacity);
        // SAFETY: the kernel has written that many, no more than there is room for; every bit pattern is a value.
        unsafe { keys.set_len(count) };
        // SAFETY: as above.
        unsafe { values.set_len(count) };
        for (key, value) in keys.iter().zip(&values) {
            each(key, value);
        }
        if is_last {
            return Ok(());
        }
        keys.clear();
        values.clear();
        place = Some(next_place);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    use super::*;

    /// The part of `union bpf_attr` that makes a map.
    #[repr(C)]
    struct MapCreate {
        kind: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
    }

    /// The part that writes an element.
    #[repr(C)]
    struct Element {
        map: u32,
        key: u64,
        value: u64,
        flags: u64,
    }

    fn hash_map(max_entries: u32) -> OwnedFd {
        const NO_PREALLOC: u32 = 1;
        let mut attribute =
            MapCreate { kind: 1, key_size: 8, value_size: 16, max_entries, flags: NO_PREALLOC };
        let fd = call(0, &mut attribute).unwrap();
        // SAFETY: the call made the descriptor, and nothing else knows it.
        unsafe { OwnedFd::from_raw_fd(fd as i32) }
    }

    fn fill(map: &OwnedFd, count: u64) {
        for key in 0..count {
            let value = [key, !key];
            let mut element = Element {
                map: map.as_raw_fd().cast_unsigned(),
                key: (&raw const key) as u64,
                value: value.as_ptr() as u64,
                flags: 0,
            };
            call(2, &mut element).unwrap();
        }
    }

    #[test]
    fn every_entry_is_seen_once() {
        // Empty; less than a chunk; many chunks; fewer buckets than entries, so that buckets do not fit.
        for (count, max_entries) in [(0, 16), (100, 1024), (20_000, 65_536), (5000, 5000)] {
            let map = hash_map(max_entries);
            fill(&map, count);
            let mut seen = HashMap::new();
            for_each(map.as_fd(), |key: &u64, value: &[u64; 2]| {
                assert_eq!(*value, [*key, !*key]);
                *seen.entry(*key).or_insert(0) += 1;
            })
            .unwrap();
            assert_eq!(seen.len() as u64, count, "{max_entries}");
            assert!(seen.values().all(|times| *times == 1), "{count} of {max_entries}");
        }
    }
}
