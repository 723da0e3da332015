//! For how long a peer is who its certificate says.
//!
//! TLS looks at validity during the handshake alone. A connection that outlives the certificate takes nothing new: whoever
//! still holds it has to show another one.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use super::PeerError;

/// When the first of a chain's certificates ends.
///
/// # Errors
/// The chain is empty, or holds what is no certificate.
pub fn chain_end(chain: &[CertificateDer<'_>]) -> Result<SystemTime, PeerError> {
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

    use super::*;
    use crate::identity::testing::{TestAuthority, identity};

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
}
