//! Why a handshake failed, as a bounded label.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, Error, OtherError, PeerIncompatible};

use crate::model::{Identity, IdentityError};

/// What is wrong with a certificate that its authority signed in order.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No certificate, or one that cannot be parsed.
    #[error("peer presented no certificate that can be parsed")]
    Unreadable,
    /// None or several URI SANs.
    #[error("peer's certificate has {0} URI names, exactly one is required")]
    UriNames(usize),
    /// The one URI SAN is no identity.
    #[error("peer's certificate does not name an identity")]
    NoIdentity(#[source] IdentityError),
    /// Somebody else of the same trust domain.
    #[error("peer is {0}, which is not whom was asked for")]
    WrongIdentity(Identity),
    /// Somebody of another trust domain.
    #[error("peer is {0}, of a trust domain that is not trusted")]
    WrongTrustDomain(Identity),
}

/// As `Display`: rustls shows an error of its own making by `Debug` alone, and it is that which flow records hold.
impl fmt::Debug for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PeerError {
    /// Who the peer is, by a certificate in order that is not wanted here.
    pub const fn peer(&self) -> Option<&Identity> {
        match self {
            Self::WrongIdentity(peer) | Self::WrongTrustDomain(peer) => Some(peer),
            Self::Unreadable | Self::UriNames(_) | Self::NoIdentity(_) => None,
        }
    }

    /// Bounded label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable | Self::UriNames(_) | Self::NoIdentity(_) => "bad_san",
            Self::WrongIdentity(_) => "wrong_identity",
            Self::WrongTrustDomain(_) => "wrong_trust_domain",
        }
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// Why a handshake failed, from what `tokio-rustls` returns: one of `no_certificate`, `unknown_issuer`, `expired`,
/// `not_yet_valid`, `wrong_identity`, `wrong_trust_domain`, `wrong_usage`, `bad_san`, `bad_signature`,
/// `protocol_version`, `refused_by_peer`, `closed`, `timeout`, `other`.
pub fn handshake_reason(error: &io::Error) -> &'static str {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return handshake_error_reason(tls);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => "closed",
        io::ErrorKind::TimedOut => "timeout",
        _ => "other",
    }
}

/// Who the peer of a handshake is that was refused for who it is, from what `tokio-rustls` returns.
pub fn handshake_peer(error: &io::Error) -> Option<&Identity> {
    let tls = error.get_ref()?.downcast_ref::<Error>()?;
    let Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = tls else { return None };
    inner.downcast_ref::<PeerError>()?.peer()
}

/// As [`handshake_reason`], from rustls' own error.
pub fn handshake_error_reason(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented | Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "no_certificate"
        }
        Error::InvalidCertificate(error) => certificate_reason(error),
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic,
        )
        | Error::AlertReceived(AlertDescription::ProtocolVersion) => "protocol_version",
        Error::AlertReceived(_) => "refused_by_peer",
        _ => "other",
    }
}

fn certificate_reason(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::UnknownIssuer => "unknown_issuer",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not_yet_valid",
        CertificateError::BadSignature => "bad_signature",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => "wrong_usage",
        CertificateError::Other(OtherError(inner)) => {
            inner.downcast_ref::<PeerError>().map_or("other", PeerError::reason)
        }
        _ => "other",
    }
}
