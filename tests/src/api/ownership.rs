//! Server-side apply and `managedFields`: who has which field.
//!
//! Lists of built-in resources whose elements have a key (containers, conditions, ports) are owned element by element; all other
//! lists, and every list of a custom resource, are one field, as they are where a schema says nothing else.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::failure::Failure;
use super::write::{At, How, timestamp};

/// `f:NAME` or `k:{"KEY":VALUE}` a step.
type Path = Vec<String>;

/// What one manager has.
#[derive(Debug)]
struct Entry {
    manager: String,
    operation: String,
    subresource: String,
    time: String,
    api_version: String,
    fields: BTreeSet<Path>,
}

/// The keys of a list's elements, by the name of the field; none where the list is one field.
pub(super) fn keys(custom: bool, path: &[String]) -> Option<&'static [&'static str]> {
    if custom {
        return None;
    }
    let field = |at: usize| path.len().checked_sub(at).and_then(|at| path.get(at)).map(String::as_str);
    Some(match field(1)?.strip_prefix("f:")? {
        "containers" | "initContainers" | "ephemeralContainers" | "env" | "volumes" | "imagePullSecrets" => {
            &["name"]
        }
        "volumeMounts" => &["mountPath"],
        "volumeDevices" => &["devicePath"],
        "conditions" => &["type"],
        "ports" if field(2).is_some_and(|step| step.starts_with("k:")) => &["containerPort", "protocol"],
        "ports" if field(2) == Some("f:spec") => &["port", "protocol"],
        "ownerReferences" => &["uid"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        "hostAliases" | "podIPs" => &["ip"],
        _ => return None,
    })
}

/// An object with what someone applies; fields that are no longer applied go, unless someone else has them.
pub(super) fn apply(old: &Value, applied: &Value, at: At<'_>, how: How<'_>) -> Result<Value, Failure> {
    let said = applied["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !said.is_empty() && *said != *old["metadata"]["resourceVersion"].as_str().unwrap_or_default() {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Failure::conflict(at.kind, at.name, why));
    }
    let said = applied["metadata"]["uid"].as_str().unwrap_or_default();
    if !said.is_empty() && *said != *old["metadata"]["uid"].as_str().unwrap_or_default() {
        return Err(Failure::conflict(
            at.kind,
            at.name,
            "uid mismatch: the object was deleted and recreated",
        ));
    }
    let custom = at.kind.custom;
    let wanted = leaves(applied, custom);
    let held = leaves(old, custom);
    let mut entries = entries(old);
    let is_mine = |entry: &Entry| {
        entry.manager == how.manager && entry.operation == "Apply" && entry.subresource == subresource(at)
    };
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|entry| !is_mine(entry)) {
        let disputed: Vec<Path> = wanted
            .iter()
            .filter(|(path, value)| held.get(*path) != Some(value))
            .flat_map(|(path, _)| entry.fields.iter().filter(|owned| overlap(owned, path)).cloned())
            .collect();
        for path in disputed {
            if how.force {
                entry.fields.remove(&path);
            } else {
                conflicts.push((dotted(&path), named(entry)));
            }
        }
    }
    if !conflicts.is_empty() {
        conflicts.sort();
        conflicts.dedup();
        return Err(Failure::owned(&conflicts));
    }
    let mut value = if old.is_null() { json!({}) } else { old.clone() };
    let mine = entries.iter().position(is_mine);
    let before = mine.map(|at| entries.remove(at).fields).unwrap_or_default();
    for path in before.iter().filter(|path| !wanted.keys().any(|kept| overlap(kept, path))) {
        if !entries.iter().any(|entry| entry.fields.iter().any(|owned| overlap(owned, path))) {
            remove(&mut value, path);
        }
    }
    for (path, new) in &wanted {
        set(&mut value, path, new.clone());
    }
    for key in ["name", "namespace"] {
        if !applied["metadata"][key].is_null() {
            value["metadata"][key] = applied["metadata"][key].clone();
        }
    }
    entries.push(Entry {
        manager: how.manager.to_owned(),
        operation: "Apply".to_owned(),
        subresource: subresource(at).to_owned(),
        time: timestamp(OffsetDateTime::now_utc()),
        api_version: at.kind.api_version(at.version),
        fields: wanted.into_keys().collect(),
    });
    put_entries(&mut value, entries);
    Ok(value)
}

/// Gives a manager the fields in which two states of an object differ.
pub(super) fn record(old: &Value, new: &mut Value, manager: &str, operation: &str, at: At<'_>) {
    let (before, after) = (leaves(old, at.kind.custom), leaves(new, at.kind.custom));
    let changed: BTreeSet<Path> = after
        .iter()
        .filter(|(path, value)| before.get(*path) != Some(value))
        .map(|(path, _)| path.clone())
        .collect();
    let gone: BTreeSet<&Path> = before.keys().filter(|path| !after.contains_key(*path)).collect();
    let mut entries = if old.is_null() { Vec::new() } else { entries(old) };
    for entry in &mut entries {
        entry.fields.retain(|path| !changed.contains(path) && !gone.contains(path));
    }
    if !changed.is_empty() {
        let mine = entries.iter_mut().find(|entry| {
            entry.manager == manager && entry.operation == operation && entry.subresource == subresource(at)
        });
        if let Some(mine) = mine {
            mine.fields.extend(changed);
            mine.time = timestamp(OffsetDateTime::now_utc());
        } else {
            entries.push(Entry {
                manager: manager.to_owned(),
                operation: operation.to_owned(),
                subresource: subresource(at).to_owned(),
                time: timestamp(OffsetDateTime::now_utc()),
                api_version: at.kind.api_version(at.version),
                fields: changed,
            });
        }
    }
    put_entries(new, entries);
}

/// An object but for its revision and its managers.
pub(super) fn without(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
        metadata.remove("managedFields");
    }
    value
}

/// Its managers, but for when they wrote.
pub(super) fn managers(value: &Value) -> BTreeSet<(String, String, String, Vec<Path>)> {
    let own = |entry: Entry| {
        (entry.manager, entry.operation, entry.subresource, entry.fields.into_iter().collect())
    };
    entries(value).into_iter().map(own).collect()
}

const fn subresource(at: At<'_>) -> &'static str {
    if at.status { "status" } else { "" }
}

fn named(entry: &Entry) -> String {
    if entry.operation == "Apply" {
        entry.manager.clone()
    } else {
        format!("{}\" using {} at \"{}", entry.manager, entry.api_version, entry.time)
    }
}

fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// `.spec.containers[name="app"].image`
fn dotted(path: &Path) -> String {
    let step = |step: &String| match (step.strip_prefix("f:"), step.strip_prefix("k:")) {
        (Some(field), _) => format!(".{field}"),
        (_, Some(key)) => {
            let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
            let pairs: Vec<String> = key.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", pairs.join(","))
        }
        _ => String::new(),
    };
    path.iter().map(step).collect()
}

/// The fields of an object that someone can have, with their values.
fn leaves(value: &Value, custom: bool) -> BTreeMap<Path, Value> {
    let mut out = BTreeMap::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        match key.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => {
                for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
                    if !value[key].is_null() {
                        let path = vec!["f:metadata".to_owned(), format!("f:{key}")];
                        collect(&value[key], path, custom, &mut out);
                    }
                }
            }
            _ => collect(value, vec![format!("f:{key}")], custom, &mut out),
        }
    }
    out
}

fn collect(value: &Value, path: Path, custom: bool, out: &mut BTreeMap<Path, Value>) {
    let below = |step: String| {
        let mut path = path.clone();
        path.push(step);
        path
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                collect(value, below(format!("f:{key}")), custom, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let keyed = keys(custom, &path).and_then(|keys| {
                list.iter().map(|element| Some((key_of(element, keys)?, element))).collect::<Option<Vec<_>>>()
            });
            match keyed {
                Some(elements) => {
                    for (key, element) in elements {
                        collect(element, below(key), custom, out);
                    }
                }
                None => drop(out.insert(path, value.clone())),
            }
        }
        _ => drop(out.insert(path, value.clone())),
    }
}

fn key_of(element: &Value, keys: &[&str]) -> Option<String> {
    let mut key = Map::new();
    for name in keys {
        let value = match &element[*name] {
            Value::Null if *name == "protocol" => "TCP".into(),
            Value::Null => return None,
            value => value.clone(),
        };
        key.insert((*name).to_owned(), value);
    }
    Some(format!("k:{}", Value::Object(key)))
}

fn is_element(element: &Value, key: &Map<String, Value>) -> bool {
    key.iter().all(|(name, wanted)| match &element[name] {
        Value::Null => name == "protocol" && wanted == "TCP",
        held => held == wanted,
    })
}

fn set(value: &mut Value, path: &[String], new: Value) {
    let Some((step, rest)) = path.split_first() else {
        *value = new;
        return;
    };
    if let Some(field) = step.strip_prefix("f:") {
        if !value.is_object() {
            *value = json!({});
        }
        set(&mut value[field], rest, new);
    } else if let Some(key) = step.strip_prefix("k:") {
        let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
        if !value.is_array() {
            *value = json!([]);
        }
        let Some(list) = value.as_array_mut() else { return };
        let at = list.iter().position(|element| is_element(element, &key)).unwrap_or_else(|| {
            list.push(Value::Object(key.clone()));
            list.len() - 1
        });
        set(&mut list[at], rest, new);
    }
}

fn remove(value: &mut Value, path: &[String]) {
    let Some((step, rest)) = path.split_first() else { return };
    if let Some(field) = step.strip_prefix("f:") {
        let Some(object) = value.as_object_mut() else { return };
        if let Some(inner) = object.get_mut(field) {
            remove(inner, rest);
            let is_empty =
                inner.as_object().is_some_and(Map::is_empty) || inner.as_array().is_some_and(Vec::is_empty);
            if rest.is_empty() || is_empty {
                object.remove(field);
            }
        }
    } else if let Some(key) = step.strip_prefix("k:") {
        let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
        let Some(list) = value.as_array_mut() else { return };
        if let Some(at) = list.iter().position(|element| is_element(element, &key)) {
            remove(&mut list[at], rest);
            if list[at].as_object().is_none_or(Map::is_empty) {
                list.remove(at);
            }
        }
    }
}

fn entries(value: &Value) -> Vec<Entry> {
    let list = value["metadata"]["managedFields"].as_array().into_iter().flatten();
    list.map(|entry| {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let mut fields = BTreeSet::new();
        from_tree(&entry["fieldsV1"], &Vec::new(), &mut fields);
        Entry {
            manager: text("manager"),
            operation: text("operation"),
            subresource: text("subresource"),
            time: text("time"),
            api_version: text("apiVersion"),
            fields,
        }
    })
    .collect()
}

fn put_entries(value: &mut Value, entries: Vec<Entry>) {
    let list: Vec<Value> = entries
        .into_iter()
        .filter(|entry| !entry.fields.is_empty())
        .map(|entry| {
            let mut tree = json!({});
            for path in &entry.fields {
                let leaf = path.iter().fold(&mut tree, |tree, step| {
                    if tree[step].is_null() {
                        tree[step] = json!({});
                    }
                    &mut tree[step]
                });
                debug_assert!(leaf.is_object(), "a step is an object");
            }
            let mut one = json!({
                "manager": entry.manager, "operation": entry.operation, "apiVersion": entry.api_version,
                "time": entry.time, "fieldsType": "FieldsV1", "fieldsV1": tree,
            });
            if !entry.subresource.is_empty() {
                one["subresource"] = entry.subresource.into();
            }
            one
        })
        .collect();
    if list.is_empty() {
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    } else {
        value["metadata"]["managedFields"] = list.into();
    }
}

fn from_tree(tree: &Value, path: &Path, out: &mut BTreeSet<Path>) {
    let steps = tree.as_object().into_iter().flatten().filter(|(step, _)| *step != ".");
    let mut is_leaf = !path.is_empty();
    for (step, below) in steps {
        is_leaf = false;
        let mut path = path.clone();
        path.push(step.clone());
        from_tree(below, &path, out);
    }
    if is_leaf {
        out.insert(path.clone());
    }
}
