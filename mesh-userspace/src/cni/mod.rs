//! The CNI plugin `mesh-cni` (`meshd cni`), and its installation.
//!
//! Chained after the plugin that gives a pod its network, it tells the agent of the node of each sandbox and returns only
//! once the pod is in the mesh, if it is to be: no packet of a pod leaves before. It changes nothing itself, and passes on
//! the result of the plugins before it as it came. Specification: CNI 1.1.0.

mod config;
mod error;
mod install;
mod invocation;
mod known;
mod log;
mod plugin;
mod remote;

pub use self::config::{MAX_TIMEOUT, PluginConfig};
pub use self::install::{InstallConfig, InstallError, InstallState, Installer, forget, install, uninstall};
pub use self::known::{DEFAULT_KNOWN, Known};
pub use self::log::{OLD_PLUGIN_LOG, PLUGIN_LOG};
pub use self::plugin::{is_own_netns, is_plugin, main};

/// Name of the plugin: of its binary, and its `type` in configurations.
pub const PLUGIN: &str = "mesh-cni";
