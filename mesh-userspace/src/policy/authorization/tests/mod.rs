//! From YAML to a decision.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

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
