//! The certificates of the identities on this node.
//!
//! One certificate an identity, signed at its first use (one request, however many wait) and renewed at half its life
//! by [`CertificateStore::run`]. While the authority is away a certificate is used until it ends. Connections hold what
//! they were made with; nothing here ends one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{CertificateError, SignError, Signer, SigningRequest, WorkloadCertificate};
use crate::model::Identity;

/// Life that is asked for where nothing else is configured.
const DEFAULT_VALIDITY: Duration = Duration::from_hours(24);
/// Wait after the first failure; doubled with each.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait between two tries.
const LAST_RETRY: Duration = Duration::from_mins(1);
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

struct Current {
    certificate: Arc<WorkloadCertificate>,
    expires: Instant,
}

#[derive(Default)]
struct Progress {
    current: Option<Current>,
    /// When [`CertificateStore::run`] has work with it, and when a first use may try again.
    due: Option<Instant>,
    failures: u32,
    error: Option<StoreError>,
}

impl Progress {
    fn usable(&self) -> Option<Arc<WorkloadCertificate>> {
        // Both clocks: the monotonic one stands still while the machine sleeps, the other may be set.
        let usable = |current: &&Current| {
            Instant::now() < current.expires && SystemTime::now() < current.certificate.not_after()
        };
        let current = self.current.as_ref().filter(usable)?;
        Some(Arc::clone(&current.certificate))
    }
}

struct Entry {
    identity: Identity,
    progress: Mutex<Progress>,
    /// Held while the authority is asked.
    flight: tokio::sync::Mutex<()>,
}

impl Entry {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Listener = Box<dyn Fn(&StoreError) + Send + Sync>;

struct Shared {
    signer: Arc<dyn Signer>,
    validity: Duration,
    entries: Mutex<BTreeMap<Identity, Arc<Entry>>>,
    changed: Notify,
    on_failure: OnceLock<Listener>,
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
        Self(Arc::new(Shared {
            signer,
            validity,
            entries: Mutex::default(),
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
            if let (Some(error), Some(due)) = (&progress.error, progress.due)
                && Instant::now() < due
            {
                return Err(error.clone());
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
        entries.iter().map(|entry| status(entry)).collect()
    }

    /// Renews certificates, for ever. Run once; dropping the future stops renewal.
    pub async fn run(&self) {
        let mut renewals = JoinSet::new();
        let mut busy = BTreeSet::new();
        loop {
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
        if entry.progress().due.is_some_and(|due| due <= Instant::now())
            && let Err(error) = self.fetch(entry).await
        {
            tracing::warn!(
                identity = %entry.identity,
                reason = error.reason(),
                error = &error as &dyn std::error::Error,
                "certificate not renewed"
            );
        }
    }

    /// Asks the authority and keeps what it says. The caller holds the entry's flight.
    async fn fetch(&self, entry: &Entry) -> Result<Arc<WorkloadCertificate>, StoreError> {
        let result = self.sign(&entry.identity).await;
        let now = Instant::now();
        let mut progress = entry.progress();
        match &result {
            Ok(certificate) => {
                let left = certificate.not_after().duration_since(SystemTime::now()).unwrap_or_default();
                // Half of its life, a tenth of that earlier or later.
                progress.due = Some(now + left.mul_f64(0.5 * (0.9 + 0.2 * fastrand::f64())));
                progress.current =
                    Some(Current { certificate: Arc::clone(certificate), expires: now + left });
                progress.failures = 0;
                progress.error = None;
            }
            Err(error) => {
                let wait = FIRST_RETRY.saturating_mul(1 << progress.failures.min(6)).min(LAST_RETRY);
                progress.failures = progress.failures.saturating_add(1);
                progress.due = Some(now + wait.mul_f64(0.75 + 0.5 * fastrand::f64()));
                progress.error = Some(error.clone());
                if let Some(tell) = self.0.on_failure.get() {
                    tell(error);
                }
            }
        }
        drop(progress);
        self.0.changed.notify_one();
        result
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
        Ok(Arc::new(certificate))
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Identity, Arc<Entry>>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, identity: &Identity) -> Arc<Entry> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(identity) {
            return Arc::clone(entry);
        }
        let entry = Arc::new(Entry {
            identity: identity.clone(),
            progress: Mutex::default(),
            flight: tokio::sync::Mutex::default(),
        });
        entries.insert(identity.clone(), Arc::clone(&entry));
        entry
    }

    /// The entry that is due first among those that nothing is done about.
    fn next(&self, busy: &BTreeSet<Identity>) -> Option<(Instant, Arc<Entry>)> {
        self.entries()
            .values()
            .filter(|entry| !busy.contains(&entry.identity))
            .filter_map(|entry| Some((entry.progress().due?, Arc::clone(entry))))
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

fn status(entry: &Entry) -> CertificateStatus {
    let progress = entry.progress();
    let state = match (progress.usable(), &progress.error) {
        (Some(_), None) => CertificateState::Valid,
        (Some(_), Some(_)) => CertificateState::RenewalFailing,
        (None, None) if progress.current.is_none() => CertificateState::Pending,
        (None, _) => CertificateState::Unavailable,
    };
    CertificateStatus {
        identity: entry.identity.clone(),
        state,
        certificate: progress.current.as_ref().map(|current| Arc::clone(&current.certificate)),
        renew_at: progress.due.map(|due| SystemTime::now() + due.saturating_duration_since(Instant::now())),
        error: progress.error.clone(),
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use futures_util::future::{BoxFuture, join_all};

    use super::*;
    use crate::identity::SignedChain;
    use crate::identity::testing::{TestAuthority, identity};

    /// Signs like an authority, counts, and can be away.
    struct Counting {
        authority: TestAuthority,
        asked: AtomicUsize,
        away: AtomicBool,
    }

    impl Signer for Counting {
        fn sign<'a>(&'a self, request: SigningRequest<'a>) -> BoxFuture<'a, Result<SignedChain, SignError>> {
            Box::pin(async move {
                self.asked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
                if self.away.load(Ordering::Relaxed) {
                    return Err(SignError::Unavailable("away".to_owned()));
                }
                self.authority.sign(request).await
            })
        }
    }

    fn store(validity: Duration) -> (CertificateStore, Arc<Counting>) {
        let signer = Arc::new(Counting {
            authority: TestAuthority::new(),
            asked: AtomicUsize::new(0),
            away: AtomicBool::new(false),
        });
        (CertificateStore::with_validity(Arc::<Counting>::clone(&signer), validity), signer)
    }

    fn asked(signer: &Counting) -> usize {
        signer.asked.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_whoever_waits() {
        let (store, signer) = store(Duration::from_hours(24));
        let a = identity("a");
        let all = join_all((0..20).map(|_| store.certificate(&a))).await;
        let first = all[0].as_ref().unwrap();
        assert!(all.iter().all(|each| Arc::ptr_eq(each.as_ref().unwrap(), first)));
        assert_eq!(asked(&signer), 1);
        assert_eq!(store.certificates()[0].state, CertificateState::Valid);
    }

    #[tokio::test(start_paused = true)]
    async fn renewed_at_half_its_life() {
        let (store, signer) = store(Duration::from_hours(24));
        let a = identity("a");
        let first = store.certificate(&a).await.unwrap();
        let background = store.clone();
        let task = tokio::spawn(async move { background.run().await });
        tokio::time::sleep(Duration::from_hours(10)).await;
        assert_eq!(asked(&signer), 1);
        tokio::time::sleep(Duration::from_hours(4)).await;
        assert_eq!(asked(&signer), 2);
        let second = store.certificate(&a).await.unwrap();
        assert_ne!(first.serial(), second.serial());
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn used_until_its_end_while_the_authority_is_away() {
        let (store, signer) = store(Duration::from_hours(24));
        let a = identity("a");
        let first = store.certificate(&a).await.unwrap();
        signer.away.store(true, Ordering::Relaxed);
        let background = store.clone();
        let task = tokio::spawn(async move { background.run().await });
        tokio::time::sleep(Duration::from_hours(20)).await;
        assert!(Arc::ptr_eq(&first, &store.certificate(&a).await.unwrap()));
        assert_eq!(store.certificates()[0].state, CertificateState::RenewalFailing);
        let tries = asked(&signer);
        // Six to eight hours of one try in about a minute.
        assert!((300..700).contains(&tries), "{tries}");
        tokio::time::sleep(Duration::from_hours(5)).await;
        assert_eq!(store.certificate(&a).await.unwrap_err().reason(), "unavailable");
        assert_eq!(store.certificates()[0].state, CertificateState::Unavailable);
        signer.away.store(false, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_mins(2)).await;
        assert_eq!(store.certificates()[0].state, CertificateState::Valid);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_first_use_is_not_repeated_at_once() {
        let (store, signer) = store(Duration::from_hours(24));
        signer.away.store(true, Ordering::Relaxed);
        let a = identity("a");
        assert!(store.certificate(&a).await.is_err());
        assert!(store.certificate(&a).await.is_err());
        assert_eq!(asked(&signer), 1);
        signer.away.store(false, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(store.certificate(&a).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_wanted_goes() {
        let (store, _signer) = store(Duration::from_hours(24));
        let kept = store.certificate(&identity("a")).await.unwrap();
        let gone = store.certificate(&identity("b")).await.unwrap();
        store.retain(&BTreeSet::from([identity("a")]));
        assert_eq!(store.certificates().len(), 1);
        assert!(Arc::ptr_eq(&kept, &store.certificate(&identity("a")).await.unwrap()));
        // Whoever has it keeps it.
        assert_eq!(gone.identity(), &identity("b"));
    }

    #[tokio::test]
    async fn short_lives_work() {
        let (store, _signer) = store(Duration::from_secs(5));
        let certificate = store.certificate(&identity("a")).await.unwrap();
        let left = certificate.not_after().duration_since(SystemTime::now()).unwrap();
        assert!(left <= Duration::from_secs(5));
    }
}
