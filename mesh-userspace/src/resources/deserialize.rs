//! A YAML node as serde reads it: as JSON, without making JSON of it. What is wrong is said in the words of `serde_json`.

use std::fmt::Display;
use std::rc::Rc;
use std::slice::Iter;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, Expected, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::Value;

use super::yaml::{Content, Entry, Node};

/// What is wrong with a value.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unfit(String);

impl serde::de::Error for Unfit {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        match found {
            Unexpected::Unit => Self(format!("invalid type: null, expected {expected}")),
            found => Self(format!("invalid type: {found}, expected {expected}")),
        }
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Unfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
        match &self.content {
            Content::Scalar(Value::String(text)) => visitor.visit_borrowed_str(text),
            Content::Scalar(value) => value.deserialize_any(visitor).map_err(Unfit::custom),
            Content::Sequence(items) => visitor.visit_seq(Items(items.iter())),
            Content::Mapping(entries) => visitor.visit_map(Entries { left: entries.iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        // Variants that hold something occur in none of the kinds that are read.
        let text = self.text().ok_or_else(|| Unfit::invalid_type(unexpected(self), &"string or map"))?;
        visitor.visit_enum(StrDeserializer::new(text))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

fn unexpected(node: &Node) -> Unexpected<'_> {
    match &node.content {
        Content::Scalar(Value::Bool(value)) => Unexpected::Bool(*value),
        Content::Scalar(Value::Number(number)) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => Unexpected::Unsigned(number),
            (None, Some(number)) => Unexpected::Signed(number),
            (None, None) => Unexpected::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Content::Scalar(Value::String(text)) => Unexpected::Str(text),
        Content::Scalar(_) => Unexpected::Unit,
        Content::Sequence(_) => Unexpected::Seq,
        Content::Mapping(_) => Unexpected::Map,
    }
}

struct Items<'de>(Iter<'de, Rc<Node>>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Unfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Unfit> {
        self.0.next().map(|item| seed.deserialize(&**item)).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Entries<'de> {
    left: Iter<'de, Entry>,
    value: Option<&'de Node>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Unfit;

    /// A key without a value is an absent field, as for the API server.
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Unfit> {
        let Some((key, _, value)) = self.left.find(|(_, _, value)| !value.is_null()) else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Unfit> {
        let value = self.value.take().ok_or_else(|| Unfit::custom("a value without its key"))?;
        seed.deserialize(value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::resources::yaml::documents;

    #[derive(Debug, PartialEq, Deserialize)]
    enum Word {
        Some,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Everything {
        text: String,
        number: i32,
        #[serde(default)]
        absent: Option<bool>,
        list: Vec<Option<u16>>,
        word: Word,
        #[serde(flatten)]
        rest: BTreeMap<String, Value>,
    }

    /// The outcome, which must be that of the same text as JSON.
    fn read<T: DeserializeOwned + PartialEq + std::fmt::Debug>(text: &str) -> Result<T, String> {
        let node = documents(text).remove(0).unwrap();
        let own = serde_path_to_error::deserialize(&*node).map_err(|error| error.to_string());
        let of_json = serde_path_to_error::deserialize(node.value()).map_err(|error| error.to_string());
        assert_eq!(own, of_json, "{text}");
        own
    }

    #[test]
    fn as_json_is_read() {
        let good =
            "{text: a, number: -7, absent: , list: [1, null], word: Some, 8080: {b: [1.5, yes]}, gone: ~}";
        let read_well = read::<Everything>(good).unwrap();
        assert_eq!((read_well.absent, read_well.list), (None, vec![Some(1), None]));
        assert_eq!(read_well.rest.keys().collect::<Vec<_>>(), ["8080"]);
        let bad = [
            ("text: a", "text: 7", "integer `7`, expected a string"),
            ("text: a", "text: [a]", "sequence, expected a string"),
            ("text: a, ", "", "missing field `text`"),
            ("number: -7", "number: \"7\"", "string \"7\", expected i32"),
            ("number: -7", "number: 1.5", "floating point `1.5`, expected i32"),
            ("number: -7", "number: 3000000000", "integer `3000000000`, expected i32"),
            ("number: -7", "number: {}", "map, expected i32"),
            ("[1, null]", "[1, true]", "boolean `true`, expected u16"),
            ("[1, null]", "{}", "map, expected a sequence"),
            ("Some", "Other", "unknown variant `Other`, expected `Some`"),
            ("Some", "7", "integer `7`, expected string or map"),
            ("Some", "[]", "sequence, expected string or map"),
        ];
        for (from, to, wanted) in bad {
            let error = read::<Everything>(&good.replace(from, to)).unwrap_err();
            assert!(error.contains(wanted), "{to}: {error}");
        }
        assert!(read::<Vec<i32>>("[1, null]").unwrap_err().contains("null, expected i32"));
        assert!(read::<Everything>("just text").unwrap_err().contains("string \"just text\""));
    }
}
