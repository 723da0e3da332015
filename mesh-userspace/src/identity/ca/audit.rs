//! The audit log: one line of JSON for every request, granted or refused, always.
//!
//! A thread of its own writes it, so that a disk or pipe that hangs holds up no other work; a certificate is handed out
//! only once its line has been written. Neither tokens nor keys ever come here.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{mpsc, oneshot};

use super::caller::Caller;

/// Lines that may wait to be written.
const MAX_WAITING: usize = 4096;
/// Longest that a line may take to be written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest text of a caller's that a line holds, in characters.
const MAX_TEXT: usize = 512;

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened.
    #[error("cannot open the audit log {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than the owner have access.
    #[error("{} has mode {mode:04o}; an audit log must be 0600: chmod 600 it", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No thread.
    #[error("cannot start the thread that writes the audit log")]
    Thread(#[source] io::Error),
    /// The line could not be written, or not in time.
    #[error("the audit log cannot be written: {0}")]
    Write(String),
}

/// One request, as it is told to the operator.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// When it was decided (RFC 3339, UTC).
    pub time: String,
    /// `granted` or `refused`.
    pub outcome: &'static str,
    /// `granted`, or why not, out of a bounded set.
    pub reason: &'static str,
    /// More about why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Where it came from.
    pub peer: SocketAddr,
    /// How the caller has proved who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<&'static str>,
    /// `NAMESPACE/SERVICE_ACCOUNT` of the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// The caller's node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The identity that the caller asked for in place of its own, as it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated: Option<String>,
    /// The identity that was signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Serial number of the certificate, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// End of the certificate (RFC 3339, UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
}

impl Record {
    /// A request from `peer` of which nothing is known yet, and which is refused unless something else is said.
    pub fn new(peer: SocketAddr) -> Self {
        Self {
            time: String::new(),
            outcome: "refused",
            reason: "malformed",
            detail: None,
            peer,
            auth: None,
            caller: None,
            node: None,
            impersonated: None,
            identity: None,
            serial: None,
            not_after: None,
        }
    }

    pub(super) fn set_caller(&mut self, caller: &Caller) {
        self.auth = Some(caller.method.as_str());
        self.caller = Some(caller.account.to_string());
        self.node = caller.node.as_ref().map(|node| bounded(node.as_str()));
    }

    pub(super) fn refuse(&mut self, reason: &'static str, detail: &str) {
        (self.outcome, self.reason, self.detail) = ("refused", reason, Some(bounded(detail)));
    }

    /// Whether a certificate goes with it.
    pub fn is_granted(&self) -> bool {
        self.outcome == "granted"
    }

    fn line(&self) -> String {
        let time = rfc3339(OffsetDateTime::now_utc());
        let record = Self { time, ..self.clone() };
        // Text and numbers alone: this does not fail.
        let mut line = serde_json::to_string(&record).unwrap_or_else(|_error| "{}".to_owned());
        line.push('\n');
        line
    }
}

/// What somebody else wrote, cut to a length that does no harm. Control characters are JSON's to escape.
pub(super) fn bounded(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// A time to the second.
pub(super) fn rfc3339(time: OffsetDateTime) -> String {
    time.replace_nanosecond(u32::from(time.millisecond()) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

struct Line {
    text: String,
    written: Option<oneshot::Sender<Result<(), String>>>,
}

/// The log. Clones write to the same; the thread ends with the last of them.
#[derive(Clone, Debug)]
pub struct Audit(mpsc::Sender<Line>);

impl Audit {
    /// To a file, appended to and made 0600, or to standard output. The thread ends, with all written, once the last
    /// clone of the log is gone.
    ///
    /// # Errors
    /// The file cannot be opened, or others can read it.
    pub fn open(path: Option<&Path>) -> Result<(Self, JoinHandle<()>), AuditError> {
        let mut sink = match path {
            Some(path) => Sink::File(LogFile::open(path)?),
            None => Sink::Stdout,
        };
        let (sender, mut lines) = mpsc::channel::<Line>(MAX_WAITING);
        let write = move || {
            while let Some(line) = lines.blocking_recv() {
                let result = sink.write(line.text.as_bytes());
                if let Err(error) = &result {
                    tracing::error!(error, "audit log cannot be written");
                }
                if let Some(written) = line.written {
                    // Who does not wait any more has refused the request.
                    let _ = written.send(result);
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("audit".into()).spawn(write).map_err(AuditError::Thread)?;
        Ok((Self(sender), thread))
    }

    /// Writes a line and waits until it is written. Cancel safe: the line is written all the same.
    ///
    /// # Errors
    /// It could not be written, or not in time.
    pub async fn write(&self, record: &Record) -> Result<(), AuditError> {
        let (written, done) = oneshot::channel();
        let line = Line { text: record.line(), written: Some(written) };
        self.0.try_send(line).map_err(|_error| AuditError::Write("too many lines wait".to_owned()))?;
        match tokio::time::timeout(WRITE_TIMEOUT, done).await {
            Ok(Ok(result)) => result.map_err(AuditError::Write),
            Ok(Err(_)) => Err(AuditError::Write("its thread has ended".to_owned())),
            Err(_elapsed) => Err(AuditError::Write(format!("not within {WRITE_TIMEOUT:?}"))),
        }
    }

    /// Writes a line without waiting, for a request that nobody waits for.
    pub fn note(&self, record: &Record) {
        if self.0.try_send(Line { text: record.line(), written: None }).is_err() {
            tracing::error!(reason = record.reason, peer = %record.peer, "no room for a line of the audit log");
        }
    }
}

enum Sink {
    Stdout,
    File(LogFile),
}

impl Sink {
    fn write(&mut self, line: &[u8]) -> Result<(), String> {
        let result = match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(line).and_then(|()| out.flush())
            }
            Self::File(log) => {
                log.follow().map_err(|error| error.to_string())?;
                log.file.write_all(line)
            }
        };
        result.map_err(|error| error.to_string())
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    number: (u64, u64),
}

impl LogFile {
    fn open(path: &Path) -> Result<Self, AuditError> {
        let failed = |source| AuditError::Open { path: path.into(), source };
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_file() && mode & 0o177 != 0 {
            return Err(AuditError::Mode { path: path.into(), mode });
        }
        Ok(Self { path: path.into(), file, number: (metadata.dev(), metadata.ino()) })
    }

    /// Opens the file anew where it was moved away, as log rotation does.
    fn follow(&mut self) -> Result<(), AuditError> {
        let now = std::fs::metadata(&self.path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if now != Some(self.number) {
            *self = Self::open(&self.path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::TempDir;

    fn record() -> Record {
        let mut record = Record::new("10.0.0.1:1234".parse().unwrap());
        record.impersonated = Some("a\"\nb".to_owned());
        record.refuse("not_on_node", &"x".repeat(10_000));
        record
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_line_a_request_also_across_rotation() {
        let dir = TempDir::new();
        let (path, old) = (dir.path().join("audit"), dir.path().join("audit.1"));
        let (audit, thread) = Audit::open(Some(&path)).unwrap();
        audit.write(&record()).await.unwrap();
        std::fs::rename(&path, &old).unwrap();
        audit.write(&record()).await.unwrap();
        audit.note(&record());
        drop(audit);
        thread.join().unwrap();
        assert_eq!((lines(&old).len(), lines(&path).len()), (1, 2));
        let line = &lines(&old)[0];
        assert_eq!((&line["outcome"], &line["reason"]), (&"refused".into(), &"not_on_node".into()));
        assert_eq!((&line["impersonated"], &line["peer"]), (&"a\"\nb".into(), &"10.0.0.1:1234".into()));
        assert_eq!(line["detail"].as_str().unwrap().len(), MAX_TEXT);
        assert!(OffsetDateTime::parse(line["time"].as_str().unwrap(), &Rfc3339).is_ok(), "{line}");
        assert!(line.get("serial").is_none());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_written_is_an_error() {
        let dir = TempDir::new();
        let path = dir.path().join("logs").join("audit");
        assert!(matches!(Audit::open(Some(&path)), Err(AuditError::Open { .. })));
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let (audit, _thread) = Audit::open(Some(&path)).unwrap();
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(matches!(audit.write(&record()).await, Err(AuditError::Write(_))));
        let open = dir.path().join("open");
        std::fs::write(&open, "").unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Audit::open(Some(&open)), Err(AuditError::Mode { mode: 0o644, .. })));
    }
}
