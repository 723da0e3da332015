//! `PeerAuthentications` and `AuthorizationPolicies` against the pods that they are for, and those that their rules name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::workloads::Count;
use super::{World, add, told};
use crate::model::TrustDomain;
use crate::resources::authorization::Rule;
use crate::resources::{AuthorizationPolicy, Code, Notice, ObjectRef};

/// Stands for the mesh's trust domain whatever that is.
const CLUSTER_LOCAL: &str = "cluster.local";

pub(super) fn analyse(world: &World<'_>, notices: &mut Vec<Notice>) {
    peers(world, notices);
    for (name, policy) in &world.authorization_policies {
        reach(world, notices, name, policy);
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            sources(world, notices, name, &format!("spec.rules[{index}]"), rule);
        }
    }
}

fn peers(world: &World<'_>, notices: &mut Vec<Notice>) {
    let root = &world.snapshot.mesh.root_namespace;
    let mut first: HashMap<(&str, BTreeMap<&str, &str>), &ObjectRef> = HashMap::new();
    for (name, policy, _) in &world.peer_authentications {
        let selector = policy.spec.selector.as_ref().map(|selector| &selector.match_labels);
        let selector = selector.filter(|labels| !labels.is_empty());
        if selector.is_some() && name.namespace == *root {
            // It is in force nowhere, which the lint tells.
            continue;
        }
        let labels = selector.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
        match first.get(&(&*name.namespace, labels.clone().collect())) {
            Some(older) => {
                let field = if selector.is_some() { "spec.selector" } else { "" };
                let message =
                    format!("not in force: {} is for the same workloads and goes before it", told(older));
                add(notices, Code::PeerConflict, name, field, message);
            }
            None => {
                first.insert((&name.namespace, labels.collect()), name);
            }
        }
        if let Some(labels) = selector {
            selected(notices, name, world, Some(&name.namespace), labels);
        }
    }
}

/// Whom the policy is for.
fn reach(world: &World<'_>, notices: &mut Vec<Notice>, name: &ObjectRef, policy: &AuthorizationPolicy) {
    let spec = &policy.spec;
    let in_root = name.namespace == world.snapshot.mesh.root_namespace;
    if let Some(selector) = spec.selector() {
        let namespace = (!in_root).then_some(&*name.namespace);
        selected(notices, name, world, namespace, &selector.match_labels);
    } else if spec.targets().next().is_none() && !in_root {
        let count = world.workloads.of_namespace(&name.namespace);
        if count.all > 0 && count.enrolled == 0 {
            outside(notices, name, "", count);
        }
    }
    for (field, target) in spec.targets().filter(|(_, target)| target.is_service()) {
        let service = model_name(name, &target.name);
        let labels = world.services.get(&service).map(|service| super::selector(service)).unwrap_or_default();
        if labels.is_empty() {
            continue;
        }
        let count = world.workloads.selected(Some(&name.namespace), &labels);
        if count.all > 0 && count.enrolled == 0 {
            outside(notices, name, &field, count);
        }
    }
}

fn model_name(policy: &ObjectRef, service: &str) -> crate::model::ServiceName {
    crate::model::ServiceName::new(Arc::clone(&policy.namespace), service)
}

fn selected(
    notices: &mut Vec<Notice>,
    name: &ObjectRef,
    world: &World<'_>,
    namespace: Option<&str>,
    labels: &BTreeMap<String, String>,
) {
    if world.workloads.is_empty() {
        return;
    }
    let count = world.workloads.selected(namespace, labels);
    if count.all == 0 {
        let of =
            namespace.map_or_else(|| "in any namespace".to_owned(), |namespace| format!("in {namespace}"));
        let message = format!("no pod {of} has all these labels: the policy is in force nowhere");
        add(notices, Code::SelectsNothing, name, "spec.selector", message);
    } else if count.enrolled == 0 {
        outside(notices, name, "spec.selector", count);
    }
}

fn outside(notices: &mut Vec<Notice>, name: &ObjectRef, field: &str, count: Count) {
    let message = format!(
        "not in force: none of the pods that it is for ({}) is in the mesh, and nothing stands before them",
        count.all
    );
    add(notices, Code::OutsideMesh, name, field, message);
}

/// What a rule names.
#[derive(Clone, Copy)]
enum Named {
    Principal,
    Namespace,
    Account,
}

fn sources(world: &World<'_>, notices: &mut Vec<Notice>, name: &ObjectRef, at: &str, rule: &Rule) {
    for (index, from) in rule.from.iter().flatten().enumerate() {
        for (list, values) in from.source.lists() {
            let what = match list {
                "principals" | "notPrincipals" => Named::Principal,
                "namespaces" | "notNamespaces" => Named::Namespace,
                "serviceAccounts" | "notServiceAccounts" => Named::Account,
                _ => continue,
            };
            exist(world, notices, name, &format!("{at}.from[{index}].source.{list}"), values, what);
        }
    }
    for (index, when) in rule.when.iter().enumerate() {
        let what = match when.key.as_str() {
            "source.principal" => Named::Principal,
            "source.namespace" => Named::Namespace,
            "source.serviceAccount" => Named::Account,
            _ => continue,
        };
        exist(world, notices, name, &format!("{at}.when[{index}].values"), &when.values, what);
        exist(world, notices, name, &format!("{at}.when[{index}].notValues"), &when.not_values, what);
    }
}

fn exist(
    world: &World<'_>,
    notices: &mut Vec<Notice>,
    name: &ObjectRef,
    at: &str,
    values: &[String],
    what: Named,
) {
    for (index, value) in values.iter().enumerate().filter(|(_, value)| !value.contains('*')) {
        let at = format!("{at}[{index}]");
        match what {
            Named::Namespace => namespace(world, notices, name, at, value),
            Named::Account => {
                let (own, account) = value.split_once('/').unwrap_or((&name.namespace, value));
                known_account(world, notices, name, at, own, account);
            }
            Named::Principal => principal(world, notices, name, at, value),
        }
    }
}

/// `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`; nobody has another one.
fn principal(world: &World<'_>, notices: &mut Vec<Notice>, name: &ObjectRef, at: String, value: &str) {
    let parts: Vec<&str> = value.split('/').collect();
    let [domain, "ns", own, "sa", account] = parts[..] else {
        if !value.starts_with("spiffe://") {
            let message = format!("{value} is nobody's: principals are TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT");
            add(notices, Code::AccountUnknown, name, at, message);
        }
        return;
    };
    let mesh = &world.snapshot.mesh;
    let mut domains = std::iter::once(&mesh.trust_domain).chain(&*mesh.trust_domain_aliases);
    if domain != CLUSTER_LOCAL && !domains.any(|own| TrustDomain::as_str(own) == domain) {
        let message = format!(
            "{domain} is neither the trust domain of this mesh nor an alias of it: nobody has it here"
        );
        add(notices, Code::AccountUnknown, name, at, message);
        return;
    }
    known_account(world, notices, name, at, own, account);
}

fn known_account(
    world: &World<'_>,
    notices: &mut Vec<Notice>,
    name: &ObjectRef,
    at: String,
    namespace_name: &str,
    account: &str,
) {
    if !world.namespaces.is_empty() && !world.namespaces.contains(namespace_name) {
        namespace(world, notices, name, at, namespace_name);
    } else if !world.accounts.is_empty() && !world.accounts.contains(&(namespace_name.into(), account.into()))
    {
        let message =
            format!("there is no service account {namespace_name}/{account}: nobody has its identity");
        add(notices, Code::AccountUnknown, name, at, message);
    }
}

fn namespace(world: &World<'_>, notices: &mut Vec<Notice>, name: &ObjectRef, at: String, value: &str) {
    if !world.namespaces.is_empty() && !world.namespaces.contains(value) {
        let message = format!("there is no namespace {value}: nobody is in it");
        add(notices, Code::NamespaceUnknown, name, at, message);
    }
}
