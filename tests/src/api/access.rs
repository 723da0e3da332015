//! RBAC: what the roles that the server holds allow.

use serde_json::Value;

use super::account::User;
use super::state::Asked;
use super::store::Store;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Roles and their bindings as they were at a revision.
#[derive(Debug, Default)]
pub(super) struct Rules {
    revision: u64,
    grants: Vec<Grant>,
}

/// What one subject may do by one rule, everywhere or in a namespace.
#[derive(Debug)]
struct Grant {
    subject: Subject,
    namespace: Option<String>,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Subject {
    User(String),
    Group(String),
}

#[derive(Clone, Debug)]
struct Rule {
    groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
    names: Vec<String>,
}

impl Rules {
    /// Reads them again if any has changed.
    pub(super) fn refresh(&mut self, store: &Store) {
        let revision = store.last_change(GROUP);
        if revision == self.revision {
            return;
        }
        self.revision = revision;
        self.grants.clear();
        for kind in ["ClusterRoleBinding", "RoleBinding"] {
            for binding in values(store, kind) {
                let namespace = binding["metadata"]["namespace"].as_str().map(str::to_owned);
                let role = &binding["roleRef"];
                let role_namespace = if role["kind"] == "Role" { namespace.as_deref() } else { None };
                let rules = rules(store, role, role_namespace);
                for subject in binding["subjects"].as_array().into_iter().flatten().filter_map(subject) {
                    self.grants.extend(rules.iter().map(|rule| Grant {
                        subject: subject.clone(),
                        namespace: namespace.clone(),
                        rule: rule.clone(),
                    }));
                }
            }
        }
    }

    /// Whether any of them allows that.
    pub(super) fn allow(
        &self,
        user: &User,
        asked: &Asked,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> bool {
        self.grants.iter().any(|grant| {
            grant.subject.is(user)
                && grant.namespace.as_deref().is_none_or(|within| namespace == Some(within))
                && grant.rule.allows(asked, name)
        })
    }
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => user.name == *name,
            Self::Group(name) => user.groups.contains(name),
        }
    }
}

impl Rule {
    fn allows(&self, asked: &Asked, name: Option<&str>) -> bool {
        let has = |list: &[String], value: &str| list.iter().any(|one| one == "*" || one == value);
        let resource = if asked.subresource.is_empty() {
            has(&self.resources, &asked.resource)
        } else {
            let any = format!("*/{}", asked.subresource);
            has(&self.resources, &format!("{}/{}", asked.resource, asked.subresource))
                || self.resources.contains(&any)
        };
        // A rule with names says nothing about requests without one.
        let named =
            self.names.is_empty() || name.is_some_and(|name| self.names.iter().any(|one| one == name));
        resource && named && has(&self.groups, &asked.group) && has(&self.verbs, &asked.verb)
    }
}

fn values(store: &Store, kind: &str) -> Vec<Value> {
    let shelf = store.kind_named(&format!("{kind}.{GROUP}"));
    let shelf = shelf.as_ref().and_then(|kind| store.shelf(kind));
    shelf.into_iter().flat_map(|shelf| shelf.all(None)).map(|object| object.value()).collect()
}

fn rules(store: &Store, role: &Value, namespace: Option<&str>) -> Vec<Rule> {
    let (Some(kind), Some(name)) = (role["kind"].as_str(), role["name"].as_str()) else { return Vec::new() };
    let kind = store.kind_named(&format!("{kind}.{GROUP}"));
    let shelf = kind.as_ref().and_then(|kind| store.shelf(kind));
    let object = shelf.and_then(|shelf| shelf.object(namespace.unwrap_or_default(), name));
    let Some(role) = object.map(|object| object.value()) else { return Vec::new() };
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let rules = role["rules"].as_array().into_iter().flatten();
    rules
        .map(|rule| Rule {
            groups: list(&rule["apiGroups"]),
            resources: list(&rule["resources"]),
            verbs: list(&rule["verbs"]),
            names: list(&rule["resourceNames"]),
        })
        .collect()
}

fn subject(subject: &Value) -> Option<Subject> {
    let name = subject["name"].as_str()?;
    match subject["kind"].as_str()? {
        "User" => Some(Subject::User(name.to_owned())),
        "Group" => Some(Subject::Group(name.to_owned())),
        "ServiceAccount" => {
            let namespace = subject["namespace"].as_str()?;
            Some(Subject::User(format!("system:serviceaccount:{namespace}:{name}")))
        }
        _ => None,
    }
}
