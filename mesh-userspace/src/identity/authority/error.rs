//! Why an authority's folder cannot be used.

use std::io;
use std::path::PathBuf;

use time::OffsetDateTime;

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
    /// None of the files is there any more.
    #[error("{} holds no authority: put ca-cert.pem, ca-key.pem and root-cert.pem back", dir.display())]
    Gone {
        /// The folder.
        dir: PathBuf,
    },
    /// The files did not stand still for as long as it takes to read them.
    #[error("{} changes all the time; replace its files by renaming", dir.display())]
    Changing {
        /// The folder.
        dir: PathBuf,
    },
    /// A file does not hold what its name says.
    #[error("{} holds no {expected}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// One of a file's certificates cannot be read; to go on without it would be another set of roots.
    #[error("{} has a certificate that is cut off or no PEM", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
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
    /// Nobody who trusts the roots would take what this authority signs.
    #[error(
        "what {} signs is not trusted by root-cert.pem: it must hold its root, and cert-chain.pem what is between",
        cert.display()
    )]
    Untrusted {
        /// The authority's certificate.
        cert: PathBuf,
    },
    /// A new root, or a certificate to try the authority with, could not be made.
    #[error("make a certificate")]
    Generate(#[source] rcgen::Error),
    /// The system gives no random numbers.
    #[error("no random numbers for a serial number")]
    Random,
}

impl AuthorityError {
    /// Whether the same files would give the same again. What the file system refused may go at the next try.
    pub(super) const fn is_lasting(&self) -> bool {
        !matches!(self, Self::File { .. } | Self::Changing { .. } | Self::Random)
    }
}
