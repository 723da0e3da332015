//! Istio's documented cases, each with the field or the page of the API that it follows. `DOC` stands for
//! <https://istio.io/latest/docs/reference/config/security/authorization-policy>.

use super::*;

const A: Option<&str> = Some("cluster.local/ns/a/sa/x");
const B: Option<&str> = Some("cluster.local/ns/b/sa/y");
const PLAIN: Option<&str> = None;

const CONDITIONS: &str = "https://istio.io/latest/docs/reference/config/security/conditions";

/// Who connects from where to which port of 10.0.0.1, and whether it is let in.
type Asked = (Option<&'static str>, &'static str, u16, bool);

struct Case {
    /// The page and the field that it follows.
    follows: &'static str,
    what: &'static str,
    /// Namespace and spec of each policy.
    policies: Vec<(&'static str, &'static str)>,
    asked: Vec<Asked>,
}

const fn case(
    follows: &'static str,
    what: &'static str,
    policies: Vec<(&'static str, &'static str)>,
    asked: Vec<Asked>,
) -> Case {
    Case { follows, what, policies, asked }
}

/// The shop's own policy, alone.
fn own(follows: &'static str, what: &'static str, spec: &'static str, asked: Vec<Asked>) -> Case {
    case(follows, what, vec![("shop", spec)], asked)
}

fn scopes() -> Vec<Case> {
    let near = "10.0.0.9";
    vec![
        case(
            "DOC",
            "no policy: everything is allowed",
            vec![],
            vec![(A, near, 80, true), (PLAIN, near, 80, true)],
        ),
        own(
            "DOC (allow-nothing)",
            "an empty spec allows nothing",
            "{}",
            vec![(A, near, 80, false), (PLAIN, near, 80, false)],
        ),
        own(
            "DOC#AuthorizationPolicy-rules",
            "ALLOW without rules allows nothing",
            "{action: ALLOW, rules: []}",
            vec![(A, near, 80, false)],
        ),
        own(
            "DOC (allow-all)",
            "an empty rule matches everything",
            "{rules: [{}]}",
            vec![(A, near, 80, true), (PLAIN, near, 80, true)],
        ),
        own(
            "https://istio.io/latest/docs/concepts/security/#allow-nothing-deny-all-and-allow-all-policy",
            "DENY everything",
            "{action: DENY, rules: [{}]}",
            vec![(A, near, 80, false), (PLAIN, near, 80, false)],
        ),
        own(
            "DOC#AuthorizationPolicy-rules",
            "DENY without rules denies nothing",
            "{action: DENY}",
            vec![(A, near, 80, true)],
        ),
        case(
            "DOC#AuthorizationPolicy-selector",
            "another namespace's",
            vec![("other", "{}")],
            vec![(A, near, 80, true)],
        ),
        case(
            "DOC#AuthorizationPolicy-selector",
            "the root namespace's holds everywhere",
            vec![("istio-system", "{}")],
            vec![(A, near, 80, false)],
        ),
        own(
            "DOC#AuthorizationPolicy-selector",
            "labels that the workload has",
            "{selector: {matchLabels: {app: web}}}",
            vec![(A, near, 80, false)],
        ),
        own(
            "DOC#AuthorizationPolicy-selector",
            "labels that it has not",
            "{selector: {matchLabels: {app: web, version: v2}}}",
            vec![(A, near, 80, true)],
        ),
        case(
            "DOC#AuthorizationPolicy-selector",
            "the root namespace's with a selector selects in all namespaces",
            vec![("istio-system", "{selector: {matchLabels: {version: v1}}}")],
            vec![(A, near, 80, false)],
        ),
        case(
            "DOC#AuthorizationPolicy-selector",
            "the same with another label",
            vec![("istio-system", "{selector: {matchLabels: {version: v2}}}")],
            vec![(A, near, 80, true)],
        ),
        own(
            "DOC#AuthorizationPolicy-targetRefs",
            "a Service: where its endpoints are",
            "{targetRefs: [{kind: Service, group: '', name: web}]}",
            vec![(A, near, 8080, false), (A, near, 9090, true), (A, near, 80, true)],
        ),
        own(
            "DOC#AuthorizationPolicy-targetRefs",
            "several: one of them",
            "{action: DENY, rules: [{}], targetRefs: [{kind: Service, group: core, name: web}, {kind: Service, name: admin}]}",
            vec![(A, near, 8080, false), (A, near, 9090, false), (A, near, 80, true)],
        ),
        own(
            "DOC#AuthorizationPolicy-targetRefs",
            "a Service that is not there",
            "{targetRefs: [{kind: Service, name: gone}]}",
            vec![(A, near, 8080, true)],
        ),
        own(
            "DOC#AuthorizationPolicy-targetRefs",
            "a waypoint is no concern of layer 4",
            "{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]}",
            vec![(A, near, 8080, true)],
        ),
        case(
            "DOC#AuthorizationPolicy-targetRefs",
            "a Service of another namespace",
            vec![("other", "{targetRefs: [{kind: Service, name: web}]}")],
            vec![(A, near, 8080, true)],
        ),
    ]
}

fn actions() -> Vec<Case> {
    let near = "10.0.0.9";
    let from_a = "{rules: [{from: [{source: {namespaces: [a]}}]}]}";
    vec![
        own(
            "DOC#AuthorizationPolicy-Action-ALLOW",
            "what matches is allowed, and nothing else",
            from_a,
            vec![(A, near, 80, true), (B, near, 80, false)],
        ),
        own(
            "DOC#AuthorizationPolicy-Action-DENY",
            "what matches is denied, and nothing else",
            "{action: DENY, rules: [{from: [{source: {namespaces: [a]}}]}]}",
            vec![(A, near, 80, false), (B, near, 80, true)],
        ),
        case(
            "DOC (rules 2 and 4)",
            "DENY comes before ALLOW",
            vec![
                ("shop", "{rules: [{}]}"),
                ("istio-system", "{action: DENY, rules: [{from: [{source: {namespaces: [a]}}]}]}"),
            ],
            vec![(A, near, 80, false), (B, near, 80, true)],
        ),
        case(
            "DOC (rule 4)",
            "one of several ALLOW policies is enough",
            vec![("shop", from_a), ("istio-system", "{rules: [{from: [{source: {namespaces: [b]}}]}]}")],
            vec![(A, near, 80, true), (B, near, 80, true), (PLAIN, near, 80, false)],
        ),
        own(
            "DOC#AuthorizationPolicy-Action-AUDIT",
            "AUDIT refuses nothing",
            "{action: AUDIT, rules: [{}]}",
            vec![(A, near, 80, true)],
        ),
        own(
            "DOC#AuthorizationPolicy-Action-CUSTOM",
            "CUSTOM without an authorizer refuses what it matches",
            "{action: CUSTOM, provider: {name: opa}, rules: [{from: [{source: {namespaces: [a]}}]}]}",
            vec![(A, near, 80, false), (B, near, 80, true)],
        ),
        case(
            "DOC (rule 1)",
            "CUSTOM comes before ALLOW",
            vec![("shop", "{rules: [{}]}"), ("istio-system", "{action: CUSTOM, rules: [{}]}")],
            vec![(A, near, 80, false)],
        ),
    ]
}

fn sources() -> Vec<Case> {
    let near = "10.0.0.9";
    vec![
        own(
            "DOC#Source-principals",
            "exact",
            "{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/x]}}]}]}",
            vec![(A, near, 80, true), (B, near, 80, false), (PLAIN, near, 80, false)],
        ),
        own(
            "DOC#Rule (prefix match)",
            "a prefix",
            "{rules: [{from: [{source: {principals: ['cluster.local/ns/a/*']}}]}]}",
            vec![(A, near, 80, true), (B, near, 80, false), (PLAIN, near, 80, false)],
        ),
        own(
            "DOC#Rule (suffix match)",
            "a suffix",
            "{rules: [{from: [{source: {principals: ['*/sa/y']}}]}]}",
            vec![(A, near, 80, false), (B, near, 80, true)],
        ),
        own(
            "DOC#Rule (presence match)",
            "whoever has an identity",
            "{rules: [{from: [{source: {principals: ['*']}}]}]}",
            vec![(A, near, 80, true), (PLAIN, near, 80, false)],
        ),
        own(
            "DOC#Source-principals",
            "no spiffe:// in a principal",
            "{rules: [{from: [{source: {principals: ['spiffe://cluster.local/ns/a/sa/x']}}]}]}",
            vec![(A, near, 80, false)],
        ),
        own(
            "DOC#Source-not_principals",
            "none of these; who has no identity is none of them",
            "{rules: [{from: [{source: {notPrincipals: [cluster.local/ns/a/sa/x]}}]}]}",
            vec![(A, near, 80, false), (B, near, 80, true), (PLAIN, near, 80, true)],
        ),
        own(
            "https://istio.io/latest/docs/tasks/security/authentication/mtls-migration",
            "deny plaintext",
            "{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}",
            vec![(A, near, 80, true), (PLAIN, near, 80, false)],
        ),
        own(
            "DOC#Source-namespaces",
            "a namespace and a prefix",
            "{rules: [{from: [{source: {namespaces: [a, 'bb*']}}]}]}",
            vec![(A, near, 80, true), (B, near, 80, false), (PLAIN, near, 80, false)],
        ),
        own(
            "DOC#Source-not_namespaces",
            "no such namespace",
            "{action: DENY, rules: [{from: [{source: {notNamespaces: [a]}}]}]}",
            vec![(A, near, 80, true), (B, near, 80, false), (PLAIN, near, 80, false)],
        ),
        own(
            "DOC#Source-service_accounts",
            "of another namespace, and of the policy's own",
            "{rules: [{from: [{source: {serviceAccounts: [a/x, z]}}]}]}",
            vec![
                (A, near, 80, true),
                (B, near, 80, false),
                (Some("cluster.local/ns/shop/sa/z"), near, 80, true),
                (Some("cluster.local/ns/a/sa/z"), near, 80, false),
                (Some("other.td/ns/a/sa/x"), near, 80, true),
            ],
        ),
        own(
            "DOC#Source-not_service_accounts",
            "none of these",
            "{action: DENY, rules: [{from: [{source: {notServiceAccounts: [a/x]}}]}]}",
            vec![(A, near, 80, true), (B, near, 80, false)],
        ),
        own(
            "DOC#Source-ip_blocks",
            "an address and a block",
            "{rules: [{from: [{source: {ipBlocks: [192.0.2.1, 10.0.0.0/24]}}]}]}",
            vec![
                (PLAIN, "10.0.0.7", 80, true),
                (PLAIN, "192.0.2.1", 80, true),
                (A, "192.0.2.2", 80, false),
                (PLAIN, "::ffff:10.0.0.7", 80, true),
            ],
        ),
        own(
            "DOC#Source-not_ip_blocks",
            "none of these",
            "{rules: [{from: [{source: {notIpBlocks: [10.0.0.0/24]}}]}]}",
            vec![(A, "10.0.0.7", 80, false), (A, "fd00::7", 80, true)],
        ),
        own(
            "DOC#Source-remote_ip_blocks",
            "the same address at layer 4",
            "{rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/24]}}]}]}",
            vec![(A, "10.0.0.7", 80, true), (A, "10.0.1.7", 80, false)],
        ),
        own(
            "DOC#Source-not_remote_ip_blocks",
            "none of these",
            "{action: DENY, rules: [{from: [{source: {notRemoteIpBlocks: [10.0.0.0/24]}}]}]}",
            vec![(A, "10.0.0.7", 80, true), (A, "10.0.1.7", 80, false)],
        ),
        own(
            "DOC#Source",
            "fields of a source must all match",
            "{rules: [{from: [{source: {namespaces: [a, b], notIpBlocks: [203.0.113.4]}}]}]}",
            vec![(A, near, 80, true), (A, "203.0.113.4", 80, false), (PLAIN, near, 80, false)],
        ),
        own(
            "DOC#Rule-from",
            "one of the sources is enough",
            "{rules: [{from: [{source: {namespaces: [a]}}, {source: {ipBlocks: [192.0.2.0/24]}}]}]}",
            vec![(A, near, 80, true), (B, near, 80, false), (PLAIN, "192.0.2.9", 80, true)],
        ),
        own(
            "DOC#Source-request_principals",
            "in an ALLOW the rule matches nothing",
            "{rules: [{from: [{source: {requestPrincipals: ['*'], namespaces: [a]}}]}]}",
            vec![(A, near, 80, false)],
        ),
        own(
            "DOC#Source-not_request_principals",
            "in a DENY it is left out",
            "{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*'], namespaces: [a]}}]}]}",
            vec![(A, near, 80, false), (B, near, 80, true)],
        ),
    ]
}

fn operations_and_conditions() -> Vec<Case> {
    let near = "10.0.0.9";
    vec![
        own(
            "DOC#Operation-ports",
            "ports of the workload",
            "{rules: [{to: [{operation: {ports: ['8080', '81']}}]}]}",
            vec![(A, near, 8080, true), (A, near, 81, true), (A, near, 80, false)],
        ),
        own(
            "DOC#Operation-not_ports",
            "none of these",
            "{action: DENY, rules: [{to: [{operation: {notPorts: ['8080']}}]}]}",
            vec![(A, near, 8080, true), (A, near, 80, false)],
        ),
        own(
            "DOC#Rule-to",
            "one of the operations is enough",
            "{rules: [{to: [{operation: {ports: ['80']}}, {operation: {notPorts: ['80', '81']}}]}]}",
            vec![(A, near, 80, true), (A, near, 81, false), (A, near, 82, true)],
        ),
        own(
            "DOC (POST on port 8080)",
            "a DENY with methods denies all TCP to the port",
            "{action: DENY, rules: [{to: [{operation: {methods: [POST], ports: ['8080']}}]}]}",
            vec![(A, near, 8080, false), (A, near, 80, true)],
        ),
        own(
            "DOC (POST)",
            "and without ports all TCP",
            "{action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}",
            vec![(A, near, 8080, false), (PLAIN, near, 80, false)],
        ),
        own(
            "https://istio.io/latest/docs/tasks/security/authorization/authz-tcp",
            "an ALLOW with methods allows no TCP",
            "{rules: [{to: [{operation: {methods: [GET], ports: ['8080']}}]}, {to: [{operation: {ports: ['81']}}]}]}",
            vec![(A, near, 8080, false), (A, near, 81, true)],
        ),
        own(
            "DOC#Operation-hosts",
            "as do hosts, paths and their not-fields",
            "{rules: [{to: [{operation: {notHosts: [a]}}]}, {to: [{operation: {paths: [/a]}}]}, {to: [{operation: {notPaths: [/a]}}]}, {to: [{operation: {notMethods: [GET]}}]}]}",
            vec![(A, near, 80, false)],
        ),
        own(
            CONDITIONS,
            "source.ip",
            "{rules: [{when: [{key: source.ip, values: [10.0.0.0/24], notValues: [10.0.0.8]}]}]}",
            vec![(A, near, 80, true), (A, "10.0.0.8", 80, false), (A, "10.0.1.1", 80, false)],
        ),
        own(
            CONDITIONS,
            "remote.ip",
            "{rules: [{when: [{key: remote.ip, values: [10.0.0.0/24]}]}]}",
            vec![(A, near, 80, true), (A, "10.0.1.1", 80, false)],
        ),
        own(
            CONDITIONS,
            "source.namespace",
            "{rules: [{when: [{key: source.namespace, values: [a]}]}]}",
            vec![(A, near, 80, true), (B, near, 80, false)],
        ),
        own(
            CONDITIONS,
            "source.principal",
            "{rules: [{when: [{key: source.principal, notValues: ['*/sa/y']}]}]}",
            vec![(A, near, 80, true), (B, near, 80, false), (PLAIN, near, 80, true)],
        ),
        own(
            CONDITIONS,
            "source.serviceAccount",
            "{rules: [{when: [{key: source.serviceAccount, values: [a/x]}]}]}",
            vec![(A, near, 80, true), (B, near, 80, false)],
        ),
        own(
            CONDITIONS,
            "destination.ip",
            "{action: DENY, rules: [{when: [{key: destination.ip, values: [10.0.0.1]}]}]}",
            vec![(A, near, 80, false)],
        ),
        own(
            CONDITIONS,
            "destination.port",
            "{action: DENY, rules: [{when: [{key: destination.port, notValues: ['80']}]}]}",
            vec![(A, near, 80, true), (A, near, 81, false)],
        ),
        own(
            CONDITIONS,
            "an attribute of layer 7 in an ALLOW",
            "{rules: [{when: [{key: 'request.headers[a]', values: [b]}]}]}",
            vec![(A, near, 80, false)],
        ),
        own(
            CONDITIONS,
            "the same in a DENY",
            "{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], when: [{key: 'request.auth.claims[iss]', values: [b]}]}]}",
            vec![(A, near, 80, false), (B, near, 80, true)],
        ),
        own(
            "DOC#Condition-key",
            "an attribute that nobody knows",
            "{rules: [{when: [{key: source.color, values: [b]}]}]}",
            vec![(A, near, 80, false)],
        ),
        own(
            "DOC#Rule-when",
            "all conditions must hold",
            "{rules: [{when: [{key: source.namespace, values: [a]}, {key: destination.port, values: ['80']}]}]}",
            vec![(A, near, 80, true), (A, near, 81, false), (B, near, 80, false)],
        ),
        own(
            "DOC#Rule",
            "a source, an operation and all conditions",
            "{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {ports: ['80']}}], when: [{key: source.ip, values: [10.0.0.9]}]}]}",
            vec![(A, near, 80, true), (A, near, 81, false), (A, "10.0.0.8", 80, false), (B, near, 80, false)],
        ),
    ]
}

#[test]
fn documented_cases() {
    let cases = [scopes(), actions(), sources(), operations_and_conditions()];
    for Case { follows, what, policies, asked } in cases.into_iter().flatten() {
        let policies = policies.into_iter().enumerate();
        let policies: String = policies
            .map(|(index, (namespace, spec))| policy(namespace, &format!("p{index}"), "", spec))
            .collect();
        let guard = guard(&snapshot(&policies, MeshConfig::default()));
        for (source, client, port, wanted) in asked {
            let source = source.map(identity);
            let decision = guard.decide(&Connection {
                source: source.as_ref(),
                client: client.parse().unwrap(),
                destination: SocketAddr::from(([10, 0, 0, 1], port)),
            });
            let let_in = decision.verdict.refusal().is_none();
            let message = format!("{what} ({follows}): {source:?} from {client} to {port}: {decision:?}");
            assert_eq!(let_in, wanted, "{message}");
            assert_eq!(decision.dry_run, None, "{message}");
        }
    }
}
