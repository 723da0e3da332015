//! What of an `AuthorizationPolicy` layer 4 cannot tell, and what its author may not expect of it.

use super::Notices;
use crate::model::PolicyAction;
use crate::resources::Code;
use crate::resources::authorization::{AuthorizationPolicy, DRY_RUN, Rule, Source};
use crate::resources::translate::authorization::is_dry_run;

/// Fields of a source or an operation that layer 7 has, and attributes that other proxies tell.
const LAYER_7: [&str; 10] = [
    "requestPrincipals",
    "notRequestPrincipals",
    "trustDomains",
    "notTrustDomains",
    "hosts",
    "notHosts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
];

/// What keys of `when` begin with that Istio knows and a connection does not tell
/// (<https://istio.io/latest/docs/reference/config/security/conditions>).
const KNOWN_KEYS: [&str; 5] =
    ["request.", "connection.sni", "experimental.envoy.filters.", "source.trustDomain", "source.user"];

/// Everything to be said about the policy.
pub(super) fn authorization_policy(notices: &mut Notices, policy: &AuthorizationPolicy) {
    let spec = &policy.spec;
    if is_dry_run(policy).is_none() {
        let message = "neither true nor false: the policy is in force, it is no dry run";
        notices.add(Code::DryRunUnclear, format!("metadata.annotations[{DRY_RUN}]"), message);
    }
    action(notices, policy);
    targets(notices, policy);
    for (index, one) in spec.rules.iter().enumerate() {
        rule(notices, &format!("spec.rules[{index}]"), one, spec.action);
    }
    redundant(notices, &spec.rules);
}

/// Rules beside one that matches everything.
fn redundant(notices: &mut Notices, rules: &[Rule]) {
    let is_everything = |rule: &Rule| {
        rule.from.is_none() && rule.to.is_none() && rule.when.is_empty() && rule.beyond().next().is_none()
    };
    let Some(everything) = rules.iter().position(is_everything) else { return };
    for (index, _) in rules.iter().enumerate().filter(|(index, _)| *index != everything) {
        let message = format!("adds nothing: spec.rules[{everything}] matches every connection already");
        notices.add(Code::RuleRedundant, format!("spec.rules[{index}]"), message);
    }
}

fn action(notices: &mut Notices, policy: &AuthorizationPolicy) {
    let spec = &policy.spec;
    match spec.action {
        PolicyAction::Custom => {
            let message = "not supported; what it matches is refused because there is no authorizer to ask";
            notices.add(Code::CustomAction, "spec.action", message);
        }
        _ if spec.provider.is_some() => {
            let message = "ignored: only a CUSTOM policy has a provider";
            notices.add(Code::ProviderIgnored, "spec.provider", message);
        }
        PolicyAction::Deny | PolicyAction::Audit if spec.rules.is_empty() => {
            let message = "there are none: the policy never matches";
            notices.add(Code::NeverMatches, "spec.rules", message);
        }
        _ => {}
    }
}

fn targets(notices: &mut Notices, policy: &AuthorizationPolicy) {
    for (field, target) in policy.spec.targets() {
        if !target.is_service() {
            let message = format!(
                "{} {} is not honoured: at layer 4 a policy is bound to a Service, or by selector; it is not in force there",
                target.kind, target.name
            );
            notices.add(Code::TargetNotHonoured, field, message);
        }
    }
}

fn rule(notices: &mut Notices, at: &str, rule: &Rule, action: PolicyAction) {
    let outcome = match action {
        PolicyAction::Allow => "the rule matches nothing, so it allows nothing",
        PolicyAction::Deny | PolicyAction::Custom => "it is left out, so the rule denies more",
        PolicyAction::Audit => "it is left out, so the rule marks more",
    };
    for field in rule.beyond() {
        let last = field.rsplit('.').next().unwrap_or_default();
        let key = when_key(rule, &field);
        let (code, what) = match key {
            Some(key) if KNOWN_KEYS.iter().any(|known| key.starts_with(known)) => {
                (Code::Layer7Rule, format!("{key} cannot be told at layer 4"))
            }
            Some(key) => (Code::UnknownAttribute, format!("{key} is no attribute that is known")),
            None if LAYER_7.contains(&last) => (Code::Layer7Rule, "cannot be told at layer 4".to_owned()),
            None => (Code::UnknownAttribute, "unknown field".to_owned()),
        };
        notices.add(code, format!("{at}.{field}"), format!("{what}: {outcome}"));
    }
    for (index, from) in rule.from.iter().flatten().enumerate() {
        source(notices, &format!("{at}.from[{index}].source"), &from.source, action);
    }
    for (index, when) in rule.when.iter().enumerate() {
        for (name, list) in [("values", &when.values), ("notValues", &when.not_values)] {
            let at = format!("{at}.when[{index}].{name}");
            match when.key.as_str() {
                "source.principal" => principals(notices, &at, list),
                "source.namespace" => wildcards(notices, &at, list),
                _ => {}
            }
        }
    }
}

/// The key of the condition that the path is of.
fn when_key<'r>(rule: &'r Rule, field: &str) -> Option<&'r str> {
    let index = field.strip_prefix("when[")?.strip_suffix("].key")?;
    Some(&rule.when.get(index.parse::<usize>().ok()?)?.key)
}

fn source(notices: &mut Notices, at: &str, source: &Source, action: PolicyAction) {
    principals(notices, &format!("{at}.principals"), &source.principals);
    principals(notices, &format!("{at}.notPrincipals"), &source.not_principals);
    for (name, list) in [("namespaces", &source.namespaces), ("notNamespaces", &source.not_namespaces)] {
        wildcards(notices, &format!("{at}.{name}"), list);
    }
    let asks = |negative: bool| {
        let mut lists =
            source.lists().into_iter().filter(move |(name, _)| name.starts_with("not") == negative);
        lists.any(|(name, list)| !name.ends_with("pBlocks") && !list.is_empty())
    };
    if action == PolicyAction::Allow && asks(true) && !asks(false) {
        let message =
            "clients without an identity (plaintext) pass it as well: they have none of those excluded";
        notices.add(Code::PlaintextPasses, at, message);
    }
}

fn principals(notices: &mut Notices, at: &str, list: &[String]) {
    for (index, _) in list.iter().enumerate().filter(|(_, text)| text.starts_with("spiffe://")) {
        let message = "matches nothing: principals are written without spiffe://";
        notices.add(Code::PrincipalForm, format!("{at}[{index}]"), message);
    }
    wildcards(notices, at, list);
}

fn wildcards(notices: &mut Notices, at: &str, list: &[String]) {
    let has_inner = |text: &String| {
        let rest = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
        rest.contains('*')
    };
    for (index, _) in list.iter().enumerate().filter(|(_, text)| has_inner(text)) {
        let message = "matches nothing: a * is a wildcard in one place only, at the beginning or at the end";
        notices.add(Code::WildcardInside, format!("{at}[{index}]"), message);
    }
}

#[cfg(test)]
mod tests {
    use crate::resources::lint::lint;
    use crate::resources::{Code, Severity, decode};

    #[test]
    fn what_is_said_about_policies() {
        use Severity::{Error, Warning};
        let cases: Vec<(&str, &str, Vec<(Severity, &str, &str)>)> = vec![
            ("nothing to say", "{}", vec![]),
            (
                "all of layer 4",
                "{rules: [{from: [{source: {principals: [a*], notNamespaces: [b], ipBlocks: [10.0.0.1], remoteIpBlocks: [10.0.0.0/8]}}], to: [{operation: {ports: ['80']}}], when: [{key: remote.ip, values: [10.0.0.1]}, {key: source.serviceAccount, values: [a/b]}]}]}",
                vec![],
            ),
            (
                "layer 7 in an ALLOW",
                "{rules: [{from: [{source: {requestPrincipals: ['*']}}], to: [{operation: {hosts: [a], notPaths: [/b]}}], when: [{key: 'request.headers[a]', values: [b]}]}]}",
                vec![
                    (Warning, "spec.rules[0].from[0].source.requestPrincipals", "allows nothing"),
                    (Warning, "spec.rules[0].to[0].operation.hosts", "allows nothing"),
                    (Warning, "spec.rules[0].to[0].operation.notPaths", "allows nothing"),
                    (Warning, "spec.rules[0].when[0].key", "request.headers[a] cannot be told"),
                ],
            ),
            (
                "layer 7 in a DENY",
                "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}",
                vec![(Warning, "spec.rules[0].to[0].operation.methods", "denies more")],
            ),
            ("layer 7 that is empty", "{rules: [{to: [{operation: {methods: [], ports: ['80']}}]}]}", vec![]),
            (
                "typing mistakes",
                "{rules: [{form: [], from: [{source: {principal: [a]}}]}, {when: [{key: source.pi, values: [a]}]}]}",
                vec![
                    (
                        Warning,
                        "spec.rules[0].from[0].source.principal",
                        "unknown field: the rule matches nothing",
                    ),
                    (Warning, "spec.rules[1].when[0].key", "source.pi is no attribute"),
                ],
            ),
            (
                "CUSTOM",
                "{action: CUSTOM, provider: {name: a}, rules: [{}]}",
                vec![(
                    Error,
                    "spec.action",
                    "not supported; what it matches is refused because there is no authorizer to ask",
                )],
            ),
            ("a provider of nobody", "{provider: {name: a}}", vec![(Warning, "spec.provider", "CUSTOM")]),
            ("DENY nothing", "{action: DENY}", vec![(Warning, "spec.rules", "never matches")]),
            (
                "a gateway",
                "{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: a}, {kind: Service, group: '', name: b}]}",
                vec![(Error, "spec.targetRefs[0]", "not in force there")],
            ),
            (
                "excluded alone",
                "{rules: [{from: [{source: {notPrincipals: [a]}}, {source: {notNamespaces: [a], principals: ['*']}}]}]}",
                vec![(Warning, "spec.rules[0].from[0].source", "plaintext")],
            ),
            (
                "principals that nobody has",
                "{rules: [{from: [{source: {principals: ['spiffe://a/ns/b/sa/c', '*b*', a*b]}}]}]}",
                vec![
                    (Error, "spec.rules[0].from[0].source.principals[0]", "without spiffe://"),
                    (Error, "spec.rules[0].from[0].source.principals[1]", "one place only"),
                    (Error, "spec.rules[0].from[0].source.principals[2]", "one place only"),
                ],
            ),
        ];
        for (name, spec, wanted) in cases {
            let text = format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\nspec: {spec}\n"
            );
            let decoded = decode(&text);
            assert!(decoded.mistakes.is_empty(), "{name}: {decoded:?}");
            let notices = lint(&decoded.objects[0].object, "istio-system");
            assert_eq!(notices.len(), wanted.len(), "{name}: {notices:?}");
            for (notice, (severity, field, message)) in notices.iter().zip(wanted) {
                assert_eq!((notice.severity(), notice.field.as_str()), (severity, field), "{name}");
                assert!(notice.message.contains(message), "{name}: {notice}");
            }
        }
    }

    #[test]
    fn a_dry_run_that_is_none() {
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, annotations: {istio.io/dry-run: maybe}}\n";
        let notices = lint(&decode(text).objects[0].object, "istio-system");
        assert_eq!((notices.len(), notices[0].code), (1, Code::DryRunUnclear));
    }
}
