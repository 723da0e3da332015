//! The cluster of the tests of `DestinationRule`s: two nodes, in two zones of one region.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use mesh_tests::peer::Summary;
use mesh_tests::{Agent, Lab, Node, Pod, PodSpec, Process, SECONDS_10, eventually};
use serde_json::Value;

use crate::world::{PORT, namespace};

/// The service's address.
pub(crate) const WEB: &str = "10.96.2.1";

/// Two nodes of one region in two zones. Servers `near-1`, `near-2` on the first and `far-1`, `far-2` on the second, of subsets `near` and
/// `far`; clients on the first.
pub(crate) struct Stage {
    pub(crate) clients: Vec<Pod>,
    pub(crate) servers: Vec<Pod>,
    /// What runs in each of them.
    pub(crate) processes: Vec<Process>,
    pub(crate) agents: [Agent; 2],
    pub(crate) lab: Lab,
    _nodes: [Node; 2],
}

impl Stage {
    /// With that many clients, and everybody enrolled if so wanted.
    pub(crate) fn start(clients: u32, enrolled: bool) -> Result<Self> {
        let lab = Lab::unique()?;
        let nodes = [lab.node("node-a")?, lab.node("node-b")?];
        let client = |number| nodes[0].pod(PodSpec::new(&format!("client-{number}")));
        let clients = (0..clients).map(client).collect::<Result<Vec<_>>>()?;
        let (mut servers, mut processes) = (Vec::new(), Vec::new());
        for (node, side) in nodes.iter().zip(["near", "far"]) {
            for number in 1..=2 {
                let spec =
                    PodSpec::new(&format!("{side}-{number}")).label("group", "web").label("side", side);
                let pod = node.pod(spec)?;
                processes.push(pod.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "http"])?);
                servers.push(pod);
            }
        }
        let manifests = lab.manifests();
        manifests.apply("nodes.yaml", &(place("node-a", "a") + "---\n" + &place("node-b", "b")))?;
        manifests.apply("service.yaml", &service())?;
        manifests.apply("clients.yaml", &yaml(&clients))?;
        manifests.apply("servers.yaml", &yaml(&servers))?;
        manifests.apply("namespace.yaml", &namespace("default", enrolled))?;
        let agents = [nodes[0].agent().start()?, nodes[1].agent().start()?];
        if enrolled {
            let near = clients.iter().chain(&servers[..2]).collect::<Vec<_>>();
            agents[0].wait_enrolled(&near)?;
            agents[1].wait_enrolled(&servers[2..].iter().collect::<Vec<_>>())?;
            for agent in &agents {
                agent.wait_for("workloads", "both nodes know of all pods", |workloads| {
                    let all = workloads.as_array().into_iter().flatten();
                    all.filter(|workload| workload["enrolled"] == true).count() == clients.len() + 4
                })?;
            }
        }
        Ok(Self { clients, servers, processes, agents, lab, _nodes: nodes })
    }

    /// Applies a `DestinationRule` with both subsets and this `trafficPolicy`.
    /// Waits until the clients' agent has it.
    pub(crate) fn rule(&self, policy: &str) -> Result<()> {
        let before = self.generation()?;
        self.lab.manifests().apply(
            "rule.yaml",
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: default}}\nspec:\n  \
                 host: web\n  trafficPolicy: {{{policy}}}\n  subsets:\n  - {{name: near, labels: {{side: near}}}}\n  \
                 - {{name: far, labels: {{side: far}}}}\n"
            ),
        )?;
        eventually(SECONDS_10, "the rule is in force", || (self.generation().ok()? > before).then_some(()))
    }

    fn generation(&self) -> Result<u64> {
        self.agents[0].status()?["generation"].as_u64().context("a generation")
    }

    /// Waits until the clients' agent sends connections to exactly so many endpoints.
    pub(crate) fn wait_serving(&self, count: usize) -> Result<()> {
        self.agents[0].wait_for("services", "the endpoints are known", |services| {
            backends(services).filter(|backend| backend["weight"] != 0).count() == count
        })?;
        Ok(())
    }

    /// Waits until the clients' agent has no connection to any endpoint.
    pub(crate) fn wait_nothing_open(&self) -> Result<()> {
        self.agents[0].wait_for("services", "all connections have ended", |services| {
            backends(services).all(|backend| backend["live"]["open"].as_u64().unwrap_or(0) == 0)
        })?;
        Ok(())
    }

    /// Lists these of the servers alone.
    pub(crate) fn serving(&self, servers: &[&Pod]) -> Result<()> {
        let text: Vec<String> = servers.iter().map(|pod| pod.manifest()).collect();
        self.lab.manifests().apply("servers.yaml", &text.join("---\n"))
    }

    /// Whose connections all go to which one server.
    pub(crate) fn kept(&self) -> Result<BTreeMap<String, String>> {
        let mut kept = BTreeMap::new();
        for client in &self.clients {
            let summary = connect(client, 20)?;
            ensure!(summary.by_name.len() == 1, "{}: {summary:?}", client.spec.name);
            kept.extend(summary.by_name.into_keys().map(|server| (client.spec.name.clone(), server)));
        }
        Ok(kept)
    }
}

/// The service's, as the agent's API tells them.
fn backends(services: &Value) -> impl Iterator<Item = &Value> {
    let web = services.as_array().into_iter().flatten().find(|one| one["name"] == "web");
    web.and_then(|web| web["ports"][0]["backends"].as_array()).into_iter().flatten()
}

fn yaml(pods: &[Pod]) -> String {
    pods.iter().map(Pod::manifest).collect::<Vec<_>>().join("---\n")
}

/// A node in a zone.
pub(crate) fn place(name: &str, zone: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{topology.kubernetes.io/region: eu, \
         topology.kubernetes.io/zone: {zone}}}\n"
    )
}

/// The service of all servers.
pub(crate) fn service() -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\nspec:\n  clusterIP: {WEB}\n  \
         selector: {{group: web}}\n  ports:\n  - {{name: tcp, port: {PORT}, protocol: TCP}}\n"
    )
}

/// All of them must succeed.
pub(crate) fn connect(client: &Pod, count: u32) -> Result<Summary> {
    let summary =
        client.connect(&[&format!("{WEB}:{PORT}"), "--count", &count.to_string(), "--concurrency", "4"])?;
    ensure!(summary.failed == 0 && summary.ok == u64::from(count), "{summary:?}");
    Ok(summary)
}

/// Connections to the servers of one side.
pub(crate) fn of(summary: &Summary, side: &str) -> u64 {
    summary.by_name.iter().filter(|(name, _)| name.starts_with(side)).map(|(_, count)| count).sum()
}

/// Waits until a client's connections go to exactly these servers.
pub(crate) fn settle(client: &Pod, wanted: &[&str]) -> Result<()> {
    let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
    let reached = || connect(client, 60).map(|summary| summary.by_name.into_keys().collect::<BTreeSet<_>>());
    eventually(SECONDS_10, "the connections go where they should", || {
        let reached = reached().ok()?;
        reached.iter().map(String::as_str).eq(wanted.iter().copied()).then_some(())
    })
    .with_context(|| format!("{wanted:?}: {:?}", reached()))
}
