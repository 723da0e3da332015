//! An authority in memory, and certificates that are wrong in one way each.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::BoxFuture;
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::authority::{leaf_params, root_params};
use super::{SignError, SignedChain, Signer, SigningRequest};
use crate::model::{Identity, TrustDomain};

pub(super) fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

pub(super) fn identity(account: &str) -> Identity {
    Identity::new(trust_domain(), "default", account).unwrap()
}

/// A folder that goes away with its test.
pub(super) struct TempDir(PathBuf);

impl TempDir {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mesh-identity-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Clones are the same authority.
#[derive(Clone)]
pub(super) struct TestAuthority {
    key: Arc<KeyPair>,
    pub(super) root: CertificateDer<'static>,
}

impl TestAuthority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let root = root_params(&trust_domain()).unwrap().self_signed(&key).unwrap();
        Self { root: root.der().clone(), key: Arc::new(key) }
    }

    /// Signs what the test made of a proper leaf's parameters.
    pub(super) fn leaf(
        &self,
        identity: &Identity,
        key: &KeyPair,
        spoil: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = leaf_params(identity).unwrap();
        params.not_before = OffsetDateTime::now_utc() - time::Duration::minutes(2);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::hours(1);
        spoil(&mut params);
        let issuer = Issuer::from_ca_cert_der(&self.root, &*self.key).unwrap();
        params.signed_by(key, &issuer).unwrap().der().clone()
    }
}

impl TestAuthority {
    /// Signs what it is asked.
    pub(super) fn sign_now(&self, request: SigningRequest<'_>) -> Result<SignedChain, SignError> {
        let csr = CertificateSigningRequestParams::from_der(request.csr).map_err(SignError::Signing)?;
        let mut params = leaf_params(request.identity).unwrap();
        params.not_before = OffsetDateTime::now_utc() - time::Duration::minutes(2);
        params.not_after = OffsetDateTime::now_utc() + request.validity;
        params.serial_number = Some(fastrand::u64(1..).to_be_bytes().to_vec().into());
        let issuer = Issuer::from_ca_cert_der(&self.root, &*self.key).unwrap();
        let leaf = params.signed_by(&csr.public_key, &issuer).map_err(SignError::Signing)?;
        Ok(SignedChain { chain: vec![leaf.der().clone()], roots: vec![self.root.clone()] })
    }
}

impl Signer for TestAuthority {
    fn sign<'a>(&'a self, request: SigningRequest<'a>) -> BoxFuture<'a, Result<SignedChain, SignError>> {
        Box::pin(async move { self.sign_now(request) })
    }
}
