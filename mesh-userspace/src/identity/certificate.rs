//! A workload's certificate with its private key, and the TLS configurations that were made of it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::{Expected, SignedChain, peer_identity, provider};
use crate::model::Identity;

/// Most client configurations kept for one certificate.
const MAX_CLIENT_CONFIGS: usize = 4096;

/// Why what an authority signed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The chain is empty.
    #[error("the authority answered without a certificate")]
    Empty,
    /// The leaf or a root is no X.509 certificate.
    #[error("the authority answered with what is no certificate")]
    Malformed,
    /// The leaf is somebody else's.
    #[error("the authority answered with a certificate of {0}")]
    WrongIdentity(String),
    /// The key cannot be used.
    #[error("use the private key with the certificate")]
    Key(#[source] rustls::Error),
}

/// A certificate chain and its key. Immutable; a renewed one is another value.
pub struct WorkloadCertificate {
    identity: Identity,
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    root_fingerprint: String,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
    pub(super) server: OnceLock<Arc<ServerConfig>>,
    pub(super) clients: ClientConfigs,
}

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl WorkloadCertificate {
    /// Joins what the authority signed with the key (PKCS#8) that it was asked for.
    ///
    /// # Errors
    /// The certificate is not the identity's, or does not belong to the key.
    pub fn new(identity: Identity, signed: SignedChain, key: &[u8]) -> Result<Self, CertificateError> {
        let leaf = signed.chain.first().ok_or(CertificateError::Empty)?;
        match peer_identity(&signed.chain) {
            Ok(named) if named == identity => {}
            Ok(named) => return Err(CertificateError::WrongIdentity(named.to_string())),
            Err(error) => return Err(CertificateError::WrongIdentity(error.to_string())),
        }
        let (_, parsed) =
            x509_parser::parse_x509_certificate(leaf).map_err(|_error| CertificateError::Malformed)?;
        let serial = hex(parsed.raw_serial());
        let not_before = system_time(parsed.validity().not_before.timestamp());
        let not_after = system_time(parsed.validity().not_after.timestamp());
        let mut roots = RootCertStore::empty();
        for root in &signed.roots {
            roots.add(root.clone()).map_err(|_error| CertificateError::Malformed)?;
        }
        let root_fingerprint = signed.roots.first().map(|root| fingerprint(root)).unwrap_or_default();
        let key = any_ecdsa_type(&PrivatePkcs8KeyDer::from(key).into()).map_err(CertificateError::Key)?;
        let certified = CertifiedKey::new(signed.chain, key);
        certified.keys_match().map_err(CertificateError::Key)?;
        Ok(Self {
            identity,
            certified: Arc::new(certified),
            roots: Arc::new(roots),
            root_fingerprint,
            serial,
            not_before,
            not_after,
            server: OnceLock::new(),
            clients: ClientConfigs::default(),
        })
    }

    /// Whose it is.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Chain and key, as rustls takes them.
    pub const fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The roots that its authority trusts.
    pub const fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    /// SHA-256 of the first root, in hexadecimal.
    pub fn root_fingerprint(&self) -> &str {
        &self.root_fingerprint
    }

    /// Serial number in hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Begin of its validity.
    pub const fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of its validity.
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// Client configurations of one certificate, by whom they expect.
#[derive(Default)]
pub(super) struct ClientConfigs(Mutex<HashMap<Expected, Arc<ClientConfig>>>);

impl ClientConfigs {
    /// The configuration for this peer, made at its first use.
    pub(super) fn get_or_make<E>(
        &self,
        expected: &Expected,
        make: impl FnOnce() -> Result<ClientConfig, E>,
    ) -> Result<Arc<ClientConfig>, E> {
        let mut configs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(expected) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(make()?);
        if configs.len() >= MAX_CLIENT_CONFIGS {
            configs.clear();
        }
        configs.insert(expected.clone(), Arc::clone(&config));
        Ok(config)
    }
}

fn system_time(unix_seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0))
}

/// SHA-256 in hexadecimal, from the provider that TLS uses.
fn fingerprint(der: &[u8]) -> String {
    provider()
        .cipher_suites
        .iter()
        .find(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256)
        .and_then(rustls::SupportedCipherSuite::tls13)
        .map(|suite| hex(suite.common.hash_provider.hash(der).as_ref()))
        .unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
