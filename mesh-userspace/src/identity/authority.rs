//! The local certificate authority in `--ca-dir`, for a machine without a cluster's authority.
//!
//! Files are named as in Istio's `cacerts` secret, so that a folder made for Istio works here and the reverse:
//! `ca-cert.pem`, `ca-key.pem` (0600), `root-cert.pem`, and where the authority is an intermediate `cert-chain.pem`.
//! Made on first start under a lock; `ca-key.pem` is put in place last, so whoever sees it sees the others. A folder
//! that holds some of the files is refused, never completed: what is there may be somebody's root.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{SignError, SignedChain, Signer, SigningRequest, provider};
use crate::model::{Identity, TrustDomain};

const CERT: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const ROOT: &str = "root-cert.pem";
const CHAIN: &str = "cert-chain.pem";
const LOCK: &str = ".lock";

/// Life of a root made here.
const ROOT_VALIDITY: time::Duration = time::Duration::days(3650);
/// How far in the past a certificate begins, for clocks that disagree.
const BACKDATE: time::Duration = time::Duration::minutes(2);

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be made, read or renamed.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Others than the owner have access to the private key.
    #[error("{} has mode {mode:04o}; a private key must be 0600: chmod 600 it", path.display())]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Some of the files are there and others are not.
    #[error("{} has {present} but no {missing}: add it, or empty the folder for a new root", dir.display())]
    Incomplete {
        /// The folder.
        dir: PathBuf,
        /// A file that is there.
        present: &'static str,
        /// A file that is not.
        missing: &'static str,
    },
    /// A file does not hold what its name says.
    #[error("{} holds no {expected}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// Certificate and key belong to different pairs.
    #[error("{} does not belong to the key in {}", cert.display(), key.display())]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The certificate is none that signs others.
    #[error("{} is not a certificate authority's certificate", path.display())]
    NotAnAuthority {
        /// The certificate.
        path: PathBuf,
    },
    /// The certificate is past its end.
    #[error("{} expired at {not_after}", path.display())]
    Expired {
        /// The certificate.
        path: PathBuf,
        /// Its end.
        not_after: OffsetDateTime,
    },
    /// A new root could not be made.
    #[error("make a root certificate")]
    Generate(#[source] rcgen::Error),
    /// The system gives no random numbers.
    #[error("no random numbers for a serial number")]
    Random,
}

/// A certificate authority whose key is in this process.
pub struct Authority {
    key: Zeroizing<KeyPair>,
    certificate: CertificateDer<'static>,
    not_after: OffsetDateTime,
    /// What follows the leaf in a chain: this authority's certificate unless it is a root, and its own issuers.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
}

#[expect(clippy::missing_fields_in_debug, reason = "the private key must not be shown")]
impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("not_after", &self.not_after)
            .field("roots", &self.roots.len())
            .finish()
    }
}

impl Authority {
    /// Opens the authority in `dir`, making a root for `trust_domain` if the folder is empty or missing.
    ///
    /// Blocks while another process does the same.
    ///
    /// # Errors
    /// See [`AuthorityError`]; nothing that exists is ever overwritten.
    pub fn open(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, AuthorityError> {
        // The key is put in place last. A folder that has one may be read-only, as a mounted secret is.
        if dir.join(KEY).exists() {
            return Self::load(dir);
        }
        if !dir.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(file_error("create", dir))?;
        }
        let lock_path = dir.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(file_error("open", &lock_path))?;
        let _held = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| file_error("lock", &lock_path)(errno.into()))?;
        if ![CERT, KEY, ROOT].iter().any(|name| dir.join(name).exists()) {
            create(dir, trust_domain)?;
        }
        Self::load(dir)
    }

    fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let (present, missing): (Vec<_>, Vec<_>) =
            [CERT, KEY, ROOT].into_iter().partition(|name| dir.join(name).exists());
        if let (Some(present), Some(missing)) = (present.first(), missing.first()) {
            return Err(AuthorityError::Incomplete { dir: dir.into(), present, missing });
        }
        let key_path = dir.join(KEY);
        let key = read_key(&key_path)?;
        let cert_path = dir.join(CERT);
        let certificate = read_certificates(&cert_path)?.swap_remove(0);
        let roots = read_certificates(&dir.join(ROOT))?;
        let not_after = check(&cert_path, &certificate, &key_path, &key)?;
        let mut intermediates = Vec::new();
        if !roots.contains(&certificate) {
            intermediates.push(certificate.clone());
            let chain_path = dir.join(CHAIN);
            if chain_path.exists() {
                let rest = read_certificates(&chain_path)?;
                intermediates.extend(
                    rest.into_iter().filter(|issuer| *issuer != certificate && !roots.contains(issuer)),
                );
            }
        }
        Ok(Self { key, certificate, not_after, intermediates, roots })
    }

    /// The roots that peers must trust.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// A leaf for `identity` with this public key, valid from shortly before now, never beyond the authority itself.
    fn leaf(
        &self,
        identity: &Identity,
        public_key: &impl PublicKeyData,
        validity: Duration,
    ) -> Result<CertificateDer<'static>, SignError> {
        self.issue(leaf_params(identity).map_err(SignError::Signing)?, public_key, validity)
    }

    /// The chain that this authority's own server shows: its names, for the server's end of a connection alone.
    pub(super) fn serving_chain(
        &self,
        names: &[SanType],
        public_key: &impl PublicKeyData,
        validity: Duration,
    ) -> Result<SignedChain, SignError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names.to_vec();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let mut chain = vec![self.issue(params, public_key, validity)?];
        chain.extend_from_slice(&self.intermediates);
        Ok(SignedChain { chain, roots: self.roots.clone() })
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        public_key: &impl PublicKeyData,
        validity: Duration,
    ) -> Result<CertificateDer<'static>, SignError> {
        let now = OffsetDateTime::now_utc();
        if now >= self.not_after {
            return Err(SignError::AuthorityExpired);
        }
        params.serial_number = Some(
            random_serial().map_err(|_error| SignError::Unavailable(AuthorityError::Random.to_string()))?,
        );
        params.not_before = now - BACKDATE;
        params.not_after = (now + validity).min(self.not_after);
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &*self.key).map_err(SignError::Signing)?;
        let leaf = params.signed_by(public_key, &issuer).map_err(SignError::Signing)?;
        Ok(leaf.der().clone())
    }
}

impl Signer for Authority {
    fn sign<'a>(&'a self, request: SigningRequest<'a>) -> BoxFuture<'a, Result<SignedChain, SignError>> {
        Box::pin(async move {
            // The request proves possession of the key; what else it asks for does not count.
            let csr = CertificateSigningRequestParams::from_der(request.csr).map_err(SignError::Signing)?;
            let mut chain = vec![self.leaf(request.identity, &csr.public_key, request.validity)?];
            chain.extend_from_slice(&self.intermediates);
            Ok(SignedChain { chain, roots: self.roots.clone() })
        })
    }
}

/// What every leaf has: one URI SAN, for both ends of a TLS connection.
pub(super) fn leaf_params(identity: &Identity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// What a root made here has.
pub(super) fn root_params(trust_domain: &TrustDomain) -> Result<CertificateParams, AuthorityError> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, "mesh root");
    params.serial_number = Some(random_serial()?);
    params.not_before = now - BACKDATE;
    params.not_after = now + ROOT_VALIDITY;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(params)
}

/// 127 random bits, positive as RFC 5280, section 4.1.2.2 wants.
fn random_serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0_u8; 16];
    provider().secure_random.fill(&mut bytes).map_err(|_error| AuthorityError::Random)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |source| AuthorityError::File { operation, path, source }
}

fn create(dir: &Path, trust_domain: &TrustDomain) -> Result<(), AuthorityError> {
    let key = Zeroizing::new(
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Generate)?,
    );
    let root = root_params(trust_domain)?.self_signed(&*key).map_err(AuthorityError::Generate)?;
    let pem = root.pem();
    place(dir, ROOT, pem.as_bytes(), 0o644)?;
    place(dir, CERT, pem.as_bytes(), 0o644)?;
    place(dir, KEY, Zeroizing::new(key.serialize_pem()).as_bytes(), 0o600)
}

/// Writes a file aside and renames it into place, on disk when this returns.
fn place(dir: &Path, name: &str, content: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let path = dir.join(name);
    let aside = dir.join(format!(".{name}.new"));
    let write = || {
        // What a crash left behind may have another mode.
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&aside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(file_error("write", &path))
}

fn read_key(path: &Path) -> Result<Zeroizing<KeyPair>, AuthorityError> {
    let mut file = File::open(path).map_err(file_error("read", path))?;
    let mode = file.metadata().map_err(file_error("read", path))?.permissions().mode() & 0o7777;
    if mode & 0o177 != 0 {
        return Err(AuthorityError::KeyMode { path: path.into(), mode });
    }
    let mut pem = Zeroizing::new(String::new());
    file.read_to_string(&mut pem).map_err(file_error("read", path))?;
    let content = |_error| AuthorityError::Content { path: path.into(), expected: "private key in PEM" };
    Ok(Zeroizing::new(KeyPair::from_pem(&pem).map_err(content)?))
}

/// The certificates of a PEM file; never empty.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let pem = fs::read(path).map_err(file_error("read", path))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    if certificates.is_empty() {
        return Err(AuthorityError::Content { path: path.into(), expected: "certificate in PEM" });
    }
    Ok(certificates)
}

/// Whether the certificate may sign, belongs to the key and is still good; returns its end.
fn check(
    path: &Path,
    certificate: &CertificateDer<'_>,
    key_path: &Path,
    key: &KeyPair,
) -> Result<OffsetDateTime, AuthorityError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_error| AuthorityError::Content { path: path.into(), expected: "X.509 certificate" })?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(AuthorityError::Mismatch { cert: path.into(), key: key_path.into() });
    }
    if !parsed.is_ca() {
        return Err(AuthorityError::NotAnAuthority { path: path.into() });
    }
    let not_after = parsed.validity().not_after.to_datetime();
    if not_after <= OffsetDateTime::now_utc() {
        return Err(AuthorityError::Expired { path: path.into(), not_after });
    }
    Ok(not_after)
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(first.certificate, second.certificate);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(path.join(KEY)).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn agents_that_start_at_once_have_one_root() {
        let dir = TempDir::new();
        let path = dir.path().join("ca");
        let certificates: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&path).unwrap().certificate)).collect();
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
        let leaf = authority.leaf(&wanted, &key, Duration::from_hours(1)).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.len(), 1);
        assert!(
            matches!(names[0], x509_parser::extensions::GeneralName::URI(uri) if uri == wanted.to_string())
        );
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
        assert!(parsed.key_usage().unwrap().unwrap().value.digital_signature());
        assert!(!parsed.is_ca());
        let life = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
        assert_eq!(life, 3600 + 120);
        let again = authority.leaf(&wanted, &key, Duration::from_hours(1)).unwrap();
        let (_, other) = x509_parser::parse_x509_certificate(&again).unwrap();
        assert_ne!(parsed.raw_serial(), other.raw_serial());
    }

    #[test]
    fn a_leaf_does_not_outlive_its_authority() {
        let dir = TempDir::new();
        let authority = open(&dir.path().join("ca")).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = authority.leaf(&identity("a"), &key, Duration::from_hours(100 * 365 * 24)).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        assert_eq!(parsed.validity().not_after.timestamp(), authority.not_after.unix_timestamp());
    }

    #[test]
    fn debug_shows_no_key() {
        let dir = TempDir::new();
        let authority = open(&dir.path().join("ca")).unwrap();
        let shown = format!("{authority:?}");
        assert!(!shown.contains("key"), "{shown}");
    }
}
