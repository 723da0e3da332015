//! Which pods are enrolled: those that the snapshot wants, enrolled and left in an order that leaves no gap.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::time::Instant;

use super::status::connections;
use super::{Controller, chain};
use crate::model::{Identity, Mode, MtlsModes, Snapshot, Workload, WorkloadUid};
use crate::node::{EnrolError, Enroller, Enrolment};
use crate::policy::authorization::Guard;
use crate::proxy::{Pod, Stop};

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
    pub(super) missing: Vec<String>,
}

pub(super) struct Leaving {
    pub(super) enrolled: Enrolled,
    pub(super) deadline: Instant,
}

pub(super) struct Failed {
    pub(super) reason: String,
    pub(super) since: SystemTime,
    pub(super) netns: String,
}

impl Controller {
    pub(super) fn reconcile_pods(&mut self, snapshot: &Snapshot) {
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

    pub(super) fn enrol(&mut self, snapshot: &Snapshot, workload: &Arc<Workload>) {
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

    pub(super) fn try_enrol(
        &mut self,
        snapshot: &Snapshot,
        workload: &Arc<Workload>,
    ) -> Result<Enrolled, EnrolError> {
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
        self.fetch_certificate(&workload.identity);
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

    /// Has a certificate signed before the first connection needs it.
    pub(super) fn fetch_certificate(&self, identity: &Identity) {
        let (certificates, identity) = (self.shared.certificates.clone(), identity.clone());
        tokio::spawn(async move {
            // A failure is told by the store, which tries again.
            let _ = certificates.certificate(&identity).await;
        });
    }

    pub(super) fn begin_leaving(&mut self, uid: &WorkloadUid) {
        let Some(enrolled) = self.pods.remove(uid) else { return };
        if let Err(error) = self.enroller.end_capture(&mut self.datapath, &enrolled.enrolment) {
            tracing::error!(pod = %uid, error = %chain(&error), "capture cannot be ended");
        }
        enrolled.stop.send_replace(Stop::Draining);
        self.leaving.push(Leaving { enrolled, deadline: Instant::now() + self.drain });
        self.publish();
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

    /// Lets the data path know who is here.
    pub(super) fn publish(&self) {
        let pods: HashMap<_, _> =
            self.pods.iter().map(|(uid, pod)| (uid.clone(), Arc::clone(&pod.pod))).collect();
        self.shared.telemetry.metrics().set_enrolled(pods.len());
        self.shared.set_pods(pods);
        self.forget_certificates();
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
