//! The certificates of the identities on this node.
//!
//! One certificate an identity, signed at its first use (one request, however many wait) and renewed at half its life
//! by [`CertificateStore::run`]. While the authority is away a certificate is used until it ends. Connections hold what
//! they were made with; nothing here ends one.
//!
//! The roots are the node's: those of the authority's newest answer are what every certificate trusts in its peers from
//! then on, and certificates that came with others are renewed within seconds. So a node learns all of a change of roots
//! with the first certificate that it renews, and what the authority has dropped is not trusted any longer.

mod entry;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::entry::Entry;
use super::{CertificateError, Roots, SignError, Signer, SigningRequest, WorkloadCertificate};
use crate::model::{Identity, TrustDomain};

/// Life that is asked for where nothing else is configured.
const DEFAULT_VALIDITY: Duration = Duration::from_hours(24);
/// Longest that the authority may take.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);
/// Renewals under way at once.
const MAX_RENEWALS: usize = 16;

/// Why there is no certificate. Cheap to clone: all who wait for it get the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The authority did not sign.
    #[error("get a certificate for {identity}")]
    Sign {
        /// For whom.
        identity: Identity,
        /// Why not.
        #[source]
        source: Arc<SignError>,
    },
    /// What the authority signed cannot be used.
    #[error("use the certificate signed for {identity}")]
    Certificate {
        /// For whom.
        identity: Identity,
        /// Why not.
        #[source]
        source: Arc<CertificateError>,
    },
}

impl StoreError {
    /// Bounded label for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Sign { source, .. } => source.reason(),
            Self::Certificate { .. } => "unusable",
        }
    }
}

/// How a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateState {
    /// Asked for, not there yet.
    Pending,
    /// In use.
    Valid,
    /// In use; the last try to renew it failed.
    RenewalFailing,
    /// In use, in the last quarter of its life: no try to renew it has succeeded since half of it.
    Expiring,
    /// Past its end, or never signed.
    Unavailable,
}

/// One identity's certificate, for `meshctl certs` and metrics.
#[derive(Clone, Debug)]
pub struct CertificateStatus {
    /// Whose.
    pub identity: Identity,
    /// How it stands.
    pub state: CertificateState,
    /// The certificate, if one was ever signed.
    pub certificate: Option<Arc<WorkloadCertificate>>,
    /// When it will be renewed.
    pub renew_at: Option<SystemTime>,
    /// Why the last try failed.
    pub error: Option<StoreError>,
}

type Listener = Box<dyn Fn(&StoreError) + Send + Sync>;

struct Shared {
    signer: Arc<dyn Signer>,
    validity: Duration,
    aliases: Arc<[TrustDomain]>,
    entries: Mutex<BTreeMap<Identity, Arc<Entry>>>,
    /// Taken before `entries` and any entry's progress.
    newest: Mutex<Newest>,
    /// Questions to the authority so far.
    asked: AtomicU64,
    changed: Notify,
    on_failure: OnceLock<Listener>,
}

/// The roots of the authority's newest answer.
#[derive(Default)]
struct Newest {
    roots: Option<Arc<Roots>>,
    /// The number of the question that it answered: an answer to an earlier one that took longer is not newer.
    asked: u64,
}

impl Newest {
    /// Takes note of an answer; returns whether the roots are others than before.
    fn learn(&mut self, roots: &Arc<Roots>, asked: u64) -> bool {
        if asked < self.asked {
            return false;
        }
        self.asked = asked;
        if self.roots.as_ref().is_some_and(|held| held == roots) {
            return false;
        }
        self.roots.replace(Arc::clone(roots)).is_some()
    }
}

/// The certificates of this node. Clones are the same store; usable from any runtime.
#[derive(Clone)]
pub struct CertificateStore(Arc<Shared>);

impl CertificateStore {
    /// A store whose certificates live 24 hours.
    pub fn new(signer: Arc<dyn Signer>) -> Self {
        Self::with_validity(signer, DEFAULT_VALIDITY)
    }

    /// A store that asks for certificates of this life.
    pub fn with_validity(signer: Arc<dyn Signer>, validity: Duration) -> Self {
        Self::accepting(signer, validity, Arc::new([]))
    }

    /// The same, with peers taken from these trust domains beside each identity's own.
    pub fn accepting(signer: Arc<dyn Signer>, validity: Duration, aliases: Arc<[TrustDomain]>) -> Self {
        Self(Arc::new(Shared {
            signer,
            validity,
            aliases,
            entries: Mutex::default(),
            newest: Mutex::default(),
            asked: AtomicU64::new(0),
            changed: Notify::new(),
            on_failure: OnceLock::new(),
        }))
    }

    /// Calls `tell` for every certificate that cannot be had or renewed, from now on. The first caller is the one heard.
    pub fn on_failure(&self, tell: impl Fn(&StoreError) + Send + Sync + 'static) {
        // A second listener is a mistake in the agent, not one to fail for.
        let _ = self.0.on_failure.set(Box::new(tell));
    }

    /// The certificate of `identity`, signed now if there is none.
    ///
    /// Cancel safe. After a failure the same error is given until the next try is due.
    ///
    /// # Errors
    /// The authority does not sign and no earlier certificate is still good.
    pub async fn certificate(&self, identity: &Identity) -> Result<Arc<WorkloadCertificate>, StoreError> {
        let entry = self.entry(identity);
        if let Some(certificate) = entry.progress().usable() {
            return Ok(certificate);
        }
        let _flight = entry.flight.lock().await;
        {
            let progress = entry.progress();
            if let Some(certificate) = progress.usable() {
                return Ok(certificate);
            }
            if let Some(error) = progress.refusal() {
                return Err(error);
            }
        }
        self.fetch(&entry).await
    }

    /// Forgets the certificates of all other identities. Connections made with them go on.
    pub fn retain(&self, wanted: &BTreeSet<Identity>) {
        self.entries().retain(|identity, _| wanted.contains(identity));
    }

    /// Every identity's certificate.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        let entries: Vec<_> = self.entries().values().map(Arc::clone).collect();
        entries.iter().map(|entry| entry.status()).collect()
    }

    /// Renews certificates, for ever. Run once; dropping the future stops renewal.
    pub async fn run(&self) {
        let mut renewals = JoinSet::new();
        let mut busy = BTreeSet::new();
        loop {
            self.warn();
            while renewals.len() < MAX_RENEWALS {
                let Some(entry) = self.next(&busy).filter(|(due, _)| *due <= Instant::now()) else { break };
                let (store, entry) = (self.clone(), entry.1);
                busy.insert(entry.identity.clone());
                renewals.spawn(async move {
                    store.renew(&entry).await;
                    entry.identity.clone()
                });
            }
            let next = self.next(&busy).map(|(due, _)| due).filter(|_| renewals.len() < MAX_RENEWALS);
            let next = next.into_iter().chain(self.next_warning()).min();
            tokio::select! {
                Some(done) = renewals.join_next() => match done {
                    Ok(identity) => { busy.remove(&identity); }
                    // A renewal that panicked is not known by name; the others must not wait for it.
                    Err(error) => {
                        tracing::error!(%error, "certificate renewal failed");
                        busy.clear();
                    }
                },
                () = self.0.changed.notified() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    async fn renew(&self, entry: &Entry) {
        let _flight = entry.flight.lock().await;
        if entry.progress().is_due() {
            // Whoever listens has been told of a failure.
            let _ = self.fetch(entry).await;
        }
    }

    /// Asks the authority and keeps what it says. The caller holds the entry's flight.
    async fn fetch(&self, entry: &Entry) -> Result<Arc<WorkloadCertificate>, StoreError> {
        let asked = self.0.asked.fetch_add(1, Ordering::Relaxed);
        let result = self.sign(&entry.identity).await;
        match &result {
            Ok(certificate) => self.keep(entry, certificate, asked),
            Err(error) => {
                entry.progress().failed(error.clone());
                if let Some(tell) = self.0.on_failure.get() {
                    tell(error);
                }
            }
        }
        self.0.changed.notify_one();
        result
    }

    /// Puts a new certificate in use, and its roots if the authority has changed them.
    fn keep(&self, entry: &Entry, certificate: &Arc<WorkloadCertificate>, asked: u64) {
        let mut newest = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let own = certificate.trusted().current();
        let changed = newest.learn(&own, asked);
        let roots = newest.roots.clone().unwrap_or_else(|| Arc::clone(&own));
        certificate.adopt(&roots);
        let mut progress = entry.progress();
        progress.signed(Arc::clone(certificate));
        if *own != *roots {
            progress.hurry();
        }
        drop(progress);
        if !changed {
            return;
        }
        tracing::info!(roots = ?roots.fingerprints(), "the authority's roots have changed: certificates are renewed");
        let others: Vec<_> = self.entries().values().map(Arc::clone).collect();
        for other in others.iter().filter(|other| other.identity != entry.identity) {
            let mut progress = other.progress();
            if let Some(certificate) = progress.certificate() {
                certificate.adopt(&roots);
                progress.hurry();
            }
        }
    }

    /// Warns of certificates that are near their end, once each.
    fn warn(&self) {
        let entries: Vec<_> = self.entries().values().map(Arc::clone).collect();
        for entry in entries.iter().filter(|entry| entry.progress().warn()) {
            let status = entry.status();
            let left = status
                .certificate
                .and_then(|certificate| certificate.not_after().duration_since(SystemTime::now()).ok());
            let left = left.unwrap_or_default().as_secs();
            let reason = status.error.as_ref().map_or("none", StoreError::reason);
            tracing::warn!(
                identity = %entry.identity,
                seconds_left = left,
                reason,
                "a certificate is in the last quarter of its life and not renewed"
            );
        }
    }

    fn next_warning(&self) -> Option<Instant> {
        self.entries().values().filter_map(|entry| entry.progress().warning()).min()
    }

    async fn sign(&self, identity: &Identity) -> Result<Arc<WorkloadCertificate>, StoreError> {
        let failed = |source| StoreError::Sign { identity: identity.clone(), source: Arc::new(source) };
        let key = Zeroizing::new(
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
                .map_err(|error| failed(SignError::Signing(error)))?,
        );
        let csr = request(identity, &key).map_err(|error| failed(SignError::Signing(error)))?;
        let request = SigningRequest { identity, csr: csr.der(), validity: self.0.validity };
        let signed = tokio::time::timeout(SIGN_TIMEOUT, self.0.signer.sign(request))
            .await
            .map_err(|_elapsed| failed(SignError::Unavailable("no answer in time".to_owned())))?
            .map_err(failed)?;
        let certificate =
            WorkloadCertificate::new(identity.clone(), signed, key.serialized_der()).map_err(|source| {
                StoreError::Certificate { identity: identity.clone(), source: Arc::new(source) }
            })?;
        Ok(Arc::new(certificate.accepting(&self.0.aliases)))
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Identity, Arc<Entry>>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, identity: &Identity) -> Arc<Entry> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(identity) {
            return Arc::clone(entry);
        }
        let entry = Arc::new(Entry::new(identity.clone()));
        entries.insert(identity.clone(), Arc::clone(&entry));
        entry
    }

    /// The entry that is due first among those that nothing is done about.
    fn next(&self, busy: &BTreeSet<Identity>) -> Option<(Instant, Arc<Entry>)> {
        self.entries()
            .values()
            .filter(|entry| !busy.contains(&entry.identity))
            .filter_map(|entry| Some((entry.progress().due()?, Arc::clone(entry))))
            .min_by_key(|(due, _)| *due)
    }
}

/// The request for a certificate: it names the identity and carries the public key.
fn request(identity: &Identity, key: &KeyPair) -> Result<rcgen::CertificateSigningRequest, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![rcgen::SanType::URI(identity.to_string().try_into()?)];
    params.serialize_request(key)
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
