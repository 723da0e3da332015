//! Which service a destination is: in the kernel, and in the snapshot.

use std::fmt;
use std::sync::Arc;

use mesh_common::abi::{
    ADDRESS_CLUSTER, ADDRESS_EXTERNAL, ADDRESS_LOCAL, ADDRESS_LOOPBACK, ADDRESS_NODE_PORTS, SCOPE_NODE_PORT,
    Service as Installed, ServiceKey, UDP, is_mapped,
};

use super::maps::Maps;
use crate::datapath::{DatapathError, ip_of};
use crate::model::{AgentCause, Protocol, Service, ServiceKind, ServicePort, Snapshot, TrafficPolicy};

/// Where frontends are looked for.
pub(super) struct Frontends<'a> {
    pub(super) maps: &'a dyn Maps,
    pub(super) snapshot: &'a Snapshot,
}

/// What was found for a destination.
pub(super) struct Found<'a> {
    /// The key that it was found under, or that was asked for.
    pub(super) key: ServiceKey,
    /// `ADDRESS_*` bits of the address.
    pub(super) bits: u32,
    /// What the kernel has.
    pub(super) installed: Option<Installed>,
    /// What the snapshot has.
    pub(super) service: Option<(&'a Arc<Service>, &'a ServicePort)>,
    /// Whether the address is an IPv4 one.
    pub(super) v4: bool,
}

impl<'a> Frontends<'a> {
    /// As connect and sendmsg look for it; the node's own processes have node ports on loopback as well.
    pub(super) fn find(&self, asked: &ServiceKey, in_node: bool) -> Result<Found<'a>, DatapathError> {
        self.look(asked, |bits| bits & ADDRESS_NODE_PORTS != 0 || (bits & ADDRESS_LOOPBACK != 0 && in_node))
    }

    /// As the node's `sk_lookup` does.
    pub(super) fn find_outside(&self, asked: &ServiceKey) -> Result<Found<'a>, DatapathError> {
        self.look(asked, |bits| bits & ADDRESS_NODE_PORTS != 0)
    }

    fn look(&self, asked: &ServiceKey, node_ports: impl Fn(u32) -> bool) -> Result<Found<'a>, DatapathError> {
        let bits = self.maps.address_bits(asked.address)?;
        let own = self.at(asked, bits)?;
        if own.installed.is_some() || own.service.is_some() || !node_ports(bits) {
            return Ok(own);
        }
        let node_port = self.at(&asked.node_port(), bits)?;
        Ok(if node_port.installed.is_some() || node_port.service.is_some() { node_port } else { own })
    }

    fn at(&self, key: &ServiceKey, bits: u32) -> Result<Found<'a>, DatapathError> {
        let protocol = if key.protocol == UDP { Protocol::Udp } else { Protocol::Tcp };
        let service = if key.scope == SCOPE_NODE_PORT {
            self.snapshot.service_at_node_port(key.port, protocol)
        } else {
            self.snapshot.service_at((ip_of(key.address), key.port).into(), protocol)
        };
        Ok(Found {
            key: *key,
            bits,
            installed: self.maps.service(key)?,
            service,
            v4: is_mapped(&key.address),
        })
    }
}

impl Found<'_> {
    /// A port that no service has, of a cluster address, for clients on the node.
    pub(super) const fn closed_inside(&self) -> bool {
        self.bits & ADDRESS_CLUSTER != 0 && self.bits & ADDRESS_LOCAL == 0
    }

    /// The same for clients outside, of external addresses as well.
    pub(super) const fn closed_outside(&self) -> bool {
        self.bits & (ADDRESS_CLUSTER | ADDRESS_EXTERNAL) != 0 && self.bits & ADDRESS_LOCAL == 0
    }

    /// The frontend as the snapshot has it.
    pub(super) fn frontend(&self) -> Option<Frontend<'_>> {
        let (service, port) = self.service?;
        let address = ip_of(self.key.address);
        let is_node_port = self.key.scope == SCOPE_NODE_PORT;
        let is_cluster = !is_node_port && service.addresses.contains(&address);
        let kind = if is_node_port {
            "node port"
        } else if is_cluster && service.kind == ServiceKind::ServiceEntry {
            "address"
        } else if is_cluster {
            "cluster address"
        } else if service.external.load_balancer.contains(&address) {
            "load balancer's address"
        } else {
            "external address"
        };
        let service_policy = if is_cluster { service.internal } else { service.external.policy };
        Some(Frontend { service, port, kind, is_cluster, service_policy })
    }
}

/// One of the ways to a service port.
pub(super) struct Frontend<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    kind: &'static str,
    pub(super) is_cluster: bool,
    /// The policy that the service has for it.
    pub(super) service_policy: TrafficPolicy,
}

impl fmt::Display for Frontend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, port, kind, .. } = self;
        write!(f, "{kind} of {}, port {}/{}", service.name, port.port, protocol(port.protocol))?;
        if !port.name.is_empty() {
            write!(f, " ({})", port.name)?;
        }
        Ok(())
    }
}

impl Frontend<'_> {
    /// Why the agent carries an enrolled client's connections.
    pub(super) fn captured_words(&self, policy: TrafficPolicy, v4: bool) -> String {
        let rule = |kind, rule: Option<&str>, asks| match rule {
            Some(rule) => format!("{kind} {rule} {asks}"),
            None => format!("a {kind} {asks}"),
        };
        let cause = match self.port.agent_cause(policy, v4) {
            None | Some(AgentCause::Mesh) => "a backend is in the mesh".to_owned(),
            Some(AgentCause::Conditions(name)) => rule("route", name, "is for some connections alone"),
            Some(AgentCause::Actions(name)) => rule("VirtualService", name, "asks for what no kernel does"),
            Some(AgentCause::Settings(name)) => rule("DestinationRule", name, "asks for what no kernel does"),
        };
        format!("the client is enrolled and {cause}: the agent carries it")
    }

    /// What the policy means for a client on this node.
    pub(super) fn inside_words(&self) -> String {
        match (self.is_cluster, self.service_policy) {
            (true, TrafficPolicy::Cluster) => "internalTrafficPolicy Cluster: all endpoints".to_owned(),
            (true, TrafficPolicy::Local) => {
                "internalTrafficPolicy Local: endpoints of this node alone".to_owned()
            }
            (false, policy) => {
                format!(
                    "clients on this node reach all endpoints, whatever externalTrafficPolicy says ({policy:?})"
                )
            }
        }
    }

    /// What it means for a client outside.
    pub(super) fn outside_words(&self) -> String {
        let field = if self.is_cluster { "internalTrafficPolicy" } else { "externalTrafficPolicy" };
        match self.service_policy {
            TrafficPolicy::Cluster => format!("{field} Cluster: all endpoints"),
            TrafficPolicy::Local => format!("{field} Local: endpoints of this node alone"),
        }
    }
}

pub(super) fn address_words(bits: u32) -> String {
    let all = [
        (ADDRESS_LOCAL, "the node's own"),
        (ADDRESS_NODE_PORTS, "node ports are served on it"),
        (ADDRESS_CLUSTER, "a service's cluster address"),
        (ADDRESS_EXTERNAL, "a service's external address"),
        (ADDRESS_LOOPBACK, "loopback, with node ports for the node's own processes"),
    ];
    let words: Vec<_> = all.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, words)| *words).collect();
    if words.is_empty() { "neither the node's nor a service's".to_owned() } else { words.join(", ") }
}

pub(super) const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}
