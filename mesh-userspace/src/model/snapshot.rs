//! One immutable, validated state of the mesh.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use imbl::{HashMap, OrdMap};

use super::{Protocol, Service, ServiceName, ServicePort, TrustDomain, Workload, WorkloadUid};

/// What holds for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// Trust domain of every identity made here.
    pub trust_domain: TrustDomain,
    /// Istio's root namespace: what is configured there without a selector holds everywhere.
    pub root_namespace: Arc<str>,
    /// Cluster domain, the end of every service's host.
    pub cluster_domain: Arc<str>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::new("cluster.local").expect("cluster.local is a trust domain"),
            root_namespace: "istio-system".into(),
            cluster_domain: "cluster.local".into(),
        }
    }
}

/// The mesh at one moment. Clones share structure.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up with every change.
    pub generation: u64,
    /// Mesh-wide settings.
    pub mesh: Arc<MeshConfig>,
    /// All workloads.
    pub workloads: OrdMap<WorkloadUid, Arc<Workload>>,
    /// Workloads by address; host-network pods are left out, their address is their node's.
    pub addresses: HashMap<IpAddr, Arc<Workload>>,
    /// All services.
    pub services: OrdMap<ServiceName, Arc<Service>>,
    /// Services by address.
    pub frontends: HashMap<IpAddr, Arc<Service>>,
}

impl Snapshot {
    /// The service and port that an address belongs to.
    pub fn service_at(&self, asked: SocketAddr, protocol: Protocol) -> Option<(&Arc<Service>, &ServicePort)> {
        let service = self.frontends.get(&asked.ip())?;
        Some((service, service.port(asked.port(), protocol)?))
    }

    /// The workload that has an address.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.addresses.get(&address)
    }
}
