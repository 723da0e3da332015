//! An enrolled pod, as the data path sees it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::admission::Admission;
use super::hbone::Baggage;
use crate::model::{Identity, Snapshot, Workload, WorkloadUid};
use crate::node::NetNs;
use crate::policy::authorization::{Decision, Guard};

/// TLS handshakes that may be under way at one pod from one address. Who has not said who it is gets no more of the
/// agent's memory, and takes nothing from others.
const HANDSHAKES: u32 = 64;

/// What every connection of a pod shares.
pub struct Pod {
    pub(super) uid: WorkloadUid,
    pub(super) netns: NetNs,
    pub(super) stop: watch::Receiver<Stop>,
    connections: AtomicUsize,
    handshakes: Arc<Mutex<HashMap<IpAddr, u32>>>,
    // The workload as last seen, with what is derived from it alone.
    seen: ArcSwap<Seen>,
    guard: watch::Sender<Guarded>,
}

/// Who may come, as of a snapshot.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) guard: Guard,
    generation: u64,
}

struct Seen {
    workload: Arc<Workload>,
    baggage: Option<Baggage>,
}

/// How far the end of a pod's enrolment has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// It is enrolled.
    #[default]
    Serving,
    /// Nothing new is taken; what is there may end by itself.
    Draining,
    /// What is left is cut.
    Cut,
}

impl Pod {
    /// A pod of the snapshot, in its namespace; connections end as `stop` says.
    pub fn new(
        snapshot: &Snapshot,
        workload: Arc<Workload>,
        netns: NetNs,
        stop: watch::Receiver<Stop>,
    ) -> Self {
        let uid = workload.uid.clone();
        let baggage = Baggage::of(&workload);
        let guard = Guard::of(snapshot, &workload);
        Self {
            uid,
            netns,
            stop,
            connections: AtomicUsize::new(0),
            handshakes: Arc::default(),
            seen: ArcSwap::from_pointee(Seen { workload, baggage }),
            guard: watch::Sender::new(Guarded { guard, generation: snapshot.generation }),
        }
    }

    /// `NAMESPACE/POD`.
    pub const fn uid(&self) -> &WorkloadUid {
        &self.uid
    }

    /// Its namespace.
    pub const fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Connections that are being carried for it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Leave for one handshake, if there are not too many from that address.
    pub(super) fn handshake(&self, from: IpAddr) -> Option<Leave> {
        let mut handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        let count = handshakes.entry(from).or_default();
        if *count == HANDSHAKES {
            return None;
        }
        *count += 1;
        Some(Leave { handshakes: Arc::clone(&self.handshakes), from })
    }

    pub(super) fn begin(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// The workload in this snapshot, or as it was last seen.
    pub(super) fn workload(&self, snapshot: &Snapshot) -> Arc<Workload> {
        self.refresh(snapshot);
        Arc::clone(&self.seen.load().workload)
    }

    pub(super) fn baggage(&self) -> Option<Baggage> {
        self.seen.load().baggage.clone()
    }

    /// Asks whether a connection may reach the application, and for how long; `client` is the true one.
    pub(super) fn admit(
        &self,
        source: Option<&Identity>,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> (Admission, Decision) {
        Admission::ask(self.guard.subscribe(), source, client, destination)
    }

    /// Whether a policy in force may refuse connections: nothing may then come past the agent.
    pub fn may_refuse(&self) -> bool {
        self.guard.borrow().guard.may_refuse()
    }

    /// Takes over what a newer snapshot says of the pod, for the connections that it has as well.
    pub fn refresh(&self, snapshot: &Snapshot) {
        let Some(workload) = snapshot.workloads.get(&self.uid) else { return };
        if self.guard.borrow().generation < snapshot.generation {
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
        if !Arc::ptr_eq(workload, &self.seen.load().workload) {
            let seen = Seen { workload: Arc::clone(workload), baggage: Baggage::of(workload) };
            self.seen.store(Arc::new(seen));
        }
    }

    /// Returns once what is left of the pod's connections is to be cut.
    pub(super) async fn cut(&self) {
        let mut stop = self.stop.clone();
        // The sender lives as long as the enrolment; without it the pod is gone.
        let _ = stop.wait_for(|stop| *stop == Stop::Cut).await;
    }
}

/// Leave for one handshake, given back when it is dropped.
pub(super) struct Leave {
    handshakes: Arc<Mutex<HashMap<IpAddr, u32>>>,
    from: IpAddr,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = handshakes.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                handshakes.remove(&self.from);
            }
        }
    }
}
