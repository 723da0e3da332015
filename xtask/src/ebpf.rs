//! `cargo xtask build-ebpf`: the eBPF object, and clippy for it.
//!
//! Built in a folder of its own in the user's cache, one a compiler, which clones on one machine share: `core` and the
//! dependencies are compiled once, and `cargo clean` does not reach them. Cargo's lock keeps two builds apart, and each
//! takes its own object out of cargo's hands (`--artifact-dir`) while that lock is held.
//! What must not be shared, the clones' own crates, is kept apart by [`clone_mark`].
//!
//! The object goes to `target/ebpf/mesh-ebpf.o` only when its bytes changed, so that mesh-userspace, which embeds it,
//! is not rebuilt for nothing.
//!
//! Clippy runs for the eBPF target itself, with the clippy that belongs to the compiler: rustup's stable clippy cannot
//! check a `core` of another version, and a check for the host would judge other code than the one that is loaded.

use std::{
    env,
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result};

use crate::{
    bootstrap::{
        compiler::{self, Compiler},
        linker,
    },
    process, repo,
};

/// What the object is built for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// The crate, and what its object is called among the artifacts of a build.
pub(crate) const PACKAGE: &str = "mesh-ebpf";

/// Builds the object.
pub(crate) fn build() -> Result<()> {
    let compiler = compiler::find()?;
    let artifacts = repo::root().join("target/ebpf/artifacts");
    let mut cargo = cargo("build", &compiler, &Place::shared(&compiler)?)?;
    cargo.args(["--bins", "-Z", "unstable-options", "--artifact-dir"]).arg(&artifacts);
    process::aloud(&mut cargo).context("the eBPF object was not built")?;
    publish(&artifacts.join(PACKAGE))
}

/// The command that builds the object into `artifacts` for the container image: in `target_dir`, which nobody shares, so
/// that nothing tells this clone from another; `flags` are for every crate.
pub(crate) fn build_apart(
    compiler: &Compiler,
    target_dir: &Path,
    artifacts: &Path,
    flags: &[String],
) -> Result<Command> {
    let place = Place { target_dir: target_dir.to_owned(), mark: None, flags: flags.to_vec() };
    let mut cargo = cargo("build", compiler, &place)?;
    cargo.args(["--locked", "--bins", "-Z", "unstable-options", "--artifact-dir"]).arg(artifacts);
    Ok(cargo)
}

/// Runs clippy, every warning an error.
pub(crate) fn clippy() -> Result<()> {
    let compiler = compiler::find()?;
    let mut cargo = cargo("clippy", &compiler, &Place::shared(&compiler)?)?;
    cargo.args(["--", "-D", "warnings"]);
    process::aloud(&mut cargo).context("clippy is not content with the eBPF crate")
}

/// Where cargo builds, and what keeps that apart from other builds there.
struct Place {
    target_dir: PathBuf,
    mark: Option<String>,
    flags: Vec<String>,
}

impl Place {
    /// The one that clones share.
    fn shared(compiler: &Compiler) -> Result<Self> {
        Ok(Self { target_dir: target_dir(compiler), mark: Some(clone_mark()?), flags: Vec::new() })
    }
}

/// `cargo SUBCOMMAND` for the eBPF crate, as aya-build would call it.
fn cargo(subcommand: &str, compiler: &Compiler, place: &Place) -> Result<Command> {
    let linker = linker::find(compiler)?;
    let mut cargo = compiler.cargo(subcommand)?;
    cargo
        .args(["--package", PACKAGE, "--profile", "bpf", "--target", TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&place.target_dir)
        // By name: the path, which differs between clones, would be part of cargo's fingerprint of everything.
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", "bpf-linker")
        .env("PATH", path_with(&linker)?)
        // Stands above RUSTFLAGS and every config file: what is meant for the host must not reach this target.
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&compiler.host_arch, &place.flags));
    if let Some(mark) = &place.mark {
        cargo
            .args(["-Z", "profile-rustflags", "--config", mark])
            .args(["--config", "profile.bpf.package.\"*\".rustflags=[]"]);
    }
    for host_only in ["CARGO_BUILD_TARGET", "CARGO_INCREMENTAL", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER"] {
        cargo.env_remove(host_only);
    }
    Ok(cargo)
}

/// The PATH with the folder of `linker` before all others.
fn path_with(linker: &Path) -> Result<OsString> {
    let folder = linker.parent().map(Path::to_path_buf);
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(folder.into_iter().chain(env::split_paths(&path)))
        .with_context(|| format!("{} cannot stand in the PATH; move the clone", linker.display()))
}

/// Keeps what the clones compile of their own crates apart.
///
/// Cargo names a workspace's own crates by their path inside the workspace and goes by modification times: without a
/// mark, one clone would be given the object of another. The mark is the clone's path, and a file that lives and dies
/// with its target folder, for one that takes the place of another. It is for members alone; the setting beside it
/// clears it for the dependencies (`"*"`), which are to be shared.
fn clone_mark() -> Result<String> {
    let file = repo::root().join("target/ebpf/clone-id");
    if !file.exists() {
        repo::write_atomically(&file, format!("{:?}", SystemTime::now()).as_bytes(), 0o644)?;
    }
    let id = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut hasher = DefaultHasher::new();
    (repo::root(), id).hash(&mut hasher);
    Ok(format!("profile.bpf.rustflags=['--cfg=mesh_clone=\"{:016x}\"']", hasher.finish()))
}

/// The same for building and for clippy, or they would not share what they compile.
fn rustflags(host_arch: &str, more: &[String]) -> String {
    let arch = if host_arch.starts_with("riscv64") { "riscv64" } else { host_arch };
    let arch = format!("--cfg=bpf_target_arch=\"{arch}\"");
    let flags = [arch.as_str(), "-Cdebuginfo=2", "-Clink-arg=--btf"].into_iter();
    flags.chain(more.iter().map(String::as_str)).collect::<Vec<_>>().join("\u{1f}")
}

fn target_dir(compiler: &Compiler) -> PathBuf {
    repo::cache(&format!("ebpf-target-{}", compiler.tag()))
        .unwrap_or_else(|| repo::root().join("target/ebpf/build"))
}

fn publish(built: &Path) -> Result<()> {
    let object = repo::ebpf_object();
    let bytes = fs::read(built)
        .with_context(|| format!("cargo succeeded, but {} cannot be read", built.display()))?;
    if fs::read(&object).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    repo::write_atomically(&object, &bytes, 0o644)?;
    println!("build-ebpf: {} is new, {} bytes", object.display(), bytes.len());
    Ok(())
}
