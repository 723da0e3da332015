//! Which mTLS modes hold at a workload, given every `PeerAuthentication` that may concern it.
//!
//! Istio's precedence: a policy with a selector in the workload's namespace, then the namespace's, then the mesh's (the
//! root namespace's). Within one scope the oldest wins. `UNSET` inherits from the scope above; at the top it means
//! permissive. A policy with a selector in the root namespace is ignored, as the API says ("`PeerAuthentication`
//! policies with workload selectors are ignored when deployed in the root namespace",
//! <https://istio.io/latest/docs/reference/config/security/peer_authentication>).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Mode, MtlsModes};

/// One `PeerAuthentication`; a mode of `None` is `UNSET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name, which breaks ties.
    pub name: Arc<str>,
    /// `metadata.creationTimestamp` in Unix seconds; 0 where there is none.
    pub created: i64,
    /// `selector.matchLabels`; empty: the whole namespace.
    pub selector: BTreeMap<String, String>,
    /// `mtls.mode`.
    pub mode: Option<Mode>,
    /// `portLevelMtls`, by the workload's port.
    pub ports: BTreeMap<u16, Option<Mode>>,
}

/// The modes in force at a workload of `namespace` with these labels.
pub fn effective_modes<'a>(
    policies: impl IntoIterator<Item = &'a PeerPolicy>,
    root_namespace: &str,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> MtlsModes {
    let mut mesh = None;
    let mut namespaced = None;
    let mut workload = None;
    for policy in policies {
        let scope = match (policy.selector.is_empty(), &*policy.namespace == root_namespace) {
            (true, true) => &mut mesh,
            (true, false) if &*policy.namespace == namespace => &mut namespaced,
            (false, false) if &*policy.namespace == namespace && selects(&policy.selector, labels) => {
                &mut workload
            }
            _ => continue,
        };
        keep_oldest(scope, policy);
    }
    let default =
        [workload, namespaced, mesh].into_iter().flatten().find_map(|policy| policy.mode).unwrap_or_default();
    let ports = workload.map_or_else(BTreeMap::new, |policy| {
        policy.ports.iter().map(|(&port, mode)| (port, mode.unwrap_or(default))).collect()
    });
    MtlsModes { default, ports }
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
}
