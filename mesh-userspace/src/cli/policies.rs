//! Policies as tables.

use std::fmt::Write as _;

use super::print::{View, mode};
use super::table::{Rows, Tone, list, plain, yes};
use crate::admin::policy::{GuardedWorkload, PoliciesReport, PolicyKind, PolicyReport};
use crate::model::PolicyAction;

/// The policies, after the workload that they apply to.
pub(super) fn policies(report: &PoliciesReport, view: View) -> String {
    let mut text = report.workload.as_ref().map(workload).unwrap_or_default();
    let header =
        ["KIND", "POLICY", "SCOPE", "DOES", "RULES", "DRY RUN", "SELECTS", "NOT IN THE MESH", "PODS"];
    let header = match (&report.workload, view.wide) {
        (Some(_), _) => &header[..6],
        (None, false) => &header[..7],
        (None, true) => &header,
    };
    let mut rows = Rows::new(header, view.colour);
    for policy in &report.policies {
        let PolicyReport { namespace, name, scope, .. } = policy;
        let rules = (policy.kind == PolicyKind::AuthorizationPolicy).then_some(policy.rules);
        rows.add([
            plain(kind(policy.kind)),
            plain(format!("{namespace}/{name}")),
            plain(scope),
            plain(does(policy)),
            plain(rules.map(|rules| rules.to_string()).unwrap_or_default()),
            if policy.dry_run { ("yes".to_owned(), Tone::Warn) } else { yes(false) },
            plain(policy.selected),
            plain(policy.outside_mesh),
            list(&policy.workloads),
        ]);
    }
    text.push_str(&rows.render());
    let rest = report.total.saturating_sub(report.policies.len());
    if rest > 0 {
        let _infallible = writeln!(text, "({rest} more: raise --limit)");
    }
    if !report.problems.is_empty() {
        text.push_str("\nNot in force as written:\n");
        for problem in &report.problems {
            let _infallible = writeln!(text, "  {problem}");
        }
    }
    text.push_str(&notices(&report.notices, report.more_notices));
    text
}

/// What of policies is not carried out as it is written, under its title.
pub(super) fn notices(notices: &[String], more: usize) -> String {
    if notices.is_empty() {
        return String::new();
    }
    let mut text = "\nNotices:\n".to_owned();
    for notice in notices {
        let _infallible = writeln!(text, "  {notice}");
    }
    if more > 0 {
        let _infallible = writeln!(text, "  ({more} more: see `meshctl analyze`)");
    }
    text
}

fn workload(workload: &GuardedWorkload) -> String {
    let mut text = format!("{}, {}", workload.uid, workload.identity);
    if let Some(node) = &workload.node {
        let _infallible = write!(text, ", on {node}");
    }
    let _infallible = write!(text, "\nmTLS {}", mode(workload.mode));
    for (port, own) in &workload.ports {
        let _infallible = write!(text, ", {} at port {port}", mode(*own));
    }
    text.push('\n');
    if !workload.enrolled {
        text.push_str("It is not in the mesh: nobody asks these policies.\n");
    }
    text.push('\n');
    text
}

const fn kind(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::PeerAuthentication => "PeerAuthentication",
        PolicyKind::AuthorizationPolicy => "AuthorizationPolicy",
    }
}

fn does(policy: &PolicyReport) -> String {
    if let Some(own) = policy.action {
        return action(own).to_owned();
    }
    let word = |own: Option<crate::model::Mode>| own.map_or("UNSET", mode);
    let ports = policy.ports.iter().map(|(port, own)| format!(", {} at {port}", word(*own)));
    std::iter::once(word(policy.mode).to_owned()).chain(ports).collect()
}

/// As it is written in a policy.
pub(super) const fn action(action: PolicyAction) -> &'static str {
    match action {
        PolicyAction::Allow => "ALLOW",
        PolicyAction::Deny => "DENY",
        PolicyAction::Audit => "AUDIT",
        PolicyAction::Custom => "CUSTOM",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mode;

    const VIEW: View = View { wide: false, colour: false, now: 0 };

    fn report() -> PoliciesReport {
        let peer = PolicyReport {
            kind: PolicyKind::PeerAuthentication,
            namespace: "shop".to_owned(),
            name: "default".to_owned(),
            scope: "namespace".to_owned(),
            mode: Some(Mode::Strict),
            ports: [(80, None), (81, Some(Mode::Disable))].into(),
            selected: 2,
            ..PolicyReport::default()
        };
        let allow = PolicyReport {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            scope: "selector app=web".to_owned(),
            action: Some(PolicyAction::Allow),
            dry_run: true,
            rules: 3,
            workloads: vec!["shop/web-1".to_owned()],
            selected: 1,
            ..PolicyReport::default()
        };
        PoliciesReport {
            policies: vec![peer, allow],
            total: 5,
            notices: vec!["warning: AuthorizationPolicy shop/web: ignored".to_owned()],
            more_notices: 2,
            ..PoliciesReport::default()
        }
    }

    #[test]
    fn all_of_them() {
        let text = policies(&report(), VIEW);
        for part in [
            "PeerAuthentication    shop/default   namespace          STRICT, UNSET at 80, DISABLE at 81   -       no        2\n",
            "AuthorizationPolicy   shop/web       selector app=web   ALLOW                                3       yes       1\n",
            "(3 more: raise --limit)\n",
            "\nNotices:\n  warning: AuthorizationPolicy shop/web: ignored\n  (2 more: see `meshctl analyze`)\n",
        ] {
            assert!(text.contains(part), "{part:?} not in\n{text}");
        }
        let wide = policies(&report(), View { wide: true, ..VIEW });
        assert!(wide.contains("shop/web-1"), "{wide}");
    }

    #[test]
    fn those_of_a_workload() {
        let workload = GuardedWorkload {
            uid: "shop/web-1".to_owned(),
            node: Some("node-a".to_owned()),
            identity: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
            mode: Mode::Strict,
            ports: [(81, Mode::Disable)].into(),
            ..GuardedWorkload::default()
        };
        let text = policies(&PoliciesReport { workload: Some(workload), ..report() }, VIEW);
        let head = "shop/web-1, spiffe://cluster.local/ns/shop/sa/web, on node-a\n\
                    mTLS STRICT, DISABLE at port 81\nIt is not in the mesh: nobody asks these policies.\n\nKIND";
        assert!(text.starts_with(head), "{text}");
        assert!(!text.contains("SELECTS"), "{text}");
    }
}
