//! How the kernel and the pods stand, as the controller tells it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Controller;
use super::pods::{Enrolled, Mend};
use crate::datapath::{Attachment, Role};
use crate::external::External;
use crate::model::WorkloadUid;
use crate::proxy::Pod;

/// How the kernel and the pods stand.
#[derive(Clone, Debug, Default)]
pub(in crate::agent) struct NodeStatus {
    pub(in crate::agent) attachments: Vec<Attachment>,
    pub(in crate::agent) pods: Vec<PodState>,
    pub(in crate::agent) sync_errors: Vec<String>,
    pub(in crate::agent) generation: u64,
    pub(in crate::agent) sees_agent: bool,
    pub(in crate::agent) heartbeat_age: Option<Duration>,
}

/// One pod.
#[derive(Clone, Debug)]
pub(in crate::agent) struct PodState {
    pub(in crate::agent) uid: WorkloadUid,
    pub(in crate::agent) state: &'static str,
    pub(in crate::agent) since: SystemTime,
    pub(in crate::agent) detail: Option<String>,
    pub(in crate::agent) netns: String,
    pub(in crate::agent) addresses: Vec<std::net::IpAddr>,
    pub(in crate::agent) canary: Option<Result<(), String>>,
    pub(in crate::agent) connections: usize,
    pub(in crate::agent) mended: Option<Mend>,
}

impl Controller {
    pub(super) fn status(&self) -> NodeStatus {
        let enrolled = self.pods.values().map(|pod| pod_state(pod, "enrolled"));
        let leaving = self.leaving.iter().map(|leaving| pod_state(&leaving.enrolled, "leaving"));
        let pending = self.pending.iter().map(|(uid, pending)| PodState {
            uid: uid.clone(),
            state: if pending.has_failed { "failed" } else { "waiting" },
            since: pending.since,
            detail: Some(pending.reason.clone()),
            netns: pending.netns.clone(),
            addresses: Vec::new(),
            canary: None,
            connections: 0,
            mended: None,
        });
        NodeStatus {
            attachments: self.datapath.attachments(),
            pods: enrolled.chain(leaving).chain(pending).collect(),
            sync_errors: [self.sync_errors.clone(), external_problems(self.external.as_ref())].concat(),
            generation: self.generation,
            sees_agent: self.datapath.sees_agent(),
            heartbeat_age: self.datapath.heartbeat_age(),
        }
    }
}

/// Roles of the listeners in a pod, for reports.
pub(in crate::agent) const ROLES: [Role; 3] = [Role::Outbound, Role::Inbound, Role::Hbone];

pub(super) fn external_problems(external: Option<&External>) -> Vec<String> {
    external.map(External::problems).unwrap_or_default()
}

pub(super) fn pod_state(pod: &Enrolled, state: &'static str) -> PodState {
    PodState {
        uid: pod.enrolment.uid.clone(),
        state,
        since: pod.since,
        detail: (!pod.broken.is_empty()).then(|| pod.broken.join("; ")),
        netns: pod.enrolment.netns.display().to_string(),
        addresses: pod.enrolment.addresses.clone(),
        canary: pod.canary.clone(),
        connections: connections(&pod.pod),
        mended: pod.mended.clone(),
    }
}

/// Connections that hold the pod.
pub(super) fn connections(pod: &Arc<Pod>) -> usize {
    pod.connections()
}
