//! Nodes and pods: a network namespace and a cgroup each.
//!
//! ```text
//!   pod eth0 -- pods (bridge, .1 of the pod CIDR) -- node -- eth0 -- br0 (namespace "fabric") -- the other nodes
//! ```

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::agent::AgentBuilder;
use crate::lab::{Registry, remove_cgroup};
use crate::manifests::Manifests;
use crate::netns::{NetNs, ip};
use crate::peer::Summary;
use crate::process::{Process, binary};

/// How long a client may take, whatever it does.
pub(crate) const CLIENT_DEADLINE: Duration = Duration::from_secs(90);
/// Nodes that know the way to each other.
pub(crate) const NODES: u8 = 4;

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    name: String,
    number: u8,
    netns: NetNs,
    cgroup: PathBuf,
    agent_cgroup: PathBuf,
    manifests: Manifests,
    registry: Arc<Registry>,
    /// How many were given an address of their own choice.
    pods: Arc<AtomicU16>,
    /// Its own address.
    pub v4: Ipv4Addr,
    /// Its own address.
    pub v6: Ipv6Addr,
}

/// What a pod is to be. Made by [`Self::new`], refined field by field.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its name, and the `app` label.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service account; the name if it is empty.
    pub account: String,
    /// Labels beside `app`.
    pub labels: Vec<(String, String)>,
    /// Last part of both addresses, from 10 up where it is 0.
    pub host: u8,
    /// Name of the network namespace after the prefix; the pod's name if it is empty.
    pub netns: String,
    /// How a kubelet has laid it; none: a machine without Kubernetes.
    pub kubelet: Option<LaidOut>,
}

/// How a kubelet and a runtime lay a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaidOut {
    /// `metadata.uid`.
    pub uid: String,
    /// The names of its cgroups.
    pub driver: Driver,
    /// Whether it has the node's network.
    pub host_network: bool,
}

/// How cgroups of pods are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// systemd's slices, containerd's scopes.
    Systemd,
    /// systemd's slices, CRI-O's scopes, with its monitor in the pod.
    Crio,
    /// Plain folders.
    Cgroupfs,
    /// kind's nesting of systemd's.
    Kind,
}

impl LaidOut {
    /// A UID that is made of a number.
    pub fn new(number: u32, driver: Driver) -> Self {
        Self { uid: format!("0c3dd5a1-7b1e-4f6e-9a53-{number:012x}"), driver, host_network: false }
    }

    /// The pod's cgroup, below the one of its node.
    fn folder(&self) -> PathBuf {
        let uid = &self.uid;
        let escaped = uid.replace('-', "_");
        PathBuf::from(match self.driver {
            Driver::Systemd => {
                format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice")
            }
            Driver::Crio => format!("kubepods.slice/kubepods-pod{escaped}.slice"),
            Driver::Cgroupfs => format!("kubepods/besteffort/pod{uid}"),
            Driver::Kind => format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{escaped}.slice"
            ),
        })
    }

    /// The cgroup of a container of it.
    fn container(&self, name: &str) -> PathBuf {
        self.folder().join(match self.driver {
            Driver::Systemd | Driver::Kind => format!("cri-containerd-{name}.scope"),
            Driver::Crio => format!("crio-{name}.scope"),
            Driver::Cgroupfs => name.to_owned(),
        })
    }
}

impl PodSpec {
    /// A pod in the namespace `default`, with a service account of its own name.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            account: name.to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            host: 0,
            netns: name.to_owned(),
            kubelet: None,
        }
    }

    /// Laid by a kubelet.
    #[must_use]
    pub fn kubelet(mut self, kubelet: LaidOut) -> Self {
        self.kubelet = Some(kubelet);
        self
    }

    /// In a network namespace of another name than its own.
    #[must_use]
    pub fn netns(mut self, netns: &str) -> Self {
        netns.clone_into(&mut self.netns);
        self
    }

    /// With a label, in place of the one of that key.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.retain(|(held, _)| held != key);
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// In another Kubernetes namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// With another service account.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// With `10.244.NODE.host` and `fd00:244:NODE::host` (the decimal digits, read as hexadecimal, in IPv6).
    #[must_use]
    pub const fn host(mut self, host: u8) -> Self {
        self.host = host;
        self
    }
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What it was made from.
    pub spec: PodSpec,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its address.
    pub v6: Ipv6Addr,
    node: String,
    netns: NetNs,
    cgroup: PathBuf,
    /// The sandbox of a kubelet's pod.
    pause: Option<Process>,
    registry: Arc<Registry>,
}

/// The last part of the address of a node's n-th pod (from 0): 10 and up, then what is below; the first is the node's.
fn nth_host(number: u16) -> Option<u8> {
    let host = if number <= 244 { 10 + number } else { number - 243 };
    u8::try_from(host).ok().filter(|_| number < 253)
}

impl Node {
    pub(crate) fn create(
        registry: &Arc<Registry>,
        fabric: &NetNs,
        manifests: &Manifests,
        name: &str,
        number: u8,
    ) -> Result<Self> {
        let netns = registry.netns(name, true)?;
        let cgroup = registry.cgroup(Path::new(name))?;
        let agent_cgroup = registry.cgroup(&Path::new(name).join("agent"))?;
        fabric.ip(&format!(
            "link add n{number} type veth peer name eth0 netns {}\nlink set n{number} master br0 up\n",
            netns.name()
        ))?;
        let (v4, v6) = (node_v4(number), node_v6(number));
        let mut lines = format!(
            "link set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
             link add pods type bridge forward_delay 0\nlink set pods up\n\
             addr add 10.244.{number}.1/24 dev pods\naddr add fd00:244:{number:x}::1/64 dev pods nodad\n"
        );
        for other in (1..=NODES).filter(|other| *other != number) {
            let _infallible = write!(
                lines,
                "route add 10.244.{other}.0/24 via {} dev eth0\nroute add fd00:244:{other:x}::/64 via {} dev eth0\n",
                node_v4(other),
                node_v6(other)
            );
        }
        netns.ip(&lines)?;
        Ok(Self {
            name: name.to_owned(),
            number,
            netns,
            cgroup,
            agent_cgroup,
            manifests: manifests.clone(),
            registry: Arc::clone(registry),
            pods: Arc::default(),
            v4,
            v6,
        })
    }

    /// Adds a pod. Its manifest is [`Pod::manifest`]; no agent knows of it before that is applied. A kubelet's has its sandbox's
    /// process running.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let host = match spec.host {
            0 => nth_host(self.pods.fetch_add(1, Ordering::Relaxed))
                .context("a node's network has room for 253 pods")?,
            host => host,
        };
        let number = self.number;
        let (v4, v6) = (Ipv4Addr::new(10, 244, number, host), format!("fd00:244:{number:x}::{host}"));
        let v6 = v6.parse().context("an address")?;
        let is_on_host = spec.kubelet.as_ref().is_some_and(|kubelet| kubelet.host_network);
        let netns = if is_on_host { self.netns.clone() } else { self.pod_netns(&spec, host, v4, v6)? };
        let below = |part: PathBuf| Path::new(&self.name).join(part);
        let cgroup = match &spec.kubelet {
            Some(kubelet) => self.registry.cgroup(&below(kubelet.container("app")))?,
            None => self.registry.cgroup(&below(PathBuf::from(format!("pod-{}", spec.name))))?,
        };
        let mut pause = None;
        if let Some(kubelet) = &spec.kubelet {
            let sleep = ["sleep", "infinity"];
            if kubelet.driver == Driver::Crio {
                let monitor =
                    self.registry.cgroup(&below(kubelet.folder().join("crio-conmon-pause.scope")))?;
                Process::spawn(&self.registry, &monitor, &self.netns, &sleep, &[])?;
            }
            let sandbox = self.registry.cgroup(&below(kubelet.container("pause")))?;
            pause = Some(Process::spawn(&self.registry, &sandbox, &netns, &sleep, &[])?);
        }
        let (v4, v6) = if is_on_host { (self.v4, self.v6) } else { (v4, v6) };
        Ok(Pod {
            spec,
            v4,
            v6,
            node: self.name.clone(),
            netns,
            cgroup,
            pause,
            registry: Arc::clone(&self.registry),
        })
    }

    fn pod_netns(&self, spec: &PodSpec, host: u8, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<NetNs> {
        let number = self.number;
        let netns = self.registry.netns(&spec.netns, false)?;
        self.netns.ip(&format!(
            "link add p{host} type veth peer name eth0 netns {}\nlink set p{host} master pods up\n",
            netns.name()
        ))?;
        netns.ip(&format!(
            "link set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
             route add default via 10.244.{number}.1\nroute add default via fd00:244:{number:x}::1\n"
        ))?;
        Ok(netns)
    }

    /// An agent for this node, to be started.
    pub fn agent(&self) -> AgentBuilder {
        AgentBuilder::new(self)
    }

    /// Runs a program in the node's namespace, in a cgroup that the node's agent serves.
    pub fn spawn(&self, argv: &[&str]) -> Result<Process> {
        let cgroup = self.registry.cgroup(&Path::new(&self.name).join("host"))?;
        Process::spawn(&self.registry, &cgroup, &self.netns, argv, &[])
    }

    /// Runs `mesh-peer connect` on the node itself.
    pub fn connect(&self, args: &[&str]) -> Result<Summary> {
        let peer = binary("mesh-peer")?;
        let process = self.spawn(&[&[&*peer.to_string_lossy(), "connect"], args].concat())?;
        Summary::of(&process, CLIENT_DEADLINE)
    }

    /// Its name, as in a Pod's `spec.nodeName`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub const fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its cgroup, that of its agent and its pods above.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Folder of the agent's pins, in a bpffs.
    pub fn bpffs(&self) -> PathBuf {
        self.registry.bpffs().join(&self.name)
    }

    /// Folder of the agent's state.
    pub fn state_dir(&self) -> PathBuf {
        self.registry.folder().join(&self.name)
    }

    /// File that keeps the last state of an agent's source.
    pub fn source_state(&self) -> PathBuf {
        self.registry.folder().join("source").join(format!("{}.json.gz", self.name))
    }

    /// Folder of the certificate authority, one for the lab.
    pub fn ca_dir(&self) -> PathBuf {
        self.registry.folder().join("ca")
    }

    pub(crate) const fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    pub(crate) fn spawn_agent(&self, argv: &[&str], environment: &[(&str, &str)]) -> Result<Process> {
        Process::spawn(&self.registry, &self.agent_cgroup, &self.netns, argv, environment)
    }
}

impl Pod {
    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its `NAMESPACE/NAME`, as the agent names it.
    pub fn uid(&self) -> String {
        format!("{}/{}", self.spec.namespace, self.spec.name)
    }

    /// Its namespace.
    pub const fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The Pod as a manifest for an agent without Kubernetes.
    pub fn manifest(&self) -> String {
        let PodSpec { name, namespace, account, labels, .. } = &self.spec;
        let mut text =
            format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n");
        let (place, host_network) = match &self.spec.kubelet {
            Some(kubelet) => (format!("  uid: {}\n", kubelet.uid), kubelet.host_network),
            None => (format!("  annotations:\n    mesh.dev/netns: {}\n", self.netns.path().display()), false),
        };
        text.push_str(&place);
        text.push_str("  labels:\n");
        for (key, value) in labels {
            let _infallible = writeln!(text, "    {key}: \"{value}\"");
        }
        let _infallible = write!(
            text,
            "spec:\n  serviceAccountName: {account}\n  nodeName: {}\n  hostNetwork: {host_network}\n  \
             containers: [{{name: app}}]\nstatus:\n  phase: Running\n  podIP: {v4}\n  podIPs:\n  - ip: {v4}\n  - ip: \"{}\"\n",
            self.node,
            self.v6,
            v4 = self.v4,
        );
        text
    }

    /// The first process of a kubelet's pod.
    pub const fn pause(&self) -> Option<&Process> {
        self.pause.as_ref()
    }

    /// Ends a kubelet's pod as a runtime does: its processes, its namespace, its cgroups.
    pub fn remove(&self) -> Result<()> {
        let kubelet = self.spec.kubelet.as_ref().context("a pod of a kubelet")?;
        let folder = self.cgroup.parent().context("a pod's cgroup")?;
        std::fs::write(folder.join("cgroup.kill"), "1").context("end its processes")?;
        if !kubelet.host_network {
            // As the primary plugin does: whoever still holds the namespace does not hold its addresses.
            self.netns.ip("link del eth0\n")?;
            ip(&["netns", "del", self.netns.name()], "")?;
        }
        remove_cgroup(folder)
    }

    /// The same pod for processes in a cgroup that no agent serves: what they see there is how it is without a mesh.
    pub fn unserved(&self) -> Result<Self> {
        Ok(Self { cgroup: self.registry.cgroup(Path::new("unserved"))?, ..self.clone() })
    }

    /// Runs a program in the pod.
    pub fn spawn(&self, argv: &[&str]) -> Result<Process> {
        Process::spawn(&self.registry, &self.cgroup, &self.netns, argv, &[])
    }

    pub(crate) fn spawn_with(&self, argv: &[&str], environment: &[(&str, &str)]) -> Result<Process> {
        Process::spawn(&self.registry, &self.cgroup, &self.netns, argv, environment)
    }

    /// Runs `mesh-peer COMMAND ARGS` in the pod.
    pub fn peer(&self, command: &str, args: &[&str]) -> Result<Process> {
        let peer = binary("mesh-peer")?;
        self.spawn(&[&[&*peer.to_string_lossy(), command], args].concat())
    }

    /// Starts `mesh-peer serve` under the pod's name and waits until it listens.
    pub fn serve(&self, args: &[&str]) -> Result<Process> {
        let process = self.peer("serve", &[&["--name", &self.spec.name], args].concat())?;
        process.wait_line("that it listens", |line| line.contains("\"listening\""))?;
        Ok(process)
    }

    /// Runs `mesh-peer connect` to its end.
    pub fn connect(&self, args: &[&str]) -> Result<Summary> {
        Summary::of(&self.peer("connect", args)?, CLIENT_DEADLINE)
    }

    /// Runs `mesh-peer udp` to its end.
    pub fn udp(&self, args: &[&str]) -> Result<Summary> {
        Summary::of(&self.peer("udp", args)?, CLIENT_DEADLINE)
    }

    /// Starts `mesh-peer loop` and waits until its first exchange has succeeded. [`Summary::end`] ends it.
    pub fn load(&self, args: &[&str]) -> Result<Process> {
        let process = self.peer("loop", args)?;
        process.wait_line("that it runs", |line| line.contains("\"running\""))?;
        Ok(process)
    }
}

pub(crate) const fn node_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, number)
}

const fn node_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, number as u16)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_node_has_addresses_for_253_pods() {
        let hosts: Vec<u8> = (0..).map_while(nth_host).collect();
        assert_eq!((hosts[0], hosts[244], hosts[245], hosts.len()), (10, 254, 2, 253));
        assert_eq!(hosts.into_iter().collect::<BTreeSet<u8>>(), (2..=254).collect());
    }
}
