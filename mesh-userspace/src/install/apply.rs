//! An installation: objects applied in order, the authority waited for before the agents that need its root, and what the
//! last installation had and this one has not taken away.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::chart::{Manifest, Rendered, Values};
use super::cluster::{Cluster, named};
use super::{AGENT, CA, FIELD_MANAGER, InstallArgs, InstallError, SELECTOR, pods, record};

/// How often it is looked how far they are.
const LOOK: Duration = Duration::from_secs(1);

/// The kinds of which an installation may have had more than the next; an agent's and an authority's account go with it.
const PRUNED: [&str; 11] = [
    "PodMonitor",
    "DaemonSet",
    "Deployment",
    "Service",
    "RoleBinding",
    "Role",
    "ClusterRoleBinding",
    "ClusterRole",
    "ConfigMap",
    "ServiceAccount",
    "NetworkPolicy",
];

/// Applies all of it and waits. Returns whether it came up in time.
pub(super) async fn install(
    cluster: &Cluster,
    rendered: &Rendered,
    values: &Values,
    args: &InstallArgs,
    out: &mut dyn Write,
) -> Result<bool, InstallError> {
    let force = args.force_conflicts;
    let (agents, first): (Vec<_>, Vec<_>) =
        rendered.manifests.iter().partition(|manifest| manifest.kind() == "DaemonSet");
    for manifest in first {
        applied(cluster, manifest, force, out).await?;
    }
    cluster.apply(&record::object(cluster.namespace(), values), true).await?;
    let deadline = Instant::now() + args.timeout;
    let has_ca = rendered.manifests.iter().any(|manifest| manifest.kind() == "Deployment");
    if has_ca && !args.timeout.is_zero() && !wait(cluster, &AUTHORITY, deadline, out).await? {
        writeln!(
            out,
            "The agents need the authority and were not changed. Install again when it can come up."
        )?;
        return Ok(false);
    }
    for manifest in agents {
        applied(cluster, manifest, force, out).await?;
    }
    prune(cluster, rendered, out).await?;
    if args.timeout.is_zero() {
        return Ok(true);
    }
    if !wait(cluster, &AGENTS, deadline, out).await? {
        writeln!(out, "The nodes above have no agent that is ready; `meshctl verify-install` says more.")?;
        return Ok(false);
    }
    write!(out, "\n{}", rendered.notes)?;
    Ok(true)
}

async fn applied(
    cluster: &Cluster,
    manifest: &Manifest,
    force: bool,
    out: &mut dyn Write,
) -> Result<(), InstallError> {
    cluster.apply(&manifest.object, force).await?;
    writeln!(out, "applied {}", named(manifest.kind(), manifest.name()))?;
    out.flush()?;
    Ok(())
}

/// Deletes what an earlier installation of this program has made and this one does not have. The Secret stays whatever
/// the values say: nobody gets a root back.
async fn prune(cluster: &Cluster, rendered: &Rendered, out: &mut dyn Write) -> Result<(), InstallError> {
    let selector = format!("{SELECTOR},app.kubernetes.io/managed-by={FIELD_MANAGER}");
    for kind in PRUNED {
        for object in cluster.objects(kind, &selector).await? {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let is_wanted = name == record::NAME
                || rendered.manifests.iter().any(|kept| kept.kind() == kind && kept.name() == name);
            if !is_wanted {
                cluster.delete(kind, name).await?;
                writeln!(out, "deleted {}, which this installation does not have", named(kind, name))?;
            }
        }
    }
    Ok(())
}

/// What is waited for.
pub(super) struct Awaited {
    /// In the output.
    what: &'static str,
    kind: &'static str,
    name: &'static str,
    /// How many there should be, how many are as they should be, and whether that is all.
    counts: fn(&Value) -> Counts,
}

/// How many pods there should be, how many are as they should be, and whether that is all there is to wait for.
pub(super) struct Counts {
    pub(super) wanted: u64,
    pub(super) ready: u64,
    pub(super) done: bool,
}

const AUTHORITY: Awaited =
    Awaited { what: "authority", kind: "Deployment", name: CA, counts: deployment_counts };
const AGENTS: Awaited = Awaited { what: "agents", kind: "DaemonSet", name: AGENT, counts: daemon_set_counts };

fn number(object: &Value, path: &str) -> u64 {
    object.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

fn is_observed(object: &Value) -> bool {
    number(object, "/status/observedGeneration") >= number(object, "/metadata/generation")
}

fn deployment_counts(object: &Value) -> Counts {
    let wanted = object.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
    let [updated, available, all] = ["updatedReplicas", "availableReplicas", "replicas"]
        .map(|field| number(object, &format!("/status/{field}")));
    let ready = updated.min(available);
    Counts { wanted, ready, done: is_observed(object) && ready >= wanted && all == updated }
}

pub(super) fn daemon_set_counts(object: &Value) -> Counts {
    let [wanted, updated, available] =
        ["desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable"]
            .map(|field| number(object, &format!("/status/{field}")));
    let ready = updated.min(available);
    Counts { wanted, ready, done: is_observed(object) && ready >= wanted }
}

/// Waits until a Deployment or a `DaemonSet` is as it should be, saying whenever that changes what is missing. An API server
/// that does not answer meanwhile is asked again.
async fn wait(
    cluster: &Cluster,
    awaited: &Awaited,
    deadline: Instant,
    out: &mut dyn Write,
) -> Result<bool, InstallError> {
    let mut told = String::new();
    loop {
        let (line, unready, done) = match look(cluster, awaited).await {
            Ok((counts, unready)) => {
                let none = if counts.done && counts.wanted == 0 { " (no node is to have one)" } else { "" };
                (
                    format!("{} ready: {}/{}{none}", awaited.what, counts.ready, counts.wanted),
                    unready,
                    counts.done,
                )
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(error) => (crate::agent::chain(&error), BTreeMap::new(), false),
        };
        let mut text = format!("{line}\n");
        for (node, reason) in if done { BTreeMap::new() } else { unready } {
            let _infallible = writeln!(text, "  {node}: {reason}");
        }
        if text != told {
            out.write_all(text.as_bytes())?;
            out.flush()?;
            told = text;
        }
        if done {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            writeln!(out, "gave up waiting for the {}", awaited.what)?;
            return Ok(false);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(
    cluster: &Cluster,
    awaited: &Awaited,
) -> Result<(Counts, BTreeMap<String, String>), InstallError> {
    let object = cluster.object(awaited.kind, awaited.name).await?.unwrap_or_default();
    let counts = (awaited.counts)(&object);
    let unready = if counts.done { BTreeMap::new() } else { pods::unready(cluster, awaited.name).await? };
    Ok((counts, unready))
}

/// Waits for a `DaemonSet`; see [`wait`].
pub(super) async fn wait_for_nodes(
    cluster: &Cluster,
    name: &'static str,
    deadline: Instant,
    out: &mut dyn Write,
) -> Result<bool, InstallError> {
    let awaited = Awaited { what: "nodes", kind: "DaemonSet", name, counts: daemon_set_counts };
    wait(cluster, &awaited, deadline, out).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_seen_before_the_last_change_does_not_count() {
        let daemon_set = |observed, desired, updated, available| {
            json!({"metadata": {"generation": 2}, "status": {"observedGeneration": observed,
                "desiredNumberScheduled": desired, "updatedNumberScheduled": updated, "numberAvailable": available}})
        };
        let cases = [
            (1, 2, 2, 2, false),
            (2, 2, 2, 2, true),
            (2, 2, 1, 2, false),
            (2, 2, 2, 1, false),
            (2, 0, 0, 0, true),
        ];
        for (observed, desired, updated, available, done) in cases {
            let counts = daemon_set_counts(&daemon_set(observed, desired, updated, available));
            assert_eq!(counts.done, done, "{observed} {desired} {updated} {available}");
        }
        assert!(!daemon_set_counts(&json!({"metadata": {"generation": 1}})).done, "nobody has seen it");
        let deployment = |updated, available, all| {
            json!({"metadata": {"generation": 1}, "spec": {"replicas": 1}, "status": {"observedGeneration": 1,
                "updatedReplicas": updated, "availableReplicas": available, "replicas": all}})
        };
        for (updated, available, all, done) in [(1, 1, 1, true), (1, 1, 2, false), (1, 0, 1, false)] {
            assert_eq!(deployment_counts(&deployment(updated, available, all)).done, done);
        }
    }
}
