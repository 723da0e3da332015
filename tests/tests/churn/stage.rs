//! Where it plays: pods with many addresses, each of them an endpoint; clients; an agent that is asked what is in force.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;

use anyhow::{Context, Result};
use mesh_tests::peer::monotonic_us;
use mesh_tests::{Agent, Lab, Node, Pod, PodSpec, Process, SECONDS_30, binary, eventually};
use serde_json::Value;

use crate::history::{History, Revision, Service};

/// Services that are connected to.
pub(crate) const SERVICES: u8 = 100;
/// Endpoints in all.
pub(crate) const ENDPOINTS: u8 = 16;
/// Port of every service.
const SERVICE_PORT: u16 = 80;
/// Port of every endpoint.
pub(crate) const PORT: u16 = 8080;
/// Threads of a client.
const THREADS: &str = "2";

/// One node with an agent, clients in a pod and on the node itself, endpoints on that node and another.
pub(crate) struct Stage {
    pub(crate) node: Node,
    pub(crate) lab: Lab,
    client: Pod,
    _pods: [Pod; 2],
}

impl Stage {
    /// Everything but the agent, the services and the clients.
    pub(crate) fn set() -> Result<Self> {
        let lab = Lab::unique()?;
        let (node, elsewhere) = (lab.node("node-a")?, lab.node("node-b")?);
        let client = node.pod(PodSpec::new("client"))?;
        let pods = [node.pod(PodSpec::new("near"))?, elsewhere.pod(PodSpec::new("far"))?];
        for endpoint in 0..ENDPOINTS {
            let (v4, v6) = endpoint_ips(endpoint);
            let lines = format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n");
            pods[usize::from(endpoint % 2)].netns().ip(&lines)?;
        }
        for pod in &pods {
            pod.serve(&["--listen", &format!("[::]:{PORT}")])?;
        }
        Ok(Self { node, lab, client, _pods: pods })
    }

    /// Starts to connect, from a pod and from the node.
    pub(crate) fn clients(&self) -> Result<Vec<Process>> {
        let targets: Vec<String> = targets().map(|(_, address)| address.to_string()).collect();
        let mut args = vec!["--threads", THREADS];
        args.extend(targets.iter().flat_map(|target| ["--target", target]));
        let peer = binary("mesh-peer")?;
        let peer = peer.to_string_lossy();
        let argv = [&[&*peer, "attempts"], &args[..]].concat();
        let clients = vec![self.client.spawn(&argv)?, self.node.spawn(&argv)?];
        for client in &clients {
            client.wait_line("that it runs", |line| line.contains("running"))?;
        }
        Ok(clients)
    }

    /// Learns which revision of each service is in force now, at the least: what the agent had read when it was asked, once
    /// that is in the kernel.
    pub(crate) fn confirm(agent: &Agent, history: &Mutex<History>) -> Result<()> {
        let services = agent.json("/v1/services")?;
        // That of what was just read, or a later one.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count, as metrics are written"
        )]
        let read = agent.metric("mesh_config_generation", &[])? as u64;
        eventually(SECONDS_30, "the kernel holds what the agent has read", || {
            (agent.status().ok()?["generation"].as_u64()? >= read).then_some(())
        })?;
        let problems = agent.problems()?;
        anyhow::ensure!(problems.is_empty(), "{problems:?}");
        let at_us = monotonic_us();
        let mut history = history.lock().map_err(|_poisoned| anyhow::anyhow!("a thread panicked"))?;
        for service in services.as_array().into_iter().flatten() {
            if let Some(number) = number_of(service) {
                let name = service["ports"][0]["name"].as_str().context("a port's name")?;
                history.confirm(number, at_us, revision_of(name)?);
            }
        }
        Ok(())
    }
}

/// All that are connected to: the service and its address, in the order of the clients' targets.
pub(crate) fn targets() -> impl Iterator<Item = (Service, SocketAddr)> {
    (0..SERVICES).flat_map(|service| {
        let (v4, v6) = service_ips(service);
        [IpAddr::V4(v4), IpAddr::V6(v6)].map(|ip| (service, SocketAddr::new(ip, SERVICE_PORT)))
    })
}

fn service_ips(service: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(10, 96, 1, service), Ipv6Addr::new(0xfd00, 0x96, 1, 0, 0, 0, 0, u16::from(service)))
}

fn endpoint_ips(endpoint: u8) -> (Ipv4Addr, Ipv6Addr) {
    let (node, host) = (1 + endpoint % 2, 100 + endpoint);
    let v6 = Ipv6Addr::new(0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, u16::from(host));
    (Ipv4Addr::new(10, 244, node, host), v6)
}

/// The endpoint that has an address.
pub(crate) fn endpoint_at(address: SocketAddr) -> Option<u8> {
    (0..ENDPOINTS).find(|endpoint| {
        let (v4, v6) = endpoint_ips(*endpoint);
        address.port() == PORT && [IpAddr::V4(v4), IpAddr::V6(v6)].contains(&address.ip())
    })
}

/// An address of an endpoint.
#[cfg(test)]
pub(crate) fn address_of(endpoint: u8) -> SocketAddr {
    SocketAddr::new(endpoint_ips(endpoint).0.into(), PORT)
}

/// A service, its port named after its revision, and its endpoints.
pub(crate) fn manifest(service: Service, revision: Revision, endpoints: &[u8]) -> String {
    let (v4, v6) = service_ips(service);
    let slice = |family: &str, address: &dyn Fn(u8) -> String| {
        let addresses: Vec<String> =
            endpoints.iter().map(|endpoint| format!("- addresses: [\"{}\"]\n", address(*endpoint))).collect();
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s{service}-{family}\n  \
             namespace: default\n  labels: {{kubernetes.io/service-name: s{service}}}\naddressType: {family}\n\
             ports:\n- {{name: r{revision}, port: {PORT}, protocol: TCP}}\nendpoints:\n{}",
            addresses.concat()
        )
    };
    let slices = [
        slice("IPv4", &|endpoint| endpoint_ips(endpoint).0.to_string()),
        slice("IPv6", &|endpoint| endpoint_ips(endpoint).1.to_string()),
    ];
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: s{service}\n  namespace: default\nspec:\n  clusterIP: {v4}\n  \
         clusterIPs: [{v4}, \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: PreferDualStack\n  ports:\n  \
         - {{name: r{revision}, port: {SERVICE_PORT}, targetPort: {PORT}, protocol: TCP}}\n{}",
        slices.concat()
    )
}

fn number_of(service: &Value) -> Option<Service> {
    service["name"].as_str()?.strip_prefix('s')?.parse().ok().filter(|number| *number < SERVICES)
}

fn revision_of(port: &str) -> Result<Revision> {
    port.strip_prefix('r').and_then(|number| number.parse().ok()).with_context(|| format!("port {port}"))
}
