//! What resources there are: those that every API server has, and those that `CustomResourceDefinition`s add.

use serde_json::{Value, json};

/// A resource, of whatever version.
#[expect(clippy::struct_field_names, reason = "`kind` is what the API calls it")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// API group; empty for the core.
    pub(super) group: String,
    /// Versions that are served, the preferred one first. They differ in nothing but their name.
    pub(super) versions: Vec<String>,
    /// `Pod`.
    pub(super) kind: String,
    /// `pods`.
    pub(super) plural: String,
    /// Names that `kubectl` understands beside the plural.
    pub(super) short: Vec<String>,
    /// Whether its objects are in namespaces.
    pub(super) namespaced: bool,
    /// Whether `status` is written through a subresource of its own.
    pub(super) status: bool,
    /// Whether a `CustomResourceDefinition` brought it.
    pub(super) custom: bool,
}

/// Group, version, kind, plural, namespaced, status subresource, short names.
type Row = (&'static str, &'static str, &'static str, &'static str, bool, bool, &'static str);

const BUILT_IN: &[Row] = &[
    ("", "v1", "Namespace", "namespaces", false, true, "ns"),
    ("", "v1", "Node", "nodes", false, true, "no"),
    ("", "v1", "Pod", "pods", true, true, "po"),
    ("", "v1", "Service", "services", true, true, "svc"),
    ("", "v1", "ServiceAccount", "serviceaccounts", true, false, "sa"),
    ("", "v1", "Event", "events", true, false, "ev"),
    ("", "v1", "ConfigMap", "configmaps", true, false, "cm"),
    ("", "v1", "Secret", "secrets", true, false, ""),
    ("", "v1", "Endpoints", "endpoints", true, false, "ep"),
    ("", "v1", "LimitRange", "limitranges", true, false, "limits"),
    ("", "v1", "ResourceQuota", "resourcequotas", true, true, "quota"),
    ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", true, true, "pvc"),
    ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true, false, ""),
    ("apps", "v1", "DaemonSet", "daemonsets", true, true, "ds"),
    ("apps", "v1", "Deployment", "deployments", true, true, "deploy"),
    ("apps", "v1", "ReplicaSet", "replicasets", true, true, "rs"),
    ("apps", "v1", "StatefulSet", "statefulsets", true, true, "sts"),
    ("apps", "v1", "ControllerRevision", "controllerrevisions", true, false, ""),
    ("batch", "v1", "Job", "jobs", true, true, ""),
    ("batch", "v1", "CronJob", "cronjobs", true, true, "cj"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", false, false, ""),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", false, false, ""),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles", true, false, ""),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", true, false, ""),
    ("coordination.k8s.io", "v1", "Lease", "leases", true, false, ""),
    ("events.k8s.io", "v1", "Event", "events", true, false, "ev"),
    ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", true, true, "pdb"),
    ("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", false, false, "pc"),
    ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true, false, "netpol"),
    ("networking.k8s.io", "v1", "Ingress", "ingresses", true, true, "ing"),
    (
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        false,
        true,
        "crd,crds",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        false,
        false,
        "",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        false,
        false,
        "",
    ),
];

/// Group, versions, kind, plural, status subresource. All of them are namespaced.
type CustomRow = (&'static str, &'static [&'static str], &'static str, &'static str, bool);

const ISTIO: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const ISTIO_SECURITY: &[&str] = &["v1", "v1beta1"];

const CUSTOM: &[CustomRow] = &[
    ("networking.istio.io", ISTIO, "VirtualService", "virtualservices", true),
    ("networking.istio.io", ISTIO, "DestinationRule", "destinationrules", true),
    ("networking.istio.io", ISTIO, "ServiceEntry", "serviceentries", true),
    ("networking.istio.io", ISTIO, "Gateway", "gateways", true),
    ("networking.istio.io", ISTIO, "Sidecar", "sidecars", true),
    ("networking.istio.io", ISTIO, "WorkloadEntry", "workloadentries", true),
    ("security.istio.io", ISTIO_SECURITY, "AuthorizationPolicy", "authorizationpolicies", true),
    ("security.istio.io", ISTIO_SECURITY, "PeerAuthentication", "peerauthentications", true),
    ("security.istio.io", ISTIO_SECURITY, "RequestAuthentication", "requestauthentications", true),
    ("gateway.networking.k8s.io", &["v1alpha2"], "TCPRoute", "tcproutes", true),
    ("gateway.networking.k8s.io", &["v1alpha2"], "TLSRoute", "tlsroutes", true),
    ("gateway.networking.k8s.io", &["v1", "v1beta1"], "Gateway", "gateways", true),
    ("gateway.networking.k8s.io", &["v1beta1"], "ReferenceGrant", "referencegrants", false),
    ("monitoring.coreos.com", &["v1"], "PodMonitor", "podmonitors", true),
];

impl Kind {
    /// Those that need no `CustomResourceDefinition`.
    pub(super) fn built_in() -> impl Iterator<Item = Self> {
        BUILT_IN.iter().map(|&(group, version, kind, plural, namespaced, status, short)| Self {
            group: group.to_owned(),
            versions: vec![version.to_owned()],
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            short: short.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            namespaced,
            status,
            custom: false,
        })
    }

    /// What a `CustomResourceDefinition` describes, if it is complete.
    pub(super) fn of_definition(definition: &Value) -> Option<Self> {
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let served: Vec<&Value> =
            spec["versions"].as_array()?.iter().filter(|version| version["served"] == true).collect();
        let short = spec["names"]["shortNames"].as_array().into_iter().flatten();
        Some(Self {
            group: text(&spec["group"])?,
            versions: served.iter().map(|version| text(&version["name"])).collect::<Option<_>>()?,
            kind: text(&spec["names"]["kind"])?,
            plural: text(&spec["names"]["plural"])?,
            short: short.filter_map(text).collect(),
            namespaced: spec["scope"] == "Namespaced",
            status: served.iter().any(|version| version["subresources"]["status"].is_object()),
            custom: true,
        })
    }

    /// `v1`, `apps/v1`.
    pub(super) fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// `pods`, `daemonsets.apps`, as messages name it.
    pub(super) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// The `CustomResourceDefinition`s of a group (`networking.istio.io`), or the one of a name (`podmonitors.monitoring.coreos.com`).
pub(super) fn definitions(name: &str) -> Vec<Value> {
    let is_meant =
        |row: &&CustomRow| row.0 == name || name.strip_suffix(row.0) == Some(&format!("{}.", row.3));
    CUSTOM.iter().filter(is_meant).map(definition).collect()
}

fn definition(&(group, versions, kind, plural, status): &CustomRow) -> Value {
    let subresources = if status { json!({"status": {}}) } else { json!({}) };
    let versions: Vec<Value> = versions
        .iter()
        .enumerate()
        .map(|(at, version)| {
            json!({
                "name": version, "served": true, "storage": at == 0, "subresources": subresources,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            })
        })
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced", "versions": versions,
            "names": {
                "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase(),
            },
        },
    })
}
