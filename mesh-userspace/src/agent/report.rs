//! What the agent tells of itself: the documents of the node's API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_common::abi::LAYOUT_VERSION;
use tokio::sync::{mpsc, oneshot};

use super::cni::Cni;
use super::controller::{NodeStatus, PodState, ROLES, Request};
use super::source_report::{source_problems, source_report};
use super::{analyze, chain, explain, fill, policies, service_report};
use crate::admin::AdminData;
use crate::admin::analysis::AnalysisReport;
use crate::admin::api::{
    Canary, CertReport, CheckItem, CheckReport, KernelReport, PodStatus, ProgramStatus, ServiceReport,
    StatusReport, WorkloadReport,
};
use crate::admin::cni::{CniAnswer, CniRequest};
use crate::admin::explain::{ExplainQuery, ExplainReport};
use crate::admin::plane::{MapReport, QueryError};
use crate::admin::policy::{PoliciesReport, PolicyQuery};
use crate::cni::InstallState;
use crate::datapath::check;
use crate::datapath::maps::MapReader;
use crate::identity::{Authority, CertificateState, CertificateStatus};
use crate::model::{NodeName, Workload};
use crate::proxy::Shared;
use crate::source::Feed;
use crate::telemetry::{FlowLog, Metrics};

/// Where the reports come from.
pub(super) struct AgentData {
    pub(super) node: String,
    pub(super) started: SystemTime,
    pub(super) cgroup: PathBuf,
    pub(super) bpffs: PathBuf,
    pub(super) feed: Feed,
    pub(super) shared: Arc<Shared>,
    /// The authority in this process, if it is one.
    pub(super) authority: Option<Arc<Authority>>,
    pub(super) maps: MapReader,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) cni: Cni,
    /// What keeps the CNI plugin from being in force, where this agent installs it.
    pub(super) cni_problem: Arc<InstallState>,
}

impl AgentData {
    async fn ask(&self, request: impl FnOnce(oneshot::Sender<NodeStatus>) -> Request) -> NodeStatus {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(request(answer)).await.is_err() {
            return NodeStatus::default();
        }
        answered.await.unwrap_or_default()
    }

    fn authority_problem(&self) -> Option<String> {
        self.authority.as_ref()?.problem()
    }

    fn kernel(&self, status: &NodeStatus) -> KernelReport {
        let programs = status.attachments.iter().map(|attachment| ProgramStatus {
            name: attachment.program.to_owned(),
            attached: attachment.attached,
            program_id: (attachment.program_id != 0).then_some(attachment.program_id),
            link_id: (attachment.link_id != 0).then_some(attachment.link_id),
            cgroup: Some(self.cgroup.display().to_string()),
        });
        KernelReport {
            layout: LAYOUT_VERSION,
            heartbeat_age_ms: status.heartbeat_age.and_then(|age| u64::try_from(age.as_millis()).ok()),
            programs: programs.collect(),
        }
    }

    /// Certificates that are not there, or will not be for long.
    fn certificate_problems(&self) -> Vec<String> {
        let problem = |status: CertificateStatus| {
            let what = match status.state {
                CertificateState::Unavailable => "there is no certificate",
                CertificateState::Expiring => "the certificate ends soon and cannot be renewed",
                CertificateState::Pending | CertificateState::Valid | CertificateState::RenewalFailing => {
                    return None;
                }
            };
            let why = status.error.map(|error| format!(": {}", chain(&error))).unwrap_or_default();
            Some(format!("{}: {what}{why}", status.identity))
        };
        self.shared.certificates.certificates().into_iter().filter_map(problem).collect()
    }

    fn problems(&self, status: &NodeStatus) -> Vec<String> {
        let reports = self.feed.reports.borrow();
        let rejected = reports.problems.iter().map(|problem| {
            let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
            let object = problem.object.as_ref().map(|object| format!(" {object}")).unwrap_or_default();
            let field = if problem.field.is_empty() { String::new() } else { format!(" {}", problem.field) };
            format!("{}{line}:{object}{field}: {}", problem.origin, problem.reason)
        });
        let detached = status.attachments.iter().filter_map(|attachment| {
            attachment.detail.as_ref().map(|detail| format!("{}: {detail}", attachment.program))
        });
        let pods = status.pods.iter().filter(|pod| pod.state != "waiting").filter_map(|pod| {
            let detail = pod.detail.clone().or_else(|| pod.canary.clone()?.err())?;
            Some(format!("pod {}: {detail}", pod.uid))
        });
        let elsewhere = (!status.attachments.is_empty() && !status.sees_agent).then(|| {
            format!(
                "the agent is in no cgroup below {}: applications see this node's address instead of those of clients \
                 outside, and capture is not tested",
                self.cgroup.display()
            )
        });
        let cni = self.cni_problem.problem().map(|problem| format!("CNI: {problem}"));
        let errors = status.sync_errors.iter().cloned().chain(self.authority_problem()).chain(cni);
        let certificates = self.certificate_problems();
        let source = self.feed.api.as_deref().map(source_problems).unwrap_or_default();
        source
            .into_iter()
            .chain(rejected)
            .chain(errors)
            .chain(certificates)
            .chain(detached)
            .chain(elsewhere)
            .chain(pods)
            .collect()
    }
}

impl AdminData for AgentData {
    async fn status(&self) -> StatusReport {
        let status = self.ask(Request::Status).await;
        let snapshot = self.feed.current.load();
        let notices = self
            .feed
            .reports
            .borrow()
            .notices
            .iter()
            .map(|notice| {
                let field =
                    if notice.field.is_empty() { String::new() } else { format!(" {}", notice.field) };
                format!("{:?}: {}{field}: {}", notice.severity(), notice.object, notice.message)
                    .to_lowercase_first()
            })
            .collect();
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            pid: std::process::id(),
            started: seconds(self.started),
            generation: status.generation,
            services: snapshot.services.len(),
            workloads: snapshot.workloads.len(),
            enrolled: status.pods.iter().filter(|pod| pod.state == "enrolled").count(),
            connections: self.shared.telemetry.metrics().connections(),
            source: source_report(self.feed.api.as_deref()),
            kernel: self.kernel(&status),
            problems: self.problems(&status),
            pods: status.pods.into_iter().map(pod_status).collect(),
            notices,
        }
    }

    async fn check(&self) -> CheckReport {
        let (bpffs, cgroup) = (self.bpffs.clone(), self.cgroup.clone());
        let needs = tokio::task::spawn_blocking(move || needs(&bpffs, &cgroup)).await;
        let status = self.ask(Request::Check).await;
        let mut items = needs.unwrap_or_default();
        items.extend(status.attachments.iter().map(|attachment| CheckItem {
            name: attachment.program.to_owned(),
            purpose: "program in force on the cgroup".to_owned(),
            ok: attachment.attached,
            required: true,
            detail:
                attachment.detail.clone().unwrap_or_else(|| {
                    format!("link {}, program {}", attachment.link_id, attachment.program_id)
                }),
            remedy: "restart meshd; it attaches what is missing".to_owned(),
        }));
        items.push(CheckItem {
            name: "own cgroup".to_owned(),
            purpose: "the agent can test its own capture, and name clients outside".to_owned(),
            ok: status.sees_agent,
            required: false,
            detail: format!("programs serve {}", self.cgroup.display()),
            remedy: "run meshd in a cgroup below the one that it serves".to_owned(),
        });
        items.extend(status.pods.iter().map(pod_check));
        CheckReport { items }
    }

    async fn services(&self) -> Vec<ServiceReport> {
        let (answer, answered) = oneshot::channel();
        let counts = match self.requests.send(Request::Connections(answer)).await {
            Ok(()) => answered.await.unwrap_or_default(),
            Err(_gone) => Vec::new(),
        };
        let snapshot = self.feed.current.load_full();
        service_report::all(&snapshot, &counts, &self.shared.balancers)
    }

    async fn workloads(&self) -> Vec<WorkloadReport> {
        let snapshot = self.feed.current.load_full();
        snapshot.workloads.values().map(|workload| workload_report(workload)).collect()
    }

    async fn certs(&self) -> Vec<CertReport> {
        let problem = self.authority_problem();
        let report = |status| CertReport { authority_problem: problem.clone(), ..cert_report(status) };
        self.shared.certificates.certificates().into_iter().map(report).collect()
    }

    async fn maps(&self, name: Option<String>, limit: usize) -> Result<Vec<MapReport>, QueryError> {
        let maps = self.maps.clone();
        blocking(move || fill::report(&maps, name.as_deref(), limit)).await
    }

    async fn explain(&self, query: ExplainQuery) -> Result<ExplainReport, QueryError> {
        let (maps, snapshot) = (self.maps.clone(), self.feed.current.load_full());
        let (node, shared) = (NodeName::new(self.node.as_str()), Arc::clone(&self.shared));
        let served = move |uid: &_| shared.pod(uid).is_some();
        let reports = Arc::clone(&self.feed.reports.borrow());
        blocking(move || explain::explain(&maps, (&snapshot, &reports), &node, &served, &query)).await
    }

    async fn policies(&self, query: PolicyQuery) -> Result<PoliciesReport, QueryError> {
        let (snapshot, node) = (self.feed.current.load_full(), NodeName::new(self.node.as_str()));
        let reports = Arc::clone(&self.feed.reports.borrow());
        blocking(move || policies::report(&snapshot, &reports, Some(&node), &query)).await
    }

    async fn analysis(&self) -> Result<AnalysisReport, QueryError> {
        let (reports, known) = (Arc::clone(&self.feed.reports.borrow()), self.feed.known.clone());
        blocking(move || Ok(analyze::report(&reports, &known))).await
    }

    async fn cni(&self, request: CniRequest) -> CniAnswer {
        self.cni.answer(request).await
    }

    fn flows(&self) -> &FlowLog {
        self.shared.telemetry.flows()
    }

    fn metrics(&self) -> &Metrics {
        self.shared.telemetry.metrics()
    }

    fn health(&self) -> Result<(), String> {
        if self.requests.is_closed() { Err("the controller has ended".to_owned()) } else { Ok(()) }
    }

    fn node_is_leaving(&self) -> bool {
        self.feed.current.load().node.leaving
    }
}

/// Many system calls, off the runtime's thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, QueryError> + Send + 'static,
) -> Result<T, QueryError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_panic| Err(QueryError::Failed("the answer could not be had".to_owned())))
}

trait LowercaseFirst {
    fn to_lowercase_first(self) -> String;
}

impl LowercaseFirst for String {
    fn to_lowercase_first(mut self) -> String {
        if let Some(first) = self.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        self
    }
}

/// What the kernel must offer, as the check prints it. Needs no agent.
pub fn needs(bpffs: &std::path::Path, cgroup: &std::path::Path) -> Vec<CheckItem> {
    let item = |need: check::Need| CheckItem {
        name: need.name.to_owned(),
        purpose: need.purpose.to_owned(),
        ok: need.found.is_ok(),
        required: true,
        detail: need.found.unwrap_or_else(|missing| missing),
        remedy: need.remedy.to_owned(),
    };
    check::needs(bpffs, cgroup).into_iter().map(item).collect()
}

fn pod_check(pod: &PodState) -> CheckItem {
    let problem = pod.detail.clone().or_else(|| pod.canary.clone()?.err());
    CheckItem {
        name: format!("pod {}", pod.uid),
        purpose: "a connection from inside the pod reaches the agent".to_owned(),
        ok: problem.is_none(),
        // One that waits is not there yet.
        required: pod.state != "waiting",
        detail: problem.unwrap_or_else(|| match pod.canary {
            Some(Ok(())) => "the test connection arrived".to_owned(),
            _ => pod.state.to_owned(),
        }),
        remedy: "see `meshctl status` and the agent's log".to_owned(),
    }
}

fn pod_status(pod: PodState) -> PodStatus {
    let is_listening = pod.state == "enrolled";
    let listeners =
        pod.addresses.iter().filter(|_| is_listening).flat_map(|address| {
            ROLES.map(|role| format!("{} {address}", format!("{role:?}").to_lowercase()))
        });
    PodStatus {
        uid: pod.uid.to_string(),
        state: pod.state.to_owned(),
        since: seconds(pod.since),
        detail: pod.detail,
        netns: pod.netns,
        listeners: listeners.collect(),
        addresses: pod.addresses,
        canary: match pod.canary {
            None => Canary::Pending,
            Some(Ok(())) => Canary::Ok,
            Some(Err(reason)) => Canary::Failed(reason),
        },
        connections: pod.connections as u64,
        mended: pod.mended.as_ref().map(|mend| seconds(mend.when)),
        mend: pod.mended.map(|mend| mend.what),
    }
}

fn workload_report(workload: &Workload) -> WorkloadReport {
    WorkloadReport {
        namespace: workload.namespace.to_string(),
        name: workload.name.to_string(),
        workload: workload.workload_name.to_string(),
        addresses: workload.addresses.clone(),
        node: workload.node.as_ref().map(ToString::to_string),
        identity: workload.identity.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        enrolled: workload.enrolled,
        host_network: workload.host_network,
        mode: workload.mtls.default,
    }
}

fn cert_report(status: CertificateStatus) -> CertReport {
    let certificate = status.certificate.as_deref();
    CertReport {
        identity: status.identity.to_string(),
        serial: certificate.map(|certificate| certificate.serial().to_owned()).unwrap_or_default(),
        not_before: certificate.map(|certificate| seconds(certificate.not_before())),
        not_after: certificate.map(|certificate| seconds(certificate.not_after())),
        renew_at: status.renew_at.map(seconds),
        state: match status.state {
            CertificateState::Pending => "pending",
            CertificateState::Valid => "valid",
            CertificateState::RenewalFailing => "renewal_failing",
            CertificateState::Expiring => "expiring",
            CertificateState::Unavailable => "unavailable",
        }
        .to_owned(),
        error: status.error.map(|error| chain(&error)),
        root_fingerprint: certificate.map(|certificate| certificate.issuer().to_owned()).unwrap_or_default(),
        trusted_roots: certificate
            .map(|certificate| certificate.trusted().current().fingerprints().to_vec())
            .unwrap_or_default(),
        authority_problem: None,
    }
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
