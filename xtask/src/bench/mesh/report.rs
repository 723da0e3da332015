//! The results as Markdown and JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Options;
use super::paths::{Figure, Path, Results};
use crate::bench::machine;

const COLUMNS: [(&str, Figure, usize); 17] = [
    ("Gbit/s, 1 stream", Figure::Throughput(1), 2),
    ("Gbit/s, 4 streams", Figure::Throughput(4), 2),
    ("connections/s, 1 in flight", Figure::Rate(1), 0),
    ("p50 µs", Figure::RateP50(1), 0),
    ("p99 µs", Figure::RateP99(1), 0),
    ("connections/s, 8 in flight", Figure::Rate(8), 0),
    ("p50 µs", Figure::RateP50(8), 0),
    ("p99 µs", Figure::RateP99(8), 0),
    ("connections/s, 64 in flight", Figure::Rate(64), 0),
    ("p50 µs", Figure::RateP50(64), 0),
    ("p99 µs", Figure::RateP99(64), 0),
    ("requests/s, 1 kept connection", Figure::Ask(1), 0),
    ("p50 µs", Figure::AskP50(1), 0),
    ("p99 µs", Figure::AskP99(1), 0),
    ("requests/s, 32 kept connections", Figure::Ask(32), 0),
    ("p50 µs", Figure::AskP50(32), 0),
    ("p99 µs", Figure::AskP99(32), 0),
];

/// One row a figure, one column a path; in brackets the ratio to the direct path, and to the floor for the mesh.
pub(super) fn markdown(options: &Options, results: &Results) -> String {
    let mut text = format!(
        "`cargo xtask bench --seconds {} --rounds {}`: {}. Medians; in brackets the ratio to the direct path of as many \
         nodes, and after the slash to the floor.\n\n|",
        options.seconds,
        options.rounds,
        machine::describe()
    );
    for path in Path::ALL {
        let _ = write!(text, " | {}", path.name());
    }
    let _ = writeln!(text, " |\n|---|{}", "---:|".repeat(Path::ALL.len()));
    for (name, figure, digits) in COLUMNS {
        let _ = write!(text, "| {name}");
        for path in Path::ALL {
            let _ = write!(text, " | {}", cell(results, path, figure, digits));
        }
        let _ = writeln!(text, " |");
    }
    for (name, figure, digits) in [
        ("agents' CPU s per Gbit", Figure::CpuPerGbit, 3),
        ("agents' CPU µs per connection", Figure::CpuPerConnection, 0),
    ] {
        let _ = write!(text, "| {name}");
        for path in Path::ALL {
            let value = results
                .median(path, figure)
                .map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"));
            let _ = write!(text, " | {value}");
        }
        let _ = writeln!(text, " |");
    }
    let _ = writeln!(
        text,
        "\nMemory of an agent (resident, the larger of the two), {} idle connections:\n",
        options.idle
    );
    for (when, bytes) in &results.memory {
        let _ = writeln!(text, "- {when}: {:.1} MiB", mebibytes(*bytes));
    }
    text
}

fn cell(results: &Results, path: Path, figure: Figure, digits: usize) -> String {
    let Some(value) = results.median(path, figure) else { return "-".to_owned() };
    let ratio = |to| results.median(to, figure).filter(|base| *base > 0.0).map(|base| value / base);
    let mut cell = format!("{value:.digits$}");
    if path != path.base()
        && let Some(to_direct) = ratio(path.base())
    {
        let _ = write!(cell, " ({to_direct:.2}");
        if path == Path::Mesh
            && let Some(floor) = ratio(Path::Floor)
        {
            let _ = write!(cell, " / {floor:.2}");
        }
        cell.push(')');
    }
    cell
}

/// The same for machines, every sample included.
pub(super) fn json(options: &Options, results: &Results) -> Value {
    let samples: Vec<Value> = results
        .samples
        .iter()
        .map(|((path, figure), samples)| {
            json!({"path": path.name(), "figure": format!("{figure:?}"), "samples": samples,
                   "median": results.median(*path, *figure)})
        })
        .collect();
    let memory: Vec<Value> =
        results.memory.iter().map(|(when, bytes)| json!({"when": when, "bytes": bytes})).collect();
    json!({"machine": machine::describe(), "seconds": options.seconds, "rounds": options.rounds, "idle": options.idle,
           "figures": samples, "memory": memory})
}

fn mebibytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1024).unwrap_or(u32::MAX)) / 1024.0
}
