//! The agent before it knows its first state: the API server is away, or slow.
//!
//! Nothing is loaded, attached or written: what an earlier agent left in the kernel stays in force as it is, and services go
//! on. Whoever asks is told what is waited for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::report::{needs, seconds};
use super::source_report::source_report;
use crate::admin::AdminData;
use crate::admin::analysis::AnalysisReport;
use crate::admin::api::{CertReport, CheckItem, CheckReport, ServiceReport, StatusReport, WorkloadReport};
use crate::admin::explain::{ExplainQuery, ExplainReport};
use crate::admin::plane::{MapReport, QueryError};
use crate::admin::policy::{PoliciesReport, PolicyQuery};
use crate::source::ApiState;
use crate::telemetry::{FlowLog, Metrics};

/// See the module.
pub(super) struct Waiting {
    node: String,
    started: SystemTime,
    bpffs: PathBuf,
    cgroup: PathBuf,
    api: Arc<ApiState>,
    metrics: Metrics,
    flows: FlowLog,
}

impl Waiting {
    pub(super) fn new(node: String, bpffs: PathBuf, cgroup: PathBuf, api: Arc<ApiState>) -> Self {
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
        let of_metrics = Arc::clone(&api);
        metrics.on_scrape(move |metrics| metrics.set_source(&of_metrics.status()));
        let (started, flows) = (SystemTime::now(), FlowLog::default());
        Self { node, started, bpffs, cgroup, api, metrics, flows }
    }

    fn reason(&self) -> String {
        let waits_for = self.api.waits_for().join(", ");
        format!(
            "the agent waits for the API server: {waits_for}; what is in the kernel stays in force until then"
        )
    }

    fn refuse<T>(&self) -> Result<T, QueryError> {
        Err(QueryError::Failed(self.reason()))
    }
}

impl AdminData for Waiting {
    async fn status(&self) -> StatusReport {
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            pid: std::process::id(),
            started: seconds(self.started),
            source: source_report(Some(&self.api)),
            problems: vec![self.reason()],
            ..StatusReport::default()
        }
    }

    async fn check(&self) -> CheckReport {
        let (bpffs, cgroup) = (self.bpffs.clone(), self.cgroup.clone());
        let needs = tokio::task::spawn_blocking(move || needs(&bpffs, &cgroup)).await;
        let mut items = needs.unwrap_or_default();
        items.push(CheckItem {
            name: "API server".to_owned(),
            purpose: "what is to be in force is known".to_owned(),
            ok: false,
            required: true,
            detail: self.reason(),
            remedy: "see that this node reaches the API server, and the agent's ClusterRole".to_owned(),
        });
        CheckReport { items }
    }

    async fn services(&self) -> Vec<ServiceReport> {
        Vec::new()
    }

    async fn workloads(&self) -> Vec<WorkloadReport> {
        Vec::new()
    }

    async fn certs(&self) -> Vec<CertReport> {
        Vec::new()
    }

    async fn maps(&self, _name: Option<String>, _limit: usize) -> Result<Vec<MapReport>, QueryError> {
        self.refuse()
    }

    async fn explain(&self, _query: ExplainQuery) -> Result<ExplainReport, QueryError> {
        self.refuse()
    }

    async fn policies(&self, _query: PolicyQuery) -> Result<PoliciesReport, QueryError> {
        self.refuse()
    }

    async fn analysis(&self) -> Result<AnalysisReport, QueryError> {
        self.refuse()
    }

    fn flows(&self) -> &FlowLog {
        &self.flows
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn health(&self) -> Result<(), String> {
        Err(self.reason())
    }

    fn node_is_leaving(&self) -> bool {
        false
    }

    fn waits_for(&self) -> Option<String> {
        Some(self.reason())
    }
}
