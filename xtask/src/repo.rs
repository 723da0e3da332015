//! Where things are: in this clone, and in the user's cache, which clones on one machine share.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The root of the clone.
pub(crate) fn root() -> PathBuf {
    // Cargo says where the running package is; the built-in path is for a binary that was started by hand.
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.ends_with("xtask"))
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    manifest_dir.parent().expect("xtask is a folder of the repository").to_path_buf()
}

/// Where tools that this clone built for itself go (`bin/` below it).
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}

/// What `build-ebpf` makes: the object that mesh-userspace embeds.
pub(crate) fn ebpf_object() -> PathBuf {
    root().join("target/ebpf/mesh-ebpf.o")
}

/// The log file of a step, and its folder.
pub(crate) fn log(step: &str) -> Result<PathBuf> {
    let dir = root().join("target/xtask-logs");
    create_dir(&dir)?;
    Ok(dir.join(format!("{step}.log")))
}

/// `NAME` in the user's cache, created; `None` where there is no cache that can be written.
pub(crate) fn cache(name: &str) -> Option<PathBuf> {
    let base =
        env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute()).or_else(|| {
            env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(".cache"))
        })?;
    let dir = base.join("mesh").join(name);
    fs::create_dir_all(&dir).ok()?;
    nix::unistd::access(&dir, nix::unistd::AccessFlags::W_OK).ok()?;
    Some(dir)
}

/// Creates a folder and those above it.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)
        .with_context(|| format!("cannot create {}; make it writable for this user", dir.display()))
}

/// Puts `bytes` at `path` in one step: a reader sees the old file or the new one, never half of one.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = path.parent().expect("a file has a folder");
    create_dir(dir)?;
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    let written = fs::write(&aside, bytes)
        .and_then(|()| fs::set_permissions(&aside, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // Best effort: the error that is reported is the one above.
        drop(fs::remove_file(&aside));
    }
    written.with_context(|| {
        format!("cannot write {}; check the rights and the free space there", path.display())
    })
}

/// A program of the PATH, or of the folders of the system's own programs, which an ordinary user's PATH may lack.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}
