//! What `meshctl explain` foretells, from the agent and from manifests alone, held against what connections come to.

use anyhow::Result;
use mesh_tests::{Pod, SECONDS_10, eventually};
use serde_json::Value;

use crate::plane::{document, meshctl};
use crate::world::{PORT, World, peer_authentication, v4};

/// How it ends, what the kernel does, and of each endpoint its workload, its way and its verdict.
#[derive(Debug, PartialEq)]
struct Foretold {
    outcome: String,
    verdict: String,
    paths: Vec<(String, String, bool)>,
}

impl Foretold {
    fn of(report: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let path = |path: &Value| {
            (text(&path["workload"]), text(&path["transport"]), path["allowed"].as_bool().unwrap_or_default())
        };
        Self {
            outcome: text(&report["outcome"]),
            verdict: text(&report["verdict"]),
            paths: report["paths"].as_array().into_iter().flatten().map(path).collect(),
        }
    }
}

/// What is foretold from the agent, once it agrees with the manifests.
fn foretold(world: &World, from: &str, to: &str) -> Result<Foretold> {
    let manifests = world.lab.manifests().folder().to_string_lossy().into_owned();
    let ask = || -> Option<(Foretold, Foretold)> {
        let (_, live) = document(&world.agent_a, &["explain", from, to]).ok()?;
        let (code, read) =
            document(&world.agent_a, &["explain", "--manifests", &manifests, from, to]).ok()?;
        assert_eq!((code, &live["basis"], &read["basis"]), (0, &"kernel".into(), &"snapshot".into()));
        Some((Foretold::of(&live), Foretold::of(&read)))
    };
    let agreed = eventually(SECONDS_10, "the agent and the manifests say the same", || {
        ask().filter(|(live, read)| live == read).map(|(live, _)| live)
    });
    if agreed.is_err() {
        let (live, read) = ask().expect("it was answered before");
        assert_eq!(live, read, "{from} to {to}");
    }
    agreed
}

/// Connects until what comes of it is what was foretold: the other node's agent may be a moment behind.
fn holds(pod: &Pod, target: &str, outcome: &str) {
    let mut last = None;
    let held = eventually(SECONDS_10, "what was foretold comes", || {
        let summary = pod.connect(&[target, "--count", "6"]).ok()?;
        let came = match (summary.ok, summary.failed) {
            (_, 0) => "allowed",
            (0, _) => "refused",
            _ => "differs",
        };
        last = Some(format!("{came}: {summary:?}"));
        (came == outcome).then_some(())
    });
    assert!(held.is_ok(), "{} to {target}: {outcome} was foretold, {last:?}", pod.spec.name);
}

fn policy(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: default\n{rest}\n"
    )
}

#[test]
fn what_is_foretold_is_what_comes() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    let manifests = world.lab.manifests();
    let principal = "cluster.local/ns/default/sa/client";
    let strict = peer_authentication("strict", "default", "  mtls: {mode: STRICT}\n");
    let allow = policy(
        "allow",
        &format!("spec: {{rules: [{{from: [{{source: {{principals: [\"{principal}\"]}}}}]}}]}}"),
    );
    let deny = policy(
        "deny",
        &format!(
            "spec: {{selector: {{matchLabels: {{app: far}}}}, action: DENY, rules: [{{to: [{{operation: {{ports: [\"{PORT}\"]}}}}]}}]}}"
        ),
    );
    // What is in force, and what becomes of client → far, client → near, outside → far, outside → near, near → far.
    let cases: [(&str, &[&str], [&str; 5]); 4] = [
        ("nothing", &[], ["allowed"; 5]),
        ("strict", &[&strict], ["allowed", "allowed", "refused", "refused", "allowed"]),
        ("one principal", &[&allow], ["allowed", "allowed", "refused", "refused", "refused"]),
        ("a denied port", &[&allow, &deny], ["refused", "allowed", "refused", "refused", "refused"]),
    ];
    for (name, policies, expected) in cases {
        let text = policies.join("---\n");
        manifests.apply("explained.yaml", if text.is_empty() { "{}\n" } else { &text })?;
        if policies.is_empty() {
            manifests.delete("explained.yaml")?;
        }
        let pairs = [
            (&world.client, "far"),
            (&world.client, "near"),
            (&world.outside, "far"),
            (&world.outside, "near"),
            (&world.near, "far"),
        ];
        for ((pod, service), outcome) in pairs.into_iter().zip(expected) {
            let from = format!("default/{}", pod.spec.name);
            let to = format!("{service}.default:{PORT}");
            let told = foretold(&world, &from, &to)?;
            assert_eq!(told.outcome, outcome, "{name}: {from} to {to}: {told:?}");
            let captured = pod.spec.name != "outside";
            assert_eq!(told.verdict, if captured { "captured" } else { "translated" }, "{name}: {told:?}");
            let way = match (captured, service) {
                (false, _) => "direct",
                (true, "near") => "same_node",
                _ => "hbone",
            };
            assert_eq!(told.paths, [(format!("default/{service}"), way.to_owned(), outcome == "allowed")]);
            holds(pod, &v4(service), outcome);
        }
    }
    // One endpoint of two refuses.
    let told = foretold(&world, "default/client", &format!("default/both:{PORT}"))?;
    assert_eq!(told.outcome, "differs", "{told:?}");
    Ok(())
}

#[test]
fn policies_are_listed_with_whom_they_concern() -> Result<()> {
    let world = World::start(true)?;
    let manifests = world.lab.manifests();
    manifests.apply("strict.yaml", &peer_authentication("strict", "default", "  mtls: {mode: STRICT}\n"))?;
    let near = "spec: {selector: {matchLabels: {app: near}}, action: DENY, rules: [{from: [{source: {namespaces: [x]}}]}]}";
    let trial = near.replace("app: near", "app: far");
    manifests.apply(
        "policies.yaml",
        &[
            policy("near", near),
            policy("trial", &trial)
                .replace("  namespace", "  annotations: {istio.io/dry-run: \"true\"}\n  namespace"),
        ]
        .join("---\n"),
    )?;
    let agent = &world.agent_a;
    let listed = eventually(SECONDS_10, "the policies are listed", || {
        let (_, report) = document(agent, &["policies"]).ok()?;
        (report["total"] == 3).then_some(report)
    })?;
    let told: Vec<_> = listed["policies"].as_array().into_iter().flatten().collect();
    let fields = |name: &str| told.iter().map(|policy| policy[name].clone()).collect::<Vec<_>>();
    assert_eq!(fields("name"), ["strict", "near", "trial"], "{listed:#}");
    // Of this node, in the mesh: `client` and `near`; `far` is on the other, `outside` in no mesh.
    assert_eq!(fields("selected"), [2, 1, 0], "{listed:#}");
    assert_eq!(fields("outside_mesh"), [1, 0, 0], "{listed:#}");
    assert_eq!((&told[2]["dry_run"], &told[1]["workloads"][0]), (&true.into(), &"default/near".into()));
    let (code, far) = document(agent, &["policies", "default/far"])?;
    assert_eq!((code, &far["total"], &far["workload"]["mode"]), (0, &2.into(), &"STRICT".into()), "{far:#}");
    let (_, table, _) = meshctl(agent, &["policies", "default/far"])?;
    assert!(table.contains("selector app=far") && table.contains("DENY"), "{table}");
    let (code, _, error) = meshctl(agent, &["policies", "default/none"])?;
    assert_eq!((code, error.as_str()), (1, "meshctl: no pod default/none is known\n"));
    Ok(())
}
