//! The documents as tables.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::table::{Rows, Tone, list, plain, span, yes};
use crate::admin::api::{
    Canary, CertReport, CheckReport, PodStatus, SourceReport, StatusReport, WorkloadReport,
};

/// How much, in which colours, and when it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) wide: bool,
    pub(super) colour: bool,
    /// Seconds since the Unix epoch.
    pub(super) now: u64,
}

impl View {
    fn ago(&self, time: u64) -> String {
        span(self.now.saturating_sub(time))
    }

    /// A moment to come, or past.
    fn until(&self, time: Option<u64>) -> String {
        match time {
            None => String::new(),
            Some(time) if time >= self.now => format!("in {}", span(time - self.now)),
            Some(time) => format!("{} ago", span(self.now - time)),
        }
    }
}

pub(super) fn status(report: &StatusReport, view: View) -> String {
    let mut text = String::new();
    let heartbeat = match report.kernel.heartbeat_age_ms {
        Some(age) => format!("{age} ms ago"),
        None => "never".to_owned(),
    };
    let lines = [
        ("Node", report.node.clone()),
        ("Agent", format!("{}, pid {}, up {}", report.version, report.pid, view.ago(report.started))),
        (
            "Snapshot",
            format!(
                "generation {}: {} services, {} workloads",
                report.generation, report.services, report.workloads
            ),
        ),
        ("Mesh", format!("{} pods enrolled, {} connections", report.enrolled, report.connections)),
        ("Kernel", format!("layout {}, heartbeat {heartbeat}", report.kernel.layout)),
    ];
    let source = source(&report.source, view).map(|source| ("Source", source));
    for (name, value) in lines.into_iter().chain(source) {
        let _ = writeln!(text, "{name:<10}{value}");
    }
    text.push('\n');
    text.push_str(&programs(report, view));
    let is_well = report.source.kinds.iter().all(|kind| kind.state == "synced" || kind.state == "absent");
    if (view.wide || !is_well) && !report.source.kinds.is_empty() {
        text.push('\n');
        text.push_str(&source_kinds(&report.source, view));
    }
    if !report.pods.is_empty() {
        text.push('\n');
        text.push_str(&pods(report, view));
    }
    for (title, notes) in [("Problems", &report.problems), ("Notices", &report.notices)] {
        if !notes.is_empty() {
            let _ = writeln!(text, "\n{title}:");
            for note in notes {
                let _ = writeln!(text, "  {note}");
            }
        }
    }
    text
}

/// Where the objects come from, in a line; `None` where that is not told.
fn source(report: &SourceReport, view: View) -> Option<String> {
    let Some(url) = &report.api_server else {
        return (!report.kind.is_empty()).then(|| report.kind.clone());
    };
    let since = view.ago(report.since);
    if report.connected {
        return Some(format!("API server {url}, connected for {since}"));
    }
    let age = match report.as_of {
        Some(as_of) if report.stored.is_some() => {
            format!("the state KEPT ON DISK is in force, {} old", view.ago(as_of))
        }
        Some(as_of) => format!("state is {} old", view.ago(as_of)),
        None => "not everything is known yet".to_owned(),
    };
    let error = report.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    Some(format!("API server {url}, NOT followed for {since}, {age}{error}"))
}

fn source_kinds(report: &SourceReport, view: View) -> String {
    let mut rows = Rows::new(&["KIND", "STATE", "OBJECTS", "LISTED", "HEARD", "ERROR"], view.colour);
    let ago = |time: Option<u64>| plain(time.map(|time| view.ago(time)).unwrap_or_default());
    for kind in &report.kinds {
        let tone = match kind.state.as_str() {
            "synced" => Tone::Good,
            "failing" => Tone::Bad,
            _ => Tone::Warn,
        };
        rows.add([
            plain(&kind.kind),
            (kind.state.clone(), tone),
            plain(kind.objects.to_string()),
            ago(kind.listed),
            ago(kind.as_of),
            plain(kind.error.as_deref().unwrap_or_default()),
        ]);
    }
    rows.render()
}

fn programs(report: &StatusReport, view: View) -> String {
    let mut rows = Rows::new(&["PROGRAM", "ATTACHED", "ID", "LINK", "CGROUP"], view.colour);
    let id = |id: Option<u32>| plain(id.map(|id| id.to_string()).unwrap_or_default());
    for program in &report.kernel.programs {
        let tone = if program.attached { Tone::Good } else { Tone::Bad };
        rows.add([
            plain(&program.name),
            (yes(program.attached).0, tone),
            id(program.program_id),
            id(program.link_id),
            plain(program.cgroup.as_deref().unwrap_or_default()),
        ]);
    }
    rows.render()
}

fn pods(report: &StatusReport, view: View) -> String {
    let header =
        ["POD", "STATE", "SINCE", "CANARY", "CONNECTIONS", "MENDED", "ADDRESSES", "NETNS", "LISTENERS"];
    let mut rows = Rows::new(if view.wide { &header } else { &header[..7] }, view.colour);
    for pod in &report.pods {
        let state = match &pod.detail {
            Some(detail) => format!("{} ({detail})", pod.state),
            None => pod.state.clone(),
        };
        let tone = match pod.state.as_str() {
            "enrolled" => Tone::Good,
            "failed" => Tone::Bad,
            _ => Tone::Warn,
        };
        let canary = match &pod.canary {
            Canary::Pending => plain("pending"),
            Canary::Ok => ("ok".to_owned(), Tone::Good),
            Canary::Failed(reason) => (format!("failed: {reason}"), Tone::Bad),
        };
        rows.add([
            plain(&pod.uid),
            (state, tone),
            plain(view.ago(pod.since)),
            canary,
            plain(pod.connections),
            mended(pod, view),
            list(&pod.addresses),
            plain(&pod.netns),
            list(&pod.listeners),
        ]);
    }
    rows.render()
}

/// The last mend: when, and what where there is room for it.
fn mended(pod: &PodStatus, view: View) -> (String, Tone) {
    let Some(when) = pod.mended else { return plain("") };
    let ago = format!("{} ago", view.ago(when));
    match &pod.mend {
        Some(what) if view.wide => (format!("{ago}: {what}"), Tone::Warn),
        _ => (ago, Tone::Warn),
    }
}

pub(super) fn check(report: &CheckReport, view: View) -> String {
    let mut rows = Rows::new(&["CHECK", "RESULT", "DETAIL", "NEEDED FOR"], view.colour);
    for item in &report.items {
        let result = match (item.ok, item.required) {
            (true, _) => ("ok".to_owned(), Tone::Good),
            (false, true) => ("FAILED".to_owned(), Tone::Bad),
            (false, false) => ("absent".to_owned(), Tone::Warn),
        };
        rows.add([plain(&item.name), result, plain(&item.detail), plain(&item.purpose)]);
    }
    let mut text = rows.render();
    for item in report.items.iter().filter(|item| !item.ok && !item.remedy.is_empty()) {
        let _ = write!(text, "\n{}: {}", item.name, item.remedy);
    }
    if report.items.iter().any(|item| !item.ok && !item.remedy.is_empty()) {
        text.push('\n');
    }
    text
}

pub(super) const fn mode(mode: crate::model::Mode) -> &'static str {
    match mode {
        crate::model::Mode::Permissive => "PERMISSIVE",
        crate::model::Mode::Strict => "STRICT",
        crate::model::Mode::Disable => "DISABLE",
    }
}

pub(super) fn workloads(reports: &[WorkloadReport], view: View) -> String {
    let header = [
        "NAMESPACE",
        "POD",
        "ADDRESSES",
        "NODE",
        "ENROLLED",
        "MODE",
        "WORKLOAD",
        "SERVICE",
        "REVISION",
        "IDENTITY",
    ];
    let mut rows = Rows::new(if view.wide { &header } else { &header[..6] }, view.colour);
    for workload in reports {
        rows.add([
            plain(&workload.namespace),
            plain(&workload.name),
            list(&workload.addresses),
            plain(workload.node.as_deref().unwrap_or_default()),
            yes(workload.enrolled),
            plain(mode(workload.mode)),
            plain(&workload.workload),
            plain(&workload.canonical_name),
            plain(&workload.canonical_revision),
            plain(&workload.identity),
        ]);
    }
    rows.render()
}

pub(super) fn certs(reports: &[CertReport], view: View) -> String {
    let header = [
        "IDENTITY",
        "STATE",
        "EXPIRES",
        "RENEWED",
        "ROOT",
        "TRUSTS",
        "SERIAL",
        "ISSUED",
        "ROOT SHA-256",
        "ERROR",
    ];
    let mut rows = Rows::new(if view.wide { &header } else { &header[..6] }, view.colour);
    for cert in reports {
        let tone = match cert.state.as_str() {
            "valid" => Tone::Good,
            "expiring" | "unavailable" => Tone::Bad,
            _ => Tone::Warn,
        };
        rows.add([
            plain(&cert.identity),
            (cert.state.clone(), tone),
            plain(view.until(cert.not_after)),
            plain(view.until(cert.renew_at)),
            plain(short(&cert.root_fingerprint)),
            list(cert.trusted_roots.iter().map(|root| short(root)).collect::<Vec<_>>()),
            plain(&cert.serial),
            plain(view.until(cert.not_before)),
            plain(&cert.root_fingerprint),
            plain(cert.error.as_deref().unwrap_or_default()),
        ]);
    }
    let mut text = rows.render();
    if let Some(line) = rotation(reports) {
        let _ = writeln!(text, "\n{line}");
    }
    if let Some(problem) = reports.iter().find_map(|cert| cert.authority_problem.as_ref()) {
        let _ = writeln!(text, "authority: {problem}");
    }
    text
}

/// What of a fingerprint is enough to tell roots apart.
fn short(fingerprint: &str) -> &str {
    fingerprint.get(..12).unwrap_or(fingerprint)
}

/// How far the node has followed a change of roots. The root that signs now is that of the youngest certificate.
fn rotation(reports: &[CertReport]) -> Option<String> {
    let signed = || reports.iter().filter(|cert| !cert.root_fingerprint.is_empty());
    let newest = &signed().max_by_key(|cert| cert.not_before)?.root_fingerprint;
    let roots: BTreeSet<&String> = signed().flat_map(|cert| &cert.trusted_roots).collect();
    let (all, from) = (signed().count(), signed().filter(|cert| cert.root_fingerprint == *newest).count());
    let behind = signed().filter(|cert| cert.trusted_roots.len() < roots.len()).count();
    let newest = short(newest);
    let mut line = match roots.len() {
        0 => return None,
        1 => format!("roots: {newest} is trusted; {from} of {all} certificates are from it"),
        many => format!(
            "rotation: {many} roots trusted; {from} of {all} certificates are from the new one, {newest}"
        ),
    };
    if roots.len() > 1 && from == all {
        line = format!(
            "roots: {} roots trusted; all {all} certificates are from {newest}, which signs now",
            roots.len()
        );
    }
    if behind > 0 {
        let _ = write!(line, "; {behind} of {all} do not trust all of them yet");
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{CheckItem, KernelReport, PodStatus, ProgramStatus};

    const VIEW: View = View { wide: false, colour: false, now: 1_000_000 };

    #[test]
    fn a_status_says_what_does_not_work() {
        let programs = vec![
            ProgramStatus {
                name: "mesh_connect4".to_owned(),
                attached: true,
                program_id: Some(7),
                link_id: Some(8),
                cgroup: Some("/sys/fs/cgroup".to_owned()),
            },
            ProgramStatus { name: "mesh_connect6".to_owned(), ..ProgramStatus::default() },
        ];
        let pod = PodStatus {
            uid: "default/a".to_owned(),
            state: "failed".to_owned(),
            since: VIEW.now - 90,
            detail: Some("no netns".to_owned()),
            canary: Canary::Failed("timed out".to_owned()),
            ..PodStatus::default()
        };
        let report = StatusReport {
            version: "0.1.0".to_owned(),
            node: "n1".to_owned(),
            pid: 42,
            started: VIEW.now - 3700,
            kernel: KernelReport { layout: 1, heartbeat_age_ms: Some(12), programs },
            pods: vec![pod],
            problems: vec!["service x: no such subset".to_owned()],
            ..StatusReport::default()
        };
        let text = status(&report, VIEW);
        for line in [
            "Agent     0.1.0, pid 42, up 1h1m",
            "Kernel    layout 1, heartbeat 12 ms ago",
            "mesh_connect4   yes        7    8      /sys/fs/cgroup",
            "mesh_connect6   no         -    -      -",
            "default/a   failed (no netns)   1m30s   failed: timed out   0             -        -",
            "  service x: no such subset",
        ] {
            assert!(text.lines().any(|each| each == line), "{line:?} not in\n{text}");
        }
    }

    #[test]
    fn a_check_says_what_to_do() {
        let item = |name: &str, ok, required, remedy: &str| CheckItem {
            name: name.to_owned(),
            ok,
            required,
            remedy: remedy.to_owned(),
            detail: "x".to_owned(),
            purpose: "y".to_owned(),
        };
        let report = CheckReport {
            items: vec![
                item("bpf", false, true, "mount bpffs"),
                item("btf", false, false, ""),
                item("v", true, true, ""),
            ],
        };
        let text = check(&report, VIEW);
        assert!(
            text.contains("bpf     FAILED") && text.contains("btf     absent") && text.contains("v       ok"),
            "{text}"
        );
        assert!(text.ends_with("\nbpf: mount bpffs\n"), "{text}");
        assert!(!report.passed());
    }

    #[test]
    fn a_certificate_says_how_long_it_lasts() {
        let report = CertReport {
            identity: "spiffe://a/ns/b/sa/c".to_owned(),
            state: "valid".to_owned(),
            not_after: Some(VIEW.now + 7200),
            renew_at: Some(VIEW.now + 60),
            ..CertReport::default()
        };
        let text = certs(&[report], VIEW);
        assert!(text.contains("spiffe://a/ns/b/sa/c   valid   in 2h0m   in 1m0s"), "{text}");
        assert!(!text.contains("root:") && !text.contains("authority:"), "{text}");
    }

    #[test]
    fn certificates_say_how_far_a_rotation_is() {
        let (old, new) = ("aaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbb");
        let cert = |age: u64, root: &str, trusted: &[&str]| CertReport {
            not_before: Some(VIEW.now - age),
            root_fingerprint: root.to_owned(),
            trusted_roots: trusted.iter().map(|&root| root.to_owned()).collect(),
            ..CertReport::default()
        };
        let cases = [
            (
                vec![cert(9, old, &[old]), cert(8, old, &[old])],
                "roots: aaaaaaaaaaaa is trusted; 2 of 2 certificates are from it",
            ),
            (
                vec![cert(9, old, &[old]), cert(1, old, &[old, new])],
                "roots: 2 roots trusted; all 2 certificates are from aaaaaaaaaaaa, which signs now; 1 of 2 do not trust \
                 all of them yet",
            ),
            (
                vec![cert(9, old, &[old, new]), cert(1, new, &[old, new]), cert(2, new, &[old, new])],
                "rotation: 2 roots trusted; 2 of 3 certificates are from the new one, bbbbbbbbbbbb",
            ),
        ];
        for (certs, line) in cases {
            assert_eq!(rotation(&certs).as_deref(), Some(line));
        }
        let problem = Some("gone".to_owned());
        let text = certs(&[CertReport { authority_problem: problem, ..cert(1, old, &[old]) }], VIEW);
        assert!(text.ends_with("\nauthority: gone\n"), "{text}");
    }
}
