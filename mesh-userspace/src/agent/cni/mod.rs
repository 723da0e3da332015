//! The agent's side of the CNI plugin: a sandbox is told, its pod enrolled, and only then the plugin answered.
//!
//! What the plugin says goes into the feed as [`Sandboxes`](crate::model::Sandboxes), under the pod's UID, and comes out of it as an ordinary
//! workload: policies, identities, kernel and proxy hear of the pod's addresses in one snapshot, long before the kubelet
//! writes them into its status. Nothing behind the feed knows that there is a plugin.

mod attachments;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use self::attachments::{Attached, Attachments};
use super::controller::{PodState, Request};
use crate::admin::cni::{AttachmentId, CniAnswer, CniAttachment, CniRequest};
use crate::cni::{Known, is_own_netns};
use crate::model::{Sandboxes, Snapshot, Workload, WorkloadUid};
use crate::node::Namespaces;
use crate::proxy::Shared;

/// How long one request waits for its pod. The plugin asks again.
const WAIT: Duration = Duration::from_secs(4);
/// How often sandboxes are looked for that went without a word.
const SWEEP: Duration = Duration::from_secs(10);

/// What the plugin has told, before there is anything to enrol pods with.
pub(super) struct Sandboxed(Arc<Attachments>);

impl Sandboxed {
    /// Takes up what an earlier agent was told.
    pub(super) fn open(state_dir: &Path, namespaces: Namespaces) -> io::Result<Self> {
        Attachments::open(state_dir, namespaces).map(|attachments| Self(Arc::new(attachments)))
    }

    /// For the feed.
    pub(super) fn sandboxes(&self) -> watch::Receiver<Sandboxes> {
        self.0.sandboxes()
    }

    /// Begins to serve. `is_cluster`: the source has an object of every namespace, sooner or later.
    pub(super) fn serve(
        self,
        shared: Arc<Shared>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        requests: mpsc::Sender<Request>,
        is_cluster: bool,
    ) -> Cni {
        let attachments = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(SWEEP);
            loop {
                tick.tick().await;
                let Some(attachments) = attachments.upgrade() else { return };
                // It only blocks, and says itself what goes wrong.
                let _ = tokio::task::spawn_blocking(move || attachments.sweep()).await;
            }
        });
        Cni { attachments: self.0, shared, snapshots, requests, is_cluster }
    }
}

/// See the module.
pub(super) struct Cni {
    attachments: Arc<Attachments>,
    shared: Arc<Shared>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    requests: mpsc::Sender<Request>,
    is_cluster: bool,
}

/// How far a pod's enrolment has come.
enum Progress {
    Answer(CniAnswer),
    Waits { reason: String, may_pass: bool },
}

impl Cni {
    /// Carries out what the plugin asks.
    pub(super) async fn answer(&self, request: CniRequest) -> CniAnswer {
        match request {
            CniRequest::Add { attachment, wait_ms } => match attachment.id.problem() {
                Some(problem) => refused(problem),
                None => self.add(attachment, Duration::from_millis(wait_ms).min(WAIT)).await,
            },
            CniRequest::Del(id) => {
                self.remove(move |attached| attached.told.id == id).await;
                CniAnswer::Done
            }
            CniRequest::Gc { network, valid } => {
                let is_stale = move |attached: &Attached| {
                    attached.told.network == network && !valid.contains(&attached.told.id)
                };
                self.remove(is_stale).await;
                CniAnswer::Done
            }
            CniRequest::Check(id) => self.check(&id).await,
        }
    }

    async fn add(&self, told: CniAttachment, wait: Duration) -> CniAnswer {
        let deadline = Instant::now() + wait;
        let attachments = Arc::clone(&self.attachments);
        let recorded = tokio::task::spawn_blocking(move || {
            if is_own_netns(&told.netns)? {
                return Ok(Err(format!("{} is the node's own network namespace", told.netns.display())));
            }
            attachments.add(told).map(Ok)
        });
        let attached = match recorded.await {
            Ok(Ok(Ok(attached))) => attached,
            Ok(Ok(Err(reason))) => return CniAnswer::Refused { reason },
            Ok(Err(error)) => {
                return CniAnswer::Pending {
                    reason: format!("the agent cannot take note of the sandbox: {error}"),
                    may_pass: false,
                };
            }
            Err(_panic) => return refused("the agent cannot take note of the sandbox"),
        };
        let (mut snapshots, mut pods) = (self.snapshots.clone(), self.shared.pods_changed());
        loop {
            snapshots.borrow_and_update();
            pods.borrow_and_update();
            let (reason, may_pass) = match self.progress(&attached) {
                Progress::Answer(answer) => return answer,
                Progress::Waits { reason, may_pass } => (reason, may_pass),
            };
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() {
                    return CniAnswer::Pending { reason: "the agent is stopping".to_owned(), may_pass };
                },
                // Its sender lives as long as `self`.
                _ = pods.changed() => {}
                () = sleep_until(deadline) => {
                    let why = self.pod_state(&workload_of(&attached)).await.and_then(|pod| pod.detail);
                    let reason = why.map(|why| format!("{reason}: {why}")).unwrap_or(reason);
                    return CniAnswer::Pending { reason, may_pass };
                }
            }
        }
    }

    fn progress(&self, attached: &Attached) -> Progress {
        let pod = &attached.told.pod;
        if self.attachments.get(&attached.told.id).as_ref() != Some(attached) {
            return Progress::Answer(refused("the sandbox was taken down, or added anew, meanwhile"));
        }
        let snapshot = self.shared.snapshot.load();
        let uid = workload_of(attached);
        let waits = |reason: &str, may_pass| Progress::Waits { reason: reason.to_owned(), may_pass };
        let known = snapshot.workloads.get(&uid).filter(|known| known.pod_uid.as_deref() == Some(&*pod.uid));
        let Some(workload) = known else {
            // Its labels may say anything; its namespace's are all there is to go by.
            let enrols = snapshot.namespaces.get(&*pod.namespace).copied();
            return waits("the agent does not know the pod yet", !enrols.unwrap_or(self.is_cluster));
        };
        if workload.host_network {
            return Progress::Answer(refused("the pod has its node's network, and no sandbox of its own"));
        }
        if !workload.is_on(&self.shared.node) {
            let reason = format!("the pod is not on node {}, which this agent serves", self.shared.node);
            return Progress::Waits { reason, may_pass: false };
        }
        if !workload.enrolled {
            return if self.is_decided(&snapshot, workload) {
                Progress::Answer(CniAnswer::Passed)
            } else {
                waits("the agent does not know the pod's namespace yet", false)
            };
        }
        match self.shared.pod(&uid) {
            Some(served) if served.netns().inode().ok() == Some(attached.inode) => {
                Progress::Answer(CniAnswer::Enrolled)
            }
            _ => waits("the pod is not enrolled yet", false),
        }
    }

    /// Whether nothing can come that brings the pod into the mesh after all, but a change of labels.
    fn is_decided(&self, snapshot: &Snapshot, workload: &Workload) -> bool {
        !self.is_cluster || workload.opts_out() || snapshot.namespaces.contains_key(&workload.namespace)
    }

    async fn check(&self, id: &AttachmentId) -> CniAnswer {
        let Some(attached) = self.attachments.get(id) else {
            return refused("the agent has never been told of the sandbox");
        };
        match self.progress(&attached) {
            Progress::Answer(CniAnswer::Enrolled) => {}
            Progress::Answer(CniAnswer::Refused { reason }) | Progress::Waits { reason, .. } => {
                return CniAnswer::Refused { reason };
            }
            Progress::Answer(_) => return CniAnswer::Done,
        }
        let problem = match self.test(workload_of(&attached)).await {
            Some(pod) => pod.detail.or(pod.canary.and_then(Result::err)),
            None => Some("the pod is not enrolled any more".to_owned()),
        };
        problem.map_or(CniAnswer::Done, |reason| CniAnswer::Refused { reason })
    }

    async fn remove(&self, which: impl Fn(&Attached) -> bool + Send + 'static) {
        let attachments = Arc::clone(&self.attachments);
        // It only blocks, and says itself what goes wrong.
        let _ = tokio::task::spawn_blocking(move || attachments.remove(which)).await;
    }

    /// The pod as the controller has it.
    async fn pod_state(&self, uid: &WorkloadUid) -> Option<PodState> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Status(answer)).await.ok()?;
        answered.await.ok()?.pods.into_iter().find(|pod| pod.uid == *uid)
    }

    /// The same, after a test connection and a look at all that should be there.
    async fn test(&self, uid: WorkloadUid) -> Option<PodState> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::CheckPod(uid, answer)).await.ok()?;
        answered.await.ok()?
    }
}

fn workload_of(attached: &Attached) -> WorkloadUid {
    WorkloadUid::pod(&attached.told.pod.namespace, &attached.told.pod.name)
}

fn refused(reason: &str) -> CniAnswer {
    CniAnswer::Refused { reason: reason.to_owned() }
}

/// Keeps the file that the plugin goes by while no agent can be asked.
pub(super) async fn remember(path: PathBuf, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut written: Option<Known> = None;
    // Of most changes in a cluster none of it is different.
    let mut seen = Arc::new(Snapshot::default());
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let is_seen = snapshot.here.ptr_eq(&seen.here) && snapshot.namespaces.ptr_eq(&seen.namespaces);
        let known = written.as_ref().filter(|_| is_seen).cloned().unwrap_or_else(|| Known::of(&snapshot));
        seen = snapshot;
        if written.as_ref() != Some(&known) {
            let (to, state) = (path.clone(), known.clone());
            let done = tokio::task::spawn_blocking(move || state.write(&to)).await;
            match done.unwrap_or_else(|_panic| Err(io::Error::other("writing panicked"))) {
                Ok(()) => written = Some(known),
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "cannot remember which namespaces are enrolled");
                    written = None;
                }
            }
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(SWEEP), if written.is_none() => {}
        }
    }
}
