//! Where the agent looks for Kubernetes' pods: its flags.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::node::discovery::DiscoveryConfig;

/// Flags of discovery.
#[derive(Clone, Debug, Args)]
pub struct DiscoveryFlags {
    /// A /proc that shows the node's processes (with hostPID the container's own does).
    #[arg(long, default_value = "/proc", value_name = "DIR")]
    pub proc: PathBuf,
    /// Where to look for the kubelet's cgroups of pods [default: the cgroup of --cgroup, and the hierarchies of cgroup v1
    /// in /proc/mounts]. May be given more than once.
    #[arg(long, value_name = "DIR")]
    pub pods_cgroup: Vec<PathBuf>,
}

impl DiscoveryFlags {
    /// What they come to on a machine whose cgroup v2 is at `cgroup2`.
    pub fn config(&self, cgroup2: &Path) -> DiscoveryConfig {
        if self.pods_cgroup.is_empty() {
            return DiscoveryConfig::of_machine(cgroup2, self.proc.clone());
        }
        DiscoveryConfig { roots: self.pods_cgroup.clone(), proc: self.proc.clone() }
    }
}
