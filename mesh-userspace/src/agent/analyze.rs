//! What is wrong with the objects and what of them is not carried out, in one list.

use std::path::{Path, PathBuf};

use super::chain;
use crate::admin::analysis::{AnalysisReport, Finding};
use crate::admin::plane::QueryError;
use crate::model::MeshConfig;
use crate::resources::{Notice, Problem, Severity};
use crate::source::{self, Places, Reports};

/// Of manifests alone, as an agent that starts with them would read them. Blocks on the disk.
pub fn analyze_manifests(paths: &[PathBuf], mesh: MeshConfig) -> Result<AnalysisReport, QueryError> {
    let (reports, places) =
        source::reports_once(paths, mesh).map_err(|error| QueryError::Failed(chain(&error)))?;
    Ok(report(&reports, &places))
}

/// Of what was read already.
pub(super) fn report(reports: &Reports, places: &Places) -> AnalysisReport {
    let rejected = reports.problems.iter().map(rejected);
    let notices = reports.notices.iter().map(|notice| found(notice, places));
    AnalysisReport::new(rejected.chain(notices).collect(), reports.ignored)
}

fn rejected(problem: &Problem) -> Finding {
    Finding {
        severity: Severity::Error,
        rejected: true,
        file: problem.origin.file().map(Path::to_owned),
        line: problem.line,
        object: problem.object.clone(),
        field: problem.field.clone(),
        message: problem.reason.clone(),
    }
}

fn found(notice: &Notice, places: &Places) -> Finding {
    let (file, line) = places.get(&notice.object).cloned().unzip();
    Finding {
        severity: notice.severity,
        rejected: false,
        file,
        line,
        object: Some(notice.object.clone()),
        field: notice.field.clone(),
        message: notice.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const MISTAKES: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http: [{timeout: 5s, route: [{destination: {host: web}}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  ports: [{port: 80000}]
---
{apiVersion: v1, kind: Service, metadata: {name: out, namespace: shop}, spec: {type: ExternalName, externalName: a.b}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec: {action: CUSTOM, rules: [{}]}
";

    #[test]
    fn mistakes_in_their_order_with_their_places() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("a.yaml"), MISTAKES).unwrap();
        let report = analyze_manifests(&[folder.path().to_owned()], MeshConfig::default()).unwrap();
        let told = report.findings.iter().map(|finding| {
            let file = finding.file.as_deref().and_then(Path::file_name).unwrap().display();
            let Finding { severity, rejected, field, .. } = finding;
            let (line, object) = (finding.line.unwrap(), finding.object.as_ref().unwrap());
            format!("{severity} {rejected} {file}:{line} {object} {field}")
        });
        let expected = [
            "error true a.yaml:14 Service shop/web spec.ports[0].port",
            "error false a.yaml:20 AuthorizationPolicy shop/web spec.action",
            "warning false a.yaml:2 VirtualService shop/web spec.hosts",
            "warning false a.yaml:2 VirtualService shop/web spec.http[0].timeout",
            "info false a.yaml:16 Service shop/out spec.type",
        ];
        assert_eq!(told.collect::<Vec<_>>(), expected, "{report:#?}");
        assert_eq!((report.total, report.errors, report.ignored), (5, 2, 1));
    }

    #[test]
    fn an_agent_knows_the_files_of_what_is_rejected() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("a.yaml"), MISTAKES).unwrap();
        let (_, reports) = source::read_once(&[folder.path().to_owned()], MeshConfig::default()).unwrap();
        for finding in report(&reports, &Places::new()).findings {
            assert_eq!(finding.file.is_some(), finding.rejected, "{finding:?}");
        }
    }

    #[test]
    fn nothing_is_wrong_with_the_demo() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
        let variants = ["enrol", "permissive", "reviews-90-10", "reviews-v1", "details-viewer-dry-run"];
        let files = fs::read_dir(&demo).unwrap().map(|entry| entry.unwrap().path());
        let paths: Vec<PathBuf> =
            files.filter(|path| !variants.iter().any(|name| path.file_stem().unwrap() == *name)).collect();
        assert!(paths.len() >= 8, "{paths:?}");
        let report = analyze_manifests(&paths, MeshConfig::default()).unwrap();
        assert!(!report.has(Severity::Warning), "{report:#?}");
    }

    #[test]
    fn a_path_that_is_not_there_is_named() {
        let failure = analyze_manifests(&["/nowhere/a.yaml".into()], MeshConfig::default()).unwrap_err();
        let message = failure.to_string();
        assert!(message.starts_with("cannot read /nowhere/a.yaml: No such file"), "{message}");
    }
}
