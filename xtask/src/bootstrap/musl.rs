//! What makes static binaries: Rust's library for musl, and a C compiler that goes with musl (crypto and the allocator
//! are C).

use std::{env::consts::ARCH, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{apt::Apt, say};
use crate::{process, repo};

const DEBIAN_PACKAGE: &str = "musl-tools";
/// It may fetch some 40 MB.
const RUSTUP_LIMIT: Duration = Duration::from_mins(5);

/// Both.
pub(crate) struct Musl {
    /// The target triple: this machine's architecture, statically linked.
    pub(crate) target: String,
    /// The C compiler.
    pub(crate) cc: PathBuf,
}

pub(super) fn find_or_install(apt: &mut Apt) -> Result<Musl> {
    let target = format!("{ARCH}-unknown-linux-musl");
    if !has_library(&target) {
        let mut add = Command::new(repo::find_program("rustup").unwrap_or_else(|| PathBuf::from("rustup")));
        add.args(["target", "add", &target]).current_dir(repo::root());
        process::logged(&mut add, "rustup-target-add", Some(RUSTUP_LIMIT)).with_context(|| {
            format!("the image needs Rust's library for {target}; do `rustup target add {target}`")
        })?;
        if !has_library(&target) {
            bail!(
                "rustup has added {target} to another toolchain than this one's; do `rustup target add {target}`"
            );
        }
    }
    let cc = if let Some(cc) = find_cc() {
        cc
    } else {
        apt.install(&[DEBIAN_PACKAGE.to_owned()]).with_context(|| {
            format!("the image needs a C compiler for musl; install {DEBIAN_PACKAGE} (`musl-gcc`)")
        })?;
        find_cc()
            .with_context(|| format!("{DEBIAN_PACKAGE} is installed, but there is no musl-gcc on the PATH"))?
    };
    say("musl", &format!("{target}, C by {}", cc.display()));
    Ok(Musl { target, cc })
}

fn has_library(target: &str) -> bool {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--print", "target-libdir", "--target", target]).current_dir(repo::root());
    process::answer(&mut rustc).is_ok_and(|dir| {
        let dir = PathBuf::from(dir.trim());
        dir.read_dir().is_ok_and(|files| {
            files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
        })
    })
}

fn find_cc() -> Option<PathBuf> {
    ["musl-gcc".to_owned(), format!("{ARCH}-linux-musl-gcc")].iter().find_map(|name| repo::find_program(name))
}
