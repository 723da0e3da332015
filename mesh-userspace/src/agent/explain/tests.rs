//! Connections explained from manifests alone.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::admin::explain::{Basis, ExplainPath, Outcome, Transport};
use crate::model::{MeshConfig, Mode};

/// `web` behind a service on two nodes, one of them routed away from; `client` on the first, `plain` outside the mesh.
const CLUSTER: &str = r"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
apiVersion: v1
kind: Node
metadata: {name: node-a}
status: {addresses: [{type: InternalIP, address: 172.30.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {serviceAccountName: client, nodeName: node-a, containers: []}
status: {podIPs: [{ip: 10.244.1.10}]}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: shop, labels: {app: plain, istio.io/dataplane-mode: none}}
spec: {nodeName: node-a, containers: []}
status: {podIPs: [{ip: 10.244.1.20}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, version: v1}}
spec: {serviceAccountName: web, nodeName: node-a, containers: []}
status: {podIPs: [{ip: 10.244.1.11}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web, version: v2}}
spec: {serviceAccountName: web, nodeName: node-b, containers: []}
status: {podIPs: [{ip: 10.244.2.11}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  selector: {app: web}
  loadBalancerSourceRanges: [198.51.100.0/24]
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.244.1.11], nodeName: node-a, targetRef: {kind: Pod, name: web-1, namespace: shop}}
- {addresses: [10.244.2.11], nodeName: node-b, targetRef: {kind: Pod, name: web-2, namespace: shop}}
- {addresses: [10.244.2.12], nodeName: node-b, conditions: {ready: false}}
ports: [{port: 8080, protocol: TCP}]
";

const SPLIT: &str = r"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: v3, labels: {version: v3}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  tcp:
  - route:
    - {destination: {host: web, subset: v1}, weight: 70}
    - {destination: {host: web, subset: v2}, weight: 20}
    - {destination: {host: web, subset: v3}, weight: 10}
";

const STRICT: &str = r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}
";

fn policy(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n{rest}\n"
    )
}

/// What is said of a connection, given these manifests besides the cluster's.
fn asked(more: &[&str], from: &str, to: &str) -> ExplainReport {
    ask(more, None, from, to).unwrap()
}

fn ask(more: &[&str], node: Option<&str>, from: &str, to: &str) -> Result<ExplainReport, QueryError> {
    ask_for(more, node, from, to, None)
}

fn ask_for(
    more: &[&str],
    node: Option<&str>,
    from: &str,
    to: &str,
    server_name: Option<&str>,
) -> Result<ExplainReport, QueryError> {
    let folder = TempDir::new().unwrap();
    let text = [&[CLUSTER], more].concat().join("\n---\n");
    fs::write(folder.path().join("all.yaml"), text).unwrap();
    let mesh = MeshConfig { node: node.map(NodeName::new), ..MeshConfig::default() };
    let query = ExplainQuery {
        from: from.to_owned(),
        to: to.to_owned(),
        protocol: Protocol::Tcp,
        server_name: server_name.map(ToOwned::to_owned),
    };
    explain_manifests(&[folder.path().to_owned()], mesh, &query)
}

/// The paths that get something, as `WORKLOAD SHARE TRANSPORT VERDICT`.
fn paths(report: &ExplainReport) -> Vec<String> {
    let drawn = report.paths.iter().filter(|path| path.backend.share_ppm > 0);
    let words = |path: &ExplainPath| {
        let workload = path.backend.workload.as_deref().unwrap_or("-");
        let verdict = if path.allowed { "allowed" } else { "refused" };
        format!("{workload} {} {:?} {verdict}", path.backend.share_ppm / 10_000, path.transport)
    };
    drawn.map(words).collect()
}

#[test]
fn a_connection_of_the_mesh_is_followed_to_each_endpoint() {
    let report = asked(&[], "shop/client", "web.shop:80");
    assert_eq!(
        (report.outcome, report.verdict, report.basis),
        (Outcome::Allowed, Verdict::Captured, Basis::Snapshot)
    );
    assert_eq!(paths(&report), ["shop/web-1 50 SameNode allowed", "shop/web-2 50 Hbone allowed"]);
    let source = report.source.as_ref().unwrap();
    assert!(source.enrolled && source.address == Some([10, 244, 1, 10].into()), "{source:?}");
    assert_eq!(source.identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/client"));
    let path = &report.paths[1];
    assert_eq!(path.authenticated, source.identity);
    assert_eq!(path.identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/web"));
    assert_eq!((path.mode, &path.mode_by), (Some(Mode::Permissive), &None));
    let route = report.route.as_ref().unwrap();
    assert_eq!((route.service.as_str(), route.port, &route.rule), ("shop/web", 80, &None));
    // The one that is not ready is told, and not counted.
    let idle = report.paths.last().unwrap();
    assert_eq!((idle.backend.share_ppm, idle.reason.as_str()), (0, "it takes no new connections"));
    assert!(report.differences.is_empty() && report.problems.is_empty(), "{report:#?}");
}

#[test]
fn a_route_names_its_rule_and_a_share_that_leads_nowhere() {
    let report = asked(&[SPLIT], "shop/client", "shop/web:80");
    assert_eq!(report.outcome, Outcome::Differs);
    assert_eq!(report.because, "2 of 3 endpoints let it through, 90 % of the draws");
    assert_eq!(
        paths(&report),
        ["- 10 None refused", "shop/web-1 70 SameNode allowed", "shop/web-2 20 Hbone allowed"]
    );
    let route = report.route.unwrap();
    assert_eq!(route.rule.as_deref(), Some("shop/web"));
    let weights: Vec<_> = route.targets.iter().map(|target| (target.weight, target.endpoints)).collect();
    assert_eq!(weights, [(70, 1), (20, 1), (10, 0)]);
}

#[test]
fn policies_are_told_with_the_rule_that_decides() {
    let allow = policy(
        "allow",
        "spec: {selector: {matchLabels: {version: v2}}, rules: [{from: [{source: {namespaces: [other]}}]}, {from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]}",
    );
    let deny = policy(
        "deny",
        "spec: {selector: {matchLabels: {version: v1}}, action: DENY, rules: [{to: [{operation: {ports: [\"8080\"]}}]}]}",
    );
    let report = asked(&[&allow, &deny], "shop/client", "web.shop.svc:80");
    assert_eq!(report.outcome, Outcome::Differs);
    let [first, second, ..] = &report.paths[..] else { panic!("{report:#?}") };
    assert_eq!((first.allowed, first.reason.as_str()), (false, "denied by shop/deny rules[0]"));
    assert_eq!((second.allowed, second.reason.as_str()), (true, "allowed by shop/allow rules[1]"));
    assert_eq!(first.policies.len(), 1);
    assert_eq!((second.policies[0].matched, second.policies[0].rules[0].missed.is_some()), (Some(1), true));
    // As a dry run it refuses nothing, and says so.
    let trial =
        deny.replace("namespace: shop}", "namespace: shop, annotations: {istio.io/dry-run: \"true\"}}");
    let report = asked(&[&allow, &trial], "shop/client", "web.shop.svc:80");
    assert_eq!(report.outcome, Outcome::Allowed);
    assert_eq!(report.paths[0].dry_run.as_deref(), Some("denied by shop/deny rules[0]"));
    assert!(report.paths[0].policies[0].dry_run);
}

#[test]
fn plaintext_is_judged_where_it_arrives() {
    let report = asked(&[STRICT], "shop/plain", "web.shop:80");
    assert_eq!((report.outcome, report.verdict), (Outcome::Refused, Verdict::Translated));
    let words = "plaintext to a port that takes mutual TLS only (PeerAuthentication shop/strict)";
    assert_eq!(report.because, words);
    assert_eq!(report.paths[0].mode_by.as_deref(), Some("shop/strict"));
    assert_eq!(paths(&asked(&[STRICT], "shop/client", "web.shop:80")).len(), 2);
    // An address is all that is known of who is outside the mesh.
    let deny = policy("deny", "spec: {action: DENY, rules: [{from: [{source: {ipBlocks: [10.244.1.20]}}]}]}");
    assert_eq!(asked(&[&deny], "shop/plain", "web.shop:80").outcome, Outcome::Refused);
    assert_eq!(asked(&[&deny], "shop/client", "web.shop:80").outcome, Outcome::Allowed);
    // A probe of the node's own is let through.
    let report = ask(&[STRICT], Some("node-a"), "node", "shop/web-1:8080").unwrap();
    assert_eq!((report.outcome, report.verdict), (Outcome::Allowed, Verdict::Passed));
    assert!(report.because.contains("as probes do"), "{}", report.because);
    let report = ask(&[STRICT], Some("node-a"), "node", "shop/web-2:8080").unwrap();
    assert_eq!(report.outcome, Outcome::Refused);
}

#[test]
fn what_of_its_policies_is_not_carried_out_is_said() {
    let l7 = "spec: {selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {methods: [GET]}}]}]}";
    let (here, elsewhere) = (policy("get", l7), policy("far", &l7.replace("app: web", "app: far")));
    let ports = STRICT.replace("selector: {matchLabels: {app: web}}", "portLevelMtls: {80: {mode: STRICT}}");
    let report = asked(&[&here, &elsewhere, &ports], "shop/client", "web.shop:80");
    assert_eq!((report.notices.len(), report.more_notices), (2, 0), "{:#?}", report.notices);
    let starts = [
        "warning: PeerAuthentication shop/strict: spec.portLevelMtls:",
        "warning: AuthorizationPolicy shop/get: spec",
    ];
    for start in starts {
        assert!(report.notices.iter().any(|notice| notice.starts_with(start)), "{:#?}", report.notices);
    }
    assert!(asked(&[STRICT], "shop/client", "web.shop:80").notices.is_empty());
}

#[test]
fn why_the_agent_carries_it_is_told_as_it_is() {
    let service = r"
{apiVersion: v1, kind: Service, metadata: {name: old, namespace: shop}, spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: old-1, namespace: shop, labels: {kubernetes.io/service-name: old}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.20]}]
ports: [{port: 80, protocol: TCP}]";
    let limit = r"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: few, namespace: shop}
spec: {host: old, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}";
    let route = |entry: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: old, namespace: shop}}\n\
             spec: {{hosts: [old], http: [{{{entry}route: [{{destination: {{host: old}}}}]}}]}}"
        )
    };
    let labels = route("match: [{sourceLabels: {app: client}}], ");
    for (more, expected) in [
        (limit, "DestinationRule shop/few asks for"),
        (&route("timeout: 1s, "), "VirtualService shop/old asks for"),
        (&labels, "route shop/old is for some"),
    ] {
        let report = asked(&[service, more], "shop/client", "old.shop:80");
        assert_eq!(report.verdict, Verdict::Captured, "{expected}");
        assert!(report.reason.contains(expected), "{}", report.reason);
    }
    let report = asked(&[limit, service], "shop/client", "old.shop:80");
    let told = report.steps.iter().find(|step| step.what == "settings").unwrap();
    assert_eq!(told.found, "DestinationRule shop/few");
    let report = asked(&[], "shop/client", "web.shop:80");
    assert!(report.reason.contains("a backend is in the mesh"), "{}", report.reason);
}

#[test]
fn other_ways_in_and_out() {
    let cases = [
        (
            "a pod that is not in the mesh",
            "shop/client",
            "shop/plain:80",
            Verdict::Passed,
            Outcome::Allowed,
            "not in the mesh",
        ),
        (
            "a pod directly",
            "shop/client",
            "10.244.2.11:8080",
            Verdict::Captured,
            Outcome::Allowed,
            "no policy refuses",
        ),
        (
            "itself",
            "shop/client",
            "10.244.1.10:80",
            Verdict::Captured,
            Outcome::Allowed,
            "stays in its kernel",
        ),
        ("elsewhere", "shop/client", "192.0.2.9:80", Verdict::Passed, Outcome::Allowed, "no pod"),
        (
            "a port that no service has",
            "shop/client",
            "10.96.0.1:81",
            Verdict::Refused,
            Outcome::Refused,
            "no service has this port",
        ),
        (
            "a node port from outside",
            "192.0.2.7",
            "172.30.0.1:30080",
            Verdict::Carried,
            Outcome::Allowed,
            "no policy refuses",
        ),
        (
            "the load balancer, in its ranges",
            "198.51.100.7",
            "203.0.113.1:80",
            Verdict::Carried,
            Outcome::Allowed,
            "no policy refuses",
        ),
        (
            "the load balancer, out of them",
            "192.0.2.7",
            "203.0.113.1:80",
            Verdict::Refused,
            Outcome::Refused,
            "loadBalancerSourceRanges",
        ),
    ];
    for (name, from, to, verdict, outcome, because) in cases {
        let report = ask(&[], Some("node-a"), from, to).unwrap();
        assert_eq!((report.verdict, report.outcome), (verdict, outcome), "{name}: {report:#?}");
        assert!(report.because.contains(because), "{name}: {}", report.because);
    }
    // Who comes from outside is plaintext: the agents' own identity is none of a client's.
    let report = ask(&[], Some("node-a"), "192.0.2.7", "172.30.0.1:30080").unwrap();
    assert_eq!(paths(&report), ["shop/web-1 50 Plaintext allowed", "shop/web-2 50 Hbone allowed"]);
    assert!(report.paths.iter().all(|path| path.authenticated.is_none()));
    let report = ask(&[STRICT], Some("node-a"), "192.0.2.7", "172.30.0.1:30080").unwrap();
    assert_eq!(report.outcome, Outcome::Refused);
    assert!(report.paths.iter().all(|path| path.transport != Transport::Hbone), "{report:#?}");
}

#[test]
fn what_cannot_be_explained_is_said_in_a_line() {
    for (from, to, message) in [
        ("shop/none", "web.shop:80", "no pod shop/none is known"),
        ("shop/client", "none.shop:80", "no service shop/none is known"),
        (
            "nobody",
            "web.shop:80",
            "`nobody` is nobody who connects: write NAMESPACE/POD, an address, `node` or `outside`",
        ),
        (
            "shop/client",
            "web",
            "`web` is no destination: write ADDRESS:PORT, NAME.NAMESPACE:PORT or NAMESPACE/NAME:PORT",
        ),
    ] {
        assert_eq!(ask(&[], None, from, to).unwrap_err().to_string(), message);
    }
    let elsewhere = ask(&[], Some("node-b"), "shop/client", "web.shop:80").unwrap_err();
    assert_eq!(
        elsewhere.to_string(),
        "pod shop/client is on node-a, not on node-b: give its node with --node"
    );
    let broken = asked(&["{apiVersion: v1, kind: Service, metadata: {}}"], "shop/client", "web.shop:80");
    assert_eq!((broken.outcome, broken.problems.len()), (Outcome::Allowed, 1));
    assert!(broken.problems[0].contains("all.yaml:"), "{:?}", broken.problems);
}
