//! Whether an installation is whole: each object as it was rendered, and on each node an agent that is ready and whose own
//! check passes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::chart::Rendered;
use super::cluster::{Cluster, named};
use super::{AGENT, InstallError, compare, pods};
use crate::admin::api::CheckReport;

/// Nodes that are asked at once.
const AT_ONCE: usize = 16;
/// Most that is read of a command's output, in bytes.
const MAX_OUTPUT: u64 = 4 << 20;

/// What `meshctl verify-install` finds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Whether all is as it should be.
    pub passed: bool,
    /// Each object of the installation.
    pub objects: Vec<ObjectFinding>,
    /// Each node that should have an agent.
    pub nodes: Vec<NodeFinding>,
}

/// How an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectState {
    /// As rendered.
    Ok,
    /// Not there.
    Missing,
    /// Something is not as rendered.
    Different,
}

/// An object of the installation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObjectFinding {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: ObjectState,
    /// What is different.
    pub differences: Vec<String>,
}

/// A node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeFinding {
    /// Its name.
    pub node: String,
    /// The agent's pod.
    pub pod: Option<String>,
    /// Whether the agent is ready and its check passes.
    pub ok: bool,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// Looks at all of it.
pub(super) async fn verify(
    cluster: &Cluster,
    rendered: &Rendered,
    timeout: Duration,
) -> Result<VerifyReport, InstallError> {
    let mut objects = Vec::new();
    for manifest in &rendered.manifests {
        let found = cluster.object(manifest.kind(), manifest.name()).await?;
        let differences =
            found.as_ref().map(|found| compare::differences(&manifest.object, found)).unwrap_or_default();
        let state = match (&found, differences.is_empty()) {
            (None, _) => ObjectState::Missing,
            (Some(_), true) => ObjectState::Ok,
            (Some(_), false) => ObjectState::Different,
        };
        let (kind, name) = (manifest.kind().to_owned(), manifest.name().to_owned());
        objects.push(ObjectFinding { kind, name, state, differences });
    }
    let mut nodes = nodes(cluster, rendered, timeout).await?;
    if !rendered.manifests.iter().any(|manifest| manifest.kind() == "Deployment") {
        return Ok(report(objects, nodes));
    }
    for (node, reason) in pods::unready(cluster, super::CA).await? {
        let problem = format!("the authority on {node} is not ready: {reason}");
        nodes.push(NodeFinding { node, problems: vec![problem], ..NodeFinding::default() });
    }
    if !cluster.pods(super::CA).await?.iter().any(pods::is_ready) {
        let differences = vec!["no pod of it is ready: agents get no certificates".to_owned()];
        let finding = objects.iter_mut().find(|finding| finding.kind == "Deployment");
        if let Some(finding) = finding.filter(|finding| finding.state == ObjectState::Ok) {
            (finding.state, finding.differences) = (ObjectState::Different, differences);
        }
    }
    Ok(report(objects, nodes))
}

fn report(objects: Vec<ObjectFinding>, nodes: Vec<NodeFinding>) -> VerifyReport {
    let whole = objects.iter().all(|object| object.state == ObjectState::Ok);
    VerifyReport { passed: whole && nodes.iter().all(|node| node.ok), objects, nodes }
}

async fn nodes(
    cluster: &Cluster,
    rendered: &Rendered,
    timeout: Duration,
) -> Result<Vec<NodeFinding>, InstallError> {
    let wanted = rendered.manifests.iter().find(|manifest| manifest.kind() == "DaemonSet");
    let spec = wanted.map(|manifest| manifest.object["spec"]["template"]["spec"].clone()).unwrap_or_default();
    let image = spec["containers"][0]["image"].as_str().unwrap_or_default().to_owned();
    let mut by_node: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for node in cluster.objects("Node", "").await? {
        if should_have_agent(&node, &spec) {
            by_node.insert(node["metadata"]["name"].as_str().unwrap_or_default().to_owned(), Vec::new());
        }
    }
    for pod in cluster.pods(AGENT).await? {
        by_node.entry(pods::node(&pod)).or_default().push(pod);
    }
    let asked = by_node.into_iter().map(|(node, pods)| one_node(cluster, node, pods, &image, timeout));
    let mut found: Vec<NodeFinding> =
        futures_util::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
    found.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(found)
}

/// Whether the `DaemonSet`'s selector has a node. What its affinity leaves out is known by its pods alone.
fn should_have_agent(node: &Value, spec: &Value) -> bool {
    let labels = &node["metadata"]["labels"];
    let mut selector = spec["nodeSelector"].as_object().into_iter().flatten();
    selector.all(|(key, value)| labels.get(key) == Some(value))
        && spec["affinity"].is_null()
        && tolerates(node, spec)
}

fn tolerates(node: &Value, spec: &Value) -> bool {
    let tolerations: Vec<&Value> = spec["tolerations"].as_array().into_iter().flatten().collect();
    let tolerated = |taint: &Value| {
        tolerations.iter().any(|toleration| {
            let is = |field: &str| toleration[field].is_null() || toleration[field] == taint[field];
            let any = toleration["operator"] == "Exists";
            is("effect")
                && (toleration["key"] == taint["key"] || (any && toleration["key"].is_null()))
                && (any || is("value"))
        })
    };
    let hard = |taint: &&Value| taint["effect"] == "NoSchedule" || taint["effect"] == "NoExecute";
    // What DaemonSets tolerate of themselves.
    let own = |taint: &Value| taint["key"].as_str().is_some_and(|key| key.starts_with("node.kubernetes.io/"));
    let mut taints = node["spec"]["taints"].as_array().into_iter().flatten().filter(hard);
    taints.all(|taint| own(taint) || tolerated(taint))
}

async fn one_node(
    cluster: &Cluster,
    node: String,
    pods: Vec<Pod>,
    image: &str,
    timeout: Duration,
) -> NodeFinding {
    let mut finding = NodeFinding { node, ..NodeFinding::default() };
    // While an agent is replaced there are two.
    let Some(pod) = pods.iter().find(|pod| pods::is_ready(pod)).or(pods.first()) else {
        finding.problems.push("no agent".to_owned());
        return finding;
    };
    let name = pod.metadata.name.clone().unwrap_or_default();
    finding.pod = Some(name.clone());
    if !pods::is_ready(pod) {
        finding.problems.push(format!("the agent is not ready: {}", pods::reason(pod)));
        if let Some(warning) = cluster.warning(pod).await {
            finding.problems.push(warning);
        }
        return finding;
    }
    let runs = pod.spec.as_ref().and_then(|spec| spec.containers.first()?.image.clone()).unwrap_or_default();
    if runs != image {
        finding.problems.push(format!("the agent is of the image {runs}; it should be {image}"));
    }
    let asked = tokio::time::timeout(timeout, check(&cluster.exec_api(), &name)).await;
    match asked.unwrap_or_else(|_late| Err(format!("it does not answer within {timeout:?}"))) {
        Ok(report) => {
            let failed =
                report.items.iter().filter(|item| !item.ok && (item.required || item.name == "agent"));
            let told = failed.map(|item| format!("{}: {} ({})", item.name, item.detail, item.remedy));
            finding.problems.extend(told);
        }
        Err(reason) => {
            finding.problems.push(format!("cannot run `meshctl check` in {}: {reason}", named("Pod", &name)));
        }
    }
    finding.ok = finding.problems.is_empty();
    finding
}

/// `meshctl check -o json`, run in the agent's pod.
async fn check(api: &Api<Pod>, pod: &str) -> Result<CheckReport, String> {
    let params = AttachParams::default().container("meshd").stdin(false).stdout(true).stderr(true);
    let command = ["/usr/local/bin/meshctl", "check", "-o", "json"];
    let mut process = api.exec(pod, command, &params).await.map_err(|error| crate::agent::chain(&error))?;
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let (stdout, stderr) = tokio::join!(read(stdout), read(stderr));
    serde_json::from_slice(&stdout).map_err(|_error| {
        let said =
            String::from_utf8_lossy(if stderr.is_empty() { &stdout } else { &stderr }).trim().to_owned();
        if said.is_empty() { "it said nothing".to_owned() } else { said.chars().take(500).collect() }
    })
}

async fn read(output: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(output) = output {
        // What was read before it broke is what there is.
        let _ = output.take(MAX_OUTPUT).read_to_end(&mut bytes).await;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_those_that_the_daemon_set_would_take() {
        let spec = json!({"nodeSelector": {"os": "linux"}, "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]});
        let node =
            |os: &str, taints: Value| json!({"metadata": {"labels": {"os": os}}, "spec": {"taints": taints}});
        let cases = [
            (node("linux", json!([])), true),
            (node("windows", json!([])), false),
            (node("linux", json!([{"key": "a", "value": "x", "effect": "NoSchedule"}])), true),
            (node("linux", json!([{"key": "a", "effect": "NoExecute"}])), false),
            (node("linux", json!([{"key": "b", "effect": "PreferNoSchedule"}])), true),
            (node("linux", json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}])), true),
        ];
        for (node, expected) in cases {
            assert_eq!(should_have_agent(&node, &spec), expected, "{node}");
        }
        let all = json!({"tolerations": [{"operator": "Exists"}]});
        assert!(should_have_agent(&node("x", json!([{"key": "b", "effect": "NoExecute"}])), &all));
    }
}
