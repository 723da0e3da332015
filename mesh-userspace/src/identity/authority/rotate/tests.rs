//! Each step, out of turn, too early, and with a crash at each of its points.

use std::os::unix::fs::PermissionsExt;

use rcgen::KeyPair;

use super::*;
use crate::identity::authority::Authority;
use crate::identity::testing::{TempDir, identity, trust_domain};
use crate::identity::{Roots, Signer, SigningRequest};

const LIFE: Duration = Duration::from_hours(24);
const STEPS: [RotationStep; 3] = [RotationStep::Add, RotationStep::Switch, RotationStep::Drop];

fn folder() -> (TempDir, Rotation) {
    let dir = TempDir::new();
    Authority::open(dir.path(), &trust_domain()).unwrap();
    let rotation = Rotation::new(dir.path().to_owned(), LIFE);
    (dir, rotation)
}

fn chain(authority: &Authority) -> Vec<CertificateDer<'static>> {
    let key = KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let identity = identity("a");
    let request = SigningRequest { identity: &identity, csr: csr.der(), validity: LIFE };
    futures_util::FutureExt::now_or_never(authority.sign(request)).unwrap().unwrap().chain
}

fn roots(authority: &Authority) -> Roots {
    Roots::new(&authority.roots()).unwrap()
}

#[test]
fn a_root_is_replaced_in_three_steps() {
    let (dir, rotation) = folder();
    let authority = Authority::open(dir.path(), &trust_domain()).unwrap();
    let first = roots(&authority);
    let old = chain(&authority);
    assert_eq!(rotation.status().unwrap().phase, Phase::Settled);

    let added = rotation.run(RotationStep::Add, false).unwrap();
    assert!(matches!(added.phase, Phase::Added(_)) && added.trusted.len() == 2, "{added}");
    assert!(added.to_string().contains("`meshd rotate-root switch`, in 12h0m"), "{added}");
    assert_eq!(fs::metadata(dir.path().join(NEXT_KEY)).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(first.issuer_of(&chain(&authority)).is_some(), "the old root signs");

    let switched = rotation.run(RotationStep::Switch, true).unwrap();
    assert!(matches!(switched.phase, Phase::Switched(_)), "{switched}");
    let new = chain(&authority);
    assert!(first.issuer_of(&new).is_none(), "the new root signs, in the authority that was open");
    let both = roots(&authority);
    assert!(both.issuer_of(&new).is_some() && both.issuer_of(&old).is_some());

    let dropped = rotation.run(RotationStep::Drop, true).unwrap();
    assert_eq!((dropped.phase, dropped.trusted.len(), dropped.next), (Phase::Settled, 1, None));
    let last = roots(&authority);
    assert!(last.issuer_of(&new).is_some() && last.issuer_of(&old).is_none());
    assert_eq!(authority.problem(), None);
    let left: Vec<_> =
        [NEXT_CERT, NEXT_KEY, OLD_CERT].into_iter().filter(|name| dir.path().join(name).exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_step_has_its_turn_and_its_time() {
    let (dir, rotation) = folder();
    let refused = |step, now| rotation.run(step, now).unwrap_err().to_string();
    for step in [RotationStep::Switch, RotationStep::Drop] {
        assert!(refused(step, true).contains("the next step is `add`"), "{}", refused(step, true));
    }
    rotation.run(RotationStep::Add, false).unwrap();
    assert!(refused(RotationStep::Add, true).contains("the next step is `switch`"));
    assert!(refused(RotationStep::Switch, false).contains("safe in 12h0m"));
    let past = |name: &str, by: Duration| {
        let file = fs::File::options().append(true).open(dir.path().join(name)).unwrap();
        file.set_modified(SystemTime::now() - by).unwrap();
    };
    past(ROOT, Duration::from_hours(12).saturating_sub(Duration::from_mins(1)));
    assert!(refused(RotationStep::Switch, false).contains("safe in 60s"));
    past(ROOT, LIFE / 2);
    rotation.run(RotationStep::Switch, false).unwrap();
    assert!(refused(RotationStep::Drop, false).contains("safe in 24h0m"));
    past(OLD_CERT, LIFE);
    rotation.run(RotationStep::Drop, false).unwrap();
}

/// The folder after each action of each step is one to sign with, for peers of the state before and after; and the
/// step, run again, comes to the same end.
#[test]
fn a_crash_at_any_point_leaves_an_authority() {
    for (index, step) in STEPS.into_iter().enumerate() {
        let actions = |rotation: &Rotation| rotation.plan(step, true).unwrap().collect::<Vec<_>>();
        let prepared = || {
            let (dir, rotation) = folder();
            for step in &STEPS[..index] {
                rotation.run(*step, true).unwrap();
            }
            (dir, rotation)
        };
        let (_dir, rotation) = prepared();
        let count = actions(&rotation).len();
        for done in 0..=count {
            let (dir, rotation) = prepared();
            let running = Authority::open(dir.path(), &trust_domain()).unwrap();
            let before = roots(&running);
            for action in actions(&rotation).iter().take(done) {
                action.apply(dir.path()).unwrap();
            }
            // What a crash in the middle of the next write leaves.
            fs::write(dir.path().join(".ca-cert.pem.new"), "-----BEGIN CERT").unwrap();
            let opened = Authority::open(dir.path(), &trust_domain());
            let opened = opened.unwrap_or_else(|error| panic!("{step} after {done}: {error}"));
            for authority in [&opened, &running] {
                let signed = chain(authority);
                assert!(before.issuer_of(&signed).is_some(), "{step} after {done}: trusted before");
                assert!(roots(authority).issuer_of(&signed).is_some(), "{step} after {done}: trusted now");
                assert_eq!(authority.problem(), None, "{step} after {done}");
            }
            if done < count {
                rotation.run(step, true).unwrap();
            }
            let status = rotation.status().unwrap();
            let is_done = match step {
                RotationStep::Add => matches!(status.phase, Phase::Added(_)) && status.trusted.len() == 2,
                RotationStep::Switch => matches!(status.phase, Phase::Switched(_)),
                RotationStep::Drop => status.phase == Phase::Settled && status.trusted.len() == 1,
            };
            assert!(is_done, "{step} after {done}: {status}");
        }
    }
}

#[test]
fn what_an_operator_has_put_beside_the_root_stays() {
    let (dir, rotation) = folder();
    let (other, _key) = make_root("elsewhere").unwrap();
    let own = fs::read_to_string(dir.path().join(ROOT)).unwrap();
    let bundle = format!("# another cluster's\n{other}# ours\n{own}");
    fs::write(dir.path().join(ROOT), bundle.trim_end()).unwrap();
    for step in STEPS {
        rotation.run(step, true).unwrap();
    }
    let after = fs::read_to_string(dir.path().join(ROOT)).unwrap();
    assert!(after.starts_with(&format!("# another cluster's\n{other}# ours\n")), "{after}");
    assert_eq!(rotation.status().unwrap().trusted.len(), 2);
}

#[test]
fn an_intermediate_is_its_owners() {
    let (dir, rotation) = folder();
    // The folder's root signs an intermediate, which takes its place.
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let root = rcgen::Issuer::from_ca_cert_pem(&read(CERT), KeyPair::from_pem(&read(KEY)).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = crate::identity::authority::root_params(&trust_domain()).unwrap();
    let intermediate = params.signed_by(&key, &root).unwrap();
    fs::write(dir.path().join(CERT), intermediate.pem()).unwrap();
    fs::write(dir.path().join(KEY), key.serialize_pem()).unwrap();
    let authority = Authority::open(dir.path(), &trust_domain()).unwrap();
    let signed = chain(&authority);
    assert_eq!(signed.len(), 2);
    assert!(roots(&authority).issuer_of(&signed).is_some());
    let error = rotation.run(RotationStep::Add, true).unwrap_err();
    assert!(matches!(error, RotateError::Intermediate { .. }), "{error}");
}
