//! An object as the API server writes it, in JSON: read as a manifest is, by the same rules.
//!
//! A cluster has many thousands of Pods and each is mostly text that is no concern of a mesh. What nobody here asks for is
//! skipped before anything is made of it; a kind that is checked for fields that it does not know is read whole.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

use super::decode::object;
use super::stand_in;
use super::yaml::{Content, Node};
use super::{Code, Kind, Mistake, Object};

/// Why an object of the API server is none here.
#[derive(Clone, Debug)]
pub(crate) struct Rejected {
    /// What is wrong; lines mean nothing.
    pub(crate) mistakes: Vec<Mistake>,
    /// What may stand in its place if it is a security policy.
    pub(crate) stand_in: Option<Arc<Object>>,
}

/// The object that a JSON text is, which need not say its own kind and version.
pub(crate) fn decode_json(api_version: &str, kind: &Kind, text: &str) -> Result<Arc<Object>, Rejected> {
    let mut json = serde_json::Deserializer::from_str(text);
    let node = Tree(keeps(kind)).deserialize(&mut json);
    let syntax = |reason: String| Rejected {
        mistakes: vec![Mistake { code: Code::NotYaml, line: 0, object: None, field: String::new(), reason }],
        stand_in: None,
    };
    let mut node = node.map_err(|error| syntax(format!("not JSON: {error}")))?;
    if let Content::Mapping(entries) = &mut node.content {
        entries.retain(|(key, ..)| !matches!(&**key, "apiVersion" | "kind"));
        for (key, value) in [("apiVersion", api_version), ("kind", kind.as_str())] {
            let value = Node::new(0, Content::Scalar(Value::String(value.to_owned())));
            entries.push((key.into(), 0, Rc::new(value)));
        }
    }
    match object(&node) {
        Ok(Some(mut object)) => {
            if let Object::Pod(pod) = &mut object {
                pod.forget_netns();
            }
            Ok(Arc::new(object))
        }
        Ok(None) => Err(syntax(format!("{api_version} {} is no concern of a mesh", kind.as_str()))),
        Err(mistakes) => {
            let reference = mistakes.first().and_then(|mistake| mistake.object.as_ref());
            let stand_in = stand_in::shared(&node, reference);
            Err(Rejected { mistakes, stand_in })
        }
    }
}

/// The fields of an object that are read; lists are looked through.
#[derive(Clone, Copy, Debug)]
enum Keep {
    All,
    But(&'static [(&'static str, Keep)]),
    Only(&'static [(&'static str, Keep)]),
    Nothing,
}

impl Keep {
    fn field(self, name: &str) -> Self {
        let find =
            |fields: &[(&str, Self)]| fields.iter().find(|(own, _)| *own == name).map(|(_, keep)| *keep);
        match self {
            Self::All => Self::All,
            Self::But(fields) => find(fields).unwrap_or(Self::All),
            Self::Only(fields) => find(fields).unwrap_or(Self::Nothing),
            Self::Nothing => Self::Nothing,
        }
    }
}

/// Who wrote which field: the larger half of many objects.
const METADATA: Keep = Keep::But(&[("managedFields", Keep::Nothing)]);

const POD: Keep = Keep::Only(&[
    (
        "metadata",
        Keep::Only(&[
            ("name", Keep::All),
            ("namespace", Keep::All),
            ("uid", Keep::All),
            ("labels", Keep::All),
            ("annotations", Keep::Only(&[("mesh.dev/netns", Keep::All)])),
            ("ownerReferences", Keep::All),
            ("deletionTimestamp", Keep::All),
        ]),
    ),
    (
        "spec",
        Keep::Only(&[
            ("containers", CONTAINER),
            ("initContainers", CONTAINER),
            ("hostNetwork", Keep::All),
            ("nodeName", Keep::All),
            ("serviceAccountName", Keep::All),
        ]),
    ),
    (
        "status",
        Keep::Only(&[
            ("phase", Keep::All),
            ("podIP", Keep::All),
            ("podIPs", Keep::All),
            ("conditions", Keep::Only(&[("type", Keep::All), ("status", Keep::All)])),
        ]),
    ),
]);

const CONTAINER: Keep = Keep::Only(&[("name", Keep::All), ("ports", Keep::All)]);

const NODE: Keep = Keep::Only(&[
    ("metadata", Keep::Only(&[("name", Keep::All), ("labels", Keep::All), ("deletionTimestamp", Keep::All)])),
    ("spec", Keep::Only(&[("taints", Keep::All)])),
    ("status", Keep::Only(&[("addresses", Keep::All)])),
]);

const NAMED: Keep = Keep::Only(&[("metadata", Keep::Only(&[("name", Keep::All), ("namespace", Keep::All)]))]);

/// What is read of a kind.
const fn keeps(kind: &Kind) -> Keep {
    match kind {
        Kind::Pod => POD,
        Kind::Node => NODE,
        Kind::Namespace => {
            Keep::Only(&[("metadata", Keep::Only(&[("name", Keep::All), ("labels", Keep::All)]))])
        }
        Kind::Other(_) => NAMED,
        _ => Keep::But(&[("metadata", METADATA)]),
    }
}

/// JSON as a node, without what is not kept.
#[derive(Clone, Copy)]
struct Tree(Keep);

impl<'de> DeserializeSeed<'de> for Tree {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

fn scalar(value: Value) -> Node {
    Node::new(0, Content::Scalar(value))
}

impl<'de> Visitor<'de> for Tree {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(scalar(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(scalar(Value::String(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(scalar(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element_seed(self)? {
            items.push(Rc::new(item));
        }
        Ok(Node::new(0, Content::Sequence(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries: Vec<(Rc<str>, u32, Rc<Node>)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match self.0.field(&key) {
                Keep::Nothing => {
                    map.next_value::<IgnoredAny>()?;
                }
                keep => {
                    let value = Rc::new(map.next_value_seed(Self(keep))?);
                    if entries.len() < 16 && entries.iter().any(|(own, ..)| **own == *key) {
                        return Err(A::Error::custom(format_args!("key {key:?} is there twice")));
                    }
                    entries.push((key.into(), 0, value));
                }
            }
        }
        Ok(Node::new(0, Content::Mapping(entries)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::decode;

    #[test]
    fn the_same_as_of_a_manifest() {
        let pod = r#"{"metadata":{"name":"web","namespace":"shop","uid":"u","labels":{"app":"web"},
            "annotations":{"mesh.dev/netns":"/run/netns/a"},"managedFields":[{"manager":"m","fieldsV1":{"f:a":{}}}]},
            "spec":{"nodeName":"n","containers":[{"name":"c","image":"i","env":[{"name":"A","value":"b"}],
            "ports":[{"name":"http","containerPort":80}]}]},
            "status":{"podIP":"10.0.0.1","conditions":[{"type":"Ready","status":"True"}],"containerStatuses":[{"restartCount":9}]}}"#;
        // But for the place that its author names: that is for manifests alone.
        let slim = "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, uid: u, labels: {app: web}}, spec: {nodeName: n, containers: [{name: c, \
            ports: [{name: http, containerPort: 80}]}]}, status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}}";
        let of_json = decode_json("v1", &Kind::Pod, pod).unwrap();
        assert_eq!(of_json, decode(slim).objects[0].object);
        let node = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n","labels":{"a":"b"}},
            "spec":{"podCIDR":"10.0.0.0/24"},"status":{"images":[{"names":["x"]}],"addresses":[{"type":"InternalIP","address":"10.1.0.1"}]}}"#;
        let Object::Node(node) = &*decode_json("v1", &Kind::Node, node).unwrap() else { panic!() };
        assert!(node.spec.as_ref().unwrap().pod_cidr.is_none());
        assert_eq!(node.status.as_ref().unwrap().addresses.as_ref().unwrap().len(), 1);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field_and_stood_in_for() {
        let policy = r#"{"metadata":{"name":"p","namespace":"shop"},"spec":{"selector":{"matchLabels":{"app":"a"}},
            "action":"DENY","rules":[{"to":[{"operation":{"ports":[80]}}]}]}}"#;
        let rejected = decode_json("security.istio.io/v1", &Kind::AuthorizationPolicy, policy).unwrap_err();
        assert_eq!(rejected.mistakes[0].field, "spec.rules[0].to[0].operation.ports[0]");
        assert_eq!(rejected.mistakes[0].object.as_ref().unwrap().to_string(), "AuthorizationPolicy shop/p");
        let stand_in = rejected.stand_in.unwrap();
        let Object::AuthorizationPolicy(policy) = &*stand_in else { panic!() };
        assert!(policy.spec.rules.is_empty() && policy.spec.selector.is_some());
        for text in ["", "{", "[]", "7", r#"{"metadata":{}}"#, r#"{"metadata":{"name":7}}"#] {
            assert!(decode_json("v1", &Kind::Pod, text).is_err(), "{text}");
        }
        // A field without a value is one that is not there.
        assert!(
            decode_json("v1", &Kind::Pod, r#"{"metadata":{"name":"a","labels":null},"spec":null}"#).is_ok()
        );
        // What the mesh cannot carry out is known by name alone.
        let other = Kind::Other("Sidecar".into());
        let entry = r#"{"metadata":{"name":"a","namespace":"b"},"spec":{"hosts":7}}"#;
        assert!(decode_json("networking.istio.io/v1", &other, entry).is_ok());
    }
}
