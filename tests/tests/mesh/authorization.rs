//! `AuthorizationPolicy`, with real connections: over HBONE, between two pods of one node, and in plaintext.

use anyhow::{Context, Result};
use mesh_tests::peer::Summary;
use mesh_tests::{Pod, PodSpec, Process, SECONDS_10, eventually};
use serde_json::Value;

use crate::held::{assert_alive, holder, last_line};
use crate::world::{PORT, World, peer_authentication, v4};

/// Another port of the same servers.
const OTHER: u16 = 9090;

/// An `AuthorizationPolicy`.
fn policy(name: &str, namespace: &str, annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         annotations: {{{annotations}}}\nspec: {spec}\n"
    )
}

/// For the workload `far`.
fn for_far(rest: &str) -> String {
    format!("{{selector: {{matchLabels: {{app: far}}}}, {rest}}}")
}

/// Who reaches `far`: `client` over HBONE, `twin` on the same node, `outside` in plaintext.
type Reach = [bool; 3];

const ALL: Reach = [true, true, true];
const NONE: Reach = [false, false, false];

fn reach(world: &World, port: u16) -> Result<Reach> {
    let target = format!("{}:{port}", world.far.v4);
    let mut reached = NONE;
    for (reached, pod) in reached.iter_mut().zip([&world.client, &world.twin, &world.outside]) {
        let summary = pod.connect(&[&target])?;
        // Refused or reset, and at once: never a timeout.
        let kinds = summary.errors.keys().all(|kind| ["refused", "reset", "eof"].contains(&kind.as_str()));
        assert!(kinds, "{}: {summary:?}", pod.spec.name);
        *reached = summary.ok == 1;
    }
    Ok(reached)
}

fn expect(world: &World, what: &str, port: u16, want: Reach) -> Result<()> {
    let settled = eventually(SECONDS_10, what, || (reach(world, port).ok()? == want).then_some(()));
    if settled.is_err() {
        assert_eq!(reach(world, port)?, want, "{what}, port {port}");
    }
    Ok(())
}

/// Writes a file, and waits until the agent of `far` has another snapshot.
fn apply(world: &World, file: &str, yaml: &str) -> Result<()> {
    let generation = || world.agent_b.metric("mesh_config_generation", &[]);
    let before = generation()?;
    world.lab.manifests().apply(file, yaml)?;
    eventually(SECONDS_10, "the next snapshot", || (generation().ok()? > before).then_some(()))
}

fn start() -> Result<World> {
    let world = World::start(true)?;
    world.serve("http")?;
    world.far.serve(&["--listen", &format!("[::]:{OTHER}")])?;
    Ok(world)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_action_and_matcher_on_each_way_in() -> Result<()> {
    let world = start()?;
    let client = "cluster.local/ns/default/sa/client";
    let [client_ip, outside_ip] = [&world.client, &world.outside].map(|pod| pod.v4.to_string());
    let far_ip = world.far.v4;
    // What is written, and who reaches PORT and OTHER.
    let cases: Vec<(&str, String, Reach, Reach)> = vec![
        ("no spec allows nothing", for_far("action: ALLOW"), NONE, NONE),
        ("an empty rule allows everything", for_far("rules: [{}]"), ALL, ALL),
        ("DENY without rules denies nothing", for_far("action: DENY"), ALL, ALL),
        ("DENY with an empty rule denies everything", for_far("action: DENY, rules: [{}]"), NONE, NONE),
        (
            "principals, exactly",
            for_far(&format!("rules: [{{from: [{{source: {{principals: [{client}]}}}}]}}]")),
            [true, false, false],
            [true, false, false],
        ),
        (
            "principals by suffix, for one port",
            for_far(&format!(
                "rules: [{{from: [{{source: {{principals: [\"*/sa/twin\"]}}}}], to: [{{operation: {{ports: [\"{OTHER}\"]}}}}]}}]"
            )),
            NONE,
            [false, true, false],
        ),
        (
            "any principal: whoever is authenticated",
            for_far("rules: [{from: [{source: {principals: [\"*\"]}}]}]"),
            [true, true, false],
            [true, true, false],
        ),
        (
            "DENY by notPrincipals, which plaintext is among",
            for_far(&format!("action: DENY, rules: [{{from: [{{source: {{notPrincipals: [{client}]}}}}]}}]")),
            [true, false, false],
            [true, false, false],
        ),
        (
            "namespaces",
            for_far("rules: [{from: [{source: {namespaces: [default]}}]}]"),
            [true, true, false],
            [true, true, false],
        ),
        (
            "namespaces and principals by prefix",
            for_far(
                "rules: [{from: [{source: {namespaces: [def*], principals: [\"cluster.local/ns/default/sa/cl*\"]}}]}]",
            ),
            [true, false, false],
            [true, false, false],
        ),
        (
            "notServiceAccounts",
            for_far("action: DENY, rules: [{from: [{source: {notServiceAccounts: [client]}}]}]"),
            [true, false, false],
            [true, false, false],
        ),
        (
            "notRemoteIpBlocks",
            for_far(&format!("rules: [{{from: [{{source: {{notRemoteIpBlocks: [{outside_ip}]}}}}]}}]")),
            [true, true, false],
            [true, true, false],
        ),
        (
            "when: source.serviceAccount and remote.ip",
            for_far(&format!(
                "rules: [{{when: [{{key: source.serviceAccount, values: [default/client, twin]}}, \
                 {{key: remote.ip, notValues: [{client_ip}]}}]}}]"
            )),
            [false, true, false],
            [false, true, false],
        ),
        ("other namespaces", for_far("rules: [{from: [{source: {namespaces: [prod-*]}}]}]"), NONE, NONE),
        (
            "notNamespaces",
            for_far("action: DENY, rules: [{from: [{source: {notNamespaces: [default]}}]}]"),
            [true, true, false],
            [true, true, false],
        ),
        (
            "service accounts, of the policy's namespace and with one",
            for_far("rules: [{from: [{source: {serviceAccounts: [client, default/twin]}}]}]"),
            [true, true, false],
            [true, true, false],
        ),
        (
            "ipBlocks: the client's own address, however it comes",
            for_far(&format!(
                "rules: [{{from: [{{source: {{ipBlocks: [{client_ip}, {outside_ip}/32]}}}}]}}]"
            )),
            [true, false, true],
            [true, false, true],
        ),
        (
            "notIpBlocks",
            for_far(&format!("rules: [{{from: [{{source: {{notIpBlocks: [{client_ip}]}}}}]}}]")),
            [false, true, true],
            [false, true, true],
        ),
        (
            "remoteIpBlocks",
            for_far(&format!(
                "action: DENY, rules: [{{from: [{{source: {{remoteIpBlocks: [{outside_ip}]}}}}]}}]"
            )),
            [true, true, false],
            [true, true, false],
        ),
        (
            "notPorts",
            for_far(&format!("action: DENY, rules: [{{to: [{{operation: {{notPorts: [\"{PORT}\"]}}}}]}}]")),
            ALL,
            NONE,
        ),
        (
            "when: source.ip, source.namespace and destination.port together",
            for_far(&format!(
                "rules: [{{when: [{{key: source.ip, values: [{client_ip}/24]}}, {{key: source.namespace, values: [default]}}, \
                 {{key: destination.port, values: [\"{PORT}\"]}}]}}]"
            )),
            [true, false, false],
            NONE,
        ),
        (
            "when: source.principal and destination.ip, negated",
            for_far(&format!(
                "action: DENY, rules: [{{when: [{{key: source.principal, notValues: [{client}]}}, \
                 {{key: destination.ip, values: [{far_ip}]}}]}}]"
            )),
            [true, false, false],
            [true, false, false],
        ),
        (
            "a layer-7 field in an ALLOW: the rule matches nothing",
            for_far("rules: [{to: [{operation: {methods: [GET]}}]}]"),
            NONE,
            NONE,
        ),
        (
            "a layer-7 field in a DENY: more is denied",
            for_far(&format!(
                "action: DENY, rules: [{{from: [{{source: {{principals: [{client}]}}}}], to: [{{operation: {{paths: [/admin]}}}}]}}]"
            )),
            [false, true, true],
            [false, true, true],
        ),
        ("AUDIT refuses nothing", for_far("action: AUDIT, rules: [{}]"), ALL, ALL),
        (
            "CUSTOM has nobody to ask: what it matches is refused",
            for_far(&format!(
                "action: CUSTOM, provider: {{name: x}}, rules: [{{to: [{{operation: {{ports: [\"{OTHER}\"]}}}}]}}]"
            )),
            ALL,
            NONE,
        ),
        (
            "a Service, and the port of its endpoints alone",
            "{targetRefs: [{group: \"\", kind: Service, name: far}], rules: []}".to_owned(),
            NONE,
            ALL,
        ),
        ("another workload's", "{selector: {matchLabels: {app: near}}}".to_owned(), ALL, ALL),
    ];
    for (what, spec, at_port, at_other) in cases {
        apply(&world, "policy.yaml", &policy("p", "default", "", &spec))?;
        expect(&world, what, PORT, at_port)?;
        expect(&world, what, OTHER, at_other)?;
    }
    assert_eq!(world.agent_b.problems()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn scopes_and_the_order_of_actions() -> Result<()> {
    let world = start()?;
    let manifests = world.lab.manifests();
    let allow_client =
        for_far("rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]");
    manifests.apply("allow.yaml", &policy("allow", "default", "", &allow_client))?;
    expect(&world, "an ALLOW of the workload", PORT, [true, false, false])?;
    manifests.apply(
        "mesh.yaml",
        &policy(
            "everybody",
            "istio-system",
            "",
            "{rules: [{from: [{source: {principals: [\"*/sa/twin\"]}}]}]}",
        ),
    )?;
    expect(&world, "and one of the mesh: either will do", PORT, [true, true, false])?;
    let deny = "{action: DENY, rules: [{from: [{source: {serviceAccounts: [client]}}]}]}";
    manifests.apply("deny.yaml", &policy("deny", "default", "", deny))?;
    expect(&world, "DENY of the namespace goes before both", PORT, [false, true, false])?;
    manifests.apply("deny.yaml", &policy("deny", "other", "", deny))?;
    expect(&world, "not that of another namespace", PORT, [true, true, false])?;
    manifests.apply("allow.yaml", "")?;
    manifests.apply("mesh.yaml", "")?;
    expect(&world, "no policy: everything is allowed", PORT, ALL)?;
    // What cannot be read takes nothing out of force.
    manifests.apply("allow.yaml", &policy("allow", "default", "", &allow_client))?;
    expect(&world, "once more", PORT, [true, false, false])?;
    let broken = for_far("rules: [{from: [{source: {ipBlocks: [10.0.0.300]}}]}]");
    manifests.apply("allow.yaml", &policy("allow", "default", "", &broken))?;
    world.agent_b.wait_for("status", "the broken policy is reported", |status| {
        status["problems"].to_string().contains("10.0.0.300")
    })?;
    expect(&world, "the last good state of a policy stays", PORT, [true, false, false])?;
    Ok(())
}

#[test]
fn what_is_decided_is_recorded_and_counted() -> Result<()> {
    let world = start()?;
    let agent = &world.agent_b;
    let all =
        |name: &str, annotations: &str, spec: &str| policy(name, "default", annotations, &for_far(spec));
    let by_client = "rules: [{from: [{source: {serviceAccounts: [client]}}]}]";
    // The connections below are the first that these policies judge, and the records are theirs.
    apply(
        &world,
        "policies.yaml",
        &[
            all("audit", "", "action: AUDIT, rules: [{}, {}]"),
            all("dry", "istio.io/dry-run: \"true\"", &format!("action: DENY, {by_client}")),
            all("allow", "", &by_client.replace("client", "client, twin")),
        ]
        .join("---\n"),
    )?;
    expect(&world, "a dry run refuses nothing", PORT, [true, true, false])?;
    let of = |account: &'static str| {
        move |flow: &Value| {
            flow["source"]["pod"] == format!("default/{account}") && flow["reporter"] == "destination"
        }
    };
    let flows = agent.wait_flows(1, "flows of client", of("client"))?;
    let mark = &flows.last().context("a flow")?["policy"];
    assert_eq!(mark["allowed_by"], "default/allow rules[0]", "{mark}");
    assert_eq!(mark["dry_run"], "denied by default/dry rules[0]", "{mark}");
    assert!(mark["audited"][0].as_str().is_some_and(|rule| rule.starts_with("default/audit ")), "{mark}");
    let flows = agent.wait_flows(1, "flows of twin", of("twin"))?;
    let mark = &flows.last().context("a flow")?["policy"];
    assert_eq!((&mark["dry_run"], &mark["allowed_by"]), (&Value::Null, &"default/allow rules[0]".into()));
    let refused = agent.wait_flows(1, "flows of outside", |flow| {
        flow["outcome"] == "refused_policy" && flow["source"]["pod"] == "default/outside"
    })?;
    let flow = refused.last().context("a flow")?;
    assert_eq!(flow["response_flags"], "DENY", "{flow:#}");
    assert!(
        flow["error"].as_str().is_some_and(|error| error.contains("no ALLOW policy matches")),
        "{flow:#}"
    );
    assert!(flow["source"]["identity"].is_null(), "plaintext proves nobody: {flow:#}");
    for labels in [
        &["effect=\"allowed\"", "policy=\"default/allow\""][..],
        &["effect=\"would_refuse\"", "reason=\"denied\"", "policy=\"default/dry\""],
        &["effect=\"audited\"", "policy=\"default/audit\""],
        &["effect=\"refused\"", "reason=\"not_allowed\""],
    ] {
        assert!(agent.metric("mesh_authorization_decisions_total", labels)? >= 1.0, "{labels:?}");
    }
    apply(&world, "policies.yaml", &all("deny", "", &format!("action: DENY, {by_client}")))?;
    expect(&world, "in force", PORT, [false, true, true])?;
    let denied = agent.wait_flows(1, "denied flows", |flow| {
        flow["error"].as_str().is_some_and(|error| error.contains("denied by default/deny rules[0]"))
    })?;
    assert_eq!(denied[0]["outcome"], "refused_policy");
    // The client's own agent knows that it was policy, and tries nobody else.
    let own = world.agent_a.wait_flows(1, "refused at the source", |flow| {
        flow["reporter"] == "source" && flow["outcome"] == "refused_policy"
    })?;
    assert_eq!(own[0]["response_flags"], "DENY", "{:#}", own[0]);
    Ok(())
}

/// Holds connections to an echo server.
fn hold(pod: &Pod, to: &str, count: u64) -> Result<Process> {
    holder(|argv| pod.spawn(argv), "tcp", &[to.to_owned()], &["--count", &count.to_string()])
}

/// Waits until all that is held has been reset.
fn wait_reset(process: &Process, count: u64) -> Result<()> {
    eventually(SECONDS_10, "the connections end", || {
        (last_line(process)["ended"]["reset"].as_u64() == Some(count)).then_some(())
    })
    .with_context(|| process.stdout())
}

#[test]
fn a_policy_that_becomes_different_ends_what_it_no_longer_allows_and_nothing_else() -> Result<()> {
    let world = World::start(true)?;
    world.serve("echo")?;
    let manifests = world.lab.manifests();
    let to = format!("{}:{PORT}", world.far.v4);
    let to_service = v4("far");
    let [over_hbone, by_service] = [&to, &to_service].map(|to| hold(&world.client, to, 20));
    let (over_hbone, by_service) = (over_hbone?, by_service?);
    let same_node = hold(&world.twin, &to, 20)?;
    let [plain, plain_too] = [(), ()].map(|()| hold(&world.outside, &to, 20));
    let (plain, plain_too) = (plain?, plain_too?);
    let deny = |who: &str| {
        for_far(&format!("action: DENY, rules: [{{from: [{{source: {{serviceAccounts: [{who}]}}}}]}}]"))
    };
    manifests.apply("deny.yaml", &policy("deny", "default", "", &deny("client")))?;
    wait_reset(&over_hbone, 20)?;
    wait_reset(&by_service, 20)?;
    let revoked = world.agent_b.wait_flows(40, "a record each", |flow| flow["outcome"] == "revoked")?;
    assert!(
        revoked
            .iter()
            .all(|flow| flow["source"]["pod"] == "default/client" && flow["response_flags"] == "DENY"),
        "{revoked:#?}"
    );
    let labels = ["effect=\"revoked\"", "policy=\"default/deny\""];
    let count = world.agent_b.metric("mesh_authorization_decisions_total", &labels)?;
    assert!((count - 40.0).abs() < 0.5, "{count}");
    assert_alive(&plain_too, 20, "plaintext is not denied")?;
    manifests.apply("deny.yaml", &policy("deny", "default", "", &deny("client, twin")))?;
    wait_reset(&same_node, 20)?;
    // STRICT ends plaintext that is open, and nothing else.
    manifests.apply("deny.yaml", "")?;
    eventually(SECONDS_10, "nothing is denied", || {
        (world.client.connect(&[&to, "--mode", "echo"]).ok()?.ok == 1).then_some(())
    })?;
    let mutual = hold(&world.client, &to, 20)?;
    manifests
        .apply("strict.yaml", &peer_authentication("default", "istio-system", "  mtls: {mode: STRICT}\n"))?;
    wait_reset(&plain, 20)?;
    assert_alive(&mutual, 20, "mutual TLS goes on under STRICT")
}

#[test]
fn policies_that_come_and_go_under_load_cost_no_connection() -> Result<()> {
    let world = World::start(true)?;
    world.serve("echo")?;
    let manifests = world.lab.manifests();
    let to = v4("far");
    let allow = policy(
        "allow",
        "default",
        "",
        &for_far(
            "rules: [{from: [{source: {serviceAccounts: [client]}}]}, {from: [{source: {namespaces: [prod]}}]}]",
        ),
    );
    manifests.apply("allow.yaml", &allow)?;
    eventually(SECONDS_10, "in force", || {
        (world.twin.connect(&[&to, "--mode", "echo"]).ok()?.ok == 0).then_some(())
    })?;
    let short = world.client.load(&[&to, "--mode", "echo", "--concurrency", "4"])?;
    let kept = world.client.load(&[&to, "--mode", "echo", "--concurrency", "4", "--keep"])?;
    for round in 0..20 {
        apply(
            &world,
            "other.yaml",
            &policy(
                &format!("other-{}", round % 5),
                "default",
                "",
                &for_far(&format!(
                    "action: DENY, rules: [{{from: [{{source: {{principals: [\"*/sa/twin-{round}\"]}}}}]}}]"
                )),
            ),
        )?;
        assert_eq!(world.twin.connect(&[&to, "--mode", "echo"])?.ok, 0, "never open, not for a moment");
    }
    for load in [&short, &kept] {
        let summary = Summary::end(load)?;
        assert_eq!(summary.failed, 0, "{summary:?}");
        assert!(summary.ok > 100, "{summary:?}");
    }
    Ok(())
}

#[test]
fn with_the_agent_dead_nobody_comes_past_a_policy() -> Result<()> {
    let world = start()?;
    let policies =
        policy("allow", "default", "", &for_far("rules: [{from: [{source: {namespaces: [default]}}]}]"));
    world.lab.manifests().apply("policy.yaml", &policies)?;
    expect(&world, "plaintext is not allowed", PORT, [true, true, false])?;
    world.agent_b.kill()?;
    let summary = world.outside.connect(&[&format!("{}:{PORT}", world.far.v4), "--count", "3"])?;
    assert_eq!(summary.ok, 0, "{summary:?}");
    let agent = world.agent_b.restart()?;
    agent.wait_enrolled(&[&world.far, &world.twin])?;
    expect(&world, "with the next agent", PORT, [true, true, false])
}

#[test]
fn with_the_clients_agent_dead_nobody_who_is_denied_comes_as_nobody() -> Result<()> {
    let world = start()?;
    let deny = for_far("action: DENY, rules: [{from: [{source: {serviceAccounts: [client]}}]}]");
    world.lab.manifests().apply("policy.yaml", &policy("deny", "default", "", &deny))?;
    expect(&world, "denied by name, and plaintext is not", PORT, [false, true, true])?;
    crate::policy::wait_generation(&world.agent_a)?;
    world.agent_a.kill()?;
    for target in [format!("{}:{PORT}", world.far.v4), v4("far"), v4("both")] {
        let summary = world.client.connect(&[&target, "--count", "4", "--timeout-ms", "3000"])?;
        assert!(!summary.by_name.contains_key("far"), "{target}: {summary:?}");
    }
    // Where nobody is asked who they are, plaintext goes on as PERMISSIVE has it.
    assert_eq!(world.client.connect(&[&v4("near"), "--count", "3"])?.ok, 3);
    Ok(())
}

#[test]
fn a_pod_that_is_not_enrolled_yet_is_guarded_by_its_nodes_agent() -> Result<()> {
    let world = World::start(true)?;
    world.serve("echo")?;
    // Enrolled by its labels, with a namespace that the agent does not find.
    let late = world.a.pod(PodSpec::new("late"))?;
    let manifest = late.manifest().replace("/var/run/netns/", "/var/run/netns/not-there-");
    world.lab.manifests().apply("late.yaml", &manifest)?;
    late.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "echo"])?;
    let to = format!("{}:{PORT}", late.v4);
    eventually(SECONDS_10, "it is known", || {
        let workloads = world.agent_a.json("/v1/workloads").ok()?;
        workloads.to_string().contains("\"late\"").then_some(())
    })?;
    let held = hold(&world.client, &to, 5)?;
    let deny = "{selector: {matchLabels: {app: late}}, action: DENY, rules: [{}]}";
    world.lab.manifests().apply("policy.yaml", &policy("deny", "default", "", deny))?;
    wait_reset(&held, 5)?;
    assert_eq!(world.client.connect(&[&to, "--mode", "echo"])?.ok, 0);
    Ok(())
}
