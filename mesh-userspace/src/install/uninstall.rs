//! An uninstallation: the agents end, a `DaemonSet` in their place takes everything off each node, then all that has the
//! mesh's labels is deleted, and the namespace if nothing of somebody else's is in it.
//!
//! Whatever of it was done before is not there any more and is passed over, so a second run goes on where the first ended.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::chart::{OLDEST, Target, Values, render};
use super::cluster::{Cluster, named};
use super::{AGENT, CA, InstallError, SELECTOR, UninstallArgs, ValueArgs, apply, record, routes};

/// The `DaemonSet` that takes everything off the nodes.
const CLEANUP: &str = "mesh-uninstall";
const LOOK: Duration = Duration::from_secs(1);
/// A pod's end takes its grace period, and a drain is at most an hour.
const POD_END: Duration = Duration::from_mins(1);

/// What has the mesh's labels, in the order in which it goes.
const DELETED: [&str; 13] = [
    "PodMonitor",
    "DaemonSet",
    "Deployment",
    "Service",
    "NetworkPolicy",
    "RoleBinding",
    "Role",
    "ClusterRoleBinding",
    "ClusterRole",
    "ServiceAccount",
    "ConfigMap",
    "Secret",
    "Pod",
];

/// What keeps a namespace if it is somebody else's.
const KEEPING: [&str; 12] = [
    "Pod",
    "Deployment",
    "DaemonSet",
    "StatefulSet",
    "Job",
    "CronJob",
    "Service",
    "Ingress",
    "PersistentVolumeClaim",
    "Secret",
    "ConfigMap",
    "ServiceAccount",
];

/// What Kubernetes and Istio put into every namespace.
const EVERYWHERE: [(&str, &str); 4] = [
    ("ServiceAccount", "default"),
    ("ConfigMap", "kube-root-ca.crt"),
    ("ConfigMap", "istio-ca-root-cert"),
    ("ConfigMap", "openshift-service-ca.crt"),
];

/// Takes it all away; returns whether nothing is left.
pub(super) async fn uninstall(
    cluster: &Cluster,
    args: &UninstallArgs,
    out: &mut dyn Write,
) -> Result<bool, InstallError> {
    let deadline = Instant::now() + args.timeout;
    let cleaned = clean_nodes(cluster, deadline, out).await?;
    if !cleaned && !args.force {
        writeln!(
            out,
            "The nodes above still have the mesh on them, so its objects stay. Give the command again when they answer, \
             or with --force to leave them as they are."
        )?;
        return Ok(false);
    }
    routes::forget(cluster.client(), out).await?;
    delete(cluster, args.keep_root, out).await?;
    let gone = wait_gone(cluster, &[AGENT, CLEANUP, CA], Instant::now() + POD_END, out).await?;
    if !args.keep_root {
        delete_namespace(cluster, out).await?;
    }
    if args.keep_root {
        writeln!(out, "The authority's key stays in the Secret {CA} of {}.", cluster.namespace())?;
    }
    Ok(cleaned && gone)
}

/// Whether every node that had an agent was cleaned.
async fn clean_nodes(
    cluster: &Cluster,
    deadline: Instant,
    out: &mut dyn Write,
) -> Result<bool, InstallError> {
    let agents = cluster.object("DaemonSet", AGENT).await?;
    if let Some(agents) = &agents {
        let cleanup = cleanup(cluster, agents);
        // It says how to clean even when the agents' is gone.
        cluster.apply(&paused(&cleanup), true).await?;
        cluster.delete("DaemonSet", AGENT).await?;
        writeln!(out, "deleted {}", named("DaemonSet", AGENT))?;
    } else if cluster.object("DaemonSet", CLEANUP).await?.is_none() {
        if cluster.object("ConfigMap", record::NAME).await?.is_none() {
            writeln!(out, "There are no agents: nothing to take off the nodes.")?;
            return Ok(true);
        }
        // Somebody has deleted the agents' DaemonSet: what was installed says how it was.
        let none = ValueArgs { values: Vec::new(), set: Vec::new() };
        let (values, service) = record::values(cluster, &none).await?;
        let target = Target {
            namespace: cluster.namespace().to_owned(),
            // What is there is taken off whatever the API server has become.
            kubernetes: cluster.version().await?.max(OLDEST),
            service,
        };
        cluster.apply(&cleanup(cluster, &rendered_agents(&values, &target)?), true).await?;
    }
    // Each agent holds what an uninstallation needs, until its connections have come to their ends.
    if !wait_gone(cluster, &[AGENT], deadline, out).await? {
        return Ok(false);
    }
    let there = cluster.object("DaemonSet", CLEANUP).await?.unwrap_or_default();
    let mut running = stripped(&there);
    if let Some(selector) = running["spec"]["template"]["spec"]["nodeSelector"].as_object_mut() {
        selector.remove(PAUSED);
    }
    cluster.apply(&running, true).await?;
    writeln!(out, "taking the mesh off the nodes")?;
    apply::wait_for_nodes(cluster, CLEANUP, deadline, out).await
}

/// A label that no node has: the `DaemonSet` is there, and has no pods.
const PAUSED: &str = "mesh.dev/not-yet";

fn paused(cleanup: &Value) -> Value {
    let mut paused = cleanup.clone();
    paused["spec"]["template"]["spec"]["nodeSelector"][PAUSED] = json!("true");
    paused
}

/// What was applied of an object, without what the API server has added.
fn stripped(object: &Value) -> Value {
    let mut stripped = object.clone();
    if let Some(entries) = stripped.as_object_mut() {
        entries.remove("status");
    }
    if let Some(metadata) = stripped["metadata"].as_object_mut() {
        metadata.retain(|key, _| ["name", "namespace", "labels"].contains(&key.as_str()));
    }
    stripped
}

fn rendered_agents(values: &Values, target: &Target) -> Result<Value, InstallError> {
    let rendered = render(values, target)?;
    let agents = rendered.manifests.into_iter().find(|manifest| manifest.kind() == "DaemonSet");
    Ok(agents.map(|manifest| manifest.object).unwrap_or_default())
}

/// The `DaemonSet` that cleans, made of the agents': on the same nodes, with the same image and rights.
fn cleanup(cluster: &Cluster, agents: &Value) -> Value {
    // API servers before 1.30 know AppArmor by annotations alone.
    const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io";
    let spec = &agents["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    let host = |name: &str, path: &str| json!({"name": name, "hostPath": {"path": path}});
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    // The folders above those that are to go: a mounted one cannot be removed.
    let mut volumes = vec![
        host("bpffs", "/sys/fs/bpf"),
        host("cgroup", "/sys/fs/cgroup"),
        json!({"name": "netns", "hostPath": {"path": "/var/run/netns", "type": "DirectoryOrCreate"}}),
        host("host-run", "/run"),
        host("host-lib", "/var/lib"),
    ];
    let mut mounts = vec![
        json!({"name": "bpffs", "mountPath": "/sys/fs/bpf", "mountPropagation": "HostToContainer"}),
        json!({"name": "cgroup", "mountPath": "/sys/fs/cgroup", "mountPropagation": "HostToContainer"}),
        json!({"name": "netns", "mountPath": "/var/run/netns", "mountPropagation": "HostToContainer"}),
        mount("host-run", "/host/run"),
        mount("host-lib", "/host/lib"),
    ];
    let mut arguments = vec![
        "uninstall",
        "--state-dir=/host/run/mesh",
        "--cni-state=/host/lib/mesh/cni.json",
        "--source-state=/host/lib/mesh/state.json.gz",
    ];
    let own = spec["volumes"].as_array().into_iter().flatten();
    let cni: Vec<&Value> =
        own.filter(|volume| volume["name"].as_str().is_some_and(|name| name.starts_with("cni-"))).collect();
    if !cni.is_empty() {
        volumes.extend(cni.into_iter().cloned());
        mounts.extend([mount("cni-bin", "/host/cni/bin"), mount("cni-conf", "/host/cni/net.d")]);
        arguments.extend(["--cni-bin-dir=/host/cni/bin", "--cni-conf-dir=/host/cni/net.d"]);
    }
    let container = |name: &str, args: &[&str]| {
        json!({
            "name": name,
            "image": container["image"],
            "imagePullPolicy": container["imagePullPolicy"],
            "command": ["/usr/local/bin/meshd"],
            "args": args,
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": container["securityContext"],
            "volumeMounts": mounts,
        })
    };
    let mut template = json!({
        "metadata": {"labels": record::labels(CLEANUP)},
        "spec": {
            "automountServiceAccountToken": false,
            "hostNetwork": true,
            "hostPID": true,
            "terminationGracePeriodSeconds": 1,
            "priorityClassName": spec["priorityClassName"],
            "initContainers": [container("clean", &arguments)],
            "containers": [container("done", &["pause"])],
            "volumes": volumes,
        },
    });
    if agents["spec"]["template"]["metadata"]["annotations"][format!("{APP_ARMOR}/meshd")].is_string() {
        for name in ["clean", "done"] {
            template["metadata"]["annotations"][format!("{APP_ARMOR}/{name}")] = json!("unconfined");
        }
    }
    for field in ["nodeSelector", "affinity", "tolerations", "imagePullSecrets"] {
        if !spec[field].is_null() {
            template["spec"][field] = spec[field].clone();
        }
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": CLEANUP, "namespace": cluster.namespace(), "labels": record::labels(CLEANUP)},
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": CLEANUP, "app.kubernetes.io/instance": "mesh"}},
            "template": template,
        },
    })
}

/// Waits until none of these has a pod.
async fn wait_gone(
    cluster: &Cluster,
    names: &[&str],
    deadline: Instant,
    out: &mut dyn Write,
) -> Result<bool, InstallError> {
    let mut told = Vec::new();
    loop {
        let mut left = Vec::new();
        for name in names {
            let pods = cluster.pods(name).await?;
            left.extend(pods.iter().map(|pod| {
                format!(
                    "{} on {}",
                    named("Pod", pod.metadata.name.as_deref().unwrap_or_default()),
                    super::pods::node(pod)
                )
            }));
        }
        left.sort();
        if left.is_empty() {
            return Ok(true);
        }
        if left != told {
            writeln!(out, "waiting for the end of {}", left.join(", "))?;
            out.flush()?;
            told = left;
        }
        if Instant::now() >= deadline {
            writeln!(out, "gave up waiting for their end")?;
            return Ok(false);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn delete(cluster: &Cluster, keep_root: bool, out: &mut dyn Write) -> Result<(), InstallError> {
    for kind in DELETED {
        if kind == "Secret" && keep_root {
            continue;
        }
        for object in cluster.objects(kind, SELECTOR).await? {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            cluster.delete(kind, name).await?;
            // Pods go with what made them; those are the ones that were left.
            if kind != "Pod" {
                writeln!(out, "deleted {}", named(kind, name))?;
            }
        }
    }
    Ok(())
}

async fn delete_namespace(cluster: &Cluster, out: &mut dyn Write) -> Result<(), InstallError> {
    let name = cluster.namespace().to_owned();
    let Some(namespace) = cluster.object("Namespace", &name).await? else { return Ok(()) };
    let label = |key: &str| namespace["metadata"]["labels"][key].as_str().unwrap_or_default().to_owned();
    if label("app.kubernetes.io/part-of") != "mesh"
        || label("app.kubernetes.io/managed-by") != super::FIELD_MANAGER
    {
        writeln!(out, "{} stays: `meshctl install` has not made it", named("Namespace", &name))?;
        return Ok(());
    }
    let mut foreign = Vec::new();
    for kind in KEEPING {
        for object in cluster.objects(kind, "app.kubernetes.io/part-of!=mesh").await? {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let is_theirs = !EVERYWHERE.contains(&(kind, name))
                && object["type"] != "kubernetes.io/service-account-token";
            if is_theirs {
                foreign.push(named(kind, name));
            }
        }
    }
    if !foreign.is_empty() {
        foreign.truncate(10);
        writeln!(out, "{} stays: it holds {}", named("Namespace", &name), foreign.join(", "))?;
        return Ok(());
    }
    cluster.delete("Namespace", &name).await?;
    writeln!(out, "deleted {}", named("Namespace", &name))?;
    Ok(())
}
