//! What an `http` entry of a `VirtualService` asks to be done to its connections, but for where its copies go.
//!
//! Source: `HTTPRoute` and `HTTPFaultInjection` of the API; `translateFault` and `MirrorPercent` in
//! pilot/pkg/networking/core/route/route.go: without a percentage no fault is injected, and everything is mirrored.

use std::time::Duration;

use crate::model::{Retries, RouteActions, Share};
use crate::resources::duration::duration;
use crate::resources::virtual_service::{Destination, Fault, HttpRetry, Percent, RouteEntry};

/// A copy that is asked for, with the destination's field below the entry's.
pub(in crate::resources) struct Copied<'a> {
    pub(in crate::resources) destination: &'a Destination,
    pub(in crate::resources) share: Share,
    pub(in crate::resources) field: String,
}

/// All but the mirrors.
pub(in crate::resources) fn actions(entry: &RouteEntry) -> RouteActions {
    let fault = entry.fault.as_ref();
    RouteActions {
        timeout: entry.timeout.as_deref().and_then(read),
        retries: entry.retries.as_ref().map(retries),
        delay: fault.and_then(delay),
        abort: fault
            .and_then(|fault| fault.abort.as_ref())
            .and_then(|abort| some(share(abort.percentage.as_ref()))),
        mirrors: Vec::new(),
    }
}

fn retries(written: &HttpRetry) -> Retries {
    let otherwise = Retries::default();
    Retries {
        attempts: u32::try_from(written.attempts).unwrap_or_default().min(Retries::MOST),
        per_try: written.per_try_timeout.as_deref().and_then(read),
        backoff: written.backoff.as_deref().and_then(read).unwrap_or(otherwise.backoff),
    }
}

fn delay(fault: &Fault) -> Option<(Share, Duration)> {
    let delay = fault.delay.as_ref()?;
    let whole = delay.percent.map(|percent| Share::percent(f64::from(percent)));
    let share =
        if delay.percentage.is_some() { share(delay.percentage.as_ref()) } else { whole.unwrap_or_default() };
    Some((some(share)?, delay.fixed.as_deref().and_then(read)?))
}

/// The copies of an entry; none of which nothing is copied.
pub(in crate::resources) fn copies(entry: &RouteEntry) -> Vec<Copied<'_>> {
    let old =
        entry.mirror_percent.or(entry.mirror_percent_v1).map(|percent| Share::percent(f64::from(percent)));
    let one = entry.mirror.as_ref().map(|destination| Copied {
        destination,
        share: match &entry.mirror_percentage {
            Some(percentage) => share(Some(percentage)),
            None => old.unwrap_or(Share::WHOLE),
        },
        field: "mirror".to_owned(),
    });
    let many = entry.mirrors.iter().enumerate().map(|(index, mirror)| Copied {
        destination: &mirror.destination,
        share: mirror.percentage.as_ref().map_or(Share::WHOLE, |percentage| share(Some(percentage))),
        field: format!("mirrors[{index}].destination"),
    });
    one.into_iter().chain(many).filter(|copy| some(copy.share).is_some()).collect()
}

fn share(percentage: Option<&Percent>) -> Share {
    percentage.map_or_else(Share::default, |percentage| Share::percent(percentage.value))
}

fn some(share: Share) -> Option<Share> {
    (share != Share::default()).then_some(share)
}

fn read(written: &str) -> Option<Duration> {
    duration(written).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(json: &str) -> RouteEntry {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_asked_is_done() {
        let (second, half) = (Duration::from_secs(1), Share::percent(50.0));
        let nothing = RouteActions::default;
        let retries = |attempts| Retries { attempts, ..Retries::default() };
        let cases: [(&str, RouteActions); 13] = [
            ("{}", nothing()),
            (r#"{"timeout": "1s"}"#, RouteActions { timeout: Some(second), ..nothing() }),
            (
                r#"{"retries": {"attempts": 1000000}}"#,
                RouteActions { retries: Some(retries(25)), ..nothing() },
            ),
            (r#"{"retries": {"attempts": 0}}"#, RouteActions { retries: Some(retries(0)), ..nothing() }),
            (
                r#"{"retries": {"attempts": 5, "perTryTimeout": "1s", "retryOn": "5xx"}}"#,
                RouteActions { retries: Some(Retries { per_try: Some(second), ..retries(5) }), ..nothing() },
            ),
            (
                r#"{"retries": {"attempts": 1, "backoff": "1s"}}"#,
                RouteActions { retries: Some(Retries { backoff: second, ..retries(1) }), ..nothing() },
            ),
            (
                r#"{"fault": {"delay": {"fixedDelay": "1s", "percentage": {"value": 50}}}}"#,
                RouteActions { delay: Some((half, second)), ..nothing() },
            ),
            (
                r#"{"fault": {"delay": {"fixedDelay": "1s", "percent": 50}}}"#,
                RouteActions { delay: Some((half, second)), ..nothing() },
            ),
            (r#"{"fault": {"delay": {"fixedDelay": "1s"}}}"#, nothing()),
            (r#"{"fault": {"delay": {"fixedDelay": "1s", "percentage": {}, "percent": 50}}}"#, nothing()),
            (
                r#"{"fault": {"abort": {"httpStatus": 503, "percentage": {"value": 50.0}}}}"#,
                RouteActions { abort: Some(half), ..nothing() },
            ),
            (r#"{"fault": {"abort": {"httpStatus": 503}}}"#, nothing()),
            (r#"{"mirror": {"host": "a"}}"#, nothing()),
        ];
        for (json, wanted) in cases {
            assert_eq!(actions(&entry(json)), wanted, "{json}");
        }
    }

    #[test]
    fn how_much_is_copied() {
        let cases = [
            ("{}", vec![]),
            (r#"{"mirror": {"host": "a"}}"#, vec![("mirror", 100.0)]),
            (r#"{"mirror": {"host": "a"}, "mirrorPercentage": {"value": 0.5}}"#, vec![("mirror", 0.5)]),
            (r#"{"mirror": {"host": "a"}, "mirrorPercentage": {"value": 0}}"#, vec![]),
            (r#"{"mirror": {"host": "a"}, "mirrorPercent": 20}"#, vec![("mirror", 20.0)]),
            (r#"{"mirror": {"host": "a"}, "mirror_percent": 20}"#, vec![("mirror", 20.0)]),
            (
                r#"{"mirror": {"host": "a"}, "mirrorPercentage": {"value": 7}, "mirrorPercent": 20}"#,
                vec![("mirror", 7.0)],
            ),
            (
                r#"{"mirrors": [{"destination": {"host": "a"}}, {"destination": {"host": "b"}, "percentage": {"value": 1}}]}"#,
                vec![("mirrors[0].destination", 100.0), ("mirrors[1].destination", 1.0)],
            ),
        ];
        for (json, wanted) in cases {
            let entry = entry(json);
            let copies = copies(&entry);
            let told: Vec<_> = copies.iter().map(|copy| (copy.field.as_str(), copy.share)).collect();
            let wanted: Vec<_> =
                wanted.into_iter().map(|(field, percent)| (field, Share::percent(percent))).collect();
            assert_eq!(told, wanted, "{json}");
        }
    }
}
