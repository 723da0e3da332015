//! The small cluster that most tests want, and the manifests for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use mesh_tests::{Agent, Lab, Node, Pod, PodSpec};

/// Port of every service, and of every server.
pub(crate) const PORT: u16 = 8080;
/// UDP port of every service, and of every server.
pub(crate) const UDP_PORT: u16 = 5353;

/// Two nodes. On the first `client`, `near`, and `outside`, which opts out of the mesh; on the second `far` and `twin`.
///
/// Each of `near`, `far` and `outside` has a service of its name; `both` has `far` and `twin` behind it, `mixed` has
/// `far` and `outside`, `nobody` has no endpoint.
pub(crate) struct World {
    pub(crate) client: Pod,
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    pub(crate) twin: Pod,
    pub(crate) outside: Pod,
    pub(crate) agent_a: Agent,
    pub(crate) agent_b: Agent,
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) lab: Lab,
}

impl World {
    /// With the agents running, and the pods enrolled if so wanted.
    pub(crate) fn start(enrolled: bool) -> Result<Self> {
        Self::start_with(enrolled, &[])
    }

    /// The same, with flags for both agents.
    pub(crate) fn start_with(enrolled: bool, flags: &[(&str, &str)]) -> Result<Self> {
        let lab = Lab::unique()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let web = |name: &str| PodSpec::new(name).label("version", name);
        let client = a.pod(PodSpec::new("client"))?;
        let near = a.pod(web("near"))?;
        let far = b.pod(web("far").label("both", "yes").label("mixed", "yes"))?;
        let twin = b.pod(web("twin").label("both", "yes"))?;
        let outside = a.pod(web("outside").label("mixed", "yes").label("istio.io/dataplane-mode", "none"))?;
        let manifests = lab.manifests();
        manifests
            .apply("pods.yaml", &[&client, &near, &far, &twin, &outside].map(Pod::manifest).join("---\n"))?;
        let services = [
            ("near", "app: near"),
            ("far", "app: far"),
            ("outside", "app: outside"),
            ("both", "both: \"yes\""),
            ("mixed", "mixed: \"yes\""),
            ("nobody", "app: nobody"),
        ];
        let services: Vec<String> = services.iter().map(|(name, selector)| service(name, selector)).collect();
        manifests.apply("services.yaml", &services.join("---\n"))?;
        manifests.apply("namespace.yaml", &namespace("default", enrolled))?;
        let start = |node: &Node| {
            flags.iter().fold(node.agent(), |agent, (flag, value)| agent.flag(flag, value)).start()
        };
        let (agent_a, agent_b) = (start(&a)?, start(&b)?);
        let world = Self { client, near, far, twin, outside, agent_a, agent_b, a, b, lab };
        world.wait_enrolled(enrolled)?;
        Ok(world)
    }

    /// Brings the pods into the mesh or out of it.
    pub(crate) fn enrol(&self, enrolled: bool) -> Result<()> {
        self.lab.manifests().apply("namespace.yaml", &namespace("default", enrolled))?;
        self.wait_enrolled(enrolled)
    }

    pub(crate) fn wait_enrolled(&self, enrolled: bool) -> Result<()> {
        let (on_a, on_b) = ([&self.client, &self.near], [&self.far, &self.twin]);
        self.agent_a.wait_enrolled(if enrolled { &on_a } else { &[] })?;
        self.agent_b.wait_enrolled(if enrolled { &on_b } else { &[] })?;
        // Each agent must know of the other node's pods as well.
        for agent in [&self.agent_a, &self.agent_b] {
            agent.wait_for("workloads", "the workloads are as the manifests say", |workloads| {
                let all = workloads.as_array().into_iter().flatten();
                all.filter(|workload| workload["enrolled"] == true).count() == if enrolled { 4 } else { 0 }
            })?;
        }
        Ok(())
    }

    /// Starts servers on [`PORT`] in all of them, in a mode of `mesh-peer`.
    pub(crate) fn serve(&self, mode: &str) -> Result<()> {
        for pod in [&self.near, &self.far, &self.twin, &self.outside] {
            pod.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", mode])?;
        }
        Ok(())
    }
}

/// A namespace, with or without the label that enrols its pods.
pub(crate) fn namespace(name: &str, enrolled: bool) -> String {
    let labels = if enrolled { "  labels:\n    istio.io/dataplane-mode: ambient\n" } else { "" };
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n{labels}")
}

/// The service's addresses.
pub(crate) fn service_ips(name: &str) -> (Ipv4Addr, Ipv6Addr) {
    let names = ["near", "far", "outside", "both", "mixed", "nobody"];
    let number = names
        .iter()
        .position(|known| *known == name)
        .and_then(|index| u8::try_from(index).ok())
        .unwrap_or(99)
        + 11;
    (Ipv4Addr::new(10, 96, 0, number), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number)))
}

/// The service's IPv4 address with [`PORT`].
pub(crate) fn v4(name: &str) -> String {
    SocketAddr::new(IpAddr::V4(service_ips(name).0), PORT).to_string()
}

/// The service's IPv6 address with [`PORT`].
pub(crate) fn v6(name: &str) -> String {
    SocketAddr::new(IpAddr::V6(service_ips(name).1), PORT).to_string()
}

/// A dual-stack service in `default`.
pub(crate) fn service(name: &str, selector: &str) -> String {
    let (v4, v6) = service_ips(name);
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  clusterIP: {v4}\n  \
         clusterIPs: [{v4}, \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: PreferDualStack\n  \
         selector: {{{selector}}}\n  ports:\n  - {{name: tcp, port: {PORT}, protocol: TCP}}\n  \
         - {{name: dns, port: {UDP_PORT}, protocol: UDP}}\n"
    )
}

/// A `DestinationRule` with a subset a pod behind `both`.
pub(crate) fn subsets() -> String {
    "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: both\n  namespace: default\nspec:\n  \
     host: both\n  subsets:\n  - {name: twin, labels: {version: twin}}\n  - {name: far, labels: {version: far}}\n"
        .to_owned()
}

/// A `VirtualService` that splits `both`.
pub(crate) fn split(twin: u32, far: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: both\n  namespace: default\nspec:\n  \
         hosts: [both]\n  tcp:\n  - route:\n    - destination: {{host: both, subset: twin}}\n      weight: {twin}\n    \
         - destination: {{host: both, subset: far}}\n      weight: {far}\n"
    )
}

/// A `PeerAuthentication`.
pub(crate) fn peer_authentication(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: {name}\n  namespace: {namespace}\n\
         spec:\n{spec}"
    )
}
