//! The commands that the demo runs are the ones that it shows: whoever keeps it up can run them again.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::peer::Summary;

use super::screen::Screen;

/// Runs `argv`, shown as it is.
pub(super) fn run(screen: &Screen, argv: &[&str]) -> Result<Output> {
    let shown = argv.join(" ");
    screen.command(&shown);
    answer(argv)
}

/// Runs `argv` without a word.
pub(super) fn answer(argv: &[&str]) -> Result<Output> {
    let [program, args @ ..] = argv else { bail!("nothing to run") };
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    output.with_context(|| format!("run `{}`", argv.join(" ")))
}

/// Runs a command that must succeed, and returns what it printed.
pub(super) fn succeed(screen: &Screen, argv: &[&str]) -> Result<String> {
    let output = run(screen, argv)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let reason = error.lines().chain(text.lines()).next_back().unwrap_or("no word of why").to_owned();
        bail!("`{}` ended with {}: {reason}", argv.join(" "), output.status);
    }
    Ok(text)
}

/// Connections from inside a pod: `mesh-peer connect TARGET ARGS`, and what they came to.
pub(super) fn connect(
    screen: &Screen,
    within: &Path,
    pod: &str,
    target: &str,
    args: &[&str],
) -> Result<Summary> {
    let within = within.to_string_lossy();
    let argv = [&[&*within, pod, "mesh-peer", "connect", target], args].concat();
    let text = succeed(screen, &argv)?;
    let line = text.lines().last().context("mesh-peer printed nothing")?;
    let summary: Summary = serde_json::from_str(line).with_context(|| format!("mesh-peer printed {line}"))?;
    screen.output(&told(&summary));
    Ok(summary)
}

/// A summary in one line.
pub(super) fn told(summary: &Summary) -> String {
    let Summary { ok, failed, by_name, errors, p50_us, failed_max_ms, elapsed_ms, .. } = summary;
    let counts = |counts: &BTreeMap<String, u64>| {
        counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    let served = if *ok == 0 {
        String::new()
    } else {
        let (whole, tenth) = (p50_us / 1000, p50_us % 1000 / 100);
        format!(", half of them within {whole}.{tenth} ms: {}", counts(by_name))
    };
    let not = if *failed == 0 {
        "none failed".to_owned()
    } else {
        format!("{failed} failed within {failed_max_ms} ms: {}", counts(errors))
    };
    format!("{} connections in {elapsed_ms} ms{served}; {not}", ok + failed)
}

/// That all of `count` connections were served.
pub(super) fn all_served(summary: &Summary, count: u64) -> Result<()> {
    let Summary { ok, failed, .. } = summary;
    ensure!(
        *ok == count && *failed == 0,
        "{count} connections should have been served, and: {}",
        told(summary)
    );
    Ok(())
}

/// That each server has its share of the connections, within five standard deviations of a fair draw.
pub(super) fn shares(summary: &Summary, expected: &[(&str, f64)]) -> Result<()> {
    let float = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let total = float(summary.ok);
    for (name, share) in expected {
        let served = float(summary.by_name.get(*name).copied().unwrap_or(0));
        let tolerance = 5.0 * (total * share * (1.0 - share)).sqrt();
        ensure!(
            (served - total * share).abs() <= tolerance,
            "{name} should have served {:.0} % of the connections, and: {}",
            share * 100.0,
            told(summary)
        );
    }
    let other = summary.by_name.keys().find(|name| !expected.iter().any(|(known, _)| known == name));
    ensure!(other.is_none(), "nobody but {expected:?} should have served, and: {}", told(summary));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_held_to_chance() {
        let of = |counts: &[(&str, u64)]| Summary {
            ok: counts.iter().map(|(_, count)| count).sum(),
            by_name: counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            ..Summary::default()
        };
        let half = [("a", 0.5), ("b", 0.5)];
        let cases = [
            ("even", of(&[("a", 500), ("b", 500)]), &half[..], true),
            ("chance", of(&[("a", 560), ("b", 440)]), &half[..], true),
            ("skewed", of(&[("a", 600), ("b", 400)]), &half[..], false),
            ("a stranger", of(&[("a", 500), ("b", 499), ("c", 1)]), &half[..], false),
            ("all", of(&[("a", 1000)]), &[("a", 1.0)][..], true),
            ("not all", of(&[("a", 999), ("b", 1)]), &[("a", 1.0)][..], false),
        ];
        for (name, summary, expected, holds) in cases {
            assert_eq!(shares(&summary, expected).is_ok(), holds, "{name}");
        }
    }
}
