//! The weighted pick, as kernel and agent make it: one random number and at most two look-ups in an alias table
//! (A. J. Walker 1977, M. D. Vose 1991).

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

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
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
    fn neighbouring_cookies_spread_over_the_slots() {
        let mut counts = [0_u32; 4];
        for cookie in 0..4_000 {
            counts[slot(spread(cookie), 4) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
