//! A Pod as a workload, and what an entry stands for.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;

use crate::model::{
    DATAPLANE_MODE, Identity, MeshConfig, Mode, PeerPolicy, Policies, Workload, WorkloadKind, WorkloadUid,
    shared_labels, shared_text,
};
use crate::policy::peer_authentication::effective_modes;
use crate::resources::entry::{ServiceEntry, WorkloadEntry, WorkloadEntrySpec, speaks_hbone};
use crate::resources::{IstioMode, ObjectRef, PeerAuthentication, Pod};

pub(in crate::resources) const INJECTION: &str = "istio-injection";

/// The workload that a pod is; `None` once it has ended.
pub(in crate::resources) fn workload<'a>(
    pod: &Pod,
    namespace: Option<&Namespace>,
    policies: impl IntoIterator<Item = &'a PeerPolicy>,
    authorization: &Policies,
    mesh: &MeshConfig,
) -> Option<Workload> {
    if pod.has_ended {
        return None;
    }
    let reference = &pod.reference;
    let account = pod.account.as_deref().unwrap_or("default");
    let identity = Identity::new(mesh.trust_domain.clone(), &reference.namespace, account).ok()?;
    let labels = &pod.labels;
    let workload_name = pod.owner.as_ref().unwrap_or(&reference.name);
    let (canonical_name, canonical_revision) = canonical(labels, workload_name);
    Some(Workload {
        uid: WorkloadUid::shared(&reference.namespace, &reference.name),
        kind: WorkloadKind::Pod,
        namespace: Arc::clone(&reference.namespace),
        name: Arc::clone(&reference.name),
        addresses: pod.addresses.to_vec(),
        node: pod.node.clone(),
        identity,
        canonical_name,
        canonical_revision,
        workload_name: Arc::clone(workload_name),
        enrolled: !pod.host_network && is_enrolled(labels, namespace),
        host_network: pod.host_network,
        pod_uid: pod.uid.as_ref().map(Arc::clone),
        netns: pod.netns.as_deref().map(Into::into),
        mtls: effective_modes(policies, &mesh.root_namespace, &reference.namespace, labels),
        guarded: authorization.may_refuse(&reference.namespace, &mesh.root_namespace, labels),
        labels: Arc::clone(labels),
    })
}

/// Istio's canonical service and revision.
fn canonical(labels: &BTreeMap<String, String>, workload_name: &Arc<str>) -> (Arc<str>, Arc<str>) {
    let label =
        |names: &[&str]| names.iter().find_map(|&name| labels.get(name)).map(|value| shared_text(value));
    let name = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let revision = label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    (name.unwrap_or_else(|| Arc::clone(workload_name)), revision.unwrap_or_else(|| shared_text("latest")))
}

/// Something that runs elsewhere.
#[derive(Clone, Copy, Debug)]
pub(in crate::resources) struct Elsewhere<'a> {
    uid: &'a WorkloadUid,
    kind: WorkloadKind,
    reference: &'a ObjectRef,
    spec: &'a WorkloadEntrySpec,
    labels: &'a BTreeMap<String, String>,
    /// Whether it may have an identity of the mesh's and take HBONE.
    in_mesh: bool,
}

impl<'a> Elsewhere<'a> {
    /// What a `WorkloadEntry` stands for; `labels` are [its](WorkloadEntry::labels).
    pub(in crate::resources) fn entry(
        uid: &'a WorkloadUid,
        reference: &'a ObjectRef,
        entry: &'a WorkloadEntry,
        labels: &'a BTreeMap<String, String>,
    ) -> Self {
        let in_mesh = speaks_hbone(labels);
        Self { uid, kind: WorkloadKind::WorkloadEntry, reference, spec: &entry.spec, labels, in_mesh }
    }

    /// An endpoint that is written into a `ServiceEntry`, whose own labels may say as well that its endpoints take HBONE (as
    /// in Istio's ambient mode).
    pub(in crate::resources) fn endpoint(
        uid: &'a WorkloadUid,
        reference: &'a ObjectRef,
        entry: &'a ServiceEntry,
        spec: &'a WorkloadEntrySpec,
    ) -> Self {
        let of_entry = entry.metadata.labels.as_ref().is_some_and(speaks_hbone);
        let in_mesh = entry.is_internal() && (of_entry || speaks_hbone(&spec.labels));
        Self { uid, kind: WorkloadKind::ServiceEntry, reference, spec, labels: &spec.labels, in_mesh }
    }

    /// As a workload; `None` where it has no address.
    pub(in crate::resources) fn workload<'p>(
        &self,
        policies: impl IntoIterator<Item = &'p PeerPolicy>,
        authorization: &Policies,
        mesh: &MeshConfig,
    ) -> Option<Workload> {
        let Self { uid, kind, reference, spec, labels, in_mesh } = *self;
        let (namespace, name) = (&reference.namespace, &reference.name);
        let account = spec.account();
        let identity =
            Identity::new(mesh.trust_domain.clone(), namespace, account.unwrap_or("default")).ok()?;
        let (canonical_name, canonical_revision) = canonical(labels, name);
        Some(Workload {
            uid: uid.clone(),
            kind,
            namespace: Arc::clone(namespace),
            name: Arc::clone(name),
            workload_name: Arc::clone(name),
            addresses: vec![spec.ip()?],
            node: None,
            identity,
            canonical_name,
            canonical_revision,
            // Whose certificate shows no account cannot be told from others.
            enrolled: in_mesh && account.is_some(),
            host_network: false,
            pod_uid: None,
            netns: None,
            mtls: effective_modes(policies, &mesh.root_namespace, namespace, labels),
            guarded: authorization.may_refuse(namespace, &mesh.root_namespace, labels),
            labels: shared_labels(labels.clone()),
        })
    }
}

fn is_enrolled(labels: &BTreeMap<String, String>, namespace: Option<&Namespace>) -> bool {
    match labels.get(DATAPLANE_MODE).map(String::as_str) {
        Some("ambient") => return true,
        Some("none") => return false,
        _ => {}
    }
    namespace.is_some_and(enrols)
}

/// Whether the namespace's pods are in the mesh unless they opt out.
pub(in crate::resources) fn enrols(namespace: &Namespace) -> bool {
    let Some(labels) = &namespace.metadata.labels else { return false };
    match labels.get(DATAPLANE_MODE).map(String::as_str) {
        Some("ambient") => true,
        Some("none") => false,
        _ => labels.get(INJECTION).is_some_and(|value| value == "enabled"),
    }
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
    use std::net::IpAddr;

    use serde_json::{Value, json};

    use super::*;
    use crate::resources::Kind;

    fn translate(pod: Value, namespace_labels: Value) -> Option<Workload> {
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod).unwrap();
        let namespace =
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": namespace_labels}}))
                .unwrap();
        let reference = ObjectRef::new(Kind::Pod, "shop", pod.metadata.name.as_deref().unwrap());
        let pod = Pod::new(reference, &pod);
        workload(&pod, Some(&namespace), [], &Policies::default(), &MeshConfig::default())
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
