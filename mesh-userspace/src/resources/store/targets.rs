//! What is said of `targetRefs` to services that are not there.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Translator;
use crate::model::{AuthorizationPolicy, PolicyScope, ServiceName};
use crate::resources::{Code, Kind, Notice, ObjectRef};

impl Translator {
    /// Says anew what there is to say about policies that refer to these services.
    pub(super) fn rebuild_targets(&mut self, targets: BTreeSet<ServiceName>) {
        for name in targets {
            let own = self.snapshot.policies.of_namespace(&name.namespace);
            let is_gone = !self.snapshot.services.contains_key(&name);
            let policies = own.filter(|_| is_gone).into_iter().flat_map(|own| own.targeting(&name.name));
            let notices: Vec<Notice> = policies.map(|policy| notice(policy, &name)).collect();
            if self.target_notices.get(&name).map_or(&[][..], Vec::as_slice) == notices {
                continue;
            }
            self.notices_changed = true;
            if notices.is_empty() {
                self.target_notices.remove(&name);
            } else {
                self.target_notices.insert(name, notices);
            }
        }
    }
}

/// The services that a policy refers to.
pub(super) fn targets(policy: &AuthorizationPolicy) -> impl Iterator<Item = ServiceName> {
    let names = match &policy.scope {
        PolicyScope::Services(names) => &names[..],
        PolicyScope::Mesh | PolicyScope::Namespace | PolicyScope::Selector { .. } => &[],
    };
    names.iter().map(|name| ServiceName::new(Arc::clone(&policy.name.namespace), Arc::clone(name)))
}

fn notice(policy: &AuthorizationPolicy, service: &ServiceName) -> Notice {
    let (namespace, name) = (Arc::clone(&policy.name.namespace), Arc::clone(&policy.name.name));
    let object = ObjectRef::new(Kind::AuthorizationPolicy, namespace, name);
    let message = format!("there is no service {service}: the policy is not in force there");
    Notice::new(Code::TargetUnknown, &object, "spec.targetRefs", message)
}
