//! Two nodes, Bookinfo's pods on them, an agent each.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use mesh_tests::{Agent, Lab, Node, Pod, PodSpec, eventually};

use super::{NAME, screen::Screen};
use crate::repo;

/// Node (0 or 1), name, service account and last part of the address of each pod, as in `deploy/demo/bookinfo.yaml`.
const PODS: [(usize, &str, &str, u8); 6] = [
    (0, "productpage-v1", "bookinfo-productpage", 10),
    (0, "ratings-v1", "bookinfo-ratings", 11),
    (0, "reviews-v1", "bookinfo-reviews", 12),
    (1, "details-v1", "bookinfo-details", 10),
    (1, "reviews-v2", "bookinfo-reviews", 11),
    (1, "reviews-v3", "bookinfo-reviews", 12),
];
/// The port that all of Bookinfo serves on.
pub(super) const PORT: u16 = 9080;
/// How long a change may take to be in force.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the play is played on.
pub(super) struct Stage {
    pub(super) screen: Screen,
    pub(super) lab: Lab,
    pub(super) nodes: [Node; 2],
    pub(super) agents: [Agent; 2],
    /// Bookinfo's, in the order of [`PODS`].
    pub(super) pods: Vec<Pod>,
    /// Runs a command in a pod or on a node.
    pub(super) within: PathBuf,
}

impl Stage {
    /// Makes it.
    pub(super) fn set(name: &str, programs: &Path) -> Result<Self> {
        let screen = Screen::new();
        let lab = Lab::new(name)?;
        lab.detach();
        let nodes = [lab.node("node-a")?, lab.node("node-b")?];
        let mut pods = Vec::new();
        for (node, pod, account, host) in PODS {
            let spec = PodSpec::new(pod).namespace("bookinfo").account(account).host(host);
            let pod = nodes[node].pod(spec)?;
            pod.serve(&["--listen", &format!("[::]:{PORT}")])?;
            pods.push(pod);
        }
        // Of no manifest: a machine that the mesh has never heard of.
        nodes[0].pod(PodSpec::new("outsider").host(99))?;
        for file in ["bookinfo.yaml", "destination-rule-reviews.yaml", "namespace.yaml"] {
            // The manifests name the namespaces of a demo that has no name of its own.
            let text = manifest(file)?.replace(&format!("{NAME}-"), &format!("{name}-"));
            lab.manifests().apply(file, &text)?;
        }
        let within = lab.folder().join("in");
        fs::write(&within, script(name, &lab, &nodes, programs)).context("write the script `in`")?;
        fs::set_permissions(&within, fs::Permissions::from_mode(0o755)).context("make it executable")?;
        let agents = [nodes[0].agent().start()?, nodes[1].agent().start()?];
        Ok(Self { screen, lab, nodes, agents, pods, within })
    }

    /// Copies a file of `deploy/demo` among the manifests, and waits until both agents have it in force.
    pub(super) fn apply(&self, file: &str, place: &str) -> Result<()> {
        let to = self.lab.manifests().folder().join(place);
        self.screen.command(format!("cp deploy/demo/{file} {}", to.display()));
        self.changed(&format!("{file} is in force on both nodes"), || {
            // As cp does it: the agents must cope with a file that is being written.
            fs::copy(deployed(file), &to).with_context(|| format!("copy {file} to {}", to.display()))?;
            Ok(())
        })
    }

    /// Takes a file out of the manifests, and waits until both agents have noticed.
    pub(super) fn delete(&self, place: &str) -> Result<()> {
        let at = self.lab.manifests().folder().join(place);
        self.screen.command(format!("rm {}", at.display()));
        self.changed(&format!("{place} is out of force on both nodes"), || {
            fs::remove_file(&at).with_context(|| format!("remove {}", at.display()))
        })
    }

    /// Makes a change, and waits until both agents have another snapshot in force.
    fn changed(&self, what: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let generations = || -> Result<Vec<u64>> {
            self.agents.iter().map(|agent| Ok(agent.status()?["generation"].as_u64().unwrap_or(0))).collect()
        };
        let before = generations()?;
        change()?;
        eventually(PATIENCE, what, || {
            let now = generations().ok()?;
            now.iter().zip(&before).all(|(now, before)| now > before).then_some(())
        })
    }

    /// Waits until the pods of a node are enrolled, all of them and no others.
    pub(super) fn wait_enrolled(&self, node: usize) -> Result<()> {
        let pods: Vec<&Pod> =
            self.pods.iter().zip(PODS).filter(|(_, (on, ..))| *on == node).map(|(pod, _)| pod).collect();
        self.agents[node].wait_enrolled(&pods)
    }
}

/// Every network namespace of the demo.
pub(super) fn namespaces(name: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir("/var/run/netns").context("list the network namespaces")?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|netns| netns.starts_with(&format!("{name}-"))).collect())
}

fn deployed(file: &str) -> PathBuf {
    repo::root().join("deploy/demo").join(file)
}

fn manifest(file: &str) -> Result<String> {
    let path = deployed(file);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// `in NAME COMMAND...`: a shell's way into a pod or onto a node. Its cgroup comes first, which the agent's programs are
/// attached to; the network namespace alone would not make anybody the pod's.
fn script(name: &str, lab: &Lab, nodes: &[Node; 2], programs: &Path) -> String {
    let node_of = |number: usize| nodes[number].name();
    let pods = PODS.iter().map(|(node, pod, ..)| (*node, *pod)).chain([(0, "outsider")]);
    let pods = pods.map(|(node, pod)| (pod, node_of(node), format!("pod-{pod}")));
    let hosts = [0, 1].map(|node| (node_of(node), node_of(node), "host".to_owned()));
    let places: Vec<_> = pods.chain(hosts).collect();
    let cases: Vec<String> = places
        .iter()
        .map(|(place, node, cgroup)| format!("{place}) node={node} cgroup={node}/{cgroup} ;;\n"))
        .collect();
    let names: Vec<&str> = places.iter().map(|(place, ..)| *place).collect();
    format!(
        "#!/bin/sh\n\
         # in NAME COMMAND...: runs a command in a pod or on a node of the demo, in its cgroup and its network.\n\
         set -eu\n\
         case ${{1:-}} in\n{}*) echo \"usage: $0 NAME COMMAND..., where NAME is one of {}\" >&2; exit 2 ;;\nesac\n\
         name=$1; shift\n\
         mkdir -p \"{cgroup}/$cgroup\"\n\
         echo $$ > \"{cgroup}/$cgroup/cgroup.procs\"\n\
         export PATH=\"{}:$PATH\" MESH_SOCKET=\"{}/$node/meshd.sock\"\n\
         exec nsenter --net=/var/run/netns/{name}-$name -- \"$@\"\n",
        cases.concat(),
        names.join(" "),
        programs.display(),
        lab.folder().display(),
        cgroup = lab.cgroup().display(),
    )
}
