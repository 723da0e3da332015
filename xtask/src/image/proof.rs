//! The binaries run as a container would run them: in a root that holds what the layer holds, and nothing else.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{layer::Layer, layout::ENTRYPOINT};
use crate::process;

/// What is run: every binary tells its version.
const PROGRAMS: [&str; 2] = [ENTRYPOINT, "/usr/local/bin/meshctl"];

/// Runs each binary of a layer with `--version`.
pub(super) fn run(layer: &Layer) -> Result<()> {
    let root = tempfile::tempdir().context("cannot make a folder to unpack the image into")?;
    tar::Archive::new(layer.tar()).unpack(root.path()).context("cannot unpack the layer")?;
    for program in PROGRAMS {
        let answer = in_root(root.path(), program, &["--version"])
            .with_context(|| format!("{program} does not run in the image"))?;
        println!("image: {program} runs in it: {}", answer.trim());
    }
    Ok(())
}

/// What a program prints whose root is `root`. Whoever is not root may still change roots in a user namespace of its own;
/// where even that is forbidden it fails rather than run the program outside.
pub(super) fn in_root(root: &Path, program: &str, args: &[&str]) -> Result<String> {
    let metadata = fs::symlink_metadata(root.join(program.trim_start_matches('/')))
        .with_context(|| format!("{program} is not in the layer"))?;
    if !metadata.is_file() {
        bail!("{program} is no file");
    }
    let mut command = Command::new(program);
    command.args(args).env_clear().current_dir("/").stdin(Stdio::null());
    let root = root.to_owned();
    let enter = move || {
        if !nix::unistd::geteuid().is_root() {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?;
        }
        nix::unistd::chroot(&root)?;
        nix::unistd::chdir("/")?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes four system calls; the path was allocated before.
    unsafe { command.pre_exec(enter) };
    process::answer(&mut command)
}
