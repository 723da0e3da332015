//! The mesh's data path: accept, route, carry, close.
//!
//! Invariants: a connection is one task on one worker; its record is written once, however it ends; a policy that says
//! strict is never answered with plaintext; every wait has a deadline; nothing that a peer sends ends the agent. Who is
//! enrolled is `node`'s business, what the mesh is the model's.

mod canary;
mod carried;
mod copy;
mod hbone;
mod inbound;
mod outbound;
mod pod;
pub(crate) mod record;
mod route;
mod upstream;
mod worker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

pub use self::canary::Canary;
pub use self::pod::{Pod, Stop};
pub use self::worker::Workers;

use crate::identity::CertificateStore;
use crate::model::{NodeName, Snapshot, WorkloadUid};
use crate::telemetry::Telemetry;

/// What all workers share; read on every connection, written when the mesh changes.
pub struct Shared {
    /// The node that this agent serves.
    pub node: NodeName,
    /// The mesh as it is now.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Certificates of this node's accounts.
    pub certificates: CertificateStore,
    /// Where connections are recorded.
    pub telemetry: Telemetry,
    /// The self-test's far end.
    pub canary: Canary,
    pods: ArcSwap<HashMap<WorkloadUid, Arc<Pod>>>,
    pools: Mutex<HashMap<usize, (usize, usize, usize)>>,
}

impl Shared {
    /// Shared state around the snapshot in force.
    pub fn new(
        node: NodeName,
        snapshot: Arc<ArcSwap<Snapshot>>,
        certificates: CertificateStore,
        telemetry: Telemetry,
    ) -> Self {
        Self {
            node,
            snapshot,
            certificates,
            telemetry,
            canary: Canary::default(),
            pods: ArcSwap::default(),
            pools: Mutex::default(),
        }
    }

    /// The enrolled pod of this node with this id.
    pub fn pod(&self, uid: &WorkloadUid) -> Option<Arc<Pod>> {
        self.pods.load().get(uid).cloned()
    }

    /// Replaces the set of enrolled pods.
    pub fn set_pods(&self, pods: HashMap<WorkloadUid, Arc<Pod>>) {
        self.pods.store(Arc::new(pods));
    }

    fn set_pool_sizes(&self, worker: usize, sizes: (usize, usize, usize)) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.insert(worker, sizes);
        let sum =
            pools.values().fold((0, 0, 0), |sum, pool| (sum.0 + pool.0, sum.1 + pool.1, sum.2 + pool.2));
        self.telemetry.metrics().set_pool(sum.0, sum.1, sum.2);
    }
}
