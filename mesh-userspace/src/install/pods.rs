//! How far the pods of the mesh are, and why one of them is no further.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::InstallError;
use super::cluster::Cluster;

/// Whether a pod is ready, and not about to go.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The node of a pod; a `DaemonSet`'s pod that is not scheduled yet names it in its affinity.
pub(super) fn node(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let scheduled = spec.and_then(|spec| spec.node_name.clone());
    let wanted = || {
        let affinity = spec?.affinity.as_ref()?.node_affinity.as_ref()?;
        let terms =
            &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
        let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
        fields.find(|field| field.key == "metadata.name")?.values.as_ref()?.first().cloned()
    };
    scheduled.or_else(wanted).unwrap_or_else(|| "(no node yet)".to_owned())
}

/// Why a pod is not ready, in the words of the kubelet.
pub(super) fn reason(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "it is being ended".to_owned();
    }
    let Some(status) = &pod.status else { return "no kubelet has seen it yet".to_owned() };
    let containers =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    if let Some(reason) = containers.filter(|container| !container.ready).find_map(container_reason) {
        return reason;
    }
    let not = status.conditions.iter().flatten().find(|condition| condition.status == "False");
    if let Some(condition) = not {
        let said = condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or_default();
        return format!("{} is false: {said}", condition.type_);
    }
    format!("it is {}", status.phase.as_deref().unwrap_or("unknown to its kubelet"))
}

/// The line of a program's last words that says what is wrong: `meshd: ...`, or what the parser of flags says.
fn telling(message: &str) -> &str {
    let is_error = |line: &&str| line.starts_with("meshd: ") || line.starts_with("error: ");
    let mut lines = message.lines().rev().filter(|line| !line.trim().is_empty());
    lines.clone().find(is_error).or_else(|| lines.next()).unwrap_or_default()
}

fn container_reason(container: &ContainerStatus) -> Option<String> {
    let name = &container.name;
    let state = container.state.as_ref()?;
    let ended = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0).or(ended);
    let ended = ended.map(|ended| {
        let said =
            ended.message.as_deref().map(|message| format!(": {}", telling(message))).unwrap_or_default();
        format!("ended with {}{said}", ended.exit_code)
    });
    if let Some(waiting) = &state.waiting {
        let said = waiting.message.clone().or(ended).map(|said| format!(": {said}")).unwrap_or_default();
        return Some(format!("{name}: {}{said}", waiting.reason.as_deref().unwrap_or("waits")));
    }
    if let Some(ended) = ended {
        return Some(format!("{name}: {ended}"));
    }
    state.running.as_ref().map(|_| format!("{name}: runs, and is not ready yet"))
}

/// The nodes whose pod with a label `app.kubernetes.io/name` is not ready, and why.
pub(super) async fn unready(cluster: &Cluster, name: &str) -> Result<BTreeMap<String, String>, InstallError> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let pods = cluster.pods(name).await?;
    for pod in pods.iter().filter(|pod| !is_ready(pod)) {
        let mut why = reason(pod);
        if let Some(warning) = cluster.warning(pod).await {
            why = format!("{why} ({warning})");
        }
        found.insert(node(pod), why);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_said_why_a_pod_is_not_ready() {
        let container = |state, last| json!({"name": "meshd", "ready": false, "restartCount": 1, "image": "", "imageID": "", "state": state, "lastState": last});
        let cases = [
            (
                json!({"containerStatuses": [container(json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}}), json!({}))]}),
                "meshd: ErrImagePull: no such image",
            ),
            (
                json!({"containerStatuses": [container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), json!({"terminated": {"exitCode": 1, "message": "meshd: no\n"}}))]}),
                "meshd: CrashLoopBackOff: ended with 1: meshd: no",
            ),
            (
                json!({"containerStatuses": [container(json!({"running": {}}), json!({}))]}),
                "meshd: runs, and is not ready yet",
            ),
            (
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]}),
                "PodScheduled is false: 0/2 nodes",
            ),
            (json!({"phase": "Pending"}), "it is Pending"),
        ];
        for (status, expected) in cases {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap();
            assert!(!is_ready(&pod));
            assert_eq!(reason(&pod), expected);
        }
        let pod = json!({"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert!(is_ready(&serde_json::from_value(pod).unwrap()));
    }
}
