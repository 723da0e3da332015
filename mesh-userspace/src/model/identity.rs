//! SPIFFE identities as Istio gives them: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::shared_text;

/// Longest SPIFFE ID that is read, in bytes (SPIFFE-ID, section 2.3).
const MAX_LENGTH: usize = 2048;
/// Longest trust domain, in bytes (SPIFFE-ID, section 2.1).
const MAX_TRUST_DOMAIN: usize = 255;

/// Why a text is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Longer than the SPIFFE standard allows.
    #[error("SPIFFE ID is {0} bytes long, at most {MAX_LENGTH} are allowed")]
    TooLong(usize),
    /// Another scheme.
    #[error("SPIFFE ID does not begin with spiffe://")]
    Scheme,
    /// An empty trust domain, or one with a character outside `[a-z0-9._-]`.
    #[error("trust domain is empty, too long or has a character outside a-z 0-9 . _ -")]
    TrustDomain,
    /// The path is not `/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
    #[error("SPIFFE path is not /ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
    Path,
}

/// A trust domain such as `cluster.local`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks the name's characters and length (SPIFFE-ID, section 2.1).
    pub fn new(name: &str) -> Result<Self, IdentityError> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > MAX_TRUST_DOMAIN || !name.bytes().all(allowed) {
            return Err(IdentityError::TrustDomain);
        }
        Ok(Self(name.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdentityError;

    fn try_from(name: String) -> Result<Self, IdentityError> {
        Self::new(&name)
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0.as_ref().to_owned()
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(name: &str) -> Result<Self, IdentityError> {
        Self::new(name)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of a workload.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity {
    /// Trust domain.
    pub trust_domain: TrustDomain,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Kubernetes service account.
    pub service_account: Arc<str>,
}

impl Identity {
    /// The identity of a service account; the names are checked as DNS labels or subdomains.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        if !is_segment(namespace) || !is_segment(service_account) {
            return Err(IdentityError::Path);
        }
        let (namespace, service_account) = (shared_text(namespace), shared_text(service_account));
        Ok(Self { trust_domain, namespace, service_account })
    }
}

/// A path segment of a SPIFFE ID (section 2.2): letters, digits, `.`, `-`, `_`; not empty, not `.` or `..`.
fn is_segment(segment: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(allowed)
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_LENGTH {
            return Err(IdentityError::TooLong(text.len()));
        }
        let rest = text.strip_prefix("spiffe://").ok_or(IdentityError::Scheme)?;
        let (domain, path) = rest.split_once('/').ok_or(IdentityError::Path)?;
        let trust_domain = TrustDomain::new(domain)?;
        let mut segments = path.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                Self::new(trust_domain, namespace, account)
            }
            _ => Err(IdentityError::Path),
        }
    }
}

impl TryFrom<String> for Identity {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> Self {
        identity.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_istio_writes_is_read() {
        let identity: Identity = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews".parse().unwrap();
        assert_eq!(&*identity.namespace, "default");
        assert_eq!(&*identity.service_account, "bookinfo-reviews");
        assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/default/sa/bookinfo-reviews");
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        let cases = [
            ("", IdentityError::Scheme),
            ("https://cluster.local/ns/a/sa/b", IdentityError::Scheme),
            ("spiffe://cluster.local", IdentityError::Path),
            ("spiffe:///ns/a/sa/b", IdentityError::TrustDomain),
            ("spiffe://Cluster.local/ns/a/sa/b", IdentityError::TrustDomain),
            ("spiffe://c@d/ns/a/sa/b", IdentityError::TrustDomain),
            ("spiffe://cluster.local/ns/a/sa/", IdentityError::Path),
            ("spiffe://cluster.local/ns/a/sa/..", IdentityError::Path),
            ("spiffe://cluster.local/ns/a/sa/b/c", IdentityError::Path),
            ("spiffe://cluster.local/ns/a%2f/sa/b", IdentityError::Path),
            ("spiffe://cluster.local/sa/b/ns/a", IdentityError::Path),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Identity>(), Err(error), "{text}");
        }
        let long = format!("spiffe://cluster.local/ns/a/sa/{}", "b".repeat(2048));
        assert!(matches!(long.parse::<Identity>(), Err(IdentityError::TooLong(_))));
    }

    proptest::proptest! {
        #[test]
        fn display_and_parse_are_inverse(
            domain in "[a-z0-9._-]{1,40}", namespace in "[a-z0-9]{1,20}", account in "[a-z0-9][a-z0-9.-]{0,20}"
        ) {
            let identity = Identity::new(TrustDomain::new(&domain).unwrap(), &namespace, &account).unwrap();
            proptest::prop_assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = text.parse::<Identity>();
        }
    }
}
