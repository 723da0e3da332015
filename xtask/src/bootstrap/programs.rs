//! Programs that the tests and the demo run.

use anyhow::{Context, Result};

use super::{apt::Apt, say};
use crate::repo;

struct Program {
    name: &'static str,
    package: &'static str,
    why: &'static str,
    required: bool,
}

const PROGRAMS: [Program; 3] = [
    Program {
        name: "ip",
        package: "iproute2",
        why: "makes the network namespaces of the tests and the demo",
        required: true,
    },
    Program {
        name: "iptables",
        package: "iptables",
        why: "lets the demo count iptables rules",
        required: false,
    },
    Program { name: "nft", package: "nftables", why: "lets the demo count nftables rules", required: false },
];

pub(super) fn find_or_install(apt: &mut Apt) -> Result<()> {
    for program in PROGRAMS {
        let Program { name, package, why, required } = program;
        if let Some(path) = repo::find_program(name) {
            say(name, &format!("{} ({why})", path.display()));
            continue;
        }
        match apt.install(&[package.to_owned()]) {
            Ok(()) => say(name, &format!("installed from the Debian package {package} ({why})")),
            Err(error) if required => {
                return Err(error)
                    .with_context(|| format!("`{name}` is not on the PATH; install {package}, it {why}"));
            }
            Err(error) => say(name, &format!("not found, and it only {why}: {error:#}")),
        }
    }
    Ok(())
}
