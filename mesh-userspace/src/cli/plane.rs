//! The kernel plane's maps as tables.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::print::View;
use super::table::{Rows, Tone, plain};
use crate::admin::plane::MapReport;

/// How full a map may be before it is told in colour, in per cent.
const NEARLY_FULL: u64 = 80;

/// How full the maps are, and their entries where they were asked for.
pub(super) fn maps(reports: &[MapReport], with_rows: bool, view: View) -> String {
    let mut rows = Rows::new(&["MAP", "KIND", "ENTRIES", "MAX", "FULL"], view.colour);
    for map in reports {
        let percent = map.entries.map(|entries| entries * 100 / u64::from(map.max_entries.max(1)));
        let tone =
            if percent.is_some_and(|percent| percent >= NEARLY_FULL) { Tone::Warn } else { Tone::Plain };
        rows.add([
            plain(&map.name),
            plain(&map.kind),
            plain(map.entries.map(|entries| entries.to_string()).unwrap_or_default()),
            plain(map.max_entries),
            (percent.map(|percent| format!("{percent}%")).unwrap_or_default(), tone),
        ]);
    }
    let mut text = rows.render();
    for map in reports.iter().filter(|_| with_rows) {
        text.push('\n');
        text.push_str(&entries(map, view));
    }
    text
}

fn entries(map: &MapReport, view: View) -> String {
    let mut rows = Rows::new(&["KEY", "VALUE"], view.colour);
    for row in &map.rows {
        rows.add([plain(fields(&row.key)), plain(fields(&row.value))]);
    }
    let mut text = rows.render();
    let shown = map.rows.len() as u64;
    if let Some(rest) = map.entries.and_then(|entries| entries.checked_sub(shown)).filter(|rest| *rest > 0) {
        let _infallible = writeln!(text, "({rest} more: raise --limit)");
    }
    text
}

/// `name=value` each.
fn fields(fields: &Map<String, Value>) -> String {
    let field = |(name, value): (&String, &Value)| format!("{name}={}", word(value));
    fields.iter().map(field).collect::<Vec<_>>().join(" ")
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(word).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admin::plane::MapRow;

    const VIEW: View = View { wide: false, colour: false, now: 0 };

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(object) = value else { return Map::new() };
        object
    }

    #[test]
    fn a_map_shows_what_is_in_it_and_how_much_is_not_shown() {
        let row = MapRow {
            key: object(json!({"address": "10.96.0.1", "port": 80})),
            value: object(json!({"set": 1, "flags": ["capture", "strict"], "none": [], "age": null})),
        };
        let (name, kind) = ("SERVICES".to_owned(), "hash".to_owned());
        let map = MapReport { name, kind, entries: Some(9), max_entries: 10, rows: vec![row] };
        let text = maps(&[map], true, VIEW);
        for part in [
            "SERVICES   hash   9         10    90%",
            "address=10.96.0.1 port=80   age=- flags=capture,strict none=- set=1",
            "(8 more: raise --limit)",
        ] {
            assert!(text.contains(part), "{part:?} not in\n{text}");
        }
    }
}
