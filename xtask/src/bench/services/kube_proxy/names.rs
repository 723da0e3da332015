//! kube-proxy's names for its chains: hashes of what they are for, so that the kernel's limit on names holds.

use data_encoding::BASE32;
use sha2::{Digest, Sha256};

use super::service::{Endpoint, Service};

/// The chain `KUBE-KIND-…` of a service port (`SVC`, `SVL`, `EXT`, `FW`): `portProtoHash`.
pub(super) fn iptables_chain(kind: &str, service: &Service) -> String {
    let hash = hash(&format!("{}{}", service.port_label(), service.protocol), 16);
    format!("KUBE-{kind}-{hash}")
}

/// The chain of one of its endpoints: `servicePortEndpointChainName`.
pub(super) fn iptables_endpoint_chain(service: &Service, endpoint: Endpoint) -> String {
    let hash = hash(&format!("{}{}{endpoint}", service.port_label(), service.protocol), 16);
    format!("KUBE-SEP-{hash}")
}

/// The chain `KIND-…` of a service port (`service`, `local`, `external`, `firewall`): `servicePortChainNameBase`.
pub(super) fn nftables_chain(kind: &str, service: &Service) -> String {
    format!("{kind}-{}", hashed(&nftables_base(service)))
}

/// The chain (`endpoint`) or affinity set (`affinity`) of one of its endpoints: `servicePortEndpointChainNameBase`.
pub(super) fn nftables_endpoint_name(kind: &str, service: &Service, endpoint: Endpoint) -> String {
    let Endpoint { address, port, .. } = endpoint;
    format!("{kind}-{}", hashed(&format!("{}__{address}/{port}", nftables_base(service))))
}

fn nftables_base(service: &Service) -> String {
    let Service { namespace, name, protocol, port_name, .. } = service;
    format!("{namespace}/{name}/{protocol}/{port_name}")
}

fn hashed(name: &str) -> String {
    format!("{}-{name}", hash(name, 8))
}

fn hash(text: &str, length: usize) -> String {
    let mut encoded = BASE32.encode(&Sha256::digest(text));
    encoded.truncate(length);
    encoded
}
