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
