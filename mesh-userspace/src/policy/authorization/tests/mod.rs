//! From YAML to a decision.

mod istio;
mod naive;
mod property;

use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::model::{MeshConfig, PolicyName, TrustDomain, WorkloadUid};
use crate::resources::{Change, Translator, decode};

/// A pod `web` of namespace `shop` behind two services, and the policies.
fn snapshot(policies: &str, mesh: MeshConfig) -> Snapshot {
    let text = format!("{WORLD}{policies}");
    let decoded = decode(&text);
    assert!(decoded.mistakes.is_empty(), "{:?}", decoded.mistakes);
    let changes = decoded.objects.into_iter().map(|item| Change::Upsert(item.object));
    Translator::new(mesh).apply(changes).0
}

const WORLD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, version: v1}}
spec: {serviceAccountName: web, containers: []}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: admin, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: web}, ports: [{port: 80, targetPort: 9090}]}
";

fn policy(namespace: &str, name: &str, annotation: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}{annotation}}}\nspec: {spec}\n"
    )
}

fn guard(snapshot: &Snapshot) -> Guard {
    let workload = &snapshot.workloads[&WorkloadUid::pod("shop", "web")];
    Guard::of(snapshot, workload)
}

fn reference(namespace: &str, name: &str, rule: usize) -> PolicyRef {
    PolicyRef { policy: PolicyName::new(namespace, name), rule }
}

fn identity(text: &str) -> Identity {
    format!("spiffe://{text}").parse().unwrap()
}

/// A verdict in a word, with its rule.
fn word(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Unguarded => "-".to_owned(),
        Verdict::Allowed(rule) => format!("allowed by {rule}"),
        Verdict::Refused(refusal) => refusal.to_string(),
    }
}

#[test]
fn from_yaml_to_a_verdict() {
    let snapshot = snapshot(
        &(policy(
            "shop",
            "b",
            "",
            "{rules: [{}, {from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]}",
        ) + &policy("shop", "a", "", "{action: DENY, rules: [{to: [{operation: {ports: ['9090']}}]}]}")),
        MeshConfig::default(),
    );
    let client = identity("cluster.local/ns/shop/sa/client");
    let connection = |port: u16| Connection {
        source: Some(&client),
        client: IpAddr::from([10, 0, 0, 9]),
        destination: SocketAddr::from(([10, 0, 0, 1], port)),
    };
    let guard = guard(&snapshot);
    assert_eq!(guard.decide(&connection(8080)).verdict, Verdict::Allowed(reference("shop", "b", 0)));
    assert_eq!(word(&guard.decide(&connection(9090)).verdict), "denied by shop/a rules[0]");
    assert!(guard.may_refuse());
}

/// <https://istio.io/latest/docs/tasks/security/authorization/authz-dry-run>
#[test]
fn dry_runs_and_audits() {
    const DRY: &str = ", annotations: {istio.io/dry-run: 'true'}";
    let from = |action: &str, namespace: &str| {
        format!("{{action: {action}, rules: [{{from: [{{source: {{namespaces: [{namespace}]}}}}]}}]}}")
    };
    let allow = |name: &str, annotation: &str, namespace: &str| {
        policy("shop", name, annotation, &from("ALLOW", namespace))
    };
    let deny = |name: &str, annotation: &str| policy("shop", name, annotation, &from("DENY", "a"));
    let custom = |name: &str, annotation: &str| policy("shop", name, annotation, &from("CUSTOM", "a"));
    let audit = |name: &str, annotation: &str| policy("shop", name, annotation, &from("AUDIT", "a"));
    let cases: Vec<(&str, String, &str, Option<&str>, usize, bool)> = vec![
        ("a DENY", deny("p", DRY), "-", Some("denied by shop/p rules[0]"), 0, false),
        (
            "a CUSTOM",
            custom("p", DRY),
            "-",
            Some("shop/p rules[0] asks for an external authorizer, which this mesh does not have"),
            0,
            false,
        ),
        ("an ALLOW of others", allow("p", DRY, "b"), "-", Some("no ALLOW policy matches"), 0, false),
        ("an ALLOW of this", allow("p", DRY, "a"), "-", None, 0, false),
        (
            "an ALLOW of others beside one in force",
            allow("p", DRY, "b") + &allow("q", "", "a"),
            "allowed by shop/q rules[0]",
            None,
            0,
            true,
        ),
        (
            "what is refused anyway would not be refused for a dry run",
            deny("p", DRY) + &allow("q", "", "b"),
            "no ALLOW policy matches",
            None,
            0,
            true,
        ),
        (
            "a dry run allows nothing",
            allow("p", DRY, "a") + &allow("q", "", "b"),
            "no ALLOW policy matches",
            None,
            0,
            true,
        ),
        (
            "an annotation that says no",
            deny("p", ", annotations: {istio.io/dry-run: 'false'}"),
            "denied by shop/p rules[0]",
            None,
            0,
            true,
        ),
        (
            "one that says neither",
            deny("p", ", annotations: {istio.io/dry-run: maybe}"),
            "denied by shop/p rules[0]",
            None,
            0,
            true,
        ),
        ("an AUDIT", audit("p", ""), "-", None, 1, false),
        (
            "AUDITs of what is refused",
            audit("p", "") + &audit("q", DRY) + &deny("r", ""),
            "denied by shop/r rules[0]",
            None,
            2,
            true,
        ),
        (
            "the first by name is the one that is named",
            deny("z", "") + &deny("b", "") + &policy("istio-system", "zz", "", &from("DENY", "a")),
            "denied by istio-system/zz rules[0]",
            None,
            0,
            true,
        ),
    ];
    let client = identity("cluster.local/ns/a/sa/x");
    for (name, policies, verdict, dry_run, audited, may_refuse) in cases {
        let guard = guard(&snapshot(&policies, MeshConfig::default()));
        let decision = guard.decide(&Connection {
            source: Some(&client),
            client: IpAddr::from([10, 0, 0, 9]),
            destination: SocketAddr::from(([10, 0, 0, 1], 8080)),
        });
        assert_eq!(word(&decision.verdict), verdict, "{name}");
        assert_eq!(decision.dry_run.map(|refusal| refusal.to_string()).as_deref(), dry_run, "{name}");
        assert_eq!(decision.audited.len(), audited, "{name}");
        assert_eq!(guard.may_refuse(), may_refuse, "{name}");
    }
}

#[test]
fn identities_of_an_alias_are_those_of_the_mesh() {
    let spec = "{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/x]}}]}]}";
    let aliases = [TrustDomain::new("old.td").unwrap()].into();
    let mesh = MeshConfig {
        trust_domain: TrustDomain::new("new.td").unwrap(),
        trust_domain_aliases: aliases,
        ..MeshConfig::default()
    };
    let guard = guard(&snapshot(&policy("shop", "p", "", spec), mesh));
    let cases = [("new.td", true), ("old.td", true), ("cluster.local", false), ("other.td", false)];
    for (domain, wanted) in cases {
        let client = identity(&format!("{domain}/ns/a/sa/x"));
        let decision = guard.decide(&Connection {
            source: Some(&client),
            client: IpAddr::from([10, 0, 0, 9]),
            destination: SocketAddr::from(([10, 0, 0, 1], 8080)),
        });
        assert_eq!(decision.verdict.refusal().is_none(), wanted, "{domain}");
    }
}

#[test]
fn strict_comes_first() {
    let strict = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    let guard = guard(&snapshot(
        &(strict.to_owned() + &policy("shop", "p", "", "{rules: [{}]}")),
        MeshConfig::default(),
    ));
    let client = identity("cluster.local/ns/a/sa/x");
    for (source, wanted) in [(None, Some("strict")), (Some(&client), None)] {
        let decision = guard.decide(&Connection {
            source,
            client: IpAddr::from([10, 0, 0, 9]),
            destination: SocketAddr::from(([10, 0, 0, 1], 8080)),
        });
        assert_eq!(decision.verdict.refusal().map(Refusal::reason), wanted);
    }
}

#[test]
fn what_is_explained() {
    let policies = policy(
        "shop",
        "ports",
        "",
        "{action: DENY, rules: [{to: [{operation: {ports: ['1']}}]}]}",
    ) + &policy("shop", "layer-7", "", "{rules: [{to: [{operation: {paths: [/a]}}]}, {}]}")
        + &policy("shop", "admin", "", "{targetRefs: [{kind: Service, name: admin}], rules: [{}]}")
        + &policy(
            "istio-system",
            "who",
            ", annotations: {istio.io/dry-run: 'true'}",
            "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {namespaces: ['*'], notPrincipals: [b]}}], when: [{key: source.ip, notValues: [10.0.0.9]}]}]}",
        );
    let guard = guard(&snapshot(&policies, MeshConfig::default()));
    let client = identity("cluster.local/ns/a/sa/x");
    let connection = |source| Connection {
        source,
        client: IpAddr::from([10, 0, 0, 9]),
        destination: SocketAddr::from(([10, 0, 0, 1], 8080)),
    };
    let told = |source| {
        let verdicts = guard.explain(&connection(source)).into_iter();
        verdicts
            .map(|verdict| {
                let rules: Vec<String> = verdict.rules.iter().map(ToString::to_string).collect();
                format!("{} ({}): {}", verdict.policy, verdict.scope, rules.join("; "))
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        told(None),
        [
            "istio-system/who (mesh, selector app=web): rules[0] does not match, from: source namespace is none of those listed",
            "shop/admin (Service admin): rules[0] does not match, targetRefs: 10.0.0.1:8080 is no endpoint of those services",
            "shop/layer-7 (namespace): rules[0] does not match, to[0].operation.paths cannot be told at layer 4: the rule matches nothing; rules[1] matches",
            "shop/ports (namespace): rules[0] does not match, to: destination port is none of those listed",
        ]
    );
    assert!(told(Some(&client))[0].ends_with("when: source IP is one of those excluded"));
    let listed: Vec<_> =
        guard.policies().map(|one| (one.policy.to_string(), one.dry_run, one.rules)).collect();
    assert_eq!(listed[0], ("istio-system/who".to_owned(), true, 1));
    assert_eq!(listed.len(), 4);
}

#[test]
fn a_guard_lasts_for_as_long_as_nothing_of_its_own_changes() {
    let policies = policy("shop", "a", "", "{targetRefs: [{kind: Service, name: admin}], rules: [{}]}")
        + &policy("other", "a", "", "{}");
    let decoded = decode(&format!("{WORLD}{policies}"));
    let mut translator = Translator::new(MeshConfig::default());
    let changes = decoded.objects.into_iter().map(|item| Change::Upsert(item.object));
    let (snapshot, _) = translator.apply(changes);
    let mut held = guard(&snapshot);
    let mut change = |text: &str, stays: bool| {
        let changes = decode(text).objects.into_iter().map(|item| Change::Upsert(item.object));
        let (snapshot, _) = translator.apply(changes);
        let workload = &snapshot.workloads[&WorkloadUid::pod("shop", "web")];
        assert_eq!(held.is_current(&snapshot, workload), stays, "{text}");
        held = Guard::of(&snapshot, workload);
    };
    change(&policy("other", "a", "", "{action: DENY}"), true);
    change(&policy("other", "b", "", "{}"), true);
    change(&policy("shop", "a", "", "{targetRefs: [{kind: Service, name: admin}], rules: [{}]}"), true);
    change(&policy("shop", "a", "", "{targetRefs: [{kind: Service, name: admin}]}"), false);
    change(&policy("istio-system", "a", "", "{}"), false);
    change(
        "apiVersion: v1\nkind: Service\nmetadata: {name: admin, namespace: shop}\nspec: {clusterIP: 10.96.0.2, selector: {app: web}, ports: [{port: 80, targetPort: 9091}]}\n",
        false,
    );
    change(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 1}]}\n",
        true,
    );
    change(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n",
        false,
    );
}
