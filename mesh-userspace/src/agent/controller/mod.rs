//! The one thread that changes the kernel and the pods: snapshots in, enrolments out.
//!
//! It may block (namespaces, netlink, grace periods); nothing on the data path waits for it.

mod look;
mod pods;
mod status;
mod stop;
mod told;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use self::pods::{Enrolled, Leaving, Pending};
pub(super) use self::status::{NodeStatus, PodState, ROLES};
use self::told::Told;
use super::AgentError;
use super::events::Events;
use crate::datapath::maps::MapReader;
use crate::datapath::{BackendCount, Datapath, SyncProblem};
use crate::external::External;
use crate::model::{ServiceName, Snapshot, WorkloadUid};
use crate::node::{Enroller, Namespaces};
use crate::proxy::{Shared, Workers};
use crate::sockets::Reaper;

/// Test connections in one look, unless all are asked for.
const TESTS: usize = 16;
/// How often all that should be is compared with what is, and pods that are not enrolled are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the affinities of clients that have not been seen for too long are deleted.
const AFFINITY_SWEEP: Duration = Duration::from_secs(30);
/// How often a pod is tested whose test connection did not arrive.
const RETEST_FAILED: Duration = Duration::from_secs(10);
/// How often one is tested whose did.
const RETEST: Duration = Duration::from_mins(1);
/// How often what is ending is looked at.
const TICK: Duration = Duration::from_millis(100);

/// What others ask of the controller.
pub(super) enum Request {
    /// How the kernel and the pods stand.
    Status(oneshot::Sender<NodeStatus>),
    /// The same, after a test connection in every pod and a look at all that should be there.
    Check(oneshot::Sender<NodeStatus>),
    /// One pod, after the same; `None` where it is not known.
    CheckPod(WorkloadUid, oneshot::Sender<Option<PodState>>),
    /// What the backends of each service have got through the kernel.
    Connections(oneshot::Sender<Vec<(ServiceName, Vec<BackendCount>)>>),
    /// End capture and let connections come to their ends.
    Stop(oneshot::Sender<()>),
}

/// What a controller is made of.
pub(super) struct Parts {
    pub(super) drain: Duration,
    pub(super) datapath: Datapath,
    pub(super) enroller: Enroller,
    pub(super) workers: Workers,
    pub(super) shared: Arc<Shared>,
    /// Where services are served in kube-proxy's place.
    pub(super) external: Option<External>,
    pub(super) reaper: Reaper,
    /// Where the namespaces of Kubernetes' pods are.
    pub(super) namespaces: Namespaces,
    /// Who hears of pods that are not well.
    pub(super) events: Events,
}

/// See the module.
pub(super) struct Controller {
    drain: Duration,
    datapath: Datapath,
    enroller: Enroller,
    workers: Workers,
    shared: Arc<Shared>,
    external: Option<External>,
    reaper: Reaper,
    namespaces: Namespaces,
    events: Events,
    pods: BTreeMap<WorkloadUid, Enrolled>,
    leaving: Vec<Leaving>,
    /// Wanted, and not enrolled.
    pending: BTreeMap<WorkloadUid, Pending>,
    /// Looks at all pods so far.
    looks: u64,
    has_started: bool,
    sync_errors: Vec<String>,
    /// Of what is found again and again.
    told: Told,
    generation: u64,
}

impl Controller {
    /// Brings the kernel and the pods in line with the first snapshot, and only then puts the programs in force.
    pub(super) fn start(parts: Parts, snapshot: &Snapshot) -> Result<Self, AgentError> {
        let Parts { drain, datapath, enroller, workers, shared, external, reaper, namespaces, events } =
            parts;
        let mut controller = Self {
            drain,
            datapath,
            enroller,
            workers,
            shared,
            external,
            reaper,
            namespaces,
            events,
            pods: BTreeMap::new(),
            leaving: Vec::new(),
            pending: BTreeMap::new(),
            looks: 0,
            has_started: false,
            sync_errors: Vec::new(),
            told: Told::default(),
            generation: 0,
        };
        controller.apply(snapshot);
        controller.release_strays();
        controller.has_started = true;
        controller.tell_addresses();
        if let Some(external) = &mut controller.external {
            let started = external.start(&mut controller.datapath, &controller.workers);
            started.map_err(AgentError::External)?;
            // For clients from outside, as a pod's is there before its first connection.
            controller.fetch_certificate(&controller.shared.agent);
        }
        controller.datapath.attach().map_err(AgentError::Datapath)?;
        controller.test_some(TESTS, |_| true);
        Ok(controller)
    }

    /// Follows the snapshots until it is told to stop and has.
    pub(super) async fn run(
        mut self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        mut requests: mpsc::Receiver<Request>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        let mut retry = tokio::time::interval(RETRY);
        let mut affinity = tokio::time::interval(AFFINITY_SWEEP);
        // The sender is the controller's own.
        let mut told = self.namespaces.changes();
        // What was told since the first snapshot was applied.
        told.mark_changed();
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let busy = !self.leaving.is_empty() || self.datapath.has_retired();
            tokio::select! {
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        // The feed ended: the agent is stopping, which comes as a request of its own.
                        return self.stop(&mut requests).await;
                    }
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    self.apply(&snapshot);
                }
                request = requests.recv() => match request {
                    Some(Request::Status(answer)) => drop(answer.send(self.status())),
                    Some(Request::Check(answer)) => {
                        self.mend(true);
                        self.test_pods(|_| true);
                        drop(answer.send(self.status()));
                    }
                    Some(Request::CheckPod(uid, answer)) => {
                        let is_asked = |pod: &Enrolled| pod.enrolment.uid == uid;
                        // What is put right now was not as it should be when it was asked for.
                        self.test_pods(is_asked);
                        self.mend_pods(true, is_asked);
                        let state = self.status().pods.into_iter().find(|pod| pod.uid == uid);
                        drop(answer.send(state));
                    }
                    Some(Request::Connections(answer)) => {
                        let snapshot = Arc::clone(&snapshots.borrow());
                        drop(answer.send(self.connections(&snapshot)));
                    }
                    Some(Request::Stop(done)) => {
                        self.stop(&mut requests).await;
                        // Whoever asked may have given up waiting.
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                () = changed(&mut self.external) => self.tell_addresses(),
                _ = tick.tick(), if busy => {
                    self.datapath.sweep();
                    self.finish_leaving();
                }
                _ = affinity.tick() => {
                    if let Err(error) = self.datapath.sweep_affinity() {
                        tracing::warn!(error = %chain(&error), "clients' affinities cannot be swept");
                    }
                    if let Err(error) = self.datapath.sweep_replies() {
                        tracing::warn!(error = %chain(&error), "ways back to clients cannot be swept");
                    }
                }
                _ = told.changed() => self.reconcile_pods(&Arc::clone(&snapshots.borrow())),
                _ = retry.tick() => self.look(&Arc::clone(&snapshots.borrow())),
            }
        }
    }

    /// What is done every second.
    fn look(&mut self, snapshot: &Snapshot) {
        self.end_replaced();
        self.mend(false);
        // A pod that has left, or a connection of its that was still being made, has asked since.
        self.forget_certificates();
        self.test_some(TESTS, |pod| match &pod.canary {
            None => true,
            Some(Err(_)) => pod.tested.elapsed() >= RETEST_FAILED,
            Some(Ok(())) => pod.tested.elapsed() >= RETEST,
        });
        if !self.sync_errors.is_empty() {
            self.apply(snapshot);
        } else if !self.pending.is_empty() {
            self.reconcile_pods(snapshot);
        }
        self.release_strays();
    }

    /// A reader of the kernel's maps.
    pub(super) fn maps(&self) -> MapReader {
        self.datapath.maps()
    }

    fn connections(&self, snapshot: &Snapshot) -> Vec<(ServiceName, Vec<BackendCount>)> {
        snapshot.services.keys().map(|name| (name.clone(), self.datapath.connections(name))).collect()
    }

    fn apply(&mut self, snapshot: &Snapshot) {
        let began = Instant::now();
        self.reaper.announce(snapshot);
        let problems = self.datapath.sync(snapshot);
        let metrics = self.shared.telemetry.metrics();
        metrics.sync().synced(snapshot.generation, began.elapsed(), problems.len());
        self.note(&problems);
        // Whatever could not be written: an endpoint that is gone is gone.
        self.reaper.follow(snapshot);
        self.reconcile_pods(snapshot);
        self.generation = snapshot.generation;
    }

    /// The kernel hears which addresses the node has.
    fn tell_addresses(&mut self) {
        let Some(external) = &mut self.external else { return };
        self.datapath.set_node_addresses(&external.addresses());
        let problems = self.datapath.problems();
        self.note(&problems);
    }

    /// Keeps what is not in the kernel as it should be, to be told and tried again; logs what is new of it.
    fn note(&mut self, problems: &[SyncProblem]) {
        let before = std::mem::take(&mut self.sync_errors);
        self.sync_errors = problems.iter().map(ToString::to_string).collect();
        for problem in self.sync_errors.iter().filter(|problem| !before.contains(problem)) {
            tracing::error!(problem, "the kernel does not hold what it should");
        }
    }
}

/// Returns when the node's addresses have changed.
async fn changed(external: &mut Option<External>) {
    match external {
        Some(external) => external.changed().await,
        None => std::future::pending().await,
    }
}

/// An error and its sources on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
