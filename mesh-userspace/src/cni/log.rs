//! What the plugin says of each call, for whoever looks for why a pod did not start. stdout is the runtime's alone.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Name of the log in the agent's state folder.
pub const PLUGIN_LOG: &str = "mesh-cni.log";
/// Name of what was in it before it was full.
pub const OLD_PLUGIN_LOG: &str = "mesh-cni.log.old";

/// A log that is longer is put aside, in place of the one put aside before.
const MAX_LOG: u64 = 4 << 20;

/// Writes a line into the log, or to stderr where there is none or it cannot be written.
pub(super) fn line(file: Option<&Path>, text: &str) {
    let now = OffsetDateTime::from(SystemTime::now()).format(&Rfc3339).unwrap_or_default();
    // Whatever a runtime or a pod was called, it stays one line.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = format!("{now} {text}\n");
    let written = file.is_some_and(|file| append(file, &line).is_ok());
    if !written {
        // There is nobody left to tell.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

fn append(path: &Path, line: &str) -> std::io::Result<()> {
    if fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() > MAX_LOG) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path);
    file?.write_all(line.as_bytes())
}
