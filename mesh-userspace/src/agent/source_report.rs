//! What the agent tells of its source.

use std::time::SystemTime;

use super::report::seconds;
use crate::admin::api::{SourceKindReport, SourceReport};
use crate::source::{ApiState, ApiStatus, KindStatus, Phase};

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
        stored: status.stored.map(seconds),
        kept: status.kept.as_of.map(seconds),
        keep_error: status.kept.error,
        kinds: status.kinds.into_iter().map(kind_report).collect(),
    }
}

fn kind_report(kind: KindStatus) -> SourceKindReport {
    let state = match (kind.phase, &kind.error) {
        (_, Some(_)) => "failing",
        (Phase::Waiting, None) => "waiting",
        (Phase::Synced, None) => "synced",
        (Phase::Absent, None) => "absent",
        (Phase::Stored, None) => "stored",
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

/// What an operator should know of a source that cannot be followed, or kept; nothing while all is well.
pub(super) fn source_problems(api: &ApiState) -> Vec<String> {
    let status = api.status();
    let kept = status.kept.error.as_ref().map(|error| {
        format!("the state of the mesh cannot be kept on disk ({error}): an agent that starts while the API server is away would have none")
    });
    followed_problem(status).into_iter().chain(kept).collect()
}

fn followed_problem(status: ApiStatus) -> Option<String> {
    let error = match (status.error, status.stored) {
        (Some(error), _) => error,
        (None, Some(_)) => "the API server has not told everything yet".to_owned(),
        (None, None) => return None,
    };
    let ago = |time: SystemTime| {
        let age = SystemTime::now().duration_since(time).unwrap_or_default().as_secs();
        format!("{age} s old")
    };
    let age = status.as_of.map_or_else(|| "not known yet".to_owned(), ago);
    let is_failing = |kind: &&KindStatus| kind.error.is_some() || kind.phase == Phase::Stored;
    let failing: Vec<&str> = status.kinds.iter().filter(is_failing).map(|kind| kind.label).collect();
    let what = if failing.len() == status.kinds.len() { "everything".to_owned() } else { failing.join(", ") };
    let state = if status.stored.is_some() { "the state kept on disk is" } else { "the last state stays" };
    Some(format!("{}: {error}; {state} in force, it is {age} ({what})", status.url))
}
