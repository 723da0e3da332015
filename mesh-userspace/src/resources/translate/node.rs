//! What a Node object says of topology and of the node's fate.

use k8s_openapi::api::core::v1::Node;

use crate::model::{LocalNode, Locality};

/// Label of a node's region.
pub(super) const REGION: &str = "topology.kubernetes.io/region";
/// Label of its zone.
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
/// Label of its sub-zone, which is Istio's own.
pub(super) const SUBZONE: &str = "topology.istio.io/subzone";
/// Label of a node's name.
pub(super) const HOSTNAME: &str = "kubernetes.io/hostname";
/// Put there by the cluster autoscaler before it takes the node away.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Where a node is; `None` where its labels do not say.
pub(in crate::resources) fn locality(node: &Node) -> Option<Locality> {
    let labels = node.metadata.labels.as_ref()?;
    let label = |key: &str| labels.get(key).map_or("", String::as_str).into();
    let locality = Locality { region: label(REGION), zone: label(ZONE), subzone: label(SUBZONE) };
    (locality != Locality::default()).then_some(locality)
}

/// The node that this is.
pub(in crate::resources) fn local_node(node: &Node) -> LocalNode {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    LocalNode {
        zone: locality(node).map(|locality| locality.zone).filter(|zone| !zone.is_empty()),
        addresses: addresses.filter_map(|address| address.address.parse().ok()).collect(),
        leaving: node.metadata.deletion_timestamp.is_some()
            || taints.into_iter().any(|taint| taint.key == TO_BE_DELETED),
    }
}
