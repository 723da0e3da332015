//! How long a retry waits, and how many there may be at once: retries must not make an outage worse.

use std::time::Duration;

/// Retries that a destination may always have at once (Envoy's `retry_budget.min_retry_concurrency`).
const LEAST: u32 = 3;
/// One in so many connections may be a retry (Envoy's `retry_budget.budget_percent`: 20%).
const SHARE: u32 = 5;
/// The longest wait is so many times the first (Envoy's `retry_back_off.max_interval`).
const LONGEST: u32 = 10;

/// Retries that may run at once while so many connections are open or being established.
pub(super) const fn budget(active: u32) -> u32 {
    let share = active / SHARE;
    if share > LEAST { share } else { LEAST }
}

/// The wait before the `retry`-th retry (from 1): a random part of `base` × (2^`retry` − 1), at most of ten times `base`
/// (Envoy's jittered exponential back-off).
pub(crate) fn backoff(retry: u32, base: Duration, random: u64) -> Duration {
    let times = 2_u32.saturating_pow(retry).saturating_sub(1).min(LONGEST);
    let span = u64::try_from((base * times).as_micros()).unwrap_or(u64::MAX);
    let part = (u128::from(random) * (u128::from(span) + 1)) >> 64;
    Duration::from_micros(u64::try_from(part).unwrap_or(span))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_ten_times_the_first() {
        let base = Duration::from_millis(25);
        for (retry, longest) in [(1, 25), (2, 75), (3, 175), (4, 250), (5, 250), (u32::MAX, 250)] {
            assert_eq!(backoff(retry, base, u64::MAX), Duration::from_millis(longest), "{retry}");
            assert_eq!(backoff(retry, base, 0), Duration::ZERO);
        }
        assert_eq!(backoff(3, Duration::ZERO, u64::MAX), Duration::ZERO);
    }

    #[test]
    fn a_fifth_may_be_retries_and_three_always() {
        for (active, retries) in [(0, 3), (15, 3), (19, 3), (20, 4), (1000, 200)] {
            assert_eq!(budget(active), retries, "{active}");
        }
    }

    proptest! {
        #[test]
        fn a_wait_is_never_longer_than_it_may(retry in 0_u32..50, millis in 0_u64..100_000, random: u64) {
            let base = Duration::from_millis(millis);
            prop_assert!(backoff(retry, base, random) <= base * LONGEST);
        }
    }
}
