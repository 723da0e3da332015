//! Which policies there are, and which apply to a workload: told by the very guards that decide.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::chain;
use crate::admin::plane::QueryError;
use crate::admin::policy::{
    GuardedWorkload, MAX_NOTICES, MAX_POLICIES, MAX_SELECTED, PoliciesReport, PolicyKind, PolicyQuery,
    PolicyReport,
};
use crate::model::{
    AuthorizationPolicy, MeshConfig, NodeName, PeerPolicy, PolicyName, Snapshot, Workload, WorkloadUid,
};
use crate::policy::authorization::{AppliedPolicy, Guard};
use crate::policy::peer_authentication::{Applying, applying};
use crate::resources::{Kind, ObjectRef, Problem, guards};
use crate::source::{self, Reports};

/// The policies of manifests alone; `mesh.node` says of which node the workloads are told, all where there is none.
/// Blocks on the disk.
pub fn policies_of_manifests(
    paths: &[PathBuf],
    mesh: MeshConfig,
    query: &PolicyQuery,
) -> Result<PoliciesReport, QueryError> {
    let (snapshot, reports) =
        source::read_once(paths, mesh).map_err(|error| QueryError::Failed(chain(&error)))?;
    report(&snapshot, &reports, snapshot.mesh.node.as_ref(), query)
}

/// Answers one question.
pub(super) fn report(
    snapshot: &Snapshot,
    reports: &Reports,
    node: Option<&NodeName>,
    query: &PolicyQuery,
) -> Result<PoliciesReport, QueryError> {
    let mut report = match &query.workload {
        Some(uid) => applying_to(snapshot, workload(snapshot, uid)?),
        None => all(snapshot, node),
    };
    report.total = report.policies.len();
    // A document without a name may be a policy as well.
    let may_be_policy =
        |problem: &&Problem| problem.object.as_ref().is_none_or(|object| guards(&object.kind));
    report.problems = reports.problems.iter().filter(may_be_policy).map(ToString::to_string).collect();
    report.policies.truncate(query.limit.min(MAX_POLICIES));
    let listed = report.policies.iter().map(reference).collect();
    (report.notices, report.more_notices) = notices(reports, &listed);
    Ok(report)
}

fn reference(policy: &PolicyReport) -> ObjectRef {
    let kind = match policy.kind {
        PolicyKind::PeerAuthentication => Kind::PeerAuthentication,
        PolicyKind::AuthorizationPolicy => Kind::AuthorizationPolicy,
    };
    ObjectRef::new(kind, policy.namespace.as_str(), policy.name.as_str())
}

/// The notices about these, and how many more there are.
pub(super) fn notices(reports: &Reports, about: &BTreeSet<ObjectRef>) -> (Vec<String>, usize) {
    let mut found: Vec<_> = reports.notices.iter().filter(|notice| about.contains(&notice.object)).collect();
    found.sort_by_key(|notice| Reverse(notice.severity()));
    let told = found.iter().take(MAX_NOTICES).map(|notice| format!("{}: {notice}", notice.severity()));
    (told.collect(), found.len().saturating_sub(MAX_NOTICES))
}

fn workload<'a>(snapshot: &'a Snapshot, uid: &str) -> Result<&'a Workload, QueryError> {
    let Some((namespace, name)) = uid.split_once('/').filter(|(_, name)| !name.contains('/')) else {
        return Err(QueryError::Bad(format!("`{uid}` is no workload: write NAMESPACE/POD")));
    };
    let workload = snapshot.workloads.get(&WorkloadUid::pod(namespace, name));
    workload.map(|workload| &**workload).ok_or_else(|| QueryError::NotFound(format!("no pod {uid} is known")))
}

fn applying_to(snapshot: &Snapshot, workload: &Workload) -> PoliciesReport {
    let root = &snapshot.mesh.root_namespace;
    let peers = peers(snapshot, workload).all().map(|policy| peer(policy, root)).collect::<Vec<_>>();
    let guard = Guard::of(snapshot, workload);
    let guarded = GuardedWorkload {
        uid: workload.uid.to_string(),
        node: workload.node.as_ref().map(ToString::to_string),
        enrolled: workload.enrolled,
        identity: workload.identity.to_string(),
        mode: workload.mtls.default,
        ports: workload.mtls.ports.clone(),
    };
    let mut policies: Vec<PolicyReport> = peers.into_iter().chain(guard.policies().map(applied)).collect();
    for policy in &mut policies {
        policy.workloads = if workload.enrolled { vec![guarded.uid.clone()] } else { Vec::new() };
        policy.selected = policy.workloads.len();
        policy.outside_mesh = usize::from(!workload.enrolled);
    }
    PoliciesReport { workload: Some(guarded), policies, ..PoliciesReport::default() }
}

/// Pods that a policy concerns: in the mesh, and not.
#[derive(Default)]
struct Selected {
    enrolled: BTreeSet<WorkloadUid>,
    outside: usize,
}

impl Selected {
    fn add(&mut self, workload: &Workload) {
        if workload.enrolled {
            self.enrolled.insert(workload.uid.clone());
        } else {
            self.outside += 1;
        }
    }

    fn fill(&self, report: &mut PolicyReport) {
        report.workloads = self.enrolled.iter().take(MAX_SELECTED).map(ToString::to_string).collect();
        report.selected = self.enrolled.len();
        report.outside_mesh = self.outside;
    }
}

fn all(snapshot: &Snapshot, node: Option<&NodeName>) -> PoliciesReport {
    let mut peers_selected: BTreeMap<(&str, &str), Selected> = BTreeMap::new();
    let mut selected: BTreeMap<PolicyName, Selected> = BTreeMap::new();
    let is_here =
        |workload: &&Workload| node.is_none_or(|node| workload.is_on(node)) && !workload.host_network;
    for workload in snapshot.workloads.values().map(|workload| &**workload).filter(is_here) {
        for policy in peers(snapshot, workload).all() {
            peers_selected.entry((&policy.namespace, &policy.name)).or_default().add(workload);
        }
        for policy in Guard::of(snapshot, workload).policies() {
            selected.entry(policy.policy).or_default().add(workload);
        }
    }
    let mut policies = Vec::new();
    for policy in snapshot.peer_policies.values() {
        let mut report = peer(policy, &snapshot.mesh.root_namespace);
        if let Some(selected) = peers_selected.get(&(&*policy.namespace, &*policy.name)) {
            selected.fill(&mut report);
        }
        policies.push(report);
    }
    let by_name: BTreeMap<&PolicyName, &AuthorizationPolicy> =
        snapshot.policies.iter().map(|policy| (&policy.name, &**policy)).collect();
    for (name, policy) in by_name {
        let mut report = authorization(policy);
        if let Some(selected) = selected.get(name) {
            selected.fill(&mut report);
        }
        policies.push(report);
    }
    PoliciesReport { policies, ..PoliciesReport::default() }
}

fn peers<'a>(snapshot: &'a Snapshot, workload: &Workload) -> Applying<'a> {
    let policies = snapshot.peer_policies.values().map(|policy| &**policy);
    applying(policies, &snapshot.mesh.root_namespace, &workload.namespace, &workload.labels)
}

fn peer(policy: &PeerPolicy, root_namespace: &str) -> PolicyReport {
    let in_root = &*policy.namespace == root_namespace;
    let labels = || {
        let labels = policy.selector.iter().map(|(key, value)| format!("{key}={value}"));
        labels.collect::<Vec<_>>().join(",")
    };
    PolicyReport {
        kind: PolicyKind::PeerAuthentication,
        namespace: policy.namespace.to_string(),
        name: policy.name.to_string(),
        scope: match (policy.selector.is_empty(), in_root) {
            (true, true) => "mesh".to_owned(),
            (true, false) => "namespace".to_owned(),
            (false, false) => format!("selector {}", labels()),
            (false, true) => "nobody: a selector in the root namespace is ignored".to_owned(),
        },
        mode: policy.mode,
        ports: policy.ports.clone(),
        ..PolicyReport::default()
    }
}

fn authorization(policy: &AuthorizationPolicy) -> PolicyReport {
    applied(AppliedPolicy {
        policy: policy.name.clone(),
        scope: policy.scope.to_string(),
        action: policy.action,
        dry_run: policy.dry_run,
        rules: policy.rules.len(),
    })
}

fn applied(policy: AppliedPolicy) -> PolicyReport {
    let AppliedPolicy { policy: name, scope, action, dry_run, rules } = policy;
    PolicyReport {
        kind: PolicyKind::AuthorizationPolicy,
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        scope,
        action: Some(action),
        dry_run,
        rules,
        ..PolicyReport::default()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::model::{Mode, PolicyAction};

    const CLUSTER: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web, nodeName: node-a, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: shop, labels: {app: web, istio.io/dataplane-mode: none}}
spec: {nodeName: node-a, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, labels: {app: far}}
spec: {nodeName: node-b, containers: []}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: mesh, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {81: {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: everywhere, namespace: istio-system, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{}, {}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}}
"#;

    fn asked(node: Option<&str>, workload: Option<&str>, limit: usize) -> Result<PoliciesReport, QueryError> {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("all.yaml"), CLUSTER).unwrap();
        let mesh = MeshConfig { node: node.map(NodeName::new), ..MeshConfig::default() };
        let query = PolicyQuery { workload: workload.map(str::to_owned), limit };
        policies_of_manifests(&[folder.path().to_owned()], mesh, &query)
    }

    #[test]
    fn all_policies_with_whom_they_concern_here() {
        for (node, everybody) in [(None, 2), (Some("node-a"), 1), (Some("node-c"), 0)] {
            let report = asked(node, None, 10).unwrap();
            let told = report.policies.iter().map(|policy| {
                let PolicyReport { namespace, name, scope, selected, outside_mesh, .. } = policy;
                format!("{namespace}/{name} {scope}: {selected} and {outside_mesh}")
            });
            let web = usize::from(node != Some("node-c"));
            let expected = [
                format!("istio-system/mesh mesh: {everybody} and {web}"),
                format!("shop/web selector app=web: {web} and {web}"),
                format!("istio-system/everywhere mesh: {everybody} and {web}"),
                format!("shop/web selector app=web: {web} and {web}"),
            ];
            assert_eq!(told.collect::<Vec<_>>(), expected, "{node:?}");
        }
        let report = asked(None, None, 3).unwrap();
        assert_eq!((report.policies.len(), report.total), (3, 4));
        assert_eq!((report.policies[2].action, report.policies[2].rules), (Some(PolicyAction::Deny), 2));
        assert!(report.policies[2].dry_run);
    }

    #[test]
    fn notices_are_those_of_the_listed_policies() {
        let folder = TempDir::new().unwrap();
        let many = "{to: [{operation: {paths: [/a]}}]}, ".repeat(MAX_NOTICES + 3);
        let more = format!(
            "---\n{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: custom, namespace: shop}}, \
             spec: {{selector: {{matchLabels: {{app: far}}}}, action: CUSTOM, rules: [{many}]}}}}\n\
             ---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: ports, namespace: shop}}, \
             spec: {{portLevelMtls: {{80: {{mode: STRICT}}}}}}}}\n\
             ---\n{{apiVersion: v1, kind: Service, metadata: {{name: out, namespace: shop}}, \
             spec: {{type: ExternalName, externalName: a.b}}}}\n"
        );
        fs::write(folder.path().join("all.yaml"), format!("{CLUSTER}{more}")).unwrap();
        let asked = |workload: Option<&str>, limit| {
            let query = PolicyQuery { workload: workload.map(str::to_owned), limit };
            policies_of_manifests(&[folder.path().to_owned()], MeshConfig::default(), &query).unwrap()
        };
        let ports = "warning: PeerAuthentication shop/ports: spec.portLevelMtls: ignored: modes of single ports need a \
                     selector";
        let all = asked(None, 10);
        assert_eq!((all.notices.len(), all.more_notices), (MAX_NOTICES, 6), "{:#?}", all.notices);
        assert!(
            all.notices[0].starts_with("error: AuthorizationPolicy shop/custom: spec."),
            "{}",
            all.notices[0]
        );
        // It is the second of those that are listed.
        let grave = |report: PoliciesReport| -> Vec<String> {
            report.notices.into_iter().filter(|notice| !notice.starts_with("info: ")).collect()
        };
        assert_eq!(grave(asked(None, 2)), [ports]);
        assert_eq!(grave(asked(None, 1)), Vec::<String>::new());
        assert_eq!(grave(asked(Some("shop/web"), 10)), [ports]);
        assert_eq!(asked(Some("shop/far"), 10).more_notices, 6);
    }

    #[test]
    fn those_of_a_workload_in_the_order_of_their_say() {
        let report = asked(None, Some("shop/web"), 10).unwrap();
        let workload = report.workload.unwrap();
        assert_eq!((workload.mode, workload.ports.get(&81)), (Mode::Strict, Some(&Mode::Disable)));
        let names: Vec<_> =
            report.policies.iter().map(|policy| format!("{:?} {}", policy.kind, policy.name)).collect();
        assert_eq!(
            names,
            [
                "PeerAuthentication web",
                "PeerAuthentication mesh",
                "AuthorizationPolicy everywhere",
                "AuthorizationPolicy web"
            ]
        );
        assert!(!asked(None, Some("shop/plain"), 10).unwrap().workload.unwrap().enrolled);
        for (workload, message) in
            [("shop/none", "no pod shop/none is known"), ("web", "`web` is no workload: write NAMESPACE/POD")]
        {
            assert_eq!(asked(None, Some(workload), 10).unwrap_err().to_string(), message);
        }
    }
}
