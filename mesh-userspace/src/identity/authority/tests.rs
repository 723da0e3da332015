//! What the authority makes of its folder, and that it follows it.

use std::os::unix::fs::PermissionsExt;

use rcgen::KeyPair;

use super::*;
use crate::identity::Roots;
use crate::identity::testing::{TempDir, identity, trust_domain};

fn open(dir: &Path) -> Result<Authority, AuthorityError> {
    Authority::open(dir, &trust_domain())
}

#[test]
fn a_root_is_made_once_and_found_again() {
    let dir = TempDir::new();
    let path = dir.path().join("ca");
    let first = open(&path).unwrap();
    let second = open(&path).unwrap();
    assert_eq!(first.followed().certificate, second.followed().certificate);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(path.join(KEY)).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn agents_that_start_at_once_have_one_root() {
    let dir = TempDir::new();
    let path = dir.path().join("ca");
    let certificates: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| open(&path).unwrap().followed().certificate.clone())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(certificates.iter().all(|certificate| *certificate == certificates[0]));
}

#[test]
fn a_folder_that_cannot_be_trusted_is_refused() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, &str); 5] = [
        (
            "key readable by the group",
            |dir| fs::set_permissions(dir.join(KEY), fs::Permissions::from_mode(0o640)).unwrap(),
            "must be 0600",
        ),
        (
            "another pair's certificate",
            |dir| {
                let other = TempDir::new();
                open(&other.path().join("ca")).unwrap();
                fs::copy(other.path().join("ca").join(CERT), dir.join(CERT)).unwrap();
            },
            "does not belong to the key",
        ),
        ("no certificate", |dir| fs::remove_file(dir.join(CERT)).unwrap(), "but no ca-cert.pem"),
        ("no key", |dir| fs::remove_file(dir.join(KEY)).unwrap(), "but no ca-key.pem"),
        ("garbage", |dir| fs::write(dir.join(CERT), "hello").unwrap(), "holds no certificate"),
    ];
    for (name, spoil, message) in cases {
        let dir = TempDir::new();
        let path = dir.path().join("ca");
        open(&path).unwrap();
        spoil(&path);
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains(message), "{name}: {error}");
    }
}

#[test]
fn a_leaf_says_who_it_is_and_nothing_else() {
    let dir = TempDir::new();
    let authority = open(&dir.path().join("ca")).unwrap();
    let key = KeyPair::generate().unwrap();
    let wanted = identity("reviews");
    let leaf = authority.followed().leaf(&wanted, &key, Duration::from_hours(1)).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 1);
    assert!(matches!(names[0], x509_parser::extensions::GeneralName::URI(uri) if uri == wanted.to_string()));
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    assert!(parsed.key_usage().unwrap().unwrap().value.digital_signature());
    assert!(!parsed.is_ca());
    let life = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
    assert_eq!(life, 3600 + 120);
    let again = authority.followed().leaf(&wanted, &key, Duration::from_hours(1)).unwrap();
    let (_, other) = x509_parser::parse_x509_certificate(&again).unwrap();
    assert_ne!(parsed.raw_serial(), other.raw_serial());
}

#[test]
fn a_leaf_does_not_outlive_its_authority() {
    let dir = TempDir::new();
    let authority = open(&dir.path().join("ca")).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = authority.followed().leaf(&identity("a"), &key, Duration::from_hours(100 * 365 * 24)).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(parsed.validity().not_after.timestamp(), authority.followed().not_after.unix_timestamp());
}

#[test]
fn debug_shows_no_key() {
    let dir = TempDir::new();
    let authority = open(&dir.path().join("ca")).unwrap();
    let shown = format!("{authority:?}");
    assert!(!shown.contains("key"), "{shown}");
}

/// A chain of the authority's, and the roots that it answers with.
fn signed(authority: &Authority) -> (Vec<CertificateDer<'static>>, Roots) {
    let key = KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let identity = identity("a");
    let request = SigningRequest { identity: &identity, csr: csr.der(), validity: Duration::from_hours(1) };
    let signed = futures_util::FutureExt::now_or_never(authority.sign(request)).unwrap().unwrap();
    (signed.chain, Roots::new(&signed.roots).unwrap())
}

/// Copies another authority's files, one after the other.
fn replace(dir: &Path, by: &Path, names: &[&str]) {
    for name in names {
        fs::copy(by.join(name), dir.join(name)).unwrap();
    }
}

#[test]
fn new_files_are_used_from_the_next_signing_on() {
    let dir = TempDir::new();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let authority = open(&ours).unwrap();
    let other = open(&theirs).unwrap();
    let (before, old_roots) = signed(&authority);
    // In any order, as somebody copies them: until the last, the last good state signs, and says why.
    replace(&ours, &theirs, &[CERT]);
    assert_eq!(signed(&authority).1, old_roots);
    assert!(authority.problem().unwrap().contains("ca-cert.pem does not belong to the key"));
    replace(&ours, &theirs, &[KEY]);
    assert_eq!(signed(&authority).1, old_roots);
    let problem = authority.problem().unwrap();
    assert!(
        problem.contains("is not trusted by root-cert.pem") && problem.contains("last good state"),
        "{problem}"
    );
    replace(&ours, &theirs, &[ROOT]);
    let (after, new_roots) = signed(&authority);
    assert_eq!((authority.problem(), &new_roots), (None, &Roots::new(&other.roots()).unwrap()));
    assert!(new_roots.issuer_of(&after).is_some() && new_roots.issuer_of(&before).is_none());
}

#[test]
fn what_goes_wrong_with_the_folder_leaves_the_last_good_state() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, &str); 7] = [
        (
            "a key for everybody",
            |dir| fs::set_permissions(dir.join(KEY), fs::Permissions::from_mode(0o644)).unwrap(),
            "has mode 0644; a private key must be 0600",
        ),
        ("no key", |dir| fs::remove_file(dir.join(KEY)).unwrap(), "but no ca-key.pem"),
        ("no folder", |dir| fs::remove_dir_all(dir).unwrap(), "holds no authority"),
        ("an empty bundle", |dir| fs::write(dir.join(ROOT), "").unwrap(), "holds no certificate"),
        (
            "half a bundle",
            |dir| {
                let root = fs::read_to_string(dir.join(ROOT)).unwrap();
                fs::write(dir.join(ROOT), format!("{root}{}", &root[..root.len() / 2])).unwrap();
            },
            "cut off",
        ),
        (
            "a leaf",
            |dir| {
                let key = KeyPair::generate().unwrap();
                let leaf = rcgen::CertificateParams::default().self_signed(&key).unwrap();
                fs::write(dir.join(CERT), leaf.pem()).unwrap();
                fs::write(dir.join(KEY), key.serialize_pem()).unwrap();
            },
            "is not a certificate authority's",
        ),
        ("a damaged key", |dir| fs::write(dir.join(KEY), "-----BEGIN").unwrap(), "holds no private key"),
    ];
    for (name, spoil, message) in cases {
        let dir = TempDir::new();
        let path = dir.path().join("ca");
        let authority = open(&path).unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir(&kept).unwrap();
        replace(&kept, &path, &[CERT, KEY, ROOT]);
        let (_, roots) = signed(&authority);
        spoil(&path);
        let (chain, same) = signed(&authority);
        assert!(roots == same && roots.issuer_of(&chain).is_some(), "{name}");
        let problem = authority.problem().unwrap_or_default();
        assert!(problem.contains(message), "{name}: {problem}");
        // Put right, it is used again.
        fs::create_dir_all(&path).unwrap();
        replace(&path, &kept, &[CERT, ROOT, KEY]);
        fs::set_permissions(path.join(KEY), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(authority.problem(), None, "{name}");
    }
}

#[test]
fn a_volume_that_flips_is_never_half_read() {
    let dir = TempDir::new();
    let state = |name: &str| open(&dir.path().join(name)).unwrap();
    let (one, two) = (state("one"), state("two"));
    let known = [one, two].map(|authority| Roots::new(&authority.roots()).unwrap());
    // As a Kubernetes volume: the files are links into a folder that is a link to the state.
    let volume = dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let flip = |to: &str| {
        std::os::unix::fs::symlink(dir.path().join(to), volume.join("..new")).unwrap();
        fs::rename(volume.join("..new"), volume.join("..data")).unwrap();
    };
    flip("one");
    for name in [CERT, KEY, ROOT] {
        std::os::unix::fs::symlink(Path::new("..data").join(name), volume.join(name)).unwrap();
    }
    let authority = open(&volume).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for to in ["two", "one"].iter().cycle().take(400) {
                flip(to);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let (chain, roots) = signed(&authority);
            assert!(known.contains(&roots) && roots.issuer_of(&chain).is_some());
        }
    });
    flip("two");
    assert!(signed(&authority).1 == known[1] && authority.problem().is_none());
}

#[test]
fn a_bundle_put_in_by_hand_is_trusted() {
    let dir = TempDir::new();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let (authority, other) = (open(&ours).unwrap(), open(&theirs).unwrap());
    let read = |dir: &Path| fs::read_to_string(dir.join(ROOT)).unwrap();
    fs::write(ours.join(ROOT), format!("{}\n# theirs\n{}", read(&ours), read(&theirs))).unwrap();
    let (_, roots) = signed(&authority);
    assert_eq!(roots.fingerprints().len(), 2);
    assert!(roots.issuer_of(&signed(&other).0).is_some());
}

#[test]
fn the_end_of_an_authority_is_told_in_time() {
    let dir = TempDir::new();
    let key = KeyPair::generate().unwrap();
    let mut params = root_params(&trust_domain()).unwrap();
    params.not_before = OffsetDateTime::now_utc() - time::Duration::days(95);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::days(5);
    let root = params.self_signed(&key).unwrap().pem();
    for name in [CERT, ROOT] {
        fs::write(dir.path().join(name), &root).unwrap();
    }
    files::place(dir.path(), KEY, key.serialize_pem().as_bytes(), 0o600).unwrap();
    let problem = open(dir.path()).unwrap().problem().unwrap_or_default();
    assert!(problem.contains("in 4 days: rotate it"), "{problem}");
}
