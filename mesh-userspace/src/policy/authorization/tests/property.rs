//! Many policies and connections of a small world: the guard against the naive evaluator, and `explain` against `decide`.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::{
    AuthorizationPolicy, Clause, Condition, MtlsModes, PolicyRule, PolicyScope, ServiceAccountName,
    TextMatch, Values,
};

fn values<T: std::fmt::Debug + Clone>(
    one: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Values<T>> {
    let list = |range| prop::collection::vec(one.clone(), range);
    prop_oneof![
        3 => list(1..4).prop_map(|any_of| (any_of, vec![])),
        1 => list(1..3).prop_map(|none_of| (vec![], none_of)),
        1 => (list(1..4), list(1..3)),
    ]
    .prop_map(|(any_of, none_of)| Values { any_of: any_of.into(), none_of: none_of.into() })
}

fn texts(all: &'static [&'static str]) -> impl Strategy<Value = TextMatch> + Clone {
    prop::sample::select(all).prop_map(TextMatch::parse)
}

fn condition() -> impl Strategy<Value = Condition> {
    const PRINCIPALS: &[&str] = &[
        "td/ns/a/sa/x",
        "td/ns/a/sa/y",
        "td/ns/b/sa/x",
        "old/ns/a/sa/x",
        "td/ns/a/sa/*",
        "td/ns/a*",
        "td/ns/*",
        "*/ns/a/sa/x",
        "*/sa/x",
        "*x",
        "*/ns/b/sa/*",
        "*",
        "td/ns/a",
        "nonsense",
        "td/ns/a/",
        "",
    ];
    const BLOCKS: &[&str] =
        &["10.0.0.0/8", "10.0.0.7/32", "10.0.0.8/29", "0.0.0.0/0", "fd00::/64", "::/0", "fd00::7/128"];
    let account = (prop::sample::select(vec!["a", "b"]), prop::sample::select(vec!["x", "y"]))
        .prop_map(|(namespace, name)| ServiceAccountName { namespace: namespace.into(), name: name.into() });
    let block = prop::sample::select(BLOCKS).prop_map(|block| block.parse::<ipnet::IpNet>().unwrap());
    let ports = prop::sample::select(vec![8080_u16, 9090, 1]);
    prop_oneof![
        4 => values(texts(PRINCIPALS)).prop_map(Condition::Principal),
        2 => values(texts(&["a", "b", "a*", "*b", "*", "shop"])).prop_map(Condition::Namespace),
        2 => values(account).prop_map(Condition::ServiceAccount),
        1 => values(block.clone()).prop_map(Condition::SourceIp),
        1 => values(block.clone()).prop_map(Condition::RemoteIp),
        1 => values(block).prop_map(Condition::DestinationIp),
        2 => values(ports).prop_map(Condition::DestinationPort),
    ]
}

fn clause(range: std::ops::Range<usize>) -> impl Strategy<Value = Clause> {
    prop::collection::vec(condition(), range).prop_map(Into::into)
}

fn rule() -> impl Strategy<Value = PolicyRule> {
    let clauses = || prop::collection::vec(clause(0..3), 0..3);
    (prop::bool::weighted(0.1), clauses(), clauses(), clause(0..2)).prop_map(|(beyond, from, to, when)| {
        PolicyRule { beyond: beyond.then(|| "x".into()), from: from.into(), to: to.into(), when }
    })
}

fn policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    let action = prop::sample::select(vec![
        PolicyAction::Allow,
        PolicyAction::Allow,
        PolicyAction::Deny,
        PolicyAction::Audit,
        PolicyAction::Custom,
    ]);
    let labels = prop::sample::select(vec![
        vec![("app", "web")],
        vec![("app", "db")],
        vec![("app", "web"), ("version", "v1")],
    ]);
    let services = prop::sample::subsequence(vec!["admin", "none", "web"], 0..3);
    let place = (0_u8..5, prop::sample::select(vec!["shop", "other", "istio-system"]), labels, services);
    let policy = (place, 0_u32..12, action, prop::bool::weighted(0.3), prop::collection::vec(rule(), 0..3));
    let policy = policy.prop_map(|((kind, namespace, labels, services), name, action, dry_run, rules)| {
        let root = namespace == "istio-system";
        let labels: BTreeMap<String, String> =
            labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let scope = match kind {
            0 | 1 => PolicyScope::Selector { labels, everywhere: root },
            2 | 3 => PolicyScope::Services(services.into_iter().map(Into::into).collect()),
            _ if root => PolicyScope::Mesh,
            _ => PolicyScope::Namespace,
        };
        let name = PolicyName::new(namespace, format!("p{name}"));
        AuthorizationPolicy { name, action, dry_run, scope, rules: rules.into() }
    });
    prop::collection::vec(policy, 0..12)
}

#[derive(Clone, Debug)]
struct Asked {
    source: Option<Identity>,
    client: IpAddr,
    destination: SocketAddr,
}

impl Asked {
    fn connection(&self) -> Connection<'_> {
        Connection { source: self.source.as_ref(), client: self.client, destination: self.destination }
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let source = prop_oneof![
        1 => Just(None),
        4 => (prop::sample::select(vec!["td", "old"]), prop::sample::select(vec!["a", "b", "ab"]), prop::sample::select(vec!["x", "y", "xx"]))
            .prop_map(|(domain, namespace, name)| Some(identity(&format!("{domain}/ns/{namespace}/sa/{name}")))),
    ];
    let client = prop::sample::select(vec![
        "10.0.0.7",
        "10.0.0.9",
        "192.0.2.1",
        "::ffff:10.0.0.7",
        "fd00::7",
        "fd01::7",
    ]);
    let own = prop::sample::select(vec!["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"]);
    let port = prop::sample::select(vec![8080_u16, 9090, 7070]);
    (source, client, own, port).prop_map(|(source, client, own, port)| Asked {
        source,
        client: client.parse().unwrap(),
        destination: SocketAddr::new(own.parse().unwrap(), port),
    })
}

fn world(policies: Vec<AuthorizationPolicy>, strict: bool) -> (Snapshot, Arc<Workload>) {
    let mut snapshot = snapshot("", MeshConfig::default());
    for policy in policies {
        snapshot.policies.insert(&Arc::new(policy));
    }
    let uid = WorkloadUid::pod("shop", "web");
    let mut workload = (*snapshot.workloads[&uid]).clone();
    let ports = if strict { [(9090, Mode::Strict)].into() } else { BTreeMap::new() };
    workload.mtls = MtlsModes { default: Mode::Permissive, ports };
    let workload = Arc::new(workload);
    snapshot.workloads.insert(uid, Arc::clone(&workload));
    (snapshot, workload)
}

/// The decision as `explain` makes a reader see it.
fn as_explained(verdicts: &[PolicyVerdict]) -> Decision {
    let with = |action: PolicyAction, dry_run: bool| {
        let wanted = move |verdict: &&PolicyVerdict| {
            (verdict.action, verdict.dry_run, verdict.concerned) == (action, dry_run, true)
        };
        verdicts.iter().filter(wanted)
    };
    let rule = |verdict: &PolicyVerdict| {
        verdict.matched.map(|rule| PolicyRef { policy: verdict.policy.clone(), rule })
    };
    let first = |action, dry_run| with(action, dry_run).find_map(rule);
    let refused = |dry_run| {
        let custom = first(PolicyAction::Custom, dry_run).map(|rule| Refusal::Custom { rule });
        custom.or_else(|| first(PolicyAction::Deny, dry_run).map(|rule| Refusal::Denied { rule }))
    };
    let verdict = match refused(false) {
        Some(refusal) => Verdict::Refused(refusal),
        None if with(PolicyAction::Allow, false).next().is_none() => Verdict::Unguarded,
        None => {
            first(PolicyAction::Allow, false).map_or(Verdict::Refused(Refusal::NotAllowed), Verdict::Allowed)
        }
    };
    let not_allowed = || {
        let asks = verdict == Verdict::Unguarded && with(PolicyAction::Allow, true).next().is_some();
        (asks && first(PolicyAction::Allow, true).is_none()).then_some(Refusal::NotAllowed)
    };
    let dry_run = refused(true).or_else(not_allowed).filter(|_| verdict.refusal().is_none());
    let audits = verdicts.iter().filter(|verdict| verdict.action == PolicyAction::Audit);
    Decision { audited: audits.filter_map(rule).collect(), dry_run, verdict }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn guard_and_naive_evaluator_agree(
        policies in policies(), strict in prop::bool::weighted(0.1), all in prop::collection::vec(asked(), 1..12)
    ) {
        let (snapshot, workload) = world(policies, strict);
        let guard = Guard::of(&snapshot, &workload);
        for asked in all {
            let connection = asked.connection();
            let decision = guard.decide(&connection);
            prop_assert_eq!(&decision, &naive::decide(&snapshot, &workload, &connection), "{:?}", asked);
            let refused = decision.verdict.refusal();
            if refused.is_some_and(|refusal| *refusal != Refusal::Plaintext) {
                prop_assert!(guard.may_refuse());
            }
            if refused != Some(&Refusal::Plaintext) {
                prop_assert_eq!(decision, as_explained(&guard.explain(&connection)), "{:?}", asked);
            }
        }
    }

    #[test]
    fn a_guard_that_is_current_decides_as_a_new_one(
        before in policies(), after in policies(), removed in prop::collection::vec(0_usize..12, 0..4), asked in asked()
    ) {
        let (mut snapshot, workload) = world(before.clone(), false);
        let guard = Guard::of(&snapshot, &workload);
        prop_assert!(guard.is_current(&snapshot, &workload));
        for index in removed {
            if let Some(policy) = before.get(index) {
                snapshot.policies.remove(&policy.name);
            }
        }
        for policy in after.iter().take(2) {
            snapshot.policies.insert(&Arc::new(policy.clone()));
        }
        if guard.is_current(&snapshot, &workload) {
            let decision = guard.decide(&asked.connection());
            prop_assert_eq!(decision, Guard::of(&snapshot, &workload).decide(&asked.connection()));
        }
    }
}

#[test]
fn the_index_of_policies_forgets_nothing_and_keeps_nothing() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let changes = prop::collection::vec((policies(), prop::collection::vec(0_usize..12, 0..6)), 1..4);
    runner
        .run(&changes, |changes| {
            let mut held = crate::model::Policies::default();
            let mut wanted: BTreeMap<PolicyName, Arc<AuthorizationPolicy>> = BTreeMap::new();
            for (policies, removed) in changes {
                for policy in policies.iter().cloned().map(Arc::new) {
                    held.insert(&policy);
                    wanted.insert(policy.name.clone(), policy);
                }
                for policy in removed.iter().filter_map(|&index| policies.get(index)) {
                    held.remove(&policy.name);
                    wanted.remove(&policy.name);
                }
                let mut anew = crate::model::Policies::default();
                for policy in wanted.values().rev() {
                    anew.insert(policy);
                }
                prop_assert_eq!(&held, &anew);
                prop_assert_eq!(held.len(), wanted.len());
            }
            Ok(())
        })
        .unwrap();
}
