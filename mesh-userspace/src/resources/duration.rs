//! Durations as Istio's API takes them.

use std::time::Duration;

/// A duration such as `1.5s`, `30ms` or `1h15m`: Go's notation (`time.ParseDuration`), of which that of protobuf's JSON is a part.
///
/// # Errors
///
/// What it is not, for whoever wrote it.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 1.5s, 30ms or 1h15m");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_no_number| wrong())?;
        let units =
            [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let unit = after.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let (_, of) = units.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        seconds += number * of;
        rest = after;
    }
    // Whole nanoseconds; Go's longest duration is 292 years.
    Duration::try_from_secs_f64((seconds * 1e9).round() / 1e9)
        .ok()
        .filter(|duration| duration.as_secs() <= i64::MAX.unsigned_abs() / 1_000_000_000)
        .ok_or_else(|| format!("{text:?} is too long"))
}

/// The same in whole milliseconds, one at least, as Istio asks of most (`ValidateDuration` in pkg/config/validation/agent).
///
/// # Errors
///
/// What it is not, for whoever wrote it.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration < Duration::from_millis(1) {
        return Err(format!("{text:?} is shorter than 1ms"));
    }
    if duration.subsec_nanos() % 1_000_000 != 0 {
        return Err(format!("{text:?} is not in whole milliseconds"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in [
            ("1s", Some(1000.0)),
            ("1.5s", Some(1500.0)),
            ("30ms", Some(30.0)),
            ("1h15m", Some(4_500_000.0)),
            ("1m30.5s", Some(90_500.0)),
            (".5s", Some(500.0)),
            ("+2s", Some(2000.0)),
            ("100us", Some(0.1)),
            ("0", Some(0.0)),
            ("0s", Some(0.0)),
            ("1500us", Some(1.5)),
            ("", None),
            ("+", None),
            ("5", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1s2", None),
            ("1..5s", None),
            ("1e3s", None),
            ("99999999999999999999h", None),
            ("1 s", None),
        ] {
            let wanted = milliseconds.map(|milliseconds: f64| Duration::from_secs_f64(milliseconds / 1000.0));
            assert_eq!(duration(text).ok(), wanted, "{text}");
            let whole = |wanted: &Duration| {
                *wanted >= Duration::from_millis(1) && wanted.subsec_micros().is_multiple_of(1000)
            };
            let positive = wanted.filter(whole);
            assert_eq!(positive_duration(text).ok(), positive, "{text}");
        }
    }
}
