//! Reading a whole hash map or trie in a few system calls (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), which aya 0.14 does not
//! offer: an entry at a time costs two calls each.
//!
//! The kernel hands out whole buckets: an entry that is there from beginning to end is seen once, one that comes or goes
//! meanwhile may be seen or not.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::bpf::call;

const MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries asked for at once; more where a bucket holds more.
const CHUNK: usize = 2048;
const MAX_CHUNK: usize = 1 << 20;
/// Longest key of any map, in bytes.
const MAX_KEY: usize = 64;

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
    let (key_size, value_size) = (size_of::<K>(), size_of::<V>());
    read(map, key_size, value_size, |count, keys, values| {
        let entries = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size));
        for (key, value) in entries.take(count) {
            // SAFETY: the slice is as long as the type, of which every bit pattern is a value.
            let key = unsafe { key.as_ptr().cast::<K>().read_unaligned() };
            // SAFETY: as above.
            let value = unsafe { value.as_ptr().cast::<V>().read_unaligned() };
            each(&key, &value);
        }
    })
}

/// How many entries a hash map or trie has, whose keys and values have these lengths.
pub(super) fn count(map: BorrowedFd<'_>, key_size: usize, value_size: usize) -> io::Result<u64> {
    let mut total = 0;
    read(map, key_size, value_size, |count, _keys, _values| total += count as u64)?;
    Ok(total)
}

/// Shows the entries a chunk at a time: how many there are, and the bytes of their keys and values.
fn read(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut chunk: impl FnMut(usize, &[u8], &[u8]),
) -> io::Result<()> {
    if key_size > MAX_KEY {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut capacity = CHUNK;
    let (mut keys, mut values) = (vec![0_u8; capacity * key_size], vec![0_u8; capacity * value_size]);
    // The kernel's place in a map: the number of a bucket, or a key of a trie. None yet: from the start.
    let (mut place, mut next_place) = (None::<[u8; MAX_KEY]>, [0_u8; MAX_KEY]);
    loop {
        let mut batch = LookupBatch {
            from: place.as_ref().map_or(0, |place| place.as_ptr() as u64),
            next: next_place.as_mut_ptr() as u64,
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
                Some(libc::ENOSPC) if capacity < MAX_CHUNK => {
                    capacity *= 4;
                    keys.resize(capacity * key_size, 0);
                    values.resize(capacity * value_size, 0);
                    continue;
                }
                _ => return Err(error),
            },
        };
        chunk((batch.count as usize).min(capacity), &keys, &values);
        if is_last {
            return Ok(());
        }
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
            assert_eq!(super::count(map.as_fd(), 8, 16).unwrap(), count, "{max_entries}");
            assert!(seen.values().all(|times| *times == 1), "{count} of {max_entries}");
        }
    }
}
