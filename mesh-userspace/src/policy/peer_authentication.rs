//! Which mTLS modes hold at a workload, given every `PeerAuthentication` that may concern it.
//!
//! Istio's precedence: a policy with a selector in the workload's namespace, then the namespace's, then the mesh's (the
//! root namespace's). Within one scope the oldest wins. `UNSET` inherits from the scope above; at the top it means
//! permissive. A policy with a selector in the root namespace is ignored, as the API says ("`PeerAuthentication`
//! policies with workload selectors are ignored when deployed in the root namespace",
//! <https://istio.io/latest/docs/reference/config/security/peer_authentication>).

use std::collections::BTreeMap;

use crate::model::{MtlsModes, PeerPolicy};

/// The policies that have a say at one workload, one a scope.
#[derive(Clone, Copy, Debug, Default)]
pub struct Applying<'a> {
    /// The one that selects the workload.
    pub workload: Option<&'a PeerPolicy>,
    /// Its namespace's.
    pub namespace: Option<&'a PeerPolicy>,
    /// The mesh's.
    pub mesh: Option<&'a PeerPolicy>,
}

/// The policies that have a say at a workload of `namespace` with these labels.
pub fn applying<'a>(
    policies: impl IntoIterator<Item = &'a PeerPolicy>,
    root_namespace: &str,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Applying<'a> {
    let mut applying = Applying::default();
    for policy in policies {
        let scope = match (policy.selector.is_empty(), &*policy.namespace == root_namespace) {
            (true, true) => &mut applying.mesh,
            (true, false) if &*policy.namespace == namespace => &mut applying.namespace,
            (false, false) if &*policy.namespace == namespace && selects(&policy.selector, labels) => {
                &mut applying.workload
            }
            _ => continue,
        };
        keep_oldest(scope, policy);
    }
    applying
}

impl<'a> Applying<'a> {
    /// Those that there are, the one that goes before the others first.
    pub fn all(&self) -> impl Iterator<Item = &'a PeerPolicy> {
        [self.workload, self.namespace, self.mesh].into_iter().flatten()
    }

    /// The modes that they come to.
    pub fn modes(&self) -> MtlsModes {
        let default = self.all().find_map(|policy| policy.mode).unwrap_or_default();
        let ports = self.workload.map_or_else(BTreeMap::new, |policy| {
            policy.ports.iter().map(|(&port, mode)| (port, mode.unwrap_or(default))).collect()
        });
        MtlsModes { default, ports }
    }

    /// The one that says which mode holds at `port`; `None`: none does, and the mode is permissive.
    pub fn deciding(&self, port: u16) -> Option<&'a PeerPolicy> {
        let own = self.workload.filter(|policy| matches!(policy.ports.get(&port), Some(Some(_))));
        own.or_else(|| self.all().find(|policy| policy.mode.is_some()))
    }
}

/// The modes in force at a workload of `namespace` with these labels.
pub fn effective_modes<'a>(
    policies: impl IntoIterator<Item = &'a PeerPolicy>,
    root_namespace: &str,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> MtlsModes {
    applying(policies, root_namespace, namespace, labels).modes()
}

/// Whether every label of the selector is there.
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn keep_oldest<'a>(kept: &mut Option<&'a PeerPolicy>, policy: &'a PeerPolicy) {
    let age = |policy: &'a PeerPolicy| (policy.created, &policy.name);
    if kept.is_none_or(|kept| age(policy) < age(kept)) {
        *kept = Some(policy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mode;

    fn policy(namespace: &str, name: &str, app: Option<&str>, mode: Option<Mode>) -> PeerPolicy {
        PeerPolicy {
            namespace: namespace.into(),
            name: name.into(),
            created: 0,
            selector: app.map(|app| ("app".to_owned(), app.to_owned())).into_iter().collect(),
            mode,
            ports: BTreeMap::new(),
        }
    }

    fn at(created: i64, mut policy: PeerPolicy) -> PeerPolicy {
        policy.created = created;
        policy
    }

    fn with_port(port: u16, mode: Option<Mode>, mut policy: PeerPolicy) -> PeerPolicy {
        policy.ports.insert(port, mode);
        policy
    }

    #[test]
    fn precedence() {
        use Mode::{Disable, Permissive, Strict};
        let mesh = |mode| policy("istio-system", "default", None, mode);
        let namespace = |name, mode| policy("shop", name, None, mode);
        let selected = |name, mode| policy("shop", name, Some("web"), mode);
        let cases: Vec<(&str, Vec<PeerPolicy>, Mode, Vec<(u16, Mode)>)> = vec![
            ("nothing is configured", vec![], Permissive, vec![]),
            ("the mesh's alone", vec![mesh(Some(Strict))], Strict, vec![]),
            (
                "the namespace's before the mesh's",
                vec![mesh(Some(Strict)), namespace("a", Some(Permissive))],
                Permissive,
                vec![],
            ),
            (
                "the workload's before the namespace's",
                vec![namespace("a", Some(Permissive)), selected("b", Some(Strict))],
                Strict,
                vec![],
            ),
            (
                "unset inherits",
                vec![mesh(Some(Strict)), namespace("a", None), selected("b", None)],
                Strict,
                vec![],
            ),
            ("unset at the top is permissive", vec![mesh(None)], Permissive, vec![]),
            (
                "the oldest of a namespace wins",
                vec![at(20, namespace("a", Some(Disable))), at(10, namespace("b", Some(Strict)))],
                Strict,
                vec![],
            ),
            (
                "the name breaks a tie",
                vec![namespace("b", Some(Disable)), namespace("a", Some(Strict))],
                Strict,
                vec![],
            ),
            (
                "the oldest wins even when it is unset",
                vec![at(10, namespace("a", None)), at(20, namespace("b", Some(Strict)))],
                Permissive,
                vec![],
            ),
            ("another namespace's", vec![policy("other", "a", None, Some(Strict))], Permissive, vec![]),
            ("another workload's", vec![policy("shop", "a", Some("db"), Some(Strict))], Permissive, vec![]),
            (
                "a selector in the root namespace is ignored",
                vec![policy("istio-system", "a", Some("web"), Some(Strict))],
                Permissive,
                vec![],
            ),
            (
                "a port of its own, and one that inherits",
                vec![with_port(81, None, with_port(80, Some(Disable), selected("a", Some(Strict))))],
                Strict,
                vec![(80, Disable), (81, Strict)],
            ),
            (
                "ports without a selector are ignored",
                vec![with_port(80, Some(Disable), namespace("a", Some(Strict)))],
                Strict,
                vec![],
            ),
        ];
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        for (name, policies, default, ports) in cases {
            let wanted = MtlsModes { default, ports: ports.into_iter().collect() };
            assert_eq!(effective_modes(&policies, "istio-system", "shop", &labels), wanted, "{name}");
            assert_eq!(
                effective_modes(policies.iter().rev(), "istio-system", "shop", &labels),
                wanted,
                "{name}, the other way round"
            );
        }
    }

    #[test]
    fn the_one_that_decides_is_named() {
        use Mode::{Permissive, Strict};
        let policies = [
            policy("istio-system", "mesh", None, Some(Strict)),
            policy("shop", "namespace", None, None),
            with_port(81, None, with_port(80, Some(Permissive), policy("shop", "web", Some("web"), None))),
        ];
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let applying = applying(&policies, "istio-system", "shop", &labels);
        let names: Vec<&str> = applying.all().map(|policy| &*policy.name).collect();
        assert_eq!(names, ["web", "namespace", "mesh"]);
        for (port, name) in [(80, "web"), (81, "mesh"), (82, "mesh")] {
            assert_eq!(applying.deciding(port).map(|policy| &*policy.name), Some(name), "{port}");
        }
        assert!(Applying::default().deciding(80).is_none());
    }
}
