//! The one thread that changes the kernel and the pods: snapshots in, enrolments out.
//!
//! It may block (namespaces, netlink, grace periods); nothing on the data path waits for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::AgentError;
use crate::datapath::maps::MapReader;
use crate::datapath::{Attachment, BackendCount, Datapath, Role, SyncProblem};
use crate::external::External;
use crate::model::{Mode, MtlsModes, NodeName, ServiceName, Snapshot, Workload, WorkloadUid};
use crate::node::{EnrolError, Enroller, Enrolment, probe};
use crate::policy::authorization::Guard;
use crate::proxy::{Canary, Pod, Shared, Stop, Workers};
use crate::sockets::Reaper;

/// How often pods that could not be enrolled, or were replaced, are looked at again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the affinities of clients that have not been seen for too long are deleted.
const AFFINITY_SWEEP: Duration = Duration::from_secs(30);
/// How often a pod is tested whose test connection did not arrive.
const RETEST_FAILED: Duration = Duration::from_secs(10);
/// How often one is tested whose did.
const RETEST: Duration = Duration::from_mins(1);
/// Test connections that may fail in a row before the rest waits for the next round: each takes its time.
const FAILURES: usize = 3;
/// How long connections that are cut may take to notice.
const CUT: Duration = Duration::from_secs(1);
/// How often what is ending is looked at.
const TICK: Duration = Duration::from_millis(100);

/// What others ask of the controller.
pub(super) enum Request {
    /// How the kernel and the pods stand.
    Status(oneshot::Sender<NodeStatus>),
    /// The same, after a test connection in every pod and a look at all that should be there.
    Check(oneshot::Sender<NodeStatus>),
    /// What the backends of each service have got through the kernel.
    Connections(oneshot::Sender<Vec<(ServiceName, Vec<BackendCount>)>>),
    /// End capture and let connections come to their ends.
    Stop(oneshot::Sender<()>),
}

/// How the kernel and the pods stand.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeStatus {
    pub(super) attachments: Vec<Attachment>,
    pub(super) pods: Vec<PodState>,
    pub(super) sync_errors: Vec<String>,
    pub(super) generation: u64,
    pub(super) sees_agent: bool,
    pub(super) heartbeat_age: Option<Duration>,
}

/// One pod.
#[derive(Clone, Debug)]
pub(super) struct PodState {
    pub(super) uid: WorkloadUid,
    pub(super) state: &'static str,
    pub(super) since: SystemTime,
    pub(super) detail: Option<String>,
    pub(super) netns: String,
    pub(super) addresses: Vec<std::net::IpAddr>,
    pub(super) canary: Option<Result<(), String>>,
    pub(super) connections: usize,
}

struct Enrolled {
    enrolment: Enrolment,
    workload: Arc<Workload>,
    /// What the kernel holds of its ports.
    modes: MtlsModes,
    pod: Arc<Pod>,
    stop: watch::Sender<Stop>,
    since: SystemTime,
    canary: Option<Result<(), String>>,
    tested: Instant,
    missing: Vec<String>,
}

struct Leaving {
    enrolled: Enrolled,
    deadline: Instant,
}

struct Failed {
    reason: String,
    since: SystemTime,
    netns: String,
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
}

/// See the module.
pub(super) struct Controller {
    node: NodeName,
    drain: Duration,
    datapath: Datapath,
    enroller: Enroller,
    workers: Workers,
    shared: Arc<Shared>,
    external: Option<External>,
    reaper: Reaper,
    pods: BTreeMap<WorkloadUid, Enrolled>,
    leaving: Vec<Leaving>,
    failed: BTreeMap<WorkloadUid, Failed>,
    sync_errors: Vec<String>,
    generation: u64,
}

impl Controller {
    /// Brings the kernel and the pods in line with the first snapshot, and only then puts the programs in force.
    pub(super) fn start(parts: Parts, snapshot: &Snapshot) -> Result<Self, AgentError> {
        let Parts { drain, datapath, enroller, workers, shared, external, reaper } = parts;
        let mut controller = Self {
            node: shared.node.clone(),
            drain,
            datapath,
            enroller,
            workers,
            shared,
            external,
            reaper,
            pods: BTreeMap::new(),
            leaving: Vec::new(),
            failed: BTreeMap::new(),
            sync_errors: Vec::new(),
            generation: 0,
        };
        controller.apply(snapshot);
        let pods = &controller.pods;
        let enrolled = |cookie| pods.values().any(|pod| pod.enrolment.cookie == cookie);
        for error in controller.enroller.release_strays(&mut controller.datapath, enrolled) {
            tracing::warn!(error = %chain(&error), "a pod of an earlier agent could not be released");
        }
        controller.tell_addresses();
        if let Some(external) = &mut controller.external {
            let started = external.start(&mut controller.datapath, &controller.workers);
            started.map_err(AgentError::External)?;
        }
        controller.datapath.attach().map_err(AgentError::Datapath)?;
        controller.test_pods(|_| true);
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
                        self.test_pods(|_| true);
                        drop(answer.send(self.status()));
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
                _ = retry.tick() => {
                    self.end_replaced();
                    self.tell_attachments();
                    self.test_pods(|pod| match &pod.canary {
                        None => true,
                        Some(Err(_)) => pod.tested.elapsed() >= RETEST_FAILED,
                        Some(Ok(())) => pod.tested.elapsed() >= RETEST,
                    });
                    if !self.failed.is_empty() || !self.sync_errors.is_empty() {
                        let snapshot = Arc::clone(&snapshots.borrow());
                        self.apply(&snapshot);
                    }
                }
            }
        }
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

    fn reconcile_pods(&mut self, snapshot: &Snapshot) {
        let wanted: BTreeMap<WorkloadUid, Arc<Workload>> = snapshot
            .workloads
            .values()
            .filter(|workload| workload.enrolled && !workload.host_network && workload.is_on(&self.node))
            .map(|workload| (workload.uid.clone(), Arc::clone(workload)))
            .collect();
        let is_other = |pod: &Enrolled, workload: &Workload| {
            workload.netns.as_ref() != Some(&pod.enrolment.netns)
                || workload.addresses != pod.enrolment.addresses
        };
        let gone: Vec<WorkloadUid> = self
            .pods
            .iter()
            .filter(|(uid, pod)| wanted.get(*uid).is_none_or(|workload| is_other(pod, workload)))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.begin_leaving(&uid);
        }
        self.failed.retain(|uid, _| wanted.contains_key(uid));
        for (uid, workload) in wanted {
            match self.pods.get_mut(&uid) {
                Some(pod) => {
                    pod.pod.refresh(snapshot);
                    let modes = modes_past_the_agent(&workload, pod.pod.may_refuse());
                    pod.workload = workload;
                    if pod.modes == modes {
                        continue;
                    }
                    match self.enroller.set_modes(&mut self.datapath, &pod.enrolment, &modes) {
                        Ok(()) => pod.modes = modes,
                        Err(error) => self.sync_errors.push(chain(&error)),
                    }
                }
                None => self.enrol(snapshot, &workload),
            }
        }
        self.publish();
    }

    fn enrol(&mut self, snapshot: &Snapshot, workload: &Arc<Workload>) {
        // Whoever is still leaving the same namespace or address must have left it: what is taken up then is by those.
        let meets = |leaving: &Leaving| {
            let other = &leaving.enrolled.enrolment;
            other.uid == workload.uid
                || workload.netns.as_ref() == Some(&other.netns)
                || other.addresses.iter().any(|address| workload.addresses.contains(address))
        };
        let (meeting, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.leaving).into_iter().partition(meets);
        self.leaving = rest;
        for leaving in meeting {
            self.leave(leaving.enrolled);
        }
        match self.try_enrol(snapshot, workload) {
            Ok(enrolled) => {
                tracing::info!(pod = %workload.uid, netns_cookie = enrolled.enrolment.cookie, "enrolled");
                self.failed.remove(&workload.uid);
                self.pods.insert(workload.uid.clone(), enrolled);
                // The data path must know each pod before the next one begins to talk to it.
                self.publish();
            }
            Err(error) => {
                let reason = chain(&error);
                let before = self.failed.get(&workload.uid);
                if before.is_none_or(|before| before.reason != reason) {
                    tracing::error!(pod = %workload.uid, error = reason, "pod cannot be enrolled");
                    let netns =
                        workload.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
                    self.failed
                        .insert(workload.uid.clone(), Failed { reason, since: SystemTime::now(), netns });
                }
            }
        }
    }

    fn try_enrol(&mut self, snapshot: &Snapshot, workload: &Arc<Workload>) -> Result<Enrolled, EnrolError> {
        let held: Vec<u64> = self.pods.values().map(|pod| pod.enrolment.cookie).collect();
        let modes = modes_past_the_agent(workload, Guard::of(snapshot, workload).may_refuse());
        let (enrolment, netns, listeners) =
            self.enroller.enrol(&mut self.datapath, workload, &modes, &held)?;
        let (stop, stopped) = watch::channel(Stop::Serving);
        let pod = Arc::new(Pod::new(snapshot, Arc::clone(workload), netns, stopped));
        self.shared.follow(&pod);
        for listener in listeners {
            self.workers.listen(&pod, listener.role, listener.socket);
        }
        if let Err(error) = self.enroller.begin_capture(&mut self.datapath, &enrolment) {
            stop.send_replace(Stop::Cut);
            self.enroller.release(&mut self.datapath, &enrolment)?;
            return Err(error);
        }
        // The certificate is there before the first connection needs it.
        let (certificates, identity) = (self.shared.certificates.clone(), workload.identity.clone());
        tokio::spawn(async move {
            // A failure is told by the store, which tries again.
            let _ = certificates.certificate(&identity).await;
        });
        let (workload, since) = (Arc::clone(workload), SystemTime::now());
        Ok(Enrolled {
            enrolment,
            workload,
            modes,
            pod,
            stop,
            since,
            canary: None,
            tested: Instant::now(),
            missing: Vec::new(),
        })
    }

    fn begin_leaving(&mut self, uid: &WorkloadUid) {
        let Some(enrolled) = self.pods.remove(uid) else { return };
        if let Err(error) = self.enroller.end_capture(&mut self.datapath, &enrolled.enrolment) {
            tracing::error!(pod = %uid, error = %chain(&error), "capture cannot be ended");
        }
        enrolled.stop.send_replace(Stop::Draining);
        self.leaving.push(Leaving { enrolled, deadline: Instant::now() + self.drain });
        self.publish();
    }

    /// Releases the pods whose connections have ended, or whose time is up.
    fn finish_leaving(&mut self) {
        let now = Instant::now();
        let done = |leaving: &Leaving| connections(&leaving.enrolled.pod) == 0 || now >= leaving.deadline;
        let (done, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.leaving).into_iter().partition(done);
        self.leaving = rest;
        for leaving in done {
            self.leave(leaving.enrolled);
        }
    }

    fn leave(&mut self, enrolled: Enrolled) {
        let Enrolled { enrolment, stop, pod, .. } = enrolled;
        stop.send_replace(Stop::Cut);
        self.workers.forget(enrolment.cookie);
        let uid = enrolment.uid.clone();
        drop(pod);
        match self.enroller.release(&mut self.datapath, &enrolment) {
            Ok(()) => tracing::info!(pod = %uid, "released"),
            Err(error) => tracing::error!(pod = %uid, error = %chain(&error), "pod cannot be released"),
        }
    }

    /// The metrics hear what the kernel says of the programs.
    fn tell_attachments(&self) {
        for attachment in self.datapath.attachments() {
            self.shared.telemetry.metrics().set_attached(attachment.program, attachment.attached);
        }
    }

    /// A pod whose namespace is another one now was made anew under its old name.
    fn end_replaced(&mut self) {
        let replaced: Vec<WorkloadUid> = self
            .pods
            .iter()
            .filter(|(_, pod)| Enroller::is_replaced(&pod.enrolment))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in replaced {
            let netns =
                self.pods.get(&uid).map(|pod| pod.enrolment.netns.display().to_string()).unwrap_or_default();
            self.begin_leaving(&uid);
            let reason = format!("{netns} is gone or another namespace now");
            self.failed.insert(uid, Failed { reason, since: SystemTime::now(), netns });
        }
    }

    /// Lets the data path know who is here, and the certificate store whose certificates are wanted.
    fn publish(&self) {
        let pods: HashMap<_, _> =
            self.pods.iter().map(|(uid, pod)| (uid.clone(), Arc::clone(&pod.pod))).collect();
        self.shared.telemetry.metrics().set_enrolled(pods.len());
        self.shared.set_pods(pods);
        let leaving = self.leaving.iter().map(|leaving| &leaving.enrolled);
        let identities: BTreeSet<_> =
            self.pods.values().chain(leaving).map(|pod| pod.workload.identity.clone()).collect();
        let own = self.external.iter().map(|_| self.shared.agent.clone());
        self.shared.certificates.retain(&identities.into_iter().chain(own).collect());
    }

    /// A test connection through these pods, and a look at all that should be there. What is missing is told, not mended.
    fn test_pods(&mut self, which: impl Fn(&Enrolled) -> bool) {
        let mut failures = 0;
        for pod in self.pods.values_mut().filter(|pod| which(pod)) {
            pod.missing = self.enroller.missing(&self.datapath, &pod.enrolment);
            let token: [u8; 16] = fastrand::u128(..).to_ne_bytes();
            self.shared.canary.expect(token);
            let address = Canary::address(pod.enrolment.addresses[0]);
            let result = probe::run(&self.datapath, pod.pod.netns(), address, token);
            let is_new = pod.canary.as_ref() != Some(&result);
            pod.canary = Some(result.clone());
            pod.tested = Instant::now();
            if let Err(reason) = result {
                if is_new {
                    tracing::warn!(pod = %pod.enrolment.uid, reason, "the test connection did not arrive");
                }
                failures += 1;
                if failures == FAILURES {
                    return;
                }
            }
        }
    }

    /// Ends capture, lets connections end by themselves for a while, and leaves everything in the kernel in force.
    async fn stop(&mut self, requests: &mut mpsc::Receiver<Request>) {
        self.datapath.stop_capture();
        for pod in self.pods.values() {
            pod.stop.send_replace(Stop::Draining);
        }
        if let Some(external) = &self.external {
            external.stop(Stop::Draining);
        }
        let deadline = Instant::now() + self.drain;
        let mut tick = tokio::time::interval(TICK);
        while self.open() > 0 && Instant::now() < deadline {
            tokio::select! {
                _ = tick.tick() => self.finish_leaving(),
                request = requests.recv() => match request {
                    Some(Request::Status(answer) | Request::Check(answer)) => drop(answer.send(self.status())),
                    // Whoever asks is told that there is no answer.
                    Some(Request::Connections(_unanswered)) => {}
                    Some(Request::Stop(_told_again)) => break,
                    None => break,
                },
            }
        }
        for pod in self.pods.values() {
            pod.stop.send_replace(Stop::Cut);
        }
        if let Some(external) = &self.external {
            external.stop(Stop::Cut);
        }
        // What is cut is reset by its own task.
        let deadline = Instant::now() + CUT;
        while self.workers.connections() > 0 && Instant::now() < deadline {
            tick.tick().await;
        }
        for leaving in std::mem::take(&mut self.leaving) {
            self.leave(leaving.enrolled);
        }
    }

    /// Connections that are worth waiting for.
    fn open(&self) -> usize {
        let pods: usize = self.pods.values().map(|pod| connections(&pod.pod)).sum();
        pods + self.external.as_ref().map_or(0, External::connections)
    }

    fn status(&self) -> NodeStatus {
        let enrolled = self.pods.values().map(|pod| pod_state(pod, "enrolled"));
        let leaving = self.leaving.iter().map(|leaving| pod_state(&leaving.enrolled, "leaving"));
        let failed = self.failed.iter().map(|(uid, failed)| PodState {
            uid: uid.clone(),
            state: "failed",
            since: failed.since,
            detail: Some(failed.reason.clone()),
            netns: failed.netns.clone(),
            addresses: Vec::new(),
            canary: None,
            connections: 0,
        });
        NodeStatus {
            attachments: self.datapath.attachments(),
            pods: enrolled.chain(leaving).chain(failed).collect(),
            sync_errors: [self.sync_errors.clone(), external_problems(self.external.as_ref())].concat(),
            generation: self.generation,
            sees_agent: self.datapath.sees_agent(),
            heartbeat_age: self.datapath.heartbeat_age(),
        }
    }
}

/// What `sk_lookup` does with connections that find no listener of the agent: where a policy may refuse, nobody comes in
/// whom nobody has judged.
fn modes_past_the_agent(workload: &Workload, may_refuse: bool) -> MtlsModes {
    if may_refuse {
        MtlsModes { default: Mode::Strict, ports: BTreeMap::new() }
    } else {
        workload.mtls.clone()
    }
}

fn external_problems(external: Option<&External>) -> Vec<String> {
    external.map(External::problems).unwrap_or_default()
}

/// Returns when the node's addresses have changed.
async fn changed(external: &mut Option<External>) {
    match external {
        Some(external) => external.changed().await,
        None => std::future::pending().await,
    }
}

fn pod_state(pod: &Enrolled, state: &'static str) -> PodState {
    PodState {
        uid: pod.enrolment.uid.clone(),
        state,
        since: pod.since,
        detail: (!pod.missing.is_empty()).then(|| pod.missing.join("; ")),
        netns: pod.enrolment.netns.display().to_string(),
        addresses: pod.enrolment.addresses.clone(),
        canary: pod.canary.clone(),
        connections: connections(&pod.pod),
    }
}

/// Roles of the listeners in a pod, for reports.
pub(super) const ROLES: [Role; 3] = [Role::Outbound, Role::Inbound, Role::Hbone];

/// Connections that hold the pod.
fn connections(pod: &Arc<Pod>) -> usize {
    pod.connections()
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
