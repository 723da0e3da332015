//! Slow start: an endpoint that is new gets less than its share at first.

use std::time::Duration;

use crate::model::Warmup;

/// What a weight is multiplied by before shares of it are taken.
pub(super) const WHOLE: u64 = 10_000;

/// An endpoint's part of its weight, of [`WHOLE`], `age` after it was first seen. As Envoy has it
/// (`slow_start_config`): the larger of the minimum and (age / duration) ^ (1 / aggression).
pub(super) fn part(warmup: &Warmup, age: Duration) -> u64 {
    if age >= warmup.duration {
        return WHOLE;
    }
    let elapsed = age.as_secs_f64() / warmup.duration.as_secs_f64();
    let aggression = if warmup.aggression > 0.0 { warmup.aggression } else { 1.0 };
    let share = elapsed.powf(1.0 / aggression).max(warmup.minimum_percent / 100.0).clamp(0.0, 1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 10,000; no number is 0"
    )]
    let part = (share * 10_000.0) as u64;
    part.clamp(1, WHOLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_grows_as_envoy_has_it() {
        let warmup =
            |aggression| Warmup { duration: Duration::from_secs(100), minimum_percent: 10.0, aggression };
        for (aggression, age, expected) in [
            (1.0, 0, 1000),
            (1.0, 5, 1000),
            (1.0, 10, 1000),
            (1.0, 50, 5000),
            (1.0, 99, 9900),
            (1.0, 100, WHOLE),
            (1.0, 1000, WHOLE),
            // The root of what has passed: fast at first.
            (2.0, 25, 5000),
            (2.0, 0, 1000),
            (0.0, 50, 5000),
        ] {
            let part = part(&warmup(aggression), Duration::from_secs(age));
            assert!(part.abs_diff(expected) <= 1, "{aggression} {age}: {part}");
        }
        let none = Warmup { minimum_percent: 0.0, ..warmup(1.0) };
        assert_eq!(part(&none, Duration::ZERO), 1, "some share from the first moment on");
        let odd = Warmup { minimum_percent: f64::NAN, duration: Duration::ZERO, ..warmup(f64::NAN) };
        assert_eq!(part(&odd, Duration::ZERO), WHOLE);
    }
}
