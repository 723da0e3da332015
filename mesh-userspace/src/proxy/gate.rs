//! Who may come to a workload of this node, as the mesh has it now: for whoever asks, and for who is inside already.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::admission::Admission;
use crate::model::{Identity, Snapshot, Workload, WorkloadUid};
use crate::policy::authorization::{Decision, Guard};

/// A workload's guard, which follows the snapshots that it is shown.
#[derive(Debug)]
pub(super) struct Gate {
    uid: WorkloadUid,
    guard: watch::Sender<Guarded>,
}

/// Who may come, as of a snapshot.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) guard: Guard,
    generation: u64,
}

impl Gate {
    pub(super) fn new(snapshot: &Snapshot, workload: &Workload) -> Arc<Self> {
        let guarded = Guarded { guard: Guard::of(snapshot, workload), generation: snapshot.generation };
        Arc::new(Self { uid: workload.uid.clone(), guard: watch::Sender::new(guarded) })
    }

    /// Asks whether a connection may reach the application, and for how long; `client` is the true one.
    pub(super) fn admit(
        self: &Arc<Self>,
        source: Option<&Identity>,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> (Admission, Decision) {
        Admission::ask(Arc::clone(self), self.guard.subscribe(), source, client, destination)
    }

    /// Whether a policy in force may refuse connections: nothing may then come past the agent.
    pub(super) fn may_refuse(&self) -> bool {
        self.guard.borrow().guard.may_refuse()
    }

    /// Takes over what a newer snapshot says of the workload.
    pub(super) fn refresh(&self, snapshot: &Snapshot) {
        let Some(workload) = snapshot.workloads.get(&self.uid) else { return };
        if self.guard.borrow().generation >= snapshot.generation {
            return;
        }
        self.guard.send_if_modified(|held| {
            // Another thread may have come with a newer one.
            if held.generation >= snapshot.generation {
                return false;
            }
            held.generation = snapshot.generation;
            let stays = held.guard.is_current(snapshot, workload);
            if !stays {
                held.guard = Guard::of(snapshot, workload);
            }
            !stays
        });
    }
}
