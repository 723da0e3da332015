//! Where a captured connection goes, and how: pure functions of the snapshot, of who is enrolled here, and of a random
//! number. `explain` asks them too.

use std::net::SocketAddr;
use std::sync::Arc;

use super::ask::Ask;
use crate::model::{
    BackendSet, Endpoint, Mode, NodeName, Protocol, Service, Snapshot, Workload, WorkloadUid,
};

/// Where to.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// The endpoint's address.
    pub(crate) address: SocketAddr,
    /// The workload behind it, where there is one.
    pub(crate) workload: Option<Arc<Workload>>,
    /// The service that was asked for.
    pub(crate) service: Option<Arc<Service>>,
}

/// How the agent of the source carries a connection to its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way<'a, P> {
    /// To a pod that this agent serves: both identities are known here, nothing is encrypted and nothing leaves the node.
    Local(P, &'a Arc<Workload>),
    /// Authenticated at both ends, to the workload's own agent: HBONE.
    Tunnel(&'a Arc<Workload>),
    /// In plaintext, to a pod of this node that nobody serves yet: nobody there asks whether it may be reached.
    Unserved(&'a Arc<Workload>),
    /// In plaintext: outside the mesh, or `DISABLE`.
    Plain,
}

impl Destination {
    /// An endpoint of a service.
    pub(crate) fn of(snapshot: &Snapshot, service: &Arc<Service>, endpoint: &Endpoint) -> Self {
        let workload = endpoint.workload.as_ref().and_then(|uid| snapshot.workloads.get(uid)).cloned();
        Self { address: endpoint.address, workload, service: Some(Arc::clone(service)) }
    }

    /// An address that is no service's.
    pub(crate) fn plain(snapshot: &Snapshot, asked: SocketAddr) -> Self {
        Self { address: asked, workload: snapshot.workload_at(asked.ip()).cloned(), service: None }
    }

    /// How the endpoint is to be reached from `node`; `served` finds a pod that this agent serves.
    pub(crate) fn way<P>(
        &self,
        node: &NodeName,
        served: impl FnOnce(&WorkloadUid) -> Option<P>,
    ) -> Way<'_, P> {
        let port = self.address.port();
        let in_mesh =
            |workload: &&Arc<Workload>| workload.enrolled && workload.mtls.at(port) != Mode::Disable;
        let Some(workload) = self.workload.as_ref().filter(in_mesh) else { return Way::Plain };
        match served(&workload.uid) {
            Some(pod) => Way::Local(pod, workload),
            // Nobody takes HBONE for it, and nothing leaves the node.
            None if workload.is_on(node) && takes_plaintext(workload.mtls.at(port)) => {
                Way::Unserved(workload)
            }
            None => Way::Tunnel(workload),
        }
    }
}

/// Whether plaintext may be taken at a mode.
const fn takes_plaintext(mode: Mode) -> bool {
    !matches!(mode, Mode::Strict)
}

/// What a pod of this node asked for, where that is a service. A pod's address is nobody's node port; that of something elsewhere
/// may be a node's.
pub(crate) fn ask(snapshot: &Snapshot, asked: SocketAddr) -> Option<Ask<'_>> {
    let ask = Ask::resolve(snapshot, asked, Protocol::Tcp, true)?;
    let is_pods = || snapshot.workload_at(asked.ip()).is_some_and(|workload| workload.is_pod());
    (ask.frontend.address.is_some() || !is_pods()).then_some(ask)
}

/// How the node's listener carries a client from outside, who is plaintext, to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entrance<'a, P> {
    /// The endpoint is an address that this node serves itself: it would come back.
    Loop,
    /// To an enrolled pod of this node, inside its namespace.
    Local(P, &'a Arc<Workload>),
    /// The endpoint takes mutual TLS only.
    Strict,
    /// To the workload's own agent, in the name of this one.
    Tunnel(&'a Arc<Workload>),
    /// In plaintext from the node, to a pod of it that nobody serves yet: nobody there asks whether it may be reached.
    Unserved(&'a Arc<Workload>),
    /// In plaintext from the node.
    Plain,
}

/// An endpoint as a client from outside may be carried to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival<'a> {
    /// The endpoint.
    pub(crate) endpoint: &'a Endpoint,
    /// The workload behind it.
    pub(crate) workload: Option<&'a Arc<Workload>>,
    /// Whether the endpoint's address is one that this node serves.
    pub(crate) is_frontend: bool,
    /// Whether the endpoint is on this node.
    pub(crate) is_here: bool,
}

impl<'a> Arrival<'a> {
    /// The workload behind an endpoint; a pod whose address it is counts for more than whom it names.
    pub(crate) fn workload(snapshot: &'a Snapshot, endpoint: &Endpoint) -> Option<&'a Arc<Workload>> {
        let named = || endpoint.workload.as_ref().and_then(|uid| snapshot.workloads.get(uid));
        let pod = snapshot.workload_at(endpoint.address.ip()).filter(|owner| owner.is_pod());
        pod.or_else(named)
    }

    /// How it is carried; `served` finds a pod that this agent serves.
    pub(crate) fn entrance<P>(&self, served: impl FnOnce(&WorkloadUid) -> Option<P>) -> Entrance<'a, P> {
        if self.is_frontend {
            return Entrance::Loop;
        }
        let in_mesh = |workload: &&Arc<Workload>| workload.enrolled && !workload.host_network;
        let Some(workload) = self.workload.filter(in_mesh) else { return Entrance::Plain };
        if let Some(pod) = served(&workload.uid) {
            return Entrance::Local(pod, workload);
        }
        if !takes_plaintext(workload.mtls.at(self.endpoint.address.port())) {
            return Entrance::Strict;
        }
        match (self.is_here, self.endpoint.in_mesh()) {
            (true, _) => Entrance::Unserved(workload),
            (false, true) => Entrance::Tunnel(workload),
            (false, false) => Entrance::Plain,
        }
    }
}

/// An endpoint of the set, by weight and by the client's key; another of those that are not to be avoided where it is one of these.
pub(crate) fn draw<'a>(
    set: &'a BackendSet,
    random: u64,
    client: u64,
    avoid: &[SocketAddr],
) -> Option<&'a Endpoint> {
    let picked = set.pick(random, client)?.endpoint.as_ref()?;
    if !avoid.contains(&picked.address) {
        return Some(picked);
    }
    let others = set.backends().iter().filter_map(|backend| backend.endpoint.as_ref());
    let others: Vec<&Endpoint> = others.filter(|other| !avoid.contains(&other.address)).collect();
    let slots = u32::try_from(others.len()).unwrap_or(u32::MAX);
    // Equal chances: this is the second choice of one connection, not a share of the traffic.
    others.get(mesh_common::pick::slot(random.rotate_left(17), slots.max(1)) as usize).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{MtlsModes, ServiceName, ServicePort, WorkloadKind};

    fn snapshot(endpoints: &[&str]) -> Snapshot {
        let name = ServiceName::new("default", "reviews");
        let endpoints = endpoints.iter().map(|address| Endpoint::at(address.parse().unwrap())).collect();
        let port = ServicePort::plain(&name, 9080, Protocol::Tcp, endpoints);
        let addresses = vec!["10.96.0.1".parse().unwrap()];
        let service = Arc::new(Service::internal(name, "reviews".into(), addresses, vec![port]));
        let mut snapshot = Snapshot::default();
        snapshot.frontends.extend(service.frontends().map(|frontend| (frontend, Arc::clone(&service))));
        snapshot
    }

    fn picked(snapshot: &Snapshot, random: u64, avoid: &[SocketAddr]) -> Option<SocketAddr> {
        ask(snapshot, asked())?.endpoint(None, random, avoid).map(|endpoint| endpoint.address)
    }

    fn asked() -> SocketAddr {
        "10.96.0.1:9080".parse().unwrap()
    }

    #[test]
    fn an_endpoint_that_failed_is_avoided_while_there_is_another() {
        let snapshot = snapshot(&["10.0.0.1:80", "10.0.0.2:80"]);
        let failed = ["10.0.0.1:80".parse().unwrap()];
        for random in (0..64).map(|n: u64| n << 58) {
            assert_eq!(picked(&snapshot, random, &failed).unwrap().to_string(), "10.0.0.2:80");
        }
    }

    #[test]
    fn nothing_left_is_no_endpoint() {
        let failed = ["10.0.0.1:80".parse().unwrap()];
        assert_eq!(picked(&snapshot(&["10.0.0.1:80"]), 1, &failed), None);
        assert_eq!(picked(&snapshot(&[]), 1, &[]), None);
    }

    #[test]
    fn what_is_no_service_goes_where_it_was_sent() {
        let elsewhere: SocketAddr = "10.9.9.9:80".parse().unwrap();
        let snapshot = snapshot(&["10.0.0.1:80"]);
        assert!(ask(&snapshot, elsewhere).is_none());
        let destination = Destination::plain(&snapshot, elsewhere);
        assert_eq!(destination.address, elsewhere);
        assert_eq!(destination.way(&NodeName::new("node-1"), |_| Some(())), Way::Plain);
    }

    #[test]
    fn an_endpoint_is_reached_by_what_is_known_of_its_workload() {
        use Mode::{Disable, Permissive, Strict};
        let (here, elsewhere) = (Some("node-1"), Some("node-2"));
        let cases = [
            ("not enrolled", false, Permissive, elsewhere, false, "plain"),
            ("of another node", true, Permissive, elsewhere, false, "tunnel"),
            ("of another node, strict", true, Strict, elsewhere, false, "tunnel"),
            ("of no node", true, Permissive, None, false, "tunnel"),
            ("of another node, disabled", true, Disable, elsewhere, false, "plain"),
            ("served here", true, Strict, here, true, "local"),
            ("served here, disabled", true, Disable, here, true, "plain"),
            ("here, served by nobody yet", true, Permissive, here, false, "unserved"),
            // It fails, as nothing else may be done.
            ("here, served by nobody yet, strict", true, Strict, here, false, "tunnel"),
        ];
        for (name, enrolled, mode, node, served, expected) in cases {
            let workload = Workload {
                kind: WorkloadKind::Pod,
                uid: WorkloadUid::pod("shop", "web"),
                namespace: "shop".into(),
                name: "web".into(),
                workload_name: "web".into(),
                addresses: vec![asked().ip()],
                node: node.map(NodeName::new),
                identity: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
                labels: Arc::default(),
                canonical_name: "web".into(),
                canonical_revision: "latest".into(),
                enrolled,
                host_network: false,
                pod_uid: None,
                netns: None,
                mtls: MtlsModes { default: mode, ports: BTreeMap::new() },
                guarded: false,
            };
            let destination =
                Destination { address: asked(), workload: Some(Arc::new(workload)), service: None };
            let way = match destination.way(&NodeName::new("node-1"), |_| served.then_some(())) {
                Way::Local((), _) => "local",
                Way::Tunnel(_) => "tunnel",
                Way::Unserved(_) => "unserved",
                Way::Plain => "plain",
            };
            assert_eq!(way, expected, "{name}");
        }
    }
}
