//! Limits, outliers, retries and timeouts of enrolled clients: backends that hang, reset, close and refuse, with every connection
//! accounted for.

use anyhow::{Context, Result, ensure};
use mesh_tests::{Agent, NetNs, Pod, Process, SECONDS_10, SECONDS_30, eventually};
use serde_json::Value;

use crate::world::{PORT, World, service, v4};

/// A `DestinationRule` for a service, with this `trafficPolicy` (YAML, in flow style).
fn rule(service: &str, policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: limits, namespace: default}}\nspec:\n  \
         host: {service}\n  trafficPolicy: {policy}\n"
    )
}

/// Applies it, and waits until the client's agent has it.
fn apply(world: &World, service: &str, policy: &str) -> Result<()> {
    let generation = generation(&world.agent_a)?;
    world.lab.manifests().apply("limits.yaml", &rule(service, policy))?;
    eventually(SECONDS_30, "the rule is in force", || {
        (self::generation(&world.agent_a).ok()? > generation).then_some(())
    })?;
    let problems = world.agent_a.problems()?;
    ensure!(problems.is_empty(), "{problems:?}");
    Ok(())
}

fn generation(agent: &Agent) -> Result<u64> {
    agent.status()?["generation"].as_u64().context("a generation")
}

/// A server in a pod, in a mode of `mesh-peer`.
fn serve(pod: &Pod, mode: &str) -> Result<Process> {
    pod.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", mode])
}

fn count(agent: &Agent, metric: &str, labels: &[&str]) -> Result<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are small here")]
    Ok(agent.metric(metric, labels)? as u64)
}

/// Connections that the client's agent has ended so.
fn ended(world: &World, outcome: &str) -> Result<u64> {
    let outcome = format!("outcome=\"{outcome}\"");
    count(&world.agent_a, "mesh_flows_total", &["direction=\"outbound\"", &outcome])
}

fn wait_ended(world: &World, outcome: &str, wanted: u64) -> Result<()> {
    let found = eventually(SECONDS_30, "all connections are recorded", || {
        (ended(world, outcome).ok()? == wanted).then_some(())
    });
    found.with_context(|| format!("{outcome}: {:?} of {wanted}", ended(world, outcome)))
}

/// What the agent tells of a backend's live state.
fn live(agent: &Agent, service: &str, pod: &Pod) -> Result<Value> {
    let services = agent.json("/v1/services")?;
    let service = services.as_array().into_iter().flatten().find(|report| report["name"] == service);
    let ports = service.context("the service")?["ports"].as_array().cloned().unwrap_or_default();
    let address = format!("{}:{PORT}", pod.v4);
    let backends = ports.iter().flat_map(|port| port["backends"].as_array().into_iter().flatten());
    let backend = backends.into_iter().find(|backend| backend["address"] == address.as_str());
    Ok(backend.context("the backend")?["live"].clone())
}

fn is_ejected(agent: &Agent, service: &str, pod: &Pod) -> Result<bool> {
    Ok(!live(agent, service, pod)?["ejected_until"].is_null())
}

const OUTLIERS: &str = "{outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 60s, \
                        maxEjectionPercent: 100}}";

#[test]
fn of_twenty_clients_at_once_one_gets_the_only_place() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    apply(&world, "far", "{connectionPool: {tcp: {maxConnections: 1}}}")?;
    for round in 1..=3 {
        let summary =
            world.client.connect(&[&v4("far"), "--count", "20", "--concurrency", "20", "--keep"])?;
        assert_eq!((summary.ok, summary.failed), (1, 19), "{summary:?}");
        assert_eq!(summary.errors.get("reset"), Some(&19), "{summary:?}");
        assert!(summary.failed_max_ms < 5000, "refused at once: {summary:?}");
        wait_ended(&world, "overflow", 19 * round)?;
        // The one that had the place must be gone before the next ones come.
        wait_ended(&world, "closed", round)?;
    }
    let labels = ["limit=\"max_connections\"", "destination=\"default/far:8080\""];
    assert_eq!(count(&world.agent_a, "mesh_circuit_breaker_refused_total", &labels)?, 57);
    let flags = ["reporter=\"source\"", "response_flags=\"UO\"", "destination_service_name=\"far\""];
    assert_eq!(count(&world.agent_a, "istio_tcp_connections_closed_total", &flags)?, 57);
    let flows = world.agent_a.wait_flows(57, "a record each", |flow| flow["response_flags"] == "UO")?;
    assert!(flows.iter().all(|flow| flow["error"].as_str().is_some_and(|why| why.contains("limit"))));
    // What goes elsewhere is not concerned.
    assert_eq!(
        world.client.connect(&[&v4("both"), "--count", "20", "--concurrency", "20", "--keep"])?.ok,
        20
    );
    Ok(())
}

/// With what a backend of `both` does to connections that stand; how many fail before it is ejected is exact.
fn ejected_after_three(mode: &str, error: &str) -> Result<()> {
    let world = World::start(true)?;
    serve(&world.twin, "http")?;
    let broken = serve(&world.far, mode)?;
    apply(&world, "both", OUTLIERS)?;
    let summary = world.client.connect(&[&v4("both"), "--count", "60"])?;
    assert_eq!((summary.ok, summary.failed), (57, 3), "{mode}: {summary:?}");
    assert_eq!(summary.errors.get(error), Some(&3), "{mode}: {summary:?}");
    assert_eq!(summary.by_name.get("twin"), Some(&57), "{mode}: {summary:?}");
    assert!(
        is_ejected(&world.agent_a, "both", &world.far)?,
        "{:?}",
        live(&world.agent_a, "both", &world.far)
    );
    let labels = ["reason=\"consecutive_5xx_errors\"", "destination=\"default/both:8080\""];
    assert_eq!(count(&world.agent_a, "mesh_outlier_ejections_total", &labels)?, 1);
    assert_eq!(count(&world.agent_a, "mesh_outlier_ejections_active", &labels[1..])?, 1);
    assert!(world.agent_a.log().contains("endpoint ejected"), "{}", world.agent_a.log());
    for (pod, begun) in [(&world.far, 3), (&world.twin, 57)] {
        assert_eq!(live(&world.agent_a, "both", pod)?["begun"], begun, "{}", pod.spec.name);
    }
    // Another destination with the same endpoint is not concerned.
    assert!(live(&world.agent_a, "far", &world.far)?.is_null());
    broken.kill()
}

#[test]
fn a_backend_that_resets_is_ejected() -> Result<()> {
    ejected_after_three("reset", "reset")
}

#[test]
fn a_backend_that_closes_at_once_is_ejected() -> Result<()> {
    ejected_after_three("close", "eof")
}

#[test]
fn a_backend_that_was_ejected_returns_when_it_is_well() -> Result<()> {
    let world = World::start(true)?;
    serve(&world.twin, "http")?;
    let broken = serve(&world.far, "reset")?;
    let policy = "{outlierDetection: {consecutive5xxErrors: 3, interval: 500ms, baseEjectionTime: 2s, \
                  maxEjectionPercent: 100}}";
    apply(&world, "both", policy)?;
    eventually(SECONDS_30, "the backend is ejected", || {
        world.client.connect(&[&v4("both"), "--count", "10"]).ok()?;
        is_ejected(&world.agent_a, "both", &world.far).ok()?.then_some(())
    })?;
    broken.kill()?;
    serve(&world.far, "http")?;
    eventually(SECONDS_30, "the backend is back, and answers", || {
        let summary = world.client.connect(&[&v4("both"), "--count", "10"]).ok()?;
        (summary.failed == 0 && summary.by_name.contains_key("far")).then_some(())
    })?;
    assert!(!is_ejected(&world.agent_a, "both", &world.far)?);
    assert!(count(&world.agent_a, "mesh_outlier_returns_total", &[])? >= 1);
    assert!(world.agent_a.log().contains("endpoint returned"), "{}", world.agent_a.log());
    Ok(())
}

#[test]
fn a_backend_that_answers_no_syn_is_retried_elsewhere_and_ejected() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    // Its answers get lost on the way back.
    world.outside.netns().ip(&format!("route add blackhole {}/32\n", world.client.v4))?;
    let policy = "{connectionPool: {tcp: {connectTimeout: 200ms}}, outlierDetection: {consecutive5xxErrors: 3, \
                  interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}}";
    apply(&world, "mixed", policy)?;
    let summary = world.client.connect(&[&v4("mixed"), "--count", "60"])?;
    assert_eq!((summary.ok, summary.failed), (60, 0), "{summary:?}");
    assert_eq!(summary.by_name.get("far"), Some(&60), "{summary:?}");
    assert!(is_ejected(&world.agent_a, "mixed", &world.outside)?);
    let retries = ["result=\"succeeded\"", "destination=\"default/mixed:8080\""];
    assert_eq!(
        count(&world.agent_a, "mesh_connect_retries_total", &retries)?,
        3,
        "one a failure, and no more"
    );
    Ok(())
}

#[test]
fn a_backend_that_accepts_and_never_answers_is_ejected_by_the_idle_timeout() -> Result<()> {
    let world = World::start(true)?;
    serve(&world.twin, "http")?;
    serve(&world.far, "hang")?;
    let policy = "{connectionPool: {tcp: {idleTimeout: 400ms}}, outlierDetection: {consecutive5xxErrors: 3, \
                  interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}}";
    apply(&world, "both", policy)?;
    let summary = world.client.connect(&[&v4("both"), "--count", "60"])?;
    assert_eq!((summary.ok, summary.failed), (57, 3), "{summary:?}");
    assert_eq!(summary.errors.get("reset"), Some(&3), "{summary:?}");
    assert!(is_ejected(&world.agent_a, "both", &world.far)?);
    let flows = world.agent_a.wait_flows(3, "three were idle", |flow| flow["outcome"] == "idle_timeout")?;
    assert!(flows.len() == 3 && flows.iter().all(|flow| flow["response_flags"] == "SI"), "{flows:#?}");
    Ok(())
}

#[test]
fn a_connection_lasts_no_longer_than_it_may() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    apply(&world, "far", "{connectionPool: {tcp: {maxConnectionDuration: 500ms}}}")?;
    let load = world.client.load(&[&v4("far"), "--keep", "--concurrency", "1"])?;
    let flows =
        world.agent_a.wait_flows(2, "it was ended twice", |flow| flow["outcome"] == "max_duration")?;
    mesh_tests::peer::Summary::end(&load)?;
    for flow in &flows {
        assert_eq!(flow["response_flags"], "DT", "{flow:#}");
        assert!(flow["duration_ms"].as_u64().is_some_and(|millis| millis >= 500), "{flow:#}");
    }
    Ok(())
}

#[test]
fn where_nobody_answers_the_retries_end_and_the_flag_says_so() -> Result<()> {
    let world = World::start(true)?;
    let summary = world.client.connect(&[&v4("both"), "--count", "50"])?;
    assert_eq!((summary.ok, summary.errors.get("reset")), (0, Some(&50)), "{summary:?}");
    let flows = world.agent_a.wait_flows(50, "a record each", |flow| flow["direction"] == "outbound")?;
    assert!(flows.iter().all(|flow| flow["response_flags"] == "UF,URX"), "{flows:#?}");
    // Two endpoints: one retry each.
    assert_eq!(count(&world.agent_a, "mesh_connect_retries_total", &["result=\"failed\""])?, 50);
    Ok(())
}

#[test]
fn ten_thousand_connections_through_retries_are_all_accounted_for() -> Result<()> {
    const COUNT: u64 = 10_000;
    let world = World::start(true)?;
    // Nobody listens in `far`.
    serve(&world.twin, "http")?;
    let summary =
        world.client.connect(&[&v4("both"), "--count", &COUNT.to_string(), "--concurrency", "16"])?;
    assert_eq!(summary.ok + summary.failed, COUNT, "{summary:?}");
    assert_eq!(summary.by_name.get("twin"), Some(&summary.ok), "{summary:?}");
    wait_ended(&world, "closed", summary.ok)?;
    let retries = |result: &str| {
        count(&world.agent_a, "mesh_connect_retries_total", &[&format!("result=\"{result}\"")])
    };
    let (succeeded, failed, over) = (retries("succeeded")?, retries("failed")?, retries("over_budget")?);
    // Each try at `far` was one retry, or one that there was no room for.
    let at_b = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        count(&world.agent_b, "mesh_flows_total", &["direction=\"inbound\"", &outcome])
    };
    assert_eq!((failed, over), (0, summary.failed), "{summary:?}");
    assert_eq!(at_b("connect_failed")?, succeeded + over);
    assert_eq!(at_b("closed")?, summary.ok);
    assert_eq!(ended(&world, "connect_failed")? + ended(&world, "refused_by_peer")?, summary.failed);
    // Half of them, six standard deviations either way, and hardly one was given up.
    assert!((COUNT / 2 - 300..=COUNT / 2 + 300).contains(&(succeeded + over)), "{succeeded} {over}");
    assert!(summary.failed <= COUNT / 100, "{summary:?}");
    Ok(())
}

/// A `VirtualService` of `far` with these further lines of its one route.
fn routed(world: &World, fields: &str) -> Result<()> {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: far, namespace: default}}\nspec:\n  \
         hosts: [far]\n  http:\n  - route: [{{destination: {{host: far}}}}]\n{fields}"
    );
    // Routes of `http` are for ports of that protocol.
    let service = service("far", "app: far").replace("{name: tcp,", "{name: http,");
    world.lab.manifests().apply("far.yaml", &format!("{service}---\n{text}"))?;
    world.agent_a.wait_for("services", "the route is in force", |services| {
        let far = services.as_array().into_iter().flatten().find(|service| service["name"] == "far");
        far.is_some_and(|service| service["ports"][0]["rule"] == "default/far")
    })?;
    Ok(())
}

#[test]
fn where_a_route_asks_for_retries_the_only_endpoint_is_tried_so_often() -> Result<()> {
    let world = World::start(true)?;
    // Nobody listens in `far`.
    routed(&world, "    retries: {attempts: 4}\n")?;
    let summary = world.client.connect(&[&v4("far"), "--count", "10"])?;
    assert_eq!(summary.errors.get("reset"), Some(&10), "{summary:?}");
    let at_b = ["direction=\"inbound\"", "outcome=\"connect_failed\""];
    assert_eq!(count(&world.agent_b, "mesh_flows_total", &at_b)?, 50);
    assert_eq!(count(&world.agent_a, "mesh_connect_retries_total", &["result=\"failed\""])?, 40);
    let flows = world.agent_a.wait_flows(10, "a record each", |flow| flow["direction"] == "outbound")?;
    assert!(flows.len() == 10 && flows.iter().all(|flow| flow["response_flags"] == "UF,URX"), "{flows:#?}");
    Ok(())
}

#[test]
fn a_timeout_bounds_all_tries_together() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    world.far.netns().ip(&format!("route add blackhole {}/32\n", world.client.v4))?;
    routed(&world, "    timeout: 1s\n    retries: {attempts: 10, perTryTimeout: 400ms}\n")?;
    // As many as may be retried at once, whatever is open.
    let summary = world.client.connect(&[&v4("far"), "--count", "3", "--concurrency", "3"])?;
    assert_eq!(summary.errors.get("reset"), Some(&3), "{summary:?}");
    let flows = world.agent_a.wait_flows(3, "a record each", |flow| flow["outcome"] == "connect_timeout")?;
    for flow in &flows {
        // No sooner than two tries, and no try after the end.
        assert!(flow["duration_ms"].as_u64().is_some_and(|millis| millis >= 800), "{flow:#}");
    }
    let retries = count(&world.agent_a, "mesh_connect_retries_total", &["result=\"failed\""])?;
    assert!((3..=6).contains(&retries), "one or two each: {retries}");
    Ok(())
}

#[test]
fn of_five_clients_of_a_silent_backend_one_may_wait() -> Result<()> {
    let world = World::start(true)?;
    world.outside.netns().ip(&format!("route add blackhole {}/32\n", world.client.v4))?;
    let policy = "{connectionPool: {tcp: {connectTimeout: 2s}, http: {http1MaxPendingRequests: 1}}}";
    apply(&world, "outside", policy)?;
    let summary = world.client.connect(&[&v4("outside"), "--count", "5", "--concurrency", "5"])?;
    assert_eq!((summary.ok, summary.failed), (0, 5), "{summary:?}");
    let labels = ["limit=\"max_pending\"", "destination=\"default/outside:8080\""];
    assert_eq!(count(&world.agent_a, "mesh_circuit_breaker_refused_total", &labels)?, 4);
    wait_ended(&world, "overflow", 4)?;
    wait_ended(&world, "connect_timeout", 1)
}

#[test]
fn with_too_few_that_are_well_everybody_is_used() -> Result<()> {
    let world = World::start(true)?;
    serve(&world.twin, "http")?;
    serve(&world.far, "reset")?;
    let policy = "{outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 60s, \
                  maxEjectionPercent: 100, minHealthPercent: 60}}";
    apply(&world, "both", policy)?;
    let summary = world.client.connect(&[&v4("both"), "--count", "100"])?;
    // One of two is well, which is less than 60 %: the other is used in spite of its ejection. 6 sigma of n = 100 at p = 1/2: 30.
    assert!((20..=80).contains(&summary.failed), "{summary:?}");
    ensure!(
        is_ejected(&world.agent_a, "both", &world.far)?,
        "{:?}",
        live(&world.agent_a, "both", &world.far)
    );
    Ok(())
}

/// Whether the client's agent has an established connection to the server, with nothing of it unacknowledged.
fn stands_still(namespaces: &[&NetNs], server: &Pod) -> Result<bool> {
    let octets = server.v4.octets();
    // As the kernel prints it: the address as a number of the machine's byte order (proc(5), /proc/net/tcp).
    let remote = format!("{:08X}:{PORT:04X}", u32::from_ne_bytes(octets));
    for netns in namespaces {
        let table = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))??;
        let mut rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        // sl local remote state tx_queue:rx_queue …; 01 is ESTABLISHED.
        if rows
            .any(|row| row.len() > 4 && row[2] == remote && row[3] == "01" && row[4].starts_with("00000000:"))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn a_server_that_vanished_is_noticed_by_keepalive() -> Result<()> {
    let world = World::start(true)?;
    serve(&world.outside, "hang")?;
    let policy = "{connectionPool: {tcp: {tcpKeepalive: {time: 1s, interval: 1s, probes: 2}}}}";
    apply(&world, "outside", policy)?;
    let waiting =
        world.client.peer("connect", &[&v4("outside"), "--mode", "hang", "--timeout-ms", "60000"])?;
    eventually(SECONDS_10, "the connection stands, and the server has what was sent", || {
        let namespaces = [world.client.netns(), world.a.netns()];
        stands_still(&namespaces, &world.outside).ok()?.then_some(())
    })?;
    // From here on its answers get lost, to probes as well. Without the rule it would take the agent half an hour to notice.
    world.outside.netns().ip(&format!("route add blackhole {}/32\n", world.client.v4))?;
    let summary = mesh_tests::peer::Summary::of(&waiting, SECONDS_30)?;
    assert_eq!((summary.ok, summary.errors.get("reset")), (0, Some(&1)), "{summary:?}");
    Ok(())
}

#[test]
fn no_more_are_ejected_than_may_be() -> Result<()> {
    let world = World::start(true)?;
    let [_twin, _far] = [serve(&world.twin, "reset")?, serve(&world.far, "reset")?];
    apply(&world, "both", &OUTLIERS.replace("maxEjectionPercent: 100", "maxEjectionPercent: 50"))?;
    let summary = world.client.connect(&[&v4("both"), "--count", "100"])?;
    assert_eq!(summary.errors.get("reset"), Some(&100), "{summary:?}");
    let labels = ["destination=\"default/both:8080\""];
    assert_eq!(count(&world.agent_a, "mesh_outlier_ejections_active", &labels)?, 1);
    assert!(count(&world.agent_a, "mesh_outlier_ejections_spared_total", &labels)? > 0);
    Ok(())
}
