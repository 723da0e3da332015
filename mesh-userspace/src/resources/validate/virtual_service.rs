//! What must hold of a `VirtualService` beyond its types, as Istio's webhook has it (`ValidateVirtualService` in
//! pkg/config/validation/validation.go and virtualservice.go); of what layer 4 does not read, nothing is asked.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Mistaken, Wrong, check_port};
use crate::resources::Code;
use crate::resources::duration::positive_duration;
use crate::resources::translate::hosts::is_covered;
use crate::resources::translate::matching::subnet;
use crate::resources::virtual_service::{
    Destination, Fault, HttpRetry, List, Match, Percent, RouteEntry, VirtualService, VirtualServiceSpec,
};

pub(super) fn check_virtual_service(wrong: &mut Mistaken, rule: &VirtualService, namespace: &str) {
    let spec = &rule.spec;
    // A delegate has no hosts of its own.
    for (index, host) in spec.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        if let Err(reason) = domain(host) {
            wrong.push((field, reason));
        } else if let Some(other) = spec.hosts[..index].iter().find(|other| meet(host, other)) {
            wrong.push((field, format!("{host} is among {other} already")));
        }
    }
    check_gateways(wrong, "spec.gateways", &spec.gateways);
    check_export(wrong, &spec.export_to, namespace);
    for list in [List::Http, List::Tls, List::Tcp] {
        for (index, entry) in spec.list(list).iter().enumerate() {
            check_route(wrong, &format!("spec.{}[{index}]", list.as_str()), list, entry, spec);
        }
    }
}

/// Whether two hosts of a rule mean one service.
fn meet(one: &str, other: &str) -> bool {
    is_covered(one, other) || is_covered(other, one)
}

/// A DNS name, with or without a wildcard at its beginning, or an address.
pub(super) fn domain(host: &str) -> Result<(), String> {
    if host.is_empty() {
        return Err("empty".to_owned());
    }
    let name = host.strip_prefix('*').map_or(host, |rest| rest.strip_prefix('.').unwrap_or(rest));
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let is_name = host == "*" || (name.len() <= 253 && name.split('.').all(is_label));
    if is_name || host.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(format!("{host:?} is no host: a DNS name, with * at its beginning at most"))
}

fn is_dns_label(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// `GATEWAY`, `NAMESPACE/GATEWAY` or `mesh`.
fn check_gateways(wrong: &mut Mistaken, field: &str, gateways: &[String]) {
    for (index, gateway) in gateways.iter().enumerate() {
        let parts: Vec<&str> = gateway.split('/').collect();
        if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
            wrong.push((
                format!("{field}[{index}]"),
                format!("{gateway:?} is neither NAME nor NAMESPACE/NAME"),
            ));
        }
    }
}

fn check_export(wrong: &mut Mistaken, export_to: &[String], namespace: &str) {
    let meant = |to: &str| if to == "." { namespace.to_owned() } else { to.to_owned() };
    for (index, to) in export_to.iter().enumerate() {
        let field = format!("spec.exportTo[{index}]");
        if !matches!(to.as_str(), "." | "*" | "~") && !is_dns_label(to) {
            wrong.push((field, format!("{to:?} is none of \".\", \"*\", \"~\" and the names of namespaces")));
        } else if export_to[..index].iter().any(|other| meant(other) == meant(to)) {
            wrong.push((field, format!("{to:?} is there twice")));
        } else if matches!(to.as_str(), "*" | "~") && export_to.len() > 1 {
            wrong.push((field, format!("{to:?} goes with nothing else")));
        }
    }
}

fn check_route(wrong: &mut Mistaken, field: &str, list: List, entry: &RouteEntry, spec: &VirtualServiceSpec) {
    if list == List::Tls && entry.matches.is_empty() {
        wrong.push((
            format!("{field}.match"),
            "missing: a route of tls says which server names it is for".to_owned(),
        ));
    }
    for (index, one) in entry.matches.iter().enumerate() {
        check_match(wrong, &format!("{field}.match[{index}]"), list, one, spec);
    }
    for (index, target) in entry.route.iter().enumerate() {
        let field = format!("{field}.route[{index}]");
        check_destination(wrong, &format!("{field}.destination"), &target.destination);
        match target.weight {
            Some(weight) if weight < 0 => {
                wrong.push((format!("{field}.weight"), format!("{weight} is below 0")));
            }
            Some(weight) if weight > i64::from(i32::MAX) => {
                wrong.push((format!("{field}.weight"), format!("{weight} is too large")));
            }
            _ => {}
        }
    }
    // Istio: with several destinations an absent weight is 0, and the sum must not be.
    if entry.route.len() > 1 && entry.route.iter().all(|target| target.weight.unwrap_or(0) == 0) {
        let (field, reason) = (format!("{field}.route"), "the weights' sum is 0".to_owned());
        wrong.0.push(Wrong { code: Code::WeightsZero, field, reason });
    }
    if list == List::Http {
        check_actions(wrong, field, entry);
    }
}

fn check_match(wrong: &mut Mistaken, field: &str, list: List, one: &Match, spec: &VirtualServiceSpec) {
    if let Some(port) = one.port {
        check_port(wrong, format!("{field}.port"), port);
    }
    check_gateways(wrong, &format!("{field}.gateways"), &one.gateways);
    check_labels(wrong, &format!("{field}.sourceLabels"), &one.source_labels);
    if let Some(namespace) =
        one.source_namespace.as_deref().filter(|name| !name.is_empty() && !is_dns_label(name))
    {
        wrong.push((format!("{field}.sourceNamespace"), format!("{namespace:?} is no namespace's name")));
    }
    let subnets = one.destination_subnets.iter().enumerate();
    let subnets = subnets.map(|(index, written)| (format!("{field}.destinationSubnets[{index}]"), written));
    let source = one.source_subnet.iter().filter(|written| !written.is_empty());
    let source = source.map(|written| (format!("{field}.sourceSubnet"), written));
    for (field, written) in subnets.chain(source) {
        if subnet(written).is_none() {
            wrong.push((field, format!("{written:?} is no subnet: ADDRESS or ADDRESS/BITS")));
        }
    }
    if list != List::Tls {
        return;
    }
    if one.sni_hosts.is_empty() {
        wrong.push((
            format!("{field}.sniHosts"),
            "missing: a route of tls says which server names it is for".to_owned(),
        ));
    }
    for (index, name) in one.sni_hosts.iter().enumerate() {
        let field = format!("{field}.sniHosts[{index}]");
        if let Err(reason) = domain(name) {
            wrong.push((field, reason));
        } else if name.parse::<IpAddr>().is_err() && !spec.hosts.iter().any(|host| is_covered(name, host)) {
            let hosts = spec.hosts.join(", ");
            wrong.push((
                field,
                format!("{name} is none of the rule's own hosts ({hosts}), nor below one with a wildcard"),
            ));
        }
    }
}

/// As Kubernetes has labels: a name of at most 63 letters, with a DNS name before a slash at most.
fn check_labels(wrong: &mut Mistaken, field: &str, labels: &BTreeMap<String, String>) {
    let is_word = |word: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = word.as_bytes();
        word.len() <= 63 && word.bytes().all(allowed) && ends(bytes.first()) && ends(bytes.last())
    };
    for (key, value) in labels {
        let (prefix, name) =
            key.rsplit_once('/').map_or((None, key.as_str()), |(prefix, name)| (Some(prefix), name));
        let has_prefix = prefix.is_none_or(|prefix| !prefix.starts_with('*') && domain(prefix).is_ok());
        if !has_prefix || !is_word(name) {
            wrong.push((field.to_owned(), format!("{key:?} is no label's name")));
        } else if !value.is_empty() && !is_word(value) {
            wrong.push((format!("{field}[{key}]"), format!("{value:?} is no label's value")));
        }
    }
}

fn check_destination(wrong: &mut Mistaken, field: &str, destination: &Destination) {
    if destination.host.is_empty() {
        wrong.push((format!("{field}.host"), "missing".to_owned()));
    } else if destination.host.contains('*') {
        wrong.push((
            format!("{field}.host"),
            format!("{:?} is no service: no connection can go there", destination.host),
        ));
    } else if let Err(reason) = domain(&destination.host) {
        wrong.push((format!("{field}.host"), reason));
    }
    if let Some(subset) = destination.subset.as_deref().filter(|name| !name.is_empty() && !is_dns_label(name))
    {
        wrong.push((format!("{field}.subset"), format!("{subset:?} is no subset's name")));
    }
    if let Some(port) = &destination.port {
        check_port(wrong, format!("{field}.port.number"), port.number);
    }
}

fn check_actions(wrong: &mut Mistaken, field: &str, entry: &RouteEntry) {
    check_duration(wrong, format!("{field}.timeout"), entry.timeout.as_ref());
    if let Some(retries) = &entry.retries {
        check_retries(wrong, &format!("{field}.retries"), retries);
    }
    if let Some(fault) = &entry.fault {
        check_fault(wrong, &format!("{field}.fault"), fault);
    }
    if entry.mirror.is_some() && !entry.mirrors.is_empty() {
        wrong.push((format!("{field}.mirrors"), "goes not with mirror".to_owned()));
    }
    if let Some(mirror) = &entry.mirror {
        check_destination(wrong, &format!("{field}.mirror"), mirror);
    }
    check_percentage(wrong, &format!("{field}.mirrorPercentage"), entry.mirror_percentage.as_ref());
    for (name, percent) in
        [("mirrorPercent", entry.mirror_percent), ("mirror_percent", entry.mirror_percent_v1)]
    {
        check_percent(wrong, format!("{field}.{name}"), percent.map(f64::from));
    }
    for (index, mirror) in entry.mirrors.iter().enumerate() {
        let field = format!("{field}.mirrors[{index}]");
        check_destination(wrong, &format!("{field}.destination"), &mirror.destination);
        check_percentage(wrong, &format!("{field}.percentage"), mirror.percentage.as_ref());
    }
}

fn check_retries(wrong: &mut Mistaken, field: &str, retries: &HttpRetry) {
    let says_more = retries.per_try_timeout.is_some()
        || retries.rest.contains_key("retryOn")
        || retries.rest.contains_key("retryRemoteLocalities");
    if retries.attempts < 0 {
        wrong.push((format!("{field}.attempts"), format!("{} is below 0", retries.attempts)));
    } else if retries.attempts == 0 && says_more {
        wrong.push((
            format!("{field}.attempts"),
            "0 means that there are no retries, of which more is said".to_owned(),
        ));
    }
    check_duration(wrong, format!("{field}.perTryTimeout"), retries.per_try_timeout.as_ref());
    check_duration(wrong, format!("{field}.backoff"), retries.backoff.as_ref());
}

fn check_fault(wrong: &mut Mistaken, field: &str, fault: &Fault) {
    if fault.delay.is_none() && fault.abort.is_none() {
        wrong.push((field.to_owned(), "neither delay nor abort".to_owned()));
    }
    if let Some(delay) = &fault.delay {
        let field = format!("{field}.delay");
        check_duration(wrong, format!("{field}.fixedDelay"), delay.fixed.as_ref());
        if delay.exponential.is_some() {
            wrong.push((
                format!("{field}.exponentialDelay"),
                "Istio does not have it, use fixedDelay".to_owned(),
            ));
        }
        check_percentage(wrong, &format!("{field}.percentage"), delay.percentage.as_ref());
        check_percent(wrong, format!("{field}.percent"), delay.percent.map(f64::from));
    }
    if let Some(abort) = &fault.abort {
        let field = format!("{field}.abort");
        check_percentage(wrong, &format!("{field}.percentage"), abort.percentage.as_ref());
        if abort.http2_error.is_some() {
            wrong.push((format!("{field}.http2Error"), "Istio does not have it, use httpStatus".to_owned()));
        }
        if let Some(status) = abort.http_status.filter(|status| !(200..=599).contains(status)) {
            wrong.push((format!("{field}.httpStatus"), format!("{status} is none of 200 to 599")));
        }
    }
}

fn check_duration(wrong: &mut Mistaken, field: String, written: Option<&String>) {
    if let Some(Err(reason)) = written.map(|written| positive_duration(written)) {
        wrong.push((field, reason));
    }
}

fn check_percentage(wrong: &mut Mistaken, field: &str, percentage: Option<&Percent>) {
    check_percent(wrong, format!("{field}.value"), percentage.map(|percentage| percentage.value));
}

fn check_percent(wrong: &mut Mistaken, field: String, percent: Option<f64>) {
    if let Some(percent) = percent.filter(|percent| !(0.0..=100.0).contains(percent)) {
        wrong.push((field, format!("{percent} is none of 0 to 100")));
    }
}

#[cfg(test)]
mod tests {
    use crate::resources::decode;

    /// Fields and reasons of all mistakes in a rule with this spec.
    fn mistakes(spec: &str) -> Vec<(String, String)> {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a, namespace: shop}}\nspec: {{{spec}}}\n"
        );
        decode(&text).mistakes.into_iter().map(|mistake| (mistake.field, mistake.reason)).collect()
    }

    #[test]
    fn what_is_well() {
        let route = "route: [{destination: {host: a}}]";
        for spec in [
            "hosts: [a]".to_owned(),
            "hosts: ['*']".to_owned(),
            "hosts: [a, '*.example.com', 10.0.0.1], exportTo: ['.', bank], gateways: [mesh, shop/gate]"
                .to_owned(),
            "hosts: [a], exportTo: ['~']".to_owned(),
            format!(
                "hosts: ['*.example.com'], tls: [{{match: [{{sniHosts: [a.example.com, '*.b.example.com', 10.0.0.1]}}], {route}}}]"
            ),
            format!(
                "hosts: [a], tcp: [{{match: [{{destinationSubnets: [10.0.0.1, fd00::/8], sourceSubnet: 10.0.0.0/8, sourceLabels: {{app.kubernetes.io/name: b, c: ''}}, sourceNamespace: bank}}], {route}}}]"
            ),
            format!(
                "hosts: [a], http: [{{timeout: 1.5s, retries: {{attempts: 3, perTryTimeout: 250ms, backoff: 1s, retryOn: 5xx}}, fault: {{delay: {{fixedDelay: 2s, percentage: {{value: 0.1}}}}, abort: {{httpStatus: 503, percentage: {{value: 100}}}}}}, mirror: {{host: b}}, mirrorPercentage: {{value: 12.5}}, {route}}}]"
            ),
            format!(
                "hosts: [a], http: [{{mirrors: [{{destination: {{host: b}}, percentage: {{value: 0}}}}], retries: {{attempts: 0}}, {route}}}]"
            ),
        ] {
            assert_eq!(mistakes(&spec), [], "{spec}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let of_match = |list: &str, fields: &str| {
            format!(
                "hosts: [a.example.com], {list}: [{{match: [{{{fields}}}], route: [{{destination: {{host: a}}}}]}}]"
            )
        };
        let of_http =
            |fields: &str| format!("hosts: [a], http: [{{{fields}, route: [{{destination: {{host: a}}}}]}}]");
        let cases = [
            ("hosts: ['']".to_owned(), "spec.hosts[0]", "empty"),
            ("hosts: ['a*.example.com']".to_owned(), "spec.hosts[0]", "no host"),
            ("hosts: [a b]".to_owned(), "spec.hosts[0]", "no host"),
            ("hosts: [a..b]".to_owned(), "spec.hosts[0]", "no host"),
            ("hosts: [a, a]".to_owned(), "spec.hosts[1]", "among a"),
            ("hosts: ['*.example.com', a.example.com]".to_owned(), "spec.hosts[1]", "among *.example.com"),
            ("hosts: [a], gateways: [a/b/c]".to_owned(), "spec.gateways[0]", "neither NAME"),
            ("hosts: [a], gateways: ['']".to_owned(), "spec.gateways[0]", "neither NAME"),
            ("hosts: [a], exportTo: [A]".to_owned(), "spec.exportTo[0]", "none of"),
            ("hosts: [a], exportTo: ['.', shop]".to_owned(), "spec.exportTo[1]", "twice"),
            ("hosts: [a], exportTo: [bank, '*']".to_owned(), "spec.exportTo[1]", "nothing else"),
            (
                "hosts: [a], tls: [{route: [{destination: {host: a}}]}]".to_owned(),
                "spec.tls[0].match",
                "missing",
            ),
            (of_match("tls", "port: 443"), "spec.tls[0].match[0].sniHosts", "missing"),
            (
                of_match("tls", "sniHosts: [b.example.com]"),
                "spec.tls[0].match[0].sniHosts[0]",
                "none of the rule's own hosts (a.example.com)",
            ),
            (
                of_match("tls", "sniHosts: ['*.example.com']"),
                "spec.tls[0].match[0].sniHosts[0]",
                "none of the rule's own hosts",
            ),
            (of_match("tls", "sniHosts: ['a b']"), "spec.tls[0].match[0].sniHosts[0]", "no host"),
            (of_match("tcp", "port: 70000"), "spec.tcp[0].match[0].port", "no port"),
            (of_match("tcp", "gateways: [a/]"), "spec.tcp[0].match[0].gateways[0]", "neither NAME"),
            (
                of_match("tcp", "destinationSubnets: [10.0.0.0/33]"),
                "spec.tcp[0].match[0].destinationSubnets[0]",
                "no subnet",
            ),
            (of_match("tcp", "sourceSubnet: here"), "spec.tcp[0].match[0].sourceSubnet", "no subnet"),
            (of_match("tcp", "sourceNamespace: A B"), "spec.tcp[0].match[0].sourceNamespace", "no namespace"),
            (
                of_match("http", "sourceLabels: {'a b': c}"),
                "spec.http[0].match[0].sourceLabels",
                "no label's name",
            ),
            (
                of_match("http", "sourceLabels: {a: '-'}"),
                "spec.http[0].match[0].sourceLabels[a]",
                "no label's value",
            ),
            (
                "hosts: [a], tcp: [{route: [{destination: {host: '*'}}]}]".to_owned(),
                "spec.tcp[0].route[0].destination.host",
                "no service",
            ),
            (
                "hosts: [a], tcp: [{route: [{destination: {host: a, subset: A}}]}]".to_owned(),
                "spec.tcp[0].route[0].destination.subset",
                "no subset",
            ),
            (of_http("timeout: 5"), "spec.http[0].timeout", "expected a string"),
            (of_http("timeout: '5'"), "spec.http[0].timeout", "no duration"),
            (of_http("timeout: 0s"), "spec.http[0].timeout", "shorter than 1ms"),
            (of_http("retries: {attempts: -1}"), "spec.http[0].retries.attempts", "below 0"),
            (of_http("retries: {perTryTimeout: 1s}"), "spec.http[0].retries.attempts", "no retries"),
            (of_http("retries: {attempts: 1, backoff: soon}"), "spec.http[0].retries.backoff", "no duration"),
            (of_http("fault: {}"), "spec.http[0].fault", "neither delay nor abort"),
            (
                of_http("fault: {delay: {fixedDelay: 1x}}"),
                "spec.http[0].fault.delay.fixedDelay",
                "no duration",
            ),
            (
                of_http("fault: {delay: {exponentialDelay: 1s}}"),
                "spec.http[0].fault.delay.exponentialDelay",
                "does not have it",
            ),
            (
                of_http("fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}"),
                "spec.http[0].fault.delay.percentage.value",
                "none of 0 to 100",
            ),
            (
                of_http("fault: {delay: {fixedDelay: 1s, percent: -1}}"),
                "spec.http[0].fault.delay.percent",
                "none of 0 to 100",
            ),
            (
                of_http("fault: {abort: {httpStatus: 99}}"),
                "spec.http[0].fault.abort.httpStatus",
                "none of 200",
            ),
            (
                of_http("fault: {abort: {http2Error: A}}"),
                "spec.http[0].fault.abort.http2Error",
                "does not have it",
            ),
            (
                of_http("mirror: {host: a}, mirrors: [{destination: {host: b}}]"),
                "spec.http[0].mirrors",
                "not with mirror",
            ),
            (of_http("mirror: {}"), "spec.http[0].mirror.host", "missing"),
            (
                of_http("mirror: {host: a}, mirrorPercentage: {value: -0.5}"),
                "spec.http[0].mirrorPercentage.value",
                "none of 0 to 100",
            ),
            (
                of_http("mirror: {host: a}, mirrorPercent: 101"),
                "spec.http[0].mirrorPercent",
                "none of 0 to 100",
            ),
            (
                of_http("mirrors: [{destination: {host: a, port: {number: 0}}}]"),
                "spec.http[0].mirrors[0].destination.port.number",
                "no port",
            ),
            (
                of_http("mirrors: [{percentage: {value: 1}}]"),
                "spec.http[0].mirrors[0].destination.host",
                "missing",
            ),
        ];
        for (spec, field, reason) in cases {
            let found = mistakes(&spec);
            let [(at, why)] = &found[..] else { panic!("{spec}: {found:?}") };
            assert_eq!(at, field, "{spec}: {why}");
            assert!(why.contains(reason), "{spec}: {why}");
        }
    }
}
