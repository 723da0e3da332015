//! Label and field selectors.

use serde_json::Value;

use super::failure::Failure;
use super::kinds::Kind;
use super::store::Stored;

/// Which objects a list or a watch is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    namespace: Option<String>,
    labels: Vec<Label>,
    fields: Vec<Field>,
}

#[derive(Clone, Debug)]
struct Label {
    key: String,
    is: Is,
}

#[derive(Clone, Debug)]
enum Is {
    There,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

#[derive(Clone, Debug)]
struct Field {
    path: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// What `labelSelector` and `fieldSelector` say, within a namespace or in all of them.
    pub(super) fn parse(
        kind: &Kind,
        namespace: Option<&str>,
        labels: &str,
        fields: &str,
    ) -> Result<Self, Failure> {
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            labels: terms(labels).map(label).collect::<Result<_, _>>()?,
            fields: fields
                .split(',')
                .filter(|term| !term.is_empty())
                .map(|term| field(kind, term))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The namespace that it is limited to.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whether an object is meant.
    pub(super) fn matches(&self, object: &Stored) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == object.namespace)
            && self.labels.iter().all(|label| label.matches(object))
            && self.fields.iter().all(|field| field.matches(object))
    }
}

impl Label {
    fn matches(&self, object: &Stored) -> bool {
        let value = object.labels.iter().find(|(key, _)| **key == *self.key).map(|(_, value)| &**value);
        match &self.is {
            Is::There => value.is_some(),
            Is::Absent => value.is_none(),
            Is::In(values) => value.is_some_and(|value| values.iter().any(|one| one == value)),
            Is::NotIn(values) => value.is_none_or(|value| values.iter().all(|one| one != value)),
        }
    }
}

impl Field {
    fn matches(&self, object: &Stored) -> bool {
        let equal = match self.path.as_str() {
            "metadata.name" => object.name == self.value,
            "metadata.namespace" => object.namespace == self.value,
            "spec.nodeName" => *object.node == *self.value,
            "status.phase" => *object.phase == *self.value,
            path => {
                let whole = object.value();
                let found = path.split('.').fold(&whole, |value, key| &value[key]);
                match found {
                    Value::Null => self.value.is_empty() || self.value == "false",
                    Value::String(text) => *text == self.value,
                    other => {
                        let text = other.to_string();
                        text == self.value
                    }
                }
            }
        };
        equal == self.equal
    }
}

/// The terms of a label selector: commas between parentheses do not end one.
fn terms(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    text.split(move |letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
}

fn label(term: &str) -> Result<Label, Failure> {
    let bad = || Failure::bad_request(format!("unable to parse requirement: <nil>: Invalid value: {term:?}"));
    let values = |list: &str| -> Option<Vec<String>> {
        let inner = list.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
    };
    let (key, is) = if let Some((key, list)) = term.split_once(" notin ") {
        (key, Is::NotIn(values(list).ok_or_else(bad)?))
    } else if let Some((key, list)) = term.split_once(" in ") {
        (key, Is::In(values(list).ok_or_else(bad)?))
    } else if let Some((key, value)) = term.split_once("!=") {
        (key, Is::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Is::In(vec![value.trim().to_owned()]))
    } else if let Some(key) = term.strip_prefix('!') {
        (key, Is::Absent)
    } else {
        (term, Is::There)
    };
    let key = key.trim();
    let is_valid = !key.is_empty()
        && key.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_./".contains(letter));
    if is_valid { Ok(Label { key: key.to_owned(), is }) } else { Err(bad()) }
}

fn field(kind: &Kind, term: &str) -> Result<Field, Failure> {
    let (path, value, equal) = if let Some((path, value)) = term.split_once("!=") {
        (path, value, false)
    } else if let Some((path, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (path, value, true)
    } else {
        return Err(Failure::bad_request(format!("invalid selector: {term:?}; can't understand {term:?}")));
    };
    let known: &[&str] = match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "pods") => &[
            "spec.nodeName",
            "status.phase",
            "spec.serviceAccountName",
            "spec.restartPolicy",
            "spec.hostNetwork",
            "status.podIP",
        ],
        ("", "namespaces") => &["status.phase"],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "secrets") => &["type"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("batch", "jobs") => &["status.successful"],
        _ => &[],
    };
    if known.contains(&path) || ["metadata.name", "metadata.namespace"].contains(&path) {
        Ok(Field { path: path.to_owned(), value: value.to_owned(), equal })
    } else {
        let whole = if kind.group.is_empty() { kind.plural.clone() } else { kind.qualified() };
        Err(Failure::bad_request(format!(
            "Unable to find {whole:?} that match label selector, field selector {term:?}: field label not supported: {path}"
        )))
    }
}
