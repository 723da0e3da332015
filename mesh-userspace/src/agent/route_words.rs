//! Routes as the node's API tells them: what is done to connections, and which routes are for some of them alone.

use std::time::Duration;

use crate::admin::api::{RuleReport, TargetReport};
use crate::model::{ConditionalRoute, Endpoint, Route, RouteActions, RouteTarget, Share, TrafficPolicy};

/// What a route does to its connections, a thing a line.
pub(super) fn actions(actions: &RouteActions) -> Vec<String> {
    let time = |duration: Duration| format!("{duration:?}");
    let mut words = Vec::new();
    words.extend(actions.timeout.map(|timeout| format!("given up after {}", time(timeout))));
    words.extend(actions.retries.map(|retries| {
        let per_try = retries.per_try.map(|per_try| format!(", {} each", time(per_try))).unwrap_or_default();
        let wait = if retries.attempts > 0 {
            format!(", from {} apart", time(retries.backoff))
        } else {
            String::new()
        };
        format!("{} retries{per_try}{wait}", retries.attempts)
    }));
    words
        .extend(actions.delay.map(|(share, delay)| format!("{} wait {} first", percent(share), time(delay))));
    words.extend(actions.abort.map(|share| format!("{} are reset", percent(share))));
    words.extend(actions.mirrors.iter().map(|mirror| {
        let subset =
            mirror.target.subset.as_ref().map(|subset| format!(" subset {subset}")).unwrap_or_default();
        format!(
            "{} copied to {}:{}{subset}",
            percent(mirror.share),
            mirror.target.service,
            mirror.target.port
        )
    }));
    words
}

fn percent(share: Share) -> String {
    format!("{}%", f64::from(share.millionths()) / 10_000.0)
}

/// The targets of a route, with how many endpoints of them count.
pub(super) fn targets(route: &Route, counts: impl Fn(&Endpoint) -> bool) -> Vec<TargetReport> {
    let target = |target: &RouteTarget| TargetReport {
        service: target.service.to_string(),
        subset: target.subset.as_ref().map(ToString::to_string),
        weight: target.weight,
        endpoints: target.endpoints.iter().filter(|endpoint| counts(endpoint)).count(),
    };
    route.targets.iter().map(target).collect()
}

/// A route for some connections alone, under a policy.
pub(super) fn rule(
    rule: &ConditionalRoute,
    policy: TrafficPolicy,
    counts: impl Fn(&Endpoint) -> bool,
) -> RuleReport {
    let route = rule.route(policy);
    RuleReport {
        rule: route.rule.as_ref().map(ToString::to_string),
        matches: rule.matches.iter().map(ToString::to_string).collect(),
        targets: targets(route, counts),
        actions: actions(&route.actions),
        holds: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Mirror, Retries, ServiceName};

    #[test]
    fn what_is_done_can_be_read() {
        assert!(actions(&RouteActions::default()).is_empty());
        let target = RouteTarget::whole(ServiceName::new("shop", "shadow"), 80, 1, Arc::from([]));
        let target = RouteTarget { subset: Some("v2".into()), ..target };
        let all = RouteActions {
            timeout: Some(Duration::from_millis(1500)),
            retries: Some(Retries {
                attempts: 3,
                per_try: Some(Duration::from_secs(1)),
                ..Retries::default()
            }),
            delay: Some((Share::percent(12.5), Duration::from_secs(2))),
            abort: Some(Share::percent(0.1)),
            mirrors: vec![Mirror { target, share: Share::WHOLE }],
        };
        let wanted = [
            "given up after 1.5s",
            "3 retries, 1s each, from 25ms apart",
            "12.5% wait 2s first",
            "0.1% are reset",
            "100% copied to shop/shadow:80 subset v2",
        ];
        assert_eq!(actions(&all), wanted);
        let none = Retries { attempts: 0, ..Retries::default() };
        assert_eq!(actions(&RouteActions { retries: Some(none), ..RouteActions::default() }), ["0 retries"]);
    }
}
