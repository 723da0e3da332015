//! `meshd rotate-root`: the flags, and what is printed.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::AgentError;
use super::config::lifetime;
use crate::identity::{Rotation, RotationStep};

/// Flags of `meshd rotate-root`.
#[derive(Clone, Debug, Args)]
pub struct RotateConfig {
    /// What to do: make a second root, sign with it, end the trust in the first, or show how far that is.
    #[arg(value_enum, value_name = "STEP")]
    pub step: Step,
    /// Folder of the local certificate authority.
    #[arg(long, default_value = "/var/lib/mesh/ca", value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// Life of a workload's certificate, the longest that any node asks for: how long each step has to be waited for.
    #[arg(long, default_value = "24h", value_name = "TIME", value_parser = lifetime)]
    pub cert_ttl: Duration,
    /// Do not wait: every node is known to have followed (`meshctl certs`), or those that have not may be refused.
    #[arg(long)]
    pub now: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// Make the new root beside the old one; both are trusted.
    Add,
    /// Sign with the new root; after half the certificates' life.
    Switch,
    /// Trust the old root no longer; after the certificates' whole life.
    Drop,
    /// Show how far the rotation is.
    Status,
}

/// Does the step and prints how the folder stands then.
///
/// # Errors
/// It is not the step's turn, or the folder cannot be used.
pub fn rotate_root(config: &RotateConfig) -> Result<(), AgentError> {
    let rotation = Rotation::new(config.ca_dir.clone(), config.cert_ttl);
    let step = match config.step {
        Step::Add => Some(RotationStep::Add),
        Step::Switch => Some(RotationStep::Switch),
        Step::Drop => Some(RotationStep::Drop),
        Step::Status => None,
    };
    let status = match step {
        Some(step) => rotation.run(step, config.now),
        None => rotation.status(),
    };
    let status = status.map_err(AgentError::Rotate)?;
    // Whoever does not read it has closed the pipe.
    let _ = write!(std::io::stdout().lock(), "{status}");
    Ok(())
}
