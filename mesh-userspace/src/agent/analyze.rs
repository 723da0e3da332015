//! What is wrong with the objects and what of them is not carried out, in one list.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::chain;
use crate::admin::analysis::{AnalysisReport, Finding, Scope};
use crate::admin::plane::QueryError;
use crate::kubernetes::{self, Listed};
use crate::model::MeshConfig;
use crate::resources::{Code, Kind, Lines, MAX_TEXT, Mistake, Notice, ObjectRef, Problem, analyse};
use crate::source::{self, Known, Reports};

/// Without an agent: of manifests, of the cluster's objects, or of manifests on top of these. What an agent that began with
/// them would make of them.
///
/// # Errors
/// A path cannot be read, or there is no cluster to ask.
pub async fn analyze(scope: Scope, mesh: MeshConfig) -> Result<AnalysisReport, QueryError> {
    let listed = if scope.cluster {
        kubernetes::list_all().await.map_err(|error| QueryError::Failed(chain(&error)))?
    } else {
        Listed::default()
    };
    super::report::blocking(move || on_top(&scope, mesh, listed)).await
}

/// Blocks on the disk.
fn on_top(scope: &Scope, mesh: MeshConfig, listed: Listed) -> Result<AnalysisReport, QueryError> {
    let Listed { changes, mistakes, unlisted } = listed;
    let (_, reports, known) =
        source::known_once(&scope.files, mesh, changes).map_err(|error| QueryError::Failed(chain(&error)))?;
    let mut findings = findings(&reports, &known);
    if scope.cluster && !scope.files.is_empty() {
        // What stands in the cluster already is not what was asked about.
        findings.retain(|finding| finding.file.is_some());
    } else {
        findings.extend(mistakes.iter().map(of_mistake));
    }
    findings.extend(unlisted.into_iter().map(|(kind, reason)| {
        let object = ObjectRef::new(Kind::from(kind), "", "*");
        of_notice(&Notice::new(Code::Unlisted, &object, "", reason), None)
    }));
    Ok(finish(findings, reports.ignored))
}

/// Of what an agent has read.
pub(super) fn report(reports: &Reports, known: &Known) -> AnalysisReport {
    finish(findings(reports, known), reports.ignored)
}

/// What could not be read, what the translator has to say, and what is wrong between the objects.
fn findings(reports: &Reports, known: &Known) -> Vec<Finding> {
    let (objects, snapshot, notices) = known.all();
    let rejected = reports.problems.iter().map(rejected);
    let between = analyse(&snapshot, &objects);
    let notices = notices.iter().chain(&between).map(|notice| of_notice(notice, known.place(&notice.object)));
    rejected.chain(notices).collect()
}

fn rejected(problem: &Problem) -> Finding {
    Finding {
        rejected: true,
        file: problem.origin.file().map(Path::to_owned),
        line: problem.line,
        object: problem.object.clone(),
        ..finding(problem.code, &problem.field, &problem.reason)
    }
}

/// Of an object in the cluster, which has no lines.
fn of_mistake(mistake: &Mistake) -> Finding {
    let Mistake { code, object, field, reason, .. } = mistake;
    Finding { rejected: true, object: object.clone(), ..finding(*code, field, reason) }
}

fn of_notice(notice: &Notice, place: Option<(PathBuf, u32)>) -> Finding {
    let (file, line) = place.unzip();
    let object = Some(notice.object.clone());
    Finding { file, line, object, ..finding(notice.code, &notice.field, &notice.message) }
}

fn finding(code: Code, field: &str, message: &str) -> Finding {
    Finding {
        code: code.to_string(),
        severity: code.severity(),
        field: field.to_owned(),
        message: message.to_owned(),
        remedy: code.remedy().to_owned(),
        ..Finding::default()
    }
}

/// Puts them in order and finds the fields' lines of those that are listed.
fn finish(findings: Vec<Finding>, ignored: usize) -> AnalysisReport {
    let mut report = AnalysisReport::new(findings, ignored);
    let mut by_file: HashMap<PathBuf, Vec<&mut Finding>> = HashMap::new();
    let of_fields =
        report.findings.iter_mut().filter(|finding| !finding.rejected && !finding.field.is_empty());
    for finding in of_fields {
        if let Some(file) = finding.file.clone() {
            by_file.entry(file).or_default().push(finding);
        }
    }
    for (file, findings) in by_file {
        // A file that went is none that has a better line.
        let Ok(text) = text(&file) else { continue };
        let mut lines = Lines::new(&text);
        for finding in findings {
            if let (Some(object), Some(line)) = (&finding.object, finding.line) {
                finding.line = lines.of_field(object, line, &finding.field).or(finding.line);
            }
        }
    }
    report.sort();
    report
}

fn text(file: &Path) -> io::Result<String> {
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = String::new();
    File::open(file)?.take(MAX_TEXT as u64).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::sync::Arc;

    use tempfile::TempDir;

    use super::*;
    use crate::resources::{Change, Severity, decode};

    fn of_files(files: &[PathBuf]) -> Result<AnalysisReport, QueryError> {
        let scope = Scope { files: files.to_vec(), cluster: false };
        on_top(&scope, MeshConfig::default(), Listed::default())
    }

    const MISTAKES: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http: [{corsPolicy: {}, route: [{destination: {host: web}}]}]
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
        let report = of_files(&[folder.path().to_owned()]).unwrap();
        let told = report.findings.iter().map(|finding| {
            let file = finding.file.as_deref().and_then(Path::file_name).unwrap().display();
            let Finding { code, severity, rejected, field, .. } = finding;
            let (line, object) = (finding.line.unwrap(), finding.object.as_ref().unwrap());
            format!("{code} {severity} {rejected} {file}:{line} {object} {field}")
        });
        let expected = [
            "MESH0003 error true a.yaml:14 Service shop/web spec.ports[0].port",
            "MESH0502 error false a.yaml:23 AuthorizationPolicy shop/web spec.action",
            "MESH0101 warning false a.yaml:6 VirtualService shop/web spec.hosts",
            "MESH0109 warning false a.yaml:7 VirtualService shop/web spec.http[0].corsPolicy",
            "MESH0306 info false a.yaml:16 Service shop/out spec.type",
        ];
        assert_eq!(told.collect::<Vec<_>>(), expected, "{report:#?}");
        assert_eq!((report.total, report.errors, report.ignored), (5, 2, 1));
    }

    fn examples() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/analysis")
    }

    fn codes_of(text: &str) -> BTreeSet<String> {
        let folder = TempDir::new().unwrap();
        let example = folder.path().join("example.yaml");
        fs::write(&example, text).unwrap();
        let report = of_files(&[examples().join("world.yaml"), example]).unwrap();
        for finding in &report.findings {
            assert!(
                finding.line.is_some() && !finding.message.is_empty() && !finding.remedy.is_empty(),
                "{finding:?}"
            );
        }
        report.findings.into_iter().map(|finding| finding.code).collect()
    }

    /// One file a code. Its first line may name codes that cannot but come with it.
    #[test]
    fn each_code_has_an_example_that_can_be_mended() {
        // A file that cannot be read, and a cluster that may not be listed.
        let elsewhere = [Code::Unreadable, Code::Unlisted];
        for code in Code::ALL.iter().filter(|code| !elsewhere.contains(code)) {
            let text = fs::read_to_string(examples().join(format!("{code}.yaml"))).unwrap();
            let (wrong, mended) = text.split_once("# mended\n").unwrap();
            let also = wrong.lines().next().unwrap().split(' ').filter(|word| word.starts_with("MESH"));
            let expected: BTreeSet<String> = also.map(str::to_owned).chain([code.to_string()]).collect();
            assert_eq!(codes_of(wrong), expected, "{code}");
            assert_eq!(codes_of(mended), BTreeSet::new(), "{code}, mended");
        }
    }

    #[test]
    fn a_file_that_is_no_text() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("a.yaml"), [0xff]).unwrap();
        let report = of_files(&[folder.path().to_owned()]).unwrap();
        assert_eq!(report.findings.len(), 1, "{report:#?}");
        assert_eq!((report.findings[0].code.as_str(), report.findings[0].line), ("MESH0001", None));
    }

    /// Files stand on top of the cluster's objects: what only these are blamed for is not told.
    #[test]
    fn files_on_top_of_a_cluster() {
        let text = |name: &str| fs::read_to_string(examples().join(name)).unwrap();
        let decoded = decode(&format!(
            "{}---\n{}",
            text("world.yaml"),
            text("MESH0311.yaml").split_once("# mended").unwrap().0
        ));
        let listed = || Listed {
            changes: decoded.objects.iter().map(|item| Change::Upsert(Arc::clone(&item.object))).collect(),
            unlisted: [("Node".to_owned(), "nodes is forbidden".to_owned())].into(),
            ..Listed::default()
        };
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("a.yaml");
        let told = |files: &[PathBuf]| {
            let scope = Scope { files: files.to_vec(), cluster: true };
            let report = on_top(&scope, MeshConfig::default(), listed()).unwrap();
            report.findings.into_iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert_eq!(told(&[]), ["MESH0007", "MESH0311"]);
        // The host is one of the cluster's.
        fs::write(&file, text("MESH0101.yaml").split_once("# mended").unwrap().1).unwrap();
        assert_eq!(told(std::slice::from_ref(&file)), ["MESH0007"]);
        fs::write(&file, text("MESH0101.yaml").split_once("# mended").unwrap().0).unwrap();
        assert_eq!(told(std::slice::from_ref(&file)), ["MESH0101", "MESH0007"]);
        // The file's Service takes the place of the cluster's, which was at fault.
        fs::write(&file, text("MESH0311.yaml").split_once("# mended").unwrap().1).unwrap();
        assert_eq!(told(std::slice::from_ref(&file)), ["MESH0007"]);
    }

    #[test]
    fn nothing_is_wrong_with_the_demo() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
        let variants = [
            "enrol",
            "permissive",
            "reviews-90-10",
            "reviews-v1",
            "reviews-mirror-v3",
            "reviews-one-connection",
            "details-viewer-dry-run",
        ];
        let files = fs::read_dir(&demo).unwrap().map(|entry| entry.unwrap().path());
        let paths: Vec<PathBuf> =
            files.filter(|path| !variants.iter().any(|name| path.file_stem().unwrap() == *name)).collect();
        assert!(paths.len() >= 8, "{paths:?}");
        let report = of_files(&paths).unwrap();
        // Its pods are enrolled by a later step.
        let grave = |finding: &&Finding| finding.severity >= Severity::Warning && finding.code != "MESH0515";
        assert_eq!(report.findings.iter().find(grave), None);
    }

    #[test]
    fn a_path_that_is_not_there_is_named() {
        let failure = of_files(&["/nowhere/a.yaml".into()]).unwrap_err();
        let message = failure.to_string();
        assert!(message.starts_with("cannot read /nowhere/a.yaml: No such file"), "{message}");
    }
}
