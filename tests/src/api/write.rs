//! Create, update, patch and delete.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::account::new_uid;
use super::failure::Failure;
use super::kinds::{self, Kind};
use super::ownership;
use super::patch::{self, Patch};
use super::store::{Store, Stored, drop_types};

/// Where an object is, or is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub(super) kind: &'a Kind,
    /// The version of the path.
    pub(super) version: &'a str,
    /// Empty for what is in none.
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// Whether it is `status` that is written.
    pub(super) status: bool,
}

/// How it is to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct How<'a> {
    /// All of it is done, except that it is not kept.
    pub(super) dry: bool,
    /// Who has the fields then.
    pub(super) manager: &'a str,
    /// Server-side apply takes fields from others.
    pub(super) force: bool,
}

/// What came of it.
pub(super) struct Written {
    pub(super) body: Vec<u8>,
    pub(super) code: StatusCode,
}

/// Adds an object.
pub(super) fn create(
    store: &mut Store,
    at: At<'_>,
    mut value: Value,
    how: How<'_>,
) -> Result<Written, Failure> {
    check_types(at, &value)?;
    let metadata = metadata_of(&mut value, at)?;
    if metadata.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        let prefix = metadata.get("generateName").and_then(Value::as_str).filter(|prefix| !prefix.is_empty());
        let Some(prefix) = prefix else {
            let why = "metadata.name: Required value: name or generateName is required";
            return Err(Failure::invalid(at.kind, "", why));
        };
        let end: String = (0..5)
            .map(|_| {
                fastrand::choice(b"bcdfghjklmnpqrstvwxz2456789").map_or('x', |letter| char::from(*letter))
            })
            .collect();
        let name = format!("{prefix}{end}");
        metadata.insert("name".to_owned(), name.into());
    }
    if metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|version| !version.is_empty()) {
        return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
    }
    for key in ["uid", "creationTimestamp", "deletionTimestamp", "generation"] {
        metadata.remove(key);
    }
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    let at = At { name: &name, ..at };
    if at.kind.status {
        value.as_object_mut().map(|object| object.remove("status"));
    }
    check_new(store, at)?;
    ownership::record(&Value::Null, &mut value, how.manager, "Update", at);
    insert(store, at, value, how)
}

/// Replaces an object, or its status.
pub(super) fn update(
    store: &mut Store,
    at: At<'_>,
    mut value: Value,
    how: How<'_>,
) -> Result<Written, Failure> {
    check_types(at, &value)?;
    let metadata = metadata_of(&mut value, at)?;
    let said = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    if said != at.name {
        let why = format!("the name of the object ({said}) does not match the name on the URL ({})", at.name);
        return Err(Failure::bad_request(why));
    }
    let old = existing(store, at)?;
    replace(store, at, &old, value, how)
}

/// Changes an object, or its status; server-side apply makes what is not there.
pub(super) fn patch(store: &mut Store, at: At<'_>, patch: &Patch, how: How<'_>) -> Result<Written, Failure> {
    let old = store.shelf(at.kind).and_then(|shelf| shelf.object(at.namespace, at.name)).map(Arc::clone);
    if let Patch::Apply(applied) = patch {
        let mut applied = applied.clone();
        check_types(at, &applied)?;
        let metadata = metadata_of(&mut applied, at)?;
        if metadata.contains_key("managedFields") {
            return Err(Failure::bad_request("metadata.managedFields must be nil"));
        }
        metadata.insert("name".to_owned(), at.name.into());
        if let Some(object) = applied.as_object_mut() {
            object.remove("apiVersion");
            object.remove("kind");
            if at.status {
                object.retain(|key, _| key == "metadata" || key == "status");
            } else if at.kind.status {
                object.remove("status");
            }
        }
        let Some(old) = old else {
            if at.status {
                return Err(Failure::not_found(at.kind, at.name));
            }
            check_new(store, at)?;
            let value = ownership::apply(&Value::Null, &applied, at, how)?;
            return insert(store, at, value, how);
        };
        let value = ownership::apply(&old.value(), &applied, at, how)?;
        return finish(store, at, &old, value, how);
    }
    let Some(old) = old else { return Err(Failure::not_found(at.kind, at.name)) };
    let mut value = old.value();
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".to_owned(), at.kind.api_version(at.version).into());
        object.insert("kind".to_owned(), at.kind.kind.clone().into());
    }
    patch::change(&mut value, patch, at)?;
    check_types(at, &value)?;
    let metadata = metadata_of(&mut value, at)?;
    if metadata.get("name").and_then(Value::as_str) != Some(at.name) {
        return Err(Failure::bad_request("the name of the object does not match the name on the URL"));
    }
    replace(store, at, &old, value, how)
}

/// Removes an object; what has finalizers is only marked.
pub(super) fn delete(store: &mut Store, at: At<'_>, options: &Value, dry: bool) -> Result<Written, Failure> {
    let old = existing(store, at)?;
    let value = old.value();
    let wanted = &options["preconditions"];
    for (key, held) in
        [("uid", &value["metadata"]["uid"]), ("resourceVersion", &value["metadata"]["resourceVersion"])]
    {
        if !wanted[key].is_null() && wanted[key] != *held {
            let why = format!(
                "the {key} in the precondition ({}) does not match the {key} in record ({held}). The object might have been deleted and then recreated",
                wanted[key]
            );
            return Err(Failure::conflict(at.kind, at.name, &why));
        }
    }
    let grace = options["gracePeriodSeconds"].as_u64();
    // The kubelet ends a pod that is on a node, and then deletes it for good.
    let is_pod = at.kind.group.is_empty() && at.kind.plural == "pods";
    let runs =
        is_pod && !old.node.is_empty() && !["Succeeded", "Failed"].contains(&&*old.phase) && grace != Some(0);
    let held = value["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
    if dry {
        return Ok(Written { body: super::read::whole(at.kind, at.version, &old), code: StatusCode::OK });
    }
    if runs || held {
        let mut value = value;
        let metadata = &mut value["metadata"];
        if metadata["deletionTimestamp"].is_null() {
            let grace = if runs { grace.unwrap_or(30) } else { 0 };
            let at = OffsetDateTime::now_utc() + std::time::Duration::from_secs(grace);
            metadata["deletionTimestamp"] = timestamp(at).into();
            metadata["deletionGracePeriodSeconds"] = grace.into();
        } else {
            return Ok(Written { body: super::read::whole(at.kind, at.version, &old), code: StatusCode::OK });
        }
        let kept = store.put(at.kind, value).ok_or_else(Failure::no_such_resource)?;
        return Ok(Written { body: super::read::whole(at.kind, at.version, &kept), code: StatusCode::OK });
    }
    remove(store, at.kind, at.namespace, at.name);
    let details = json!({"name": at.name, "group": at.kind.group, "kind": at.kind.plural, "uid": value["metadata"]["uid"]});
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(Written { body: status.to_string().into_bytes(), code: StatusCode::OK })
}

/// Removes an object at once, with what goes with it: what is in a namespace, what a definition defines.
pub(super) fn remove(store: &mut Store, kind: &Kind, namespace: &str, name: &str) -> Option<Arc<Stored>> {
    if kind.group.is_empty() && kind.plural == "namespaces" {
        let mut value = store.shelf(kind)?.object("", name)?.value();
        value["metadata"]["deletionTimestamp"] = timestamp(OffsetDateTime::now_utc()).into();
        value["status"]["phase"] = "Terminating".into();
        store.put(kind, value);
        let within: Vec<(Arc<Kind>, String)> = store
            .kinds()
            .filter(|kind| kind.namespaced)
            .filter_map(|kind| store.shelf(kind))
            .flat_map(|shelf| {
                shelf.all(Some(name)).map(|object| (Arc::clone(&shelf.kind), object.name.clone()))
            })
            .collect();
        for (kind, object) in within {
            store.remove(&kind, name, &object);
        }
    }
    let gone = store.remove(kind, namespace, name)?;
    if kind.plural == "customresourcedefinitions" {
        let spec = &gone.value()["spec"];
        store.remove_kind(
            spec["group"].as_str().unwrap_or_default(),
            spec["names"]["plural"].as_str().unwrap_or_default(),
        );
    }
    Some(gone)
}

/// Puts an object in place as a test wants it, status and all; identity and age of one that is there stay.
pub(super) fn put(store: &mut Store, kind: &Kind, mut value: Value) -> Option<Arc<Stored>> {
    let metadata = value.get_mut("metadata")?.as_object_mut()?;
    if kind.namespaced {
        metadata.entry("namespace").or_insert_with(|| "default".into());
    } else {
        metadata.remove("namespace");
    }
    let name = metadata.get("name")?.as_str()?.to_owned();
    let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
    let old = store.shelf(kind)?.object(&namespace, &name).map(|old| old.value());
    complete(kind, &mut value, old.as_ref());
    define(store, kind, &mut value);
    store.put(kind, value)
}

fn existing(store: &Store, at: At<'_>) -> Result<Arc<Stored>, Failure> {
    let shelf = store.shelf(at.kind).ok_or_else(Failure::no_such_resource)?;
    shelf.object(at.namespace, at.name).map(Arc::clone).ok_or_else(|| Failure::not_found(at.kind, at.name))
}

fn check_new(store: &Store, at: At<'_>) -> Result<(), Failure> {
    let shelf = store.shelf(at.kind).ok_or_else(Failure::no_such_resource)?;
    if shelf.object(at.namespace, at.name).is_some() {
        return Err(Failure::already_exists(at.kind, at.name));
    }
    if !is_name(at.name) {
        let why = format!(
            "metadata.name: Invalid value: {:?}: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            at.name
        );
        return Err(Failure::invalid(at.kind, at.name, &why));
    }
    if at.kind.namespaced {
        let namespaces = store.kind_named("Namespace").ok_or_else(Failure::no_such_resource)?;
        let there = store.shelf(&namespaces).and_then(|shelf| shelf.object("", at.namespace));
        if there.is_none() {
            return Err(Failure::not_found(&namespaces, at.namespace));
        }
    }
    Ok(())
}

/// RBAC names may hold colons and capitals (path segment names); all others are DNS subdomains.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "-.:".contains(letter))
}

fn insert(store: &mut Store, at: At<'_>, mut value: Value, how: How<'_>) -> Result<Written, Failure> {
    complete(at.kind, &mut value, None);
    let kept = keep(store, at, value, how.dry)?;
    Ok(Written { body: super::read::whole(at.kind, at.version, &kept), code: StatusCode::CREATED })
}

fn replace(
    store: &mut Store,
    at: At<'_>,
    old: &Arc<Stored>,
    mut value: Value,
    how: How<'_>,
) -> Result<Written, Failure> {
    let held = old.value();
    let said = value["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !said.is_empty() && said != held["metadata"]["resourceVersion"] {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Failure::conflict(at.kind, at.name, why));
    }
    let said = value["metadata"]["uid"].as_str().unwrap_or_default();
    if !said.is_empty() && said != held["metadata"]["uid"] {
        let why = format!(
            "Precondition failed: UID in precondition: {said}, UID in object meta: {}",
            held["metadata"]["uid"]
        );
        return Err(Failure::conflict(at.kind, at.name, &why));
    }
    // Each of the two parts is written through a path of its own.
    if at.status {
        let mut whole = held.clone();
        whole["status"] = value["status"].take();
        value = whole;
    } else if at.kind.status {
        value["status"] = held["status"].clone();
    }
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    value["metadata"]["managedFields"] = held["metadata"]["managedFields"].clone();
    ownership::record(&held, &mut value, how.manager, "Update", at);
    finish(store, at, old, value, how)
}

/// Keeps a changed object, unless nothing has changed.
fn finish(
    store: &mut Store,
    at: At<'_>,
    old: &Arc<Stored>,
    mut value: Value,
    how: How<'_>,
) -> Result<Written, Failure> {
    let held = old.value();
    if let Some(object) = value.as_object_mut() {
        drop_types(object);
    }
    complete(at.kind, &mut value, Some(&held));
    value["metadata"]["resourceVersion"] = held["metadata"]["resourceVersion"].clone();
    let same = ownership::without(&value) == ownership::without(&held)
        && ownership::managers(&value) == ownership::managers(&held);
    let ended = !value["metadata"]["deletionTimestamp"].is_null()
        && value["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
        && held["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
    let kept = if same {
        Arc::clone(old)
    } else if ended && !how.dry {
        remove(store, at.kind, at.namespace, at.name).ok_or_else(Failure::no_such_resource)?
    } else {
        keep(store, at, value, how.dry)?
    };
    Ok(Written { body: super::read::whole(at.kind, at.version, &kept), code: StatusCode::OK })
}

fn keep(store: &mut Store, at: At<'_>, mut value: Value, dry: bool) -> Result<Arc<Stored>, Failure> {
    if dry {
        return Ok(Arc::new(Stored::dry(value)));
    }
    define(store, at.kind, &mut value);
    store.put(at.kind, value).ok_or_else(Failure::no_such_resource)
}

/// A definition makes its resource known.
fn define(store: &mut Store, kind: &Kind, value: &mut Value) {
    if kind.plural != "customresourcedefinitions" {
        return;
    }
    if let Some(defined) = Kind::of_definition(value) {
        store.add_kind(defined);
        let now = timestamp(OffsetDateTime::now_utc());
        let condition = |name: &str| json!({"type": name, "status": "True", "reason": "Accepted", "lastTransitionTime": now});
        if value["status"]["conditions"].is_null() {
            value["status"] = json!({"conditions": [condition("NamesAccepted"), condition("Established")]});
        }
    }
}

/// The `CustomResourceDefinition`s of these groups or names, put in place.
pub(super) fn install(store: &mut Store, names: &[&str]) -> Result<(), String> {
    let kind = store.kind_named("CustomResourceDefinition").ok_or("no CustomResourceDefinitions")?;
    for name in names {
        let definitions = kinds::definitions(name);
        if definitions.is_empty() {
            return Err(format!("no CustomResourceDefinition is known by the name {name}"));
        }
        for definition in definitions {
            put(store, &kind, definition);
        }
    }
    Ok(())
}

/// Sets what the server sets: UID, age, generation, first status.
fn complete(kind: &Kind, value: &mut Value, old: Option<&Value>) {
    let generation = match old {
        Some(old) => {
            let now = old["metadata"]["generation"].as_u64().unwrap_or(1);
            let strip = |value: &Value| {
                let mut value = value.clone();
                if let Some(object) = value.as_object_mut() {
                    object.retain(|key, _| {
                        !["metadata", "status", "apiVersion", "kind"].contains(&key.as_str())
                    });
                }
                value
            };
            now + u64::from(strip(old) != strip(value))
        }
        None => 1,
    };
    let has_generation = value["spec"].is_object()
        && !["pods", "namespaces", "nodes", "services"].contains(&kind.plural.as_str());
    let is = |plural: &str| kind.group.is_empty() && kind.plural == plural;
    let fresh = old.is_none();
    let name = value["metadata"]["name"].clone();
    let metadata = &mut value["metadata"];
    if let Some(old) = old {
        for key in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
            if !old["metadata"][key].is_null() {
                metadata[key] = old["metadata"][key].clone();
            }
        }
    } else {
        // A test may choose a UID; no client gets this far with one.
        if metadata["uid"].is_null() {
            metadata["uid"] = new_uid().into();
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = timestamp(OffsetDateTime::now_utc()).into();
        }
    }
    if has_generation {
        metadata["generation"] = generation.into();
    }
    if is("namespaces") {
        metadata["labels"]["kubernetes.io/metadata.name"] = name;
    }
    if let Some(object) = metadata.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    if fresh && is("namespaces") && value["status"]["phase"].is_null() {
        value["spec"]["finalizers"] = json!(["kubernetes"]);
        value["status"] = json!({"phase": "Active"});
    }
    if fresh && is("pods") && value["status"]["phase"].is_null() {
        value["status"]["phase"] = "Pending".into();
    }
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
}

/// `2026-01-02T03:04:05Z`.
pub(super) fn timestamp(at: OffsetDateTime) -> String {
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_default()
}

fn check_types(at: At<'_>, value: &Value) -> Result<(), Failure> {
    if !value.is_object() {
        return Err(Failure::bad_request("the object provided is unrecognized (must be of type object)"));
    }
    let wanted = at.kind.api_version(at.version);
    let (said, kind) = (&value["apiVersion"], &value["kind"]);
    if *said != *wanted || *kind != *at.kind.kind {
        return Err(Failure::bad_request(format!(
            "the object provided is unrecognized (it says {said}, {kind}, where the path means {wanted}, {})",
            at.kind.kind
        )));
    }
    Ok(())
}

/// The metadata, with the namespace of the path.
fn metadata_of<'a>(
    value: &'a mut Value,
    at: At<'_>,
) -> Result<&'a mut serde_json::Map<String, Value>, Failure> {
    let object = value.as_object_mut().ok_or_else(|| Failure::bad_request("not an object"))?;
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    let metadata =
        metadata.as_object_mut().ok_or_else(|| Failure::bad_request("metadata is not an object"))?;
    let said = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if at.kind.namespaced {
        if !said.is_empty() && said != at.namespace {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata.insert("namespace".to_owned(), at.namespace.into());
    } else if !said.is_empty() {
        return Err(Failure::bad_request("namespace specified for a resource without one"));
    }
    Ok(metadata)
}
