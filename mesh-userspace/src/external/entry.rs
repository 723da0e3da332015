//! What all tasks that serve clients from outside share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::watch;

use super::addresses::NodeAddresses;
use super::flows::Flows;
use super::udp::Flow;
use crate::model::{Endpoint, NodeName, Protocol, Snapshot, Workload};
use crate::node::NetNs;
use crate::proxy::Stop;

/// Connections from outside, and flows of datagrams, that are carried at once: more are refused.
const AT_ONCE: usize = 32_768;
/// Each of these limits takes this share of the descriptors at most.
const SHARE_OF_FILES: usize = 8;

/// See the module.
pub(super) struct Entry {
    /// The node that this is.
    pub(super) node: NodeName,
    /// Its own namespace.
    pub(super) netns: NetNs,
    /// Its own addresses, as they are now.
    pub(super) addresses: ArcSwap<NodeAddresses>,
    /// How far the agent's end has come.
    pub(super) stop: watch::Receiver<Stop>,
    /// Flows of datagrams.
    pub(super) flows: Mutex<Flows<Flow>>,
    /// How many connections may be there at once.
    limit: usize,
    connections: AtomicUsize,
}

impl Entry {
    pub(super) fn new(node: NodeName, netns: NetNs, stop: watch::Receiver<Stop>) -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let limit = AT_ONCE.min(files / SHARE_OF_FILES);
        Self {
            node,
            netns,
            addresses: ArcSwap::default(),
            stop,
            flows: Mutex::new(Flows::new(limit)),
            limit,
            connections: AtomicUsize::new(0),
        }
    }

    /// Connections (not flows) that are being carried.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// A place for one more connection, if there is one.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Admitted> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let admitted = Admitted(Arc::clone(self));
        (before < self.limit).then_some(admitted)
    }

    /// Whether a client is on this node: one of its processes or pods.
    pub(super) fn is_local(&self, snapshot: &Snapshot, client: SocketAddr) -> bool {
        self.addresses.load().has(client.ip()) || is_pod_of(snapshot, &self.node, client)
    }

    /// Whether an endpoint is on this node, in a pod or in the node's own namespace.
    pub(super) fn is_here(&self, endpoint: &Endpoint, workload: Option<&Workload>) -> bool {
        endpoint.is_on(&self.node)
            || workload.is_some_and(|workload| workload.is_on(&self.node))
            || self.addresses.load().has(endpoint.address.ip())
    }

    /// Whether an endpoint's address is one that the node itself serves. Whoever writes endpoints can name a service's own
    /// node port: the agent would connect to itself until it has no place for anybody. kube-proxy translates once.
    pub(super) fn is_frontend(&self, snapshot: &Snapshot, endpoint: SocketAddr, protocol: Protocol) -> bool {
        snapshot.service_at(endpoint, protocol).is_some()
            || (self.addresses.load().has(endpoint.ip())
                && snapshot.service_at_node_port(endpoint.port(), protocol).is_some())
    }

    /// Returns once everything is to be cut.
    pub(super) async fn cut(&self) {
        let mut stop = self.stop.clone();
        // Without a sender the agent is gone.
        let _ = stop.wait_for(|stop| *stop == Stop::Cut).await;
    }
}

/// A connection's place, given back when it is dropped.
pub(super) struct Admitted(Arc<Entry>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a client is a pod of this node.
pub(crate) fn is_pod_of(snapshot: &Snapshot, node: &NodeName, client: SocketAddr) -> bool {
    snapshot.workload_at(client.ip()).is_some_and(|workload| workload.is_on(node))
}
