//! What is wrong with the objects, as a table.

use std::fmt::Write as _;

use super::print::View;
use super::table::{Rows, Tone, plain, yes};
use crate::admin::analysis::{AnalysisReport, Finding};
use crate::resources::Severity;

/// The findings, and under them how many there are.
pub(super) fn analyze(report: &AnalysisReport, view: View) -> String {
    let mut text = String::new();
    if !report.findings.is_empty() {
        let header = ["SEVERITY", "WHERE", "OBJECT", "FIELD", "MESSAGE"];
        let wide = ["SEVERITY", "REJECTED", "WHERE", "OBJECT", "FIELD", "MESSAGE"];
        let mut rows = Rows::new(if view.wide { &wide } else { &header }, view.colour);
        for finding in &report.findings {
            let object = finding.object.as_ref().map(ToString::to_string).unwrap_or_default();
            let (severity, place) = (severity(finding.severity), plain(place(finding)));
            let (object, field, message) = (plain(object), plain(&finding.field), plain(&finding.message));
            if view.wide {
                rows.add([severity, yes(finding.rejected), place, object, field, message]);
            } else {
                rows.add([severity, place, object, field, message]);
            }
        }
        text = rows.render();
        let rest = report.total.saturating_sub(report.findings.len());
        if rest > 0 {
            let _infallible = writeln!(text, "({rest} more, counted and not shown)");
        }
        text.push('\n');
    }
    text.push_str(&summary(report));
    text
}

fn severity(severity: Severity) -> (String, Tone) {
    let tone = match severity {
        Severity::Info => Tone::Plain,
        Severity::Warning => Tone::Warn,
        Severity::Error => Tone::Bad,
    };
    (severity.to_string(), tone)
}

/// `FILE:LINE`, as compilers write it.
fn place(finding: &Finding) -> String {
    let file = finding.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    match finding.line {
        Some(line) => format!("{file}:{line}"),
        None => file,
    }
}

fn summary(report: &AnalysisReport) -> String {
    let AnalysisReport { errors, warnings, infos, ignored, .. } = report;
    let mut text = match report.total {
        0 => "nothing to report".to_owned(),
        _ => format!("errors: {errors}, warnings: {warnings}, infos: {infos}"),
    };
    if *ignored > 0 {
        let _infallible = write!(text, "; objects of kinds that are no concern of a mesh: {ignored}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{Kind, ObjectRef};

    const VIEW: View = View { wide: false, colour: false, now: 0 };

    #[test]
    fn findings_are_listed_and_counted() {
        let rejected = Finding {
            severity: Severity::Error,
            rejected: true,
            file: Some("a.yaml".into()),
            line: Some(7),
            object: Some(ObjectRef::new(Kind::Service, "shop", "web")),
            field: "spec.ports[0].port".to_owned(),
            message: "80000 is no port".to_owned(),
        };
        let unreadable = Finding { line: None, object: None, field: String::new(), ..rejected.clone() };
        let noted = Finding { message: "left to DNS".to_owned(), ..Finding::default() };
        let mut report = AnalysisReport::new(vec![rejected, unreadable, noted], 4);
        report.total += 2;
        let text = analyze(&report, VIEW);
        let expected = "\
SEVERITY   WHERE      OBJECT             FIELD                MESSAGE
error      a.yaml     -                  -                    80000 is no port
error      a.yaml:7   Service shop/web   spec.ports[0].port   80000 is no port
info       -          -                  -                    left to DNS
(2 more, counted and not shown)

errors: 2, warnings: 0, infos: 1; objects of kinds that are no concern of a mesh: 4
";
        assert_eq!(text, expected);
        let wide = analyze(&report, View { wide: true, ..VIEW });
        assert!(wide.contains("error      yes        a.yaml:7") && wide.contains("info       no"), "{wide}");
    }

    #[test]
    fn nothing_is_said_so() {
        assert_eq!(analyze(&AnalysisReport::default(), VIEW), "nothing to report\n");
    }
}
