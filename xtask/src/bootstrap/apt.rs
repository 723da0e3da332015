//! Debian packages, where there is apt-get and this is root.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{process, repo};

/// Installs packages; asks for the lists of packages once.
#[derive(Default)]
pub(super) struct Apt {
    updated: bool,
}

impl Apt {
    /// Installs `packages`.
    ///
    /// # Errors
    ///
    /// When there is no apt-get, this is not root, or apt-get fails. The error names what to do by hand.
    pub(super) fn install(&mut self, packages: &[String]) -> Result<()> {
        let names = packages.join(" ");
        if repo::find_program("apt-get").is_none() {
            bail!("the Debian packages {names} cannot be installed: this machine has no apt-get");
        }
        if !nix::unistd::geteuid().is_root() {
            bail!("not root, so nothing was installed; run `sudo apt-get install {names}`");
        }
        if !self.updated {
            // An outdated list is no reason to give up: the packages may be known already.
            if let Err(error) = process::logged(apt_get().arg("update"), "apt-update", None) {
                println!("bootstrap: {error:#}; going on with the lists that are there");
            }
            self.updated = true;
        }
        let mut install = apt_get();
        install.args(["install", "-y", "--no-install-recommends"]).args(packages);
        process::logged(&mut install, &format!("apt-install-{}", packages[0]), None)
    }
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}
