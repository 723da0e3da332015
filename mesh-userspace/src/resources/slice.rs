//! What a mesh reads of an `EndpointSlice`, as kube-proxy reads it (pkg/proxy/endpointslicecache.go, v1.36).
//!
//! There are at least as many of them as Services; see there.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::discovery::v1 as written;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ObjectRef;
use super::translate::endpoints::Conditions;
use super::translate::service::protocol;
use super::translate::topology::Hints;
use crate::model::{NodeName, Protocol, ServiceName, WorkloadUid, shared, shared_text};

/// The label that names the service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// When a Service's or Pod's change made the control plane write the slice (`discovery/v1`, endpoints controller).
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// `discovery.k8s.io/v1` `EndpointSlice`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointSlice {
    pub(super) reference: ObjectRef,
    /// Whose endpoints they are.
    pub(super) service: Option<ServiceName>,
    /// When what it tells of happened.
    pub(crate) trigger: Option<SystemTime>,
    pub(super) ports: Box<[SlicePort]>,
    pub(super) endpoints: Box<[SliceEndpoint]>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SlicePort {
    #[serde(deserialize_with = "shared::text")]
    pub(super) name: Arc<str>,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SliceEndpoint {
    pub(super) address: IpAddr,
    pub(super) conditions: Conditions,
    /// The pod that it refers to.
    pub(super) pod: Option<WorkloadUid>,
    pub(super) node: Option<NodeName>,
    #[serde(deserialize_with = "shared::some_text")]
    pub(super) zone: Option<Arc<str>>,
    pub(super) hints: Option<Box<Hints>>,
}

impl EndpointSlice {
    /// What is to be known of a slice that has been checked.
    pub(super) fn new(reference: ObjectRef, slice: &written::EndpointSlice) -> Self {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
        let annotations = slice.metadata.annotations.as_ref();
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let number = u16::try_from(port.port?).ok().filter(|&port| port != 0)?;
            let name = shared_text(port.name.as_deref().unwrap_or_default());
            Some(SlicePort { name, port: number, protocol: protocol(port.protocol.as_deref()) })
        });
        let is_v4 = match slice.address_type.as_str() {
            "IPv4" => Some(true),
            "IPv6" => Some(false),
            _ => None,
        };
        let endpoints = slice.endpoints.iter().filter_map(|endpoint| {
            // Addresses beyond the first mean nothing (EndpointSlice.endpoints.addresses).
            let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            (Some(address.is_ipv4()) == is_v4).then(|| SliceEndpoint::new(endpoint, address, &reference))
        });
        Self {
            service: service
                .map(|name| ServiceName::new(Arc::clone(&reference.namespace), shared_text(name))),
            trigger: annotations.and_then(|all| time(all.get(TRIGGER)?)),
            ports: ports.collect(),
            endpoints: endpoints.collect(),
            reference,
        }
    }
}

impl SliceEndpoint {
    fn new(endpoint: &written::Endpoint, address: IpAddr, slice: &ObjectRef) -> Self {
        let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        let pod = target.and_then(|target| {
            let namespace = target.namespace.as_deref().unwrap_or(&slice.namespace);
            Some(WorkloadUid::shared(namespace, target.name.as_deref()?))
        });
        let conditions = endpoint.conditions.as_ref();
        let hints = endpoint.hints.as_ref().map(|hints| Hints {
            nodes: hints.for_nodes.iter().flatten().map(|node| NodeName::new(&*node.name)).collect(),
            zones: hints.for_zones.iter().flatten().map(|zone| zone.name.as_str().into()).collect(),
        });
        Self {
            address,
            conditions: Conditions {
                ready: conditions.and_then(|all| all.ready) != Some(false),
                serving: conditions.and_then(|all| all.serving) != Some(false),
                terminating: conditions.and_then(|all| all.terminating) == Some(true),
            },
            pod,
            node: endpoint.node_name.as_deref().map(NodeName::shared),
            zone: endpoint.zone.as_deref().map(shared_text),
            hints: hints.filter(|hints| *hints != Hints::default()).map(Box::new),
        }
    }
}

fn time(text: &str) -> Option<SystemTime> {
    let time: Timestamp = text.parse().ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(time.as_nanosecond()).ok()?))
}
