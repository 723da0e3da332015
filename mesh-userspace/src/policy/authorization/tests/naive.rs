//! The decision as the API's text reads, over the model: every policy of the cluster is walked, every identity is compared
//! as text. It shares nothing with the guard but the types.

use std::net::{IpAddr, SocketAddr};

use super::{Connection, Decision, PolicyRef, Refusal, Verdict};
use crate::model::{
    AuthorizationPolicy, Clause, Condition, Mode, PolicyAction, PolicyScope, Protocol, ServiceName, Snapshot,
    TextMatch, Values, Workload,
};

pub(super) fn decide(snapshot: &Snapshot, workload: &Workload, connection: &Connection<'_>) -> Decision {
    let mode = workload.mtls.ports.get(&connection.destination.port()).unwrap_or(&workload.mtls.default);
    if *mode == Mode::Strict && connection.source.is_none() {
        return Decision { verdict: Verdict::Refused(Refusal::Plaintext), ..Decision::default() };
    }
    let mut all: Vec<&AuthorizationPolicy> = snapshot.policies.iter().map(|policy| &**policy).collect();
    all.retain(|policy| applies(policy, snapshot, workload, connection));
    all.sort_by_key(|policy| (policy.name.namespace.to_string(), policy.name.name.to_string()));
    let with = |action: PolicyAction, dry_run: bool| {
        all.iter().filter(move |policy| policy.action == action && policy.dry_run == dry_run)
    };
    let matching = |action: PolicyAction, dry_run: bool| {
        with(action, dry_run).find_map(|policy| matches(policy, connection))
    };
    let refused = |dry_run: bool| match matching(PolicyAction::Custom, dry_run) {
        Some(rule) => Some(Refusal::Custom { rule }),
        None => matching(PolicyAction::Deny, dry_run).map(|rule| Refusal::Denied { rule }),
    };
    let has_allow = |dry_run: bool| with(PolicyAction::Allow, dry_run).next().is_some();
    let verdict = match (refused(false), has_allow(false), matching(PolicyAction::Allow, false)) {
        (Some(refusal), _, _) => Verdict::Refused(refusal),
        (None, false, _) => Verdict::Unguarded,
        (None, true, Some(rule)) => Verdict::Allowed(rule),
        (None, true, None) => Verdict::Refused(Refusal::NotAllowed),
    };
    // With the dry runs in force besides the others.
    let any_allows = matching(PolicyAction::Allow, false).or(matching(PolicyAction::Allow, true)).is_some();
    let needs_one = has_allow(false) || has_allow(true);
    let dry_run = refused(true).or((needs_one && !any_allows).then_some(Refusal::NotAllowed));
    let audits = with(PolicyAction::Audit, false).chain(with(PolicyAction::Audit, true));
    let mut audited: Vec<PolicyRef> = audits.filter_map(|policy| matches(policy, connection)).collect();
    audited.sort();
    Decision { dry_run: dry_run.filter(|_| verdict.refusal().is_none()), verdict, audited }
}

fn applies(
    policy: &AuthorizationPolicy,
    snapshot: &Snapshot,
    workload: &Workload,
    connection: &Connection<'_>,
) -> bool {
    let own = policy.name.namespace == workload.namespace;
    match &policy.scope {
        PolicyScope::Mesh => true,
        PolicyScope::Namespace => own,
        PolicyScope::Selector { labels, everywhere } => {
            (own || *everywhere) && labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
        }
        PolicyScope::Services(names) => {
            let services = names.iter().filter_map(|name| {
                snapshot.services.get(&ServiceName::new(policy.name.namespace.to_string(), name.to_string()))
            });
            let mut ports = services.flat_map(|service| &service.ports);
            let at = |address: SocketAddr| (v6(address.ip()), address.port());
            own && ports.any(|port| {
                port.protocol == Protocol::Tcp
                    && port.listed.iter().any(|endpoint| {
                        at(endpoint.address) == at(connection.destination)
                            && (endpoint.workload.as_ref() == Some(&workload.uid)
                                || workload.addresses.contains(&endpoint.address.ip()))
                    })
            })
        }
    }
}

fn matches(policy: &AuthorizationPolicy, connection: &Connection<'_>) -> Option<PolicyRef> {
    let any = |clauses: &[Clause]| clauses.is_empty() || clauses.iter().any(|clause| all(clause, connection));
    let rule = policy.rules.iter().position(|rule| {
        rule.beyond.is_none() && any(&rule.from) && any(&rule.to) && all(&rule.when, connection)
    })?;
    Some(PolicyRef { policy: policy.name.clone(), rule })
}

fn all(clause: &Clause, connection: &Connection<'_>) -> bool {
    let source = connection.source;
    clause.iter().all(|condition| match condition {
        Condition::Principal(values) => {
            let own = source.map(|source| source.to_string().replacen("spiffe://", "", 1));
            text(values, own.as_deref())
        }
        Condition::Namespace(values) => text(values, source.map(|source| &*source.namespace)),
        Condition::ServiceAccount(values) => {
            let own = source.map(|source| format!("{}/{}", source.namespace, source.service_account));
            one(values, |wanted| own == Some(format!("{}/{}", wanted.namespace, wanted.name)))
        }
        Condition::SourceIp(values) | Condition::RemoteIp(values) => block(values, connection.client),
        Condition::DestinationIp(values) => block(values, connection.destination.ip()),
        Condition::DestinationPort(values) => one(values, |port| *port == connection.destination.port()),
    })
}

fn one<T>(values: &Values<T>, is: impl Fn(&T) -> bool) -> bool {
    let listed = values.any_of.iter().filter(|value| is(value)).count();
    let excluded = values.none_of.iter().filter(|value| is(value)).count();
    (values.any_of.is_empty() || listed > 0) && excluded == 0
}

fn text(values: &Values<TextMatch>, own: Option<&str>) -> bool {
    one(values, |pattern| match (pattern, own) {
        (_, None) => false,
        (TextMatch::Present, Some(_)) => true,
        (TextMatch::Exact(wanted), Some(own)) => own == &**wanted,
        (TextMatch::Prefix(wanted), Some(own)) => own.find(&**wanted) == Some(0),
        (TextMatch::Suffix(wanted), Some(own)) => {
            own.len() >= wanted.len() && own[own.len() - wanted.len()..] == **wanted
        }
    })
}

/// Bit by bit, an IPv4 address as the IPv4-mapped one.
fn block(values: &Values<ipnet::IpNet>, address: IpAddr) -> bool {
    one(values, |block| {
        let length = u32::from(block.prefix_len()) + if block.addr().is_ipv4() { 96 } else { 0 };
        let is_v4 = address.to_canonical().is_ipv4();
        let (own, wanted) = (v6(address), v6(block.addr()));
        is_v4 == block.addr().is_ipv4() && (0..length).all(|bit| (own ^ wanted) >> (127 - bit) & 1 == 0)
    })
}

fn v6(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}
