//! YAML text to nodes that are read as JSON, with the line of every field.
//!
//! A text is split at its document markers before anything is parsed, which is sound because YAML forbids them inside
//! every kind of scalar (YAML 1.2.2, `c-forbidden`): a document that does not parse costs no other. Scalars are read
//! as Kubernetes reads them: YAML 1.2's core schema plus 1.1's `yes`, `no`, `on`, `off` and leading-zero octals.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};
use serde_json::{Number, Value};

/// Deepest nesting; Kubernetes objects stay far below.
const MAX_DEPTH: usize = 100;
/// Nodes that aliases and merge keys may add to a document.
const MAX_ALIASED: u64 = 100_000;

/// Why a document is not YAML.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(super) struct SyntaxError {
    pub(super) line: u32,
    pub(super) reason: String,
}

/// A value and the line it begins on.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: u32,
    depth: usize,
    /// Nodes in it, itself included, aliases followed.
    size: u64,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Scalar(Value),
    Sequence(Vec<Rc<Node>>),
    Mapping(Vec<Entry>),
}

/// A key, the line it is on, and its value.
pub(super) type Entry = (Rc<str>, u32, Rc<Node>);

/// One step of a path.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Node {
    /// As JSON, without the keys that have no value.
    #[cfg(test)]
    pub(super) fn value(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::Sequence(items) => Value::Array(items.iter().map(|item| item.value()).collect()),
            Content::Mapping(entries) => {
                let present = entries.iter().filter(|(_, _, value)| !value.is_null());
                Value::Object(
                    present
                        .map(|(key, _, value)| (key.to_string(), value.value()))
                        .collect::<serde_json::Map<_, _>>(),
                )
            }
        }
    }

    /// The line of the field, or of its nearest ancestor that is there.
    pub(super) fn line_of<'a>(&self, path: impl IntoIterator<Item = Step<'a>>) -> u32 {
        let (mut node, mut line) = (self, self.line);
        for step in path {
            match (step, &node.content) {
                (Step::Key(key), Content::Mapping(entries)) => {
                    let Some((_, at, value)) = entries.iter().find(|entry| &*entry.0 == key) else { break };
                    (node, line) = (value, *at);
                }
                (Step::Index(index), Content::Sequence(items)) => {
                    let Some(item) = items.get(index) else { break };
                    (node, line) = (item, item.line);
                }
                _ => break,
            }
        }
        line
    }

    /// The value of a key, where this is a mapping.
    pub(super) fn child(&self, key: &str) -> Option<&Rc<Self>> {
        let Content::Mapping(entries) = &self.content else { return None };
        entries.iter().find(|entry| &*entry.0 == key).map(|entry| &entry.2)
    }

    /// The items, where this is a sequence.
    pub(super) fn items(&self) -> Option<&[Rc<Self>]> {
        let Content::Sequence(items) = &self.content else { return None };
        Some(items)
    }

    /// The text, where this is a string.
    pub(super) fn text(&self) -> Option<&str> {
        let Content::Scalar(Value::String(text)) = &self.content else { return None };
        Some(text)
    }

    /// Whether there is nothing in it.
    pub(super) const fn is_null(&self) -> bool {
        matches!(self.content, Content::Scalar(Value::Null))
    }

    pub(super) const fn is_mapping(&self) -> bool {
        matches!(self.content, Content::Mapping(_))
    }
}

/// The documents of a part of a text in order, each with its outcome. Lines are counted from the part's first.
pub(super) fn documents(part: &str) -> Vec<Result<Rc<Node>, SyntaxError>> {
    let mut documents = Vec::new();
    parse(part, &mut documents);
    documents
}

/// The text cut at its document markers, each part with the number of lines before it. Nothing in a part depends on
/// another.
pub(super) fn split(text: &str) -> Vec<(u32, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut offset, mut has_content, mut started) = (0, 0, 0, false, false);
    for (number, line) in (0_u32..).zip(text.split_inclusive('\n')) {
        let end = offset + line.len();
        if is_marker(line, "---") {
            if has_content || started {
                parts.push((start_line, &text[start..offset]));
                (start, start_line, has_content) = (offset, number, false);
            }
            started = true;
        } else if is_marker(line, "...") {
            parts.push((start_line, &text[start..end]));
            (start, start_line, has_content, started) = (end, number + 1, false, false);
        } else {
            let trimmed = line.trim();
            let directive = !started && line.starts_with('%');
            has_content |= !trimmed.is_empty() && !trimmed.starts_with('#') && !directive;
        }
        offset = end;
    }
    parts.push((start_line, &text[start..]));
    parts
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn parse(text: &str, documents: &mut Vec<Result<Rc<Node>, SyntaxError>>) {
    // Nothing that is read may panic the agent, whatever the parser under it does.
    let parsed = std::panic::catch_unwind(|| {
        let mut found = Vec::new();
        let outcome = Builder::new(text).run(&mut found);
        (found, outcome)
    });
    let (found, outcome) = parsed.unwrap_or_else(|_| {
        let reason = "the YAML parser cannot handle this document".to_owned();
        (Vec::new(), Err(SyntaxError { line: 1, reason }))
    });
    documents.extend(found.into_iter().map(Ok));
    documents.extend(outcome.err().map(Err));
}

/// A collection that is not complete yet.
struct Open {
    line: u32,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    Sequence(Vec<Rc<Node>>),
    Mapping {
        entries: Vec<Entry>,
        keys: Keys,
        key: Option<(Rc<str>, u32)>,
        /// Whether `key` asks for a merge.
        merging: bool,
        merges: Vec<Rc<Node>>,
    },
}

/// The keys of a mapping that is not complete yet. Most have few, which are found fastest where they stand.
#[derive(Default)]
struct Keys(HashSet<Rc<str>>);

impl Keys {
    /// More keys than this are looked up.
    const FEW: usize = 16;

    /// Whether the key is new among the entries, which then get it.
    fn insert(&mut self, entries: &[Entry], key: &Rc<str>) -> bool {
        if entries.len() < Self::FEW {
            return entries.iter().all(|entry| entry.0 != *key);
        }
        if self.0.is_empty() {
            self.0.extend(entries.iter().map(|entry| Rc::clone(&entry.0)));
        }
        self.0.insert(Rc::clone(key))
    }
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    aliased: u64,
}

impl<'a> Builder<'a> {
    fn new(text: &'a str) -> Self {
        let parser = Parser::new_from_str(text);
        Self { parser, open: Vec::new(), anchors: HashMap::new(), aliased: 0 }
    }

    fn run(mut self, documents: &mut Vec<Rc<Node>>) -> Result<(), SyntaxError> {
        while let Some(event) = self.parser.next_event() {
            let (event, span) = event.map_err(|error| SyntaxError {
                line: u32::try_from(error.marker().line()).unwrap_or(u32::MAX),
                reason: format!("not YAML: {}", error.info()),
            })?;
            let line = line_of(span);
            match event {
                Event::DocumentStart(_) => {
                    self.anchors.clear();
                    self.aliased = 0;
                }
                Event::Alias(anchor) => {
                    let node = self.anchors.get(&anchor).map(Rc::clone);
                    let node = node.ok_or_else(|| error(line, "an alias to something that holds it"))?;
                    self.count_alias(node.size, line)?;
                    self.add(node, line, documents)?;
                }
                Event::Scalar(text, style, anchor, tag) => {
                    let is_string = style != ScalarStyle::Plain
                        || tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                    let merges = !is_string && text == "<<";
                    // A key is the text as written: 8080 stays "8080".
                    let value = if is_string || self.wants_key() {
                        Value::String(text.into_owned())
                    } else {
                        plain_scalar(&text)
                    };
                    if merges && self.start_merge(line) {
                        continue;
                    }
                    self.finish(line, anchor, Content::Scalar(value), documents)?;
                }
                Event::SequenceStart(anchor, _) => {
                    self.enter(line, anchor, OpenKind::Sequence(Vec::new()))?;
                }
                Event::MappingStart(anchor, _) => self.enter(
                    line,
                    anchor,
                    OpenKind::Mapping {
                        entries: Vec::new(),
                        keys: Keys::default(),
                        key: None,
                        merging: false,
                        merges: Vec::new(),
                    },
                )?,
                Event::SequenceEnd | Event::MappingEnd => self.leave(documents)?,
                Event::StreamEnd => return Ok(()),
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
            }
        }
        Ok(())
    }

    fn count_alias(&mut self, size: u64, line: u32) -> Result<(), SyntaxError> {
        self.aliased = self.aliased.saturating_add(size);
        if self.aliased > MAX_ALIASED {
            return Err(error(line, "aliases expand to too much"));
        }
        Ok(())
    }

    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { kind: OpenKind::Mapping { key: None, .. }, .. }))
    }

    /// Takes `<<` as a key; false where no key is wanted.
    fn start_merge(&mut self, line: u32) -> bool {
        match self.open.last_mut() {
            Some(Open { kind: OpenKind::Mapping { key: key @ None, merging, .. }, .. }) => {
                *key = Some((Rc::from("<<"), line));
                *merging = true;
                true
            }
            _ => false,
        }
    }

    fn enter(&mut self, line: u32, anchor: usize, kind: OpenKind) -> Result<(), SyntaxError> {
        if self.wants_key() {
            return Err(error(line, "a key must be a scalar"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(error(line, "nested too deeply"));
        }
        self.open.push(Open { line, anchor, kind });
        Ok(())
    }

    fn leave(&mut self, documents: &mut Vec<Rc<Node>>) -> Result<(), SyntaxError> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let content = match open.kind {
            OpenKind::Sequence(items) => Content::Sequence(items),
            OpenKind::Mapping { mut entries, mut keys, merges, .. } => {
                for (key, line, value) in merges.iter().flat_map(|node| node.entries()) {
                    if keys.insert(&entries, key) {
                        entries.push((Rc::clone(key), *line, Rc::clone(value)));
                    }
                }
                Content::Mapping(entries)
            }
        };
        self.finish(open.line, open.anchor, content, documents)
    }

    fn finish(
        &mut self,
        line: u32,
        anchor: usize,
        content: Content,
        documents: &mut Vec<Rc<Node>>,
    ) -> Result<(), SyntaxError> {
        let node = Rc::new(Node::new(line, content));
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.add(node, line, documents)
    }

    /// Puts a complete node where it belongs.
    fn add(&mut self, node: Rc<Node>, line: u32, documents: &mut Vec<Rc<Node>>) -> Result<(), SyntaxError> {
        if self.open.len() + node.depth > MAX_DEPTH {
            return Err(error(line, "nested too deeply"));
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => documents.push(node),
            Some(OpenKind::Sequence(items)) => items.push(node),
            Some(OpenKind::Mapping { entries, keys, key, merging, merges }) => match key.take() {
                None => {
                    let name: Rc<str> =
                        node.key().ok_or_else(|| error(line, "a key must be a scalar"))?.into();
                    if !keys.insert(entries, &name) {
                        return Err(error(line, &format!("key {name:?} is there twice")));
                    }
                    *key = Some((name, line));
                }
                Some((_, at)) if std::mem::take(merging) => match &node.content {
                    Content::Mapping(_) => merges.push(node),
                    Content::Sequence(items) if items.iter().all(|item| item.is_mapping()) => {
                        merges.extend(items.iter().map(Rc::clone));
                    }
                    _ => return Err(error(at, "<< takes a mapping or a list of them")),
                },
                Some((name, at)) => entries.push((name, at, node)),
            },
        }
        Ok(())
    }
}

impl Node {
    pub(super) fn new(line: u32, content: Content) -> Self {
        let children: Box<dyn Iterator<Item = &Rc<Self>>> = match &content {
            Content::Scalar(_) => Box::new(std::iter::empty()),
            Content::Sequence(items) => Box::new(items.iter()),
            Content::Mapping(entries) => Box::new(entries.iter().map(|entry| &entry.2)),
        };
        let (depth, size) = children.fold((0, 1_u64), |(depth, size), child| {
            (child.depth.max(depth), size.saturating_add(child.size))
        });
        Self { line, depth: depth + 1, size, content }
    }

    fn entries(&self) -> &[Entry] {
        if let Content::Mapping(entries) = &self.content { entries } else { &[] }
    }

    fn key(&self) -> Option<String> {
        match &self.content {
            Content::Scalar(Value::String(text)) => Some(text.clone()),
            Content::Scalar(value) => Some(value.to_string()),
            _ => None,
        }
    }
}

fn line_of(span: Span) -> u32 {
    u32::try_from(span.start.line()).unwrap_or(u32::MAX)
}

fn error(line: u32, reason: &str) -> SyntaxError {
    SyntaxError { line, reason: reason.to_owned() }
}

fn plain_scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

fn number(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let negative = text.starts_with('-');
    let radix = |digits: &str, radix| {
        let all = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
        let value = all.then(|| i64::from_str_radix(digits, radix).ok()).flatten()?;
        Some(Number::from(if negative { -value } else { value }))
    };
    if let Some(hex) = digits.strip_prefix("0x") {
        return radix(hex, 16);
    }
    if let Some(octal) = digits.strip_prefix("0o") {
        return radix(octal, 8);
    }
    if digits.len() > 1 && digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.starts_with('0') {
        return radix(&digits[1..], 8);
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if let Ok(integer) = unsigned.parse::<i64>() {
        return Some(integer.into());
    }
    if let Ok(integer) = unsigned.parse::<u64>() {
        return Some(integer.into());
    }
    let float =
        digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    if float { unsigned.parse().ok().and_then(Number::from_f64) } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Result<Value, SyntaxError>> {
        let of_part = |(before, part)| {
            let moved = move |error: SyntaxError| SyntaxError { line: before + error.line, ..error };
            documents(part).into_iter().map(move |node| node.map(|node| node.value()).map_err(moved))
        };
        split(text).into_iter().flat_map(of_part).collect()
    }

    #[test]
    fn scalars() {
        let cases = [
            ("1", json!(1)),
            ("-7", json!(-7)),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            ("0644", json!(420)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            ("10.244.0.1", json!("10.244.0.1")),
            ("1.2.3", json!("1.2.3")),
            ("2001:db8::1", json!("2001:db8::1")),
            ("v1", json!("v1")),
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("~", json!(null)),
            ("\"1\"", json!("1")),
            ("'true'", json!("true")),
            ("!!str 1", json!("1")),
            ("2024-01-01T00:00:00Z", json!("2024-01-01T00:00:00Z")),
            ("18446744073709551615", json!(u64::MAX)),
            (".", json!(".")),
            ("-", json!([null])),
        ];
        for (text, wanted) in cases {
            assert_eq!(values(text), [Ok(wanted)], "{text}");
        }
    }

    #[test]
    fn documents_stand_apart() {
        let text = "a: 1\n---\nb: [1\n---\n# only a comment\n---\nc: |\n  text\n  ---\nd: 2\n...\n%YAML 1.2\n---\ne: 3\n";
        let found = values(text);
        assert_eq!(found[0], Ok(json!({"a": 1})));
        let broken = found[1].clone().unwrap_err();
        assert!((3..=5).contains(&broken.line), "{broken:?}");
        assert!(found.contains(&Ok(json!({"c": "text\n---\n", "d": 2}))), "{found:?}");
        assert!(found.contains(&Ok(json!({"e": 3}))), "{found:?}");
        assert_eq!(found.iter().filter(|document| document.is_err()).count(), 1);
    }

    #[test]
    fn anchors_and_merges() {
        let text = "base: &base {a: 1, b: 2}\nuse:\n  <<: *base\n  b: 3\nlist: [*base]\nmany:\n  <<: [*base, {c: 4}]\n\"<<\": text\n";
        let wanted = json!({
            "base": {"a": 1, "b": 2}, "use": {"b": 3, "a": 1}, "list": [{"a": 1, "b": 2}],
            "many": {"a": 1, "b": 2, "c": 4}, "<<": "text",
        });
        assert_eq!(values(text), [Ok(wanted)]);
    }

    #[test]
    fn refused() {
        let bomb = format!(
            "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n{}",
            (1..12)
                .map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(",")))
                .collect::<String>()
        );
        let many = |rest: &str| (0..40).map(|n| format!("k{n}: 1\n")).collect::<String>() + rest;
        let cases = [
            ("nested sequences", "[".repeat(200), "nested too deeply"),
            ("nested without end", "[".repeat(100_000), "not YAML: recursion limit exceeded"),
            ("nested mappings", "{a: ".repeat(150), "nested too deeply"),
            ("alias bomb", bomb, "aliases expand to too much"),
            ("alias to itself", "a: &a [*a]".to_owned(), "an alias to something that holds it"),
            ("same key twice", "a: 1\nb: 2\na: 3".to_owned(), "key \"a\" is there twice"),
            ("same key twice among many", many("k3: 1\n"), "key \"k3\" is there twice"),
            ("same late key twice", many("k30: 1\n"), "key \"k30\" is there twice"),
            ("key that is a list", "? [a]\n: b".to_owned(), "a key must be a scalar"),
            ("merge of a scalar", "<<: 1".to_owned(), "<< takes a mapping or a list of them"),
        ];
        for (name, text, reason) in cases {
            let error = values(&text).into_iter().find_map(Result::err).unwrap();
            assert_eq!(error.reason, reason, "{name}");
        }
    }

    #[test]
    fn lines() {
        let text = "# first\nmetadata:\n  name: x\nspec:\n  ports:\n  - port: 1\n  - name: y\n    port: 2\n";
        let node = documents(text).remove(0).unwrap();
        let cases: [(&[Step<'_>], u32); 5] = [
            (&[Step::Key("metadata"), Step::Key("name")], 3),
            (&[Step::Key("spec"), Step::Key("ports"), Step::Index(1), Step::Key("port")], 8),
            (&[Step::Key("spec"), Step::Key("ports"), Step::Index(1), Step::Key("missing")], 7),
            (&[Step::Key("spec"), Step::Key("ports"), Step::Index(9)], 5),
            (&[], 2),
        ];
        for (path, line) in cases {
            assert_eq!(node.line_of(path.iter().copied()), line, "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "(?s).{0,200}") {
            values(&text);
        }

        #[test]
        fn nothing_yaml_like_panics(text in r"([a-c*&!|>%\[\]{},:?#'\x22<~ \t\r\n-]|---|\.\.\.|: |- |&a|\*a){0,60}") {
            values(&text);
        }

        #[test]
        fn json_reads_as_itself(keys in prop::collection::btree_map("[a-z]{1,5}", -1000_i64..1000, 0..6)) {
            let wanted = json!({"list": [keys], "text": "a\nb"});
            let pretty = serde_json::to_string_pretty(&wanted).unwrap();
            prop_assert_eq!(values(&pretty), [Ok(wanted)]);
        }
    }
}
