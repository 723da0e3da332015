//! What clients ask first: which groups, versions and resources there are.

use serde_json::{Value, json};

use super::kinds::Kind;
use super::store::Store;

/// Resources that are no objects: group, version, kind, plural, namespaced.
pub(super) const REVIEWS: &[(&str, &str, &str, &str, bool)] = &[
    ("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", false),
    ("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", false),
    ("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
    ("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", false),
];

/// The document at a path outside of resources, as JSON or text.
pub(super) fn document(store: &Store, path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        ["version"] => Some(json!({
            "major": "1", "minor": "34", "gitVersion": "v1.34.0-mesh-tests", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "2026-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
        })),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["api", "v1"] => resources(store, "", "v1"),
        ["apis"] => {
            let groups: Vec<Value> =
                group_names(store).iter().filter_map(|name| group(store, name)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => {
            let mut group = group(store, name)?;
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            Some(group)
        }
        ["apis", group, version] => resources(store, group, version),
        _ => None,
    }
}

fn group_names(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = store.kinds().map(|kind| kind.group.clone()).collect();
    names.extend(REVIEWS.iter().map(|review| review.0.to_owned()));
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    names
}

fn group(store: &Store, name: &str) -> Option<Value> {
    let mut versions: Vec<String> = Vec::new();
    let held = store.kinds().filter(|kind| kind.group == name).flat_map(|kind| kind.versions.clone());
    let reviews = REVIEWS.iter().filter(|review| review.0 == name).map(|review| review.1.to_owned());
    for version in held.chain(reviews) {
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    let of = |version: &String| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    let preferred = of(versions.first()?);
    let versions: Vec<Value> = versions.iter().map(of).collect();
    Some(json!({"name": name, "versions": versions, "preferredVersion": preferred}))
}

fn resources(store: &Store, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    let kinds =
        store.kinds().filter(|kind| kind.group == group && kind.versions.iter().any(|one| one == version));
    for kind in kinds {
        list.push(resource(kind));
        if kind.status {
            list.push(json!({
                "name": format!("{}/status", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": kind.kind, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    for &(of, at, kind, plural, namespaced) in REVIEWS {
        if of == group && at == version {
            list.push(json!({
                "name": plural, "singularName": kind.to_lowercase(), "namespaced": namespaced, "kind": kind,
                "verbs": ["create"],
            }));
        }
    }
    if list.is_empty() {
        return None;
    }
    if group.is_empty() {
        list.push(json!({
            "name": "pods/exec", "singularName": "", "namespaced": true, "kind": "PodExecOptions",
            "verbs": ["create", "get"],
        }));
        list.push(json!({
            "name": "serviceaccounts/token", "singularName": "", "namespaced": true, "group": "authentication.k8s.io",
            "version": "v1", "kind": "TokenRequest", "verbs": ["create"],
        }));
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list,
    }))
}

fn resource(kind: &Kind) -> Value {
    json!({
        "name": kind.plural, "singularName": kind.kind.to_lowercase(), "namespaced": kind.namespaced, "kind": kind.kind,
        "shortNames": kind.short,
        "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
    })
}
