//! TLS configurations, made once for a certificate and a peer, never for a connection.
//!
//! They live with the certificate that they present: a renewed certificate begins with none.

use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};

use super::{Expected, PeerVerifier, WorkloadCertificate};

/// The one application protocol: HTTP/2, which HBONE is spoken in.
pub const ALPN_H2: &[u8] = b"h2";

/// Why a configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
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

/// What a server presents this certificate with: it takes clients of the trust domains that the certificate accepts, each
/// with a certificate of its own.
///
/// # Errors
/// The provider does not do TLS 1.3.
pub fn server_config(certificate: &WorkloadCertificate) -> Result<Arc<ServerConfig>, TlsError> {
    if let Some(config) = certificate.server.get() {
        return Ok(Arc::clone(config));
    }
    let expected = Expected::TrustDomains(Arc::clone(certificate.accepted()));
    let verifier = PeerVerifier::new(certificate.trusted().clone(), expected);
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

/// What a client presents this certificate with to a server that must be `expected`. Trust domains that the certificate
/// accepts stand for each other, as Istio's `trustDomainAliases` do.
///
/// # Errors
/// The provider does not do TLS 1.3.
pub fn client_config(
    certificate: &WorkloadCertificate,
    expected: &Expected,
) -> Result<Arc<ClientConfig>, TlsError> {
    certificate.clients.get_or_make(expected, || {
        let expected = expected.clone().with_aliases(certificate.accepted());
        let verifier = PeerVerifier::new(certificate.trusted().clone(), expected);
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
