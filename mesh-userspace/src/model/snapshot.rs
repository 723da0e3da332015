//! One immutable, validated state of the mesh.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use imbl::{HashMap, OrdMap};

use super::{
    Earlier, NodeName, PeerPolicy, Policies, PolicyName, Protocol, RouteName, RouteState, Service,
    ServiceName, ServicePort, TrustDomain, Workload, WorkloadUid,
};

/// What holds for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// Trust domain of every identity made here.
    pub trust_domain: TrustDomain,
    /// Trust domains whose identities are taken for those of the own one (`MeshConfig.trustDomainAliases`).
    pub trust_domain_aliases: Arc<[TrustDomain]>,
    /// Istio's root namespace: what is configured there without a selector holds everywhere.
    pub root_namespace: Arc<str>,
    /// Cluster domain, the end of every service's host.
    pub cluster_domain: Arc<str>,
    /// The node that this is, where it is one of the cluster's.
    pub node: Option<NodeName>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::new("cluster.local").expect("cluster.local is a trust domain"),
            trust_domain_aliases: Arc::default(),
            root_namespace: "istio-system".into(),
            cluster_domain: "cluster.local".into(),
            node: None,
        }
    }
}

/// What the Node object of this node says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNode {
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` that are addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether load balancers should send nothing here any more: it is being deleted, or carries the taint
    /// `ToBeDeletedByClusterAutoscaler`.
    pub leaving: bool,
}

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// A service's address; `None` for a node port.
    pub address: Option<IpAddr>,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{} {:?}", SocketAddr::new(address, self.port), self.protocol),
            None => write!(f, "node port {} {:?}", self.port, self.protocol),
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
    /// Those of this node ([`MeshConfig::node`]): what serves the node costs what the node has, however large the cluster.
    pub here: OrdMap<WorkloadUid, Arc<Workload>>,
    /// Workloads by address; host-network pods are left out, their address is their node's.
    pub addresses: HashMap<IpAddr, Arc<Workload>>,
    /// Counts how often an address became another's, or nobody's, though no workload became different.
    pub reowned: u64,
    /// All namespaces that have an object, and whether it brings its pods into the mesh unless they opt out.
    pub namespaces: OrdMap<Arc<str>, bool>,
    /// All services.
    pub services: OrdMap<ServiceName, Arc<Service>>,
    /// Services by what clients ask for: cluster, external and load-balancer addresses with each port, and node ports.
    pub frontends: HashMap<Frontend, Arc<Service>>,
    /// All `AuthorizationPolicy`s.
    pub policies: Policies,
    /// What is known of this node.
    pub node: Arc<LocalNode>,
    /// Addresses of the other nodes.
    pub other_nodes: OrdMap<NodeName, Arc<[IpAddr]>>,
    /// All `PeerAuthentication`s, for whoever asks where a mode comes from; [`Workload::mtls`] is what they come to.
    pub peer_policies: OrdMap<PolicyName, Arc<PeerPolicy>>,
    /// What has become of Gateway API routes with a Service for a parent.
    pub routes: OrdMap<RouteName, Arc<RouteState>>,
    /// Where routes led earlier: [`Snapshot::note_earlier`].
    pub earlier: Earlier,
}

impl Snapshot {
    /// The service and port that a service address with its port belongs to.
    pub fn service_at(&self, asked: SocketAddr, protocol: Protocol) -> Option<(&Arc<Service>, &ServicePort)> {
        let frontend = Frontend { address: Some(asked.ip()), port: asked.port(), protocol };
        let service = self.frontends.get(&frontend)?;
        Some((service, service.port(asked.port(), protocol)?))
    }

    /// The service and port behind a node port.
    pub fn service_at_node_port(
        &self,
        port: u16,
        protocol: Protocol,
    ) -> Option<(&Arc<Service>, &ServicePort)> {
        let service = self.frontends.get(&Frontend { address: None, port, protocol })?;
        let is_asked = |own: &&ServicePort| own.node_port == Some(port) && own.protocol == protocol;
        Some((service, service.ports.iter().find(is_asked)?))
    }

    /// The workload that has an address.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.addresses.get(&address)
    }
}
