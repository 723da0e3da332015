//! Pods for `DaemonSets` and Deployments, addresses and endpoints for Services.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use anyhow::Result;
use serde_json::{Value, json};

use super::{Shared, list, text};

const REVISION: &str = "controller-revision-hash";

/// A pod of a controller, as far as a controller looks at it.
struct Owned {
    name: String,
    node: String,
    is_current: bool,
    is_ready: bool,
    is_ending: bool,
    /// `metadata.creationTimestamp`, which sorts.
    created: String,
}

fn revision(controller: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    controller["spec"]["template"].to_string().hash(&mut hasher);
    format!("{:08x}", hasher.finish() & 0xffff_ffff)
}

fn is_ready(pod: &Value) -> bool {
    list(pod, "/status/conditions").iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

fn matches(selector: &Value, labels: &Value) -> bool {
    selector.as_object().is_some_and(|wanted| wanted.iter().all(|(key, value)| &labels[key] == value))
}

impl Shared {
    /// The pods that a controller has made.
    fn owned(&self, controller: &Value) -> Vec<Owned> {
        let (uid, current) = (text(controller, "/metadata/uid"), revision(controller));
        let pods = self.api.objects("Pod");
        let mine = pods.iter().filter(|pod| text(pod, "/metadata/ownerReferences/0/uid") == uid);
        mine.map(|pod| Owned {
            name: text(pod, "/metadata/name").to_owned(),
            node: text(pod, "/spec/nodeName").to_owned(),
            is_current: pod["metadata"]["labels"][REVISION] == current.as_str(),
            is_ready: is_ready(pod),
            is_ending: !pod["metadata"]["deletionTimestamp"].is_null(),
            created: text(pod, "/metadata/creationTimestamp").to_owned(),
        })
        .collect()
    }

    fn make_pod(&self, controller: &Value, node: &str) -> Result<()> {
        let (name, namespace) = (text(controller, "/metadata/name"), text(controller, "/metadata/namespace"));
        let mut metadata = controller["spec"]["template"]["metadata"].clone();
        metadata["name"] = format!("{name}-{}", fastrand::u32(..)).into();
        metadata["namespace"] = namespace.into();
        metadata["labels"][REVISION] = revision(controller).into();
        metadata["ownerReferences"] = json!([{
            "apiVersion": controller["apiVersion"], "kind": controller["kind"], "name": name,
            "uid": controller["metadata"]["uid"], "controller": true,
        }]);
        let mut spec = controller["spec"]["template"]["spec"].clone();
        spec["nodeName"] = node.into();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Pending"}});
        self.api.put(pod).map(drop)
    }

    /// Tells the kubelet to end a pod.
    fn end_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let changed = self.api.edit("Pod", namespace, name, |pod| {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        });
        changed.map(drop)
    }

    pub(super) fn daemon_sets(&self) -> Result<()> {
        for set in self.api.objects("DaemonSet") {
            let namespace = text(&set, "/metadata/namespace").to_owned();
            let surges = set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"].as_u64().unwrap_or(0) > 0;
            let selector = &set["spec"]["template"]["spec"]["nodeSelector"];
            let wanted: Vec<String> = self
                .api
                .objects("Node")
                .iter()
                .filter(|node| selector.is_null() || matches(selector, &node["metadata"]["labels"]))
                .map(|node| text(node, "/metadata/name").to_owned())
                .collect();
            let owned = self.owned(&set);
            for pod in owned.iter().filter(|pod| !pod.is_ending && !wanted.contains(&pod.node)) {
                self.end_pod(&namespace, &pod.name)?;
            }
            // One node at a time is changed.
            let mut may_change = owned.iter().all(|pod| pod.is_current || !pod.is_ending)
                && owned.iter().filter(|pod| pod.is_current).all(|pod| pod.is_ready);
            for node in &wanted {
                let (current, old): (Vec<_>, Vec<_>) =
                    owned.iter().filter(|pod| &pod.node == node).partition(|pod| pod.is_current);
                let current: Vec<_> = current.into_iter().filter(|pod| !pod.is_ending).collect();
                // Of what earlier versions have left the oldest stays until the newest is ready.
                let mut old = old;
                old.sort_by(|a, b| (a.is_ending, &a.created).cmp(&(b.is_ending, &b.created)));
                for surplus in old.iter().skip(1).filter(|pod| !pod.is_ending) {
                    self.end_pod(&namespace, &surplus.name)?;
                }
                old.truncate(1);
                match (current.as_slice(), old.as_slice()) {
                    ([], []) => self.make_pod(&set, node)?,
                    ([], [old]) if surges && old.is_ready && may_change => {
                        may_change = false;
                        self.make_pod(&set, node)?;
                    }
                    ([], [old]) if !old.is_ending && (!old.is_ready || (!surges && may_change)) => {
                        may_change = false;
                        self.end_pod(&namespace, &old.name)?;
                    }
                    ([new], [old]) if new.is_ready && !old.is_ending => {
                        self.end_pod(&namespace, &old.name)?;
                    }
                    _ => {}
                }
            }
            let on = |is: fn(&Owned) -> bool| {
                wanted.iter().filter(|node| owned.iter().any(|pod| &&pod.node == node && is(pod))).count()
            };
            let status = json!({
                "observedGeneration": set["metadata"]["generation"],
                "desiredNumberScheduled": wanted.len(),
                "currentNumberScheduled": on(|_pod| true),
                "updatedNumberScheduled": on(|pod| pod.is_current),
                "numberReady": on(|pod| pod.is_ready),
                "numberAvailable": on(|pod| pod.is_ready),
                "numberMisscheduled": 0,
            });
            self.set_status("DaemonSet", &set, status)?;
        }
        self.collect("DaemonSet")
    }

    pub(super) fn deployments(&self) -> Result<()> {
        for deployment in self.api.objects("Deployment") {
            let namespace = text(&deployment, "/metadata/namespace").to_owned();
            let replicas = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
            let owned = self.owned(&deployment);
            let (current, old): (Vec<_>, Vec<_>) = owned.iter().partition(|pod| pod.is_current);
            for number in current.len() as u64..replicas {
                let node = &self.nodes[usize::try_from(number)? % self.nodes.len()];
                self.make_pod(&deployment, node.name())?;
            }
            let ready = current.iter().filter(|pod| pod.is_ready).count();
            if ready as u64 >= replicas {
                for pod in old.iter().filter(|pod| !pod.is_ending) {
                    self.end_pod(&namespace, &pod.name)?;
                }
            }
            let status = json!({
                "observedGeneration": deployment["metadata"]["generation"],
                "replicas": owned.len(),
                "updatedReplicas": current.len(),
                "readyReplicas": ready,
                "availableReplicas": ready,
            });
            self.set_status("Deployment", &deployment, status)?;
        }
        self.collect("Deployment")
    }

    fn set_status(&self, kind: &str, object: &Value, status: Value) -> Result<()> {
        if object["status"] == status {
            return Ok(());
        }
        let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        // One that was deleted meanwhile has no status.
        if self
            .api
            .object(kind, namespace, name)
            .is_some_and(|now| now["metadata"]["uid"] == object["metadata"]["uid"])
        {
            self.api.edit(kind, namespace, name, |object| object["status"] = status)?;
        }
        Ok(())
    }

    /// Ends the pods whose controller is gone.
    fn collect(&self, kind: &str) -> Result<()> {
        let there: Vec<Value> =
            self.api.objects(kind).iter().map(|one| one["metadata"]["uid"].clone()).collect();
        for pod in self.api.objects("Pod") {
            let owner = &pod["metadata"]["ownerReferences"][0];
            if owner["kind"] == kind
                && !there.contains(&owner["uid"])
                && pod["metadata"]["deletionTimestamp"].is_null()
            {
                self.end_pod(text(&pod, "/metadata/namespace"), text(&pod, "/metadata/name"))?;
            }
        }
        Ok(())
    }

    pub(super) fn services(&self) -> Result<()> {
        for (number, service) in self.api.objects("Service").into_iter().enumerate() {
            let (namespace, name) = (text(&service, "/metadata/namespace"), text(&service, "/metadata/name"));
            if text(&service, "/spec/clusterIP").is_empty() {
                let address = format!("10.96.0.{}", number + 10);
                self.api.edit("Service", namespace, name, |service| {
                    service["spec"]["clusterIP"] = address.clone().into();
                    service["spec"]["clusterIPs"] = json!([address]);
                    service["spec"]["ipFamilies"] = json!(["IPv4"]);
                    service["spec"]["type"] = "ClusterIP".into();
                })?;
            }
            let selector = &service["spec"]["selector"];
            let pods = self.api.objects("Pod");
            let behind = pods.iter().filter(|pod| {
                text(pod, "/metadata/namespace") == namespace
                    && matches(selector, &pod["metadata"]["labels"])
                    && !text(pod, "/status/podIP").is_empty()
            });
            let endpoints: Vec<Value> = behind
                .map(|pod| {
                    let ready = is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null();
                    json!({
                        "addresses": [pod["status"]["podIP"]], "nodeName": pod["spec"]["nodeName"],
                        "conditions": {"ready": ready, "serving": ready, "terminating": false},
                        "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
                    })
                })
                .collect();
            let ports: Vec<Value> = list(&service, "/spec/ports")
                .iter()
                .map(|port| json!({"name": port["name"], "port": port["targetPort"], "protocol": port["protocol"]}))
                .collect();
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("{name}-1"), "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
            });
            let there = self.api.object("EndpointSlice", namespace, &format!("{name}-1"));
            if there.is_none_or(|there| there["endpoints"] != slice["endpoints"]) {
                self.api.put(slice)?;
            }
        }
        Ok(())
    }
}
