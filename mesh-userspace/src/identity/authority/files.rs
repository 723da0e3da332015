//! The authority's folder: which files there are, read all at once or not at all, and each replaced by renaming.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use rcgen::KeyPair;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::error::AuthorityError;
use super::issue::Issuing;

/// The authority's certificate.
pub(super) const CERT: &str = "ca-cert.pem";
/// Its key.
pub(super) const KEY: &str = "ca-key.pem";
/// The roots that peers trust.
pub(super) const ROOT: &str = "root-cert.pem";
/// Certificates between an intermediate and its root.
pub(super) const CHAIN: &str = "cert-chain.pem";
/// The root that is to come, and its key.
pub(super) const NEXT_CERT: &str = "next-ca-cert.pem";
pub(super) const NEXT_KEY: &str = "next-ca-key.pem";
/// The root that was.
pub(super) const OLD_CERT: &str = "old-ca-cert.pem";
const LOCK: &str = ".lock";

/// What an authority is read from.
const READ: [&str; 5] = [CERT, KEY, ROOT, CHAIN, NEXT_CERT];
/// How often files that change while they are read are read again.
const TRIES: usize = 5;

/// What tells a file from one that has taken its place, or was written anew: device, inode, mode, length, and the times
/// of the last change to its content and to itself.
type FileStamp = (u64, u64, u32, u64, (i64, i64), (i64, i64));

/// The folder's files as they are now, without reading them. Symbolic links are followed, so the flip of a Kubernetes
/// volume shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp([Option<FileStamp>; READ.len()]);

impl Stamp {
    pub(super) fn of(dir: &Path) -> Self {
        Self(READ.map(|name| fs::metadata(dir.join(name)).ok().map(|file| file_stamp(&file))))
    }
}

fn file_stamp(file: &fs::Metadata) -> FileStamp {
    let (written, changed) = ((file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()));
    (file.dev(), file.ino(), file.mode(), file.size(), written, changed)
}

/// The folder's files, held open: what is read of them is of the stamp, whatever has their names by then.
struct Opened {
    files: [Option<File>; READ.len()],
    stamp: Stamp,
}

impl Opened {
    fn of(dir: &Path) -> Self {
        let mut stamp = Stamp::of(dir);
        let files = READ.map(|name| File::open(dir.join(name)).ok());
        // One that is there and cannot be opened keeps the stamp of its name.
        for (stamp, file) in stamp.0.iter_mut().zip(&files) {
            let own = file.as_ref().and_then(|file| file.metadata().ok());
            *stamp = own.as_ref().map(file_stamp).or_else(|| stamp.take());
        }
        Self { files, stamp }
    }

    /// The file of that name, or why it cannot be had.
    fn file(&self, dir: &Path, name: &str) -> Result<&File, AuthorityError> {
        let index = READ.iter().position(|known| *known == name);
        index.and_then(|index| self.files[index].as_ref()).ok_or_else(|| {
            let path = dir.join(name);
            let missing = || io::Error::from(io::ErrorKind::NotFound);
            file_error("read", &path)(File::open(&path).err().unwrap_or_else(missing))
        })
    }
}

/// Reads and checks the authority in a folder, all of it of one state.
pub(super) fn read(dir: &Path) -> (Stamp, Result<Issuing, AuthorityError>) {
    let mut opened = Opened::of(dir);
    for _try in 0..TRIES {
        let issuing = load(dir, &opened);
        // Nothing was written while it was read, and the names still mean these files.
        if Stamp::of(dir) == opened.stamp {
            return (opened.stamp, issuing);
        }
        opened = Opened::of(dir);
    }
    (opened.stamp, Err(AuthorityError::Changing { dir: dir.into() }))
}

fn load(dir: &Path, opened: &Opened) -> Result<Issuing, AuthorityError> {
    let (present, missing): (Vec<_>, Vec<_>) =
        [CERT, KEY, ROOT].into_iter().partition(|name| dir.join(name).exists());
    match (present.first(), missing.first()) {
        (Some(present), Some(missing)) => {
            return Err(AuthorityError::Incomplete { dir: dir.into(), present, missing });
        }
        (None, _) => return Err(AuthorityError::Gone { dir: dir.into() }),
        (Some(_), None) => {}
    }
    let certificates = |name: &str| certificates_of(opened.file(dir, name)?, &dir.join(name));
    let key_path = dir.join(KEY);
    let key = key_of(opened.file(dir, KEY)?, &key_path)?;
    let mut cert_path = dir.join(CERT);
    let mut certificate = certificates(CERT)?.swap_remove(0);
    if !belongs(&certificate, &key) {
        // A switch of roots puts the new key in place first: until its certificate follows, that has its old name.
        let next = certificates(NEXT_CERT).ok().map(|mut next| next.swap_remove(0));
        match next.filter(|next| belongs(next, &key)) {
            Some(next) => (certificate, cert_path) = (next, dir.join(NEXT_CERT)),
            None => return Err(AuthorityError::Mismatch { cert: cert_path, key: key_path }),
        }
    }
    let roots = certificates(ROOT)?;
    let chain = if dir.join(CHAIN).exists() { certificates(CHAIN)? } else { Vec::new() };
    Issuing::new(key, certificate, &cert_path, chain, roots)
}

/// Whether the certificate is that of the key.
pub(super) fn belongs(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, parsed)| parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

pub(super) fn read_key(path: &Path) -> Result<Zeroizing<KeyPair>, AuthorityError> {
    key_of(&File::open(path).map_err(file_error("read", path))?, path)
}

fn key_of(mut file: &File, path: &Path) -> Result<Zeroizing<KeyPair>, AuthorityError> {
    let mode = file.metadata().map_err(file_error("read", path))?.permissions().mode() & 0o7777;
    if mode & 0o177 != 0 {
        return Err(AuthorityError::KeyMode { path: path.into(), mode });
    }
    let mut pem = Zeroizing::new(Vec::new());
    file.read_to_end(&mut pem).map_err(file_error("read", path))?;
    let content = || AuthorityError::Content { path: path.into(), expected: "private key in PEM" };
    let der = Zeroizing::new(PrivateKeyDer::from_pem_slice(&pem).map_err(|_error| content())?);
    Ok(Zeroizing::new(KeyPair::try_from(&*der).map_err(|_error| content())?))
}

/// The certificates of a PEM file; never empty.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    certificates_of(&File::open(path).map_err(file_error("read", path))?, path)
}

fn certificates_of(mut file: &File, path: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let mut pem = Vec::new();
    file.read_to_end(&mut pem).map_err(file_error("read", path))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|_error| AuthorityError::Damaged { path: path.into() })?;
    if certificates.is_empty() {
        return Err(AuthorityError::Content { path: path.into(), expected: "certificate in PEM" });
    }
    Ok(certificates)
}

/// Keeps other processes from changing the folder until it is dropped. Blocks while one of them does.
pub(super) fn lock(dir: &Path) -> Result<Flock<File>, AuthorityError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(file_error("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| file_error("lock", &path)(errno.into()))
}

/// Writes a file aside, the folder's owner's, and renames it into place, on disk when this returns.
pub(super) fn place(dir: &Path, name: &str, content: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let path = dir.join(name);
    let aside = dir.join(format!(".{name}.new"));
    let write = || {
        // What a crash left behind may have another mode.
        remove_if_there(&aside)?;
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&aside)?;
        // Root may do this for an authority that runs as somebody else, who has to read it.
        let (folder, own) = (fs::metadata(dir)?, file.metadata()?);
        let is_others = (folder.uid(), folder.gid()) != (own.uid(), own.gid());
        if is_others && nix::unistd::geteuid().is_root() {
            fchown(&file, Some(folder.uid()), Some(folder.gid()))?;
        }
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(file_error("write", &path))
}

/// Gives a file another name, in place of what has it; on disk when this returns.
pub(super) fn rename(dir: &Path, from: &str, to: &str) -> Result<(), AuthorityError> {
    let path = dir.join(from);
    let rename = || {
        fs::rename(&path, dir.join(to))?;
        File::open(dir)?.sync_all()
    };
    rename().map_err(file_error("rename", &path))
}

/// Removes a file that may not be there; on disk when this returns.
pub(super) fn remove(dir: &Path, name: &str) -> Result<(), AuthorityError> {
    let path = dir.join(name);
    let remove = || {
        remove_if_there(&path)?;
        File::open(dir)?.sync_all()
    };
    remove().map_err(file_error("remove", &path))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |source| AuthorityError::File { operation, path, source }
}
