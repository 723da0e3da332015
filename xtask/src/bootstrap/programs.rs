//! Programs that the tests, the bench and the demo run.

use anyhow::{Context, Result};

use super::{apt::Apt, say};
use crate::repo;

struct Program {
    name: &'static str,
    package: &'static str,
    why: &'static str,
}

const PROGRAMS: [Program; 4] = [
    Program {
        name: "ip",
        package: "iproute2",
        why: "makes the network namespaces of the tests and the demo",
    },
    Program { name: "iptables-nft", package: "iptables", why: RULES },
    Program { name: "iptables-legacy", package: "iptables", why: RULES },
    Program { name: "nft", package: "nftables", why: RULES },
];

const RULES: &str = "loads kube-proxy's rules in the bench and its tests, and lets the demo count rules";

pub(super) fn find_or_install(apt: &mut Apt) -> Result<()> {
    for Program { name, package, why } in PROGRAMS {
        if let Some(path) = repo::find_program(name) {
            say(name, &format!("{} ({why})", path.display()));
            continue;
        }
        apt.install(&[package.to_owned()])
            .with_context(|| format!("`{name}` is not on the PATH; install {package}, it {why}"))?;
        say(name, &format!("installed from the Debian package {package} ({why})"));
    }
    Ok(())
}
