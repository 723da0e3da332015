//! TLS configurations, made once for a certificate and a peer, never for a connection.
//!
//! They live with the certificate that they present: a renewed certificate begins with none.

use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};

use super::{Expected, PeerVerifier, WorkloadCertificate};

/// The one application protocol: HTTP/2, which HBONE is spoken in.
pub const ALPN_H2: &[u8] = b"h2";

/// Why a configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate came without roots.
    #[error("make a verifier of the certificate's roots")]
    Roots(#[source] VerifierBuilderError),
    /// The provider does not do TLS 1.3.
    #[error("configure TLS 1.3")]
    Versions(#[source] rustls::Error),
}

/// aws-lc-rs with the two cipher suites that HBONE is spoken with.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_AES_128_GCM_SHA256,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    Arc::clone(&PROVIDER)
}

/// What a server presents this certificate with: it takes clients of its own trust domain, each with a certificate.
///
/// # Errors
/// The certificate has no roots.
pub fn server_config(certificate: &WorkloadCertificate) -> Result<Arc<ServerConfig>, TlsError> {
    if let Some(config) = certificate.server.get() {
        return Ok(Arc::clone(config));
    }
    let expected = Expected::trust_domain(certificate.identity().trust_domain.clone());
    let verifier = PeerVerifier::new(certificate.roots(), expected).map_err(TlsError::Roots)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Versions)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(certificate.certified_key()))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::clone(certificate.server.get_or_init(|| Arc::new(config))))
}

/// What a client presents this certificate with to a server that must be `expected`.
///
/// # Errors
/// The certificate has no roots.
pub fn client_config(
    certificate: &WorkloadCertificate,
    expected: &Expected,
) -> Result<Arc<ClientConfig>, TlsError> {
    certificate.clients.get_or_make(expected, || {
        let verifier = PeerVerifier::new(certificate.roots(), expected.clone()).map_err(TlsError::Roots)?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(
                certificate.certified_key(),
            ))));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(config)
    })
}
