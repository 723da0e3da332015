//! Clients from outside the node: what they send to node ports, external and load-balancer addresses (and to cluster
//! addresses that are routed here) is carried to an endpoint.
//!
//! Processes and pods of this node never come here but for load-balancer addresses with source ranges: the connect hook has
//! translated their address already. Everybody else's packets meet the `sk_lookup` program of the node's namespace, which refuses what
//! nothing serves and hands the rest to a handful of listening sockets. Connections are carried by the workers, flows of
//! datagrams too; one thread (`external`) follows the node's addresses, keeps addresses that are on no interface routed here,
//! and answers health checks.
//!
//! Invariants: strict is never reached in plaintext; whom a connection is for is told to the application or to its agent,
//! never taken from the client; whatever is laid in the node's namespace is marked as ours and taken up by
//! [`uninstall`].

mod addresses;
mod demand;
mod entry;
mod flows;
mod follow;
mod health;
mod listeners;
mod routes;
mod tcp;
mod udp;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use ipnet::IpNet;
use tokio::sync::watch;

pub use self::addresses::{NodeAddresses, NodePortAddresses};
pub use self::health::Healthy;

use self::entry::Entry;
use self::follow::{Follower, Found};
use self::listeners::Listeners;
use crate::datapath::{Datapath, DatapathError};
use crate::model::{NodeName, Snapshot};
use crate::node::NetNs;
use crate::proxy::{Shared, Stop, Workers};

/// The agent's own namespace, which is the node's.
const OWN_NETNS: &str = "/proc/self/ns/net";

/// Why clients from outside cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// Sockets, threads, netlink.
    #[error("cannot {operation} for clients from outside")]
    Node {
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel's maps or programs.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> ExternalError {
    move |source| ExternalError::Node { operation, source }
}

/// How clients from outside are served.
#[derive(Clone)]
pub struct ExternalConfig {
    /// The node that this is.
    pub node: NodeName,
    /// On which of its addresses node ports are served.
    pub node_ports: NodePortAddresses,
    /// Cluster addresses of these networks are served to clients that are routed here.
    pub service_cidrs: Vec<IpNet>,
    /// What health checks say beside the number of endpoints.
    pub healthy: Healthy,
}

/// The agent's part for clients from outside. Dropping it stops all but what the workers carry.
pub struct External {
    entry: Arc<Entry>,
    listeners: Listeners,
    found: watch::Receiver<Found>,
    stop: watch::Sender<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl External {
    /// Opens the sockets, reads the node's addresses and lays routes. Nothing is accepted yet.
    pub fn open(
        config: ExternalConfig,
        shared: &Arc<Shared>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Result<Self, ExternalError> {
        let netns = NetNs::open(Path::new(OWN_NETNS)).map_err(failed("open the node's namespace"))?;
        let listeners = Listeners::open().map_err(failed("listen"))?;
        let (stop, stopped) = watch::channel(Stop::Serving);
        let entry = Arc::new(Entry::new(config.node.clone(), netns, stopped));
        let (publish, found) = watch::channel(Found::default());
        let (ready, started) = mpsc::channel();
        let follower = Follower::new(config, Arc::clone(&entry), Arc::clone(&shared.snapshot), publish);
        let main = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(follower.run(snapshots, ready)),
                Err(error) => drop(ready.send(Err(failed("start a runtime")(error)))),
            }
        };
        let thread = std::thread::Builder::new().name("external".into()).spawn(main);
        let thread = Some(thread.map_err(failed("start a thread"))?);
        // The wait is for a few system calls.
        let gone = |_gone| Err(failed("start a thread")(io::ErrorKind::BrokenPipe.into()));
        started.recv().unwrap_or_else(gone)?;
        Ok(Self { entry, listeners, found, stop, thread })
    }

    /// Begins to accept, and tells the kernel who does: before the `sk_lookup` program is in force.
    pub fn start(&mut self, datapath: &mut Datapath, workers: &Workers) -> Result<(), ExternalError> {
        datapath.presented()?.clear()?;
        for (turn, listener) in self.listeners.tcp.iter().enumerate() {
            let listener = listener.try_clone().map_err(failed("share a socket"))?;
            let entry = Arc::clone(&self.entry);
            workers.run(turn, move |worker| Box::pin(tcp::accept(worker, entry, listener)));
        }
        for (turn, listener) in self.listeners.udp.iter().enumerate() {
            let listener = listener.try_clone().map_err(failed("share a socket"))?;
            let entry = Arc::clone(&self.entry);
            workers.run(turn + 1, move |worker| Box::pin(udp::listen(worker, entry, listener)));
        }
        for (role, listener) in self.listeners.roles() {
            datapath.set_node_listener(role, listener)?;
        }
        Ok(())
    }

    /// Returns when the node's addresses, or what is wrong, have changed.
    pub async fn changed(&mut self) {
        if self.found.changed().await.is_err() {
            // The thread has ended, which it has told.
            std::future::pending::<()>().await;
        }
    }

    /// The node's addresses, for the kernel.
    pub fn addresses(&mut self) -> Vec<(IpAddr, u32)> {
        self.found.borrow_and_update().addresses.flags()
    }

    /// What could not be laid, in words.
    pub fn problems(&self) -> Vec<String> {
        self.found.borrow().problems.clone()
    }

    /// Connections that are being carried.
    pub fn connections(&self) -> usize {
        self.entry.connections()
    }

    /// How far the agent's end has come. Until [`Stop::Cut`] connections are accepted: nobody else would.
    pub fn stop(&self, stop: Stop) {
        self.stop.send_replace(stop);
    }
}

impl Drop for External {
    fn drop(&mut self) {
        self.stop.send_replace(Stop::Cut);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for clients from outside panicked");
        }
    }
}

/// Leaves nothing of an agent in the node's namespace: for `meshd uninstall`.
pub async fn uninstall() -> Result<(), ExternalError> {
    routes::remove_all().await.map_err(failed("remove routes"))
}
