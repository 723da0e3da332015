//! The roots that peers are verified by: a set, and what makes a verifier use another one while it is in use.

use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{Error, RootCertStore};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};

use super::provider;

/// Why certificates are no set of roots.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// One of them cannot be read.
    #[error("one of the roots is no certificate")]
    Malformed(#[source] Error),
    /// There are none.
    #[error("there are no roots")]
    None(#[source] VerifierBuilderError),
}

/// A set of roots: equal to another of the same certificates, in whatever order.
pub struct Roots {
    anchors: Arc<RootCertStore>,
    /// The SHA-256 of each anchor, in the anchors' order, which is that of these.
    fingerprints: Vec<String>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Roots").field(&self.fingerprints).finish()
    }
}

impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprints == other.fingerprints
    }
}

impl Eq for Roots {}

impl Roots {
    /// The set of these certificates.
    ///
    /// # Errors
    /// One of them is no certificate, or there are none.
    pub fn new(certificates: &[CertificateDer<'static>]) -> Result<Self, RootsError> {
        let mut named: Vec<_> =
            certificates.iter().map(|certificate| (fingerprint(certificate), certificate)).collect();
        named.sort_by(|one, other| one.0.cmp(&other.0));
        named.dedup_by(|one, other| one.0 == other.0);
        let mut anchors = RootCertStore::empty();
        for (_, certificate) in &named {
            anchors.add((*certificate).clone()).map_err(RootsError::Malformed)?;
        }
        let anchors = Arc::new(anchors);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&anchors), provider())
            .clear_root_hint_subjects()
            .build()
            .map_err(RootsError::None)?;
        let fingerprints = named.into_iter().map(|(fingerprint, _)| fingerprint).collect();
        Ok(Self { anchors, fingerprints, clients })
    }

    /// SHA-256 of each root in hexadecimal, sorted.
    pub fn fingerprints(&self) -> &[String] {
        &self.fingerprints
    }

    /// The fingerprint of the root that a chain (leaf first) leads to now; `None`: to none of these.
    pub fn issuer_of(&self, chain: &[CertificateDer<'_>]) -> Option<&str> {
        let (leaf, intermediates) = chain.split_first()?;
        let now = UnixTime::now();
        let leads = |anchor: &TrustAnchor<'static>| {
            let alone = RootCertStore { roots: vec![anchor.clone()] };
            verify_server(&alone, leaf, intermediates, now).is_ok()
        };
        let index = self.anchors.roots.iter().position(leads)?;
        self.fingerprints.get(index).map(String::as_str)
    }

    /// Whether a server's chain leads to one of the roots and is valid.
    pub(super) fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        verify_server(&self.anchors, leaf, intermediates, now)
    }

    /// What verifies clients by these roots.
    pub(super) const fn clients(&self) -> &Arc<dyn ClientCertVerifier> {
        &self.clients
    }
}

fn verify_server(
    anchors: &RootCertStore,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(leaf)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, anchors, intermediates, now, algorithms)
}

/// The roots that verifiers use from the next handshake on. Clones are the same.
#[derive(Clone, Debug)]
pub struct TrustedRoots(Arc<ArcSwap<Roots>>);

impl TrustedRoots {
    /// These, until they are replaced.
    pub fn new(roots: Arc<Roots>) -> Self {
        Self(Arc::new(ArcSwap::new(roots)))
    }

    /// Those in use.
    pub fn current(&self) -> Arc<Roots> {
        self.0.load_full()
    }

    pub(super) fn replace(&self, roots: Arc<Roots>) {
        self.0.store(roots);
    }
}

/// SHA-256 in hexadecimal, from the provider that TLS uses.
pub(super) fn fingerprint(der: &[u8]) -> String {
    static SHA256: OnceLock<Option<&'static dyn rustls::crypto::hash::Hash>> = OnceLock::new();
    let sha256 = SHA256.get_or_init(|| {
        let suites = provider().cipher_suites.clone();
        let aes = |suite: &rustls::SupportedCipherSuite| {
            suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256
        };
        let suite = suites.into_iter().find(aes).and_then(|suite| suite.tls13())?;
        Some(suite.common.hash_provider)
    });
    sha256.map(|sha256| hex(sha256.hash(der).as_ref())).unwrap_or_default()
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
