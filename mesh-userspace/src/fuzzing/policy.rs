//! Policies from their text to a decision.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use crate::model::{Identity, MeshConfig, PolicyAction, PolicyName, Snapshot, Workload};
use crate::policy::authorization::{Connection, Guard, PolicyVerdict, Refusal, Verdict};
use crate::resources::{Change, Item, Kind, Object, Translator, decode};

/// A namespace in the mesh with a service, the pod behind it, and another pod.
const CLUSTER: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web, nodeName: node-a, containers: []}
status: {podIPs: [{ip: 10.244.1.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client, version: v1}}
spec: {serviceAccountName: client, nodeName: node-b, containers: []}
status: {podIPs: [{ip: 10.244.2.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.1], targetRef: {kind: Pod, name: web-1, namespace: shop}}]
ports: [{port: 8080, protocol: TCP}]
"#;

/// What any text does: objects that are read are decided by, as `decide` and `explain` both say; those that are not leave
/// nothing behind, and neither do those that are deleted again.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let decoded = decode(text);
    let mut translator = Translator::new(MeshConfig::default());
    let (before, _) = translator.apply(cluster().iter().map(|object| Change::Upsert(Arc::clone(object))));
    // Only policies: what else the text says is another matter, and the cluster stays as it is.
    let is_policy = |item: &&Item| {
        matches!(&*item.object, Object::AuthorizationPolicy(_) | Object::PeerAuthentication(_))
    };
    let policies: Vec<Arc<Object>> =
        decoded.objects.iter().filter(is_policy).map(|item| Arc::clone(&item.object)).collect();
    let read: BTreeSet<_> = policies.iter().map(|object| object.reference()).collect();
    let (snapshot, notices) =
        translator.apply(policies.iter().map(|object| Change::Upsert(Arc::clone(object))));
    for mistake in &decoded.mistakes {
        let Some(object) = mistake.object.as_ref().filter(|object| !read.contains(object)) else { continue };
        let name = PolicyName::new(Arc::clone(&object.namespace), Arc::clone(&object.name));
        assert!(snapshot.policies.get(&name).is_none() || object.kind != Kind::AuthorizationPolicy);
        assert!(!snapshot.peer_policies.contains_key(&name) || object.kind != Kind::PeerAuthentication);
        assert!(notices.iter().all(|notice| notice.object != *object), "{object}");
    }
    for workload in snapshot.workloads.values() {
        asked(&snapshot, workload);
    }
    let (after, _) = translator.apply(read.into_iter().map(Change::Delete));
    assert!(after.policies.is_empty() && after.peer_policies.is_empty());
    assert_eq!(after.workloads, before.workloads);
}

fn cluster() -> &'static [Arc<Object>] {
    static OBJECTS: OnceLock<Vec<Arc<Object>>> = OnceLock::new();
    OBJECTS.get_or_init(|| {
        let decoded = decode(CLUSTER);
        assert!(decoded.mistakes.is_empty(), "{:?}", decoded.mistakes);
        decoded.objects.into_iter().map(|item| item.object).collect()
    })
}

/// Connections of all kinds to the workload.
fn asked(snapshot: &Snapshot, workload: &Workload) {
    let guard = Guard::of(snapshot, workload);
    assert!(guard.is_current(snapshot, workload));
    let identity = |text: &str| text.parse::<Identity>().expect("it is a SPIFFE ID of the form that is read");
    let peers = [
        None,
        Some(identity("spiffe://cluster.local/ns/shop/sa/client")),
        Some(identity("spiffe://elsewhere/ns/other/sa/default")),
    ];
    let mapped = Ipv4Addr::new(10, 244, 2, 2).to_ipv6_mapped();
    let clients: [IpAddr; 4] =
        [[10, 244, 2, 2].into(), mapped.into(), [192, 0, 2, 7].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 2].into()];
    for source in &peers {
        for client in clients {
            for destination in workload.addresses.iter().map(|&address| SocketAddr::new(address, 8080)) {
                let connection = Connection { source: source.as_ref(), client, destination };
                agrees(&guard, &connection);
            }
        }
    }
}

/// The decision, as what each policy says by itself adds up to it.
fn agrees(guard: &Guard, connection: &Connection<'_>) {
    let decision = guard.decide(connection);
    let said: BTreeMap<PolicyName, PolicyVerdict> =
        guard.explain(connection).into_iter().map(|one| (one.policy.clone(), one)).collect();
    let in_force = |action: PolicyAction| {
        said.values().filter(move |one| !one.dry_run && one.concerned && one.action == action)
    };
    let matched = |action| in_force(action).find_map(|one| Some((one.policy.clone(), one.matched?)));
    let named = |rule: &crate::policy::authorization::PolicyRef| (rule.policy.clone(), rule.rule);
    match &decision.verdict {
        Verdict::Refused(Refusal::Plaintext) => return assert!(connection.source.is_none()),
        Verdict::Refused(Refusal::Custom { rule }) => {
            assert_eq!(Some(named(rule)), matched(PolicyAction::Custom));
        }
        Verdict::Refused(Refusal::Denied { rule }) => {
            assert_eq!(Some(named(rule)), matched(PolicyAction::Deny));
            assert_eq!(matched(PolicyAction::Custom), None);
        }
        Verdict::Refused(Refusal::NotAllowed) => {
            assert!(in_force(PolicyAction::Allow).next().is_some());
            assert_eq!(matched(PolicyAction::Allow), None);
        }
        Verdict::Allowed(rule) => assert_eq!(Some(named(rule)), matched(PolicyAction::Allow)),
        Verdict::Unguarded => assert_eq!(in_force(PolicyAction::Allow).next(), None),
    }
    if decision.verdict.refusal().is_none() {
        assert_eq!(matched(PolicyAction::Deny), None);
        assert_eq!(matched(PolicyAction::Custom), None);
    } else {
        assert!(guard.may_refuse(), "{:?}", decision.verdict);
    }
    for rule in &decision.audited {
        assert_eq!(said.get(&rule.policy).map(|one| one.action), Some(PolicyAction::Audit));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    const POLICY: &str =
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\n";

    /// A text of the pieces that policies are made of, which mostly is no policy.
    fn spec() -> impl Strategy<Value = String> {
        let word = prop::sample::select(vec![
            "rules",
            "from",
            "to",
            "when",
            "source",
            "operation",
            "principals",
            "notPrincipals",
            "namespaces",
            "serviceAccounts",
            "ipBlocks",
            "remoteIpBlocks",
            "ports",
            "notPorts",
            "key",
            "values",
            "notValues",
            "action",
            "DENY",
            "ALLOW",
            "CUSTOM",
            "selector",
            "matchLabels",
            "targetRefs",
            "kind",
            "Service",
            "name",
            "web",
            "'*'",
            "'80'",
            "10.0.0.0/8",
            "source.ip",
            "destination.port",
            "a/b",
            "'*/sa/b'",
            "::ffff:0:0/96",
            "requestPrincipals",
            ":",
            ": ",
            ": {",
            ": [",
            "{",
            "}",
            "[",
            "]",
            ", ",
            "- ",
            "\n  ",
            "\n    ",
        ]);
        prop::collection::vec(word, 0..60).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn nothing_panics(spec in spec()) {
            for text in [format!("{POLICY}spec: {{{spec}}}\n"), format!("{POLICY}spec:\n  {spec}\n"), spec] {
                super::policy(text.as_bytes());
            }
        }
    }
}
