//! What the authority's own server shows in the handshake: a certificate that the authority signs for itself, renewed
//! every minute, and the roots of client certificates, read again when their file changes.

use std::fmt;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rcgen::{KeyPair, SanType};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::metrics::CaMetrics;
use crate::identity::{ALPN_H2, Authority, SignError, provider};

/// Life of the server's certificate.
const LIFE: Duration = Duration::from_hours(24);
/// How often it is signed anew: a root that takes over is soon the one that is shown.
const RENEW: Duration = Duration::from_mins(1);
/// How often the file of client roots is looked at, and what failed is tried again.
const LOOK: Duration = Duration::from_secs(5);
/// Longest file of roots that is read, in bytes.
const MAX_ROOTS: u64 = 1 << 20;

/// Why the server has nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// A name that no certificate can have.
    #[error("`{0}` is neither a DNS name nor an address")]
    Name(String),
    /// No key.
    #[error("make a key for the server's certificate")]
    Key(#[source] rcgen::Error),
    /// The authority does not sign.
    #[error("sign the server's certificate")]
    Sign(#[source] SignError),
    /// The key cannot be used.
    #[error("use the server's certificate")]
    Tls(#[source] rustls::Error),
    /// The roots cannot be read.
    #[error("cannot read the roots of client certificates in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There are none.
    #[error("{} holds no certificate in PEM that can be a root", path.display())]
    NoRoots {
        /// The file.
        path: PathBuf,
    },
    /// They cannot be used.
    #[error("use the roots of client certificates")]
    Verifier(#[source] VerifierBuilderError),
}

/// What the server is called, and whom it asks for certificates.
#[derive(Clone, Debug)]
pub struct ServingConfig {
    /// DNS names and addresses that clients know it by.
    pub names: Vec<String>,
    /// Roots of client certificates; without them none is asked for.
    pub client_roots: Option<PathBuf>,
}

struct State {
    certified: Arc<CertifiedKey>,
    signed: Instant,
    client_roots: Option<Vec<u8>>,
}

/// The TLS configuration in force.
pub struct Serving {
    authority: Arc<Authority>,
    names: Vec<SanType>,
    client_roots: Option<PathBuf>,
    metrics: Arc<CaMetrics>,
    state: Mutex<State>,
    current: ArcSwap<ServerConfig>,
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Serving {
    /// Signs the first certificate.
    ///
    /// # Errors
    /// See [`ServingError`].
    pub fn open(
        authority: Arc<Authority>,
        config: &ServingConfig,
        metrics: Arc<CaMetrics>,
    ) -> Result<Self, ServingError> {
        let names = config.names.iter().map(|name| subject_name(name)).collect::<Result<Vec<_>, _>>()?;
        let client_roots = config.client_roots.as_deref().map(read).transpose()?;
        let certified = sign(&authority, &names, &metrics)?;
        let tls = tls(&certified, config.client_roots.as_deref(), client_roots.as_deref())?;
        let state = State { certified, signed: Instant::now(), client_roots };
        Ok(Self {
            authority,
            names,
            client_roots: config.client_roots.clone(),
            metrics,
            state: Mutex::new(state),
            current: ArcSwap::new(tls),
        })
    }

    /// What the next handshake is to be made with.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Keeps it up to date, for ever. What cannot be read or signed leaves the last state in force.
    pub async fn run(&self) {
        let mut tick = tokio::time::interval(LOOK);
        let mut failing = None;
        loop {
            tick.tick().await;
            let error = self.refresh().err().map(|error| error.to_string());
            if error != failing
                && let Some(error) = &error
            {
                tracing::error!(error, "the server's TLS configuration stays as it is");
            }
            failing = error;
        }
    }

    fn refresh(&self) -> Result<(), ServingError> {
        let client_roots = self.client_roots.as_deref().map(read).transpose()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state.signed.elapsed() >= RENEW;
        if !due && state.client_roots == client_roots {
            return Ok(());
        }
        if due {
            state.certified = sign(&self.authority, &self.names, &self.metrics)?;
            state.signed = Instant::now();
        }
        let tls = tls(&state.certified, self.client_roots.as_deref(), client_roots.as_deref())?;
        state.client_roots = client_roots;
        self.current.store(tls);
        Ok(())
    }
}

fn subject_name(name: &str) -> Result<SanType, ServingError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    // What rustls takes for a name is what clients can ask for.
    let wrong = || ServingError::Name(name.to_owned());
    rustls_pki_types::DnsName::try_from(name).map_err(|_error| wrong())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_error| wrong())?))
}

fn sign(
    authority: &Authority,
    names: &[SanType],
    metrics: &CaMetrics,
) -> Result<Arc<CertifiedKey>, ServingError> {
    let key =
        Zeroizing::new(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(ServingError::Key)?);
    let signed = authority.serving_chain(names, &*key, LIFE).map_err(ServingError::Sign)?;
    metrics.set_serving_expiry(signed.chain.first().and_then(|leaf| end(leaf)).unwrap_or(0));
    metrics.set_root_expiry(signed.roots.iter().filter_map(|root| end(root)).min().unwrap_or(0));
    let der = Zeroizing::new(key.serialize_der());
    let signer =
        any_ecdsa_type(&PrivatePkcs8KeyDer::from(der.as_slice()).into()).map_err(ServingError::Tls)?;
    Ok(Arc::new(CertifiedKey::new(signed.chain, signer)))
}

/// End of a certificate, in Unix seconds.
pub(super) fn end(certificate: &[u8]) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

fn tls(
    certified: &Arc<CertifiedKey>,
    path: Option<&Path>,
    client_roots: Option<&[u8]>,
) -> Result<Arc<ServerConfig>, ServingError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ServingError::Tls)?;
    let builder = match (path, client_roots) {
        (Some(path), Some(pem)) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path, pem)?), provider())
                    .allow_unauthenticated()
                    .build()
                    .map_err(ServingError::Verifier)?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(certified))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn read(path: &Path) -> Result<Vec<u8>, ServingError> {
    let failed = |source| ServingError::Read { path: path.into(), source };
    let mut pem = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_ROOTS).read_to_end(&mut pem).map_err(failed)?;
    Ok(pem)
}

fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, ServingError> {
    let mut store = RootCertStore::empty();
    let (added, _ignored) =
        store.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    if added == 0 { Err(ServingError::NoRoots { path: path.into() }) } else { Ok(store) }
}
