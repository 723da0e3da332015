//! The mesh's data path: accept, route, carry, close.
//!
//! Invariants: a connection is one task on one worker; its record is written once, however it ends; a policy that says
//! strict is never answered with plaintext; every wait has a deadline; nothing that a peer sends ends the agent. Who is
//! enrolled is `node`'s business, what the mesh is the model's.

pub(crate) mod admission;
pub(crate) mod ask;
pub(crate) mod bounds;
mod canary;
pub(crate) mod carried;
mod chance;
pub(crate) mod copy;
pub(crate) mod establish;
mod fault;
pub(crate) mod forward;
mod gate;
pub(crate) mod hbone;
pub(crate) mod inbound;
mod mirror;
pub(crate) mod outbound;
pub(crate) mod pod;
pub(crate) mod record;
pub(crate) mod route;
pub(crate) mod sni;
mod upstream;
pub(crate) mod worker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use self::canary::Canary;
use self::gate::Gate;
pub use self::pod::{Pod, Stop};
pub use self::worker::{Handles, Workers};

use crate::balance::Balancers;
use crate::identity::CertificateStore;
use crate::model::{Identity, MeshConfig, NodeName, Snapshot, Workload, WorkloadUid};
use crate::telemetry::Telemetry;

/// What all workers share; read on every connection, written when the mesh changes.
pub struct Shared {
    /// The node that this agent serves.
    pub node: NodeName,
    /// Who the node agents of this mesh are: what they say of a client from outside is believed.
    pub agent: Identity,
    /// The mesh as it is now.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Certificates of this node's accounts.
    pub certificates: CertificateStore,
    /// Where connections are recorded.
    pub telemetry: Telemetry,
    /// Picks endpoints, and knows how they are.
    pub balancers: Balancers,
    /// The self-test's far end.
    pub canary: Canary,
    pods: ArcSwap<HashMap<WorkloadUid, Arc<Pod>>>,
    pods_changed: watch::Sender<()>,
    /// Who may come to every pod that may have connections, those that are leaving or not enrolled yet among them.
    followers: Mutex<Vec<Weak<Gate>>>,
    /// Places for connections that a fault delays.
    delays: fault::Delays,
    /// What copies may take.
    mirrors: Arc<mirror::Room>,
    pools: Mutex<HashMap<usize, (usize, usize, usize)>>,
}

impl Shared {
    /// Shared state around the snapshot in force.
    pub fn new(
        node: NodeName,
        agent: Identity,
        snapshot: Arc<ArcSwap<Snapshot>>,
        certificates: CertificateStore,
        telemetry: Telemetry,
    ) -> Self {
        Self {
            node,
            agent,
            snapshot,
            certificates,
            telemetry,
            balancers: Balancers::default(),
            canary: Canary::default(),
            pods: ArcSwap::default(),
            pods_changed: watch::Sender::new(()),
            followers: Mutex::default(),
            delays: fault::Delays::default(),
            mirrors: Arc::default(),
            pools: Mutex::default(),
        }
    }

    /// Whether an authenticated client is one of the node agents, in whichever of the trust domains that stand for the mesh's.
    fn is_agent(&self, client: &Identity, mesh: &MeshConfig) -> bool {
        let Identity { trust_domain, namespace, service_account } = client;
        let is_ours =
            *trust_domain == self.agent.trust_domain || mesh.trust_domain_aliases.contains(trust_domain);
        is_ours && *namespace == self.agent.namespace && *service_account == self.agent.service_account
    }

    /// The enrolled pod of this node with this id.
    pub fn pod(&self, uid: &WorkloadUid) -> Option<Arc<Pod>> {
        self.pods.load().get(uid).cloned()
    }

    /// Replaces the set of enrolled pods.
    pub fn set_pods(&self, pods: HashMap<WorkloadUid, Arc<Pod>>) {
        self.pods.store(Arc::new(pods));
        self.pods_changed.send_replace(());
    }

    /// Changes whenever the set of enrolled pods was replaced.
    pub fn pods_changed(&self) -> watch::Receiver<()> {
        self.pods_changed.subscribe()
    }

    /// From now on each connection that the pod has follows what becomes of the mesh.
    pub fn follow(&self, pod: &Pod) {
        self.follow_gate(pod.gate());
    }

    fn follow_gate(&self, gate: &Arc<Gate>) {
        let mut followers = self.followers();
        // Before it grows: what is gone makes room.
        if followers.len() == followers.capacity() {
            followers.retain(|gate| gate.strong_count() > 0);
        }
        followers.push(Arc::downgrade(gate));
        drop(followers);
        // What was published before this is not told again.
        gate.refresh(&self.snapshot.load());
    }

    /// Who may come to a workload of this node that is not enrolled yet: nobody there asks.
    fn unserved(&self, snapshot: &Snapshot, workload: &Workload) -> Arc<Gate> {
        let gate = Gate::new(snapshot, workload);
        self.follow_gate(&gate);
        gate
    }

    /// The snapshot in force became another: connections that it no longer allows end.
    pub fn refresh_pods(&self) {
        let gates: Vec<Arc<Gate>> = {
            let mut followers = self.followers();
            followers.retain(|gate| gate.strong_count() > 0);
            followers.iter().filter_map(Weak::upgrade).collect()
        };
        let snapshot = self.snapshot.load();
        for gate in gates {
            gate.refresh(&snapshot);
        }
    }

    fn followers(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Gate>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_pool_sizes(&self, worker: usize, sizes: (usize, usize, usize)) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.insert(worker, sizes);
        let sum =
            pools.values().fold((0, 0, 0), |sum, pool| (sum.0 + pool.0, sum.1 + pool.1, sum.2 + pool.2));
        self.telemetry.metrics().set_pool(sum.0, sum.1, sum.2);
    }
}
