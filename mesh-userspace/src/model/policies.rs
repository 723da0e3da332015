//! All `AuthorizationPolicy`s, found by what they concern.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::{HashMap, OrdMap};

use super::{AuthorizationPolicy, PolicyName, PolicyScope};

/// Policies by name.
type ByName = OrdMap<Arc<str>, Arc<AuthorizationPolicy>>;

/// All policies. Clones share structure; a change copies what leads to the policy that it concerns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    namespaces: HashMap<Arc<str>, Arc<NamespacePolicies>>,
}

/// The policies of one namespace. The same pointer holds the same policies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamespacePolicies {
    all: ByName,
    /// Those that select nothing.
    whole: ByName,
    /// Those with a selector: by the key, then the value of its first label.
    labelled: OrdMap<Arc<str>, OrdMap<Arc<str>, ByName>>,
    /// Those with `targetRefs`: by each service's name.
    services: OrdMap<Arc<str>, ByName>,
}

impl Policies {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.namespaces.values().map(|own| own.all.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// Those of a namespace, if it has any.
    pub fn of_namespace(&self, namespace: &str) -> Option<&Arc<NamespacePolicies>> {
        self.namespaces.get(namespace)
    }

    /// The policy of that name.
    pub fn get(&self, name: &PolicyName) -> Option<&Arc<AuthorizationPolicy>> {
        self.of_namespace(&name.namespace)?.all.get(&name.name)
    }

    /// All, by namespace in no order, then by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.namespaces.values().flat_map(|own| own.all.values())
    }

    /// Whether a workload with these labels may have clients refused by a policy in force; with `targetRefs` it counts
    /// for its whole namespace.
    pub fn may_refuse(
        &self,
        namespace: &str,
        root_namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        let root = self.of_namespace(root_namespace).filter(|_| namespace != root_namespace);
        let own = self.of_namespace(namespace);
        let selecting = root.into_iter().chain(own).flat_map(|policies| policies.selecting(labels));
        let referring = own.into_iter().flat_map(|own| own.services.values().flat_map(OrdMap::values));
        selecting.chain(referring).any(|policy| policy.may_refuse())
    }

    /// Puts a policy in the place of the one of its name.
    pub fn insert(&mut self, policy: &Arc<AuthorizationPolicy>) {
        self.remove(&policy.name);
        let own = self.namespaces.entry(Arc::clone(&policy.name.namespace)).or_default();
        Arc::make_mut(own).set(policy, true);
    }

    /// Takes a policy out.
    pub fn remove(&mut self, name: &PolicyName) {
        let Some(old) = self.get(name).map(Arc::clone) else { return };
        let Some(own) = self.namespaces.get_mut(&name.namespace) else { return };
        let own = Arc::make_mut(own);
        own.set(&old, false);
        if own.all.is_empty() {
            self.namespaces.remove(&name.namespace);
        }
    }
}

impl NamespacePolicies {
    /// All, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.all.values()
    }

    /// Those that concern a workload with these labels for its namespace or its labels, `targetRefs` aside, in no order.
    pub fn selecting<'a>(
        &'a self,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicy>> {
        let first = labels.iter().filter_map(|(key, value)| self.labelled.get(&**key)?.get(&**value));
        self.whole.values().chain(first.flat_map(OrdMap::values)).filter(|policy| match &policy.scope {
            PolicyScope::Selector { labels: wanted, .. } => {
                wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
            }
            PolicyScope::Mesh | PolicyScope::Namespace => true,
            PolicyScope::Services(_) => false,
        })
    }

    /// The services that `targetRefs` name, each with the policies that do, by name.
    pub fn targets(
        &self,
    ) -> impl Iterator<Item = (&Arc<str>, impl Iterator<Item = &Arc<AuthorizationPolicy>>)> {
        self.services.iter().map(|(service, policies)| (service, policies.values()))
    }

    /// The policies that name a service in `targetRefs`, by name.
    pub fn targeting(&self, service: &str) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.services.get(service).into_iter().flat_map(OrdMap::values)
    }

    fn set(&mut self, policy: &Arc<AuthorizationPolicy>, add: bool) {
        put(&mut self.all, policy, add);
        match &policy.scope {
            PolicyScope::Mesh | PolicyScope::Namespace => put(&mut self.whole, policy, add),
            PolicyScope::Selector { labels, .. } => {
                let Some((key, value)) = labels.first_key_value() else {
                    return put(&mut self.whole, policy, add);
                };
                let (key, value): (Arc<str>, Arc<str>) = (key.as_str().into(), value.as_str().into());
                let mut values = self.labelled.get(&key).cloned().unwrap_or_default();
                put_at(&mut values, value, policy, add);
                if values.is_empty() {
                    self.labelled.remove(&key);
                } else {
                    self.labelled.insert(key, values);
                }
            }
            PolicyScope::Services(names) => {
                for name in names {
                    put_at(&mut self.services, Arc::clone(name), policy, add);
                }
            }
        }
    }
}

fn put(policies: &mut ByName, policy: &Arc<AuthorizationPolicy>, add: bool) {
    if add {
        policies.insert(Arc::clone(&policy.name.name), Arc::clone(policy));
    } else {
        policies.remove(&policy.name.name);
    }
}

fn put_at(index: &mut OrdMap<Arc<str>, ByName>, key: Arc<str>, policy: &Arc<AuthorizationPolicy>, add: bool) {
    let mut policies = index.get(&key).cloned().unwrap_or_default();
    put(&mut policies, policy, add);
    if policies.is_empty() {
        index.remove(&key);
    } else {
        index.insert(key, policies);
    }
}
