//! Routes that stand after one which takes every connection that they could match.

use std::collections::BTreeMap;

use super::Notices;
use crate::resources::Code;
use crate::resources::istio::{Match, RouteEntry};

/// Names those of a list. A route that layer 4 skips takes nothing.
pub(super) fn routes(notices: &mut Notices, list: &str, entries: &[RouteEntry]) {
    let mut everything: Option<usize> = None;
    let mut ports: BTreeMap<u32, usize> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let before = |one: &Match| everything.or_else(|| ports.get(&one.port?).copied());
        let by = if entry.matches.is_empty() {
            everything
        } else {
            entry.matches.iter().map(before).collect::<Option<Vec<_>>>().and_then(|all| all.first().copied())
        };
        if let Some(by) = by {
            let message =
                format!("never reached: spec.{list}[{by}] takes every connection that it could match");
            notices.add(Code::ShadowedRoute, format!("spec.{list}[{index}]"), message);
            continue;
        }
        if entry.route.is_empty() {
            continue;
        }
        if entry.matches.is_empty() {
            everything = Some(index);
        }
        for one in entry.matches.iter().filter(|one| takes_all(one)) {
            match one.port {
                Some(port) => {
                    ports.entry(port).or_insert(index);
                }
                None => everything = everything.or(Some(index)),
            }
        }
    }
}

/// Whether nothing but the port decides.
fn takes_all(one: &Match) -> bool {
    let for_mesh = one.gateways.is_empty() || one.gateways.iter().any(|gateway| gateway == "mesh");
    for_mesh && one.rest.keys().all(|name| name == "statPrefix")
}

#[cfg(test)]
mod tests {
    use crate::resources::lint::lint;
    use crate::resources::{Code, decode};

    #[test]
    fn what_is_never_reached() {
        let cases: [(&str, &str, &[&str]); 9] = [
            ("one", "{R}", &[]),
            ("after everything", "{R}, {R}, {match: [{port: 80}], R}", &["spec.tcp[1]", "spec.tcp[2]"]),
            ("before everything", "{match: [{port: 80}], R}, {R}", &[]),
            ("the same port", "{match: [{port: 80}], R}, {match: [{port: 80}], R}", &["spec.tcp[1]"]),
            ("more ports", "{match: [{port: 80}], R}, {match: [{port: 80}, {port: 81}], R}", &[]),
            (
                "both ports",
                "{match: [{port: 80}, {port: 81}], R}, {match: [{port: 81}, {port: 80}], R}",
                &["spec.tcp[1]"],
            ),
            ("asks for more", "{match: [{port: 80, uri: {prefix: /}}], R}, {match: [{port: 80}], R}", &[]),
            ("layer 4 skips it", "{redirect: {uri: /}}, {R}", &[]),
            ("an empty match", "{match: [{}], R}, {match: [{uri: {prefix: /}}], R}", &["spec.tcp[1]"]),
        ];
        for (name, entries, wanted) in cases {
            let entries = entries.replace('R', "route: [{destination: {host: a}}]");
            let text = format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec: {{hosts: [a], tcp: [{entries}]}}\n"
            );
            let notices = lint(&decode(&text).objects[0].object, "istio-system");
            let shadowed = notices.iter().filter(|notice| notice.code == Code::ShadowedRoute);
            assert_eq!(
                shadowed.map(|notice| &notice.field).collect::<Vec<_>>(),
                wanted,
                "{name}: {notices:?}"
            );
        }
    }
}
