//! `ServiceEntry`s and `WorkloadEntry`s: what runs elsewhere as services and endpoints, in both planes.

use anyhow::Result;
use mesh_tests::peer::{Report, Summary};
use mesh_tests::{Lab, Pod, PodSpec, SECONDS_10, eventually};
use serde_json::Value;

use crate::world::{PORT, World, namespace, service, v4};

/// At which the entries' hosts are reached.
const ADDRESS: &str = "192.0.2.10";
const ASKED: &str = "192.0.2.10:80";
const ASKED_V6: &str = "[2001:db8::10]:80";

/// An entry `api.example.com` whose port 80 its endpoints serve at [`PORT`].
fn entry(endpoints: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: default}}\nspec:\n  \
         hosts: [api.example.com]\n  addresses: [{ADDRESS}, \"2001:db8::10\"]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {PORT}}}]\n  {endpoints}\n"
    )
}

fn workload_entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: default}}\nspec: {{{spec}}}\n"
    )
}

/// What serves somewhere else: no agent knows of it.
fn elsewhere(world: &World, name: &str) -> Result<Pod> {
    let pod = world.b.pod(PodSpec::new(name))?;
    pod.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "http"])?;
    Ok(pod)
}

/// The shares of the IPv4 backends that the agent's API tells of the entry's host, in millionths and sorted.
fn shares(services: &Value) -> Vec<u64> {
    let mut services = services.as_array().into_iter().flatten();
    let service = services.find(|service| service["name"] == "api.example.com");
    let backends = service.and_then(|service| service["ports"][0]["backends"].as_array());
    let v4 = |backend: &&Value| backend["address"].as_str().is_some_and(|address| !address.starts_with('['));
    let mut shares: Vec<u64> = backends
        .into_iter()
        .flatten()
        .filter(v4)
        .filter_map(|backend| backend["share_ppm"].as_u64())
        .collect();
    shares.sort_unstable();
    shares
}

fn wait_shares(world: &World, what: &str, wanted: &[u64]) -> Result<()> {
    world.agent_a.wait_for("services", what, |services| shares(services) == wanted)?;
    Ok(())
}

/// Until what the API tells is in the kernel: who answers has become these.
fn wait_answers(client: &Pod, target: &str, names: &[&str]) -> Result<()> {
    eventually(SECONDS_10, "the change is in the kernel", || {
        let few = client.connect(&[target, "--count", "40"]).ok()?;
        let all: Vec<&str> = few.by_name.keys().map(String::as_str).collect();
        (few.failed == 0 && all == names).then_some(())
    })
}

fn count(summary: &Summary, name: &str) -> u64 {
    summary.by_name.get(name).copied().unwrap_or(0)
}

/// Weighted 3 to 1, by IPv4 and IPv6; ports that the entry does not have are left alone.
fn is_reached(enrolled: bool) -> Result<()> {
    let world = World::start(enrolled)?;
    let (one, two) = (elsewhere(&world, "one")?, elsewhere(&world, "two")?);
    let endpoints = [(&one, 3), (&two, 1)].map(|(pod, weight)| {
        format!("{{address: {}, weight: {weight}}}, {{address: \"{}\", weight: {weight}}}", pod.v4, pod.v6)
    });
    world.lab.manifests().apply("entry.yaml", &entry(&format!("endpoints: [{}]", endpoints.join(", "))))?;
    wait_shares(&world, "the entry is a service", &[250_000, 750_000])?;
    wait_answers(&world.client, ASKED, &["one", "two"])?;
    for target in [ASKED, ASKED_V6] {
        let summary = world.client.connect(&[target, "--count", "1000", "--concurrency", "8"])?;
        assert_eq!((summary.ok, summary.failed), (1000, 0), "{target}: {summary:?}");
        // 6 sigma of a binomial with n = 1000 and p = 3/4.
        assert!(count(&summary, "one").abs_diff(750) < 83, "{target}: {summary:?}");
        assert_eq!(summary.getpeername.keys().collect::<Vec<_>>(), [target], "{summary:?}");
    }
    // The node's own processes are served as well.
    assert_eq!(world.a.connect(&[ASKED, "--count", "5"])?.ok, 5);
    // A port of an address of the cluster's that no service has is refused at once; one of an entry's address goes out.
    let other = world.client.connect(&[&format!("{ADDRESS}:81"), "--timeout-ms", "300"])?;
    assert_eq!(other.errors.get("refused"), None, "{other:?}");
    // Gone with the entry.
    world.lab.manifests().delete("entry.yaml")?;
    wait_shares(&world, "the entry is gone", &[])?;
    let gone = || world.client.connect(&[ASKED, "--timeout-ms", "300"]).ok().filter(|gone| gone.ok == 0);
    eventually(SECONDS_10, "nothing is reached any more", gone)?;
    Ok(())
}

#[test]
fn an_enrolled_client_reaches_an_entry_by_its_address() -> Result<()> {
    is_reached(true)
}

#[test]
fn everybody_else_reaches_an_entry_by_its_address() -> Result<()> {
    is_reached(false)
}

/// 80 to 20, asked for at the Kubernetes Service's address and at the entry's.
fn is_split(enrolled: bool) -> Result<()> {
    let world = World::start(enrolled)?;
    world.serve("http")?;
    let one = elsewhere(&world, "one")?;
    let manifests = world.lab.manifests();
    manifests.apply("entry.yaml", &entry(&format!("endpoints: [{{address: {}}}]", one.v4)))?;
    let split = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: split, namespace: default}}\nspec:\n  \
         hosts: [near, api.example.com]\n  http:\n  - route:\n    - {{destination: {{host: api.example.com, port: {{number: 80}}}}, weight: 80}}\n    \
         - {{destination: {{host: near, port: {{number: {PORT}}}}}, weight: 20}}\n"
    );
    // A port by the name `tcp` takes no routes of http.
    manifests.apply("split.yaml", &split.replace("http:", "tcp:"))?;
    let by_split = |services: &Value| {
        let routed = |service: &&Value| service["ports"][0]["rule"] == "default/split";
        services.as_array().into_iter().flatten().filter(routed).count() == 2
    };
    world.agent_a.wait_for("services", "both are split", by_split)?;
    for target in [v4("near"), ASKED.to_owned()] {
        wait_answers(&world.client, &target, &["near", "one"])?;
        let summary = world.client.connect(&[&target, "--count", "1000", "--concurrency", "8"])?;
        assert_eq!((summary.ok, summary.failed), (1000, 0), "{target}: {summary:?}");
        // 6 sigma of a binomial with n = 1000 and p = 4/5.
        assert!(count(&summary, "one").abs_diff(800) < 76, "{target}: {summary:?}");
    }
    Ok(())
}

#[test]
fn an_entry_and_a_service_share_the_connections_of_enrolled_clients() -> Result<()> {
    is_split(true)
}

#[test]
fn an_entry_and_a_service_share_the_connections_of_everybody_else() -> Result<()> {
    is_split(false)
}

/// A pod of the mesh and something elsewhere behind one host; labels, weights and the entry itself change at runtime.
#[test]
fn a_selector_finds_pods_and_workload_entries_as_they_come_and_go() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    let one = elsewhere(&world, "one")?;
    let manifests = world.lab.manifests();
    manifests.apply("entry.yaml", &entry("workloadSelector: {labels: {app: far}}"))?;
    wait_shares(&world, "the pod is selected", &[1_000_000])?;
    wait_answers(&world.client, ASKED, &["far"])?;
    let vm = |labels: &str, weight: u32| {
        workload_entry("vm", &format!("address: {}, weight: {weight}, labels: {{{labels}}}", one.v4))
    };
    manifests.apply("vm.yaml", &vm("app: far", 1))?;
    wait_shares(&world, "the workload entry is selected", &[500_000, 500_000])?;
    wait_answers(&world.client, ASKED, &["far", "one"])?;
    // The pod is reached in the mesh, and what is elsewhere as it is.
    let flows = world.agent_a.flows()?;
    let of = |address: String, security: &str| {
        let is_it = |flow: &&Value| {
            flow["destination"]["address"] == address.as_str() && flow["security"] == security
        };
        flows.iter().filter(is_it).count()
    };
    assert!(of(format!("{}:{PORT}", world.far.v4), "mutual_tls") > 0, "{flows:?}");
    assert!(of(format!("{}:{PORT}", one.v4), "none") > 0, "{flows:?}");
    manifests.apply("vm.yaml", &vm("app: far", 9))?;
    wait_shares(&world, "the weight is another", &[100_000, 900_000])?;
    let summary = world.client.connect(&[ASKED, "--count", "1000", "--concurrency", "8"])?;
    assert_eq!((summary.ok, summary.failed), (1000, 0), "{summary:?}");
    // 6 sigma of a binomial with n = 1000 and p = 9/10.
    assert!(count(&summary, "one").abs_diff(900) < 57, "{summary:?}");
    // Another label takes it out: what is under way to it then ends with it, as with any endpoint that goes, and nothing else fails.
    let load = world.client.load(&[ASKED])?;
    manifests.apply("vm.yaml", &vm("app: other", 9))?;
    wait_shares(&world, "the workload entry is selected no more", &[1_000_000])?;
    wait_answers(&world.client, ASKED, &["far"])?;
    let summary = Summary::end(&load)?;
    let resets = summary.errors.get("reset").copied().unwrap_or(0);
    assert!(summary.ok > 0 && summary.failed == resets && resets <= 8, "{summary:?}");
    Ok(())
}

/// Every connection to a service of the cluster is copied to what is elsewhere, to the last byte.
#[test]
fn an_entry_is_mirrored_to() -> Result<()> {
    let world = World::start(true)?;
    world.far.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "discard"])?;
    let shadow = world.b.pod(PodSpec::new("shadow"))?;
    let shadow_server =
        shadow.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "discard", "--report"])?;
    let mirrored = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: far, namespace: default}\nspec:\n  \
         hosts: [far]\n  http:\n  - route: [{destination: {host: far}}]\n    mirror: {host: api.example.com, port: {number: 80}}\n";
    let service = service("far", "app: far").replace("{name: tcp,", "{name: http,");
    let entry = entry(&format!("endpoints: [{{address: {}}}]", shadow.v4));
    world.lab.manifests().apply("far.yaml", &[entry, service, mirrored.to_owned()].join("---\n"))?;
    world.agent_a.wait_for("services", "the route is in force", |services| {
        let mut services = services.as_array().into_iter().flatten();
        services.any(|one| one["name"] == "far" && one["ports"][0]["rule"] == "default/far")
    })?;
    let summary =
        world.client.connect(&[&v4("far"), "--mode", "discard", "--count", "100", "--bytes", "50000"])?;
    assert_eq!((summary.ok, summary.failed), (100, 0), "{summary:?}");
    let reports = eventually(SECONDS_10, "the shadow has them all", || {
        let lines = shadow_server.stdout();
        let reports: Vec<Report> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (reports.len() == 100).then_some(reports)
    })?;
    assert!(reports.iter().all(|one| one.end == "eof" && one.bytes == 50_000), "{reports:?}");
    let copies = world.agent_a.wait_flows(100, "a record each", |flow| flow["direction"] == "mirrored")?;
    assert!(copies.iter().all(|flow| flow["service"]["name"] == "api.example.com"), "{copies:#?}");
    Ok(())
}

/// One of two that are elsewhere resets its clients: after three of them nobody is sent there.
#[test]
fn an_entrys_endpoint_is_ejected() -> Result<()> {
    let world = World::start(true)?;
    let well = elsewhere(&world, "well")?;
    let ill = world.b.pod(PodSpec::new("ill"))?;
    ill.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "reset"])?;
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: api, namespace: default}\nspec:\n  \
                host: api.example.com\n  trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3, interval: 1s, \
                baseEjectionTime: 60s, maxEjectionPercent: 100}}\n";
    let entry = entry(&format!("endpoints: [{{address: {}}}, {{address: {}}}]", well.v4, ill.v4));
    world.lab.manifests().apply("entry.yaml", &format!("{rule}---\n{entry}"))?;
    wait_shares(&world, "the entry is a service", &[500_000, 500_000])?;
    let summary = world.client.connect(&[ASKED, "--count", "60"])?;
    assert_eq!((summary.ok, summary.failed), (57, 3), "{summary:?}");
    assert_eq!(summary.errors.get("reset"), Some(&3), "{summary:?}");
    let ejected = world.agent_a.metric("mesh_outlier_ejections_active", &["api.example.com"])?;
    assert!((ejected - 1.0).abs() < f64::EPSILON, "{}", world.agent_a.metrics()?);
    Ok(())
}

/// A workload elsewhere that takes HBONE: one of another mesh, whose agent knows it as its pod. It is reached under the identity
/// that its entry names, and under no other.
#[test]
fn a_workload_entry_that_takes_hbone_must_show_its_identity() -> Result<()> {
    let lab = Lab::unique()?;
    let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
    let client = a.pod(PodSpec::new("client"))?;
    let vm = b.pod(PodSpec::new("vm").label("istio.io/dataplane-mode", "ambient"))?;
    vm.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "http"])?;
    let manifests = lab.manifests();
    manifests.apply("namespace.yaml", &namespace("default", true))?;
    manifests.apply("client.yaml", &client.manifest())?;
    manifests.apply("entry.yaml", &entry("workloadSelector: {labels: {app: billing}}"))?;
    let billing = |account: &str| {
        let labels = "{app: billing, networking.istio.io/tunnel: http}";
        workload_entry("billing", &format!("address: {}, serviceAccount: {account}, labels: {labels}", vm.v4))
    };
    manifests.apply("billing.yaml", &billing("vm"))?;
    let theirs = lab.folder().join("theirs");
    std::fs::create_dir_all(&theirs)?;
    std::fs::write(theirs.join("vm.yaml"), vm.manifest())?;
    let agent_a = a.agent().start()?;
    let agent_b = b.agent().flag("--manifests", &theirs.to_string_lossy()).start()?;
    agent_a.wait_enrolled(&[&client])?;
    agent_b.wait_enrolled(&[&vm])?;
    let summary = client.connect(&[ASKED, "--count", "20"])?;
    assert_eq!((summary.ok, summary.failed), (20, 0), "{summary:?}\n{}", agent_a.log());
    let flows = agent_b.wait_flows(20, "they came over mutual TLS", |flow| {
        flow["security"] == "mutual_tls" && flow["direction"] == "inbound"
    })?;
    let source = &flows[0]["source"]["identity"];
    assert_eq!(source, "spiffe://cluster.local/ns/default/sa/client", "{flows:?}");
    // Asked for by its own address as well.
    let direct = client.connect(&[&format!("{}:{PORT}", vm.v4), "--count", "5"])?;
    assert_eq!(direct.ok, 5, "{direct:?}");
    agent_b.wait_flows(25, "these as well", |flow| {
        flow["security"] == "mutual_tls" && flow["direction"] == "inbound"
    })?;
    manifests.apply("billing.yaml", &billing("somebody"))?;
    agent_a.wait_for("workloads", "the entry names another account", |workloads| {
        let mut workloads = workloads.as_array().into_iter().flatten();
        workloads.any(|one| one["identity"] == "spiffe://cluster.local/ns/default/sa/somebody")
    })?;
    let refused = client.connect(&[ASKED, "--count", "5"])?;
    assert_eq!((refused.ok, refused.failed), (0, 5), "{refused:?}");
    Ok(())
}
