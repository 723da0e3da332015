//! What a well-formed object asks for that this mesh does not carry out, told from the object alone.

mod authorization;
mod destination_rule;
mod enrolment;
mod entry;
mod service;
mod shadowed;
mod virtual_service;

use k8s_openapi::api::core::v1 as core;

use super::fields::{self, State};
use super::gateway::GatewayRoute;
use super::istio::{PeerAuthentication, Rest};
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
        Object::VirtualService(rule) => virtual_service::virtual_service(&mut notices, rule),
        Object::DestinationRule(rule) => destination_rule::destination_rule(&mut notices, rule),
        Object::ServiceEntry(entry) => entry::service_entry(&mut notices, entry),
        Object::WorkloadEntry(entry) => entry::workload_entry(&mut notices, entry),
        Object::PeerAuthentication(policy) => peer_authentication(&mut notices, policy, root_namespace),
        Object::AuthorizationPolicy(policy) => authorization::authorization_policy(&mut notices, policy),
        Object::TcpRoute(route) => {
            gateway_route(&mut notices, route);
            if !route.spec.hostnames.is_empty() {
                notices.add(Code::UnknownField, "spec.hostnames", IGNORED);
            }
        }
        Object::TlsRoute(route) => {
            gateway_route(&mut notices, route);
            let message =
                "server names hold for enrolled clients: others go where they would without this route";
            notices.add(Code::NeedsEnrolledClient, "spec.hostnames", message);
        }
        Object::ReferenceGrant(grant) => {
            notices.top_level(&grant.rest);
            notices.rest("spec", &grant.spec.rest, IGNORED);
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

    /// Names the fields that were read into `rest`, where they stand, and what the list of the kind's fields says of them; of those
    /// that nobody knows it is `unknown`.
    fn fields(&mut self, kind: &str, at: &str, rest: &Rest, unknown: &str) {
        let list = fields::of(kind);
        for name in rest.keys() {
            let field = format!("{at}.{name}");
            let known = list.and_then(|list| list.field(&pattern(&field)));
            match known.map(|known| (known.state, known.told())) {
                Some((State::Layer7, Some(told))) => self.add(Code::Layer7, field, told),
                Some((_, Some(told))) => self.add(Code::NotHonouredYet, field, told),
                Some((_, None)) => {}
                None => self.add(Code::UnknownField, field, unknown),
            }
        }
    }

    /// Names the fields that were read into `rest`, none of which anybody knows.
    fn rest(&mut self, at: &str, rest: &Rest, unknown: &str) {
        for name in rest.keys() {
            self.add(Code::UnknownField, format!("{at}.{name}"), unknown);
        }
    }
}

/// A field's path as the lists of fields have it: `spec.http[0].timeout` is `spec.http[].timeout`.
fn pattern(path: &str) -> String {
    let mut pattern = String::with_capacity(path.len());
    let mut is_index = false;
    for letter in path.chars() {
        is_index = (is_index || letter == '[') && letter != ']';
        if !is_index || letter == '[' {
            pattern.push(letter);
        }
    }
    pattern
}

fn unsupported(notices: &mut Notices, reference: &ObjectRef) {
    let message =
        format!("{} is not honoured yet: this mesh does nothing of what it says", reference.kind.as_str());
    notices.add(Code::KindNotHonoured, "", message);
}

fn gateway_route(notices: &mut Notices, route: &GatewayRoute) {
    notices.top_level(&route.rest);
    notices.fields("TCPRoute", "spec", &route.spec.rest, IGNORED);
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
        let own = &*notices.object.namespace;
        if let Some(other) = parent.namespace.as_deref().filter(|namespace| *namespace != own) {
            let message = format!(
                "{other} is another namespace: the route is for enrolled clients in {own}, others go as without it"
            );
            notices.add(Code::NeedsEnrolledClient, format!("spec.parentRefs[{index}].namespace"), message);
        }
    }
    for (index, rule) in route.spec.rules.iter().enumerate() {
        if index > 0 {
            let message = "never reached: the first rule holds for every connection";
            notices.add(Code::ShadowedRoute, format!("spec.rules[{index}]"), message);
        }
        notices.fields("TCPRoute", &format!("spec.rules[{index}]"), &rule.rest, IGNORED);
        for (at, backend) in rule.backend_refs.iter().enumerate() {
            let field = format!("spec.rules[{index}].backendRefs[{at}]");
            notices.fields("TCPRoute", &field, &backend.rest, IGNORED);
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
                format!("{rule}  http: [{{headers: {{}}, match: [{{uri: {{prefix: /a}}}}], {route}}}]\n"),
                vec![("spec.http[0].headers", "layer 4"), ("spec.http[0].match[0].uri", "layer 4")],
            ),
            (
                "a typing mistake beside the spec",
                format!("{rule}  http: [{{{route}}}]\nspecs: {{}}\n"),
                vec![("specs", "unknown field")],
            ),
            (
                "for enrolled clients",
                format!("{rule}  tls: [{{match: [{{sniHosts: [a]}}], {route}}}]\n  exportTo: ['.']\n"),
                vec![("spec.exportTo", "enrolled clients in default"), ("spec.tls[0]", "sniHosts hold for enrolled clients")],
            ),
            ("for nobody", format!("{rule}  exportTo: ['~']\n"), vec![("spec.exportTo", "nobody")]),
            (
                "what is http's alone",
                format!("{rule}  tcp: [{{timeout: 5s, match: [{{name: b, sniHosts: [a]}}], {route}}}]\n"),
                vec![
                    ("spec.tcp[0].timeout", "unknown field, ignored"),
                    ("spec.tcp[0].match[0].name", "never matches"),
                    ("spec.tcp[0].match[0].sniHosts", "never matches"),
                ],
            ),
            (
                "in fields of actions",
                format!("{rule}  http: [{{retries: {{attempts: 2, retryOn: 5xx, more: 1}}, mirror: {{host: a, port: {{number: 1, name: b}}}}, {route}}}]\n"),
                vec![
                    ("spec.http[0].retries.more", "unknown field"),
                    ("spec.http[0].retries.retryOn", "layer 4"),
                    ("spec.http[0].mirror.port.name", "unknown field"),
                    ("spec.http[0]", "mirror hold for enrolled clients"),
                    ("spec.http[0]", "retries hold for the connections that agents carry"),
                ],
            ),
            ("to be taken in", format!("{rule}  http: [{{delegate: {{name: b}}, {route}}}]\n"), vec![("spec.http[0].delegate", "not honoured yet")]),
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
