//! The mesh on a cluster of two nodes, as `meshctl install` leaves it: with the shipped roles enforced, the shipped rights of
//! containers, and a kubelet that does what a kubelet does.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    ApiServer, Driver, Finished, Kubelet, Lab, LaidOut, Node, Pod, PodSpec, Process, SECONDS_30, binary,
    eventually,
};
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

    /// Two pods of a namespace in the mesh, as a kubelet and a runtime lay them on the first node.
    fn pods(&self) -> Result<[Pod; 2]> {
        self.api.apply(
            "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}",
        )?;
        let pod = |name: &str, number, driver| -> Result<Pod> {
            let pod =
                self.a.pod(PodSpec::new(name).namespace("shop").kubelet(LaidOut::new(number, driver)))?;
            self.api.apply(&pod.manifest())?;
            Ok(pod)
        };
        Ok([pod("web", 1, Driver::Systemd)?, pod("db", 2, Driver::Cgroupfs)?])
    }

    /// What `meshctl ARGS -o json` says of the first node's agent.
    fn ask(&self, args: &[&str]) -> Result<Value> {
        let (meshctl, socket) = (binary("meshctl")?, self.kubelet.disk(&self.a).join("run/mesh/meshd.sock"));
        let (meshctl, socket) = (meshctl.to_string_lossy(), format!("--socket={}", socket.display()));
        let done = self.a.spawn(&[&[&*meshctl, &socket], args, &["-o", "json"]].concat())?.wait(A_WHILE)?;
        serde_json::from_str(&done.stdout).with_context(|| format!("{}{}", done.stdout, done.stderr))
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

/// What enrolment has laid in a pod's namespace: rules, routes, sysctls.
fn laid(pod: &Pod) -> Result<[bool; 3]> {
    let rules = pod.netns().show(&["rule", "show"])?;
    let routes = pod.netns().show(&["route", "show", "table", "all"])?;
    let sysctl = pod.netns().run(|| std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fwmark_accept"))??;
    let is_ours = |text: &str| text.contains("15001") || text.contains("15006");
    Ok([is_ours(&rules) || !rules.starts_with("0:"), is_ours(&routes), sysctl.trim() == "1"])
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

    cluster.api.install_crds(&["gateway.networking.k8s.io"])?;
    cluster.api.apply(
        "{apiVersion: gateway.networking.k8s.io/v1alpha2, kind: TCPRoute, metadata: {name: web, namespace: default, generation: 1}, \
         spec: {parentRefs: [{group: '', kind: Service, name: nobody}], rules: [{backendRefs: [{name: nobody, port: 80}]}]}}",
    )?;
    let told = |cluster: &Cluster| {
        let route = cluster.api.object("TCPRoute", "default", "web")?;
        route["status"]["parents"].as_array().map(Vec::len)
    };
    let said = cluster.good(&["install", "--set=kubeProxyReplacement=true"])?;
    for part in [
        "warning: kubeProxyReplacement=true without kubernetes.host",
        "applied DaemonSet mesh-agent",
        "authority ready: 1/1",
        "agents ready: 2/2",
        "istio.io/dataplane-mode=ambient",
    ] {
        ensure!(said.contains(part), "{part}: {said}");
    }
    let (passed, report) = cluster.verify()?;
    ensure!(passed, "{report:#}");
    // Agents without the plugin would leave it on the nodes.
    let other = cluster.meshctl(&["install", "--set=kubeProxyReplacement=true,cni.enabled=false"])?;
    ensure!(
        other.status.code() == Some(1) && other.stderr.contains("`meshctl uninstall` first"),
        "{other:?}"
    );
    let refused = cluster.api.log();
    let refused: Vec<_> = refused.iter().filter(|request| request.code == 403).collect();
    ensure!(refused.is_empty(), "the shipped roles are too narrow: {refused:?}");

    // Pods are taken into the mesh by the rights that the containers have, with /proc/sys read-only in them.
    let pods = cluster.pods()?;
    let [web, db] = &pods;
    let uids = pods.each_ref().map(Pod::uid);
    eventually(SECONDS_30, "the pods are enrolled", || {
        let status = cluster.ask(&["status"]).ok()?;
        let states =
            status["pods"].as_array()?.iter().filter(|pod| uids.iter().any(|uid| pod["uid"] == **uid));
        let states: Vec<_> = states.map(|pod| pod["state"].clone()).collect();
        (states == ["enrolled", "enrolled"]).then_some(())
    })
    .with_context(|| {
        let log = cluster.pod_on(&cluster.a).map(|pod| cluster.kubelet.log(&pod));
        format!("{:#}\n{}", cluster.ask(&["status"]).unwrap_or_default(), log.unwrap_or_default())
    })?;
    for pod in &pods {
        ensure!(laid(pod)? == [true; 3], "{}: {:?}", pod.uid(), laid(pod)?);
    }
    let check = cluster.ask(&["check"])?;
    let items = check.as_array().or_else(|| check["items"].as_array()).into_iter().flatten();
    let sysctls = items.clone().find(|item| item["name"] == "sysctls of pods");
    ensure!(sysctls.is_some_and(|item| item["ok"] == true), "{check:#}");
    db.serve(&["--listen", "[::]:8080"])?;
    let summary = web.connect(&[&format!("{}:8080", db.v4), "--count", "3"])?;
    ensure!((summary.ok, summary.failed) == (3, 0), "{summary:?}");
    let flows = eventually(SECONDS_30, "the connections are told", || {
        let flows = cluster.ask(&["flows"]).ok()?;
        flows.to_string().contains(&format!("{}:8080", db.v4)).then_some(flows)
    })?;
    ensure!(flows.to_string().contains("spiffe://"), "not in the mesh: {flows:#}");

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

    // What somebody else has put into a list is theirs, and an installation leaves it.
    cluster.api.edit("Service", "mesh-system", "mesh-ca", |service| {
        service["spec"]["ports"][0]["port"] = 15012.into();
    })?;

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
    })
    .with_context(|| {
        cluster.verify().map_or_else(|error| error.to_string(), |(_, report)| format!("{report:#}"))
    })?;

    eventually(SECONDS_30, "the route's status is written", || (told(&cluster)? == 1).then_some(()))?;

    // Somebody else's object keeps the namespace, and stays.
    cluster.api.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: mine, namespace: mesh-system}}")?;
    let said = cluster.good(&["uninstall"])?;
    ensure!(said.contains("Namespace mesh-system stays: it holds ConfigMap mine"), "{said}");
    ensure!(said.contains("took the mesh's status off 1 route") && told(&cluster) == Some(0), "{said}");
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
    for pod in &pods {
        ensure!(laid(pod)? == [false; 3], "{} still has {:?}", pod.uid(), laid(pod)?);
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

/// A version whose agents could not serve replaces none: its first one stands by, is not ready, and says why.
#[test]
fn an_update_that_could_not_serve_ends_at_the_first_node() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.good(&["install", "--set=kubeProxyReplacement=true"])?;
    let agents = || -> Vec<(String, bool)> {
        let pods = cluster.api.objects("Pod");
        let agents =
            pods.iter().filter(|pod| pod["metadata"]["labels"]["app.kubernetes.io/name"] == "mesh-agent");
        let ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
        agents
            .map(|pod| (pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(), ready(pod)))
            .collect()
    };
    let before = agents();
    ensure!(before.len() == 2 && before.iter().all(|(_, ready)| *ready), "{before:?}");

    let broken = "--set=kubeProxyReplacement=true,agent.extraArgs={--ca-server-name=nobody.example}";
    let process = cluster.start(&["install", broken, "--timeout=80s"])?;
    let told = eventually(A_WHILE, "the reason is told", || {
        let text = process.stdout();
        (text.contains("could not take over") || !process.is_running()).then_some(text)
    })?;
    ensure!(told.contains("Readiness probe failed") && told.contains("the certificate authority"), "{told}");
    process.kill()?;
    let now = agents();
    ensure!(now.len() == 3 && before.iter().all(|one| now.contains(one)), "{before:?} {now:?}");
    ensure!(cluster.ask(&["status"])?["pid"].is_u64(), "the agent before serves");

    let said = cluster.good(&["install", "--set=kubeProxyReplacement=true,agent.drainSeconds=1"])?;
    ensure!(said.contains("agents ready: 2/2"), "{said}");
    eventually(SECONDS_30, "the agents of the last installation are well", || {
        cluster.verify().ok()?.0.then_some(())
    })?;
    eventually(A_WHILE, "none of the others is left", || {
        let left = agents();
        (left.len() == 2 && left.iter().all(|one| !now.contains(one))).then_some(())
    })
    .with_context(|| format!("{:?} {now:?}", agents()))
}

/// Where `/proc/sys` is read-only, it is tried for real whether that can be helped; the machine does not notice.
#[test]
fn sysctls_that_cannot_be_written_are_told() -> Result<()> {
    let lab = Lab::unique()?;
    let node = lab.node("node-a")?;
    let meshctl = binary("meshctl")?;
    let check = |mount: &str, rights: &str| -> Result<Value> {
        let socket = lab.folder().join("none.sock");
        let script = format!(
            "{mount} mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
             exec setpriv {rights} {} --socket={} check -o json",
            meshctl.display(),
            socket.display()
        );
        let done = node.spawn(&["unshare", "--mount", "sh", "-ec", &script])?.wait(SECONDS_30)?;
        let items: Value =
            serde_json::from_str(&done.stdout).with_context(|| format!("{}{}", done.stdout, done.stderr))?;
        let items = items.as_array().or_else(|| items["items"].as_array()).cloned().unwrap_or_default();
        items.into_iter().find(|item| item["name"] == "sysctls of pods").context("the item")
    };
    let able = check("", "--no-new-privs")?;
    ensure!(able["ok"] == true && able["detail"].to_string().contains("read-only here"), "{able:#}");
    // As deep as it goes.
    let able = check("mount -o remount,bind,ro /proc &&", "--no-new-privs")?;
    ensure!(able["ok"] == true, "{able:#}");
    let unable = check("", "--bounding-set=-sys_admin --inh-caps=-all")?;
    let detail = unable["detail"].to_string();
    ensure!(unable["ok"] == false && detail.contains("grant CAP_SYS_ADMIN"), "{unable:#}");
    Ok(())
}
