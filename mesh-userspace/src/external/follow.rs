//! The thread beside the workers: follows the node's addresses and the snapshots, keeps routes and health checks as both
//! say, and publishes what it finds.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{FutureExt, StreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::AsyncSocket;
use tokio::sync::watch;

use super::addresses::{NodeAddresses, present};
use super::demand::Demand;
use super::entry::Entry;
use super::health::HealthChecks;
use super::routes::LocalRoutes;
use super::{ExternalConfig, ExternalError, failed};
use crate::model::Snapshot;

/// How often addresses and routes are read again although nothing was said of a change (messages can be lost), and what failed is
/// tried again.
const RESYNC: Duration = Duration::from_secs(5);

/// What the thread knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) addresses: NodeAddresses,
    pub(super) problems: Vec<String>,
}

/// See the module.
pub(super) struct Follower {
    config: ExternalConfig,
    entry: Arc<Entry>,
    publish: watch::Sender<Found>,
    demand: Demand,
    health: HealthChecks,
}

impl Follower {
    pub(super) fn new(
        config: ExternalConfig,
        entry: Arc<Entry>,
        current: Arc<ArcSwap<Snapshot>>,
        publish: watch::Sender<Found>,
    ) -> Self {
        let health = HealthChecks::new(Arc::clone(&entry), current, Arc::clone(&config.healthy));
        Self { config, entry, publish, demand: Demand::default(), health }
    }

    /// Runs until everything is cut. Says once that all is in place, or why it cannot be.
    pub(super) async fn run(
        mut self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        ready: mpsc::Sender<Result<(), ExternalError>>,
    ) {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (mut connection, handle, mut messages) = match rtnetlink::new_multicast_connection(&groups) {
            Ok(netlink) => netlink,
            Err(error) => return drop(ready.send(Err(failed("open netlink")(error)))),
        };
        // Without it the kernel tells more than it is asked for, which costs time alone.
        let _ = connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true);
        let connection = tokio::spawn(connection);
        let mut routes = match LocalRoutes::open(handle).await {
            Ok(routes) => routes,
            Err(error) => return drop(ready.send(Err(failed("read routes")(error)))),
        };
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        self.reconcile(&snapshot, &mut routes).await;
        if ready.send(Ok(())).is_err() {
            return;
        }
        let mut resync = tokio::time::interval(RESYNC);
        let entry = Arc::clone(&self.entry);
        let mut cut = std::pin::pin!(entry.cut());
        loop {
            tokio::select! {
                // Without a feed the agent is stopping, which comes as a cut.
                Ok(()) = snapshots.changed() => {}
                Some(_change) = messages.next() => while messages.next().now_or_never().flatten().is_some() {},
                _ = resync.tick() => if let Err(error) = routes.reread().await {
                    tracing::warn!(%error, "routes cannot be read");
                },
                () = &mut cut => break,
            }
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            self.reconcile(&snapshot, &mut routes).await;
        }
        connection.abort();
    }

    async fn reconcile(&mut self, snapshot: &Snapshot, routes: &mut LocalRoutes) {
        self.demand.update(snapshot);
        let mut problems = Vec::new();
        match present() {
            Ok(present) => {
                let addresses =
                    NodeAddresses::new(&present, &self.config.node_ports, &snapshot.node.addresses);
                if **self.entry.addresses.load() != addresses {
                    self.entry.addresses.store(Arc::new(addresses));
                }
            }
            Err(error) => problems.push(format!("the node's addresses cannot be read: {error}")),
        }
        let addresses = self.entry.addresses.load_full();
        let wanted = self.demand.routes(&addresses, &self.config.service_cidrs);
        let told = |what: String, error: &io::Error| format!("{what}: {error}");
        for (network, error) in routes.set(&wanted).await {
            problems.push(told(format!("{network} cannot be routed to this node"), &error));
        }
        for (port, error) in self.health.set(self.demand.health()) {
            problems.push(told(format!("health checks on port {port} cannot be served"), &error));
        }
        let found = Found { addresses: (*addresses).clone(), problems };
        self.publish.send_if_modified(|held| {
            if *held == found {
                return false;
            }
            for problem in found.problems.iter().filter(|problem| !held.problems.contains(problem)) {
                tracing::error!(problem, "clients from outside");
            }
            *held = found;
            true
        });
    }
}
