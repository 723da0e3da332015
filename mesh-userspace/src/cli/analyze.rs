//! What is wrong with the objects, one kind of finding after the other.

use std::fmt::Write as _;

use serde::Serialize;

use super::print::View;
use super::table::{Rows, Tone, plain};
use crate::admin::analysis::{AnalysisReport, Finding};
use crate::resources::{Code, Severity};

/// The findings, the gravest first and those of one code together, and under them how many there are.
pub(super) fn analyze(report: &AnalysisReport, view: View) -> String {
    let mut text = String::new();
    for group in groups(report) {
        write_group(&mut text, &group, view);
        text.push('\n');
    }
    let rest = report.total.saturating_sub(report.findings.len());
    if rest > 0 {
        let _infallible = writeln!(text, "({rest} more, counted and not shown)\n");
    }
    text.push_str(&summary(report));
    text
}

/// Findings of one code, in the order in which their codes come up.
fn groups(report: &AnalysisReport) -> Vec<Vec<&Finding>> {
    let mut groups: Vec<Vec<&Finding>> = Vec::new();
    for finding in &report.findings {
        let same = |group: &&mut Vec<&Finding>| {
            let first = group.first();
            first.is_some_and(|first| (&first.code, first.severity) == (&finding.code, finding.severity))
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(finding),
            None => groups.push(vec![finding]),
        }
    }
    groups
}

fn write_group(text: &mut String, group: &[&Finding], view: View) {
    let Some(first) = group.first() else { return };
    let severity = coloured(first.severity, view);
    // An agent of another version may know codes that this program does not.
    let title = Code::ALL.iter().find(|code| code.as_str() == first.code).map_or("", |code| code.title());
    let code = if first.code.is_empty() { "-" } else { &first.code };
    let _infallible = writeln!(text, "{severity} {code}: {title}");
    for finding in group {
        let parts = [place(finding), object(finding), finding.field.clone()];
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let rejected = if view.wide && finding.rejected { " (rejected)" } else { "" };
        let _infallible = writeln!(text, "  {}{rejected}\n      {}", parts.join(": "), finding.message);
    }
    if !first.remedy.is_empty() {
        let _infallible = writeln!(text, "  what to do: {}", first.remedy);
    }
}

fn object(finding: &Finding) -> String {
    finding.object.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn coloured(severity: Severity, view: View) -> String {
    let colour = match severity {
        Severity::Info => "36",
        Severity::Warning => "33",
        Severity::Error => "31",
    };
    if view.colour { format!("\x1b[1;{colour}m{severity}\x1b[0m") } else { severity.to_string() }
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

/// A code as `--codes` lists it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct CodeLine {
    code: Code,
    severity: Severity,
    title: &'static str,
    remedy: &'static str,
}

/// All codes.
pub(super) fn codes() -> Vec<CodeLine> {
    let line = |&code: &Code| CodeLine {
        code,
        severity: code.severity(),
        title: code.title(),
        remedy: code.remedy(),
    };
    Code::ALL.iter().map(line).collect()
}

/// The same as a table; what to do stands in the wide one.
pub(super) fn code_table(codes: &[CodeLine], view: View) -> String {
    let header = ["CODE", "SEVERITY", "WHAT", "WHAT TO DO"];
    let mut rows = Rows::new(if view.wide { &header } else { &header[..3] }, view.colour);
    for line in codes {
        let tone = match line.severity {
            Severity::Info => Tone::Plain,
            Severity::Warning => Tone::Warn,
            Severity::Error => Tone::Bad,
        };
        rows.add([
            plain(line.code),
            (line.severity.to_string(), tone),
            plain(line.title),
            plain(line.remedy),
        ]);
    }
    rows.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{Kind, ObjectRef};

    const VIEW: View = View { wide: false, colour: false, now: 0 };

    #[test]
    fn findings_are_grouped_and_counted() {
        let rejected = Finding {
            code: "MESH0003".to_owned(),
            severity: Severity::Error,
            rejected: true,
            file: Some("a.yaml".into()),
            line: Some(7),
            object: Some(ObjectRef::new(Kind::Service, "shop", "web")),
            field: "spec.ports[0].port".to_owned(),
            message: "80000 is no port".to_owned(),
            remedy: "write it otherwise".to_owned(),
        };
        let unreadable = Finding { line: None, object: None, field: String::new(), ..rejected.clone() };
        let noted = Finding {
            code: "MESH9999".to_owned(),
            message: "of a later version".to_owned(),
            ..Finding::default()
        };
        let mut report = AnalysisReport::new(vec![rejected, unreadable, noted], 4);
        report.total += 2;
        let text = analyze(&report, VIEW);
        let expected = "\
error MESH0003: A field cannot be what it is: the object is rejected
  a.yaml
      80000 is no port
  a.yaml:7: Service shop/web: spec.ports[0].port
      80000 is no port
  what to do: write it otherwise

info MESH9999: \n  \n      of a later version

(2 more, counted and not shown)

errors: 2, warnings: 0, infos: 1; objects of kinds that are no concern of a mesh: 4
";
        assert_eq!(text, expected);
        let wide = analyze(&report, View { wide: true, ..VIEW });
        assert!(wide.contains("  a.yaml (rejected)\n"), "{wide}");
        let colourful = analyze(&report, View { colour: true, ..VIEW });
        assert!(colourful.contains("\x1b[1;31merror\x1b[0m MESH0003"), "{colourful}");
    }

    #[test]
    fn nothing_is_said_so() {
        assert_eq!(analyze(&AnalysisReport::default(), VIEW), "nothing to report\n");
    }
}
