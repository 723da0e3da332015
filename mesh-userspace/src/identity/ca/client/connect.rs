//! The way to the authority: TCP, then TLS 1.3 with the roots and the certificate that the files hold.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use zeroize::Zeroizing;

use super::{CaClientConfig, read};
use crate::identity::{ALPN_H2, provider};
use crate::socket;

/// Longest that TCP and TLS may take together.
const CONNECT: Duration = Duration::from_secs(4);
/// How often a connection in use is asked whether it still lives, and how long it may take to say so.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(5);
/// Longest PEM file that is read, in bytes.
const MAX_PEM: u64 = 1 << 20;

/// `HOST:PORT`, an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaAddress {
    /// DNS name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl FromStr for CaAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let is_name = |host: &str| !host.is_empty() && ServerName::try_from(host).is_ok();
            let host =
                bracketed.or_else(|| (!host.contains(':')).then_some(host)).filter(|host| is_name(host))?;
            let port = port.parse().ok().filter(|port| *port != 0)?;
            Some(Self { host: host.to_owned(), port })
        });
        parsed.ok_or_else(|| format!("`{text}` is no HOST:PORT"))
    }
}

impl fmt::Display for CaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Roots of an answer, and what the file of roots held when it was believed.
#[derive(Clone, Default)]
pub(super) struct Learnt {
    file: Arc<[u8]>,
    roots: Vec<CertificateDer<'static>>,
}

/// What the files hold that a connection is made with.
#[derive(PartialEq)]
pub(super) struct Material {
    roots: Vec<u8>,
    /// Roots of the last answer that the file does not hold: while the root is replaced the authority's own certificate
    /// changes over as well, and who is known by the old root has said which one comes.
    learnt: Vec<CertificateDer<'static>>,
    certificate: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
}

impl Material {
    pub(super) async fn read(config: &CaClientConfig, learnt: Learnt) -> Result<Self, String> {
        let roots = read(&config.roots, MAX_PEM).await?.to_vec();
        let held: Vec<_> = CertificateDer::pem_slice_iter(&roots).filter_map(Result::ok).collect();
        // A file that was changed since says itself who is to be believed.
        let mut learnt = if *learnt.file == *roots { learnt.roots } else { Vec::new() };
        learnt.retain(|root| !held.contains(root));
        let certificate = match &config.certificate {
            Some((certificate, key)) => {
                check_mode(key).await?;
                Some((read(certificate, MAX_PEM).await?.to_vec(), read(key, MAX_PEM).await?))
            }
            None => None,
        };
        Ok(Self { roots, learnt, certificate })
    }

    /// What an answer that came this way tells of roots.
    pub(super) fn learn(&self, roots: &[CertificateDer<'static>]) -> Learnt {
        Learnt { file: self.roots.as_slice().into(), roots: roots.to_vec() }
    }

    fn tls(&self) -> Result<ClientConfig, String> {
        let mut trusted = roots(&self.roots)?;
        trusted.add_parsable_certificates(self.learnt.iter().cloned());
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| error.to_string())?
            .with_root_certificates(trusted);
        let mut config = match &self.certificate {
            Some((certificate, key)) => {
                let chain: Vec<_> =
                    CertificateDer::pem_slice_iter(certificate).filter_map(Result::ok).collect();
                if chain.is_empty() {
                    return Err("the client certificate's file holds no certificate in PEM".to_owned());
                }
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|_error| "the client key's file holds no private key in PEM".to_owned())?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| format!("the client certificate cannot be used with its key: {error}"))?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// A private key is its owner's alone.
async fn check_mode(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = tokio::fs::metadata(path).await;
    let metadata = metadata.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o177 != 0 {
        return Err(format!(
            "{} has mode {mode:04o}; a private key must be 0600: chmod 600 it",
            path.display()
        ));
    }
    Ok(())
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let (added, _ignored) =
        store.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    if added == 0 {
        return Err("the file of the authority's roots holds no certificate in PEM".to_owned());
    }
    Ok(store)
}

/// Whether the file holds roots, for a start that should fail at once.
pub(super) fn check_roots(path: &Path) -> Result<(), String> {
    let pem = std::fs::read(path).map_err(|error| {
        format!("cannot read the certificate authority's roots in {}: {error}", path.display())
    })?;
    roots(&pem).map(drop).map_err(|error| format!("{}: {error}", path.display()))
}

/// A channel that connects when it is first used.
pub(super) fn channel(
    address: &CaAddress,
    server_name: &ServerName<'static>,
    material: &Material,
) -> Result<Channel, String> {
    // The scheme is what goes into `:scheme`; TLS is the connector's.
    let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(|error| error.to_string())?;
    let connector = Connector {
        address: address.clone(),
        server_name: server_name.clone(),
        tls: TlsConnector::from(Arc::new(material.tls()?)),
    };
    let endpoint = endpoint.http2_keep_alive_interval(PING).keep_alive_timeout(PONG).user_agent("meshd");
    Ok(endpoint.map_err(|error| error.to_string())?.connect_with_connector_lazy(connector))
}

#[derive(Clone)]
struct Connector {
    address: CaAddress,
    server_name: ServerName<'static>,
    tls: TlsConnector,
}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let connect = async {
            let stream = TcpStream::connect((self.address.host.as_str(), self.address.port)).await?;
            socket::prepare(&stream)?;
            self.tls.connect(self.server_name, stream).await
        };
        let connected = tokio::time::timeout(CONNECT, connect).await;
        let stream = connected.map_err(|_elapsed| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT:?}"))
        })??;
        Ok(TokioIo::new(stream))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        let cases = [
            ("mesh-ca.mesh-system.svc:15012", Some(("mesh-ca.mesh-system.svc", 15012))),
            ("10.0.0.1:15012", Some(("10.0.0.1", 15012))),
            ("[fd00::1]:15012", Some(("fd00::1", 15012))),
            ("fd00::1:15012", None),
            ("mesh-ca", None),
            (":15012", None),
            ("mesh-ca:0", None),
            ("mesh-ca:70000", None),
            ("https://mesh-ca:15012", None),
            ("mesh ca:15012", None),
        ];
        for (text, expected) in cases {
            let parsed = text.parse::<CaAddress>();
            assert_eq!(
                parsed.as_ref().ok().map(|address| (address.host.as_str(), address.port)),
                expected,
                "{text}"
            );
            if let Ok(address) = parsed {
                assert_eq!(address.to_string(), text);
            }
        }
    }
}
