//! Who connects, and to what: as it was written, found in the snapshot and in the kernel.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_common::abi::{ADDRESS_LOCAL, ServiceKey, State, is_mapped};

use super::maps::{Maps, Standing};
use crate::admin::explain::Basis;
use crate::admin::plane::QueryError;
use crate::datapath::{address_of, ip_of};
use crate::model::{NodeName, Service, ServiceKind, ServiceName, Snapshot, Workload, WorkloadUid};

/// Who connects.
#[derive(Clone, Debug)]
pub(super) enum Client {
    /// A process on this node.
    Inside {
        /// The pod; `None`: the node's own namespace.
        pod: Option<Arc<Workload>>,
        /// Cookie of its network namespace, where that is known.
        netns: Option<u64>,
        /// Whether the kernel captures it.
        enrolled: bool,
    },
    /// Another machine, at this address if it is known.
    Outside(Option<IpAddr>),
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inside { pod: Some(pod), .. } => write!(f, "pod {}", pod.uid),
            Self::Inside { .. } => f.write_str("a process of the node"),
            Self::Outside(Some(address)) => write!(f, "{address}, outside"),
            Self::Outside(None) => f.write_str("a client outside"),
        }
    }
}

/// Where clients are looked for.
pub(super) struct Clients<'a> {
    pub(super) maps: &'a dyn Maps,
    pub(super) snapshot: &'a Snapshot,
    pub(super) node: &'a NodeName,
    pub(super) state: &'a State,
}

impl Clients<'_> {
    /// The client that is meant.
    pub(super) fn find(&self, text: &str) -> Result<Client, QueryError> {
        match text {
            "node" => return Ok(self.own()),
            "outside" => return Ok(Client::Outside(None)),
            _ => {}
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            let address = address.to_canonical();
            if let Some(workload) = self.snapshot.workload_at(address) {
                return self.pod(workload);
            }
            let bits = self.maps.address_bits(address_of(address)).map_err(super::failed)?;
            let is_own = bits & ADDRESS_LOCAL != 0
                || self.snapshot.node.addresses.contains(&address)
                || address.is_loopback();
            return Ok(if is_own { self.own() } else { Client::Outside(Some(address)) });
        }
        self.pod(pod_called(text, self.snapshot)?)
    }

    fn own(&self) -> Client {
        Client::Inside { pod: None, netns: Some(self.state.node_netns_cookie), enrolled: false }
    }

    fn pod(&self, workload: &Arc<Workload>) -> Result<Client, QueryError> {
        if !workload.is_pod() {
            return Err(QueryError::NotFound(format!(
                "{} runs elsewhere: where its connections go is nothing that this mesh decides",
                workload.uid
            )));
        }
        if !workload.is_on(self.node) {
            let place = workload.node.as_ref().map_or("no node", NodeName::as_str);
            return Err(QueryError::NotFound(match self.maps.basis() {
                Basis::Kernel => format!(
                    "pod {} is on {place}: that node's agent knows where its connections go",
                    workload.uid
                ),
                Basis::Snapshot => {
                    format!(
                        "pod {} is on {place}, not on {}: give its node with --node",
                        workload.uid, self.node
                    )
                }
            }));
        }
        let own = Standing { netns: Some(self.state.node_netns_cookie), enrolled: false };
        let standing =
            if workload.host_network { own } else { self.maps.standing(workload).map_err(super::failed)? };
        let Standing { netns, enrolled } = standing;
        Ok(Client::Inside { pod: Some(Arc::clone(workload)), netns, enrolled })
    }
}

/// The pod that `NAMESPACE/POD` names.
pub(super) fn pod_called<'a>(text: &str, snapshot: &'a Snapshot) -> Result<&'a Arc<Workload>, QueryError> {
    let Some((namespace, name)) = text
        .split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
    else {
        return Err(QueryError::Bad(format!(
            "`{text}` is nobody who connects: write NAMESPACE/POD, an address, `node` or `outside`"
        )));
    };
    let workload = snapshot.workloads.get(&WorkloadUid::pod(namespace, name));
    workload.ok_or_else(|| QueryError::NotFound(format!("no pod {text} is known")))
}

impl Client {
    /// (captured by the kernel, cookie of the namespace, whether that is the node's).
    pub(super) fn inside(&self, state: &State) -> (bool, Option<u64>, bool) {
        match self {
            Self::Inside { netns, enrolled, .. } => {
                (*enrolled, *netns, *netns == Some(state.node_netns_cookie))
            }
            Self::Outside(_) => (false, None, false),
        }
    }

    /// The pod that it is.
    pub(super) const fn pod(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Inside { pod, .. } => pod.as_ref(),
            Self::Outside(_) => None,
        }
    }

    /// The address that it has when it asks for one of the key's family on this node.
    pub(super) fn address(&self, key: &ServiceKey) -> Option<IpAddr> {
        match self {
            Self::Inside { pod: Some(pod), .. } if !pod.host_network => {
                family(&pod.addresses, is_mapped(&key.address))
            }
            // What the node sends to an address that is routed locally comes from that address itself.
            Self::Inside { .. } => Some(ip_of(key.address)),
            Self::Outside(address) => *address,
        }
    }

    /// The address that a destination elsewhere sees.
    pub(super) fn seen_as(&self, v4: bool, snapshot: &Snapshot) -> Option<IpAddr> {
        match self {
            Self::Inside { pod: Some(pod), .. } => family(&pod.addresses, v4),
            Self::Inside { .. } => family(&snapshot.node.addresses, v4),
            Self::Outside(address) => *address,
        }
    }

    pub(super) fn details(&self, basis: Basis) -> String {
        let Self::Inside { netns, enrolled, .. } = self else { return self.to_string() };
        let enrolled = if *enrolled { "enrolled" } else { "not enrolled" };
        match (basis, netns) {
            (Basis::Snapshot, _) => enrolled.to_owned(),
            (Basis::Kernel, Some(cookie)) => format!("network namespace {cookie}, {enrolled}"),
            (Basis::Kernel, None) => format!("a network namespace that cannot be entered, {enrolled}"),
        }
    }
}

fn family(addresses: &[IpAddr], v4: bool) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv4() == v4)
}

/// What is asked for.
pub(super) fn destination(text: &str, snapshot: &Snapshot) -> Result<SocketAddr, QueryError> {
    let bad = || {
        QueryError::Bad(format!(
            "`{text}` is no destination: write ADDRESS:PORT, NAME.NAMESPACE:PORT or NAMESPACE/NAME:PORT"
        ))
    };
    if let Ok(asked) = text.parse::<SocketAddr>() {
        return Ok(SocketAddr::new(ip_of(address_of(asked.ip())), asked.port()));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().map_err(|_error| bad())?;
    let address = match host.split_once('/') {
        Some((namespace, name)) => service_or_pod(namespace, name, snapshot)?,
        None => service_called(host, snapshot).ok_or_else(bad)??,
    };
    Ok(SocketAddr::new(address, port))
}

/// `NAMESPACE/NAME`: the service, or else the pod.
fn service_or_pod(namespace: &str, name: &str, snapshot: &Snapshot) -> Result<IpAddr, QueryError> {
    if let Some(found) = service(namespace, name, snapshot) {
        return found;
    }
    let workload = snapshot.workloads.get(&WorkloadUid::pod(namespace, name));
    let workload = workload
        .ok_or_else(|| QueryError::NotFound(format!("no service and no pod {namespace}/{name} is known")))?;
    let address = workload.addresses.first().copied();
    address.ok_or_else(|| QueryError::NotFound(format!("pod {namespace}/{name} has no address yet")))
}

/// A host of a `ServiceEntry`, or else `NAME.NAMESPACE`, with `.svc` and the cluster's domain or without.
fn service_called(host: &str, snapshot: &Snapshot) -> Option<Result<IpAddr, QueryError>> {
    let is_entrys =
        |service: &&Arc<Service>| service.kind == ServiceKind::ServiceEntry && *service.host == *host;
    if let Some(entry) = snapshot.services.values().find(is_entrys) {
        return service(&entry.name.namespace, host, snapshot);
    }
    let domain = &*snapshot.mesh.cluster_domain;
    let host = host.strip_suffix(domain).and_then(|host| host.strip_suffix('.')).unwrap_or(host);
    let host = host.strip_suffix(".svc").unwrap_or(host);
    let (name, namespace) = host.split_once('.')?;
    if name.is_empty() || namespace.is_empty() || namespace.contains('.') {
        return None;
    }
    let none = || Err(QueryError::NotFound(format!("no service {namespace}/{name} is known")));
    Some(service(namespace, name, snapshot).unwrap_or_else(none))
}

fn service(namespace: &str, name: &str, snapshot: &Snapshot) -> Option<Result<IpAddr, QueryError>> {
    let service = snapshot.services.get(&ServiceName::new(namespace, name))?;
    let address = service.addresses.first().copied();
    Some(address.ok_or_else(|| {
        let instead = match service.kind {
            ServiceKind::ServiceEntry => "routes of other services lead to it",
            _ => "its clients connect to its pods",
        };
        QueryError::NotFound(format!("service {namespace}/{name} has no address of its own: {instead}"))
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn destinations_are_addresses_or_services() {
        let mut snapshot = Snapshot::default();
        for (name, addresses) in [("web", vec![IpAddr::from([10, 96, 0, 7])]), ("headless", Vec::new())] {
            let name = ServiceName::new("shop", name);
            let service = Service::internal(name.clone(), "host".into(), addresses, Vec::new());
            snapshot.services.insert(name, Arc::new(service));
        }
        let cases = [
            ("10.96.0.1:80", Ok("10.96.0.1:80")),
            ("[::ffff:10.96.0.1]:80", Ok("10.96.0.1:80")),
            ("[fd00::1]:443", Ok("[fd00::1]:443")),
            ("shop/web:8080", Ok("10.96.0.7:8080")),
            ("web.shop:8080", Ok("10.96.0.7:8080")),
            ("web.shop.svc:8080", Ok("10.96.0.7:8080")),
            ("web.shop.svc.cluster.local:8080", Ok("10.96.0.7:8080")),
            (
                "shop/headless:80",
                Err("service shop/headless has no address of its own: its clients connect to its pods"),
            ),
            ("shop/none:80", Err("no service and no pod shop/none is known")),
            ("none.shop.svc:80", Err("no service shop/none is known")),
            ("web:80", Err("`web:80` is no destination")),
            ("web.shop.example.org:80", Err("`web.shop.example.org:80` is no destination")),
            ("10.96.0.1", Err("`10.96.0.1` is no destination")),
            ("shop/web:x", Err("`shop/web:x` is no destination")),
            ("shop/web:70000", Err("`shop/web:70000` is no destination")),
        ];
        for (text, expected) in cases {
            let found = destination(text, &snapshot).map(|asked| asked.to_string());
            match (found.map_err(|error| error.to_string()), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(expected)) => assert!(found.starts_with(expected), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
