//! An enrolled pod, as the data path sees it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::fault::Delays;
use super::gate::Gate;
use super::hbone::Baggage;
use crate::model::{Snapshot, Workload, WorkloadUid};
use crate::node::NetNs;

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
    /// Places for its clients' connections that a fault delays.
    pub(super) delays: Delays,
    // The workload as last seen, with what is derived from it alone.
    seen: ArcSwap<Seen>,
    gate: Arc<Gate>,
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
        let gate = Gate::new(snapshot, &workload);
        Self {
            uid,
            netns,
            stop,
            connections: AtomicUsize::new(0),
            handshakes: Arc::default(),
            delays: Delays::of_pod(),
            seen: ArcSwap::from_pointee(Seen { workload, baggage }),
            gate,
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

    /// Who may come to it.
    pub(super) const fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Whether a policy in force may refuse connections: nothing may then come past the agent.
    pub fn may_refuse(&self) -> bool {
        self.gate.may_refuse()
    }

    /// Takes over what a newer snapshot says of the pod, for the connections that it has as well.
    pub fn refresh(&self, snapshot: &Snapshot) {
        let Some(workload) = snapshot.workloads.get(&self.uid) else { return };
        self.gate.refresh(snapshot);
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

/// A connection that is one of the pod's, though another pod's task carries it.
pub(crate) struct Held(Arc<Pod>);

impl Held {
    pub(super) fn new(pod: &Arc<Pod>) -> Self {
        pod.begin();
        Self(Arc::clone(pod))
    }

    /// Returns once what is left of the pod's connections is to be cut.
    pub(super) async fn cut(&self) {
        self.0.cut().await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.end();
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
