//! What is compared.

use clap::ValueEnum;

use super::load::Backend;

/// Who has services lead to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Mode {
    /// Nobody: the client connects to a pod, and no rule is loaded.
    Direct,
    /// kube-proxy's rules, through iptables over `nf_tables`.
    IptablesNft,
    /// kube-proxy's rules, through iptables as it first was.
    IptablesLegacy,
    /// kube-proxy's nftables mode.
    Nftables,
    /// The agent.
    Mesh,
}

impl Mode {
    pub(super) const ALL: [Self; 5] =
        [Self::Direct, Self::IptablesNft, Self::IptablesLegacy, Self::Nftables, Self::Mesh];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct, no rules",
            Self::IptablesNft => "kube-proxy, iptables-nft",
            Self::IptablesLegacy => "kube-proxy, iptables-legacy",
            Self::Nftables => "kube-proxy, nftables",
            Self::Mesh => "mesh",
        }
    }

    /// Name of its lab: each mode has namespaces of its own.
    pub(super) const fn lab(self) -> &'static str {
        match self {
            Self::Direct => "mesh-services-direct",
            Self::IptablesNft => "mesh-services-iptnft",
            Self::IptablesLegacy => "mesh-services-legacy",
            Self::Nftables => "mesh-services-nft",
            Self::Mesh => "mesh-services-mesh",
        }
    }

    pub(super) const fn backend(self) -> Option<Backend> {
        match self {
            Self::IptablesNft => Some(Backend::IptablesNft),
            Self::IptablesLegacy => Some(Backend::IptablesLegacy),
            Self::Nftables => Some(Backend::Nftables),
            Self::Direct | Self::Mesh => None,
        }
    }
}
