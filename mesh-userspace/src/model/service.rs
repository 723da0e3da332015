//! Services and their ports.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{ConditionalRoute, Endpoint, Frontend, Route, RouteTarget, ServiceName};

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Recognised so that it can be reported; no plane carries it.
    Sctp,
}

impl Protocol {
    /// IANA number, as in the kernel maps.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => mesh_common::abi::TCP,
            Self::Udp => mesh_common::abi::UDP,
            Self::Sctp => 132,
        }
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// Name; empty for the only port of a service.
    pub name: Arc<str>,
    /// Port number that clients ask for.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The port on every node that leads here.
    pub node_port: Option<u16>,
    /// All endpoints that are said to be there, whatever their state and whatever the route.
    pub listed: Arc<[Endpoint]>,
    /// Those that take connections now by kube-proxy's rules for the policy Cluster (state, then topology), whatever the
    /// route.
    pub endpoints: Arc<[Endpoint]>,
    /// Routes for some connections only, the first of which that holds goes before `route`.
    pub rules: Vec<ConditionalRoute>,
    /// Where all other connections go under the policy Cluster; for clients that are not enrolled, all.
    pub route: Route,
    /// Where they go under the policy Local: to endpoints of this node alone. There where one of the service's policies
    /// is Local.
    pub local: Option<Route>,
}

impl ServicePort {
    /// A port without a name whose endpoints all take connections, alike.
    pub fn plain(service: &ServiceName, port: u16, protocol: Protocol, endpoints: Arc<[Endpoint]>) -> Self {
        let target = RouteTarget::whole(service.clone(), port, 1, Arc::clone(&endpoints));
        Self {
            name: Arc::from(""),
            port,
            protocol,
            node_port: None,
            listed: Arc::clone(&endpoints),
            endpoints,
            rules: Vec::new(),
            route: Route::new(None, vec![target]),
            local: None,
        }
    }

    /// Where connections go under a policy.
    pub fn route(&self, policy: TrafficPolicy) -> &Route {
        match (policy, &self.local) {
            (TrafficPolicy::Local, Some(local)) => local,
            _ => &self.route,
        }
    }

    /// All routes that any connection may take, under either policy.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        let conditional = self.rules.iter().flat_map(ConditionalRoute::routes);
        [Some(&self.route), self.local.as_ref()].into_iter().flatten().chain(conditional)
    }

    /// Whether an enrolled client's connections must go through the agent: some endpoint is in the mesh, or a rule asks for
    /// what the agent alone can do. `v4`: of the family of the address that was asked for.
    pub fn needs_agent(&self, policy: TrafficPolicy, v4: bool) -> bool {
        self.agent_cause(policy, v4).is_some()
    }

    /// Why they must, if they must: the first cause that holds.
    pub fn agent_cause(&self, policy: TrafficPolicy, v4: bool) -> Option<AgentCause<'_>> {
        let route = self.route(policy);
        let set = if v4 { &route.v4 } else { &route.v6 };
        if set.needs_agent() {
            return Some(AgentCause::Mesh);
        }
        if let Some(first) = self.rules.first() {
            return Some(AgentCause::Conditions(first.route.rule.as_deref()));
        }
        if set.is_empty() {
            return None;
        }
        if !route.actions.is_empty() {
            return Some(AgentCause::Actions(route.rule.as_deref()));
        }
        let mut targets = route.targets.iter().filter(|target| target.weight > 0);
        let target = targets.find(|target| target.settings.needs_agent())?;
        Some(AgentCause::Settings(target.settings.rule.as_deref()))
    }
}

/// Why an enrolled client's connections to a service's port go through the agent; with `NAMESPACE/NAME` of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentCause<'a> {
    /// An endpoint is in the mesh.
    Mesh,
    /// Some routes are for some connections alone.
    Conditions(Option<&'a str>),
    /// The route does something to its connections.
    Actions(Option<&'a str>),
    /// A destination has settings that the agent alone can carry out.
    Settings(Option<&'a str>),
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Those of the client's node (internal), or of the node that the client from outside came to (external).
    Local,
}

/// `spec.type`. Services of type `ExternalName` are left to DNS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServiceKind {
    /// Reached at its cluster addresses, if it has any.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// On a port of every node as well.
    NodePort,
    /// At the addresses of a load balancer as well.
    LoadBalancer,
    /// No Kubernetes Service: a host of a `ServiceEntry`. Of its addresses nothing but its ports is its own: what is asked for at
    /// others goes where it would go without it.
    ServiceEntry,
}

/// How a service is reached from outside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// `externalTrafficPolicy`. Clients on this node are served by all endpoints all the same.
    pub policy: TrafficPolicy,
    /// `externalIPs`.
    pub addresses: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` where `ipMode` is VIP.
    pub load_balancer: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`: who may come to the load balancer's addresses; empty: everybody.
    pub source_ranges: Vec<IpNet>,
    /// `healthCheckNodePort`, where it is served.
    pub health_check_port: Option<u16>,
}

/// A service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Namespace and name; of a `ServiceEntry`'s host, the host in the entry's namespace.
    pub name: ServiceName,
    /// Fully qualified host, `NAME.NAMESPACE.svc.CLUSTER_DOMAIN`, or that of a `ServiceEntry`.
    pub host: Arc<str>,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// Cluster addresses, or those of a `ServiceEntry`; empty for a headless service.
    pub addresses: Vec<IpAddr>,
    /// Ports in the order written.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy`: clients in the cluster that ask for a cluster address.
    pub internal: TrafficPolicy,
    /// Clients outside.
    pub external: External,
    /// `sessionAffinity: ClientIP`: for how many seconds after it was last seen a client keeps its endpoint.
    pub affinity_seconds: Option<u32>,
}

impl Service {
    /// A service that only clients in the cluster reach.
    pub fn internal(
        name: ServiceName,
        host: Arc<str>,
        addresses: Vec<IpAddr>,
        ports: Vec<ServicePort>,
    ) -> Self {
        Self {
            name,
            host,
            kind: ServiceKind::ClusterIp,
            addresses,
            ports,
            internal: TrafficPolicy::Cluster,
            external: External::default(),
            affinity_seconds: None,
        }
    }

    /// All that clients can ask for to reach it.
    pub fn frontends(&self) -> impl Iterator<Item = Frontend> {
        let carried = self.ports.iter().filter(|port| port.protocol != Protocol::Sctp);
        carried.flat_map(|port| self.frontends_of(port))
    }

    /// All that clients can ask for to reach one of its ports.
    pub fn frontends_of(&self, port: &ServicePort) -> impl Iterator<Item = Frontend> {
        let External { addresses, load_balancer, .. } = &self.external;
        let (number, node_port, protocol) = (port.port, port.node_port, port.protocol);
        let own = self.addresses.iter().chain(addresses).chain(load_balancer);
        let own = own.map(move |&address| Frontend { address: Some(address), port: number, protocol });
        own.chain(node_port.map(|port| Frontend { address: None, port, protocol }))
    }

    /// The port with this number and protocol.
    pub fn port(&self, port: u16, protocol: Protocol) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port && candidate.protocol == protocol)
    }
}
