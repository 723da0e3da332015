//! The static binaries, with an eBPF object of their own inside, built so that nothing of this machine's folders gets into
//! them; and what cargo says was compiled for them.
//!
//! The folders are `/mesh` (the repository), `/cargo` and `/rust` in messages of the program and in the object's line
//! numbers, wherever they are in truth.

use std::{
    env, fs,
    io::BufReader,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Artifact, Message, PackageId};

use super::Profile;
use crate::{
    bootstrap::{compiler::Compiler, musl::Musl},
    ebpf, process, repo,
};

const PACKAGE: &str = "mesh-userspace";
const BINARIES: [&str; 2] = ["meshctl", "meshd"];

/// What was built.
pub(super) struct Build {
    pub(super) binaries: Vec<Binary>,
    /// Crates that are linked into the binaries.
    pub(super) userspace: Vec<PackageId>,
    /// Crates that are linked into the eBPF object.
    pub(super) kernel: Vec<PackageId>,
    /// The target triple of the binaries.
    pub(super) target: String,
    /// Version of the compiler of the binaries, and so of the standard library in them.
    pub(super) rustc: String,
    /// Version of the compiler of the object, and so of the core library in it.
    pub(super) kernel_rustc: String,
}

/// One of the binaries.
pub(super) struct Binary {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl Build {
    pub(super) fn run(compiler: &Compiler, musl: &Musl, profile: Profile) -> Result<Self> {
        let (object, kernel) = build_object(compiler)?;
        let target_dir = target_dir()?;
        let mut cargo = process::cargo();
        cargo
            .args(["build", "--locked", "--package", PACKAGE, "--bins", "--profile", profile.name()])
            .args(["--target", &musl.target, "--target-dir"])
            .arg(&target_dir)
            .env("MESH_EBPF_OBJECT", &object)
            .env("CARGO_ENCODED_RUSTFLAGS", remapping(&[])?.join("\u{1f}"));
        let triple = musl.target.replace('-', "_");
        let of_c = folders(&[])?.map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display()));
        cargo
            .env(format!("CC_{triple}"), &musl.cc)
            .env(format!("CFLAGS_{triple}"), of_c.collect::<Vec<_>>().join(" "))
            // What C code has for __DATE__ and __TIME__ (mimalloc): the same always, since cargo builds nothing anew for it.
            .env("SOURCE_DATE_EPOCH", "0");
        let section = profile.name().to_uppercase();
        cargo
            .env(format!("CARGO_PROFILE_{section}_STRIP"), "symbols")
            .env(format!("CARGO_PROFILE_{section}_DEBUG"), "false");
        for others in ["CARGO_BUILD_TARGET", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER"] {
            cargo.env_remove(others);
        }
        let artifacts = artifacts(&mut cargo).context("the static binaries were not built")?;
        let for_target = target_dir.join(&musl.target);
        Ok(Self {
            binaries: BINARIES.map(|name| binary(&artifacts, name)).into_iter().collect::<Result<_>>()?,
            userspace: linked(&artifacts, &for_target),
            kernel,
            target: musl.target.clone(),
            rustc: rustc_version()?,
            kernel_rustc: compiler.release.clone(),
        })
    }
}

fn build_object(compiler: &Compiler) -> Result<(PathBuf, Vec<PackageId>)> {
    let dir = repo::root().join("target/image/ebpf");
    let artifacts_dir = dir.join("artifacts");
    let sysroot = [(compiler.sysroot.clone(), "/rust")];
    let mut cargo = ebpf::build_apart(compiler, &dir, &artifacts_dir, &remapping(&sysroot)?)?;
    let artifacts = artifacts(&mut cargo).context("the eBPF object was not built")?;
    // By this name mesh-userspace looks for it; only new bytes make cargo build that again.
    let object = dir.join("mesh-ebpf.o");
    let built = artifacts_dir.join(ebpf::PACKAGE);
    let bytes = fs::read(&built)
        .with_context(|| format!("cargo succeeded, but {} cannot be read", built.display()))?;
    if fs::read(&object).ok().as_ref() != Some(&bytes) {
        repo::write_atomically(&object, &bytes, 0o644)?;
    }
    Ok((object, linked(&artifacts, &dir.join(ebpf::TARGET))))
}

/// Folders whose place on this machine is nobody's business, and what they are called instead.
fn folders(more: &[(PathBuf, &'static str)]) -> Result<impl Iterator<Item = (PathBuf, &'static str)>> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .context("neither CARGO_HOME nor HOME says where cargo keeps sources; set one")?;
    // The last that fits is taken: the repository's own folder may hold the others.
    let folders = [(repo::root(), "/mesh"), (target_dir()?, "/mesh/target"), (cargo_home, "/cargo")];
    Ok(folders.into_iter().chain(more.to_vec()))
}

fn remapping(more: &[(PathBuf, &'static str)]) -> Result<Vec<String>> {
    folders(more)?
        .map(|(from, to)| match from.to_str() {
            Some(from) => Ok(format!("--remap-path-prefix={from}={to}")),
            None => bail!("{} is no UTF-8, which rustc needs; move it", from.display()),
        })
        .collect()
}

fn target_dir() -> Result<PathBuf> {
    let given = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    std::path::absolute(repo::root().join(given)).context("CARGO_TARGET_DIR names no folder")
}

/// Runs a build that tells in JSON what it made; its messages for people go to the terminal.
fn artifacts(cargo: &mut Command) -> Result<Vec<Artifact>> {
    cargo.args(["--message-format", "json-render-diagnostics"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cannot start cargo; is it installed and on the PATH?")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut artifacts = Vec::new();
    for message in Message::parse_stream(BufReader::new(output)) {
        if let Message::CompilerArtifact(artifact) = message.context("cannot read what cargo says")? {
            artifacts.push(artifact);
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("cargo ended with {status}; the reason is in its output above");
    }
    Ok(artifacts)
}

fn binary(artifacts: &[Artifact], name: &str) -> Result<Binary> {
    let path = artifacts
        .iter()
        .filter(|artifact| artifact.target.name == name)
        .find_map(|artifact| artifact.executable.clone())
        .with_context(|| format!("cargo has built no `{name}`"))?;
    Ok(Binary { name: name.to_owned(), path: path.into() })
}

/// The packages that were compiled for the target: build scripts and macros are compiled for the host, elsewhere.
fn linked(artifacts: &[Artifact], for_target: &Path) -> Vec<PackageId> {
    let mut packages: Vec<_> = artifacts
        .iter()
        .filter(|artifact| artifact.filenames.iter().any(|file| file.as_std_path().starts_with(for_target)))
        .filter(|artifact| !artifact.target.is_custom_build())
        .map(|artifact| artifact.package_id.clone())
        .collect();
    packages.sort();
    packages.dedup();
    packages
}

/// `1.95.0` of the compiler that cargo runs.
fn rustc_version() -> Result<String> {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let answer = process::answer(rustc.arg("--version").current_dir(repo::root()))?;
    let version = answer.split_whitespace().nth(1);
    Ok(version.with_context(|| format!("`rustc --version` reads unlike any known: {answer:?}"))?.to_owned())
}
