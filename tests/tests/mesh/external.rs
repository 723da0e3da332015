//! Clients from outside: node ports, external and load-balancer addresses, from a machine that is no node.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::peer::Summary;
use mesh_tests::{Machine, Node, Pod, Process, SECONDS_10, SECONDS_30, binary, eventually};
use serde_json::Value;

use crate::certificates::{client_config, leaf};
use crate::policy::{wait_generation, wait_mode};
use crate::world::{PORT, UDP_PORT, World, peer_authentication, v4, v6};

/// A load balancer's service: its number gives it its addresses and node ports.
#[derive(Clone, Copy)]
struct Front {
    name: &'static str,
    number: u8,
    selector: &'static str,
    spec: &'static str,
}

impl Front {
    const fn new(name: &'static str, number: u8, selector: &'static str) -> Self {
        Self { name, number, selector, spec: "" }
    }

    /// With further fields of the spec, indented by two.
    const fn with(self, spec: &'static str) -> Self {
        Self { spec, ..self }
    }

    fn addresses(self) -> [IpAddr; 4] {
        let number = u16::from(self.number);
        [
            IpAddr::from([203, 0, 113, self.number]),
            IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number]),
            IpAddr::from([198, 51, 100, self.number]),
            IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, number]),
        ]
    }

    fn node_port(self) -> u16 {
        30_000 + u16::from(self.number)
    }

    fn udp_node_port(self) -> u16 {
        31_000 + u16::from(self.number)
    }

    /// The load balancer's addresses and those of `externalIPs`, with the port; the node's addresses with the node port.
    fn targets(self, node: &Node, protocol: &str) -> Vec<SocketAddr> {
        let (port, node_port) =
            if protocol == "TCP" { (PORT, self.node_port()) } else { (UDP_PORT, self.udp_node_port()) };
        let addresses = self.addresses().map(|address| SocketAddr::new(address, port));
        let own = [node.v4.into(), node.v6.into()].map(|address| SocketAddr::new(address, node_port));
        addresses.into_iter().chain(own).collect()
    }

    fn manifest(self) -> String {
        let Self { name, number, selector, spec } = self;
        let [lb4, lb6, ip4, ip6] = self.addresses();
        let (v4, v6) = (format!("10.96.1.{number}"), format!("fd00:96::1:{number:x}"));
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  type: LoadBalancer\n  \
             clusterIP: {v4}\n  clusterIPs: [{v4}, \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  \
             ipFamilyPolicy: PreferDualStack\n  externalIPs: [{ip4}, \"{ip6}\"]\n{spec}  selector: {{{selector}}}\n  ports:\n  \
             - {{name: tcp, port: {PORT}, protocol: TCP, nodePort: {}}}\n  \
             - {{name: dns, port: {UDP_PORT}, protocol: UDP, nodePort: {}}}\n\
             status:\n  loadBalancer:\n    ingress:\n    - {{ip: {lb4}}}\n    - {{ip: \"{lb6}\"}}\n",
            self.node_port(),
            self.udp_node_port(),
        )
    }
}

/// Networks of all addresses above.
const NETWORKS: [&str; 4] = ["203.0.113.0/24", "198.51.100.0/24", "2001:db8::/64", "2001:db8:1::/64"];

const NEAR: Front = Front::new("lb-near", 1, "app: near");
const FAR: Front = Front::new("lb-far", 2, "app: far");
const NOBODY: Front = Front::new("lb-nobody", 4, "app: nobody");
const LOCAL_NEAR: Front = Front::new("local-near", 5, "app: near")
    .with("  externalTrafficPolicy: Local\n  healthCheckNodePort: 32005\n");
const LOCAL_FAR: Front = Front::new("local-far", 6, "app: far")
    .with("  externalTrafficPolicy: Local\n  healthCheckNodePort: 32006\n");

/// The usual world, services of load balancers, and a machine that sends what is for them to the first node.
struct Outside {
    machine: Machine,
    world: World,
}

impl Outside {
    fn start(enrolled: bool, fronts: &[Front]) -> Result<Self> {
        Self::start_with(enrolled, fronts, &[])
    }

    fn start_with(enrolled: bool, fronts: &[Front], flags: &[(&str, &str)]) -> Result<Self> {
        let world = World::start_with(enrolled, flags)?;
        let machine = world.lab.machine("machine")?;
        machine.route(&NETWORKS, &world.a)?;
        let outside = Self { machine, world };
        outside.apply(fronts)?;
        Ok(outside)
    }

    /// Applies services of load balancers in place of those before, and waits until the first node serves them.
    fn apply(&self, fronts: &[Front]) -> Result<()> {
        let text: Vec<String> = fronts.iter().map(|front| front.manifest()).collect();
        self.world.lab.manifests().apply("fronts.yaml", &text.join("---\n"))?;
        for agent in [&self.world.agent_a, &self.world.agent_b] {
            agent.wait_for("services", "the load balancers' services are known", |services| {
                let known = |front: &Front| {
                    let mut all = services.as_array().into_iter().flatten();
                    all.any(|service| service["name"] == front.name)
                };
                fronts.iter().all(known)
            })?;
            wait_generation(agent)?;
        }
        let wanted: Vec<String> =
            fronts.iter().flat_map(|front| front.addresses()).map(|a| a.to_string()).collect();
        eventually(SECONDS_10, "the addresses are routed to the node", || {
            let routes = routes(&self.world.a).ok()?;
            wanted.iter().all(|address| routes.contains(address)).then_some(())
        })
    }

    fn connect(&self, target: SocketAddr, args: &[&str]) -> Result<Summary> {
        self.machine.connect(&[&[&*target.to_string()], args].concat())
    }
}

/// The addresses that an agent has routed to its node.
fn routes(node: &Node) -> Result<Vec<String>> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let shown = node.netns().show(&[family, "route", "show", "table", "local", "proto", "77"])?;
        routes.extend(shown.lines().filter_map(|line| Some(line.split_whitespace().nth(1)?.to_owned())));
    }
    Ok(routes)
}

fn host(address: &str) -> Result<IpAddr> {
    Ok(address.parse::<SocketAddr>().with_context(|| address.to_owned())?.ip())
}

/// Whether all of these addresses, with ports, are of a host.
fn all_of(addresses: &std::collections::BTreeMap<String, u64>, ip: IpAddr) -> Result<bool> {
    let mut all = !addresses.is_empty();
    for address in addresses.keys() {
        all &= host(address)? == ip;
    }
    Ok(all)
}

#[test]
fn every_address_reaches_its_pods_and_pods_of_the_node_see_the_client() -> Result<()> {
    let outside = Outside::start(false, &[NEAR, FAR])?;
    let world = &outside.world;
    world.serve("http")?;
    for target in NEAR.targets(&world.a, "TCP") {
        let summary = outside.connect(target, &["--count", "20", "--concurrency", "4"])?;
        assert_eq!((summary.ok, summary.failed), (20, 0), "{target}: {summary:?}");
        assert_eq!(summary.by_name.get("near"), Some(&20), "{target}");
        assert_eq!(summary.getpeername.keys().collect::<Vec<_>>(), [&target.to_string()]);
        // To the port: under Cluster, too.
        assert_eq!(summary.peers_seen, summary.locals, "{target}");
    }
    for target in FAR.targets(&world.a, "TCP") {
        let summary = outside.connect(target, &["--count", "20", "--concurrency", "4"])?;
        assert_eq!((summary.ok, summary.failed), (20, 0), "{target}: {summary:?}");
        assert_eq!(summary.by_name.get("far"), Some(&20), "{target}");
        let node = if target.is_ipv4() { world.a.v4.into() } else { world.a.v6.into() };
        assert!(all_of(&summary.peers_seen, node)?, "{target}: {summary:?}");
    }
    // Nothing else on the node is served at these addresses, and its own ports are its own.
    let [lb, ..] = NEAR.addresses();
    let node = world.a.spawn(&[&binary("mesh-peer")?.to_string_lossy(), "serve", "--listen", "[::]:7000"])?;
    node.wait_line("that it listens", |line| line.contains("listening"))?;
    assert_eq!(outside.connect(SocketAddr::new(lb, 7000), &[])?.errors.get("refused"), Some(&1));
    assert_eq!(outside.connect(SocketAddr::new(world.a.v4.into(), 7000), &["--count", "3"])?.ok, 3);
    let flows = world.agent_a.wait_flows(240, "each connection has its record", |flow| {
        flow["direction"] == "external" && flow["outcome"] == "closed"
    })?;
    assert_eq!(flows.len(), 240);
    assert!(flows.iter().all(|flow| flow["reporter"] == "source" && flow["security"] == "none"));
    assert_eq!(world.agent_a.problems()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn the_local_policy_stays_on_the_node_and_fails_at_once_elsewhere() -> Result<()> {
    let outside = Outside::start(false, &[LOCAL_NEAR, LOCAL_FAR])?;
    let world = &outside.world;
    world.serve("http")?;
    for target in LOCAL_NEAR.targets(&world.a, "TCP") {
        let summary = outside.connect(target, &["--count", "10"])?;
        assert_eq!((summary.ok, summary.failed), (10, 0), "{target}: {summary:?}");
        assert_eq!(summary.peers_seen, summary.locals, "{target}");
    }
    for target in LOCAL_FAR.targets(&world.a, "TCP") {
        let summary = outside.connect(target, &["--count", "5"])?;
        assert_eq!(summary.errors.get("refused"), Some(&5), "{target}: {summary:?}");
        assert!(summary.failed_max_ms < 1000, "{target}: {summary:?}");
        // Who is on the node is served by all endpoints all the same.
        for local in [world.a.connect(&[&target.to_string()])?, world.client.connect(&[&target.to_string()])?]
        {
            assert_eq!(local.by_name.get("far"), Some(&1), "{target}: {local:?}");
        }
    }
    // The other node has it.
    let target = SocketAddr::new(world.b.v4.into(), LOCAL_FAR.node_port());
    let summary = outside.connect(target, &["--count", "5"])?;
    assert_eq!((summary.by_name.get("far"), &summary.peers_seen), (Some(&5), &summary.locals), "{summary:?}");
    Ok(())
}

#[test]
fn load_balancers_are_told_which_node_has_endpoints() -> Result<()> {
    let outside = Outside::start(false, &[LOCAL_NEAR, LOCAL_FAR])?;
    let world = &outside.world;
    let ask = |address: IpAddr, port: u16| {
        eventually(SECONDS_10, "the health check answers", || {
            outside.machine.netns().run(move || http(SocketAddr::new(address, port))).ok()?.ok()
        })
    };
    for (node, port, endpoints) in [(&world.a, 32005, 1), (&world.a, 32006, 0), (&world.b, 32006, 1)] {
        for address in [IpAddr::V4(node.v4), IpAddr::V6(node.v6)] {
            let (head, body) = ask(address, port)?;
            let status = if endpoints > 0 { "200" } else { "503" };
            assert!(head.starts_with(&format!("http/1.1 {status}")), "{address} {port}: {head}");
            assert!(head.contains(&format!("x-load-balancing-endpoint-weight: {endpoints}")), "{head}");
            assert!(head.contains("content-type: application/json"), "{head}");
            let name = if port == 32005 { "local-near" } else { "local-far" };
            assert_eq!(
                serde_json::from_str::<Value>(&body)?,
                serde_json::json!({ "service": { "namespace": "default", "name": name },
                    "localEndpoints": endpoints, "serviceProxyHealthy": true })
            );
        }
    }
    // The node asks itself too.
    for address in ["127.0.0.1", "[::1]"] {
        let address: SocketAddr = format!("{address}:32005").parse()?;
        let (head, _) = world.a.netns().run(move || http(address))??;
        assert!(head.starts_with("http/1.1 200"), "{address}: {head}");
    }
    // A port goes with its service.
    outside.apply(&[LOCAL_FAR])?;
    let gone = SocketAddr::new(world.a.v4.into(), 32005);
    eventually(SECONDS_10, "the port is closed", || {
        outside.machine.netns().run(move || http(gone)).ok()?.is_err().then_some(())
    })?;
    ask(world.a.v4.into(), 32006)?;
    Ok(())
}

/// Head, in lower case, and body of the answer to a GET.
fn http(address: SocketAddr) -> Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&address, SECONDS_10)?;
    stream.set_read_timeout(Some(SECONDS_10))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: mesh\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("a head")?;
    Ok((head.to_lowercase(), body.to_owned()))
}

#[test]
fn without_endpoints_a_client_outside_is_refused_at_once() -> Result<()> {
    let outside = Outside::start(false, &[NOBODY])?;
    let world = &outside.world;
    for target in NOBODY.targets(&world.a, "TCP") {
        let summary = outside.connect(target, &["--count", "3"])?;
        assert_eq!(summary.errors.get("refused"), Some(&3), "{target}: {summary:?}");
        assert!(summary.failed_max_ms < 1000, "{target}: {summary:?}");
    }
    for target in NOBODY.targets(&world.a, "UDP") {
        // A connected socket hears of the ICMP error.
        let summary = outside.machine.udp(&[&target.to_string(), "--fresh"])?;
        assert_eq!(summary.errors.get("refused"), Some(&1), "{target}: {summary:?}");
    }
    Ok(())
}

#[test]
fn source_ranges_hold_for_load_balancer_addresses_alone() -> Result<()> {
    let outside = Outside::start(false, &[])?;
    let world = &outside.world;
    world.serve("http")?;
    let near = |ranges: &'static str| Front::new("ranged", 7, "app: near").with(ranges);
    let other = world.lab.machine("other")?;
    other.route(&NETWORKS, &world.a)?;
    // `machine` is 172.30.0.101, `other` .102.
    let front = near("  loadBalancerSourceRanges: [172.30.0.101/32, \"fd00:30::65/128\", 10.244.1.0/24]\n");
    outside.apply(&[front])?;
    let targets = front.targets(&world.a, "TCP");
    let [lb4, lb6, rest @ ..] = &targets[..] else { unreachable!() };
    for target in [lb4, lb6] {
        let summary = outside.connect(*target, &["--count", "5"])?;
        assert_eq!((summary.ok, &summary.peers_seen), (5, &summary.locals), "{target}: {summary:?}");
        let summary = other.connect(&[&target.to_string(), "--count", "5"])?;
        assert_eq!(summary.ok, 0, "{target}: {summary:?}");
        assert!(summary.failed_max_ms < 1000, "{target}: {summary:?}");
    }
    for target in rest {
        assert_eq!(other.connect(&[&target.to_string(), "--count", "5"])?.ok, 5, "{target}");
    }
    // Of this node, pods over IPv4 are in range, over IPv6 they are not.
    let pod = world.client.connect(&[&lb4.to_string(), "--count", "5"])?;
    assert_eq!((pod.ok, all_of(&pod.peers_seen, world.client.v4.into())?), (5, true), "{pod:?}");
    assert_eq!(world.client.connect(&[&lb6.to_string()])?.ok, 0);
    Ok(())
}

#[test]
fn enrolled_pods_see_the_client_on_whichever_node_they_are() -> Result<()> {
    let outside = Outside::start(true, &[NEAR, FAR])?;
    let world = &outside.world;
    world.serve("http")?;
    let wire = world.lab.wire()?;
    for (front, pod) in [(NEAR, &world.near), (FAR, &world.far)] {
        for target in front.targets(&world.a, "TCP") {
            let marker = format!("marker-{}-{}", pod.spec.name, target.is_ipv4());
            let summary = outside.connect(target, &["--count", "10", "--marker", &marker])?;
            assert_eq!((summary.ok, summary.failed), (10, 0), "{target}: {summary:?}");
            assert_eq!(summary.by_name.get(&pod.spec.name), Some(&10), "{target}");
            assert_eq!(summary.peers_seen, summary.locals, "{target}");
        }
    }
    // From the machine to the node in plaintext; what is for the other node passes a second time, encrypted.
    for family in ["true", "false"] {
        let (near, far) = (format!("marker-near-{family}"), format!("marker-far-{family}"));
        assert!(wire.count(&near) > 0);
        assert_eq!(wire.count(&far), wire.count(&near), "{far}");
    }
    let flows = world.agent_b.wait_flows(60, "the far pod's agent has recorded them", |flow| {
        flow["direction"] == "inbound" && flow["security"] == "mutual_tls" && flow["outcome"] == "closed"
    })?;
    let machines = [outside.machine.v4.to_string(), format!("[{}]", outside.machine.v6)];
    for flow in &flows {
        let address = flow["source"]["address"].as_str().unwrap_or_default();
        assert!(machines.iter().any(|machine| address.starts_with(machine)), "{flow:#}");
        assert_eq!(flow["source"]["identity"], "spiffe://cluster.local/ns/mesh-system/sa/meshd", "{flow:#}");
    }
    // Strict is not reached in plaintext, on neither node.
    let strict = peer_authentication("default", "istio-system", "  mtls: {mode: STRICT}\n");
    world.lab.manifests().apply("strict.yaml", &strict)?;
    wait_mode(&world.agent_a, "STRICT")?;
    wait_mode(&world.agent_b, "STRICT")?;
    for front in [NEAR, FAR] {
        for target in front.targets(&world.a, "TCP") {
            let summary = outside.connect(target, &["--count", "3"])?;
            assert_eq!(summary.ok, 0, "{target}: {summary:?}");
            assert!(summary.failed_max_ms < 1000, "{target}: {summary:?}");
        }
    }
    Ok(())
}

#[test]
fn streams_pass_whole_half_closed_and_reset() -> Result<()> {
    let outside = Outside::start(false, &[NEAR, FAR])?;
    let world = &outside.world;
    for pod in [&world.near, &world.far] {
        for (mode, port) in ["echo", "half-close", "reset", "source"].into_iter().zip(9001..) {
            // One server behind the service at a time.
            let server = pod.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", mode, "--report"])?;
            let front = if pod.spec.name == "near" { NEAR } else { FAR };
            let target = front.targets(&world.a, "TCP")[port % 6];
            let args = ["--mode", mode, "--bytes", "5000011", "--count", "6", "--concurrency", "3"];
            let summary = outside.connect(target, &args)?;
            assert_eq!((summary.ok, summary.failed), (6, 0), "{mode} {target}: {summary:?}");
            if mode == "echo" {
                let abort = outside.connect(target, &["--mode", "abort", "--count", "3"])?;
                assert_eq!(abort.ok, 3, "{abort:?}");
                eventually(SECONDS_10, "the server sees the client's reset", || {
                    let resets =
                        server.stdout().lines().filter(|line| line.contains("\"end\":\"reset\"")).count();
                    (resets == 3).then_some(())
                })?;
            }
            server.kill()?;
        }
        // The pod is there, nobody listens: at once, and on the record.
        let front = if pod.spec.name == "near" { NEAR } else { FAR };
        let summary = outside.connect(front.targets(&world.a, "TCP")[0], &["--count", "2"])?;
        assert_eq!(summary.failed, 2, "{summary:?}");
        assert!(summary.failed_max_ms < 1000, "{summary:?}");
    }
    world.agent_a.wait_flows(4, "what failed is recorded", |flow| {
        flow["direction"] == "external" && flow["outcome"] == "connect_failed"
    })?;
    Ok(())
}

#[test]
fn an_endpoint_that_does_not_answer_is_replaced_by_another() -> Result<()> {
    let outside = Outside::start(false, &[Front::new("lb-pair", 8, "both: \"yes\"")])?;
    let world = &outside.world;
    world.far.serve(&["--listen", &format!("[::]:{PORT}")])?;
    // `twin` is an endpoint as well, and nobody listens there.
    let target = SocketAddr::new(IpAddr::from([203, 0, 113, 8]), PORT);
    let summary = outside.connect(target, &["--count", "50", "--concurrency", "4"])?;
    assert_eq!((summary.ok, summary.by_name.get("far")), (50, Some(&50)), "{summary:?}");
    Ok(())
}

/// What a rule asks for is done by the agent, for these clients too.
#[test]
fn limits_and_outliers_hold_for_clients_outside() -> Result<()> {
    let outside = Outside::start(false, &[Front::new("lb-pair", 8, "both: \"yes\"")])?;
    let world = &outside.world;
    world.far.serve(&["--listen", &format!("[::]:{PORT}")])?;
    let ill = world.twin.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "reset"])?;
    let rule = |policy: &str| -> Result<()> {
        world.lab.manifests().apply(
            "rule.yaml",
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: pair, namespace: default}}\nspec:\n  \
                 host: lb-pair\n  trafficPolicy: {{{policy}}}\n"
            ),
        )?;
        wait_generation(&world.agent_a)
    };
    rule(
        "outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}",
    )?;
    let target = SocketAddr::new(IpAddr::from([203, 0, 113, 8]), PORT);
    let summary = outside.connect(target, &["--count", "60"])?;
    assert_eq!((summary.ok, summary.errors.get("reset")), (57, Some(&3)), "{summary:?}");
    ill.kill()?;
    rule("connectionPool: {tcp: {maxConnections: 1}}")?;
    let summary = outside.connect(target, &["--count", "20", "--concurrency", "20", "--keep"])?;
    assert_eq!((summary.ok, summary.errors.get("reset")), (1, Some(&19)), "{summary:?}");
    Ok(())
}

#[test]
fn a_client_outside_stays_with_its_endpoint() -> Result<()> {
    let affinity =
        "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}\n";
    let front = Front::new("sticky", 9, "both: \"yes\"").with(affinity);
    let outside = Outside::start(false, &[front])?;
    let world = &outside.world;
    let servers: Vec<Process> = [&world.far, &world.twin]
        .into_iter()
        .map(|pod| pod.serve(&["--listen", &format!("[::]:{PORT}")]))
        .collect::<Result<_>>()?;
    let mut given = Vec::new();
    for target in front.targets(&world.a, "TCP").into_iter().filter(SocketAddr::is_ipv4) {
        let summary = outside.connect(target, &["--count", "30"])?;
        assert_eq!((summary.ok, summary.by_name.len()), (30, 1), "{target}: {summary:?}");
        given.extend(summary.by_name.into_keys());
    }
    // One place a service port, by whichever address it is asked.
    assert!(given.windows(2).all(|pair| pair[0] == pair[1]), "{given:?}");
    // Where its endpoint does not answer it goes to the other, and stays there.
    let first = usize::from(given[0] == "twin");
    servers[first].kill()?;
    let target = SocketAddr::new(front.addresses()[0], PORT);
    let summary = outside.connect(target, &["--count", "30"])?;
    assert_eq!((summary.ok, summary.by_name.len()), (30, 1), "{summary:?}");
    assert!(!summary.by_name.contains_key(&given[0]), "{summary:?}");
    Ok(())
}

/// The clients of a `mesh-peer serve --udp --report`.
fn datagrams(server: &Process) -> Vec<SocketAddr> {
    let stdout = server.stdout();
    let reports = stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    reports.filter_map(|report| report["from"].as_str()?.parse().ok()).collect()
}

fn serve_udp(pod: &Pod) -> Result<Process> {
    pod.serve(&["--udp", "--report", "--listen", &format!("[::]:{UDP_PORT}")])
}

#[test]
fn datagrams_reach_an_endpoint_and_its_answers_the_client() -> Result<()> {
    let outside = Outside::start(false, &[NEAR, FAR])?;
    let world = &outside.world;
    let (near, far) = (serve_udp(&world.near)?, serve_udp(&world.far)?);
    for (front, name) in [(NEAR, "near"), (FAR, "far")] {
        for target in front.targets(&world.a, "UDP") {
            for flags in [&[][..], &["--unconnected"], &["--fresh"]] {
                let summary =
                    outside.machine.udp(&[&[&*target.to_string(), "--count", "10"], flags].concat())?;
                assert_eq!((summary.ok, summary.failed), (10, 0), "{target} {flags:?}: {summary:?}");
                assert_eq!(summary.by_name.get(name), Some(&10), "{target} {flags:?}");
                assert_eq!(summary.replies_from.keys().collect::<Vec<_>>(), [&target.to_string()]);
            }
        }
    }
    let machine = [IpAddr::V4(outside.machine.v4), IpAddr::V6(outside.machine.v6)];
    let node = [IpAddr::V4(world.a.v4), IpAddr::V6(world.a.v6)];
    for (server, clients) in [(&near, machine), (&far, node)] {
        let seen = datagrams(server);
        assert_eq!(seen.len(), 180);
        assert!(seen.iter().all(|client| clients.contains(&client.ip())), "{seen:?}");
    }
    assert_eq!(world.agent_a.problems()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_flow_whose_endpoint_goes_is_given_another() -> Result<()> {
    let outside = Outside::start(false, &[Front::new("lb-pair", 8, "both: \"yes\"")])?;
    let world = &outside.world;
    let (_far, _twin) = (serve_udp(&world.far)?, serve_udp(&world.twin)?);
    let target = SocketAddr::new(IpAddr::from([203, 0, 113, 8]), UDP_PORT);
    let netns = outside.machine.netns();
    let socket = netns.run(|| std::net::UdpSocket::bind(("0.0.0.0", 0)))??;
    socket.connect(target)?;
    socket.set_read_timeout(Some(SECONDS_10))?;
    let ask = || -> Result<String> {
        socket.send(b"x")?;
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).trim_end_matches(" x").to_owned())
    };
    let first = ask()?;
    assert_eq!((0..20).map(|_| ask()).collect::<Result<Vec<_>>>()?, vec![first.clone(); 20]);
    // The pod that answers is an endpoint no more.
    let pods = [&world.client, &world.near, &world.far, &world.twin, &world.outside].map(|pod| {
        let manifest = pod.manifest();
        if pod.spec.name == first { manifest.replace("both: \"yes\"", "both: \"no\"") } else { manifest }
    });
    world.lab.manifests().apply("pods.yaml", &pods.join("---\n"))?;
    world.agent_a.wait_for("services", "one endpoint is left", |services| {
        let mut all = services.as_array().into_iter().flatten();
        all.any(|service| {
            service["name"] == "lb-pair"
                && service["ports"][1]["backends"].as_array().is_some_and(|b| b.len() == 2)
        })
    })?;
    let second = eventually(SECONDS_10, "another answers the same socket", || {
        ask().ok().filter(|name| *name != first)
    })?;
    assert_eq!((0..20).map(|_| ask()).collect::<Result<Vec<_>>>()?, vec![second; 20]);
    Ok(())
}

#[test]
fn a_flow_ends_when_nobody_is_there_and_begins_again() -> Result<()> {
    let outside = Outside::start(false, &[NEAR])?;
    let world = &outside.world;
    let target = SocketAddr::new(NEAR.addresses()[0], UDP_PORT).to_string();
    // The pod refuses; the client hears nothing, as behind any proxy, and the flow does not stay.
    assert_eq!(outside.machine.udp(&[&target, "--timeout-ms", "300"])?.failed, 1);
    let _server = serve_udp(&world.near)?;
    let summary = outside.machine.udp(&[&target, "--count", "5"])?;
    assert_eq!((summary.ok, summary.failed), (5, 0), "{summary:?}");
    Ok(())
}

#[test]
fn the_ways_back_to_a_flow_end_with_it() -> Result<()> {
    let outside = Outside::start(false, &[NEAR])?;
    let world = &outside.world;
    let target = SocketAddr::new(NEAR.addresses()[0], UDP_PORT);
    let socket = outside.machine.netns().run(|| std::net::UdpSocket::bind(("0.0.0.0", 0)))??;
    socket.connect(target)?;
    socket.set_read_timeout(Some(SECONDS_10))?;
    // Two sockets of the application hear from one flow.
    for heard in 1..=2 {
        let server = serve_udp(&world.near)?;
        socket.send(b"x")?;
        socket.recv(&mut [0; 64])?;
        assert_eq!(entries(&outside, "REPLIES", "")?, heard);
        server.kill()?;
    }
    // Nobody is there now: the flow ends.
    eventually(SECONDS_10, "the flow ends", || {
        socket.send(b"x").ok()?;
        (entries(&outside, "PRESENTED", "UDP").ok()? == 0).then_some(())
    })?;
    eventually(Duration::from_secs(45), "nothing leads back to it", || {
        (entries(&outside, "REPLIES", "").ok()? == 0).then_some(())
    })
}

#[test]
fn one_socket_that_asks_two_addresses_hears_from_both() -> Result<()> {
    const COUNT: usize = 50;
    let outside = Outside::start(false, &[NEAR])?;
    let server = serve_udp(&outside.world.near)?;
    let [balancer, _, external, _] = NEAR.addresses().map(|ip| SocketAddr::new(ip, UDP_PORT));
    let socket = outside.machine.netns().run(|| std::net::UdpSocket::bind(("0.0.0.0", 0)))??;
    socket.set_read_timeout(Some(SECONDS_10))?;
    for _ in 0..COUNT {
        socket.send_to(b"x", balancer)?;
        socket.send_to(b"x", external)?;
    }
    let mut from = Vec::new();
    for _ in 0..2 * COUNT {
        from.push(socket.recv_from(&mut [0; 64])?.1);
    }
    for address in [balancer, external] {
        assert_eq!(from.iter().filter(|from| **from == address).count(), COUNT, "{address}");
    }
    // One endpoint cannot answer one client on two ways: it sees the second at another port, as behind conntrack.
    let seen: BTreeSet<SocketAddr> = datagrams(&server).into_iter().collect();
    let port = socket.local_addr()?.port();
    assert!(seen.iter().all(|client| client.ip() == outside.machine.v4), "{seen:?}");
    assert!(seen.len() == 2 && seen.iter().any(|client| client.port() == port), "{seen:?} {port}");
    Ok(())
}

#[test]
fn clients_outside_take_a_share_of_the_affinities_and_only_once_answered() -> Result<()> {
    let front = Front::new("sticky", 9, "both: \"yes\"").with("  sessionAffinity: ClientIP\n");
    let outside = Outside::start_with(false, &[front], &[("--max-affinity", "2")])?;
    let world = &outside.world;
    let [v4, v6, ..] = front.addresses();
    // Whoever asks and gets no answer may be anybody.
    let target = SocketAddr::new(v4, UDP_PORT).to_string();
    let summary = outside.machine.udp(&[&target, "--count", "3", "--fresh", "--timeout-ms", "200"])?;
    assert_eq!((summary.failed, entries(&outside, "AFFINITY", "")?), (3, 0));
    let _servers: Vec<Process> = [&world.far, &world.twin]
        .into_iter()
        .map(|pod| pod.serve(&["--listen", &format!("[::]:{PORT}")]))
        .collect::<Result<_>>()?;
    for (ip, endpoints) in [(v4, 1), (v6, 2), (v4, 1)] {
        let summary = outside.connect(SocketAddr::new(ip, PORT), &["--count", "60"])?;
        assert_eq!((summary.ok, summary.by_name.len()), (60, endpoints), "{ip}: {summary:?}");
        assert_eq!(entries(&outside, "AFFINITY", "")?, 1);
    }
    Ok(())
}

#[test]
fn routes_that_somebody_deletes_are_laid_again() -> Result<()> {
    let outside = Outside::start(false, &[NEAR])?;
    let node = &outside.world.a;
    let before = routes(node)?;
    let [v4, v6, ..] = NEAR.addresses();
    node.netns().ip(&format!("route del local {v4} dev lo table local proto 77\n"))?;
    node.netns().ip(&format!("route del local {v6} dev lo table local proto 77\n"))?;
    assert_eq!(routes(node)?.len(), before.len() - 2);
    eventually(SECONDS_30, "they are there again", || {
        routes(node).ok().filter(|routes| *routes == before).map(drop)
    })
}

#[test]
fn an_endpoint_that_is_a_service_of_the_node_leads_nowhere() -> Result<()> {
    let front = Front::new("loop", 9, "");
    let outside = Outside::start(false, &[front, NEAR])?;
    let world = &outside.world;
    let _server = world.near.serve(&["--listen", &format!("[::]:{PORT}")])?;
    // The service's own node ports on this node.
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: loop-4\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: loop}}\naddressType: IPv4\nports:\n\
         - {{name: tcp, port: {}, protocol: TCP}}\n- {{name: dns, port: {}, protocol: UDP}}\n\
         endpoints:\n- addresses: [\"{}\"]\n  conditions: {{ready: true}}\n",
        front.node_port(),
        front.udp_node_port(),
        world.a.v4,
    );
    world.lab.manifests().apply("loop.yaml", &slice)?;
    world.agent_a.wait_for("services", "the endpoint is known", |services| {
        let mut all = services.as_array().into_iter().flatten();
        all.any(|service| {
            service["name"] == "loop"
                && service["ports"][0]["backends"].as_array().is_some_and(|backends| !backends.is_empty())
        })
    })?;
    let target = SocketAddr::new(front.addresses()[0], PORT);
    let summary = outside.connect(target, &["--count", "3"])?;
    assert_eq!(summary.failed, 3, "{summary:?}");
    let flows = outside.world.agent_a.flows()?;
    assert_eq!(flows.iter().filter(|flow| flow["direction"] == "external").count(), 3, "{flows:#?}");
    let target = SocketAddr::new(front.addresses()[0], UDP_PORT).to_string();
    assert_eq!(outside.machine.udp(&[&target, "--timeout-ms", "300"])?.failed, 1);
    assert!(world.agent_a.metric("mesh_external_refused_total", &["reason=\"loop\""])? >= 1.0);
    assert_eq!(entries(&outside, "PRESENTED", "UDP")?, 0);
    assert_eq!(outside.connect(NEAR.targets(&world.a, "TCP")[0], &["--count", "3"])?.ok, 3);
    Ok(())
}

#[test]
fn a_slice_that_says_a_strict_pod_is_another_is_no_way_past_it() -> Result<()> {
    let front = Front::new("liar", 9, "");
    let outside = Outside::start(true, &[front, NEAR])?;
    let world = &outside.world;
    let _server = world.near.serve(&["--listen", &format!("[::]:{PORT}")])?;
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: liar-4\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: liar}}\naddressType: IPv4\nports:\n\
         - {{name: tcp, port: {PORT}, protocol: TCP}}\nendpoints:\n- addresses: [\"{}\"]\n  nodeName: {}\n  \
         targetRef: {{kind: Pod, name: ghost, namespace: default}}\n  conditions: {{ready: true}}\n",
        world.near.v4,
        world.b.name(),
    );
    world.lab.manifests().apply("liar.yaml", &slice)?;
    world.agent_a.wait_for("services", "the endpoint is known", |services| {
        let mut all = services.as_array().into_iter().flatten();
        all.any(|service| {
            service["name"] == "liar"
                && service["ports"][0]["backends"].as_array().is_some_and(|backends| !backends.is_empty())
        })
    })?;
    let target = SocketAddr::new(front.addresses()[0], PORT);
    // Who takes plaintext sees the client, not the node.
    let summary = outside.connect(target, &["--count", "3"])?;
    assert_eq!((summary.ok, &summary.peers_seen), (3, &summary.locals), "{summary:?}");
    let strict = peer_authentication("default", "istio-system", "  mtls: {mode: STRICT}\n");
    world.lab.manifests().apply("strict.yaml", &strict)?;
    wait_mode(&world.agent_a, "STRICT")?;
    let summary = outside.connect(target, &["--count", "3"])?;
    assert_eq!(summary.ok, 0, "{summary:?}");
    Ok(())
}

#[test]
fn large_datagrams_arrive_whole_and_those_of_two_clients_apart() -> Result<()> {
    let outside = Outside::start(false, &[NEAR, FAR])?;
    let world = &outside.world;
    let (_near, _far) = (serve_udp(&world.near)?, serve_udp(&world.far)?);
    for (front, name) in [(NEAR, "near"), (FAR, "far")] {
        for target in front.targets(&world.a, "UDP") {
            let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let pair = outside.machine.netns().run(move || -> std::io::Result<_> {
                Ok([std::net::UdpSocket::bind(any)?, std::net::UdpSocket::bind(any)?])
            })??;
            for socket in &pair {
                socket.connect(target)?;
                socket.set_read_timeout(Some(SECONDS_10))?;
            }
            // Fragmented on each leg; sent at once, so that some come before the flow has its own sockets.
            for length in [8000, 20, 30_000] {
                for (socket, byte) in pair.iter().zip([b'a', b'b']) {
                    socket.send(&vec![byte; length])?;
                }
                for (socket, byte) in pair.iter().zip([b'a', b'b']) {
                    let mut answer = vec![0; 65_536];
                    let length_back =
                        socket.recv(&mut answer).with_context(|| format!("{target} {length}"))?;
                    let expected = [name.as_bytes(), b" ", &vec![byte; length]].concat();
                    assert!(answer[..length_back] == expected, "{target} {length}: {length_back} bytes");
                }
            }
        }
    }
    Ok(())
}

/// Entries of a kernel map of the first node whose key has this protocol, where it has one.
fn entries(outside: &Outside, map: &str, protocol: &str) -> Result<usize> {
    let map = outside.world.agent_a.json(&format!("/v1/maps?name={map}&limit=1000"))?;
    let map = if map.is_array() { map[0].clone() } else { map };
    let rows = map["rows"].as_array().context("rows")?;
    let is = |row: &&Value| {
        let held = &row["key"]["protocol"];
        held.is_null() || held.as_str().is_some_and(|held| held.eq_ignore_ascii_case(protocol))
    };
    Ok(rows.iter().filter(is).count())
}

#[test]
fn nothing_is_kept_of_clients_that_have_gone() -> Result<()> {
    let outside = Outside::start(false, &[NEAR])?;
    let world = &outside.world;
    world.near.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "echo"])?;
    let _datagrams = serve_udp(&world.near)?;
    for mode in ["echo", "abort"] {
        let target = NEAR.targets(&world.a, "TCP")[0];
        let summary = outside.connect(target, &["--mode", mode, "--count", "50", "--concurrency", "8"])?;
        assert_eq!(summary.ok, 50, "{summary:?}");
    }
    let target = NEAR.targets(&world.a, "UDP")[0].to_string();
    assert_eq!(outside.machine.udp(&[&target, "--count", "20", "--fresh"])?.ok, 20);
    eventually(SECONDS_10, "connections leave nothing", || {
        let left = entries(&outside, "PRESENTED", "TCP").ok()? + entries(&outside, "CLIENTS", "").ok()?;
        (left == 0).then_some(())
    })?;
    // Flows are there until they time out, or their agent is another.
    assert_eq!((entries(&outside, "PRESENTED", "UDP")?, entries(&outside, "REPLIES", "")?), (20, 20));
    world.agent_a.kill()?;
    let _agent = world.agent_a.restart()?;
    assert_eq!((entries(&outside, "PRESENTED", "UDP")?, entries(&outside, "REPLIES", "")?), (0, 0));
    assert_eq!(outside.machine.udp(&[&target, "--count", "3", "--fresh"])?.ok, 3);
    Ok(())
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() -> Result<()> {
    for enrolled in [false, true] {
        let ranged = Front::new("ranged", 7, "app: near")
            .with("  loadBalancerSourceRanges: [10.0.0.0/8, \"fd00::/16\"]\n");
        let outside = Outside::start(enrolled, &[NEAR, ranged])?;
        let world = &outside.world;
        world.serve("http")?;
        for front in [NEAR, ranged] {
            for target in front.targets(&world.a, "TCP") {
                let summary = world.near.connect(&[&target.to_string(), "--count", "5"])?;
                assert_eq!(
                    (summary.ok, summary.by_name.get("near")),
                    (5, Some(&5)),
                    "{enrolled} {target}: {summary:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn the_node_and_its_pods_use_every_address_too() -> Result<()> {
    let outside = Outside::start(false, &[NEAR, FAR])?;
    let world = &outside.world;
    world.serve("http")?;
    for front in [NEAR, FAR] {
        let loopback = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), front.node_port());
        for target in front.targets(&world.a, "TCP") {
            for summary in
                [world.a.connect(&[&target.to_string()])?, world.client.connect(&[&target.to_string()])?]
            {
                assert_eq!(summary.ok, 1, "{target}: {summary:?}");
            }
        }
        assert_eq!(world.a.connect(&[&loopback.to_string()])?.ok, 1);
    }
    // A process that wants a node port is told that it is taken.
    let port = NEAR.node_port();
    let server = world.a.spawn(&[
        &binary("mesh-peer")?.to_string_lossy(),
        "serve",
        "--listen",
        &format!("0.0.0.0:{port}"),
    ])?;
    let finished = server.wait(SECONDS_10)?;
    assert!(!finished.status.success() && finished.stderr.contains("in use"), "{finished:?}");
    Ok(())
}

#[test]
fn another_nodes_address_is_left_to_that_node() -> Result<()> {
    let outside = Outside::start(false, &[NEAR])?;
    let world = &outside.world;
    world.serve("http")?;
    // As K3s has it: the load balancer's addresses are the nodes' own.
    let (a, b) = (world.a.v4, world.b.v4);
    let node = |name: &str, address| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus:\n  addresses:\n  \
             - {{type: InternalIP, address: {address}}}\n"
        )
    };
    world.lab.manifests().apply("nodes.yaml", &[node("node-a", a), node("node-b", b)].join("---\n"))?;
    let balancer =
        NEAR.manifest().replace("- {ip: 203.0.113.1}", &format!("- {{ip: {a}}}\n    - {{ip: {b}}}"));
    world.lab.manifests().apply("fronts.yaml", &balancer)?;
    eventually(SECONDS_10, "both nodes serve it", || {
        let served = |address: std::net::Ipv4Addr| {
            let summary = outside.connect(SocketAddr::new(address.into(), PORT), &[]).ok()?;
            (summary.by_name.get("near") == Some(&1)).then_some(())
        };
        served(a).and_then(|()| served(b))
    })?;
    let held = routes(&world.a)?;
    assert!(!held.contains(&b.to_string()) && !held.contains(&a.to_string()), "{held:?}");
    // The other node's own ports are reached as before.
    let server =
        world.b.spawn(&[&binary("mesh-peer")?.to_string_lossy(), "serve", "--listen", "[::]:7000"])?;
    server.wait_line("that it listens", |line| line.contains("listening"))?;
    assert_eq!(world.a.connect(&[&format!("{b}:7000"), "--count", "3"])?.ok, 3);
    Ok(())
}

#[test]
fn an_agent_that_stops_serves_clients_until_those_before_have_gone() -> Result<()> {
    let outside = Outside::start_with(false, &[NEAR], &[("--drain", "60s")])?;
    let world = &outside.world;
    world.serve("echo")?;
    let target = NEAR.targets(&world.a, "TCP")[0];
    let args = [&*target.to_string(), "--mode", "echo", "--keep", "--concurrency", "3"];
    let load = outside.machine.load(&args)?;
    world.agent_a.process().signal(nix::sys::signal::Signal::SIGTERM)?;
    eventually(SECONDS_10, "it is stopping", || world.agent_a.log().contains("stopping").then_some(()))?;
    let summary = outside.connect(target, &["--mode", "echo", "--count", "5"])?;
    assert_eq!((summary.ok, summary.failed), (5, 0), "{summary:?}");
    assert!(world.agent_a.process().is_running());
    let summary = Summary::end(&load)?;
    assert!(summary.failed == 0 && summary.ok > 0, "{summary:?}");
    let finished = world.agent_a.process().wait(SECONDS_10)?;
    ensure!(finished.status.success(), "{finished:?}");
    Ok(())
}

#[test]
fn an_agent_takes_over_what_it_finds_and_uninstall_leaves_nothing() -> Result<()> {
    let outside = Outside::start(false, &[NEAR, FAR])?;
    let world = &outside.world;
    world.serve("http")?;
    let target = NEAR.targets(&world.a, "TCP")[0];
    assert_eq!(outside.connect(target, &["--count", "5"])?.ok, 5);
    world.agent_a.kill()?;
    // Refused at once, not left to hang, while nobody is there.
    let summary = outside.connect(target, &["--count", "3"])?;
    assert_eq!(summary.errors.get("refused"), Some(&3), "{summary:?}");
    world.lab.manifests().apply("fronts.yaml", &NEAR.manifest())?;
    let agent = world.agent_a.restart()?;
    assert_eq!(outside.connect(target, &["--count", "5"])?.ok, 5);
    let addresses: Vec<String> = NEAR.addresses().map(|address| address.to_string()).to_vec();
    let mut held = routes(&world.a)?;
    held.sort();
    let mut wanted = addresses;
    wanted.sort();
    assert_eq!(held, wanted, "what the earlier agent had laid for a service that is gone");
    // Whoever waits for connections to end still serves.
    agent.terminate(SECONDS_30)?;
    let (meshd, bpffs, state) = (binary("meshd")?, world.a.bpffs(), world.a.state_dir());
    let argv = ["uninstall", "--bpffs", &bpffs.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    let finished = world.a.spawn(&[&[&*meshd.to_string_lossy()], &argv[..]].concat())?.wait(SECONDS_10)?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    assert_eq!(routes(&world.a)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn node_ports_are_served_on_the_addresses_that_the_flag_names() -> Result<()> {
    let outside = Outside::start_with(false, &[NEAR], &[("--nodeport-addresses", "172.30.0.0/24")])?;
    let world = &outside.world;
    world.serve("http")?;
    outside.machine.route(&["10.244.1.1"], &world.a)?;
    let port = NEAR.node_port();
    let tries = [(IpAddr::from(world.a.v4), 3), (world.a.v6.into(), 0), (IpAddr::from([10, 244, 1, 1]), 0)];
    for (address, ok) in tries {
        let summary = outside.connect(SocketAddr::new(address, port), &["--count", "3"])?;
        assert_eq!(summary.ok, ok, "{address}: {summary:?}");
        assert_eq!(summary.errors.get("refused").copied().unwrap_or(0), 3 - ok, "{address}: {summary:?}");
    }
    // An address that the node is given while the agent runs is one of them.
    world.a.netns().ip("addr add 172.30.0.201/24 dev eth0\n")?;
    eventually(SECONDS_10, "the new address is served", || {
        let summary = outside.connect(SocketAddr::new(IpAddr::from([172, 30, 0, 201]), port), &[]).ok()?;
        (summary.ok == 1).then_some(())
    })
}

#[test]
fn cluster_addresses_that_are_routed_to_a_node_are_served_there() -> Result<()> {
    let outside = Outside::start_with(false, &[], &[("--service-cidr", "10.96.0.0/12,fd00:96::/64")])?;
    let world = &outside.world;
    world.serve("http")?;
    outside.machine.route(&["10.96.0.0/12", "fd00:96::/64"], &world.a)?;
    for name in ["near", "far"] {
        for target in [v4(name), v6(name)] {
            let summary = outside.machine.connect(&[&target, "--count", "5"])?;
            assert_eq!((summary.ok, summary.by_name.get(name)), (5, Some(&5)), "{target}: {summary:?}");
        }
    }
    // A port that no service has, an address that none has.
    let nobody = v4("near").replace(&PORT.to_string(), "81");
    for target in [nobody.as_str(), "10.96.77.77:8080"] {
        let summary = outside.machine.connect(&[target])?;
        assert_eq!(summary.errors.get("refused"), Some(&1), "{target}: {summary:?}");
    }
    Ok(())
}

/// What the server behind an HBONE tunnel says of its client, asked by somebody with an identity of the mesh who names
/// `forwarded` as the client.
fn served_for(outside: &Outside, identity: &str, forwarded: &'static str) -> Result<Option<String>> {
    let world = &outside.world;
    let config = client_config(Some(leaf(&world.b, Some(identity), true, |_| {})?))?;
    let to = IpAddr::from(world.far.v4);
    outside.machine.netns().run(move || {
        let mut socket = TcpStream::connect_timeout(&SocketAddr::new(to, 15008), SECONDS_10)?;
        socket.set_read_timeout(Some(SECONDS_10))?;
        let mut tls = rustls::ClientConnection::new(Arc::new(config), to.into())?;
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        let authority = SocketAddr::new(to, PORT).to_string();
        let head = headers(&[(":method", "CONNECT"), (":authority", &authority), ("forwarded", forwarded)])?;
        let frames = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[])?,
            frame(1, 4, 1, &head)?,
            frame(0, 0, 1, b"GET / HTTP/1.1\r\nhost: mesh\r\n\r\n")?,
        ];
        stream.write_all(&frames.concat())?;
        let mut answer = Vec::new();
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head)?;
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload)?;
            match (head[3], head[4] & 1) {
                (0, _) => answer.extend(payload),
                // The answer is the last: refused.
                (1, 1) | (3, _) => return Ok(None),
                _ => {}
            }
            let text = String::from_utf8_lossy(&answer);
            let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
            if let Some(answer) = body.and_then(|body| serde_json::from_str::<Value>(body).ok()) {
                return Ok(answer["peer"].as_str().map(str::to_owned));
            }
        }
    })?
}

/// An HTTP/2 frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let [_, _, high, low] = u32::try_from(payload.len())?.to_be_bytes();
    Ok([&[0, high, low, kind, flags, 0, 0, 0, stream], payload].concat())
}

/// Fields without compression (RFC 7541, section 6.2.2).
fn headers(fields: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block
                .push(u8::try_from(text.len()).ok().filter(|length| *length < 127).context("a short field")?);
            block.extend(text.as_bytes());
        }
    }
    Ok(block)
}

#[test]
fn who_the_client_is_is_believed_of_node_agents_alone() -> Result<()> {
    let outside = Outside::start(true, &[FAR])?;
    outside.world.serve("http")?;
    outside.machine.route(&["10.244.2.0/24"], &outside.world.b)?;
    let agent = "spiffe://cluster.local/ns/mesh-system/sa/meshd";
    let named = "for=\"192.0.2.7:4242\"";
    assert_eq!(served_for(&outside, agent, named)?.as_deref(), Some("192.0.2.7:4242"));
    for other in [
        "spiffe://cluster.local/ns/default/sa/client",
        "spiffe://cluster.local/ns/default/sa/meshd",
        "spiffe://cluster.local/ns/mesh-system/sa/client",
    ] {
        let seen = served_for(&outside, other, named)?.context("an answer")?;
        assert_eq!(host(&seen)?, IpAddr::from(outside.machine.v4), "{other} was believed");
    }
    // Whom an agent speaks for has no identity: strict holds.
    let strict = peer_authentication("default", "istio-system", "  mtls: {mode: STRICT}\n");
    outside.world.lab.manifests().apply("strict.yaml", &strict)?;
    wait_mode(&outside.world.agent_b, "STRICT")?;
    assert_eq!(served_for(&outside, agent, named)?, None);
    assert!(served_for(&outside, "spiffe://cluster.local/ns/default/sa/client", named)?.is_some());
    Ok(())
}
