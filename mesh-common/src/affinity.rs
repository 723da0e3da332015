//! Session affinity, as kernel and agent decide it.

/// Whether a client that was last seen at `seen_ns` still stays with its backend at `now_ns` (both `CLOCK_MONOTONIC`).
#[inline(always)]
pub const fn holds(seen_ns: u64, now_ns: u64, seconds: u32) -> bool {
    now_ns.saturating_sub(seen_ns) <= seconds as u64 * 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_stays_until_its_time_is_up() {
        assert!(holds(5_000_000_000, 8_000_000_000, 3));
        assert!(!holds(5_000_000_000, 8_000_000_001, 3));
        assert!(holds(9_000_000_000, 8_000_000_000, 3), "seen after the hook read the clock");
        assert!(!holds(0, u64::MAX, u32::MAX));
    }
}
