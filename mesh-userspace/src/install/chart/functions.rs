//! Helm's and sprig's template functions, those that the chart uses.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

use gotmpl::{FuncMap, Template, TemplateError, Value, ValueFunc};

use super::MAX_DEPTH;

type Result<T> = gotmpl::Result<T>;

fn failed<T>(message: impl Into<String>) -> Result<T> {
    Err(TemplateError::Exec(message.into()))
}

fn argument(args: &[Value], index: usize) -> &Value {
    args.get(index).unwrap_or(&Value::Nil)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string(),
        Value::Nil => String::new(),
        other => other.to_string(),
    }
}

fn string(text: impl AsRef<str>) -> Value {
    Value::String(text.as_ref().into())
}

fn integer(value: &Value) -> Result<i64> {
    match value {
        Value::Int(number) => Ok(*number),
        Value::Uint(number) => {
            i64::try_from(*number).or_else(|_large| failed(format!("{number} is too large")))
        }
        other => failed(format!("`{other}` is no whole number")),
    }
}

/// All of them; `include` looks into `set`.
pub(super) fn all(set: &Weak<OnceLock<Template>>) -> FuncMap {
    let mut map = FuncMap::new();
    let mut add = |name: &str, function: fn(&[Value]) -> Result<Value>| {
        map.insert(name.to_owned(), Arc::new(function) as ValueFunc);
    };
    add("add", |args| {
        let sum = args.iter().try_fold(0_i64, |sum, arg| Ok(sum.saturating_add(integer(arg)?)));
        sum.map(Value::Int)
    });
    add("contains", |args| Ok(Value::Bool(text(argument(args, 1)).contains(&text(argument(args, 0))))));
    add("default", |args| {
        let given = argument(args, 1);
        Ok(if given.is_truthy() { given.clone() } else { argument(args, 0).clone() })
    });
    add("dict", |args| Ok(dict(args)));
    add("fail", |args| failed(text(argument(args, 0))));
    add("indent", |args| Ok(string(indented(argument(args, 0), argument(args, 1))?)));
    add("join", |args| match argument(args, 1) {
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(text).collect();
            Ok(string(items.join(&text(argument(args, 0)))))
        }
        other => failed(format!("`{other}` is no list to join")),
    });
    add("nindent", |args| Ok(string(format!("\n{}", indented(argument(args, 0), argument(args, 1))?))));
    add("quote", |args| {
        let quoted =
            args.iter().filter(|arg| !matches!(arg, Value::Nil)).map(|arg| format!("{:?}", text(arg)));
        Ok(string(quoted.collect::<Vec<_>>().join(" ")))
    });
    add("required", |args| match argument(args, 1) {
        Value::Nil => failed(text(argument(args, 0))),
        Value::String(given) if given.is_empty() => failed(text(argument(args, 0))),
        given => Ok(given.clone()),
    });
    add("semverCompare", |args| {
        is_at_least(&text(argument(args, 0)), &text(argument(args, 1))).map(Value::Bool)
    });
    add("toString", |args| Ok(string(text(argument(args, 0)))));
    add("toYaml", |args| Ok(string(yaml(argument(args, 0))?)));
    map.insert("include".to_owned(), include(Weak::clone(set)));
    map
}

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// `include NAME DATA`: what a template renders to, for a pipeline to go on with.
fn include(set: Weak<OnceLock<Template>>) -> ValueFunc {
    Arc::new(move |args| {
        let name = text(argument(args, 0));
        let Some(set) = set.upgrade() else { return failed("include without templates") };
        let Some(template) = set.get() else { return failed("include without templates") };
        if DEPTH.get() >= MAX_DEPTH {
            return failed(format!("templates include each other more than {MAX_DEPTH} deep at {name}"));
        }
        DEPTH.set(DEPTH.get() + 1);
        let rendered = template.execute_template_to_string(&name, argument(args, 1));
        DEPTH.set(DEPTH.get() - 1);
        rendered.map(string)
    })
}

fn dict(args: &[Value]) -> Value {
    let pairs = args.chunks(2).map(|pair| (Arc::from(text(&pair[0])), argument(pair, 1).clone()));
    Value::Map(Arc::new(pairs.collect::<BTreeMap<_, _>>()))
}

fn indented(width: &Value, content: &Value) -> Result<String> {
    let Ok(width) = usize::try_from(integer(width)?.min(80)) else { return failed("an indentation below 0") };
    let pad = " ".repeat(width);
    Ok(format!("{pad}{}", text(content).replace('\n', &format!("\n{pad}"))))
}

/// `>=A.B-0`, the one form that the chart uses, of a version `vA.B.C`.
fn is_at_least(constraint: &str, version: &str) -> Result<bool> {
    let numbers = |text: &str| {
        let mut parts = text.split('.').map(|part| part.parse::<u32>().ok());
        Some((parts.next()??, parts.next()??))
    };
    let wanted = constraint.strip_prefix(">=").and_then(|rest| numbers(rest.strip_suffix("-0")?));
    let given = numbers(version.trim_start_matches('v'));
    match (wanted, given) {
        (Some(wanted), Some(given)) => Ok(given >= wanted),
        _ => failed(format!("semverCompare: cannot compare `{version}` with `{constraint}`")),
    }
}

fn yaml(value: &Value) -> Result<String> {
    let json = json(value)?;
    match serde_yaml_ng::to_string(&json) {
        Ok(text) => Ok(text.trim_end_matches('\n').to_owned()),
        Err(error) => failed(format!("toYaml: {error}")),
    }
}

fn json(value: &Value) -> Result<serde_json::Value> {
    Ok(match value {
        Value::Nil => serde_json::Value::Null,
        Value::Bool(flag) => (*flag).into(),
        Value::Int(number) => (*number).into(),
        Value::Uint(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::String(text) => text.as_ref().into(),
        Value::List(items) => serde_json::Value::Array(items.iter().map(json).collect::<Result<_>>()?),
        Value::Map(entries) => {
            let entries = entries.iter().map(|(key, value)| Ok((key.to_string(), json(value)?)));
            serde_json::Value::Object(entries.collect::<Result<_>>()?)
        }
        Value::Function(_) => return failed("toYaml of a function"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let cases = [
            ("v1.30.0", true),
            ("v1.29.9", false),
            ("v1.9.0", false),
            ("2.0.1", true),
            ("v1.30.0-eks-1", true),
        ];
        for (version, expected) in cases {
            assert_eq!(is_at_least(">=1.30-0", version).unwrap(), expected, "{version}");
        }
        assert!(is_at_least("~1.30", "v1.30.0").is_err());
        assert!(is_at_least(">=1.30-0", "latest").is_err());
    }

    #[test]
    fn functions_do_what_helms_do() {
        let cases = [
            ("{{ quote .a }}", "\"x\\\"y\""),
            ("{{ .none | default \"d\" }}", "d"),
            ("a:{{ nindent 2 (toYaml .m) }}", "a:\n  k: v\n  l:\n  - 1"),
            ("{{ indent 1 \"a\\nb\" }}", " a\n b"),
            ("{{ join \",\" .l }}", "1,2"),
            ("{{ add .n 15 }}", "45"),
            ("{{ (dict \"k\" 1).k }}", "1"),
            ("{{ toString true }}", "true"),
            ("{{ contains \":\" \"::\" }}", "true"),
        ];
        let data = serde_json::json!({"a": "x\"y", "m": {"k": "v", "l": [1]}, "l": ["1", "2"], "n": 30});
        let data = gotmpl::to_value(&data).unwrap();
        for (template, expected) in cases {
            let parsed = Template::new("t").funcs(all(&Weak::new())).parse(template).unwrap();
            assert_eq!(parsed.execute_to_string(&data).unwrap(), expected, "{template}");
        }
        for (template, reason) in [
            ("{{ fail \"no\" }}", "no"),
            ("{{ required \"give x\" .none }}", "give x"),
            ("{{ add .a 1 }}", "is no whole number"),
            ("{{ include \"t\" . }}", "without templates"),
        ] {
            let parsed = Template::new("t").funcs(all(&Weak::new())).parse(template).unwrap();
            let error = parsed.execute_to_string(&data).unwrap_err().to_string();
            assert!(error.contains(reason), "{template}: {error}");
        }
    }
}
