//! Who is at the other end of a TLS connection, for as long as that lasts.
//!
//! TLS looks at a certificate during the handshake alone. A connection that outlives the certificate, or the trust in its
//! root, takes nothing new: whoever still holds it has to say anew who it is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};

use super::{PeerError, Roots, peer_identity};
use crate::model::Identity;

/// An authenticated client.
#[derive(Debug)]
pub struct PeerSession {
    identity: Identity,
    chain: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    /// What its chain was verified by last.
    verified: Mutex<Arc<Roots>>,
}

impl PeerSession {
    /// The client that has shown `chain` (leaf first) in a handshake that `roots` verified.
    ///
    /// # Errors
    /// The chain is empty, holds what is no certificate, or names nobody.
    pub fn new(chain: &[CertificateDer<'_>], roots: Arc<Roots>) -> Result<Self, PeerError> {
        Ok(Self {
            identity: peer_identity(chain)?,
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            not_after: chain_end(chain)?,
            verified: Mutex::new(roots),
        })
    }

    /// Who it is.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the first of its certificates ends.
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether its certificates are good by the roots that are trusted now. Looks at the chain only where those are others
    /// than before.
    pub fn is_trusted(&self, roots: &Arc<Roots>) -> bool {
        if SystemTime::now() >= self.not_after {
            return false;
        }
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&verified, roots) {
            return true;
        }
        let is_trusted = self.chain.split_first().is_some_and(|(leaf, rest)| {
            roots.clients().verify_client_cert(leaf, rest, UnixTime::now()).is_ok()
        });
        if is_trusted {
            *verified = Arc::clone(roots);
        }
        is_trusted
    }
}

fn chain_end(chain: &[CertificateDer<'_>]) -> Result<SystemTime, PeerError> {
    let ends = chain.iter().map(|certificate| {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|_error| PeerError::Unreadable)?;
        // Before 1970 is past as well.
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    });
    ends.reduce(|first, next| Ok(first?.min(next?))).unwrap_or(Err(PeerError::Unreadable))
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;
    use time::OffsetDateTime;

    use super::*;
    use crate::identity::testing::{TestAuthority, identity};

    fn roots(authorities: &[&TestAuthority]) -> Arc<Roots> {
        let all: Vec<_> = authorities.iter().map(|authority| authority.root.clone()).collect();
        Arc::new(Roots::new(&all).unwrap())
    }

    #[test]
    fn a_chain_ends_with_the_first_of_its_certificates() {
        let authority = TestAuthority::new();
        let key = KeyPair::generate().unwrap();
        let leaf = authority.leaf(&identity("a"), &key, |_| {});
        let end = chain_end(&[leaf.clone(), authority.root.clone()]).unwrap();
        let left = end.duration_since(SystemTime::now()).unwrap();
        assert!(left <= Duration::from_hours(1) && left > Duration::from_mins(59), "{left:?}");
        assert_eq!(chain_end(&[]), Err(PeerError::Unreadable));
        assert_eq!(chain_end(&[leaf, CertificateDer::from(vec![1, 2, 3])]), Err(PeerError::Unreadable));
    }

    #[test]
    fn trust_ends_with_the_certificate_and_with_its_root() {
        let (old, new) = (TestAuthority::new(), TestAuthority::new());
        let key = KeyPair::generate().unwrap();
        let leaf = old.leaf(&identity("a"), &key, |_| {});
        let session = PeerSession::new(&[leaf], roots(&[&old])).unwrap();
        assert_eq!(session.identity(), &identity("a"));
        assert!(session.is_trusted(&roots(&[&old, &new])));
        assert!(!session.is_trusted(&roots(&[&new])));
        assert!(session.is_trusted(&roots(&[&old])), "and is asked anew each time");
        let over = old.leaf(&identity("a"), &key, |params| {
            params.not_after = OffsetDateTime::now_utc() - time::Duration::seconds(1);
        });
        let own = roots(&[&old]);
        assert!(!PeerSession::new(&[over], Arc::clone(&own)).unwrap().is_trusted(&own));
    }
}
