//! Mutual-TLS modes of a workload, and the `PeerAuthentication`s that set them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// `PeerAuthentication.mtls.mode` after `UNSET` has been resolved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// mTLS and plaintext are both taken.
    #[default]
    Permissive,
    /// mTLS alone is taken.
    Strict,
    /// Plaintext; the mesh does not offer mTLS.
    Disable,
}

/// The modes in force at one workload: the outcome of all `PeerAuthentication`s that apply to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MtlsModes {
    /// Mode of every port that has none of its own.
    pub default: Mode,
    /// `portLevelMtls`, by the workload's port.
    pub ports: BTreeMap<u16, Mode>,
}

impl MtlsModes {
    /// The mode in force at `port`.
    pub fn at(&self, port: u16) -> Mode {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }

    /// Whether any port takes mTLS only.
    pub fn any_strict(&self) -> bool {
        self.default == Mode::Strict || self.ports.values().any(|mode| *mode == Mode::Strict)
    }
}

/// One `PeerAuthentication`; a mode of `None` is `UNSET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name, which breaks ties.
    pub name: Arc<str>,
    /// `metadata.creationTimestamp` in Unix seconds; 0 where there is none.
    pub created: i64,
    /// `selector.matchLabels`; empty: the whole namespace.
    pub selector: BTreeMap<String, String>,
    /// `mtls.mode`.
    pub mode: Option<Mode>,
    /// `portLevelMtls`, by the workload's port.
    pub ports: BTreeMap<u16, Option<Mode>>,
}
