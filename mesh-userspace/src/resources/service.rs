//! What a mesh reads of a Service.
//!
//! A cluster has many thousands of them, and they are kept for as long as they are in force: what is nobody's business here,
//! and what can be told from the object alone, is decided once, as it is decoded.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as written;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};

use super::lint;
use super::translate::external::{external, internal_policy, kind, left_alone, node_port};
use super::translate::service::{affinity_seconds, cluster_addresses, protocol};
use super::{Notice, ObjectRef};
use crate::model::{External, Protocol, ServiceKind, TrafficPolicy};

/// `v1` `Service`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub(super) reference: ObjectRef,
    /// Left to DNS: it has neither addresses nor endpoints of its own.
    pub(super) is_external_name: bool,
    /// Whether it has addresses, and is not left to another proxy.
    pub(super) is_served: bool,
    pub(super) kind: ServiceKind,
    /// `clusterIPs`, of both families.
    pub(super) addresses: Box<[IpAddr]>,
    /// `ipFamilies`, where that is given.
    pub(super) families: Option<Families>,
    pub(super) ports: Box<[ServicePort]>,
    /// Keys and values, by key.
    pub(super) selector: Box<[(Box<str>, Box<str>)]>,
    pub(super) publish_not_ready_addresses: bool,
    pub(super) distribution: Option<Distribution>,
    pub(super) internal: TrafficPolicy,
    /// `None`: as by default.
    pub(super) external: Option<Box<External>>,
    pub(super) affinity_seconds: Option<u32>,
    /// Everything to be said about it.
    pub(super) notices: Box<[Notice]>,
}

/// Address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Families {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

/// `trafficDistribution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Distribution {
    SameZone,
    SameNode,
}

/// One of its ports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ServicePort {
    pub(super) name: Arc<str>,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    pub(super) node_port: Option<u16>,
    /// `appProtocol`, or what the port's name begins with, as Istio reads it.
    pub(super) application: Option<Arc<str>>,
    pub(super) target: Target,
}

/// `targetPort`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Target {
    Number(u16),
    /// The container port of that name.
    Name(Box<str>),
    /// A number that is no port.
    Nothing,
}

impl Service {
    /// What is to be known of a service that has been checked.
    pub(super) fn new(reference: ObjectRef, service: &written::Service) -> Self {
        let default = written::ServiceSpec::default();
        let spec = service.spec.as_ref().unwrap_or(&default);
        let addresses = cluster_addresses(spec);
        let is_served = !addresses.is_empty() && left_alone(service).is_none();
        let external = external(service, spec, &addresses);
        let is_plain = !is_served || external == External::default();
        let families = spec.ip_families.as_deref().unwrap_or_default();
        let has = |family: &str| families.iter().any(|own| own == family);
        let selector = spec.selector.iter().flatten();
        Self {
            is_external_name: spec.type_.as_deref() == Some("ExternalName"),
            is_served,
            kind: kind(spec),
            families: (!families.is_empty()).then(|| Families { v4: has("IPv4"), v6: has("IPv6") }),
            ports: spec.ports.iter().flatten().filter_map(ServicePort::new).collect(),
            selector: selector.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
            publish_not_ready_addresses: spec.publish_not_ready_addresses == Some(true),
            distribution: match spec.traffic_distribution.as_deref() {
                Some("PreferClose" | "PreferSameZone") => Some(Distribution::SameZone),
                Some("PreferSameNode") => Some(Distribution::SameNode),
                _ => None,
            },
            internal: if is_served { internal_policy(spec) } else { TrafficPolicy::Cluster },
            external: (!is_plain).then(|| Box::new(external)),
            affinity_seconds: affinity_seconds(spec).filter(|_| is_served),
            notices: lint::service(&reference, service).into(),
            addresses: addresses.into(),
            reference,
        }
    }
}

impl ServicePort {
    fn new(written: &written::ServicePort) -> Option<Self> {
        let port = u16::try_from(written.port).ok()?;
        let name: Arc<str> = written.name.as_deref().unwrap_or_default().into();
        let application = written
            .app_protocol
            .as_deref()
            .or_else(|| name.split('-').next().filter(|prefix| !prefix.is_empty()))
            // Mostly it is the name.
            .map(|application| if *application == *name { Arc::clone(&name) } else { application.into() });
        Some(Self {
            port,
            protocol: protocol(written.protocol.as_deref()),
            node_port: node_port(written),
            application,
            target: match &written.target_port {
                None | Some(IntOrString::Int(0)) => Target::Number(port),
                Some(IntOrString::Int(number)) => {
                    u16::try_from(*number).map_or(Target::Nothing, Target::Number)
                }
                Some(IntOrString::String(name)) => match name.parse() {
                    Ok(number) => Target::Number(number),
                    Err(_) => Target::Name(name.as_str().into()),
                },
            },
            name,
        })
    }
}
