//! A synthetic cluster: objects as large as real ones, with what the kubelet and the controllers write into them.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use mesh_tests::ApiServer;
use serde_json::{Value, json};

/// The node with the agent; none of the pods is on it.
pub(super) const NODE: &str = "node-a";
/// What policies and routes are there for.
pub(super) const POLICIES: usize = 200;
const NAMESPACES: usize = 100;
const PORT: u16 = 8080;
const CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// How much of everything.
#[derive(Clone, Copy)]
pub(super) struct Cluster {
    pub(super) services: usize,
    pub(super) pods: usize,
    pub(super) nodes: usize,
}

impl Cluster {
    /// Endpoints a service.
    pub(super) const fn endpoints(self) -> usize {
        self.pods / self.services
    }

    /// Puts all of it into an API server.
    pub(super) fn put(self, api: &ApiServer) -> Result<()> {
        api.install_crds(&["networking.istio.io", "security.istio.io", "gateway.networking.k8s.io"])?;
        for number in 0..NAMESPACES {
            api.put(namespace(number))?;
        }
        api.put(node(NODE, 0))?;
        for number in 0..self.nodes {
            api.put(node(&node_name(number), number + 1))?;
        }
        for number in 0..self.pods {
            api.put(self.pod(number))?;
        }
        for number in 0..self.services {
            api.put(service(number))?;
            api.put(self.slice(number, None))?;
        }
        for number in 0..POLICIES.min(self.services) {
            for object in istio(number) {
                api.put(object)?;
            }
        }
        Ok(())
    }

    /// The slice of a service; `unready` is the endpoint of it that takes no connections.
    pub(super) fn slice(self, number: usize, unready: Option<usize>) -> Value {
        let each = self.endpoints();
        let endpoints: Vec<Value> = (0..each)
            .map(|at| {
                let pod = number * each + at;
                let ready = unready != Some(at);
                json!({
                    "addresses": [pod_address(pod).to_string()],
                    "conditions": {"ready": ready, "serving": ready, "terminating": false},
                    "nodeName": self.node_of(pod),
                    "targetRef": {
                        "kind": "Pod", "name": pod_name(pod), "namespace": namespace_of(number), "uid": uid(pod),
                    },
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-x7k2p", service_name(number)), "namespace": namespace_of(number),
                "generateName": format!("{}-", service_name(number)),
                "labels": {
                    "kubernetes.io/service-name": service_name(number),
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
                "managedFields": managed("kube-controller-manager", &["f:addressType", "f:endpoints", "f:ports"]),
            },
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
        })
    }

    fn node_of(self, pod: usize) -> String {
        node_name(pod % self.nodes)
    }

    fn pod(self, number: usize) -> Value {
        let (service, node) = (number / self.endpoints(), self.node_of(number));
        let (app, namespace) = (service_name(service), namespace_of(service));
        let address = pod_address(number).to_string();
        let condition = |name: &str| json!({"type": name, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": pod_name(number), "namespace": namespace, "uid": uid(number),
                "generateName": format!("{app}-6d4cf56db6-"),
                "labels": {"app": app, "pod-template-hash": "6d4cf56db6", "version": if number.is_multiple_of(2) { "v1" } else { "v2" }},
                "annotations": {"kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z", "prometheus.io/scrape": "true"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-6d4cf56db6"), "uid": uid(service),
                    "controller": true, "blockOwnerDeletion": true,
                }],
                "managedFields": managed("kubelet", &["f:conditions", "f:containerStatuses", "f:hostIP", "f:phase", "f:podIP", "f:podIPs", "f:startTime"]),
            },
            "spec": {
                "nodeName": node, "serviceAccountName": app, "serviceAccount": app, "restartPolicy": "Always",
                "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30,
                "containers": [{
                    "name": "app", "image": format!("registry.example/team/{app}:1.42.0"), "imagePullPolicy": "IfNotPresent",
                    "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
                    "env": (0..8).map(|at| json!({"name": format!("SETTING_{at}"), "value": format!("value of the setting {at}")})).collect::<Vec<_>>(),
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                    "livenessProbe": {"httpGet": {"path": "/healthz", "port": PORT, "scheme": "HTTP"}, "periodSeconds": 10},
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": PORT, "scheme": "HTTP"}, "periodSeconds": 10},
                    "volumeMounts": [{"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
                }],
                "tolerations": [
                    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                ],
                "volumes": [{"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                ]}}],
            },
            "status": {
                "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "192.168.0.1",
                "startTime": "2026-01-01T00:00:00Z", "qosClass": "Burstable",
                "conditions": CONDITIONS.map(condition),
                "containerStatuses": [{
                    "name": "app", "ready": true, "started": true, "restartCount": 0,
                    "image": format!("registry.example/team/{app}:1.42.0"),
                    "imageID": "registry.example/team/app@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "containerID": "containerd://2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
                    "state": {"running": {"startedAt": "2026-01-01T00:00:05Z"}},
                }],
            },
        })
    }
}

/// One more service without endpoints: that it is known says that all before it is.
pub(super) fn marker(number: usize) -> Value {
    let mut service = service(number);
    service["metadata"]["name"] = format!("marker-{number}").into();
    service
}

fn namespace(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": format!("team-{number:03}"), "labels": {"istio.io/dataplane-mode": "ambient"}},
    })
}

fn node(name: &str, number: usize) -> Value {
    let address = Ipv4Addr::from(0xc0a8_0000 + u32::try_from(number).unwrap_or_default());
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
            "topology.kubernetes.io/region": "region",
        }},
        "spec": {},
        "status": {"addresses": [{"type": "InternalIP", "address": address.to_string()}, {"type": "Hostname", "address": name}]},
    })
}

fn service(number: usize) -> Value {
    let name = service_name(number);
    let address = Ipv4Addr::from(0x0a60_0000 + u32::try_from(number).unwrap_or_default() + 1);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": namespace_of(number), "labels": {"app": name},
            "managedFields": managed("helm", &["f:internalTrafficPolicy", "f:ports", "f:selector", "f:type"]),
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": address.to_string(), "clusterIPs": [address.to_string()],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "selector": {"app": name}, "sessionAffinity": "None",
            "ports": [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}],
        },
        "status": {"loadBalancer": {}},
    })
}

fn istio(number: usize) -> [Value; 3] {
    let (name, namespace) = (service_name(number), namespace_of(number));
    let host = format!("{name}.{namespace}.svc.cluster.local");
    let metadata = json!({"name": name, "namespace": namespace});
    [
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": metadata,
            "spec": {"host": host, "subsets": [
                {"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}},
            ]},
        }),
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": metadata,
            "spec": {"hosts": [host], "tcp": [{"route": [
                {"destination": {"host": host, "subset": "v1"}, "weight": 90},
                {"destination": {"host": host, "subset": "v2"}, "weight": 10},
            ]}]},
        }),
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata,
            "spec": {"selector": {"matchLabels": {"app": name}}, "action": "ALLOW", "rules": [
                {"from": [{"source": {"namespaces": [namespace]}}], "to": [{"operation": {"ports": [PORT.to_string()]}}]},
            ]},
        }),
    ]
}

/// What server-side bookkeeping takes in every object.
fn managed(manager: &str, fields: &[&str]) -> Value {
    let fields: serde_json::Map<String, Value> = fields
        .iter()
        .map(|field| ((*field).to_owned(), json!({".": {}, "f:type": {}, "f:status": {}})))
        .collect();
    json!([{
        "manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:status": fields},
    }])
}

fn service_name(number: usize) -> String {
    format!("service-{number:05}")
}

fn namespace_of(service: usize) -> String {
    format!("team-{:03}", service % NAMESPACES)
}

fn node_name(number: usize) -> String {
    format!("worker-{number:03}")
}

fn pod_name(number: usize) -> String {
    format!("service-6d4cf56db6-{number:06x}")
}

fn pod_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a80_0000 + u32::try_from(number).unwrap_or_default() + 1)
}

fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// The bytes of a pod, as an API server sends it.
pub(super) fn pod_size(api: &ApiServer) -> Result<usize> {
    let pod = api.object("Pod", &namespace_of(0), &pod_name(0)).context("a pod")?;
    Ok(pod.to_string().len())
}
