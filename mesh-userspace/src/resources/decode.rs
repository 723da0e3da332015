//! Manifest text to objects, with file position, field and reason of whatever is wrong.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::deserialize::Unfit;
use super::stand_in;
use super::validate::{Mistaken, Wrong, check_pod, check_service, check_slice, validate};
use super::yaml::{self, Node, Step};
use super::{Code, EndpointSlice, Kind, Object, ObjectRef, Pod, Service};
use crate::model::shared_text;

/// Largest text that is read, in bytes.
pub(crate) const MAX_TEXT: usize = 64 << 20;
/// Deepest `List` inside a `List`.
const MAX_LISTS: usize = 4;

/// Groups whose kinds are never skipped in silence.
pub(crate) const GROUPS: [&str; 5] = [
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "gateway.networking.k8s.io",
];

/// What a text holds.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// The objects in the order written.
    pub objects: Vec<Item>,
    /// What is wrong with the others.
    pub mistakes: Vec<Mistake>,
    /// What may stand in the place of those of the others that are security policies, each allowing nothing.
    pub stand_ins: Vec<Item>,
    /// Objects of kinds that are no concern of a mesh.
    pub ignored: usize,
}

/// An object and where it is.
#[derive(Clone, Debug)]
pub struct Item {
    /// The line it begins on, from 1.
    pub line: u32,
    /// The object.
    pub object: Arc<Object>,
}

/// Why something is no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {field}: {reason}")]
pub struct Mistake {
    /// What kind of mistake it is.
    pub code: Code,
    /// The line, from 1.
    pub line: u32,
    /// The object, where its name can be read.
    pub object: Option<ObjectRef>,
    /// The field's path; empty where none is to blame.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

/// Reads YAML or JSON text of any number of documents.
pub fn decode(text: &str) -> Decoded {
    let mut decoded = Decoded::default();
    if text.len() > MAX_TEXT {
        let reason = format!("larger than {} MiB", MAX_TEXT >> 20);
        let (code, field) = (Code::Unreadable, String::new());
        decoded.mistakes.push(Mistake { code, line: 1, object: None, field, reason });
        return decoded;
    }
    for (before, part) in parts(text) {
        let part = decode_part(part);
        let moved = |line: u32| before.saturating_add(line);
        decoded.objects.extend(part.objects.into_iter().map(|item| Item { line: moved(item.line), ..item }));
        let mistakes = part.mistakes.into_iter();
        decoded.mistakes.extend(mistakes.map(|mistake| Mistake { line: moved(mistake.line), ..mistake }));
        let stand_ins = part.stand_ins.into_iter();
        decoded.stand_ins.extend(stand_ins.map(|item| Item { line: moved(item.line), ..item }));
        decoded.ignored += part.ignored;
    }
    decoded
}

/// A text's parts, which can be decoded apart from each other, each with the number of lines before it.
pub(crate) fn parts(text: &str) -> Vec<(u32, &str)> {
    yaml::split(text)
}

/// What a part holds; its lines are counted from the part's first.
pub(crate) fn decode_part(part: &str) -> Decoded {
    let mut decoded = Decoded::default();
    for document in yaml::documents(part) {
        match document {
            Ok(node) if node.is_null() => {}
            Ok(node) => decoded.add(&node, 0),
            Err(error) => {
                let stand_in = stand_in::of_text(part);
                decoded.stand_ins.extend(stand_in.map(|object| Item { line: error.line, object }));
                decoded.mistakes.push(Mistake {
                    code: Code::NotYaml,
                    line: error.line,
                    object: None,
                    field: String::new(),
                    reason: error.reason,
                });
            }
        }
    }
    decoded
}

impl Decoded {
    /// Whether there was nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.mistakes.is_empty() && self.ignored == 0
    }

    fn add(&mut self, node: &Node, lists: usize) {
        let kind = node.child("kind").and_then(|kind| kind.text());
        if kind.is_some_and(|kind| kind == "List")
            && let Some(items) = node.child("items").and_then(|items| items.items())
            && lists < MAX_LISTS
        {
            for item in items {
                self.add(item, lists + 1);
            }
            return;
        }
        match object(node) {
            Ok(Some(object)) => self.objects.push(Item { line: node.line, object: Arc::new(object) }),
            Ok(None) => {
                tracing::debug!(kind, line = node.line, "kind is no concern of the mesh");
                self.ignored += 1;
            }
            Err(mistakes) => {
                let reference = mistakes.first().and_then(|mistake| mistake.object.as_ref());
                let stand_in = stand_in::shared(node, reference);
                self.stand_ins.extend(stand_in.map(|object| Item { line: node.line, object }));
                self.mistakes.extend(mistakes);
            }
        }
    }
}

/// The object that a document is; `None` for a kind that is no concern of ours.
pub(super) fn object(node: &Node) -> Result<Option<Object>, Vec<Mistake>> {
    let mistake = |field: &str, reason: String| {
        let (code, line) = (Code::NotYaml, line_of(node, field));
        vec![Mistake { code, line, object: None, field: field.to_owned(), reason }]
    };
    if !node.is_mapping() {
        return Err(mistake("", "not a Kubernetes object".to_owned()));
    }
    let text = |field: &str| {
        let text = node.child(field).and_then(|value| value.text()).filter(|text| !text.is_empty());
        text.ok_or_else(|| mistake(field, "missing, or not a string".to_owned()))
    };
    let (version, kind) = (text("apiVersion")?, Kind::from(text("kind")?.to_owned()));
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let versions: &[&str] = match &kind {
        Kind::Namespace | Kind::Node | Kind::Pod | Kind::Service | Kind::ServiceAccount => &["v1"],
        Kind::EndpointSlice => &["discovery.k8s.io/v1"],
        Kind::VirtualService | Kind::DestinationRule | Kind::ServiceEntry | Kind::WorkloadEntry => {
            &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"]
        }
        Kind::PeerAuthentication | Kind::AuthorizationPolicy => {
            &["security.istio.io/v1", "security.istio.io/v1beta1"]
        }
        Kind::TcpRoute => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"],
        Kind::TlsRoute => &[
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1alpha3",
            "gateway.networking.k8s.io/v1alpha2",
        ],
        Kind::ReferenceGrant => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"],
        Kind::Other(_) if GROUPS.contains(&group) => &[],
        Kind::Other(_) => return Ok(None),
    };
    let groups_match =
        versions.first().is_none_or(|known| known.split_once('/').map_or("", |(group, _)| group) == group);
    if !groups_match {
        // Another project's kind of the same name, such as Knative's Service.
        return Ok(None);
    }
    let reference = reference(node, kind.clone());
    let mistake = |code: Code, field: &str, reason: String| {
        let object = reference.clone();
        vec![Mistake { code, line: line_of(node, field), object, field: field.to_owned(), reason }]
    };
    if !versions.is_empty() && !versions.contains(&version) {
        return Err(mistake(
            Code::Invalid,
            "apiVersion",
            format!("{version} is not understood, {} is", versions.join(", ")),
        ));
    }
    let Some(name) = reference.clone() else {
        return Err(mistake(Code::NotYaml, "metadata.name", "missing, or not a string".to_owned()));
    };
    let mut wrong = Mistaken::default();
    let object = match kind {
        Kind::Namespace => typed(node).map(Object::Namespace),
        Kind::Node => typed(node).map(Object::Node),
        Kind::Pod => typed::<core::Pod>(node).map(|pod| {
            check_pod(&mut wrong, &pod);
            Object::Pod(Box::new(Pod::new(name, &pod)))
        }),
        Kind::Service => typed::<core::Service>(node).map(|service| {
            check_service(&mut wrong, &service);
            Object::Service(Box::new(Service::new(name, &service)))
        }),
        Kind::ServiceAccount => typed(node).map(Object::ServiceAccount),
        Kind::EndpointSlice => typed::<discovery::EndpointSlice>(node).map(|slice| {
            check_slice(&mut wrong, &slice);
            Object::EndpointSlice(Box::new(EndpointSlice::new(name, &slice)))
        }),
        Kind::VirtualService => typed(node).map(Object::VirtualService),
        Kind::DestinationRule => typed(node).map(Object::DestinationRule),
        Kind::ServiceEntry => typed(node).map(Object::ServiceEntry),
        Kind::WorkloadEntry => typed(node).map(Object::WorkloadEntry),
        Kind::PeerAuthentication => typed(node).map(Object::PeerAuthentication),
        Kind::AuthorizationPolicy => typed(node).map(Object::AuthorizationPolicy),
        Kind::TcpRoute => typed(node).map(Object::TcpRoute),
        Kind::TlsRoute => typed(node).map(Object::TlsRoute),
        Kind::ReferenceGrant => typed(node).map(Object::ReferenceGrant),
        Kind::Other(_) => Ok(Object::Unsupported(Box::new(name))),
    };
    let object = object.map_err(|error| {
        let line = node.line_of(error.path().iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key)),
            Segment::Enum { .. } | Segment::Unknown => None,
        }));
        let field = Some(error.path().to_string()).filter(|path| path != ".").unwrap_or_default();
        let (code, reason) = (Code::Invalid, error.inner().to_string());
        vec![Mistake { code, line, object: reference.clone(), field, reason }]
    })?;
    let wrong = validate(&object).into_iter().chain(wrong);
    let wrong: Vec<Mistake> =
        wrong.flat_map(|Wrong { code, field, reason }| mistake(code, &field, reason)).collect();
    if wrong.is_empty() { Ok(Some(object)) } else { Err(wrong) }
}

fn typed<T: DeserializeOwned>(node: &Node) -> Result<Box<T>, serde_path_to_error::Error<Unfit>> {
    serde_path_to_error::deserialize(node).map(Box::new)
}

/// The name of an object whose other fields may all be wrong.
fn reference(node: &Node, kind: Kind) -> Option<ObjectRef> {
    let metadata = node.child("metadata")?;
    let text = |field| metadata.child(field).and_then(|value| value.text()).filter(|text| !text.is_empty());
    let namespace = if kind.is_cluster_wide() { "" } else { text("namespace").unwrap_or("default") };
    let name = text("name")?;
    // Services are named by slices, rules and labels as well.
    let name = if kind == Kind::Service { shared_text(name) } else { name.into() };
    Some(ObjectRef::new(kind, shared_text(namespace), name))
}

/// The line of a path such as `spec.ports[0].port`.
fn line_of(node: &Node, field: &str) -> u32 {
    node.line_of(steps(field))
}

/// A path's steps: keys after dots, and in brackets indexes, or keys that may hold dots.
fn steps(field: &str) -> Vec<Step<'_>> {
    let (mut steps, mut rest) = (Vec::new(), field);
    while !rest.is_empty() {
        let (step, after) = if let Some(inside) = rest.strip_prefix('[') {
            let (step, after) = inside.split_once(']').unwrap_or((inside, ""));
            (step.parse().map_or(Step::Key(step), Step::Index), after)
        } else {
            let (step, after) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
            (Step::Key(step), after)
        };
        steps.push(step);
        rest = after.strip_prefix('.').unwrap_or(after);
    }
    steps
}

/// A text in which the lines of fields are looked for. Parts are parsed when they are asked for first.
#[derive(Debug)]
pub(crate) struct Lines<'t> {
    parts: Vec<(u32, &'t str)>,
    parsed: HashMap<usize, Vec<Rc<Node>>>,
}

impl<'t> Lines<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self { parts: parts(text), parsed: HashMap::new() }
    }

    /// The line of a field of the object that begins on `line`, or of the nearest thing around it that is there; `None`
    /// where that object does not begin there.
    pub(crate) fn of_field(&mut self, object: &ObjectRef, line: u32, field: &str) -> Option<u32> {
        let index = self.parts.partition_point(|(before, _)| *before < line).checked_sub(1)?;
        let (before, part) = self.parts[index];
        let documents = self
            .parsed
            .entry(index)
            .or_insert_with(|| yaml::documents(part).into_iter().filter_map(Result::ok).collect());
        let found = documents.iter().find_map(|document| find(document, line - before, object, 0))?;
        Some(before.saturating_add(line_of(found, field)))
    }
}

fn find<'n>(node: &'n Node, line: u32, object: &ObjectRef, lists: usize) -> Option<&'n Node> {
    if node.child("kind").and_then(|kind| kind.text()) == Some("List") {
        let items = node.child("items").and_then(|items| items.items()).filter(|_| lists < MAX_LISTS)?;
        return items.iter().find_map(|item| find(item, line, object, lists + 1));
    }
    let is_it = node.line == line && reference(node, object.kind.clone()).as_ref() == Some(object);
    is_it.then_some(node)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\n";
    const VIRTUAL_SERVICE: &str =
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\n";

    #[test]
    fn mistakes_name_line_field_and_object() {
        let pod = Some("Pod shop/web");
        let rule = Some("VirtualService default/web");
        let service = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n";
        let peer =
            "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata:\n  name: web\n";
        let cases: Vec<(&str, String, u32, Option<&str>, &str, &str)> = vec![
            ("no object", "just text".into(), 1, None, "", "not a Kubernetes object"),
            ("no kind", "apiVersion: v1\n".into(), 1, None, "kind", "missing"),
            (
                "no name",
                "apiVersion: v1\nkind: Service\nmetadata: {}\n".into(),
                3,
                None,
                "metadata.name",
                "missing",
            ),
            ("old version", POD.replace("v1", "v2"), 1, pod, "apiVersion", "not understood"),
            (
                "bad address",
                format!("{POD}status:\n  podIP: 10.0.0.256\n"),
                5,
                pod,
                "status.podIP",
                "IP address",
            ),
            (
                "bad second address",
                format!("{POD}status:\n  podIPs:\n  - ip: 10.0.0.1\n  - ip: x\n"),
                7,
                pod,
                "status.podIPs[1].ip",
                "IP address",
            ),
            (
                "wrong type",
                format!("{POD}spec:\n  containers: []\n  hostNetwork: 7\n"),
                6,
                pod,
                "spec.hostNetwork",
                "boolean",
            ),
            (
                "port out of range",
                format!(
                    "{service}spec:\n  ports:\n  - port: 80\n    name: a\n  - port: 70000\n    name: b\n"
                ),
                9,
                Some("Service default/web"),
                "spec.ports[1].port",
                "1 to 65535",
            ),
            (
                "port as text",
                format!("{service}spec:\n  ports:\n  - port: \"80\"\n"),
                7,
                Some("Service default/web"),
                "spec.ports[0].port",
                "i32",
            ),
            (
                "weight as text",
                format!(
                    "{VIRTUAL_SERVICE}spec:\n  hosts: [a]\n  http:\n  - route:\n    - destination: {{host: a}}\n      weight: ten\n"
                ),
                9,
                rule,
                "spec.http[0].route[0].weight",
                "i64",
            ),
            (
                "negative weight",
                format!(
                    "{VIRTUAL_SERVICE}spec:\n  hosts: [a]\n  tcp:\n  - route:\n    - destination: {{host: a}}\n      weight: -1\n"
                ),
                9,
                rule,
                "spec.tcp[0].route[0].weight",
                "below 0",
            ),
            (
                "no weight at all",
                format!(
                    "{VIRTUAL_SERVICE}spec:\n  hosts: [a]\n  tcp:\n  - route:\n    - destination: {{host: a}}\n    - destination: {{host: b}}\n"
                ),
                7,
                rule,
                "spec.tcp[0].route",
                "sum",
            ),
            (
                "unknown mode",
                format!("{peer}spec:\n  mtls:\n    mode: STRCT\n"),
                7,
                Some("PeerAuthentication default/web"),
                "spec.mtls.mode",
                "STRCT",
            ),
            (
                "port of a mode",
                format!(
                    "{peer}spec:\n  selector:\n    matchLabels: {{app: a}}\n  portLevelMtls:\n    0: {{mode: STRICT}}\n"
                ),
                9,
                Some("PeerAuthentication default/web"),
                "spec.portLevelMtls.0",
                "1 to 65535",
            ),
        ];
        for (name, text, line, object, field, reason) in cases {
            let decoded = decode(&text);
            let [mistake] = &decoded.mistakes[..] else { panic!("{name}: {decoded:?}") };
            assert!(decoded.objects.is_empty(), "{name}");
            assert_eq!(mistake.object.as_ref().map(ToString::to_string).as_deref(), object, "{name}");
            assert_eq!((mistake.line, mistake.field.as_str()), (line, field), "{name}: {mistake:?}");
            assert!(mistake.reason.contains(reason), "{name}: {mistake:?}");
        }
    }

    #[test]
    fn one_mistake_costs_no_other_object() {
        let text = format!(
            "{POD}---\na: [\n---\n{}---\n{VIRTUAL_SERVICE}spec: {{hosts: [a]}}\n",
            POD.replace("web", "db")
        );
        let decoded = decode(&text);
        let names: Vec<String> =
            decoded.objects.iter().map(|item| item.object.reference().to_string()).collect();
        assert_eq!(names, ["Pod shop/web", "Pod shop/db", "VirtualService default/web"]);
        assert_eq!(decoded.objects[1].line, 7);
        assert_eq!(decoded.mistakes.len(), 1);
    }

    #[test]
    fn lists_and_other_kinds() {
        let text = "kind: List\napiVersion: v1\nitems:\n\
            - {apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n\
            - {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n\
            - {apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: a}}\n\
            - {apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a}}\n\
            - {apiVersion: v1, kind: Pod, metadata: {name: 7}}\n";
        let decoded = decode(text);
        let names: Vec<String> =
            decoded.objects.iter().map(|item| item.object.reference().to_string()).collect();
        assert_eq!(names, ["Namespace shop", "AuthorizationPolicy default/a"]);
        assert_eq!(decoded.ignored, 2);
        assert_eq!(decoded.mistakes[0].line, 8);
    }

    proptest! {
        #[test]
        fn nothing_panics(body in r"(?s)([a-z:{}\[\] \n\-0-9]|spec:|ports:|hosts:|\n  ){0,80}") {
            decode(&body);
            decode(&format!("{POD}{body}"));
            decode(&format!("{VIRTUAL_SERVICE}spec:\n  {body}"));
        }
    }
}
