//! Who calls: the proof that comes with a request, and what it proves.
//!
//! A bearer token counts before a client certificate, and one that is refused is refused: there is no second try with
//! something else. Without any proof nobody is answered.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use super::tokens::NodeTokens;
use crate::identity::peer_identity;
use crate::model::{Identity, IdentityError, NodeName, TrustDomain};

/// Audience that a caller's token must be for, as everywhere in Istio.
pub const AUDIENCE: &str = "istio-ca";
/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 16 << 10;

/// A service account, `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name in that namespace.
    pub name: Arc<str>,
}

impl Account {
    /// The account of that name, if an identity can be made of it.
    ///
    /// # Errors
    /// One of the names has a character that no SPIFFE ID may have.
    pub fn new(namespace: &str, name: &str) -> Result<Self, IdentityError> {
        // Any trust domain shows whether the names will do.
        let domain = TrustDomain::new("cluster.local")?;
        let Identity { namespace, service_account, .. } = Identity::new(domain, namespace, name)?;
        Ok(Self { namespace, name: service_account })
    }

    /// Its identity in a trust domain.
    pub fn identity(&self, trust_domain: &TrustDomain) -> Identity {
        Identity {
            trust_domain: trust_domain.clone(),
            namespace: Arc::clone(&self.namespace),
            service_account: Arc::clone(&self.name),
        }
    }
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('/')
            .and_then(|(namespace, name)| Self::new(namespace, name).ok())
            .ok_or_else(|| format!("`{text}` is no NAMESPACE/SERVICE_ACCOUNT"))
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How a caller has proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A token that the Kubernetes API server has reviewed.
    TokenReview,
    /// A token of the file.
    NodeToken,
    /// A client certificate.
    ClientCertificate,
}

impl Method {
    /// For the audit log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TokenReview => "token_review",
            Self::NodeToken => "node_token",
            Self::ClientCertificate => "client_certificate",
        }
    }
}

/// Somebody who has proved who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Their service account.
    pub account: Account,
    /// The node that they run on, where the proof says so.
    pub node: Option<NodeName>,
    /// What the proof was.
    pub method: Method,
}

/// Why a caller is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// No proof at all.
    #[error(
        "no proof of who calls: send a service account token for the audience {AUDIENCE} as \
         `authorization: Bearer TOKEN`, or a client certificate"
    )]
    NoCredentials,
    /// The header is something else.
    #[error("the authorization header is not `Bearer TOKEN`, or the token is longer than {MAX_TOKEN} bytes")]
    MalformedToken,
    /// Nobody knows the token.
    #[error("the token is not valid here: it may have been revoked, or be another cluster's")]
    UnknownToken,
    /// The token was good once.
    #[error("the token has expired: replace it")]
    ExpiredToken,
    /// The token is for somebody else to read.
    #[error("the token is not for the audience {AUDIENCE}: ask for one that is")]
    WrongAudience,
    /// A token, but of no service account.
    #[error("the token is good, but of no service account")]
    NoServiceAccount,
    /// Tokens are not taken here.
    #[error("tokens are not taken by this authority: send a client certificate")]
    TokensNotTaken,
    /// The client certificate names nobody.
    #[error("the client certificate must carry exactly one SPIFFE ID, and at most one DNS name, its node's")]
    Certificate,
    /// The client certificate is of another trust domain.
    #[error("the client certificate is of another trust domain than this authority's")]
    TrustDomain,
    /// It cannot be told whether the proof is good.
    #[error("{what} cannot be asked whether the token is good: try again, and look at the authority's log")]
    Unavailable {
        /// What cannot be asked.
        what: &'static str,
        /// Why, for the operator of the authority alone.
        detail: String,
    },
}

impl CallerError {
    /// Bounded label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoCredentials => "no_credentials",
            Self::MalformedToken => "malformed_token",
            Self::UnknownToken => "unknown_token",
            Self::ExpiredToken => "expired_token",
            Self::WrongAudience => "wrong_audience",
            Self::NoServiceAccount => "no_service_account",
            Self::TokensNotTaken => "tokens_not_taken",
            Self::Certificate => "bad_client_certificate",
            Self::TrustDomain => "wrong_trust_domain",
            Self::Unavailable { .. } => "authentication_unavailable",
        }
    }
}

/// What a request brings as proof.
#[derive(Clone, Copy, Debug, Default)]
pub struct Proof<'a> {
    /// The `authorization` header, as it came; `Some(None)` if it is not text.
    pub authorization: Option<Option<&'a str>>,
    /// The client certificate, leaf first; its chain has been verified in the handshake.
    pub certificate: Option<&'a [CertificateDer<'static>]>,
}

/// Tells whose a token is.
pub trait TokenReviewer: Send + Sync + 'static {
    /// Cancel safe.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, CallerError>>;
}

/// All the ways in which a caller may prove who it is.
pub struct Callers {
    trust_domain: TrustDomain,
    tokens: Option<NodeTokens>,
    reviewer: Option<Arc<dyn TokenReviewer>>,
    certificates: bool,
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callers")
            .field("trust_domain", &self.trust_domain)
            .field("tokens", &self.tokens.is_some())
            .field("reviewer", &self.reviewer.is_some())
            .field("certificates", &self.certificates)
            .finish()
    }
}

impl Callers {
    /// `None` where there is no way at all: an authority that believes everybody is none.
    pub fn new(
        trust_domain: TrustDomain,
        tokens: Option<NodeTokens>,
        reviewer: Option<Arc<dyn TokenReviewer>>,
        certificates: bool,
    ) -> Option<Self> {
        let any = tokens.is_some() || reviewer.is_some() || certificates;
        any.then_some(Self { trust_domain, tokens, reviewer, certificates })
    }

    /// Who calls.
    ///
    /// # Errors
    /// There is no proof, it proves nothing, or it cannot be told.
    pub async fn authenticate(&self, proof: Proof<'_>) -> Result<Caller, CallerError> {
        match (proof.authorization, proof.certificate) {
            (Some(header), _) => self.by_token(bearer(header)?).await,
            (None, Some(chain)) if self.certificates => self.by_certificate(chain),
            (None, _) => Err(CallerError::NoCredentials),
        }
    }

    async fn by_token(&self, token: &str) -> Result<Caller, CallerError> {
        if let Some(tokens) = &self.tokens {
            match tokens.review(token) {
                // Not one of the file's; the cluster may know it.
                Err(CallerError::UnknownToken) if self.reviewer.is_some() => {}
                result => return result,
            }
        }
        match &self.reviewer {
            Some(reviewer) => reviewer.review(token).await,
            None => Err(CallerError::TokensNotTaken),
        }
    }

    fn by_certificate(&self, chain: &[CertificateDer<'static>]) -> Result<Caller, CallerError> {
        let identity = peer_identity(chain).map_err(|_error| CallerError::Certificate)?;
        if identity.trust_domain != self.trust_domain {
            return Err(CallerError::TrustDomain);
        }
        let account = Account { namespace: identity.namespace, name: identity.service_account };
        Ok(Caller { account, node: node_name(chain)?, method: Method::ClientCertificate })
    }
}

/// `Bearer TOKEN`, the scheme in any case (RFC 9110, section 11.1).
fn bearer(header: Option<&str>) -> Result<&str, CallerError> {
    let (scheme, token) = header.and_then(|text| text.split_once(' ')).ok_or(CallerError::MalformedToken)?;
    let token = token.trim();
    let plausible =
        !token.is_empty() && token.len() <= MAX_TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic());
    if scheme.eq_ignore_ascii_case("bearer") && plausible {
        Ok(token)
    } else {
        Err(CallerError::MalformedToken)
    }
}

/// The node that a client certificate names: its one DNS name.
///
/// This authority gives workloads no DNS name, so that one in a certificate that leads to the `--client-ca` is there
/// because an operator put it there.
fn node_name(chain: &[CertificateDer<'_>]) -> Result<Option<NodeName>, CallerError> {
    let leaf = chain.first().ok_or(CallerError::Certificate)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_error| CallerError::Certificate)?;
    let names = parsed.subject_alternative_name().map_err(|_error| CallerError::Certificate)?;
    let mut dns = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None });
    match (dns.next(), dns.next()) {
        (name, None) => Ok(name.map(NodeName::new)),
        _ => Err(CallerError::Certificate),
    }
}
