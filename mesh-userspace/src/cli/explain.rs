//! What would become of a connection, as text: first how it ends, then why, from the client to the endpoints.

use std::fmt::{Display, Write as _};

use super::print::{View, mode};
use super::services::{rule_words, share, targets};
use super::table::{Rows, Tone, plain, yes};
use crate::admin::explain::{
    Basis, ExplainBackend, ExplainPath, ExplainReport, ExplainRoute, ExplainSource, Outcome, Transport,
    Verdict,
};
use crate::model::{EndpointState, PolicyAction, TrafficPolicy};
use crate::policy::authorization::PolicyVerdict;

/// Everything there is to say.
pub(super) fn explain(report: &ExplainReport, view: View) -> String {
    let outcome = match report.outcome {
        Outcome::Allowed => "allowed",
        Outcome::Refused => "refused",
        Outcome::Differs => "differs by endpoint",
    };
    let mut text = format!("{} to {}: {outcome}", report.client, report.asked);
    if !report.because.is_empty() {
        let _infallible = write!(text, " ({})", report.because);
    }
    text.push('\n');
    text.push_str(&kernel(report));
    if let Some(source) = &report.source {
        line(&mut text, "Source", source_words(source));
    }
    if let Some(route) = &report.route {
        text.push_str(&route_words(route));
    }
    text.push_str(&backends(report, view));
    text.push_str(&paths(report, view));
    text.push_str(&policies(report, view));
    for (title, notes) in [
        ("The kernel does not hold what the snapshot says", &report.differences),
        ("Not read, and left out", &report.problems),
    ] {
        if !notes.is_empty() {
            let _infallible = writeln!(text, "\n{title}:");
            for note in notes {
                let _infallible = writeln!(text, "  {note}");
            }
        }
    }
    text.push_str(&super::policies::notices(&report.notices, report.more_notices));
    text
}

fn line(text: &mut String, what: &str, found: impl Display) {
    let _infallible = writeln!(text, "{what:<9}{found}");
}

fn kernel(report: &ExplainReport) -> String {
    let verdict = match report.verdict {
        Verdict::Passed => "passed",
        Verdict::Translated => "translated",
        Verdict::Captured => "captured",
        Verdict::Carried => "carried",
        Verdict::Refused => "refused",
    };
    let mut words = verdict.to_owned();
    if report.basis == Basis::Snapshot {
        words.push_str(", as the snapshot says");
    }
    if !report.reason.is_empty() {
        let _infallible = write!(words, " ({})", report.reason);
    }
    let mut text = String::new();
    line(&mut text, "Kernel", words);
    for step in &report.steps {
        let _infallible = writeln!(text, "  {:<14}{}", step.what, step.found);
    }
    text
}

fn source_words(source: &ExplainSource) -> String {
    let mut words = vec![source.workload.clone().unwrap_or_else(|| "no pod".to_owned())];
    words.extend(source.address.map(|address| format!("at {address}")));
    words.extend(source.node.as_ref().map(|node| format!("on {node}")));
    words.push(if source.enrolled {
        "enrolled".to_owned()
    } else {
        "not enrolled: it proves no identity".to_owned()
    });
    words.extend(source.identity.clone().filter(|_| source.enrolled));
    words.join(", ")
}

fn route_words(route: &ExplainRoute) -> String {
    let by = match &route.rule {
        Some(rule) => format!("by {rule}"),
        None => "no rule: all endpoints alike".to_owned(),
    };
    let local = if route.policy == TrafficPolicy::Local { ", those of this node alone" } else { "" };
    let mut text = String::new();
    line(&mut text, "Route", format!("{} port {}, {by}{local}", route.service, route.port));
    for one in &route.matches {
        let _infallible = writeln!(text, "  for {one}");
    }
    text.push_str(&targets(route.targets.iter().filter(|_| route.rule.is_some()), &route.actions));
    for rule in &route.before {
        let state = if rule.holds == Some(false) {
            "does not hold"
        } else {
            "may hold: give the server name (--sni)"
        };
        let _infallible = writeln!(text, "  before it, {state}: {}", rule_words(rule));
    }
    text
}

fn state(state: Option<EndpointState>) -> (String, Tone) {
    match state {
        None => plain(""),
        Some(EndpointState::Ready) => plain("ready"),
        Some(EndpointState::Terminating) => ("terminating".to_owned(), Tone::Warn),
        Some(EndpointState::Unready) => ("not ready".to_owned(), Tone::Warn),
    }
}

fn address(backend: &ExplainBackend) -> (String, Tone) {
    match backend.address {
        Some(address) => plain(address),
        None => ("(refused: no endpoint)".to_owned(), Tone::Warn),
    }
}

/// What the kernel draws from, where that is not what the paths say already.
fn backends(report: &ExplainReport, view: View) -> String {
    if report.backends.is_empty() || !(view.wide || report.paths.is_empty()) {
        return String::new();
    }
    let header = ["BACKEND", "SHARE", "STATE", "WORKLOAD", "NODE", "ZONE", "MTLS ONLY"];
    let mut rows = Rows::new(&header, view.colour);
    for backend in &report.backends {
        rows.add([
            address(backend),
            plain(share(backend.share_ppm)),
            state(backend.state),
            plain(backend.workload.as_deref().unwrap_or_default()),
            plain(backend.node.as_deref().unwrap_or_default()),
            plain(backend.zone.as_deref().unwrap_or_default()),
            yes(backend.strict),
        ]);
    }
    format!("\n{}", rows.render())
}

fn paths(report: &ExplainReport, view: View) -> String {
    if report.paths.is_empty() {
        return String::new();
    }
    let header = [
        "ENDPOINT", "SHARE", "STATE", "WORKLOAD", "MTLS", "WAY", "VERDICT", "WHY", "NODE", "ZONE", "IDENTITY",
    ];
    let mut rows = Rows::new(if view.wide { &header } else { &header[..8] }, view.colour);
    for path in &report.paths {
        let verdict = match (path.allowed, path.backend.share_ppm) {
            (_, 0) => plain(""),
            (true, _) => ("allowed".to_owned(), Tone::Good),
            (false, _) => ("refused".to_owned(), Tone::Bad),
        };
        rows.add([
            address(&path.backend),
            plain(share(path.backend.share_ppm)),
            state(path.backend.state),
            plain(path.backend.workload.as_deref().unwrap_or_default()),
            plain(mtls(path)),
            plain(way(path.transport)),
            verdict,
            plain(why(path)),
            plain(path.backend.node.as_deref().unwrap_or_default()),
            plain(path.backend.zone.as_deref().unwrap_or_default()),
            plain(path.identity.as_deref().unwrap_or_default()),
        ]);
    }
    let mut text = format!("\n{}", rows.render());
    if report.more_paths > 0 {
        let _infallible = writeln!(text, "({} more endpoints, counted and not shown)", report.more_paths);
    }
    text
}

fn mtls(path: &ExplainPath) -> String {
    match (path.mode, &path.mode_by) {
        (None, _) => String::new(),
        (Some(own), None) => mode(own).to_owned(),
        (Some(own), Some(by)) => format!("{} by {by}", mode(own)),
    }
}

const fn way(transport: Transport) -> &'static str {
    match transport {
        Transport::Direct => "direct",
        Transport::Hbone => "HBONE",
        Transport::SameNode => "same node",
        Transport::Plaintext => "plaintext",
        Transport::None => "",
    }
}

fn why(path: &ExplainPath) -> String {
    let mut words = path.reason.clone();
    if let Some(refusal) = &path.dry_run {
        let _infallible = write!(words, "; dry run: {refusal}");
    }
    if !path.audited.is_empty() {
        let _infallible = write!(words, "; audited by {}", path.audited.join(", "));
    }
    words
}

/// What each policy says; endpoints of which the same is said are told together.
fn policies(report: &ExplainReport, view: View) -> String {
    let mut told: Vec<(&[PolicyVerdict], Vec<&str>)> = Vec::new();
    for path in report.paths.iter().filter(|path| !path.policies.is_empty()) {
        let workload = path.backend.workload.as_deref().unwrap_or_default();
        match told.iter_mut().find(|(policies, _)| *policies == path.policies) {
            Some((_, workloads)) => workloads.push(workload),
            None => told.push((&path.policies, vec![workload])),
        }
    }
    let mut text = String::new();
    for (policies, workloads) in told {
        let _infallible = writeln!(text, "\nPolicies at {}:", workloads.join(", "));
        let mut rows = Rows::new(&["POLICY", "SCOPE", "ACTION", "SAYS", "WHY"], view.colour);
        for policy in policies {
            let dry_run = if policy.dry_run { " (dry run)" } else { "" };
            rows.add([
                plain(&policy.policy),
                plain(&policy.scope),
                plain(format!("{}{dry_run}", super::policies::action(policy.action))),
                says(policy),
                plain(rules(policy)),
            ]);
        }
        text.push_str(&rows.render());
    }
    text
}

fn says(policy: &PolicyVerdict) -> (String, Tone) {
    let (word, tone) = match (policy.action, policy.matched.is_some()) {
        _ if !policy.concerned => ("nothing", Tone::Plain),
        (PolicyAction::Allow, true) => ("yes", Tone::Good),
        (PolicyAction::Allow, false) => ("not this one", Tone::Plain),
        (PolicyAction::Deny, true) => ("no", Tone::Bad),
        (PolicyAction::Custom, true) => ("no: there is no authorizer", Tone::Bad),
        (PolicyAction::Audit, true) => ("mark it", Tone::Plain),
        (PolicyAction::Deny | PolicyAction::Custom | PolicyAction::Audit, false) => ("nothing", Tone::Plain),
    };
    (word.to_owned(), if policy.dry_run { Tone::Plain } else { tone })
}

/// The rule that matches, or why each does not.
fn rules(policy: &PolicyVerdict) -> String {
    let matched = policy.rules.iter().find(|rule| Some(rule.rule) == policy.matched);
    match (matched, &policy.rules[..]) {
        (Some(rule), _) => rule.to_string(),
        (None, []) => "it has no rules".to_owned(),
        (None, rules) => rules.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{RuleReport, TargetReport};
    use crate::admin::explain::ExplainStep;
    use crate::model::{Mode, PolicyName};
    use crate::policy::authorization::RuleVerdict;

    const VIEW: View = View { wide: false, colour: false, now: 0 };

    fn policy(action: PolicyAction, matched: Option<usize>) -> PolicyVerdict {
        let missed = |rule| Some(format!("from[{rule}].source.namespaces: shop is none of these"));
        let rule = |rule| RuleVerdict { rule, missed: missed(rule).filter(|_| Some(rule) != matched) };
        PolicyVerdict {
            policy: PolicyName::new("shop", "web"),
            scope: "namespace".to_owned(),
            action,
            dry_run: false,
            concerned: true,
            matched,
            rules: vec![rule(0), rule(1)],
        }
    }

    fn report() -> ExplainReport {
        let backend = ExplainBackend {
            address: Some(([10, 0, 0, 1], 80).into()),
            share_ppm: 900_000,
            workload: Some("shop/web-1".to_owned()),
            state: Some(EndpointState::Ready),
            ..ExplainBackend::default()
        };
        let path = ExplainPath {
            backend: backend.clone(),
            mode: Some(Mode::Strict),
            mode_by: Some("shop/strict".to_owned()),
            transport: Transport::Hbone,
            allowed: true,
            reason: "allowed by shop/web rules[1]".to_owned(),
            dry_run: Some("no ALLOW policy matches".to_owned()),
            policies: vec![policy(PolicyAction::Allow, Some(1)), policy(PolicyAction::Deny, None)],
            ..ExplainPath::default()
        };
        let nowhere = ExplainPath {
            backend: ExplainBackend { share_ppm: 100_000, ..ExplainBackend::default() },
            transport: Transport::None,
            reason: "its target has no endpoint".to_owned(),
            ..ExplainPath::default()
        };
        ExplainReport {
            client: "pod shop/a".to_owned(),
            asked: "10.96.0.1:80 TCP".to_owned(),
            outcome: Outcome::Differs,
            because: "1 of 2 endpoints let it through".to_owned(),
            basis: Basis::Snapshot,
            verdict: Verdict::Captured,
            reason: "the agent carries it".to_owned(),
            steps: vec![ExplainStep { what: "agent".to_owned(), found: "alive".to_owned() }],
            backends: vec![backend],
            differences: vec!["in the kernel and not in the snapshot: 10.0.0.1:80".to_owned()],
            source: Some(ExplainSource {
                workload: Some("shop/a".to_owned()),
                enrolled: true,
                identity: Some("spiffe://cluster.local/ns/shop/sa/a".to_owned()),
                ..ExplainSource::default()
            }),
            route: Some(ExplainRoute {
                service: "shop/web".to_owned(),
                port: 80,
                rule: Some("shop/split".to_owned()),
                targets: vec![TargetReport {
                    service: "shop/web".to_owned(),
                    weight: 90,
                    ..TargetReport::default()
                }],
                matches: vec!["client with app=front".to_owned()],
                actions: vec!["given up after 1s".to_owned()],
                before: [Some(false), None]
                    .map(|holds| RuleReport {
                        rule: Some("shop/other".to_owned()),
                        matches: vec!["server name a.com".to_owned()],
                        holds,
                        ..RuleReport::default()
                    })
                    .to_vec(),
                ..ExplainRoute::default()
            }),
            paths: vec![path.clone(), path, nowhere],
            more_paths: 7,
            problems: vec!["a.yaml:1: no object".to_owned()],
            notices: vec!["warning: AuthorizationPolicy shop/web: ignored".to_owned()],
            more_notices: 0,
        }
    }

    #[test]
    fn an_explanation_is_read_from_top_to_bottom() {
        let text = explain(&report(), VIEW);
        let head = "pod shop/a to 10.96.0.1:80 TCP: differs by endpoint (1 of 2 endpoints let it through)\n\
                    Kernel   captured, as the snapshot says (the agent carries it)\n  agent         alive\n\
                    Source   shop/a, enrolled, spiffe://cluster.local/ns/shop/sa/a\n\
                    Route    shop/web port 80, by shop/split\n  for client with app=front\n  \
                    weight 90: shop/web, 0 endpoints\n  given up after 1s\n  \
                    before it, does not hold: shop/other, for server name a.com\n  \
                    before it, may hold: give the server name (--sni): shop/other, for server name a.com\n\n\
                    ENDPOINT";
        assert!(text.starts_with(head), "{text}");
        for part in [
            "10.0.0.1:80              90.00%   ready   shop/web-1   STRICT by shop/strict   HBONE   allowed   allowed by \
             shop/web rules[1]; dry run: no ALLOW policy matches\n",
            "(refused: no endpoint)   10.00%   -       -            -                       -       refused   its target has",
            "(7 more endpoints, counted and not shown)\n",
            "\nPolicies at shop/web-1, shop/web-1:\n",
            "shop/web   namespace   ALLOW    yes       rules[1] matches\n",
            "shop/web   namespace   DENY     nothing   rules[0] does not match, from[0]",
            "\nThe kernel does not hold what the snapshot says:\n  in the kernel and not",
            "\nNot read, and left out:\n  a.yaml:1: no object\n",
            "\nNotices:\n  warning: AuthorizationPolicy shop/web: ignored\n",
        ] {
            assert!(text.contains(part), "{part:?} not in\n{text}");
        }
        assert!(!text.contains("BACKEND"), "{text}");
        let wide = explain(&report(), View { wide: true, ..VIEW });
        assert!(wide.contains("BACKEND") && wide.contains("IDENTITY"), "{wide}");
    }
}
