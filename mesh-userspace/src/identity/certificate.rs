//! A workload's certificate with its private key, and the TLS configurations that were made of it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::roots::hex;
use super::{Expected, Roots, RootsError, SignedChain, TrustedRoots, peer_identity};
use crate::model::{Identity, TrustDomain};

/// Most client configurations kept for one certificate.
const MAX_CLIENT_CONFIGS: usize = 4096;

/// Why what an authority signed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The chain is empty.
    #[error("the authority answered without a certificate")]
    Empty,
    /// The leaf is no X.509 certificate.
    #[error("the authority answered with what is no certificate")]
    Malformed,
    /// The roots cannot be used.
    #[error("use the roots that the authority answered with")]
    Roots(#[source] RootsError),
    /// Peers that trust what the authority trusts would not take it: expired, of another root, or a chain with a gap.
    #[error(
        "the authority answered with a certificate that its own roots do not make valid: compare the clocks"
    )]
    Untrusted,
    /// The leaf is somebody else's.
    #[error("the authority answered with a certificate of {0}")]
    WrongIdentity(String),
    /// The key cannot be used.
    #[error("use the private key with the certificate")]
    Key(#[source] rustls::Error),
}

/// A certificate chain and its key, which never change: a renewed one is another value. What it trusts in others follows
/// the newest roots, as long as they are roots of its own too.
pub struct WorkloadCertificate {
    identity: Identity,
    certified: Arc<CertifiedKey>,
    accepted: Arc<[TrustDomain]>,
    trusted: TrustedRoots,
    issuer: String,
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
    /// Joins what the authority signed with the key (PKCS#8) that it was asked for. Peers are taken from the identity's own
    /// trust domain.
    ///
    /// # Errors
    /// The certificate is not the identity's, does not belong to the key, or is not valid for the authority's own roots.
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
        let roots = Roots::new(&signed.roots).map_err(CertificateError::Roots)?;
        let issuer = roots.issuer_of(&signed.chain).ok_or(CertificateError::Untrusted)?.to_owned();
        let key = any_ecdsa_type(&PrivatePkcs8KeyDer::from(key).into()).map_err(CertificateError::Key)?;
        let certified = CertifiedKey::new(signed.chain, key);
        certified.keys_match().map_err(CertificateError::Key)?;
        Ok(Self {
            accepted: Arc::new([identity.trust_domain.clone()]),
            identity,
            certified: Arc::new(certified),
            trusted: TrustedRoots::new(Arc::new(roots)),
            issuer,
            serial,
            not_before,
            not_after,
            server: OnceLock::new(),
            clients: ClientConfigs::default(),
        })
    }

    /// With peers taken from these trust domains too.
    #[must_use]
    pub fn accepting(mut self, aliases: &[TrustDomain]) -> Self {
        let own = self.identity.trust_domain.clone();
        let others = aliases.iter().filter(|alias| **alias != own).cloned();
        self.accepted = std::iter::once(own.clone()).chain(others).collect();
        self
    }

    /// Trusts these roots in peers from the next handshake on, if they are roots of this certificate too: whoever holds a
    /// certificate that its own side does not trust is better served by the roots that it came with, until it is renewed.
    pub(super) fn adopt(&self, roots: &Arc<Roots>) {
        if roots.issuer_of(self.chain()).is_some() {
            self.trusted.replace(Arc::clone(roots));
        }
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

    /// The trust domains that peers are taken from; the identity's own is the first.
    pub fn accepted(&self) -> &Arc<[TrustDomain]> {
        &self.accepted
    }

    /// The roots that peers are verified by.
    pub const fn trusted(&self) -> &TrustedRoots {
        &self.trusted
    }

    /// SHA-256 of the root that it leads to, in hexadecimal.
    pub fn issuer(&self) -> &str {
        &self.issuer
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
