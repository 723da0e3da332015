//! What was installed, kept in the cluster: the values of the last `meshctl install`.

use serde_json::{Value, json};

use super::chart::{RELEASE, Values};
use super::cluster::Cluster;
use super::{AGENT, InstallError, ValueArgs};

/// Name of the `ConfigMap`.
pub(super) const NAME: &str = "mesh-install";
const KEY: &str = "values.json";
const HELM: &str = "Helm";

/// Labels that all of a mesh's objects have.
pub(super) fn labels(name: &str) -> Value {
    json!({
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/instance": RELEASE,
        "app.kubernetes.io/part-of": "mesh",
        "app.kubernetes.io/managed-by": super::FIELD_MANAGER,
    })
}

/// The object that keeps them.
pub(super) fn object(namespace: &str, values: &Values) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": namespace, "labels": labels("mesh")},
        "data": {KEY: values.document().to_string()},
    })
}

/// Refuses an installation whose agents would leave the CNI plugin of the one before on their nodes: each takes care of the
/// folders that it is given.
pub(super) async fn refuse_other_cni(cluster: &Cluster, values: &Values) -> Result<(), InstallError> {
    let Some(kept) = cluster.object("ConfigMap", NAME).await? else { return Ok(()) };
    let before = kept["data"][KEY].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    match before.as_ref().and_then(|before| left_behind(&before["cni"], &values.document()["cni"])) {
        Some(before) => Err(InstallError::OtherCni(before)),
        None => Ok(()),
    }
}

/// How the plugin was installed, where an agent with the new values would not take it out again.
fn left_behind(before: &Value, now: &Value) -> Option<String> {
    let is_same = ["enabled", "binDir", "confDir"].iter().all(|key| before[key] == now[key]);
    let told = |key: &str| before[key].as_str().unwrap_or_default().to_owned();
    (before["enabled"] == true && !is_same)
        .then(|| format!("cni.enabled=true, cni.binDir={}, cni.confDir={}", told("binDir"), told("confDir")))
}

/// The values that are expected to be in force, those given or those of the last installation, and who manages the objects.
pub(super) async fn values(
    cluster: &Cluster,
    given: &ValueArgs,
) -> Result<(Values, &'static str), InstallError> {
    let agents = cluster.object("DaemonSet", AGENT).await?;
    let label = agents
        .as_ref()
        .and_then(|agents| agents["metadata"]["labels"]["app.kubernetes.io/managed-by"].as_str());
    let service = if label == Some(HELM) { HELM } else { super::FIELD_MANAGER };
    if given.given() {
        let own = if service == HELM { json!({}) } else { super::own_values() };
        return Ok((Values::new(own, &given.values, &given.set)?, service));
    }
    let Some(kept) = cluster.object("ConfigMap", NAME).await? else {
        if agents.is_none() {
            return Err(InstallError::NotInstalled(cluster.namespace().to_owned()));
        }
        let own = if service == HELM { json!({}) } else { super::own_values() };
        return Ok((Values::new(own, &[], &[])?, service));
    };
    let failed = |reason: String| InstallError::Record {
        object: format!("{}/{NAME}", cluster.namespace()),
        reason: format!("{reason}; give --values, or install again"),
    };
    let text = kept["data"][KEY].as_str().ok_or_else(|| failed(format!("it has no {KEY}")))?;
    let values: Value = serde_json::from_str(text).map_err(|error| failed(error.to_string()))?;
    // Those of another version may not be what this one's schema allows.
    Ok((Values::new(values, &[], &[]).map_err(|error| failed(error.to_string()))?, service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_not_left_behind() {
        let cni = |enabled: bool, conf: &str| json!({"enabled": enabled, "binDir": "/opt/cni/bin", "confDir": conf});
        let (usual, other, none) =
            (cni(true, "/etc/cni/net.d"), cni(true, "/var/cni"), cni(false, "/etc/cni/net.d"));
        for (before, now, is_refused) in [
            (&usual, &usual, false),
            (&usual, &other, true),
            (&usual, &none, true),
            (&none, &usual, false),
            (&none, &other, false),
        ] {
            assert_eq!(left_behind(before, now).is_some(), is_refused, "{before} {now}");
        }
        assert_eq!(left_behind(&Value::Null, &usual), None, "what an older version kept");
    }
}
