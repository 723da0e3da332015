//! Certificates while time passes, the authority is away, or its roots change.

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
    tokio::time::sleep(Duration::from_hours(17)).await;
    assert_eq!(store.certificates()[0].state, CertificateState::RenewalFailing);
    tokio::time::sleep(Duration::from_hours(3)).await;
    assert!(Arc::ptr_eq(&first, &store.certificate(&a).await.unwrap()));
    assert_eq!(store.certificates()[0].state, CertificateState::Expiring);
    let tries = asked(&signer);
    // Eight to nine hours of one try in about a minute.
    assert!((350..800).contains(&tries), "{tries}");
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

/// Signs with the first of its authorities, and answers with the roots of all.
struct Rotating(Mutex<Vec<TestAuthority>>, AtomicUsize);

impl Rotating {
    fn set(&self, authorities: Vec<TestAuthority>) {
        *self.0.lock().unwrap() = authorities;
    }
}

impl Signer for Rotating {
    fn sign<'a>(&'a self, request: SigningRequest<'a>) -> BoxFuture<'a, Result<SignedChain, SignError>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let authorities = self.0.lock().unwrap();
        let mut signed = authorities[0].sign_now(request);
        if let Ok(signed) = &mut signed {
            signed.roots = authorities.iter().map(|authority| authority.root.clone()).collect();
        }
        Box::pin(async move { signed })
    }
}

fn rotating(authority: &TestAuthority) -> (CertificateStore, Arc<Rotating>) {
    let signer = Arc::new(Rotating(Mutex::new(vec![authority.clone()]), AtomicUsize::new(0)));
    (CertificateStore::with_validity(Arc::<Rotating>::clone(&signer), Duration::from_hours(24)), signer)
}

/// The fingerprints of the roots that each certificate trusts.
fn trusted(store: &CertificateStore) -> BTreeSet<Vec<String>> {
    let of = |status: &CertificateStatus| {
        status.certificate.as_ref().unwrap().trusted().current().fingerprints().to_vec()
    };
    store.certificates().iter().map(of).collect()
}

fn fingerprints(authorities: &[&TestAuthority]) -> Vec<String> {
    let roots: Vec<_> = authorities.iter().map(|authority| authority.root.clone()).collect();
    Roots::new(&roots).unwrap().fingerprints().to_vec()
}

#[tokio::test(start_paused = true)]
async fn all_follow_when_the_roots_change() {
    let (old, new) = (TestAuthority::new(), TestAuthority::new());
    let (store, signer) = rotating(&old);
    for account in ["a", "b", "c", "d"] {
        store.certificate(&identity(account)).await.unwrap();
    }
    let background = store.clone();
    let task = tokio::spawn(async move { background.run().await });
    let issuers = |store: &CertificateStore| -> BTreeSet<String> {
        store
            .certificates()
            .iter()
            .map(|status| status.certificate.as_ref().unwrap().issuer().into())
            .collect()
    };
    // Each step is learnt with the first certificate that is signed after it: here, that of a new account.
    let steps = [
        ("add", vec![old.clone(), new.clone()], fingerprints(&[&old, &new]), &old),
        ("switch", vec![new.clone(), old.clone()], fingerprints(&[&old, &new]), &new),
        ("drop", vec![new.clone()], fingerprints(&[&new]), &new),
    ];
    for (step, authorities, roots, signing) in steps {
        signer.set(authorities);
        let before = signer.1.load(Ordering::Relaxed);
        store.certificate(&identity(&format!("new-{step}"))).await.unwrap();
        if step == "switch" {
            // The same roots are trusted, so nobody hurries: half a life later all are from the new one.
            assert_eq!(signer.1.load(Ordering::Relaxed), before + 1);
            tokio::time::sleep(Duration::from_hours(12)).await;
        } else {
            assert!(trusted(&store).contains(&roots), "{step}: at once where its own root is among them");
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert!(signer.1.load(Ordering::Relaxed) > before + 4, "{step}: all are renewed within seconds");
        }
        assert_eq!(trusted(&store), BTreeSet::from([roots]), "{step}");
        assert_eq!(issuers(&store), BTreeSet::from_iter(fingerprints(&[signing])), "{step}");
    }
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_is_trusted_no_longer_and_nobody_is_left_without_its_own_root() {
    let (old, new) = (TestAuthority::new(), TestAuthority::new());
    let (store, signer) = rotating(&old);
    signer.set(vec![old.clone(), new.clone()]);
    let late = store.certificate(&identity("late")).await.unwrap();
    signer.set(vec![new.clone(), old.clone()]);
    let early = store.certificate(&identity("early")).await.unwrap();
    assert_eq!(trusted(&store), BTreeSet::from([fingerprints(&[&old, &new])]));
    // Nothing runs that would renew them: `early` trusts the new root alone at once, `late` keeps its own.
    signer.set(vec![new.clone()]);
    store.certificate(&identity("next")).await.unwrap();
    assert_eq!(early.trusted().current().fingerprints(), fingerprints(&[&new]));
    assert_eq!(late.trusted().current().fingerprints(), fingerprints(&[&old, &new]));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_long_on_its_way_is_not_news() {
    let (old, new) = (TestAuthority::new(), TestAuthority::new());
    let (one, other) = (
        Roots::new(std::slice::from_ref(&old.root)).unwrap(),
        Roots::new(&[old.root.clone(), new.root.clone()]).unwrap(),
    );
    let (one, other) = (Arc::new(one), Arc::new(other));
    let mut newest = Newest::default();
    assert!(!newest.learn(&one, 1), "the first is no change");
    assert!(newest.learn(&other, 3));
    assert!(!newest.learn(&one, 2), "asked before the other was");
    assert_eq!(newest.roots.as_ref(), Some(&other));
    assert!(!newest.learn(&other, 4) && newest.learn(&one, 5));
}

#[tokio::test(start_paused = true)]
async fn authorities_that_disagree_do_not_keep_a_node_busy() {
    let (old, new) = (TestAuthority::new(), TestAuthority::new());
    let (store, signer) = rotating(&old);
    for account in ["a", "b", "c"] {
        store.certificate(&identity(account)).await.unwrap();
    }
    let background = store.clone();
    let task = tokio::spawn(async move { background.run().await });
    let before = signer.1.load(Ordering::Relaxed);
    store.certificate(&identity("d")).await.unwrap();
    for round in 0..600 {
        signer.set(if round % 2 == 0 { vec![old.clone(), new.clone()] } else { vec![old.clone()] });
        if round % 20 == 0 {
            store.certificate(&identity(&format!("x{round}"))).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let asked = signer.1.load(Ordering::Relaxed) - before;
    // Ten minutes, 34 accounts at most: each once at its first use, and about once a minute.
    assert!(asked < 34 * 12, "{asked}");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn an_end_is_warned_of_once() {
    let (store, signer) = store(Duration::from_hours(24));
    store.certificate(&identity("a")).await.unwrap();
    signer.away.store(true, Ordering::Relaxed);
    let entry = store.entry(&identity("a"));
    tokio::time::sleep(Duration::from_hours(17)).await;
    assert!(!entry.progress().warn());
    tokio::time::sleep(Duration::from_hours(2)).await;
    assert!(entry.progress().warn());
    assert!(!entry.progress().warn());
}

/// An authority whose answer no peer would take.
struct Wrong(TestAuthority, TestAuthority);

impl Signer for Wrong {
    fn sign<'a>(&'a self, request: SigningRequest<'a>) -> BoxFuture<'a, Result<SignedChain, SignError>> {
        let mut signed = self.0.sign_now(request);
        if let Ok(signed) = &mut signed {
            signed.roots = vec![self.1.root.clone()];
        }
        Box::pin(async move { signed })
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_own_roots_do_not_vouch_for_is_not_used() {
    let store = CertificateStore::new(Arc::new(Wrong(TestAuthority::new(), TestAuthority::new())));
    let error = store.certificate(&identity("a")).await.unwrap_err();
    assert_eq!(error.reason(), "unusable");
    assert_eq!(store.certificates()[0].state, CertificateState::Unavailable);
}
