//! Which pods are enrolled: those that the snapshot wants, enrolled and left in an order that leaves no gap.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use super::status::connections;
use super::{Controller, chain};
use crate::model::{Identity, Mode, MtlsModes, Snapshot, Workload, WorkloadUid};
use crate::node::{EnrolError, Enrolment, Laid, Place, Wanted};
use crate::policy::authorization::Guard;
use crate::proxy::{Pod, Stop};

/// How long a pod may wait for what should come by itself before it has failed.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Enrolled {
    pub(super) enrolment: Enrolment,
    pub(super) workload: Arc<Workload>,
    /// What the kernel holds of its ports.
    pub(super) modes: MtlsModes,
    pub(super) pod: Arc<Pod>,
    pub(super) stop: watch::Sender<Stop>,
    pub(super) since: SystemTime,
    pub(super) canary: Option<Result<(), String>>,
    pub(super) tested: Instant,
    /// What is wrong and could not be mended.
    pub(super) broken: Vec<String>,
    pub(super) mended: Option<Mend>,
}

/// The last mend of a pod.
#[derive(Clone, Debug)]
pub(in crate::agent) struct Mend {
    pub(in crate::agent) when: SystemTime,
    pub(in crate::agent) what: String,
}

pub(super) struct Leaving {
    pub(super) enrolled: Enrolled,
    pub(super) deadline: Instant,
}

/// A pod that is wanted and not enrolled.
pub(super) struct Pending {
    pub(super) has_failed: bool,
    pub(super) reason: String,
    /// When it came to be in this state.
    pub(super) since: SystemTime,
    /// When it was wanted first.
    pub(super) wanted: Instant,
    pub(super) netns: String,
}

/// The pods of this node that are to be in the mesh.
fn wanted(snapshot: &Snapshot) -> BTreeMap<WorkloadUid, Arc<Workload>> {
    let here = snapshot.here.iter().filter(|(_, workload)| workload.enrolled && !workload.host_network);
    here.map(|(uid, workload)| (uid.clone(), Arc::clone(workload))).collect()
}

impl Controller {
    /// Where a workload's namespace is, as far as that is known.
    fn place(&self, workload: &Workload) -> Option<Place> {
        if let Some(path) = &workload.netns {
            Some(Place::at(path.clone()))
        } else {
            let pod_uid = workload.pod_uid.as_deref()?;
            let place = self.namespaces.place(pod_uid)?;
            if place.inode().is_ok() {
                return Some(place);
            }
            // What the CNI plugin said counts no longer; discovery may know better.
            self.namespaces.lost(pod_uid, &place.path);
            self.namespaces.place(pod_uid)
        }
    }

    pub(super) fn reconcile_pods(&mut self, snapshot: &Snapshot) {
        let wanted = wanted(snapshot);
        let held: Vec<WorkloadUid> = self.pods.keys().cloned().collect();
        for uid in held {
            let stays = wanted.get(&uid).is_some_and(|workload| self.stays(&uid, workload));
            if !stays {
                self.begin_leaving(&uid);
            }
        }
        self.pending.retain(|uid, _| wanted.contains_key(uid));
        let mut new = Vec::new();
        for (uid, workload) in wanted {
            let Some(pod) = self.pods.get_mut(&uid) else {
                new.push(workload);
                continue;
            };
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
        self.enrol(snapshot, new);
        self.publish();
        self.forget_certificates();
    }

    /// Whether an enrolled pod is still the one that is wanted; if so, it goes on with the addresses that it has now.
    fn stays(&mut self, uid: &WorkloadUid, workload: &Workload) -> bool {
        let place = self.place(workload);
        let Some(pod) = self.pods.get_mut(uid) else { return false };
        if pod.workload.pod_uid != workload.pod_uid {
            return false;
        }
        let Some(place) =
            place.filter(|place| place.inode().is_ok_and(|inode| inode == pod.enrolment.inode()))
        else {
            return false;
        };
        if place.path != pod.enrolment.netns {
            pod.enrolment.moved_to(&place.path);
        }
        match self.enroller.readdress(&mut pod.enrolment, &workload.addresses) {
            Ok(stays) => stays,
            Err(error) => {
                // The look that follows tries again.
                self.sync_errors.push(chain(&error));
                true
            }
        }
    }

    /// Enrols these pods: what can be done for several at once is, and each is known before the next one begins to talk to it.
    fn enrol(&mut self, snapshot: &Snapshot, new: Vec<Arc<Workload>>) {
        let mut wanted = Vec::new();
        for workload in new {
            match self.place(&workload) {
                Some(place) => {
                    self.finish_meeting(&workload, &place);
                    let modes = modes_past_the_agent(&workload, Guard::of(snapshot, &workload).may_refuse());
                    wanted.push(Wanted { workload, place, modes });
                }
                None if workload.pod_uid.is_some() => {
                    let error = EnrolError::NotFound(workload.uid.clone());
                    self.not_enrolled(&workload, None, &error);
                }
                None => self.not_enrolled(&workload, None, &EnrolError::NoNetns(workload.uid.clone())),
            }
        }
        if wanted.is_empty() {
            return;
        }
        let held: Vec<u64> = self.pods.values().map(|pod| pod.enrolment.cookie).collect();
        let laid = self.enroller.enrol(&mut self.datapath, &wanted, &held);
        for (wanted, laid) in wanted.into_iter().zip(laid) {
            let workload = Arc::clone(&wanted.workload);
            match laid.and_then(|laid| self.serve(snapshot, wanted.clone(), laid)) {
                Ok(enrolled) => {
                    tracing::info!(pod = %workload.uid, netns_cookie = enrolled.enrolment.cookie, "enrolled");
                    if let Some(pending) = self.pending.remove(&workload.uid)
                        && pending.has_failed
                    {
                        self.events.recovered(&workload);
                    }
                    self.pods.insert(workload.uid.clone(), enrolled);
                    // The data path must know each pod before the next one begins to talk to it.
                    self.publish();
                }
                Err(error) => self.not_enrolled(&workload, Some(&wanted.place), &error),
            }
        }
    }

    /// Whoever is still leaving the same namespace or address must have left it: what is taken up then is by those.
    fn finish_meeting(&mut self, workload: &Workload, place: &Place) {
        if self.leaving.is_empty() {
            return;
        }
        let inode = place.inode().ok();
        let meets = |leaving: &Leaving| {
            let other = &leaving.enrolled.enrolment;
            other.uid == workload.uid
                || inode == Some(other.inode())
                || other.addresses.iter().any(|address| workload.addresses.contains(address))
        };
        let (meeting, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.leaving).into_iter().partition(meets);
        self.leaving = rest;
        for leaving in meeting {
            self.leave(leaving.enrolled);
        }
    }

    /// Remembers why a pod is not enrolled: it waits for what will come by itself, and has failed once that takes too long.
    fn not_enrolled(&mut self, workload: &Workload, place: Option<&Place>, error: &EnrolError) {
        let before = self.pending.get(&workload.uid);
        let wanted = before.map_or_else(Instant::now, |before| before.wanted);
        let has_failed = match error {
            // The kubelet's business, until it is done.
            EnrolError::NoAddress(_) => false,
            // A process of it, or the plugin's word, may come later than the API's.
            EnrolError::NotFound(_) => !workload.addresses.is_empty() && wanted.elapsed() >= PATIENCE,
            // A pod that is going, whose end the API has not told yet.
            EnrolError::AddressTaken { .. } => wanted.elapsed() >= PATIENCE,
            _ => true,
        };
        let reason = chain(error);
        if let Some(before) = before.filter(|before| before.has_failed == has_failed)
            && before.reason == reason
        {
            return;
        }
        if has_failed {
            tracing::error!(pod = %workload.uid, error = reason, "pod cannot be enrolled");
            self.events.failed(workload, &reason);
        } else {
            tracing::info!(pod = %workload.uid, reason, "pod waits to be enrolled");
        }
        let since = before.filter(|before| before.has_failed == has_failed).map(|before| before.since);
        let since = since.unwrap_or_else(SystemTime::now);
        let netns = place.map(|place| place.path.display().to_string()).unwrap_or_default();
        self.pending.insert(workload.uid.clone(), Pending { has_failed, reason, since, wanted, netns });
    }

    /// Accepts for a pod that is laid, and begins to capture.
    fn serve(&mut self, snapshot: &Snapshot, wanted: Wanted, laid: Laid) -> Result<Enrolled, EnrolError> {
        let Wanted { workload, modes, .. } = wanted;
        let Laid { mut enrolment, netns, listeners } = laid;
        let (stop, stopped) = watch::channel(Stop::Serving);
        let pod = Arc::new(Pod::new(snapshot, Arc::clone(&workload), netns, stopped));
        self.shared.follow(&pod);
        for listener in listeners {
            self.workers.listen(&pod, listener.role, listener.socket);
        }
        if let Err(error) = self.enroller.begin_capture(&mut self.datapath, &enrolment) {
            stop.send_replace(Stop::Cut);
            enrolment.close_listeners();
            if modes.any_strict() {
                // What refuses is in force already.
                return Err(EnrolError::Closed(Box::new(error)));
            }
            self.enroller.release(&mut self.datapath, &enrolment)?;
            return Err(error);
        }
        self.fetch_certificate(&workload.identity);
        Ok(Enrolled {
            enrolment,
            workload,
            modes,
            pod,
            stop,
            since: SystemTime::now(),
            canary: None,
            tested: Instant::now(),
            broken: Vec::new(),
            mended: None,
        })
    }

    /// Has a certificate signed before the first connection needs it.
    pub(super) fn fetch_certificate(&self, identity: &Identity) {
        let (certificates, identity) = (self.shared.certificates.clone(), identity.clone());
        tokio::spawn(async move {
            // A failure is told by the store, which tries again.
            let _ = certificates.certificate(&identity).await;
        });
    }

    pub(super) fn begin_leaving(&mut self, uid: &WorkloadUid) {
        let Some(mut enrolled) = self.pods.remove(uid) else { return };
        if let Err(error) = self.enroller.end_capture(&mut self.datapath, &mut enrolled.enrolment) {
            tracing::error!(pod = %uid, error = %chain(&error), "capture cannot be ended");
        }
        enrolled.stop.send_replace(Stop::Draining);
        self.leaving.push(Leaving { enrolled, deadline: Instant::now() + self.drain });
        self.publish();
        self.forget_certificates();
    }

    /// Releases the pods whose connections have ended, or whose time is up.
    pub(super) fn finish_leaving(&mut self) {
        let now = Instant::now();
        let done = |leaving: &Leaving| connections(&leaving.enrolled.pod) == 0 || now >= leaving.deadline;
        let (done, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.leaving).into_iter().partition(done);
        self.leaving = rest;
        for leaving in done {
            self.leave(leaving.enrolled);
        }
    }

    pub(super) fn leave(&mut self, enrolled: Enrolled) {
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

    /// A pod whose namespace is another one now was made anew under its old name.
    pub(super) fn end_replaced(&mut self) {
        let is_replaced = |pod: &Enrolled| match &pod.workload.netns {
            Some(path) => !Place::at(path.clone()).inode().is_ok_and(|inode| inode == pod.enrolment.inode()),
            None => false,
        };
        let replaced: Vec<WorkloadUid> =
            self.pods.iter().filter(|(_, pod)| is_replaced(pod)).map(|(uid, _)| uid.clone()).collect();
        for uid in replaced {
            let netns =
                self.pods.get(&uid).map(|pod| pod.enrolment.netns.display().to_string()).unwrap_or_default();
            self.begin_leaving(&uid);
            let reason = format!("{netns} is gone or another namespace now");
            let (since, wanted) = (SystemTime::now(), Instant::now());
            self.pending.insert(uid, Pending { has_failed: true, reason, since, wanted, netns });
        }
        self.drop_lost();
    }

    /// What the CNI plugin said of a pod whose namespace is not there any more counts no longer.
    fn drop_lost(&self) {
        for pod in self.pods.values().filter(|pod| pod.workload.netns.is_none()) {
            let Some(pod_uid) = &pod.workload.pod_uid else { continue };
            if let Some(place) = self.namespaces.place(pod_uid)
                && place.inode().is_err()
            {
                self.namespaces.lost(pod_uid, &place.path);
            }
        }
    }

    /// Releases what an earlier agent enrolled and nobody wants any more.
    pub(super) fn release_strays(&mut self) {
        let (pods, leaving, pending) = (&self.pods, &self.leaving, &self.pending);
        let enrolled = |cookie| {
            pods.values().any(|pod| pod.enrolment.cookie == cookie)
                || leaving.iter().any(|leaving| leaving.enrolled.enrolment.cookie == cookie)
        };
        if !self.enroller.has_strays(enrolled) && self.has_started {
            return;
        }
        let awaited = |uid: &WorkloadUid| pending.contains_key(uid);
        for error in self.enroller.release_strays(&mut self.datapath, enrolled, awaited) {
            let error = chain(&error);
            if self.told.is_news(&format!("stray {error}"), &error) {
                tracing::warn!(error, "a pod of an earlier agent could not be released");
            }
        }
    }

    /// Lets the data path know who is here.
    pub(super) fn publish(&self) {
        let pods: HashMap<_, _> =
            self.pods.iter().map(|(uid, pod)| (uid.clone(), Arc::clone(&pod.pod))).collect();
        let metrics = self.shared.telemetry.metrics();
        metrics.set_enrolled(pods.len());
        let failed = self.pending.values().filter(|pending| pending.has_failed).count();
        metrics.set_pods([
            ("enrolled", pods.len()),
            ("leaving", self.leaving.len()),
            ("waiting", self.pending.len() - failed),
            ("failed", failed),
        ]);
        self.shared.set_pods(pods);
    }

    /// Certificates of accounts that have no pod here any more go away; the agent's own stays.
    pub(super) fn forget_certificates(&self) {
        let leaving = self.leaving.iter().map(|leaving| &leaving.enrolled);
        let identities: BTreeSet<_> =
            self.pods.values().chain(leaving).map(|pod| pod.workload.identity.clone()).collect();
        let own = self.external.iter().map(|_| self.shared.agent.clone());
        self.shared.certificates.retain(&identities.into_iter().chain(own).collect());
    }
}

/// What `sk_lookup` does with connections that find no listener of the agent: where a policy may refuse, nobody comes in
/// whom nobody has judged.
pub(super) fn modes_past_the_agent(workload: &Workload, may_refuse: bool) -> MtlsModes {
    if may_refuse {
        MtlsModes { default: Mode::Strict, ports: BTreeMap::new() }
    } else {
        workload.mtls.clone()
    }
}
