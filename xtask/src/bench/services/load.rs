//! Rules into the kernel, with the programs that kube-proxy runs.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::{Lab, Node};
use serde_json::Value;

/// Which of the kernel's tables, and by which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// iptables over `nf_tables`.
    IptablesNft,
    /// iptables as it first was.
    IptablesLegacy,
    /// nftables.
    Nftables,
}

impl Backend {
    /// Applies each of `rules` in the node's namespace, after `looks` (commands whose output is not kept), and waits for the
    /// end. A deadline that passes ends it. One shell runs them all: the time between two is not the bench's.
    pub(super) fn load(
        self,
        lab: &Lab,
        node: &Node,
        looks: &[&str],
        rules: &[&str],
        deadline: Duration,
    ) -> Result<()> {
        let mut script = "set -e\n".to_owned();
        for look in looks {
            let _infallible = writeln!(script, "{look} > /dev/null");
        }
        for (number, rules) in rules.iter().enumerate() {
            let file = lab.folder().join(format!("rules-{number}"));
            fs::write(&file, rules).with_context(|| format!("write {}", file.display()))?;
            let _infallible = writeln!(script, "{} < {}", self.load_command(), file.display());
        }
        let process = node.spawn(&["sh", "-c", &script])?;
        let finished = process.wait(deadline).or_else(|error| {
            let too_long = process.is_running();
            process.kill()?;
            if too_long {
                bail!("not loaded within {} s", deadline.as_secs());
            }
            Err(error)
        })?;
        if !finished.status.success() {
            bail!("the rules were refused: {}", finished.stderr.trim());
        }
        Ok(())
    }

    /// What the kernel holds.
    pub(super) fn list(self, node: &Node, deadline: Duration) -> Result<String> {
        output(node, self.list_command(), deadline)
    }

    /// Rules, and elements of sets and maps.
    pub(super) fn count(self, node: &Node, deadline: Duration) -> Result<(usize, usize)> {
        if self == Self::Nftables {
            let listed: Value =
                serde_json::from_str(&output(node, &["nft", "--json", "list", "ruleset"], deadline)?)
                    .context("read what nft lists")?;
            return Ok(count_json(&listed));
        }
        let listed = self.list(node, deadline)?;
        Ok((listed.lines().filter(|line| line.starts_with("-A ")).count(), 0))
    }

    /// Everything gone.
    #[cfg(test)]
    pub(super) fn flush(self, node: &Node) -> Result<()> {
        let commands: &[&[&str]] = match self {
            Self::Nftables | Self::IptablesNft => &[&["nft", "flush", "ruleset"]],
            Self::IptablesLegacy => &[
                &["iptables-legacy", "-t", "filter", "-F"],
                &["iptables-legacy", "-t", "filter", "-X"],
                &["iptables-legacy", "-t", "nat", "-F"],
                &["iptables-legacy", "-t", "nat", "-X"],
                &["iptables-legacy", "-t", "mangle", "-X"],
            ],
        };
        commands.iter().try_for_each(|command| output(node, command, mesh_tests::SECONDS_30).map(drop))
    }

    /// kube-proxy's own flags.
    const fn load_command(self) -> &'static str {
        match self {
            Self::IptablesNft => "iptables-nft-restore -w 5 --noflush --counters",
            Self::IptablesLegacy => "iptables-legacy-restore -w 5 --noflush --counters",
            Self::Nftables => "nft -f -",
        }
    }

    const fn list_command(self) -> &'static [&'static str] {
        match self {
            Self::IptablesNft => &["iptables-nft-save"],
            Self::IptablesLegacy => &["iptables-legacy-save"],
            Self::Nftables => &["nft", "list", "ruleset"],
        }
    }
}

fn count_json(listed: &Value) -> (usize, usize) {
    let objects = listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rules = objects.iter().filter(|object| object.get("rule").is_some()).count();
    let sets = objects.iter().filter_map(|object| object.get("set").or_else(|| object.get("map")));
    (rules, sets.filter_map(|set| set["elem"].as_array()).map(Vec::len).sum())
}

/// What a program prints in the node's namespace.
fn output(node: &Node, command: &[&str], deadline: Duration) -> Result<String> {
    let finished = node.spawn(command)?.wait(deadline)?;
    if !finished.status.success() {
        bail!("{} failed: {}", command.join(" "), finished.stderr.trim());
    }
    Ok(finished.stdout)
}
