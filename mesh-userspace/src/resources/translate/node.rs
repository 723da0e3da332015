//! What a Node object says of topology and of the node's fate.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::model::LocalNode;

const ZONE: &str = "topology.kubernetes.io/zone";
/// Put there by the cluster autoscaler before it takes the node away.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// The zone that a node is in.
pub(in crate::resources) fn zone(node: &Node) -> Option<&str> {
    let zone = node.metadata.labels.as_ref()?.get(ZONE)?;
    Some(zone.as_str()).filter(|zone| !zone.is_empty())
}

/// The node that this is.
pub(in crate::resources) fn local_node(node: &Node) -> LocalNode {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    LocalNode {
        zone: zone(node).map(Arc::from),
        addresses: addresses.filter_map(|address| address.address.parse().ok()).collect(),
        leaving: node.metadata.deletion_timestamp.is_some()
            || taints.into_iter().any(|taint| taint.key == TO_BE_DELETED),
    }
}
