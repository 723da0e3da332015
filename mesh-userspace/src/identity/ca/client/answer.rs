//! What an authority answers, taken apart and checked before anything is done with it.
//!
//! The protocol gives one list: the leaf first, the root last. The first element may hold intermediates after the leaf
//! (istio-csr passes on what cert-manager has), the last one several roots (istiod while its root is being replaced); a
//! certificate that is its own issuer is a root wherever it stands.

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::ParsedCertificate;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::identity::{PeerError, SignedChain, SigningRequest, peer_identity, provider};

/// Most certificates in an answer.
const MAX_CERTIFICATES: usize = 32;

/// What is wrong with an answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AnswerError {
    #[error("it holds no certificate")]
    Empty,
    #[error("it holds no root after the leaf")]
    NoRoot,
    #[error("it holds more than {MAX_CERTIFICATES} certificates")]
    TooMany,
    #[error("an element of it is no certificate in PEM")]
    Malformed,
    #[error("its certificate is for another key")]
    WrongKey,
    #[error("its certificate is not for the identity: {0}")]
    Identity(PeerError),
    #[error("its certificate is for {0}")]
    OtherIdentity(String),
    #[error("its certificate is that of an authority")]
    Authority,
    #[error("its certificate is not good for both ends of a connection")]
    Usage,
    #[error("its certificate does not lead to a root of it: {0}")]
    Chain(String),
}

/// Takes an answer apart; what this returns is for the key and the identity that were asked for.
pub(super) fn check(request: &SigningRequest<'_>, elements: &[String]) -> Result<SignedChain, AnswerError> {
    let (chain, roots) = split(elements)?;
    let leaf = chain.first().ok_or(AnswerError::Empty)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_error| AnswerError::Malformed)?;
    // What was sent is ours, and can be read.
    let (_, csr) = X509CertificationRequest::from_der(request.csr).map_err(|_error| AnswerError::WrongKey)?;
    if parsed.public_key().raw != csr.certification_request_info.subject_pki.raw {
        return Err(AnswerError::WrongKey);
    }
    let identity = peer_identity(&chain).map_err(AnswerError::Identity)?;
    if identity != *request.identity {
        return Err(AnswerError::OtherIdentity(identity.to_string()));
    }
    if parsed.is_ca() {
        return Err(AnswerError::Authority);
    }
    let usage = parsed.extended_key_usage().map_err(|_error| AnswerError::Malformed)?;
    if usage.is_some_and(|usage| !(usage.value.any || usage.value.server_auth && usage.value.client_auth)) {
        return Err(AnswerError::Usage);
    }
    verify(&chain, &roots)?;
    Ok(SignedChain { chain, roots })
}

type Certificates = Vec<CertificateDer<'static>>;

fn split(elements: &[String]) -> Result<(Certificates, Certificates), AnswerError> {
    let (mut chain, mut roots) = (Vec::new(), Vec::<CertificateDer<'static>>::new());
    for (index, element) in elements.iter().enumerate() {
        let is_last = index > 0 && index + 1 == elements.len();
        let mut any = false;
        for certificate in CertificateDer::pem_slice_iter(element.as_bytes()) {
            let certificate = certificate.map_err(|_error| AnswerError::Malformed)?;
            any = true;
            if chain.len() + roots.len() >= MAX_CERTIFICATES {
                return Err(AnswerError::TooMany);
            }
            if chain.is_empty() || !(is_last || is_its_own_issuer(&certificate)?) {
                chain.push(certificate);
            } else if !roots.contains(&certificate) {
                roots.push(certificate);
            }
        }
        if !any {
            return Err(AnswerError::Malformed);
        }
    }
    match (chain.is_empty(), roots.is_empty()) {
        (true, _) => Err(AnswerError::Empty),
        (false, true) => Err(AnswerError::NoRoot),
        (false, false) => Ok((chain, roots)),
    }
}

fn is_its_own_issuer(certificate: &CertificateDer<'_>) -> Result<bool, AnswerError> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_error| AnswerError::Malformed)?;
    Ok(parsed.subject().as_raw() == parsed.issuer().as_raw())
}

fn verify(chain: &[CertificateDer<'static>], roots: &[CertificateDer<'static>]) -> Result<(), AnswerError> {
    let [leaf, intermediates @ ..] = chain else { return Err(AnswerError::Empty) };
    let failed = |error: rustls::Error| AnswerError::Chain(error.to_string());
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(failed)?;
    }
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf).map_err(failed)?,
        &store,
        intermediates,
        UnixTime::now(),
        provider().signature_verification_algorithms.all,
    )
    .map_err(failed)
}
