//! Connections that `mesh-holder` holds, and what became of them.

use anyhow::{Context, Result};
use mesh_tests::{Process, SECONDS_30, binary};
use serde_json::Value;

/// Runs `mesh-holder` wherever `spawn` puts it, and waits until it holds what it should.
pub(crate) fn holder(
    spawn: impl Fn(&[&str]) -> Result<Process>,
    kind: &str,
    args: &[String],
    more: &[&str],
) -> Result<Process> {
    let program = binary("mesh-holder")?;
    let mut argv = vec![program.to_str().context("a path")?, kind];
    argv.extend(args.iter().map(String::as_str));
    argv.extend(more);
    let process = spawn(&argv)?;
    process.wait_line("that it began", |line| line.contains("holding") || line.contains("from"))?;
    Ok(process)
}

/// What the holder said last.
pub(crate) fn last_line(process: &Process) -> Value {
    let stdout = process.stdout();
    stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default()
}

/// Tries the connections that had no end: all of them must still carry bytes.
pub(crate) fn assert_alive(process: &Process, count: u64, what: &str) -> Result<()> {
    process.close_stdin();
    process.wait(SECONDS_30)?;
    let last = last_line(process);
    assert_eq!((&last["alive"], &last["ended"]), (&count.into(), &serde_json::json!({})), "{what}: {last}");
    Ok(())
}
