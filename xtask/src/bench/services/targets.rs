//! What is to be reached, beside what was.

use std::fmt::Write as _;

use super::Options;
use super::figures::{Figure, Results};
use super::mode::Mode;

/// A target: what it says, what was measured, whether that reaches it.
struct Target {
    says: &'static str,
    measured: Option<(String, bool)>,
}

pub(super) fn markdown(options: &Options, results: &Results) -> String {
    let mut text = "| to reach | measured | |\n|---|---|---|\n".to_owned();
    for Target { says, measured } in targets(options, results) {
        let (measured, verdict) = match measured {
            Some((measured, true)) => (measured, "reached"),
            Some((measured, false)) => (measured, "**not reached**"),
            None => ("-".to_owned(), "not measured"),
        };
        let _infallible = writeln!(text, "| {says} | {measured} | {verdict} |");
    }
    text
}

fn targets(options: &Options, results: &Results) -> Vec<Target> {
    let ratios = |figure| -> Vec<f64> {
        options.services.iter().filter_map(|services| results.ratio(*services, Mode::Mesh, figure)).collect()
    };
    let changes: Vec<f64> = options
        .services
        .iter()
        .filter_map(|services| results.median(*services, Mode::Mesh, Figure::Change))
        .collect();
    let most = options.services.iter().max().copied().unwrap_or_default();
    let once = results.programmed.get(&(most, Mode::Mesh));
    let connects = ratios(Figure::Connect);
    vec![
        Target {
            says: "connect() to a service within 3% of connect() to the pod with no rules loaded",
            measured: largest(&connects).map(|ratio| (format!("{ratio:.3} of it at most"), ratio <= 1.03)),
        },
        Target {
            says: "flat from the fewest services to the most (within 5%)",
            measured: largest(&connects)
                .zip(smallest(&connects))
                .map(|(most, least)| (format!("ratios from {least:.3} to {most:.3}"), most / least <= 1.05)),
        },
        Target {
            says: "an endpoint change in the datapath within 5 ms",
            measured: largest(&changes).map(|change| (format!("{change:.2} ms at most"), change <= 5.0)),
        },
        Target {
            says: "flat from the fewest services to the most (within 1 ms)",
            measured: largest(&changes)
                .zip(smallest(&changes))
                .map(|(most, least)| (format!("from {least:.2} to {most:.2} ms"), most - least <= 1.0)),
        },
        Target {
            says: "10,000 services from nothing in under 500 ms",
            measured: once
                .filter(|_| most >= 10_000)
                .map(|once| (format!("{:.0} ms for {most}", once.seconds * 1e3), once.seconds < 0.5)),
        },
        Target {
            says: "0 rules",
            measured: once.map(|once| (once.rules.to_string(), once.rules == 0 && once.elements == 0)),
        },
        Target {
            says: "request-response the same as direct (within 3%)",
            measured: largest(&ratios(Figure::Ask))
                .map(|ratio| (format!("{ratio:.3} of it at most"), ratio <= 1.03)),
        },
        Target {
            says: "throughput the same as direct (within 3%)",
            measured: smallest(&ratios(Figure::Throughput))
                .map(|ratio| (format!("{ratio:.3} of it at least"), ratio >= 0.97)),
        },
        Target {
            says: "the agent under 60 MiB",
            measured: once.and_then(|once| once.agent_bytes).map(|bytes| {
                let mebibytes = bytes / 1024 / 1024;
                (format!("{mebibytes} MiB with {most} services"), mebibytes < 60)
            }),
        },
    ]
}

fn largest(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}

fn smallest(values: &[f64]) -> Option<f64> {
    values.iter().copied().min_by(f64::total_cmp)
}
