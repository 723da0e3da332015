//! The mesh on a cluster of two nodes, as `meshctl install` leaves it: with the shipped roles enforced, the shipped rights of
//! containers, and a kubelet that does what a kubelet does.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{ApiServer, Finished, Kubelet, Lab, Node, Process, SECONDS_30, binary, eventually};
use serde_json::Value;

const A_WHILE: Duration = Duration::from_secs(90);

/// A cluster, and somebody with a kubeconfig on one of its nodes.
struct Cluster {
    a: Node,
    b: Node,
    kubelet: Kubelet,
    api: ApiServer,
    kubeconfig: PathBuf,
    lab: Lab,
}

impl Cluster {
    fn new() -> Result<Self> {
        let lab = Lab::unique()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let api = lab.api_server()?;
        api.enforce("")?;
        let kubelet = Kubelet::start(&lab, &api, &[&a, &b])?;
        for node in [&a, &b] {
            let folder = kubelet.disk(node).join("etc/cni/net.d");
            std::fs::create_dir_all(&folder)?;
            let primary = r#"{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "ptp"}]}"#;
            std::fs::write(folder.join("10-lab.conflist"), primary)?;
        }
        let kubeconfig = api.kubeconfig(api.admin_token())?;
        Ok(Self { a, b, kubelet, api, kubeconfig, lab })
    }

    fn start(&self, args: &[&str]) -> Result<Process> {
        let meshctl = binary("meshctl")?;
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig.display());
        let meshctl = meshctl.to_string_lossy();
        let argv = [&[&*meshctl, args[0], &kubeconfig], &args[1..]].concat();
        self.a.spawn(&argv)
    }

    fn meshctl(&self, args: &[&str]) -> Result<Finished> {
        self.start(args)?.wait(A_WHILE)
    }

    fn good(&self, args: &[&str]) -> Result<String> {
        let done = self.meshctl(args)?;
        ensure!(done.status.success(), "meshctl {args:?}: {}\n{}{}", done.status, done.stdout, done.stderr);
        Ok(done.stdout)
    }

    fn verify(&self) -> Result<(bool, Value)> {
        let done = self.meshctl(&["verify-install", "-o", "json"])?;
        let report = serde_json::from_str(&done.stdout);
        Ok((done.status.success(), report.with_context(|| format!("{}{}", done.stdout, done.stderr))?))
    }

    fn pod_on(&self, node: &Node) -> Result<String> {
        let pods = self.api.objects("Pod");
        let found = pods.iter().find(|pod| {
            pod["spec"]["nodeName"] == node.name()
                && pod["metadata"]["labels"]["app.kubernetes.io/name"] == "mesh-agent"
        });
        Ok(found.context("an agent's pod")?["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    }
}

/// From an empty cluster to an empty cluster.
#[test]
#[expect(clippy::too_many_lines, reason = "the story of one installation")]
fn a_mesh_is_installed_looked_at_brought_up_to_date_and_taken_away() -> Result<()> {
    let cluster = Cluster::new()?;
    let nothing = cluster.meshctl(&["verify-install"])?;
    ensure!(
        nothing.status.code() == Some(1) && nothing.stderr.contains("no mesh is installed"),
        "{nothing:?}"
    );

    let said = cluster.good(&["install", "--set=kubeProxyReplacement=true"])?;
    for part in [
        "applied DaemonSet mesh-agent",
        "authority ready: 1/1",
        "agents ready: 2/2",
        "istio.io/dataplane-mode=ambient",
    ] {
        ensure!(said.contains(part), "{part}: {said}");
    }
    let (passed, report) = cluster.verify()?;
    ensure!(passed, "{report:#}");
    let refused = cluster.api.log();
    let refused: Vec<_> = refused.iter().filter(|request| request.code == 403).collect();
    ensure!(refused.is_empty(), "the shipped roles are too narrow: {refused:?}");

    // A node whose agent is broken is named.
    let image = "mesh:0.1.0";
    let pod = cluster.pod_on(&cluster.b)?;
    cluster.api.edit("Service", "mesh-system", "mesh-ca", |service| {
        service["spec"]["ports"][0]["port"] = 1.into();
    })?;
    cluster
        .api
        .edit("Pod", "mesh-system", &pod, |pod| pod["spec"]["containers"][0]["image"] = "other".into())?;
    let (passed, report) = cluster.verify()?;
    ensure!(!passed, "{report:#}");
    let of = |list: &str, key: &str, name: &str| {
        report[list]
            .as_array()
            .and_then(|all| all.iter().find(|one| one[key] == name))
            .cloned()
            .unwrap_or_default()
    };
    ensure!(of("nodes", "node", "node-a")["ok"] == true, "{report:#}");
    ensure!(
        of("nodes", "node", "node-b")["problems"][0].as_str().is_some_and(|text| text.contains(image)),
        "{report:#}"
    );
    let services = report["objects"].as_array().into_iter().flatten().find(|one| one["kind"] == "Service");
    ensure!(services.is_some_and(|one| one["state"] == "different"), "{report:#}");
    cluster
        .api
        .edit("Pod", "mesh-system", &pod, |pod| pod["spec"]["containers"][0]["image"] = image.into())?;

    // Again with another value: each node's next agent is there before the one before it ends, and no key is made anew.
    let key = |cluster: &Cluster| {
        cluster.api.object("Secret", "mesh-system", "mesh-ca").map(|secret| secret["data"].clone())
    };
    let (before, root) = (cluster.pod_on(&cluster.a)?, key(&cluster));
    ensure!(root.as_ref().is_some_and(|data| data["ca-key.pem"].is_string()), "the authority keeps its key");
    let said = cluster.good(&[
        "install",
        "--set=kubeProxyReplacement=true,agent.drainSeconds=1,ca.networkPolicy.enabled=false",
    ])?;
    ensure!(said.contains("deleted NetworkPolicy mesh-ca"), "{said}");
    eventually(SECONDS_30, "the agents before are gone", || {
        let pods = cluster.api.objects("Pod");
        let agents =
            pods.iter().filter(|pod| pod["metadata"]["labels"]["app.kubernetes.io/name"] == "mesh-agent");
        (agents.count() == 2 && cluster.pod_on(&cluster.a).is_ok_and(|now| now != before)).then_some(())
    })?;
    ensure!(key(&cluster) == root, "the authority has another key");
    eventually(SECONDS_30, "the agents of the second installation are well", || {
        cluster.verify().ok()?.0.then_some(())
    })?;

    // Somebody else's object keeps the namespace, and stays.
    cluster.api.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: mine, namespace: mesh-system}}")?;
    let said = cluster.good(&["uninstall"])?;
    ensure!(said.contains("Namespace mesh-system stays: it holds ConfigMap mine"), "{said}");
    cluster.api.delete("ConfigMap", "mesh-system", "mine")?;
    let said = cluster.good(&["uninstall"])?;
    ensure!(said.contains("deleted Namespace mesh-system"), "{said}");
    for kind in [
        "Namespace",
        "Pod",
        "Secret",
        "ConfigMap",
        "Service",
        "DaemonSet",
        "Deployment",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "ServiceAccount",
    ] {
        let left: Vec<_> = cluster.api.objects(kind);
        let left: Vec<_> = left
            .iter()
            .filter(|one| one["metadata"]["name"].as_str().is_some_and(|name| name.contains("mesh")))
            .collect();
        ensure!(left.is_empty(), "{kind}: {left:?}");
    }
    for node in [&cluster.a, &cluster.b] {
        ensure!(!node.bpffs().join("mesh").exists(), "pins are left on {}", node.name());
        let disk = cluster.kubelet.disk(node);
        for path in ["run/mesh", "var/lib/mesh", "opt/cni/bin/mesh-cni", "etc/cni/net.d/00-mesh.conflist"] {
            ensure!(!disk.join(path).exists(), "{path} is left on {}", node.name());
        }
    }
    drop(cluster.lab);
    Ok(())
}

/// A node that cannot run its agent is told with the reason, and the installation goes on when it is given again.
#[test]
fn an_installation_that_does_not_come_up_says_why() -> Result<()> {
    let cluster = Cluster::new()?;
    // The authority may not write its key: the Role is there, and somebody has taken the right away.
    let process = cluster.start(&["install", "--timeout=60s", "--set=agent.extraArgs={--no-such-flag}"])?;
    let told = eventually(A_WHILE, "the reason is told", || {
        let text = process.stdout();
        (text.contains("--no-such-flag") || !process.is_running()).then_some(text)
    })?;
    ensure!(told.contains("node-a: meshd: ") && told.contains("unexpected argument"), "{told}");
    process.kill()?;
    let said = cluster.good(&["install", "--set=kubeProxyReplacement=true"])?;
    ensure!(said.contains("agents ready: 2/2"), "{said}");
    cluster.good(&["uninstall", "--keep-root"])?;
    ensure!(cluster.api.object("Secret", "mesh-system", "mesh-ca").is_some(), "the key is kept");
    Ok(())
}
