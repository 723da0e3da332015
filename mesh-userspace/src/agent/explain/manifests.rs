//! The same without an agent and without a kernel: from manifests alone, as the node's agent would read them.

use std::path::PathBuf;

use super::of_maps;
use crate::admin::explain::{ExplainQuery, ExplainReport};
use crate::admin::plane::QueryError;
use crate::datapath::Foreseen;
use crate::model::{MeshConfig, NodeName, Snapshot};
use crate::source;

/// Explains one connection on `mesh.node`, or on the client's own where that is not given. Blocks on the disk.
pub fn explain(
    paths: &[PathBuf],
    mesh: MeshConfig,
    query: &ExplainQuery,
) -> Result<ExplainReport, QueryError> {
    let read = |mesh: MeshConfig| {
        source::read_once(paths, mesh).map_err(|error| QueryError::Failed(super::chain(&error)))
    };
    let mut mesh = mesh;
    if mesh.node.is_none() {
        let (snapshot, _) = read(mesh.clone())?;
        mesh.node = node_of(&query.from, &snapshot);
    }
    let (snapshot, reports) = read(mesh)?;
    let node = snapshot.mesh.node.clone().unwrap_or_else(|| NodeName::new("(no node)"));
    let served = |uid: &_| {
        let workload = snapshot.workloads.get(uid);
        workload.is_some_and(|workload| workload.enrolled && workload.is_on(&node))
    };
    let mut report = of_maps(&Foreseen::new(&snapshot), &snapshot, &node, &served, query)?;
    super::note_policies(&mut report, &reports);
    report.problems = reports.problems.iter().map(ToString::to_string).collect();
    Ok(report)
}

/// The node of the pod that connects.
fn node_of(from: &str, snapshot: &Snapshot) -> Option<NodeName> {
    let workload = match from.parse() {
        Ok(address) => snapshot.workload_at(address),
        Err(_no_address) => super::client::pod_called(from, snapshot).ok(),
    };
    workload?.node.clone()
}
