//! Labels of enrolment that do not say what their author may think.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;

use super::Notices;
use crate::model::DATAPLANE_MODE;
use crate::resources::translate::workload::INJECTION;
use crate::resources::{Code, Pod};

/// Of a namespace.
pub(super) fn namespace(notices: &mut Notices, namespace: &Namespace) {
    let Some(labels) = &namespace.metadata.labels else { return };
    word(
        notices,
        labels,
        DATAPLANE_MODE,
        &["ambient", "none"],
        "the namespace's pods are not enrolled by it",
    );
    word(notices, labels, INJECTION, &["enabled", "disabled"], "the namespace's pods are not enrolled by it");
    let (mode, injection) = (labels.get(DATAPLANE_MODE), labels.get(INJECTION));
    if let (Some(mode @ ("ambient" | "none")), Some("enabled")) =
        (mode.map(String::as_str), injection.map(String::as_str))
    {
        let message = format!("{DATAPLANE_MODE}={mode} decides, this label has no effect beside it");
        notices.add(Code::EnrolledTwice, format!("metadata.labels[{INJECTION}]"), message);
    }
}

/// Of a pod.
pub(super) fn pod(notices: &mut Notices, pod: &Pod) {
    let labels = &pod.labels;
    let instead = "what holds for the pod's namespace decides";
    word(notices, labels, DATAPLANE_MODE, &["ambient", "none"], instead);
    if pod.host_network && labels.get(DATAPLANE_MODE).is_some_and(|mode| mode == "ambient") {
        let message = "not enrolled: the pod's network is the node's own, and its address that of the node";
        notices.add(Code::HostNetwork, format!("metadata.labels[{DATAPLANE_MODE}]"), message);
    }
}

fn word(
    notices: &mut Notices,
    labels: &BTreeMap<String, String>,
    label: &str,
    known: &[&str],
    instead: &str,
) {
    if let Some(value) = labels.get(label).filter(|value| !known.contains(&value.as_str())) {
        let message = format!("{value:?} is none of {}: {instead}", known.join(", "));
        notices.add(Code::EnrolmentWord, format!("metadata.labels[{label}]"), message);
    }
}
