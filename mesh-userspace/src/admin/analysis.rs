//! The document about the objects: what could not be read of them, and what is not carried out as it is written.

use std::cmp::Reverse;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::resources::{ObjectRef, Severity};

/// Findings that are listed at most; the gravest are.
pub const MAX_FINDINGS: usize = 10_000;

/// `GET /v1/analysis`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AnalysisReport {
    /// The gravest first, then by file (those without one last), line, object and field; [`MAX_FINDINGS`] at most.
    pub findings: Vec<Finding>,
    /// How many there are, listed or not.
    pub total: usize,
    /// How many of them are errors.
    pub errors: usize,
    /// How many are warnings.
    pub warnings: usize,
    /// How many are worth knowing and no more.
    pub infos: usize,
    /// Objects of kinds that are no concern of a mesh: nothing was looked for in them.
    pub ignored: usize,
}

/// What is analysed without an agent.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Files and folders of manifests.
    pub files: Vec<PathBuf>,
    /// The objects of the cluster that the kubeconfig names; with files these go on top, and only they are reported about.
    pub cluster: bool,
}

/// One thing to be said about an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Finding {
    /// What kind of finding it is, such as `MESH0101`: docs/analysis.md lists them. It never changes its meaning.
    pub code: String,
    /// How much it matters.
    pub severity: Severity,
    /// Whether it could not be read as it is written: it is not in force, or its last good state is.
    pub rejected: bool,
    /// Its file, where it is read from one.
    pub file: Option<PathBuf>,
    /// The line in it, from 1: of the field, or of what is nearest around it.
    pub line: Option<u32>,
    /// The object, where its name could be read.
    pub object: Option<ObjectRef>,
    /// The field's path, such as `spec.ports[0].port`; empty for the object as a whole.
    pub field: String,
    /// What about it, and why.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl AnalysisReport {
    /// Puts the findings in order and counts them.
    pub fn new(mut findings: Vec<Finding>, ignored: usize) -> Self {
        findings.sort_by(|one, other| one.order().cmp(&other.order()));
        findings.dedup();
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let (errors, warnings, infos) =
            (count(Severity::Error), count(Severity::Warning), count(Severity::Info));
        let total = findings.len();
        findings.truncate(MAX_FINDINGS);
        Self { findings, total, errors, warnings, infos, ignored }
    }

    /// Puts the findings that are listed in order, once their lines are known.
    pub(crate) fn sort(&mut self) {
        self.findings.sort_by(|one, other| one.order().cmp(&other.order()));
    }

    /// Whether one of them is as grave as that, or graver.
    pub const fn has(&self, severity: Severity) -> bool {
        match severity {
            Severity::Error => self.errors > 0,
            Severity::Warning => self.errors + self.warnings > 0,
            Severity::Info => self.total > 0,
        }
    }
}

impl Finding {
    fn order(&self) -> impl Ord {
        let place = (self.file.is_none(), &self.file, self.line);
        (Reverse(self.severity), place, &self.object, &self.field, &self.code, &self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_come_first_and_are_listed() {
        let finding = |severity, file: Option<&str>, line, field: &str| Finding {
            severity,
            file: file.map(PathBuf::from),
            line,
            field: field.to_owned(),
            ..Finding::default()
        };
        let sorted = [
            finding(Severity::Error, Some("a.yaml"), Some(2), "y"),
            finding(Severity::Error, Some("a.yaml"), Some(10), "x"),
            finding(Severity::Error, Some("b.yaml"), Some(1), ""),
            finding(Severity::Error, None, None, ""),
            finding(Severity::Warning, Some("a.yaml"), Some(1), "a"),
            finding(Severity::Warning, Some("a.yaml"), Some(1), "b"),
            finding(Severity::Info, Some("a.yaml"), Some(1), ""),
        ];
        let report = AnalysisReport::new(sorted.iter().rev().cloned().collect(), 3);
        assert_eq!(report.findings, sorted);
        assert_eq!((report.total, report.errors, report.warnings, report.infos), (7, 4, 2, 1));

        let many: Vec<Finding> =
            (0..MAX_FINDINGS + 5).map(|n| Finding { message: n.to_string(), ..Finding::default() }).collect();
        let report = AnalysisReport::new(many.into_iter().chain([sorted[0].clone()]).collect(), 0);
        assert_eq!((report.findings.len(), report.total), (MAX_FINDINGS, MAX_FINDINGS + 6));
        assert_eq!(report.findings[0], sorted[0]);
    }

    #[test]
    fn how_grave_it_is() {
        use Severity::{Error, Info, Warning};
        let cases: [(&[Severity], [bool; 3]); 4] = [
            (&[], [false, false, false]),
            (&[Info], [true, false, false]),
            (&[Info, Warning], [true, true, false]),
            (&[Error], [true, true, true]),
        ];
        for (found, expected) in cases {
            let finding = |&severity: &Severity| Finding { severity, ..Finding::default() };
            let report = AnalysisReport::new(found.iter().map(finding).collect(), 0);
            assert_eq!([Info, Warning, Error].map(|severity| report.has(severity)), expected, "{found:?}");
        }
    }
}
