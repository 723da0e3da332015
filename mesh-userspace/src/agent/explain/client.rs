//! Who connects, and to what: as it was written, found in the snapshot and in the kernel.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use mesh_common::abi::{ADDRESS_LOCAL, Pod, ServiceKey, State, is_mapped};
use mesh_common::names::map;

use crate::admin::plane::QueryError;
use crate::datapath::maps::MapReader;
use crate::datapath::{address_of, ip_of};
use crate::model::{NodeName, ServiceName, Snapshot, Workload, WorkloadUid};
use crate::node::NetNs;

/// Who connects.
#[derive(Clone, Debug)]
pub(super) enum Client {
    /// A process on this node.
    Inside {
        /// The pod; `None`: the node's own namespace.
        pod: Option<WorkloadUid>,
        /// Cookie of its network namespace, where that can be entered.
        netns: Option<u64>,
        /// Whether the kernel captures it.
        enrolled: bool,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// Another machine, at this address if it is known.
    Outside(Option<IpAddr>),
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inside { pod: Some(pod), .. } => write!(f, "pod {pod}"),
            Self::Inside { .. } => f.write_str("a process of the node"),
            Self::Outside(Some(address)) => write!(f, "{address}, outside"),
            Self::Outside(None) => f.write_str("a client outside"),
        }
    }
}

impl Client {
    /// The client that is meant; `asked` says which of its addresses it would use.
    pub(super) fn find(
        text: &str,
        asked: IpAddr,
        maps: &MapReader,
        snapshot: &Snapshot,
        node: &NodeName,
        state: &State,
    ) -> Result<Self, QueryError> {
        let own = || Self::Inside {
            pod: None,
            netns: Some(state.node_netns_cookie),
            enrolled: false,
            addresses: vec![asked],
        };
        match text {
            "node" => return Ok(own()),
            "outside" => return Ok(Self::Outside(None)),
            _ => {}
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            let address = address.to_canonical();
            if let Some(workload) = snapshot.workload_at(address) {
                return Self::pod(workload, asked, maps, node, state);
            }
            let bits = maps.lookup::<_, u32>(map::ADDRESSES, &address_of(address)).map_err(super::failed)?;
            let is_own = bits.is_some_and(|bits| bits & ADDRESS_LOCAL != 0)
                || snapshot.node.addresses.contains(&address)
                || address.is_loopback();
            return Ok(if is_own { own() } else { Self::Outside(Some(address)) });
        }
        let Some((namespace, name)) = text
            .split_once('/')
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
        else {
            return Err(QueryError::Bad(format!(
                "`{text}` is nobody who connects: write NAMESPACE/POD, an address, `node` or `outside`"
            )));
        };
        let workload = snapshot.workloads.get(&WorkloadUid::pod(namespace, name));
        let workload = workload.ok_or_else(|| QueryError::NotFound(format!("no pod {text} is known")))?;
        Self::pod(workload, asked, maps, node, state)
    }

    fn pod(
        workload: &Workload,
        asked: IpAddr,
        maps: &MapReader,
        node: &NodeName,
        state: &State,
    ) -> Result<Self, QueryError> {
        if !workload.is_on(node) {
            let place = workload.node.as_ref().map_or("no node", NodeName::as_str);
            return Err(QueryError::NotFound(format!(
                "pod {} is on {place}: that node's agent knows where its connections go",
                workload.uid
            )));
        }
        let netns = if workload.host_network {
            Some(state.node_netns_cookie)
        } else {
            workload.netns.as_ref().and_then(|path| NetNs::open(path).ok()).map(|netns| netns.cookie())
        };
        let held = netns.map(|cookie| maps.lookup::<_, Pod>(map::PODS, &cookie)).transpose();
        let enrolled = held.map_err(super::failed)?.flatten().is_some();
        let addresses = if workload.host_network { vec![asked] } else { workload.addresses.clone() };
        Ok(Self::Inside { pod: Some(workload.uid.clone()), netns, enrolled, addresses })
    }

    /// (captured by the kernel, cookie of the namespace, whether that is the node's).
    pub(super) fn inside(&self, state: &State) -> (bool, Option<u64>, bool) {
        match self {
            Self::Inside { netns, enrolled, .. } => {
                (*enrolled, *netns, *netns == Some(state.node_netns_cookie))
            }
            Self::Outside(_) => (false, None, false),
        }
    }

    /// The address that it has when it asks for one of the key's family.
    pub(super) fn address(&self, key: &ServiceKey) -> Option<IpAddr> {
        match self {
            Self::Inside { addresses, .. } => {
                let v4 = is_mapped(&key.address);
                addresses.iter().copied().find(|address| address.is_ipv4() == v4)
            }
            Self::Outside(address) => *address,
        }
    }

    pub(super) fn details(&self) -> String {
        let Self::Inside { netns, enrolled, .. } = self else { return self.to_string() };
        let netns = netns.map_or("a network namespace that cannot be entered".to_owned(), |cookie| {
            format!("network namespace {cookie}")
        });
        format!("{netns}, {}", if *enrolled { "enrolled" } else { "not enrolled" })
    }
}

/// What is asked for.
pub(super) fn destination(text: &str, snapshot: &Snapshot) -> Result<SocketAddr, QueryError> {
    let bad = || {
        QueryError::Bad(format!("`{text}` is no destination: write ADDRESS:PORT or NAMESPACE/SERVICE:PORT"))
    };
    if let Ok(asked) = text.parse::<SocketAddr>() {
        return Ok(SocketAddr::new(ip_of(address_of(asked.ip())), asked.port()));
    }
    let (service, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let port = port.parse().map_err(|_error| bad())?;
    let (namespace, name) = service.split_once('/').ok_or_else(bad)?;
    let service = snapshot.services.get(&ServiceName::new(namespace, name));
    let service =
        service.ok_or_else(|| QueryError::NotFound(format!("no service {namespace}/{name} is known")))?;
    let address = service.addresses.first();
    let address = address.ok_or_else(|| {
        QueryError::NotFound(format!("service {namespace}/{name} has no address of its own"))
    })?;
    Ok(SocketAddr::new(*address, port))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::Service;

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
            ("shop/headless:80", Err("service shop/headless has no address of its own")),
            ("shop/none:80", Err("no service shop/none is known")),
            ("web:80", Err("`web:80` is no destination: write ADDRESS:PORT or NAMESPACE/SERVICE:PORT")),
            ("10.96.0.1", Err("`10.96.0.1` is no destination: write ADDRESS:PORT or NAMESPACE/SERVICE:PORT")),
            (
                "shop/web:x",
                Err("`shop/web:x` is no destination: write ADDRESS:PORT or NAMESPACE/SERVICE:PORT"),
            ),
        ];
        for (text, expected) in cases {
            let found = destination(text, &snapshot).map(|asked| asked.to_string());
            assert_eq!(
                found.map_err(|error| error.to_string()),
                expected.map(str::to_owned).map_err(str::to_owned)
            );
        }
    }
}
