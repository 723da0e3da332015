//! Which source an image is built from, and the one time that everything in it bears.

use std::{env, process::Command};

use anyhow::{Context as _, Result};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{process, repo};

/// A state of this repository.
pub(super) struct Source {
    /// The commit, `-dirty` where files differ from it; none outside a clone.
    pub(super) revision: Option<String>,
    /// Seconds since 1970: `SOURCE_DATE_EPOCH`, else the commit's.
    pub(super) time: u64,
}

impl Source {
    pub(super) fn here() -> Result<Self> {
        let revision = git(&["rev-parse", "HEAD"]).map(|commit| {
            let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
            if changed.is_none_or(|files| files.is_empty()) { commit } else { format!("{commit}-dirty") }
        });
        let time = match env::var("SOURCE_DATE_EPOCH") {
            Ok(given) => given.parse().with_context(|| {
                format!("SOURCE_DATE_EPOCH is `{given}`, not a number of seconds since 1970")
            })?,
            // Without either nothing says when: the same everywhere is what counts.
            Err(_) => git(&["log", "-1", "--format=%ct"]).and_then(|time| time.parse().ok()).unwrap_or(0),
        };
        Ok(Self { revision, time })
    }

    /// The workspace's version.
    #[allow(clippy::unused_self, reason = "the version is part of what the source is")]
    pub(super) fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    /// Its time as RFC 3339 has it.
    pub(super) fn created(&self) -> Result<String> {
        i64::try_from(self.time)
            .ok()
            .and_then(|time| OffsetDateTime::from_unix_timestamp(time).ok())
            .and_then(|time| time.format(&Rfc3339).ok())
            .with_context(|| format!("the source's time, {} s since 1970, is not in any calendar", self.time))
    }
}

fn git(args: &[&str]) -> Option<String> {
    let answer = process::answer(Command::new("git").args(args).current_dir(repo::root())).ok()?;
    Some(answer.trim().to_owned())
}
