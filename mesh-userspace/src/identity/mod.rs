//! SPIFFE identities in use: certificates, their renewal, and the TLS configurations made of them.
//!
//! The [`CertificateStore`] owns every private key; a key never leaves the process, is never logged, and its copies are
//! overwritten where the crates permit. TLS 1.3 alone, with `aws-lc-rs`. A peer is told by the one URI SAN of its
//! certificate; names in a certificate mean nothing.

mod authority;
pub mod ca;
mod certificate;
mod reason;
mod roots;
mod session;
mod signer;
mod store;
mod tls;
mod verify;

use roots::fingerprint;

#[cfg(test)]
mod testing;

pub use authority::{
    Authority, AuthorityError, AuthorityFiles, Phase, RotateError, Rotation, RotationStatus, RotationStep,
};
pub use certificate::{CertificateError, WorkloadCertificate};
pub use reason::{PeerError, handshake_error_reason, handshake_peer, handshake_reason};
pub use roots::{Roots, RootsError, TrustedRoots};
pub use session::PeerSession;
pub use signer::{SignError, SignedChain, Signer, SigningRequest};
pub use store::{CertificateState, CertificateStatus, CertificateStore, StoreError};
pub use tls::{ALPN_H2, TlsError, client_config, provider, server_config};
pub use verify::{Expected, PeerVerifier, peer_identity};

#[cfg(test)]
mod tests;
