//! `--set PATH=VALUE,...` as Helm reads it: dots and indices lead to a value, braces hold a list, a backslash takes the
//! meaning off what follows.

use serde_json::{Map, Value};

/// Highest index of a list.
const MAX_INDEX: usize = 1023;

/// Sets what `given` says in `values`, or tells what is wrong with it.
pub(super) fn apply(values: &mut Value, given: &str) -> Result<(), String> {
    for assignment in split(given, ',') {
        let mut sides = split(&assignment, '=').into_iter();
        let path = sides.next().unwrap_or_default();
        let value = sides.collect::<Vec<_>>();
        if value.is_empty() {
            return Err("write PATH=VALUE".to_owned());
        }
        let steps = path_of(&path)?;
        let value = read(&value.join("="));
        put(values, &steps, value)?;
    }
    Ok(())
}

/// Parts between `at`, where that stands neither in braces nor behind a backslash.
fn split(text: &str, at: char) -> Vec<String> {
    let (mut parts, mut part, mut depth, mut escaped) = (Vec::new(), String::new(), 0_usize, false);
    for letter in text.chars() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ if letter == at && depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(letter);
    }
    parts.push(part);
    parts
}

fn plain(text: &str) -> String {
    let (mut plain, mut escaped) = (String::new(), false);
    for letter in text.chars() {
        if letter == '\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            plain.push(letter);
        }
    }
    plain
}

enum Step {
    Key(String),
    Index(usize),
}

fn path_of(path: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    for part in split(path, '.') {
        let mut rest = part.as_str();
        let key = rest.split('[').next().unwrap_or_default();
        if key.is_empty() {
            return Err(format!("`{path}` has an empty name"));
        }
        steps.push(Step::Key(plain(key)));
        rest = &rest[key.len()..];
        while let Some(index) = rest.strip_prefix('[') {
            let (number, after) = index.split_once(']').ok_or_else(|| format!("`{path}` lacks a `]`"))?;
            let number: Option<usize> = number.parse().ok().filter(|number| *number <= MAX_INDEX);
            steps.push(Step::Index(
                number.ok_or_else(|| format!("`{path}`: an index is a number up to {MAX_INDEX}"))?,
            ));
            rest = after;
        }
        if !rest.is_empty() {
            return Err(format!("`{path}`: `{rest}` follows an index"));
        }
    }
    Ok(steps)
}

fn read(text: &str) -> Value {
    if let Some(list) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        let items = if list.is_empty() { Vec::new() } else { split(list, ',') };
        return Value::Array(items.iter().map(|item| read(item)).collect());
    }
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        _ => {
            // A leading zero is no number's: file modes and identifiers stay as they are.
            let number = text.parse::<i64>().ok().filter(|number| number.to_string() == text);
            number.map_or_else(|| Value::String(plain(text)), Value::from)
        }
    }
}

fn put(values: &mut Value, steps: &[Step], value: Value) -> Result<(), String> {
    let Some((step, rest)) = steps.split_first() else {
        *values = value;
        return Ok(());
    };
    match step {
        Step::Key(key) => {
            if !values.is_object() {
                *values = Value::Object(Map::new());
            }
            let Value::Object(entries) = values else { return Err(format!("`{key}` is below no mapping")) };
            if rest.is_empty() && value.is_null() {
                entries.remove(key);
                return Ok(());
            }
            put(entries.entry(key.clone()).or_insert(Value::Null), rest, value)
        }
        Step::Index(index) => {
            if !values.is_array() {
                *values = Value::Array(Vec::new());
            }
            let Value::Array(items) = values else { return Err(format!("[{index}] is in no list")) };
            if items.len() <= *index {
                items.resize(index + 1, Value::Null);
            }
            put(&mut items[*index], rest, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_set() {
        let cases = [
            ("a.b=c", json!({"a": {"b": "c", "k": 1}})),
            ("a.b=1,a.c=true", json!({"a": {"b": 1, "c": true, "k": 1}})),
            ("a={x,1,false}", json!({"a": ["x", 1, false]})),
            ("a={}", json!({"a": []})),
            ("a.k=null", json!({"a": {}})),
            ("l[1].n=x", json!({"a": {"k": 1}, "l": [null, {"n": "x"}]})),
            ("a\\.b=c\\,d", json!({"a": {"k": 1}, "a.b": "c,d"})),
            ("x=a=b", json!({"a": {"k": 1}, "x": "a=b"})),
            ("x=007", json!({"a": {"k": 1}, "x": "007"})),
            ("x=", json!({"a": {"k": 1}, "x": ""})),
        ];
        for (given, expected) in cases {
            let mut values = json!({"a": {"k": 1}});
            apply(&mut values, given).unwrap();
            assert_eq!(values, expected, "{given}");
        }
        for wrong in ["a", "=b", "a..b=c", "a[x]=1", "a[1=1", "a[9999]=1", "a[0]b=1", ""] {
            assert!(apply(&mut json!({}), wrong).is_err(), "{wrong}");
        }
    }
}
