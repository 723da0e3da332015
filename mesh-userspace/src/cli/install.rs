//! What `meshctl verify-install` has found, for people.

use std::fmt::Write as _;

use super::print::View;
use super::table::{Rows, Tone, plain};
use crate::install::{ObjectState, VerifyReport};

/// Objects and nodes, what is wrong with each below its line's end.
pub(super) fn verified(report: &VerifyReport, view: View) -> String {
    let mut rows = Rows::new(&["OBJECT", "STATE", "WHAT"], view.colour);
    for object in &report.objects {
        let state = match object.state {
            ObjectState::Ok => ("ok".to_owned(), Tone::Good),
            ObjectState::Missing => ("missing".to_owned(), Tone::Bad),
            ObjectState::Different => ("different".to_owned(), Tone::Bad),
        };
        let what = if object.differences.is_empty() { "-".to_owned() } else { object.differences.join("; ") };
        rows.add([plain(format!("{} {}", object.kind, object.name)), state, plain(what)]);
    }
    let mut text = rows.render();
    text.push('\n');
    let mut rows = Rows::new(&["NODE", "AGENT", "STATE", "WHAT"], view.colour);
    for node in &report.nodes {
        let state = if node.ok { ("ok".to_owned(), Tone::Good) } else { ("fails".to_owned(), Tone::Bad) };
        let what = if node.problems.is_empty() { "-".to_owned() } else { node.problems.join("; ") };
        rows.add([plain(&node.node), plain(node.pod.as_deref().unwrap_or("-")), state, plain(what)]);
    }
    text.push_str(&rows.render());
    let good = report.nodes.iter().filter(|node| node.ok).count();
    let verdict = if report.passed {
        "The mesh is installed as it should be"
    } else {
        "The mesh is not as it should be"
    };
    let _infallible = writeln!(text, "\n{verdict}: {good} of {} nodes are well.", report.nodes.len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::{NodeFinding, ObjectFinding};

    #[test]
    fn what_is_wrong_stands_beside_its_object_and_its_node() {
        let object = |state, differences: &[&str]| ObjectFinding {
            kind: "Service".to_owned(),
            name: "mesh-ca".to_owned(),
            state,
            differences: differences.iter().map(|text| (*text).to_owned()).collect(),
        };
        let node = |name: &str, problems: &[&str]| NodeFinding {
            node: name.to_owned(),
            pod: None,
            ok: problems.is_empty(),
            problems: problems.iter().map(|text| (*text).to_owned()).collect(),
        };
        let report = VerifyReport {
            passed: false,
            objects: vec![
                object(ObjectState::Different, &["spec.ports[0].port is 1; it should be 15012"]),
                object(ObjectState::Missing, &[]),
            ],
            nodes: vec![node("node-a", &[]), node("node-b", &["no agent"])],
        };
        let text = verified(&report, View { wide: false, colour: false, now: 0 });
        for part in [
            "Service mesh-ca   different   spec.ports[0].port is 1",
            "missing",
            "node-b   -       fails   no agent",
            "1 of 2 nodes are well",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
