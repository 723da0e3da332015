//! What `AuthorizationPolicy` costs with 10,000 of them in the cluster and 100 that apply to the workload.
//!
//! `cargo bench -p mesh-userspace --bench policy`; the results are in docs/authorization.md.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark fails by panicking")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use mesh_userspace::model::{Identity, MeshConfig, Snapshot, Workload, WorkloadUid};
use mesh_userspace::policy::authorization::{Connection, Guard};
use mesh_userspace::resources::{Change, Translator, decode};

/// Policies of the cluster.
const ALL: usize = 10_000;
/// Those that apply to the workload.
const OWN: usize = 100;

/// What the rules of the policies that apply ask for.
#[derive(Clone, Copy)]
enum Kind {
    /// Ten principals each, exact.
    Exact,
    /// What no index helps with: wildcards, address blocks and what must not be, all of which must be looked at.
    Wildcards,
    /// A DENY and an ALLOW of exact principals, namespaces, ports, wildcards, blocks, and an AUDIT, in turn.
    Mixed,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact principals",
            Self::Wildcards => "wildcards and blocks alone",
            Self::Mixed => "mixed",
        }
    }

    fn spec(self, index: usize) -> String {
        let exact = |index: usize| {
            let names: Vec<String> =
                (0..10).map(|at| format!("cluster.local/ns/team-{index}/sa/client-{at}")).collect();
            format!("rules: [{{from: [{{source: {{principals: [{}]}}}}]}}]", names.join(", "))
        };
        let wildcards = |index: usize| {
            format!(
                "rules: [{{from: [{{source: {{principals: ['*/sa/client-{index}-*', '*-{index}'], notNamespaces: ['x-{index}*'], ipBlocks: [10.{index}.0.0/16, 'fd00:{index}::/32']}}}}]}}]"
            )
        };
        match self {
            Self::Exact => exact(index),
            Self::Wildcards => wildcards(index),
            Self::Mixed => match index % 6 {
                0 => format!("action: DENY, {}", exact(index)),
                1 => exact(index),
                2 => format!(
                    "action: DENY, rules: [{{from: [{{source: {{namespaces: [bad-{index}]}}}}], to: [{{operation: {{ports: ['80']}}}}]}}]"
                ),
                3 => {
                    format!("action: DENY, rules: [{{to: [{{operation: {{ports: ['{}']}}}}]}}]", 9000 + index)
                }
                4 => format!("action: AUDIT, {}", exact(index)),
                _ => wildcards(index),
            },
        }
    }
}

fn policy(text: &mut String, namespace: usize, index: usize, app: &str, spec: &str) {
    let _ = write!(
        text,
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: policy-{index:05}, namespace: team-{namespace}}}\nspec: {{selector: {{matchLabels: {{app: {app}}}}}, {spec}}}\n"
    );
}

/// A hundred namespaces of a hundred policies each; those that apply to `team-0/web` are of that namespace.
fn cluster(kind: Kind) -> (Translator, Snapshot) {
    let mut text = String::from(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: team-0, labels: {app: web}}\nspec: {containers: []}\nstatus: {podIP: 10.0.0.1}\n",
    );
    for index in 0..ALL {
        let app = if index < OWN { "web".to_owned() } else { format!("app-{index}") };
        policy(&mut text, index / OWN, index, &app, &kind.spec(index % OWN));
    }
    let decoded = decode(&text);
    assert!(decoded.mistakes.is_empty(), "{:?}", decoded.mistakes);
    let mut translator = Translator::new(MeshConfig::default());
    let changes = decoded.objects.into_iter().map(|item| Change::Upsert(item.object));
    let (snapshot, _) = translator.apply(changes);
    assert_eq!(snapshot.policies.len(), ALL);
    (translator, snapshot)
}

fn workload(snapshot: &Snapshot) -> Arc<Workload> {
    Arc::clone(&snapshot.workloads[&WorkloadUid::pod("team-0", "web")])
}

fn decisions(criterion: &mut Criterion) {
    let known: Identity = "spiffe://cluster.local/ns/team-97/sa/client-9".parse().unwrap();
    let stranger: Identity = "spiffe://cluster.local/ns/nobody/sa/nobody".parse().unwrap();
    for kind in [Kind::Exact, Kind::Mixed, Kind::Wildcards] {
        let (_, snapshot) = cluster(kind);
        let guard = Guard::of(&snapshot, &workload(&snapshot));
        assert_eq!(guard.policies().count(), OWN);
        let clients =
            [("a client that is named", Some(&known)), ("a stranger", Some(&stranger)), ("plaintext", None)];
        for (name, source) in clients {
            let connection = Connection {
                source,
                client: IpAddr::from([192, 0, 2, 1]),
                destination: SocketAddr::from(([10, 0, 0, 1], 8080)),
            };
            criterion.bench_function(&format!("decide/{}/{name}", kind.name()), |bencher| {
                bencher.iter(|| guard.decide(black_box(&connection)));
            });
        }
    }
}

fn changes(criterion: &mut Criterion) {
    let (mut translator, snapshot) = cluster(Kind::Mixed);
    let workload = workload(&snapshot);
    let guard = Guard::of(&snapshot, &workload);
    criterion.bench_function("is_current", |bencher| {
        bencher.iter(|| guard.is_current(black_box(&snapshot), &workload));
    });
    criterion.bench_function("Guard::of and the first decision", |bencher| {
        let connection = Connection {
            source: None,
            client: IpAddr::from([192, 0, 2, 1]),
            destination: SocketAddr::from(([10, 0, 0, 1], 8080)),
        };
        bencher.iter(|| Guard::of(black_box(&snapshot), &workload).decide(&connection));
    });
    let versions = [80, 81].map(|port| {
        let mut text = String::new();
        let spec = format!("action: DENY, rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]");
        policy(&mut text, 50, 5050, "web", &spec);
        Arc::clone(&decode(&text).objects[0].object)
    });
    let mut turn = 0;
    criterion.bench_function("one policy changes", |bencher| {
        bencher.iter(|| {
            turn = 1 - turn;
            translator.apply([Change::Upsert(Arc::clone(&versions[turn]))])
        });
    });
}

criterion_group!(policy_cost, decisions, changes);
criterion_main!(policy_cost);
