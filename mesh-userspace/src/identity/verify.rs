//! Who the other end of a TLS connection is, and whether it may be that.
//!
//! Chain, validity and key usage are webpki's to check. Then the certificate must have exactly one URI SAN, that must
//! be an [`Identity`], and the identity must be one that was expected. Nothing else in a certificate names a peer.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;

use super::{PeerError, TrustedRoots, provider};
use crate::model::{Identity, TrustDomain};

/// Whom a verifier lets pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// One of these identities exactly: what a client demands of a server.
    Identities(Arc<[Identity]>),
    /// Anybody of these trust domains: what a server demands of a client before policy looks at who it is.
    TrustDomains(Arc<[TrustDomain]>),
}

impl Expected {
    /// Exactly this identity.
    pub fn identity(identity: Identity) -> Self {
        Self::Identities(Arc::new([identity]))
    }

    /// Anybody of this trust domain.
    pub fn trust_domain(domain: TrustDomain) -> Self {
        Self::TrustDomains(Arc::new([domain]))
    }

    /// With the same account of every trust domain in `accepted` expected where one of these domains is. Nothing changes
    /// for other domains, nor where none is accepted but one's own.
    #[must_use]
    pub fn with_aliases(self, accepted: &[TrustDomain]) -> Self {
        let Self::Identities(identities) = &self else { return self };
        if accepted.len() < 2 {
            return self;
        }
        let mut all: Vec<Identity> = Vec::new();
        for identity in identities.iter() {
            let own = std::iter::once(&identity.trust_domain);
            let aliases = accepted.iter().filter(|_| accepted.contains(&identity.trust_domain));
            for domain in own.chain(aliases) {
                let alias = Identity { trust_domain: domain.clone(), ..identity.clone() };
                if !all.contains(&alias) {
                    all.push(alias);
                }
            }
        }
        Self::Identities(all.into())
    }

    /// Whether the peer is among them.
    ///
    /// # Errors
    /// [`PeerError::WrongTrustDomain`] where none of the trust domain would do, [`PeerError::WrongIdentity`] otherwise.
    pub fn check(&self, peer: &Identity) -> Result<(), PeerError> {
        let (allowed, domain) = match self {
            Self::Identities(identities) => (
                identities.contains(peer),
                identities.iter().any(|identity| identity.trust_domain == peer.trust_domain),
            ),
            Self::TrustDomains(domains) => {
                let known = domains.contains(&peer.trust_domain);
                (known, known)
            }
        };
        match (allowed, domain) {
            (true, _) => Ok(()),
            (false, true) => Err(PeerError::WrongIdentity(peer.clone())),
            (false, false) => Err(PeerError::WrongTrustDomain(peer.clone())),
        }
    }
}

/// The identity that a certificate chain (leaf first) names.
///
/// # Errors
/// There is no certificate, or its URI SANs are not exactly one identity.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, PeerError> {
    let leaf = chain.first().ok_or(PeerError::Unreadable)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_error| PeerError::Unreadable)?;
    let names = parsed.subject_alternative_name().map_err(|_error| PeerError::Unreadable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let &[uri] = uris.as_slice() else {
        return Err(PeerError::UriNames(uris.len()));
    };
    uri.parse().map_err(PeerError::NoIdentity)
}

/// Verifies peers of both kinds, TLS 1.3 alone, by the roots that are trusted at the moment.
#[derive(Debug)]
pub struct PeerVerifier {
    expected: Expected,
    trusted: TrustedRoots,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    /// A verifier that trusts `trusted` and lets `expected` pass.
    pub fn new(trusted: TrustedRoots, expected: Expected) -> Self {
        Self { expected, trusted, algorithms: provider().signature_verification_algorithms }
    }

    fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let peer = peer_identity(std::slice::from_ref(leaf))?;
        Ok(self.expected.check(&peer)?)
    }
}

/// What both of rustls' traits ask of a verifier in the same words: signatures of TLS 1.3. TLS 1.2 is not offered and not
/// taken, so that its part is never reached.
macro_rules! tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.trusted.current().verify_server(end_entity, intermediates, now)?;
        self.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures!();
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let roots = self.trusted.current();
        let verified = roots.clients().verify_client_cert(end_entity, intermediates, now)?;
        self.check(end_entity)?;
        Ok(verified)
    }

    tls13_signatures!();
}
