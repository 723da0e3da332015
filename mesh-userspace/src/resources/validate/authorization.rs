//! What must hold of an `AuthorizationPolicy`: what Istio's own validation refuses (istio,
//! `pkg/config/validation`, `ValidateAuthorizationPolicy`), and what would be mistaken for "anything".

use super::{Mistaken, check_name};
use crate::resources::authorization::{AuthorizationPolicy, LAYER_4_KEYS, Operation, Rule, Source, When};
use crate::resources::istio::Rest;
use crate::resources::translate::authorization::{ip_block, port};

/// Everything that is wrong with the policy.
pub(super) fn check_authorization_policy(wrong: &mut Mistaken, policy: &AuthorizationPolicy, own: &str) {
    let spec = &policy.spec;
    // What narrows a policy must not be lost: kubectl and the API server refuse such fields, too.
    check_top_level(wrong, &policy.rest);
    check_known(wrong, "spec", &spec.rest);
    if let Some(selector) = &spec.selector {
        check_known(wrong, "spec.selector", &selector.rest);
    }
    for (field, target) in spec.targets() {
        check_known(wrong, &field, &target.rest);
    }
    if spec.selector().is_some() && spec.targets().next().is_some() {
        let reason = "selector and targetRefs exclude each other".to_owned();
        wrong.push(("spec.selector".to_owned(), reason));
    }
    for (field, target) in spec.targets() {
        if target.kind.is_empty() {
            wrong.push((format!("{field}.kind"), "missing".to_owned()));
        }
        check_name(wrong, &format!("{field}.name"), &target.name);
        if !target.namespace.is_empty() && target.namespace != own {
            let reason = format!("{:?} is another namespace than the policy's", target.namespace);
            wrong.push((format!("{field}.namespace"), reason));
        }
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        check_rule(wrong, &format!("spec.rules[{index}]"), rule);
    }
}

/// Fields beside `metadata` and `spec` that no object has.
pub(super) fn check_top_level(wrong: &mut Mistaken, rest: &Rest) {
    for name in rest.keys().filter(|name| !matches!(name.as_str(), "apiVersion" | "kind" | "status")) {
        wrong.push((name.clone(), "unknown field: what it asks for would be lost".to_owned()));
    }
}

/// Fields that the API has not.
pub(super) fn check_known(wrong: &mut Mistaken, at: &str, rest: &Rest) {
    for name in rest.keys() {
        wrong.push((format!("{at}.{name}"), "unknown field: what it asks for would be lost".to_owned()));
    }
}

fn check_rule(wrong: &mut Mistaken, at: &str, rule: &Rule) {
    let empty = |field: String| (field, "empty: leave it out where anything is meant".to_owned());
    if rule.from.as_ref().is_some_and(Vec::is_empty) {
        wrong.push(empty(format!("{at}.from")));
    }
    for (index, from) in rule.from.iter().flatten().enumerate() {
        let at = format!("{at}.from[{index}].source");
        if from.source.is_empty() && from.rest.is_empty() {
            wrong.push(empty(at.clone()));
        }
        check_source(wrong, &at, &from.source);
    }
    if rule.to.as_ref().is_some_and(Vec::is_empty) {
        wrong.push(empty(format!("{at}.to")));
    }
    for (index, to) in rule.to.iter().flatten().enumerate() {
        let at = format!("{at}.to[{index}].operation");
        if to.operation.is_empty() && to.rest.is_empty() {
            wrong.push(empty(at.clone()));
        }
        let Operation { ports, not_ports, .. } = &to.operation;
        check_list(wrong, &format!("{at}.ports"), ports, Check::Port);
        check_list(wrong, &format!("{at}.notPorts"), not_ports, Check::Port);
    }
    for (index, when) in rule.when.iter().enumerate() {
        check_when(wrong, &format!("{at}.when[{index}]"), when);
    }
}

fn check_source(wrong: &mut Mistaken, at: &str, source: &Source) {
    let mut account = None;
    for (name, list) in source.lists() {
        let check = match name {
            "serviceAccounts" | "notServiceAccounts" => Check::ServiceAccount,
            "principals" | "notPrincipals" | "namespaces" | "notNamespaces" => Check::Text,
            _ => Check::Block,
        };
        if check == Check::ServiceAccount && !list.is_empty() {
            account = account.or(Some(name));
        }
        check_list(wrong, &format!("{at}.{name}"), list, check);
    }
    // API, `Source.serviceAccounts`: "Cannot be set with `principals` or `namespaces`"; their not-fields count.
    let names = ["principals", "notPrincipals", "namespaces", "notNamespaces"];
    let beside = source.lists().into_iter().find(|(name, list)| names.contains(name) && !list.is_empty());
    if let (Some(account), Some((name, _))) = (account, beside) {
        wrong.push((format!("{at}.{account}"), format!("cannot be set together with {name}")));
    }
}

fn check_when(wrong: &mut Mistaken, at: &str, when: &When) {
    if when.key.is_empty() {
        wrong.push((format!("{at}.key"), "missing".to_owned()));
    }
    if when.values.is_empty() && when.not_values.is_empty() {
        wrong.push((at.to_owned(), "neither values nor notValues".to_owned()));
    }
    let check = match when.key.as_str() {
        "source.ip" | "remote.ip" | "destination.ip" => Check::Block,
        "destination.port" => Check::Port,
        "source.serviceAccount" => Check::ServiceAccount,
        key if LAYER_4_KEYS.contains(&key) => Check::Text,
        _ => return,
    };
    check_list(wrong, &format!("{at}.values"), &when.values, check);
    check_list(wrong, &format!("{at}.notValues"), &when.not_values, check);
}

/// What a text must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Text,
    ServiceAccount,
    Block,
    Port,
}

fn check_list(wrong: &mut Mistaken, at: &str, list: &[String], check: Check) {
    for (index, text) in list.iter().enumerate() {
        let reason = match check {
            Check::Text => text.is_empty().then(|| "empty".to_owned()),
            Check::ServiceAccount => (!is_service_account(text)).then(|| {
                format!("{text:?} is neither NAMESPACE/NAME nor NAME; wildcards are not allowed here")
            }),
            Check::Block => ip_block(text)
                .is_none()
                .then(|| format!("{text:?} is neither an IP address nor a block such as 10.0.0.0/8")),
            Check::Port => {
                port(text).is_none().then(|| format!("{text:?} is no port, those are \"1\" to \"65535\""))
            }
        };
        if let Some(reason) = reason {
            wrong.push((format!("{at}[{index}]"), reason));
        }
    }
}

fn is_service_account(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|part| !part.is_empty()) && !text.contains('*')
}

#[cfg(test)]
mod tests {
    use crate::resources::decode;

    #[test]
    fn mistakes_name_the_field() {
        let source = |fields: &str| format!("{{rules: [{{from: [{{source: {fields}}}]}}]}}");
        let cases: Vec<(String, &str)> = vec![
            ("{action: ALOW}".into(), "spec.action"),
            ("{selecter: {matchLabels: {a: b}}}".into(), "spec.selecter"),
            ("{selector: {matchExpressions: []}}".into(), "spec.selector.matchExpressions"),
            ("{targetRefs: [{kind: Service, name: a, port: 80}]}".into(), "spec.targetRefs[0].port"),
            (
                "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a}]}".into(),
                "spec.selector",
            ),
            ("{targetRefs: [{name: a}]}".into(), "spec.targetRefs[0].kind"),
            ("{targetRefs: [{kind: Service}]}".into(), "spec.targetRefs[0].name"),
            ("{targetRef: {kind: Service, name: a, namespace: b}}".into(), "spec.targetRef.namespace"),
            ("{rules: [{from: []}]}".into(), "spec.rules[0].from"),
            ("{rules: [{to: []}]}".into(), "spec.rules[0].to"),
            (source("{}"), "spec.rules[0].from[0].source"),
            (source("{principals: [], requestPrincipals: []}"), "spec.rules[0].from[0].source"),
            (source("{principals: ['']}"), "spec.rules[0].from[0].source.principals[0]"),
            (source("{notNamespaces: [a, '']}"), "spec.rules[0].from[0].source.notNamespaces[1]"),
            (source("{ipBlocks: [10.0.0.0/33]}"), "spec.rules[0].from[0].source.ipBlocks[0]"),
            (source("{notIpBlocks: ['*']}"), "spec.rules[0].from[0].source.notIpBlocks[0]"),
            (source("{remoteIpBlocks: [a]}"), "spec.rules[0].from[0].source.remoteIpBlocks[0]"),
            (source("{notRemoteIpBlocks: [a]}"), "spec.rules[0].from[0].source.notRemoteIpBlocks[0]"),
            (source("{serviceAccounts: [a*]}"), "spec.rules[0].from[0].source.serviceAccounts[0]"),
            (source("{notServiceAccounts: [a/b/c]}"), "spec.rules[0].from[0].source.notServiceAccounts[0]"),
            (
                source("{serviceAccounts: [a], namespaces: [b]}"),
                "spec.rules[0].from[0].source.serviceAccounts",
            ),
            (
                source("{notServiceAccounts: [a], notPrincipals: [b]}"),
                "spec.rules[0].from[0].source.notServiceAccounts",
            ),
            ("{rules: [{to: [{operation: {}}]}]}".into(), "spec.rules[0].to[0].operation"),
            (
                "{rules: [{to: [{operation: {ports: ['0']}}]}]}".into(),
                "spec.rules[0].to[0].operation.ports[0]",
            ),
            (
                "{rules: [{to: [{operation: {ports: [80]}}]}]}".into(),
                "spec.rules[0].to[0].operation.ports[0]",
            ),
            (
                "{rules: [{to: [{operation: {notPorts: [http]}}]}]}".into(),
                "spec.rules[0].to[0].operation.notPorts[0]",
            ),
            ("{rules: [{when: [{values: [a]}]}]}".into(), "spec.rules[0].when[0].key"),
            ("{rules: [{when: [{key: source.ip}]}]}".into(), "spec.rules[0].when[0]"),
            (
                "{rules: [{when: [{key: source.ip, notValues: [a]}]}]}".into(),
                "spec.rules[0].when[0].notValues[0]",
            ),
            (
                "{rules: [{when: [{key: destination.port, values: ['70000']}]}]}".into(),
                "spec.rules[0].when[0].values[0]",
            ),
            (
                "{rules: [{when: [{key: source.serviceAccount, values: ['*']}]}]}".into(),
                "spec.rules[0].when[0].values[0]",
            ),
        ];
        for (spec, field) in cases {
            let text = format!(
                "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: shop}}\nspec: {spec}\n"
            );
            let decoded = decode(&text);
            let fields: Vec<&str> = decoded.mistakes.iter().map(|mistake| mistake.field.as_str()).collect();
            assert_eq!(fields, [field], "{spec}: {decoded:?}");
            assert_eq!(
                decoded.mistakes[0].object.as_ref().map(ToString::to_string).as_deref(),
                Some("AuthorizationPolicy shop/a")
            );
        }
    }
}
