//! What the agent tells of its source.

use std::time::SystemTime;

use super::report::seconds;
use crate::admin::api::{SourceKindReport, SourceReport};
use crate::source::{ApiState, KindStatus, Phase};

/// How it stands with the source; `None`: manifests, which are simply there.
pub(super) fn source_report(api: Option<&ApiState>) -> SourceReport {
    let Some(api) = api else {
        return SourceReport { kind: "manifests".to_owned(), connected: true, ..SourceReport::default() };
    };
    let status = api.status();
    SourceReport {
        kind: "kubernetes".to_owned(),
        api_server: Some(status.url),
        connected: status.connected,
        since: seconds(status.since),
        error: status.error,
        as_of: status.as_of.map(seconds),
        kinds: status.kinds.into_iter().map(kind_report).collect(),
    }
}

fn kind_report(kind: KindStatus) -> SourceKindReport {
    let state = match (kind.phase, &kind.error) {
        (_, Some(_)) => "failing",
        (Phase::Waiting, None) => "waiting",
        (Phase::Synced, None) => "synced",
        (Phase::Absent, None) => "absent",
    };
    SourceKindReport {
        kind: kind.label.to_owned(),
        state: state.to_owned(),
        objects: kind.objects,
        listed: kind.listed.map(seconds),
        as_of: kind.heard.map(seconds),
        failing_since: kind.failing_since.map(seconds),
        error: kind.error,
    }
}

/// What an operator should know of a source that cannot be followed; `None` while all is well.
pub(super) fn source_problem(api: &ApiState) -> Option<String> {
    let status = api.status();
    let error = status.error?;
    let ago = |time: SystemTime| {
        let age = SystemTime::now().duration_since(time).unwrap_or_default().as_secs();
        format!("{age} s old")
    };
    let age = status.as_of.map_or_else(|| "not known yet".to_owned(), ago);
    let failing: Vec<&str> =
        status.kinds.iter().filter(|kind| kind.error.is_some()).map(|kind| kind.label).collect();
    let what = if failing.len() == status.kinds.len() { "everything".to_owned() } else { failing.join(", ") };
    Some(format!("{}: {error}; the last state stays in force, it is {age} ({what})", status.url))
}
