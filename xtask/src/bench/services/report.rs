//! The results as Markdown and JSON.

use std::fmt::Write as _;
use std::process::Command;

use serde_json::{Value, json};

use super::Options;
use super::figures::{Figure, Results};
use super::mode::Mode;
use super::site::Programmed;
use super::targets;
use crate::bench::machine;

/// Rows: title, figure, digits after the point.
const ROWS: [(&str, Figure, usize); 15] = [
    ("connect() to the last service, p50 µs", Figure::Connect, 1),
    ("the same, p99 µs", Figure::ConnectP99, 1),
    ("connect() straight to a pod, everything loaded, p50 µs", Figure::Straight, 1),
    ("connect() from the node itself, p50 µs", Figure::FromNode, 1),
    ("connections made and closed a second, 1 client", Figure::Rate, 0),
    ("the same, 4 clients", Figure::Rate4, 0),
    ("CPU µs a connection, the client's (its softirqs included)", Figure::ClientCpu, 1),
    ("CPU µs a connection, the agent's", Figure::AgentCpu, 1),
    ("CPU µs a connection, the whole machine's", Figure::MachineCpu, 1),
    ("request and answer, kept connection, p50 µs", Figure::Ask, 1),
    ("throughput, 1 stream, Gbit/s", Figure::Throughput, 2),
    ("datagram and answer, kept socket, p50 µs", Figure::Datagram, 1),
    ("datagram and answer, a new socket each, p50 µs", Figure::FreshDatagram, 1),
    ("a changed endpoint until it is reached, ms", Figure::Change, 2),
    ("of that, by the agent's own account, ms", Figure::OwnChange, 2),
];

type Once = fn(&Programmed) -> Option<String>;

/// Rows of what is measured once.
const ONCE: [(&str, Once); 8] = [
    ("nothing until all services are known, s", |once| Some(format!("{:.3}", once.seconds))),
    ("of that, by the agent's own account, s", |once| once.own_seconds.map(|own| format!("{own:.3}"))),
    ("rules", |once| Some(once.rules.to_string())),
    ("elements of nftables sets and maps", |once| Some(once.elements.to_string())),
    ("kernel memory grew by, MiB", |once| Some(mebibytes(once.kernel_bytes))),
    ("eBPF maps and programs, MiB", |once| once.ebpf_bytes.map(mebibytes)),
    ("agent, resident, MiB", |once| once.agent_bytes.map(mebibytes)),
    ("agent's CPU until then, s", |once| once.agent_cpu.map(|seconds| format!("{seconds:.2}"))),
];

/// One table: a group of rows a figure, a row a mode, a column a number of services.
pub(super) fn markdown(options: &Options, results: &Results) -> String {
    let mut text = format!(
        "`cargo xtask bench services --seconds {} --rounds {}`: {}. Medians of the rounds; in brackets the \
         ratio to the direct path in the same rounds.\n\n| |",
        options.seconds,
        options.rounds,
        machine(results)
    );
    for services in &options.services {
        let _infallible = write!(text, " {services} |");
    }
    let _infallible = writeln!(text, "\n|---|{}", "---:|".repeat(options.services.len()));
    for (title, figure, digits) in ROWS {
        group(&mut text, options, title, |mode, services| {
            let value = results.median(services, mode, figure)?;
            let ratio = results.ratio(services, mode, figure).filter(|_| mode != Mode::Direct);
            let ratio = ratio.map(|ratio| format!(" ({ratio:.2})")).unwrap_or_default();
            Some(format!("{value:.digits$}{ratio}"))
        });
    }
    for (title, of) in ONCE {
        group(&mut text, options, title, |mode, services| of(results.programmed.get(&(services, mode))?));
    }
    for ((services, mode), reason) in &results.failed {
        let _infallible =
            writeln!(text, "\n{services} services, {}: not measured to the end: {reason}", mode.name());
    }
    let _infallible = writeln!(text, "\n{}", targets::markdown(options, results));
    text
}

/// A group's title, and a row for each mode that has any cell.
fn group(text: &mut String, options: &Options, title: &str, cell: impl Fn(Mode, usize) -> Option<String>) {
    let mut rows = String::new();
    for mode in Mode::ALL {
        let cells: Vec<Option<String>> =
            options.services.iter().map(|services| cell(mode, *services)).collect();
        if cells.iter().any(Option::is_some) {
            let cells: Vec<String> =
                cells.into_iter().map(|cell| cell.unwrap_or_else(|| "-".to_owned())).collect();
            let _infallible = writeln!(rows, "| {} | {} |", mode.name(), cells.join(" | "));
        }
    }
    if !rows.is_empty() {
        let _infallible = writeln!(text, "| **{title}** |{}", " |".repeat(options.services.len()));
        text.push_str(&rows);
    }
}

/// The same for machines, every sample included.
pub(super) fn json(options: &Options, results: &Results) -> Value {
    let samples: Vec<Value> = results
        .samples
        .iter()
        .map(|((services, mode, figure), samples)| {
            json!({"services": services, "mode": mode.name(), "figure": format!("{figure:?}"), "samples": samples,
                   "median": results.median(*services, *mode, *figure)})
        })
        .collect();
    let once: Vec<Value> = results
        .programmed
        .iter()
        .map(|((services, mode), once)| {
            json!({"services": services, "mode": mode.name(), "seconds": once.seconds, "own_seconds": once.own_seconds,
                   "rules": once.rules, "elements": once.elements, "kernel_bytes": once.kernel_bytes,
                   "ebpf_bytes": once.ebpf_bytes, "agent_bytes": once.agent_bytes, "agent_cpu": once.agent_cpu})
        })
        .collect();
    let failed: Vec<Value> = results
        .failed
        .iter()
        .map(
            |((services, mode), reason)| json!({"services": services, "mode": mode.name(), "reason": reason}),
        )
        .collect();
    json!({"machine": machine(results), "seconds": options.seconds, "rounds": options.rounds, "figures": samples,
           "programmed": once, "failed": failed})
}

fn machine(results: &Results) -> String {
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output().ok();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        text.unwrap_or_else(|| format!("no {program}"))
    };
    format!(
        "{}, load average {} when it began, {}, {}",
        machine::describe(),
        results.load_average,
        version("iptables-nft"),
        version("nft")
    )
}

#[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1024.0 / 1024.0)
}
