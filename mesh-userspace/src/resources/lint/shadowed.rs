//! Routes that stand after one which takes every connection that they could match.

use ipnet::IpNet;

use super::Notices;
use crate::resources::Code;
use crate::resources::translate::hosts::is_covered;
use crate::resources::translate::matching::{is_layer4, subnet};
use crate::resources::virtual_service::{List, Match, RouteEntry, is_for_mesh};

/// Names those of a list. A route that layer 4 skips takes nothing.
pub(super) fn routes(notices: &mut Notices, list: List, entries: &[RouteEntry]) {
    let nothing = [Match::default()];
    let alternatives = |entry: &'_ RouteEntry| {
        if entry.matches.is_empty() { nothing.to_vec() } else { entry.matches.clone() }
    };
    let mut before: Vec<(usize, Match)> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let own = alternatives(entry);
        let by = |one: &Match| before.iter().find(|(_, other)| covers(other, one)).map(|(by, _)| *by);
        let shadowed: Option<Vec<usize>> = own.iter().map(by).collect();
        if let Some(by) = shadowed.and_then(|by| by.first().copied()) {
            let list = list.as_str();
            let message =
                format!("never reached: spec.{list}[{by}] takes every connection that it could match");
            notices.add(Code::ShadowedRoute, format!("spec.{list}[{index}]"), message);
        } else if !entry.route.is_empty() {
            let takes = own.into_iter().filter(|one| is_layer4(one, list) && is_for_mesh(&one.gateways));
            before.extend(takes.map(|one| (index, one)));
        }
    }
}

/// Whether an alternative takes every connection that another one could; of that other one, what layer 4 cannot tell makes it
/// less at most.
fn covers(one: &Match, other: &Match) -> bool {
    let subnets =
        |all: &[String]| -> Vec<IpNet> { all.iter().filter_map(|written| subnet(written)).collect() };
    let within = |inner: &[IpNet], outer: &[IpNet]| {
        outer.is_empty()
            || (!inner.is_empty()
                && inner.iter().all(|inner| outer.iter().any(|outer| outer.contains(inner))))
    };
    let source = |one: &Match| subnets(one.source_subnet.as_slice());
    let has_label = |(key, value): (&String, &String)| other.source_labels.get(key) == Some(value);
    let is_name = |name: &String| one.sni_hosts.iter().any(|host| is_covered(name, host));
    (one.port.is_none() || one.port == other.port)
        && (one.source_namespace.is_none() || one.source_namespace == other.source_namespace)
        && one.source_labels.iter().all(has_label)
        && within(&source(other), &source(one))
        && within(&subnets(&other.destination_subnets), &subnets(&one.destination_subnets))
        && (one.sni_hosts.is_empty() || (!other.sni_hosts.is_empty() && other.sni_hosts.iter().all(is_name)))
}

#[cfg(test)]
mod tests {
    use crate::resources::lint::lint;
    use crate::resources::{Code, decode};

    #[test]
    fn what_is_never_reached() {
        let cases: [(&str, &str, &[&str]); 16] = [
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
            (
                "labels, then more of them",
                "{match: [{sourceLabels: {a: b}}], R}, {match: [{sourceLabels: {a: b, c: d}}], R}",
                &["spec.tcp[1]"],
            ),
            (
                "labels, then fewer of them",
                "{match: [{sourceLabels: {a: b, c: d}}], R}, {match: [{sourceLabels: {a: b}}], R}",
                &[],
            ),
            (
                "another namespace",
                "{match: [{sourceNamespace: a}], R}, {match: [{sourceNamespace: b}], R}",
                &[],
            ),
            (
                "a subnet of one",
                "{match: [{destinationSubnets: [10.0.0.0/8]}], R}, {match: [{destinationSubnets: [10.1.0.0/16, 10.2.0.1]}], R}",
                &["spec.tcp[1]"],
            ),
            (
                "one around it",
                "{match: [{sourceSubnet: 10.1.0.0/16}], R}, {match: [{sourceSubnet: 10.0.0.0/8}], R}",
                &[],
            ),
            ("a subnet, then any", "{match: [{sourceSubnet: 10.1.0.0/16}], R}, {R}", &[]),
            ("a gateway's", "{match: [{gateways: [gate]}], R}, {R}", &[]),
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
