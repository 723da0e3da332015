//! Whether an object is as it was rendered: everything that was written is there, whatever the API server and others
//! have added.

use serde_json::Value;

/// So many differences of one object are told.
const MAX_TOLD: usize = 10;

/// Where `found` differs from `wanted`, and how.
pub(super) fn differences(wanted: &Value, found: &Value) -> Vec<String> {
    let mut told = Vec::new();
    walk(wanted, found, "", &mut told);
    told
}

fn walk(wanted: &Value, found: &Value, path: &str, told: &mut Vec<String>) {
    if told.len() >= MAX_TOLD {
        return;
    }
    match (wanted, found) {
        // What is empty may be left out.
        (Value::Null, _) => {}
        (Value::Object(wanted), Value::Null) if wanted.is_empty() => {}
        (Value::Array(wanted), Value::Null) if wanted.is_empty() => {}
        (Value::Object(wanted), Value::Object(found)) => {
            for (key, wanted) in wanted {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(wanted, found.get(key).unwrap_or(&Value::Null), &path, told);
            }
        }
        (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => {
            for (index, (wanted, found)) in wanted.iter().zip(paired(wanted, found)).enumerate() {
                walk(wanted, found, &format!("{path}[{index}]"), told);
            }
        }
        (wanted, found) if wanted == found || is_same_quantity(wanted, found) => {}
        (wanted, Value::Null) => told.push(format!("{path} is missing; it should be {wanted}")),
        (wanted, found) => told.push(format!("{path} is {found}; it should be {wanted}")),
    }
}

/// The elements of `found` in the order of `wanted`: an API server keeps lists of named things in whatever order.
fn paired<'a>(wanted: &[Value], found: &'a [Value]) -> Vec<&'a Value> {
    let by = |key: &str| -> Option<Vec<&'a Value>> {
        let find =
            |wanted: &Value| found.iter().find(|found| wanted[key].is_string() && found[key] == wanted[key]);
        wanted.iter().map(find).collect()
    };
    ["mountPath", "name"].into_iter().find_map(by).unwrap_or_else(|| found.iter().collect())
}

/// `0.1` is stored as `100m`.
fn is_same_quantity(wanted: &Value, found: &Value) -> bool {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let quantity = |value: &Value| text(value).and_then(|text| quantity(&text));
    matches!((quantity(wanted), quantity(found)), (Some(wanted), Some(found)) if wanted == found)
}

/// A quantity in thousandths.
fn quantity(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale: i128 = match unit {
        "m" => 1,
        "" => 1_000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        _ => return None,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = u32::try_from(part.len()).ok().filter(|digits| *digits <= 9)?;
    let number: i128 = format!("{whole}{part}").parse().ok()?;
    Some(number.checked_mul(scale)? / 10_i128.pow(digits))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_have_added_is_no_difference() {
        let cases = [
            (json!({"a": 1}), json!({"a": 1, "b": 2}), None),
            (json!({"a": {}}), json!({}), None),
            (json!({"a": "0.1"}), json!({"a": "100m"}), None),
            (json!({"a": "1Gi"}), json!({"a": "1024Mi"}), None),
            (json!({"a": 2}), json!({"a": "2"}), None),
            (json!({"a": [{"n": 1}]}), json!({"a": [{"n": 1, "m": 2}]}), None),
            (
                json!({"a": [{"name": "x"}, {"name": "y"}]}),
                json!({"a": [{"name": "y"}, {"name": "x"}]}),
                None,
            ),
            (json!({"a": 1}), json!({"a": 2}), Some("a is 2; it should be 1")),
            (json!({"a": {"b": "x"}}), json!({}), Some("a is missing; it should be {\"b\":\"x\"}")),
            (json!({"a": [1, 2]}), json!({"a": [1]}), Some("a is [1]; it should be [1,2]")),
            (json!({"a": [{"n": 1}]}), json!({"a": [{"n": 3}]}), Some("a[0].n is 3; it should be 1")),
            (json!({"a": "100m"}), json!({"a": "10m"}), Some("a is \"10m\"; it should be \"100m\"")),
            (json!({"a": "x"}), json!({"a": "y"}), Some("a is \"y\"; it should be \"x\"")),
        ];
        for (wanted, found, expected) in cases {
            let told = differences(&wanted, &found);
            assert_eq!(told.first().map(String::as_str), expected, "{wanted} {found}");
        }
    }
}
