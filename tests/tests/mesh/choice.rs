//! Which backend a client of the kernel plane gets: policies, affinity, topology, closed ports.

use anyhow::{Context, Result};
use mesh_tests::peer::Summary;
use mesh_tests::{Agent, Lab, Node, Pod, PodSpec, SECONDS_10, eventually};

use crate::world::PORT;

const V4: &str = "10.96.1.1";
const V6: &str = "fd00:96::1:1";
const UDP: u16 = 5353;

/// Two nodes with a client and a server each, and one service whose endpoints the test names itself.
struct Stage {
    near_client: Pod,
    far_client: Pod,
    near: Pod,
    far: Pod,
    a: Node,
    _agents: [Agent; 2],
    lab: Lab,
}

impl Stage {
    fn start(spec: &str) -> Result<Self> {
        let lab = Lab::unique()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let (near_client, far_client) =
            (a.pod(PodSpec::new("near-client"))?, b.pod(PodSpec::new("far-client"))?);
        let (near, far) = (a.pod(PodSpec::new("near"))?, b.pod(PodSpec::new("far"))?);
        for pod in [&near, &far] {
            pod.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "http"])?;
            pod.serve(&["--udp", "--listen", &format!("[::]:{UDP}")])?;
        }
        let manifests = lab.manifests();
        manifests.apply("nodes.yaml", &(node("node-a", "east") + "---\n" + &node("node-b", "west")))?;
        manifests.apply("service.yaml", &service(spec))?;
        manifests.apply("slices.yaml", &slices(&[(&near, ""), (&far, "")]))?;
        let agents = [a.agent().start()?, b.agent().start()?];
        Ok(Self { near_client, far_client, near, far, a, _agents: agents, lab })
    }

    fn endpoints(&self, endpoints: &[(&Pod, &str)]) -> Result<()> {
        self.lab.manifests().apply("slices.yaml", &slices(endpoints))
    }

    fn service(&self, spec: &str) -> Result<()> {
        self.lab.manifests().apply("service.yaml", &service(spec))
    }
}

fn node(name: &str, zone: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{topology.kubernetes.io/zone: {zone}}}\n"
    )
}

/// `spec`: further lines of the Service's spec.
fn service(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\nspec:\n  clusterIP: {V4}\n  \
         clusterIPs: [{V4}, \"{V6}\"]\n  ports:\n  - {{name: http, port: {PORT}, protocol: TCP}}\n  \
         - {{name: dns, port: {UDP}, protocol: UDP}}\n{spec}"
    )
}

/// A slice a family; beside each pod further fields of its endpoint, such as `conditions: {ready: false}`.
fn slices(endpoints: &[(&Pod, &str)]) -> String {
    let slice = |family: &str, address: &dyn Fn(&Pod) -> String| {
        let listed = endpoints.iter().map(|(pod, fields)| {
            let rest = if fields.is_empty() { String::new() } else { format!(", {fields}") };
            format!("- {{addresses: [\"{}\"], nodeName: {}{rest}}}\n", address(pod), pod.node())
        });
        let listed: String = listed.collect();
        let listed =
            if listed.is_empty() { "endpoints: []\n".to_owned() } else { format!("endpoints:\n{listed}") };
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{}\n  namespace: default\n  \
             labels: {{kubernetes.io/service-name: web}}\naddressType: {family}\nports:\n\
             - {{name: http, port: {PORT}, protocol: TCP}}\n- {{name: dns, port: {UDP}, protocol: UDP}}\n{listed}",
            family.to_lowercase()
        )
    };
    slice("IPv4", &|pod| pod.v4.to_string()) + "---\n" + &slice("IPv6", &|pod| pod.v6.to_string())
}

fn targets() -> [String; 2] {
    [format!("{V4}:{PORT}"), format!("[{V6}]:{PORT}")]
}

/// Who answered a number of connections, one after the other; all must succeed.
fn answers(client: &Pod, target: &str, count: u32) -> Result<Vec<String>> {
    let summary = client.connect(&[target, "--count", &count.to_string()])?;
    anyhow::ensure!(summary.failed == 0, "{target}: {summary:?}");
    Ok(summary.by_name.into_keys().collect())
}

/// Waits until the connections of a client go to these, and to no others.
fn settle(client: &Pod, target: &str, wanted: &[&str]) -> Result<()> {
    eventually(SECONDS_10, "the connections go where they should", || {
        (answers(client, target, 40).ok()? == wanted).then_some(())
    })
    .with_context(|| format!("{target} to {wanted:?}: {:?}", client.connect(&[target, "--count", "40"])))
}

fn refused(summary: &Summary) -> bool {
    summary.ok == 0
        && summary.errors.len() == 1
        && summary.errors.contains_key("refused")
        && summary.failed_max_ms < 100
}

#[test]
fn an_internal_local_policy_keeps_clients_on_their_node() -> Result<()> {
    let stage = Stage::start("  internalTrafficPolicy: Local\n")?;
    for target in targets() {
        settle(&stage.near_client, &target, &["near"])?;
        settle(&stage.far_client, &target, &["far"])?;
    }
    stage.endpoints(&[(&stage.far, "")])?;
    for target in targets() {
        settle(&stage.far_client, &target, &["far"])?;
        eventually(SECONDS_10, "without a local endpoint it is refused at once", || {
            refused(&stage.near_client.connect(&[&target, "--count", "3"]).ok()?).then_some(())
        })?;
    }
    stage.service("  internalTrafficPolicy: Cluster\n")?;
    settle(&stage.near_client, &targets()[0], &["far"])
}

#[test]
fn endpoints_that_terminate_serve_only_where_nothing_else_does() -> Result<()> {
    let stage = Stage::start("")?;
    let leaving = "conditions: {ready: false, serving: true, terminating: true}";
    let unready = "conditions: {ready: false, serving: false}";
    for target in targets() {
        stage.endpoints(&[(&stage.near, ""), (&stage.far, leaving)])?;
        settle(&stage.near_client, &target, &["near"])?;
        stage.endpoints(&[(&stage.near, unready), (&stage.far, leaving)])?;
        settle(&stage.near_client, &target, &["far"])?;
        stage.endpoints(&[(&stage.near, unready), (&stage.far, unready)])?;
        eventually(SECONDS_10, "nothing serves", || {
            refused(&stage.near_client.connect(&[&target, "--count", "3"]).ok()?).then_some(())
        })?;
    }
    Ok(())
}

#[test]
fn hints_keep_clients_in_their_zone_and_on_their_node() -> Result<()> {
    let stage = Stage::start("")?;
    let zone = |name: &str| format!("zone: {name}, hints: {{forZones: [{{name: {name}}}]}}");
    let (east, west) = (zone("east"), zone("west"));
    for target in targets() {
        stage.endpoints(&[(&stage.near, ""), (&stage.far, "")])?;
        settle(&stage.near_client, &target, &["far", "near"])?;
        stage.endpoints(&[(&stage.near, &west), (&stage.far, &east)])?;
        settle(&stage.near_client, &target, &["far"])?;
        settle(&stage.far_client, &target, &["near"])?;
        // Without a hint for each ready endpoint there are none.
        stage.endpoints(&[(&stage.near, &west), (&stage.far, "")])?;
        settle(&stage.near_client, &target, &["far", "near"])?;
        let node = |name: &str| format!("hints: {{forNodes: [{{name: {name}}}]}}");
        stage.endpoints(&[(&stage.near, &node("node-a")), (&stage.far, &node("node-b"))])?;
        settle(&stage.near_client, &target, &["near"])?;
        settle(&stage.far_client, &target, &["far"])?;
    }
    Ok(())
}

#[test]
fn a_client_with_affinity_stays_with_its_endpoint_while_that_serves() -> Result<()> {
    let stage = Stage::start("  sessionAffinity: ClientIP\n")?;
    for target in targets() {
        let first = answers(&stage.near_client, &target, 60)?;
        assert_eq!(first.len(), 1, "{target}: {first:?}");
        let (kept, other) =
            if first == ["near"] { (&stage.near, &stage.far) } else { (&stage.far, &stage.near) };
        stage.endpoints(&[(other, "")])?;
        settle(&stage.near_client, &target, &[&other.spec.name])?;
        stage.endpoints(&[(kept, ""), (other, "")])?;
        settle(&stage.near_client, &target, &[&other.spec.name])?;
    }
    let udp = format!("{V4}:{UDP}");
    let one = stage.near_client.udp(&[&udp, "--count", "40", "--fresh"])?;
    assert_eq!((one.failed, one.by_name.len()), (0, 1), "{one:?}");
    Ok(())
}

#[test]
fn affinity_ends_with_its_timeout() -> Result<()> {
    let stage = Stage::start(
        "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}\n",
    )?;
    let target = &targets()[0];
    let second = std::time::Duration::from_secs(1);
    let mut seen = std::collections::BTreeSet::new();
    // Time is what is tested here: a second passes between the draws. Twenty of p = 1/2 are alike in one of a million runs.
    for _ in 0..20 {
        seen.extend(answers(&stage.near_client, target, 5)?);
        if seen.len() > 1 {
            return Ok(());
        }
        std::thread::sleep(second + second / 20);
    }
    anyhow::bail!("always {seen:?}")
}

#[test]
fn a_port_that_no_service_has_is_refused_at_once() -> Result<()> {
    let stage = Stage::start("")?;
    for target in [format!("{V4}:81"), format!("[{V6}]:81")] {
        for summary in [
            stage.near_client.connect(&[&target, "--count", "3"])?,
            stage.a.connect(&[&target, "--count", "3"])?,
            stage.near_client.udp(&[&target, "--count", "3"])?,
            stage.near_client.udp(&[&target, "--count", "3", "--unconnected"])?,
        ] {
            assert!(refused(&summary), "{target}: {summary:?}");
        }
    }
    Ok(())
}
