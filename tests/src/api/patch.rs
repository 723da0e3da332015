//! The kinds of patch.

use json_patch::Patch as JsonPatch;
use serde_json::{Map, Value};

use super::failure::Failure;
use super::ownership::keys;
use super::write::At;

/// What a client sends to change an object.
pub(super) enum Patch {
    /// RFC 6902.
    Json(JsonPatch),
    /// RFC 7386.
    Merge(Value),
    /// As `Merge`, except that lists of keyed elements are merged element by element.
    Strategic(Value),
    /// Server-side apply.
    Apply(Value),
}

impl Patch {
    /// By its `Content-Type`.
    pub(super) fn parse(content_type: &str, body: &[u8]) -> Result<Self, Failure> {
        let json = || -> Result<Value, Failure> {
            serde_json::from_slice(body)
                .map_err(|error| Failure::bad_request(format!("error decoding patch: {error}")))
        };
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => serde_json::from_slice(body)
                .map(Self::Json)
                .map_err(|error| Failure::bad_request(format!("error decoding patch: {error}"))),
            "application/merge-patch+json" => json().map(Self::Merge),
            "application/strategic-merge-patch+json" => json().map(Self::Strategic),
            // JSON is YAML.
            "application/apply-patch+yaml" => serde_yaml_ng::from_slice(body)
                .map(Self::Apply)
                .map_err(|error| Failure::bad_request(format!("error decoding YAML: {error}"))),
            other => Err(Failure::new(
                http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UnsupportedMediaType",
                format!(
                    "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml (it was {other})"
                ),
            )),
        }
    }
}

/// Changes an object by a patch that is no apply.
pub(super) fn change(value: &mut Value, patch: &Patch, at: At<'_>) -> Result<(), Failure> {
    match patch {
        Patch::Json(operations) => json_patch::patch(value, operations).map_err(|error| {
            Failure::invalid(at.kind, at.name, &format!("the patch does not apply: {error}"))
        }),
        Patch::Merge(merge) => {
            json_patch::merge(value, merge);
            Ok(())
        }
        Patch::Strategic(_) if at.kind.custom => Err(Failure::new(
            http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        )),
        Patch::Strategic(merge) => {
            strategic(value, merge, &mut Vec::new());
            Ok(())
        }
        Patch::Apply(_) => Ok(()),
    }
}

fn strategic(value: &mut Value, patch: &Value, path: &mut Vec<String>) {
    let Value::Object(fields) = patch else {
        *value = patch.clone();
        return;
    };
    if fields.get("$patch").is_some_and(|how| how == "replace") {
        let rest: Map<String, Value> = fields
            .iter()
            .filter(|(key, _)| *key != "$patch")
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        *value = Value::Object(rest);
        return;
    }
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Some(object) = value.as_object_mut() else { return };
    for (key, new) in fields {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = new.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(held) = object.get_mut(list).and_then(Value::as_array_mut) {
                held.retain(|one| !gone.contains(one));
            }
            continue;
        }
        if key.starts_with('$') {
            continue;
        }
        if new.is_null() {
            object.remove(key);
            continue;
        }
        path.push(format!("f:{key}"));
        let held = object.entry(key.clone()).or_insert(Value::Null);
        match (keys(false, path), new.as_array()) {
            (Some(keys), Some(elements)) => merge_list(held, elements, keys[0], path),
            _ if key == "finalizers" => merge_set(held, new),
            _ => strategic(held, new, path),
        }
        path.pop();
    }
}

/// Elements with the same first key are one.
fn merge_list(held: &mut Value, elements: &[Value], key: &str, path: &mut Vec<String>) {
    if !held.is_array() {
        *held = Value::Array(Vec::new());
    }
    let Some(list) = held.as_array_mut() else { return };
    for element in elements {
        let at = list.iter().position(|one| one[key] == element[key]);
        if element["$patch"] == "delete" {
            at.map(|at| list.remove(at));
            continue;
        }
        if element["$patch"] == "replace" {
            list.clear();
            continue;
        }
        path.push("k:".to_owned());
        if let Some(at) = at {
            strategic(&mut list[at], element, path);
        } else {
            let mut fresh = Value::Null;
            strategic(&mut fresh, element, path);
            list.push(fresh);
        }
        path.pop();
    }
}

fn merge_set(held: &mut Value, new: &Value) {
    let mut list = held.as_array().cloned().unwrap_or_default();
    for one in new.as_array().into_iter().flatten() {
        if !list.contains(one) {
            list.push(one.clone());
        }
    }
    *held = list.into();
}
