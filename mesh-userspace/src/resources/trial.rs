//! What policies written as text do to a few connections, from the text to the decision: what a fuzz target runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Change, Translator, decode};
use crate::model::{Identity, MeshConfig, TrustDomain, WorkloadUid};
use crate::policy::authorization::{Connection, Decision, Guard, PolicyVerdict};

/// A pod with two ports behind a service, so that every scope has something to select.
const WORLD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: []}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
";

/// What is decided on one connection, and what is said about it.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What the connection's source is called.
    pub source: Option<Identity>,
    /// The decision.
    pub decision: Decision,
    /// What every policy that applies says.
    pub verdicts: Vec<PolicyVerdict>,
}

/// Decodes any text, translates what objects it has beside a pod `shop/web`, and decides on connections to that pod with
/// and without an identity, of both families. Nothing in the text may make it panic.
pub fn try_policies(text: &str) -> Vec<Trial> {
    let objects = [WORLD, text].map(decode).into_iter().flat_map(|decoded| decoded.objects);
    let mut translator = Translator::new(MeshConfig::default());
    let (snapshot, _) = translator.apply(objects.map(|item| Change::Upsert(item.object)));
    // The text may have taken the pod away by writing another of its name that has ended.
    let Some(workload) = snapshot.workloads.get(&WorkloadUid::pod("shop", "web")) else { return Vec::new() };
    let guard = Guard::of(&snapshot, workload);
    let identity = |domain: &str| Identity::new(TrustDomain::new(domain).ok()?, "shop", "client").ok();
    let v4 = (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let v6 = (IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)));
    let mapped = (IpAddr::V6(Ipv4Addr::new(10, 0, 0, 9).to_ipv6_mapped()), v4.1);
    let mut trials = Vec::new();
    for source in [None, identity("cluster.local"), identity("other")] {
        for ((client, destination), port) in [(v4, 8080), (v6, 8080), (mapped, 1)] {
            let destination = SocketAddr::new(destination, port);
            let connection = Connection { source: source.as_ref(), client, destination };
            let decision = guard.decide(&connection);
            trials.push(Trial { decision, verdicts: guard.explain(&connection), source: source.clone() });
        }
    }
    trials
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: &str =
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\n";

    #[test]
    fn a_policy_is_tried() {
        let trials = try_policies(&format!(
            "{POLICY}spec: {{rules: [{{from: [{{source: {{principals: ['cluster.local/*']}}}}]}}]}}\n"
        ));
        let refused: Vec<bool> =
            trials.iter().map(|trial| trial.decision.verdict.refusal().is_some()).collect();
        assert_eq!(refused, [true, true, true, false, false, false, true, true, true]);
        assert!(trials.iter().all(|trial| trial.verdicts.len() == 1));
    }

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
            try_policies(&format!("{POLICY}spec: {{{spec}}}\n"));
            try_policies(&format!("{POLICY}spec:\n  {spec}\n"));
            try_policies(&spec);
        }
    }
}
