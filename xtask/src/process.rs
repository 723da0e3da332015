//! Running other programs: aloud (the user sees their output), logged (a file does), or for their answer.

use std::{
    fs::File,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use crate::repo;

/// Cargo as it runs this very command: the toolchain of the host.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repo::root());
    command
}

/// Runs `command` with the user's terminal.
pub(crate) fn aloud(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{shown}`; is it installed and on the PATH?"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}; the reason is in its output above");
    }
    Ok(())
}

/// Runs `command` with its output in the log file of `step`.
///
/// It is killed after `limit`, for what could wait for a network for ever.
pub(crate) fn logged(command: &mut Command, step: &str, limit: Option<Duration>) -> Result<()> {
    let shown = shown(command);
    let path = repo::log(step)?;
    let log =
        File::create(&path).with_context(|| format!("cannot write {}; make it writable", path.display()))?;
    let log_too = log.try_clone().context("cannot duplicate the log file")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .spawn()
        .with_context(|| format!("cannot start `{shown}`; is it installed and on the PATH?"))?;

    let started = Instant::now();
    let status = loop {
        let Some(limit) = limit else {
            break child.wait();
        };
        match child.try_wait() {
            Ok(None) if started.elapsed() < limit => thread::sleep(Duration::from_millis(100)),
            Ok(None) => {
                child.kill().context("cannot end a child")?;
                child.wait().context("cannot wait for a child")?;
                bail!("`{shown}` was ended after {} s without an answer", limit.as_secs());
            }
            Ok(Some(status)) => break Ok(status),
            Err(error) => break Err(error),
        }
    }
    .with_context(|| format!("cannot wait for `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}; its output is in {}", path.display());
    }
    Ok(())
}

/// What `command` prints, when it succeeds.
pub(crate) fn answer(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let reason = stderr.lines().next_back().unwrap_or_default().trim().to_owned();
        bail!("`{shown}` ended with {}: {reason}", output.status);
    }
    String::from_utf8(output.stdout).map_err(|error| anyhow!("`{shown}` did not answer in UTF-8: {error}"))
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(std::ffi::OsStr::to_string_lossy));
    words.join(" ")
}
