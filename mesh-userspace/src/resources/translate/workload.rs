//! A Pod as a workload.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::{Identity, MeshConfig, Mode, NodeName, PeerPolicy, Policies, Workload, WorkloadUid};
use crate::policy::peer_authentication::effective_modes;
use crate::resources::{IstioMode, ObjectRef, PeerAuthentication};

pub(in crate::resources) const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
pub(in crate::resources) const INJECTION: &str = "istio-injection";
const NETNS: &str = "mesh.dev/netns";

/// The workload that a pod is; `None` once it has ended.
pub(in crate::resources) fn workload<'a>(
    pod: &Pod,
    reference: &ObjectRef,
    namespace: Option<&Namespace>,
    policies: impl IntoIterator<Item = &'a PeerPolicy>,
    authorization: &Policies,
    mesh: &MeshConfig,
) -> Option<Workload> {
    if has_ended(pod) {
        return None;
    }
    let spec = pod.spec.as_ref();
    let account = spec.and_then(|spec| spec.service_account_name.as_deref()).filter(|name| !name.is_empty());
    let identity =
        Identity::new(mesh.trust_domain.clone(), &reference.namespace, account.unwrap_or("default")).ok()?;
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let workload_name = owner(&pod.metadata).unwrap_or_else(|| Arc::clone(&reference.name));
    let label =
        |names: &[&str]| names.iter().find_map(|&name| labels.get(name)).map(|value| value.as_str().into());
    let canonical_name: Option<Arc<str>> =
        label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let canonical_revision: Option<Arc<str>> =
        label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    Some(Workload {
        uid: WorkloadUid::pod(&reference.namespace, &reference.name),
        namespace: Arc::clone(&reference.namespace),
        name: Arc::clone(&reference.name),
        addresses: addresses(pod),
        node: spec.and_then(|spec| spec.node_name.as_deref()).map(NodeName::new),
        identity,
        canonical_name: canonical_name.unwrap_or_else(|| Arc::clone(&workload_name)),
        canonical_revision: canonical_revision.unwrap_or_else(|| "latest".into()),
        workload_name,
        enrolled: !host_network && is_enrolled(&labels, namespace),
        host_network,
        pod_uid: pod.metadata.uid.as_deref().filter(|uid| !uid.is_empty()).map(Into::into),
        netns: pod.metadata.annotations.as_ref().and_then(|all| all.get(NETNS)).map(Into::into),
        mtls: effective_modes(policies, &mesh.root_namespace, &reference.namespace, &labels),
        guarded: authorization.may_refuse(&reference.namespace, &mesh.root_namespace, &labels),
        labels,
    })
}

/// Whether the pod has run to its end and lost its address.
fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// `status.podIPs`, or `status.podIP` where they are absent.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let mut all: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    if all.is_empty() {
        all.extend(status.pod_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|&address| seen.insert(address));
    all
}

fn is_enrolled(labels: &BTreeMap<String, String>, namespace: Option<&Namespace>) -> bool {
    match labels.get(DATAPLANE_MODE).map(String::as_str) {
        Some("ambient") => return true,
        Some("none") => return false,
        _ => {}
    }
    let Some(labels) = namespace.and_then(|namespace| namespace.metadata.labels.as_ref()) else {
        return false;
    };
    match labels.get(DATAPLANE_MODE).map(String::as_str) {
        Some("ambient") => true,
        Some("none") => false,
        _ => labels.get(INJECTION).is_some_and(|value| value == "enabled"),
    }
}

/// What the pod belongs to: a `ReplicaSet` stands for its `Deployment`, whose name it carries before the hash.
fn owner(metadata: &ObjectMeta) -> Option<Arc<str>> {
    let owners = metadata.owner_references.as_deref()?;
    let owner = owners.iter().find(|owner| owner.controller == Some(true)).or_else(|| owners.first())?;
    if owner.kind != "ReplicaSet" {
        return Some(owner.name.as_str().into());
    }
    let hash = metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let stripped = match hash {
        Some(hash) => owner.name.strip_suffix(hash.as_str()).and_then(|name| name.strip_suffix('-')),
        None => owner.name.rsplit_once('-').map(|(name, _)| name),
    };
    Some(stripped.filter(|name| !name.is_empty()).unwrap_or(&owner.name).into())
}

/// A `PeerAuthentication` as the policy module reads it.
pub(in crate::resources) fn peer_policy(
    policy: &PeerAuthentication,
    reference: &ObjectRef,
    created: i64,
) -> PeerPolicy {
    let spec = &policy.spec;
    let ports = spec.port_level_mtls.iter();
    PeerPolicy {
        namespace: Arc::clone(&reference.namespace),
        name: Arc::clone(&reference.name),
        created,
        selector: spec.selector.as_ref().map(|selector| selector.match_labels.clone()).unwrap_or_default(),
        mode: spec.mtls.as_ref().and_then(|mtls| mode(mtls.mode)),
        ports: ports.filter_map(|(port, mtls)| Some((port.parse().ok()?, mode(mtls.mode)))).collect(),
    }
}

const fn mode(mode: IstioMode) -> Option<Mode> {
    match mode {
        IstioMode::Unset => None,
        IstioMode::Disable => Some(Mode::Disable),
        IstioMode::Permissive => Some(Mode::Permissive),
        IstioMode::Strict => Some(Mode::Strict),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resources::Kind;

    fn translate(pod: Value, namespace_labels: Value) -> Option<Workload> {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let namespace =
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": namespace_labels}}))
                .unwrap();
        let reference = ObjectRef::new(Kind::Pod, "shop", pod.metadata.name.as_deref().unwrap());
        workload(&pod, &reference, Some(&namespace), [], &Policies::default(), &MeshConfig::default())
    }

    fn pod(metadata: &Value, spec: Value) -> Value {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1"}, "spec": {"containers": []}});
        pod["metadata"].as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        if let Value::Object(spec) = spec {
            pod["spec"].as_object_mut().unwrap().extend(spec);
        }
        pod
    }

    #[test]
    fn enrolment() {
        let ambient = json!({"istio.io/dataplane-mode": "ambient"});
        let none = json!({"istio.io/dataplane-mode": "none"});
        let cases = [
            ("no label", json!({}), json!({}), false, false),
            ("namespace", json!({}), ambient.clone(), false, true),
            ("injection", json!({}), json!({"istio-injection": "enabled"}), false, true),
            ("injection disabled", json!({}), json!({"istio-injection": "disabled"}), false, false),
            ("pod opts out", none, ambient.clone(), false, false),
            ("pod opts in", ambient.clone(), json!({}), false, true),
            ("host network", ambient.clone(), ambient, true, false),
        ];
        for (name, pod_labels, namespace_labels, host_network, wanted) in cases {
            let pod = pod(&json!({"labels": pod_labels}), json!({"hostNetwork": host_network}));
            assert_eq!(translate(pod, namespace_labels).unwrap().enrolled, wanted, "{name}");
        }
    }

    #[test]
    fn names() {
        let owned = |kind: &str, name: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1", "controller": true}]);
        let cases = [
            ("alone", json!({}), "web-1", "web-1", "latest"),
            (
                "deployment",
                json!({"ownerReferences": owned("ReplicaSet", "web-5d4f")}),
                "web",
                "web",
                "latest",
            ),
            (
                "deployment with a hash that is told",
                json!({"ownerReferences": owned("ReplicaSet", "web-a-b"), "labels": {"pod-template-hash": "a-b", "app": "shop", "version": "v2"}}),
                "web",
                "shop",
                "v2",
            ),
            (
                "stateful set",
                json!({"ownerReferences": owned("StatefulSet", "db-x")}),
                "db-x",
                "db-x",
                "latest",
            ),
            (
                "canonical labels come first",
                json!({"labels": {"app": "a", "app.kubernetes.io/name": "b", "service.istio.io/canonical-name": "c", "version": "1", "app.kubernetes.io/version": "2"}}),
                "web-1",
                "c",
                "2",
            ),
        ];
        for (name, metadata, workload_name, canonical, revision) in cases {
            let workload = translate(pod(&metadata, json!({})), json!({})).unwrap();
            assert_eq!(&*workload.workload_name, workload_name, "{name}");
            assert_eq!(&*workload.canonical_name, canonical, "{name}");
            assert_eq!(&*workload.canonical_revision, revision, "{name}");
        }
    }

    #[test]
    fn identity_addresses_and_end() {
        let mut plain = pod(
            &json!({"annotations": {"mesh.dev/netns": "/var/run/netns/a"}}),
            json!({"serviceAccountName": "sa"}),
        );
        plain["status"] = json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]});
        let workload = translate(plain.clone(), json!({})).unwrap();
        assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/sa");
        assert_eq!(workload.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(workload.netns.unwrap().to_str(), Some("/var/run/netns/a"));
        plain["status"]["phase"] = json!("Succeeded");
        assert_eq!(translate(plain, json!({})), None);
    }
}
