//! The compiler for the eBPF target.
//!
//! `bpfel-unknown-none` ships no `core`, so `core` is built from source, and the sources must be those of exactly the
//! compiler that builds. In this order:
//!
//! 1. a rustup toolchain that has `rust-src`, a nightly before others: what most contributors have;
//! 2. the system's own rustc with its sources (Debian: `rustc-web`, `rust-web-src`, `rust-web-clippy`);
//! 3. those packages, installed;
//! 4. `rustup component add rust-src` for a nightly that is there. It comes last and with a time limit, because rustup
//!    without a network waits long before it gives up.
//!
//! A compiler must know edition 2024 as this workspace uses it, and there must be a bpf-linker for its LLVM.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{apt::Apt, linker, say};
use crate::{process, repo};

/// The oldest that builds the workspace (`rust-version` in Cargo.toml).
const OLDEST_MINOR: u32 = 95;
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "rust-web-clippy"];
const RUSTUP_LIMIT: Duration = Duration::from_mins(1);

/// A compiler that can build `core` for the eBPF target.
pub(crate) struct Compiler {
    origin: Origin,
    /// Its version.
    pub(crate) release: String,
    /// The folder of its libraries and their sources.
    pub(crate) sysroot: PathBuf,
    commit: String,
    /// Major version of its LLVM: the linker's must not be older.
    pub(crate) llvm: u32,
    /// First part of the host triple.
    pub(crate) host_arch: String,
}

enum Origin {
    /// A rustup toolchain, by name.
    Rustup(String),
    /// `/usr/bin/rustc`, driven by the ordinary cargo.
    System,
}

impl Compiler {
    /// `cargo SUBCOMMAND` with this compiler, unstable options allowed.
    pub(crate) fn cargo(&self, subcommand: &str) -> Result<Command> {
        let mut command = match (&self.origin, subcommand) {
            (Origin::Rustup(toolchain), _) => {
                let mut command = rustup(&["run", toolchain, "cargo", subcommand]);
                command.env_remove("RUSTC").env_remove("CARGO");
                command
            }
            // Clippy is part of a compiler, so it must be the system's, and rustup's `cargo clippy` would take its own.
            (Origin::System, "clippy") => {
                let cargo_clippy = Path::new(SYSTEM_RUSTC).with_file_name("cargo-clippy");
                if !cargo_clippy.exists() {
                    bail!(
                        "no clippy for the eBPF target: {} is missing, and {self} needs exactly its own; \
                         run `cargo xtask bootstrap` as root, or install rust-web-clippy",
                        cargo_clippy.display()
                    );
                }
                let mut command = Command::new(cargo_clippy);
                command.arg(subcommand).env("RUSTC", SYSTEM_RUSTC);
                command
            }
            (Origin::System, _) => {
                let mut command = process::cargo();
                command.arg(subcommand).env("RUSTC", SYSTEM_RUSTC);
                command
            }
        };
        command.current_dir(repo::root()).env("RUSTC_BOOTSTRAP", "1");
        Ok(command)
    }

    /// Names what it builds apart from what another compiler builds.
    pub(crate) fn tag(&self) -> String {
        format!("{}-{}", self.release, self.commit)
    }

    /// Asks a compiler what it is; an error says why it will not do.
    fn probe(origin: Origin, rustc: impl Fn() -> Command) -> Result<Self> {
        let sysroot = process::answer(rustc().args(["--print", "sysroot"]))?;
        let sysroot = Path::new(sysroot.trim());
        let sources = sysroot.join("lib/rustlib/src/rust/library/core");
        if !sources.exists() {
            bail!("it has no standard-library sources ({})", sources.display());
        }
        let version = process::answer(rustc().arg("-vV"))?;
        let compiler = Self::from_version(origin, sysroot, &version)
            .with_context(|| format!("`rustc -vV` reads unlike any known: {version:?}"))?;
        if minor(&compiler.release).is_some_and(|minor| minor < OLDEST_MINOR) {
            bail!("{} is older than 1.{OLDEST_MINOR}", compiler.release);
        }
        linker::check_llvm(compiler.llvm)?;
        Ok(compiler)
    }

    fn from_version(origin: Origin, sysroot: &Path, version: &str) -> Option<Self> {
        let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Some(Self {
            origin,
            sysroot: sysroot.to_owned(),
            release: field("release")?.to_owned(),
            commit: field("commit-hash")?.chars().take(9).collect(),
            llvm: field("LLVM version")?.split('.').next()?.parse().ok()?,
            host_arch: field("host")?.split('-').next()?.to_owned(),
        })
    }
}

impl std::fmt::Display for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.origin {
            Origin::Rustup(toolchain) => write!(f, "rustup toolchain {toolchain}")?,
            Origin::System => write!(f, "{SYSTEM_RUSTC}")?,
        }
        write!(f, " (rustc {}, LLVM {})", self.release, self.llvm)
    }
}

/// A compiler that is there; an error says which were looked at, and why each will not do.
pub(crate) fn find() -> Result<Compiler> {
    let mut why_not = Vec::new();
    for toolchain in rustup_toolchains() {
        let rustc = || rustup(&["run", &toolchain, "rustc"]);
        match Compiler::probe(Origin::Rustup(toolchain.clone()), rustc) {
            Ok(compiler) => return Ok(compiler),
            Err(error) => why_not.push(format!("rustup {toolchain}: {error:#}")),
        }
    }
    match Compiler::probe(Origin::System, || Command::new(SYSTEM_RUSTC)) {
        Ok(compiler) => return Ok(compiler),
        Err(error) => why_not.push(format!("{SYSTEM_RUSTC}: {error:#}")),
    }
    bail!(
        "no compiler can build core for {}: {}; run `cargo xtask bootstrap`",
        crate::ebpf::TARGET,
        why_not.join("; ")
    );
}

pub(super) fn find_or_install(apt: &mut Apt) -> Result<Compiler> {
    if let Ok(compiler) = find() {
        if compiler.cargo("clippy").is_err() {
            install_clippy(apt);
        }
        say("compiler", &format!("{compiler}, with the sources of its core"));
        return Ok(compiler);
    }
    let from_debian = apt.install(&DEBIAN_PACKAGES.map(str::to_owned));
    let from_rustup = match (find(), &from_debian) {
        (Ok(compiler), _) => {
            say("compiler", &format!("{compiler}, installed from Debian packages"));
            return Ok(compiler);
        }
        (Err(_), Ok(())) => Ok(()),
        (Err(_), Err(_)) => add_rust_src(),
    };
    match find() {
        Ok(compiler) => {
            say("compiler", &format!("{compiler}, rust-src added by rustup"));
            Ok(compiler)
        }
        Err(error) => {
            let tried: Vec<_> = [from_debian, from_rustup]
                .into_iter()
                .filter_map(Result::err)
                .map(|error| format!("{error:#}"))
                .collect();
            bail!(
                "{error:#} could not help ({}); do `rustup toolchain install nightly --component rust-src`, \
                 or install {}",
                tried.join("; "),
                DEBIAN_PACKAGES.join(" ")
            );
        }
    }
}

fn install_clippy(apt: &mut Apt) {
    let package = DEBIAN_PACKAGES[2];
    match apt.install(&[package.to_owned()]) {
        Ok(()) => say("clippy", &format!("installed from {package}, for the eBPF crate")),
        Err(error) => say("clippy", &format!("none for the eBPF crate: {error:#}")),
    }
}

fn add_rust_src() -> Result<()> {
    let Some(nightly) = rustup_toolchains().into_iter().find(|name| is_nightly(name)) else {
        bail!("rustup has no nightly");
    };
    process::logged(
        &mut rustup(&["component", "add", "rust-src", "--toolchain", &nightly]),
        "rustup-component-add",
        Some(RUSTUP_LIMIT),
    )
}

/// Installed toolchains, nightlies first; none where there is no rustup.
fn rustup_toolchains() -> Vec<String> {
    let list = process::answer(&mut rustup(&["toolchain", "list"])).unwrap_or_default();
    let mut names: Vec<_> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "no")
        .map(str::to_owned)
        .collect();
    names.sort_by_key(|name| !is_nightly(name));
    names
}

fn is_nightly(toolchain: &str) -> bool {
    toolchain.starts_with("nightly")
}

fn rustup(args: &[&str]) -> Command {
    let program = repo::find_program("rustup").unwrap_or_else(|| PathBuf::from("rustup"));
    let mut command = Command::new(program);
    command.args(args);
    command
}

fn minor(release: &str) -> Option<u32> {
    release.split('.').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_rustc_says_about_itself() {
        let version = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\n\
                       commit-hash: e50aa6fba4e63ab34c72bf9acfd2c307c1155d1a\ncommit-date: 2026-05-19\n\
                       host: aarch64-unknown-linux-gnu\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        let compiler =
            Compiler::from_version(Origin::System, Path::new("/usr"), version).expect("all fields are there");
        assert_eq!(compiler.llvm, 22);
        assert_eq!(compiler.host_arch, "aarch64");
        assert_eq!(compiler.tag(), "1.97.0-nightly-e50aa6fba");
        assert_eq!(minor(&compiler.release), Some(97));
        assert!(Compiler::from_version(Origin::System, Path::new("/usr"), "rustc 1.0").is_none());
    }
}
