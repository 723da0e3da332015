//! What `status.parents` of a route is to be: this controller's entries anew, those of others as they are.

use serde_json::{Value, json};

use crate::model::{CONTROLLER, ParentState, RouteCondition, RouteState};

/// The entries to write; `None`: they are there already.
///
/// An entry keeps its place, and a condition the time of its last transition while its status stays the same, so that what
/// is written once is not different afterwards.
pub(super) fn to_write(state: &RouteState, now: &str) -> Option<Vec<Value>> {
    let mut wanted: Vec<&ParentState> = state.parents.iter().collect();
    let mut entries = Vec::with_capacity(state.written.len());
    for old in &state.written {
        if old["controllerName"] != CONTROLLER {
            entries.push(old.clone());
        } else if let Some(at) = wanted.iter().position(|parent| parent.parent == old["parentRef"]) {
            entries.push(entry(wanted.remove(at), state.generation, Some(old), now));
        }
    }
    entries.extend(wanted.into_iter().map(|parent| entry(parent, state.generation, None, now)));
    (entries != state.written).then_some(entries)
}

fn entry(parent: &ParentState, generation: i64, old: Option<&Value>, now: &str) -> Value {
    let condition = |kind: &str, condition: &RouteCondition| {
        let status = if condition.holds { "True" } else { "False" };
        let before = old.and_then(|old| old["conditions"].as_array()).into_iter().flatten();
        let mut same = before.filter(|old| old["type"] == kind && old["status"] == status);
        let since = same.next().and_then(|old| old["lastTransitionTime"].as_str()).unwrap_or(now);
        json!({
            "type": kind,
            "status": status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": generation,
            "lastTransitionTime": since,
        })
    };
    json!({
        "parentRef": parent.parent,
        "controllerName": CONTROLLER,
        "conditions": [condition("Accepted", &parent.accepted), condition("ResolvedRefs", &parent.resolved)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-02T03:04:05Z";

    fn state(holds: bool, written: Vec<Value>) -> RouteState {
        let condition = |reason| RouteCondition { holds, reason, message: "it is".to_owned() };
        RouteState {
            api_version: "gateway.networking.k8s.io/v1".into(),
            generation: 7,
            resource_version: Some("1".into()),
            written,
            parents: vec![ParentState {
                parent: json!({"group": "", "kind": "Service", "name": "web"}),
                accepted: condition("Accepted"),
                resolved: condition("ResolvedRefs"),
            }],
        }
    }

    fn foreign() -> Value {
        json!({"controllerName": "example.com/other", "parentRef": {"name": "gate"}, "conditions": [], "more": 1})
    }

    #[test]
    fn what_is_written_is_written_once() {
        let first = to_write(&state(true, Vec::new()), NOW).unwrap();
        assert_eq!(first.len(), 1);
        assert_eq!(first[0]["conditions"][0]["observedGeneration"], 7);
        assert_eq!(first[0]["conditions"][1]["type"], "ResolvedRefs");
        assert_eq!(to_write(&state(true, first), "2027-01-01T00:00:00Z"), None);
    }

    #[test]
    fn the_time_is_that_of_the_transition() {
        let first = to_write(&state(true, Vec::new()), NOW).unwrap();
        let later = "2027-01-01T00:00:00Z";
        let mut changed = state(true, first.clone());
        changed.generation = 8;
        let second = to_write(&changed, later).unwrap();
        assert_eq!(second[0]["conditions"][0]["lastTransitionTime"], NOW);
        assert_eq!(second[0]["conditions"][0]["observedGeneration"], 8);
        let third = to_write(&state(false, first), later).unwrap();
        assert_eq!(third[0]["conditions"][0]["lastTransitionTime"], later);
        assert_eq!(third[0]["conditions"][0]["status"], "False");
    }

    #[test]
    fn entries_of_others_are_theirs() {
        let own = to_write(&state(true, Vec::new()), NOW).unwrap();
        let gone = json!({"controllerName": CONTROLLER, "parentRef": {"name": "old"}, "conditions": []});
        let written = vec![foreign(), gone, own[0].clone(), foreign()];
        let entries = to_write(&state(true, written), NOW).unwrap();
        assert_eq!(entries, [foreign(), own[0].clone(), foreign()]);
        assert_eq!(to_write(&state(true, entries), NOW), None);
        let mut nothing = state(true, vec![own[0].clone(), foreign()]);
        nothing.parents.clear();
        assert_eq!(to_write(&nothing, NOW), Some(vec![foreign()]));
    }
}
