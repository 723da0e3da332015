//! Who signs certificates: the seam between the store and a certificate authority, local or remote.

use std::time::Duration;

use futures_util::future::BoxFuture;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::model::Identity;

/// What a certificate authority is asked for.
#[derive(Clone, Copy, Debug)]
pub struct SigningRequest<'a> {
    /// Whose certificate it is to be.
    pub identity: &'a Identity,
    /// PKCS#10 request that carries the public key, signed with the private one.
    pub csr: &'a CertificateSigningRequestDer<'static>,
    /// Validity wished for; the authority may give less.
    pub validity: Duration,
}

/// What it answers.
#[derive(Clone, Debug)]
pub struct SignedChain {
    /// The leaf, then intermediates; without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Roots to trust: more than one while a root is being replaced.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why a request was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The authority could not be asked; asking again later may help.
    #[error("certificate authority is not available: {0}")]
    Unavailable(String),
    /// It refused.
    #[error("certificate authority refused {identity}: {reason}")]
    Refused {
        /// Identity asked for.
        identity: Identity,
        /// What it said.
        reason: String,
    },
    /// What proves to the authority who asks, or what it is to be known by, cannot be read.
    #[error("the proof for the certificate authority cannot be used: {0}")]
    Credentials(String),
    /// It answered with what cannot be used.
    #[error("certificate authority answered with what cannot be used for {identity}: {reason}")]
    Answer {
        /// Identity asked for.
        identity: Identity,
        /// What is wrong with it.
        reason: String,
    },
    /// The request could not be read or signed.
    #[error("sign the request")]
    Signing(#[source] rcgen::Error),
    /// The authority's own certificate is past its end.
    #[error("the authority's certificate has expired")]
    AuthorityExpired,
}

impl SignError {
    /// Bounded label for metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Refused { .. } => "refused",
            Self::Credentials(_) => "credentials",
            Self::Answer { .. } => "bad_answer",
            Self::Signing(_) => "signing",
            Self::AuthorityExpired => "authority_expired",
        }
    }
}

/// A certificate authority.
pub trait Signer: Send + Sync + 'static {
    /// Signs a certificate for the identity. Cancel safe: a dropped call leaves nothing behind that matters.
    fn sign<'a>(&'a self, request: SigningRequest<'a>) -> BoxFuture<'a, Result<SignedChain, SignError>>;
}
