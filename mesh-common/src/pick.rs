//! The weighted pick, as kernel and agent make it: one random number and at most two look-ups in an alias table
//! (A. J. Walker 1977, M. D. Vose 1991); and the pick by a client's key from a table that the agent has filled (Maglev).

/// The half of a random number that decides between a slot and its alias.
const FRACTION: u64 = u32::MAX as u64;

/// The slot that a random number falls into, of `slots` (not 0).
#[inline(always)]
pub const fn slot(random: u64, slots: u32) -> u32 {
    (((random >> 32) * slots as u64) >> 32) as u32
}

/// Whether the draw stays in its slot; otherwise it goes to the slot's alias.
#[inline(always)]
pub const fn stays(random: u64, threshold: u32) -> bool {
    threshold == u32::MAX || (random & FRACTION) < threshold as u64
}

/// A stable random number from a key such as a socket cookie (the finaliser of splitmix64).
#[inline(always)]
pub const fn spread(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The digest of an address, the same on every machine: what tells endpoints and clients from another.
#[inline(always)]
pub const fn digest(address: &[u8; 16]) -> u64 {
    let (words, _) = address.as_chunks::<8>();
    spread(u64::from_be_bytes(words[1]) ^ spread(u64::from_be_bytes(words[0])))
}

/// The key of a client that is known by its address: an enrolled pod, or a client from outside. (Those of this node's other
/// clients are the cookies of their network namespaces.)
#[inline(always)]
pub const fn client(address: &[u8; 16]) -> u32 {
    (digest(address) >> 32) as u32
}

/// The entry of a table of `length` (not 0) that a client's key falls into.
#[inline(always)]
pub const fn entry(client: u64, length: u32) -> u32 {
    slot(spread(client), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 10.244.1.1, 10.244.1.2 and ::.
    const KEYS: [u32; 3] = [0x160d_a6b5, 0x4a1d_0c39, 0xa706_dd2f];

    proptest::proptest! {
        #[test]
        fn entry_is_always_in_range(client: u64, length in 1..=u32::MAX) {
            proptest::prop_assert!(entry(client, length) < length);
        }

        #[test]
        fn slot_is_always_in_range(random: u64, slots in 1..=u32::MAX) {
            proptest::prop_assert!(slot(random, slots) < slots);
        }
    }

    #[test]
    fn a_full_threshold_always_stays() {
        assert!(stays(u64::MAX, u32::MAX));
        assert!(!stays(0, 0));
    }

    #[test]
    fn keys_of_clients_are_the_same_on_every_machine() {
        let address = |last| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 244, 1, last];
        let keys = [client(&address(1)), client(&address(2)), client(&[0; 16])];
        assert_eq!(keys, KEYS, "other nodes would send the same client elsewhere");
        let mut counts = [0_u32; 4];
        for last in 0..=255 {
            counts[entry(client(&address(last)).into(), 4) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (40..90).contains(count)), "{counts:?}");
    }

    #[test]
    fn neighbouring_cookies_spread_over_the_slots() {
        let mut counts = [0_u32; 4];
        for cookie in 0..4_000 {
            counts[slot(spread(cookie), 4) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
