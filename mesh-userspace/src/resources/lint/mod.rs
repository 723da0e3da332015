//! What a well-formed object asks for that this mesh does not carry out, told from the object alone.

mod authorization;
mod destination_rule;
mod enrolment;
mod layer7;
mod service;
mod shadowed;

use k8s_openapi::api::core::v1 as core;

use super::gateway::GatewayRoute;
use super::istio::{PeerAuthentication, Rest, RouteEntry, VirtualService};
use super::{Code, Notice, Object, ObjectRef};

/// What becomes of a field that nobody knows.
const IGNORED: &str = "unknown field, ignored";

/// Everything to be said about a Service.
pub(super) fn service(reference: &ObjectRef, service: &core::Service) -> Vec<Notice> {
    let mut notices = Notices { object: reference.clone(), list: Vec::new() };
    service::service(&mut notices, service);
    notices.list
}

/// Everything to be said about the object.
pub(super) fn lint(object: &Object, root_namespace: &str) -> Vec<Notice> {
    let mut notices = Notices { object: object.reference(), list: Vec::new() };
    match object {
        Object::VirtualService(rule) => virtual_service(&mut notices, rule),
        Object::DestinationRule(rule) => destination_rule::destination_rule(&mut notices, rule),
        Object::PeerAuthentication(policy) => peer_authentication(&mut notices, policy, root_namespace),
        Object::AuthorizationPolicy(policy) => authorization::authorization_policy(&mut notices, policy),
        Object::TcpRoute(route) => gateway_route(&mut notices, route),
        Object::TlsRoute(route) => {
            gateway_route(&mut notices, route);
            let message = "routes by server name are not carried out yet";
            notices.add(Code::RoutesByServerName, "spec.hostnames", message);
        }
        Object::ReferenceGrant(grant) => {
            notices.top_level(&grant.rest);
            notices.rest("spec", &grant.spec.rest, &[], IGNORED);
        }
        Object::Unsupported(reference) => unsupported(&mut notices, reference),
        Object::Namespace(namespace) => enrolment::namespace(&mut notices, namespace),
        Object::Pod(pod) => enrolment::pod(&mut notices, pod),
        Object::Service(service) => return service.notices.to_vec(),
        _ => {}
    }
    notices.list
}

struct Notices {
    object: ObjectRef,
    list: Vec<Notice>,
}

impl Notices {
    fn add(&mut self, code: Code, field: impl Into<String>, message: impl Into<String>) {
        self.list.push(Notice::new(code, &self.object, field, message));
    }

    /// Names the fields beside `metadata` and `spec` that no object has.
    fn top_level(&mut self, rest: &Rest) {
        for name in rest.keys().filter(|name| !matches!(name.as_str(), "apiVersion" | "kind" | "status")) {
            self.add(Code::UnknownField, name.clone(), "unknown field, ignored");
        }
    }

    /// Names the fields that were read into `rest`, and what becomes of what they ask for; of those that nobody knows it is
    /// `unknown`.
    fn rest(&mut self, at: &str, rest: &Rest, known: &[layer7::Field], unknown: &str) {
        for name in rest.keys() {
            let field = format!("{at}.{name}");
            match known.iter().find(|known| known.name == name) {
                Some(known) => self.add(known.code, field, known.effect),
                None => self.add(Code::UnknownField, field, unknown),
            }
        }
    }
}

fn unsupported(notices: &mut Notices, reference: &ObjectRef) {
    let message =
        format!("{} is not honoured yet: this mesh does nothing of what it says", reference.kind.as_str());
    notices.add(Code::KindNotHonoured, "", message);
}

fn virtual_service(notices: &mut Notices, rule: &VirtualService) {
    let spec = &rule.spec;
    notices.top_level(&rule.rest);
    notices.rest("spec", &spec.rest, layer7::VIRTUAL_SERVICE, IGNORED);
    if !spec.gateways.is_empty() && spec.gateways.iter().any(|gateway| gateway != "mesh") {
        let message =
            "gateways other than mesh are not honoured yet: no route holds for what comes through them";
        notices.add(Code::GatewayNotHonoured, "spec.gateways", message);
    }
    for (index, host) in spec.hosts.iter().enumerate().filter(|(_, host)| host.contains('*')) {
        let message = format!("{host} names no service: hosts with a wildcard are not honoured at layer 4");
        notices.add(Code::WildcardHost, format!("spec.hosts[{index}]"), message);
    }
    if !spec.tls.is_empty() {
        let message =
            "routes by server name are not honoured yet: connections go where the other routes lead";
        notices.add(Code::RoutesByServerName, "spec.tls", message);
    }
    for (list, entries) in [("http", &spec.http), ("tcp", &spec.tcp)] {
        for (index, entry) in entries.iter().enumerate() {
            route(notices, &format!("spec.{list}[{index}]"), entry);
        }
        shadowed::routes(notices, list, entries);
    }
}

fn route(notices: &mut Notices, at: &str, entry: &RouteEntry) {
    let mut rest = entry.rest.clone();
    rest.remove("name");
    notices.rest(at, &rest, layer7::ROUTE, IGNORED);
    for (index, alternative) in entry.matches.iter().enumerate() {
        let mut rest = alternative.rest.clone();
        rest.remove("statPrefix");
        let unknown = "unknown field: this alternative never matches";
        notices.rest(&format!("{at}.match[{index}]"), &rest, layer7::MATCH, unknown);
    }
    for (index, target) in entry.route.iter().enumerate() {
        let at = format!("{at}.route[{index}]");
        notices.rest(&at, &target.rest, layer7::DESTINATION, IGNORED);
        notices.rest(&format!("{at}.destination"), &target.destination.rest, &[], IGNORED);
        if let Some(port) = &target.destination.port {
            notices.rest(&format!("{at}.destination.port"), &port.rest, &[], IGNORED);
        }
    }
    if entry.route.is_empty() {
        let message = "a route without destinations is skipped at layer 4: the next one that holds is taken";
        notices.add(Code::RouteWithoutDestination, format!("{at}.route"), message);
    }
}

fn gateway_route(notices: &mut Notices, route: &GatewayRoute) {
    notices.top_level(&route.rest);
    notices.rest("spec", &route.spec.rest, layer7::GATEWAY_ROUTE, IGNORED);
    for (index, parent) in
        route.spec.parent_refs.iter().enumerate().filter(|(_, parent)| !parent.is_service())
    {
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        let message =
            format!("a {kind} as a parent is not honoured, a Service is (group \"\", kind Service)");
        notices.add(Code::ParentNotHonoured, format!("spec.parentRefs[{index}].kind"), message);
    }
    for (index, parent) in route.spec.parent_refs.iter().enumerate().filter(|(_, parent)| parent.is_service())
    {
        let namespace = parent.namespace.as_deref().unwrap_or(&notices.object.namespace).to_owned();
        if *namespace != *notices.object.namespace {
            let message =
                format!("{namespace} is another namespace: routes hold for the services of their own alone");
            notices.add(Code::ParentNotHonoured, format!("spec.parentRefs[{index}].namespace"), message);
        }
    }
    for (index, rule) in route.spec.rules.iter().enumerate() {
        if index > 0 {
            let message = "never reached: the first rule holds for every connection";
            notices.add(Code::ShadowedRoute, format!("spec.rules[{index}]"), message);
        }
        notices.rest(&format!("spec.rules[{index}]"), &rule.rest, &[], IGNORED);
        for (at, backend) in rule.backend_refs.iter().enumerate() {
            let field = format!("spec.rules[{index}].backendRefs[{at}]");
            notices.rest(&field, &backend.rest, layer7::BACKEND, IGNORED);
        }
    }
}

fn peer_authentication(notices: &mut Notices, policy: &PeerAuthentication, root_namespace: &str) {
    let spec = &policy.spec;
    let selects = spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty());
    if selects && &*notices.object.namespace == root_namespace {
        let message = "ignored: a policy with a selector has no effect in the root namespace";
        notices.add(Code::PeerSelectorInRoot, "spec.selector", message);
    }
    if !selects && !spec.port_level_mtls.is_empty() {
        let message = "ignored: modes of single ports need a selector";
        notices.add(Code::PortModesWithoutSelector, "spec.portLevelMtls", message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::decode;

    #[test]
    fn what_is_not_honoured_is_named() {
        let rule = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n";
        let peer = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: NS}\nspec:\n";
        let route = "route: [{destination: {host: a}}]";
        let cases: Vec<(&str, String, Vec<(&str, &str)>)> = vec![
            ("all is honoured", format!("{rule}  http: [{{name: main, {route}}}]\n"), vec![]),
            ("a typing mistake", format!("{rule}  htp: []\n"), vec![("spec.htp", "unknown field")]),
            (
                "layer 7",
                format!("{rule}  http: [{{timeout: 5s, match: [{{uri: {{prefix: /a}}}}], {route}}}]\n"),
                vec![("spec.http[0].timeout", "layer 4"), ("spec.http[0].match[0].uri", "layer 4")],
            ),
            (
                "a typing mistake beside the spec",
                format!("{rule}  http: [{{{route}}}]\nspecs: {{}}\n"),
                vec![("specs", "unknown field")],
            ),
            ("tls", format!("{rule}  tls: [{{{route}}}]\n"), vec![("spec.tls", "server name")]),
            (
                "a typing mistake in a destination",
                format!("{rule}  tcp: [{{route: [{{destination: {{host: a, subst: v1}}}}]}}]\n"),
                vec![("spec.tcp[0].route[0].destination.subst", "unknown field")],
            ),
            (
                "traffic policy",
                "apiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a, trafficPolicy: {tunnel: {}}}\n".into(),
                vec![("spec.trafficPolicy.tunnel", "not honoured yet")],
            ),
            (
                "a selector in the root namespace",
                format!("{}  selector: {{matchLabels: {{a: b}}}}\n", peer.replace("NS", "istio-system")),
                vec![("spec.selector", "root namespace")],
            ),
            (
                "ports without a selector",
                format!("{}  portLevelMtls: {{80: {{mode: STRICT}}}}\n", peer.replace("NS", "shop")),
                vec![("spec.portLevelMtls", "need a selector")],
            ),
            (
                "a kind that is not carried out",
                "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a}\n".into(),
                vec![("", "not honoured yet")],
            ),
        ];
        for (name, text, wanted) in cases {
            let decoded = decode(&text);
            assert!(decoded.mistakes.is_empty(), "{name}: {decoded:?}");
            let notices = lint(&decoded.objects[0].object, "istio-system");
            assert_eq!(notices.len(), wanted.len(), "{name}: {notices:?}");
            for (notice, (field, message)) in notices.iter().zip(wanted) {
                assert_eq!(notice.field, field, "{name}");
                assert!(notice.message.contains(message), "{name}: {notice}");
            }
        }
    }
}
