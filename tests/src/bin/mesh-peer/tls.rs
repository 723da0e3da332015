//! TLS that the application speaks itself: the client asks for a server name, the server says who it is and which name it was asked for.

use std::io;
use std::sync::Arc;

use mesh_tests::peer::Digest;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::tally::{Failure, Seen};

/// Sends a `ClientHello` that asks for this name, and reads who answers; a name that is an address asks for none.
pub(crate) async fn ask(stream: &mut TcpStream, name: &str) -> Result<Seen, Failure> {
    let provider = aws_lc_rs::default_provider();
    let config = ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).await?;
    let answer: Value = serde_json::from_slice(&answer).map_err(|_error| Failure("mismatch".to_owned()))?;
    let field = |name: &str| answer[name].as_str().map(str::to_owned);
    Ok(Seen { name: field("name"), received: answer.to_string().len() as u64, ..Seen::default() })
}

/// Answers one client.
pub(crate) async fn answer(stream: TcpStream, name: &str, digest: &mut Digest) -> io::Result<()> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = CertificateParams::default().self_signed(&key).map_err(io::Error::other)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key)
        })
        .map_err(io::Error::other)?;
    let mut tls = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
    let asked = tls.get_ref().1.server_name().unwrap_or_default().to_owned();
    digest.update(asked.as_bytes());
    tls.write_all(json!({ "name": name, "server_name": asked }).to_string().as_bytes()).await?;
    tls.shutdown().await
}

/// Takes every server: who it is does not matter here.
#[derive(Debug)]
struct AnyServer(CryptoProvider);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
