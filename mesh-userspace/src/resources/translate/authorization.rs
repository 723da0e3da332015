//! An `AuthorizationPolicy` as layer 4 has it.
//!
//! Trust domains are migrated as Istio does (istio, `pilot/pkg/security/trustdomain`, `ReplaceTrustDomainAliases`): a
//! principal of five segments whose trust domain is the mesh's, an alias of it or `cluster.local` stands for the same
//! principal in the mesh's trust domain and in every alias. Other principals stay as they are written.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use crate::model::{
    AuthorizationPolicy, Clause, Condition, MeshConfig, PolicyAction, PolicyName, PolicyRule, PolicyScope,
    ServiceAccountName, TextMatch, Values,
};
use crate::resources::ObjectRef;
use crate::resources::authorization::{self as written, DRY_RUN};

/// Stands for the mesh's trust domain whatever that is (istio, `constants.DefaultClusterLocalDomain`).
const CLUSTER_LOCAL: &str = "cluster.local";

/// A policy that has been checked.
pub(in crate::resources) fn authorization_policy(
    policy: &written::AuthorizationPolicy,
    reference: &ObjectRef,
    mesh: &MeshConfig,
) -> AuthorizationPolicy {
    let spec = &policy.spec;
    let rules = spec.rules.iter().map(|one| rule(one, spec.action, &reference.namespace, mesh));
    AuthorizationPolicy {
        name: PolicyName::new(&*reference.namespace, &*reference.name),
        action: spec.action,
        dry_run: is_dry_run(policy).unwrap_or_default(),
        scope: scope(spec, reference.namespace == mesh.root_namespace),
        rules: rules.collect(),
    }
}

/// Whether the annotation says that it is a dry run, in the words of Go's `strconv.ParseBool`; `None`: it says neither.
pub(in crate::resources) fn is_dry_run(policy: &written::AuthorizationPolicy) -> Option<bool> {
    let annotations = policy.metadata.annotations.as_ref();
    match annotations.and_then(|all| all.get(DRY_RUN)).map(String::as_str) {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Some(true),
        None | Some("" | "0" | "f" | "F" | "false" | "FALSE" | "False") => Some(false),
        Some(_) => None,
    }
}

fn scope(spec: &written::AuthorizationPolicySpec, everywhere: bool) -> PolicyScope {
    if spec.targets().next().is_some() {
        let services = spec.targets().filter(|(_, target)| target.is_service());
        let mut names: Vec<_> = services.map(|(_, target)| target.name.as_str().into()).collect();
        names.sort_unstable();
        names.dedup();
        return PolicyScope::Services(names.into());
    }
    match spec.selector() {
        Some(selector) => PolicyScope::Selector { labels: selector.match_labels.clone(), everywhere },
        None if everywhere => PolicyScope::Mesh,
        None => PolicyScope::Namespace,
    }
}

fn rule(rule: &written::Rule, action: PolicyAction, namespace: &str, mesh: &MeshConfig) -> PolicyRule {
    let beyond = rule.beyond().next().filter(|_| action == PolicyAction::Allow);
    let from = rule.from.iter().flatten().map(|from| source(&from.source, namespace, mesh));
    let to = rule.to.iter().flatten().map(|to| operation(&to.operation));
    PolicyRule {
        beyond: beyond.map(Into::into),
        from: from.collect(),
        to: to.collect(),
        when: rule.when.iter().filter_map(|when| condition(when, namespace, mesh)).collect(),
    }
}

fn source(source: &written::Source, namespace: &str, mesh: &MeshConfig) -> Clause {
    let account = |text: &str| [service_account(text, namespace)];
    let principal = |text: &str| principals(text, mesh);
    let conditions = [
        values(&source.principals, &source.not_principals, principal).map(Condition::Principal),
        values(&source.namespaces, &source.not_namespaces, one_text).map(Condition::Namespace),
        values(&source.service_accounts, &source.not_service_accounts, account)
            .map(Condition::ServiceAccount),
        values(&source.ip_blocks, &source.not_ip_blocks, ip_block).map(Condition::SourceIp),
        values(&source.remote_ip_blocks, &source.not_remote_ip_blocks, ip_block).map(Condition::RemoteIp),
    ];
    conditions.into_iter().flatten().collect()
}

fn operation(operation: &written::Operation) -> Clause {
    let ports = values(&operation.ports, &operation.not_ports, port);
    ports.map(Condition::DestinationPort).into_iter().collect()
}

/// `None` for a key that a connection does not tell.
fn condition(when: &written::When, namespace: &str, mesh: &MeshConfig) -> Option<Condition> {
    let (any, none) = (&when.values, &when.not_values);
    match when.key.as_str() {
        "source.ip" => values(any, none, ip_block).map(Condition::SourceIp),
        "remote.ip" => values(any, none, ip_block).map(Condition::RemoteIp),
        "source.namespace" => values(any, none, one_text).map(Condition::Namespace),
        "source.principal" => values(any, none, |text| principals(text, mesh)).map(Condition::Principal),
        "source.serviceAccount" => {
            values(any, none, |text| [service_account(text, namespace)]).map(Condition::ServiceAccount)
        }
        "destination.ip" => values(any, none, ip_block).map(Condition::DestinationIp),
        "destination.port" => values(any, none, port).map(Condition::DestinationPort),
        _ => None,
    }
}

/// `None` where nothing is said of the attribute.
fn values<T, I: IntoIterator<Item = T>>(
    any_of: &[String],
    none_of: &[String],
    parse: impl Fn(&str) -> I,
) -> Option<Values<T>> {
    let all = |texts: &[String]| texts.iter().flat_map(|text| parse(text)).collect();
    (!any_of.is_empty() || !none_of.is_empty()).then(|| Values { any_of: all(any_of), none_of: all(none_of) })
}

fn one_text(text: &str) -> [TextMatch; 1] {
    [TextMatch::parse(text)]
}

/// A principal in every trust domain that it stands for.
fn principals(text: &str, mesh: &MeshConfig) -> Vec<TextMatch> {
    let as_written = || vec![TextMatch::parse(text)];
    let Some((domain, path)) = text.split_once('/').filter(|(_, path)| path.split('/').count() == 4) else {
        return as_written();
    };
    // With a wildcard for a whole trust domain none is asked for.
    if domain == "*" {
        return as_written();
    }
    let pattern = TextMatch::parse(domain);
    let domains = || std::iter::once(&mesh.trust_domain).chain(&*mesh.trust_domain_aliases);
    if domain != CLUSTER_LOCAL && !domains().any(|own| pattern.matches(own.as_str())) {
        return as_written();
    }
    let mut all = Vec::new();
    for own in domains() {
        let principal = match &pattern {
            TextMatch::Suffix(_) if pattern.matches(own.as_str()) => TextMatch::parse(text),
            _ => TextMatch::parse(&format!("{own}/{path}")),
        };
        if !all.contains(&principal) {
            all.push(principal);
        }
    }
    all
}

/// `NAMESPACE/NAME`, or `NAME` in the policy's own namespace.
fn service_account(text: &str, namespace: &str) -> ServiceAccountName {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    ServiceAccountName { namespace: namespace.into(), name: name.into() }
}

/// An address or a CIDR block; one of IPv4-mapped addresses as one of IPv4.
pub(in crate::resources) fn ip_block(text: &str) -> Option<IpNet> {
    let block = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().ok()?,
    };
    let mapped = match block {
        IpNet::V6(block) if block.prefix_len() >= 96 => block.addr().to_ipv4_mapped().map(|v4| (v4, block)),
        _ => None,
    };
    let block = mapped
        .and_then(|(address, block)| Ipv4Net::new(address, block.prefix_len() - 96).ok())
        .map_or(block, IpNet::V4);
    Some(block.trunc())
}

/// A port that is one: digits alone, 1 to 65535.
pub(in crate::resources) fn port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&port| port != 0 && is_number)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::TrustDomain;

    fn mesh(own: &str, aliases: &[&str]) -> MeshConfig {
        let aliases: Arc<[TrustDomain]> =
            aliases.iter().map(|alias| TrustDomain::new(alias).unwrap()).collect();
        MeshConfig {
            trust_domain: TrustDomain::new(own).unwrap(),
            trust_domain_aliases: aliases,
            ..MeshConfig::default()
        }
    }

    /// istio, `pilot/pkg/security/trustdomain/bundle_test.go`, told anew.
    #[test]
    fn trust_domains_are_migrated() {
        let cases: Vec<(&str, &str, Vec<&str>, Vec<&str>)> = vec![
            ("td/ns/a/sa/b", "td", vec![], vec!["td/ns/a/sa/b"]),
            ("td/ns/a/sa/b", "td", vec!["old"], vec!["td/ns/a/sa/b", "old/ns/a/sa/b"]),
            ("old/ns/a/sa/b", "td", vec!["old"], vec!["td/ns/a/sa/b", "old/ns/a/sa/b"]),
            ("cluster.local/ns/a/sa/b", "td", vec!["old"], vec!["td/ns/a/sa/b", "old/ns/a/sa/b"]),
            ("other/ns/a/sa/b", "td", vec!["old"], vec!["other/ns/a/sa/b"]),
            ("*/ns/a/sa/b", "td", vec!["old"], vec!["*/ns/a/sa/b"]),
            ("*-td/ns/a/sa/b", "my-td", vec!["x", "old-td"], vec!["*-td/ns/a/sa/b", "x/ns/a/sa/b"]),
            ("td/ns/a/sa/*", "td", vec!["old"], vec!["td/ns/a/sa/*", "old/ns/a/sa/*"]),
            ("td/ns/*", "td", vec!["old"], vec!["td/ns/*"]),
            ("sa/b", "td", vec!["old"], vec!["sa/b"]),
            ("*", "td", vec!["old"], vec!["*"]),
        ];
        for (text, own, aliases, wanted) in cases {
            let wanted: Vec<_> = wanted.into_iter().map(TextMatch::parse).collect();
            assert_eq!(principals(text, &mesh(own, &aliases)), wanted, "{text} {own} {aliases:?}");
        }
    }

    #[test]
    fn blocks_and_ports() {
        let cases = [
            ("10.0.0.1", Some("10.0.0.1/32")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("fd00::1", Some("fd00::1/128")),
            ("::ffff:10.0.0.1", Some("10.0.0.1/32")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::/0", Some("::/0")),
            ("10.0.0.0/33", None),
            ("10.0.0", None),
            ("*", None),
            ("", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(ip_block(text).map(|block| block.to_string()).as_deref(), wanted, "{text}");
        }
        let ports = [("80", Some(80)), ("65535", Some(65535)), ("0", None), ("65536", None), ("+80", None)];
        for (text, wanted) in ports {
            assert_eq!(port(text), wanted, "{text}");
        }
    }
}
