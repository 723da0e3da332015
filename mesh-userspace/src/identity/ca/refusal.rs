//! Why a request is not granted: one reason, one gRPC code, one message for whoever asked.

use tonic::{Code, Status};

use super::authorise::AuthoriseError;
use super::caller::CallerError;
use super::csr::CsrError;
use crate::identity::SignError;

/// Everything that stands between a request and a certificate.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Nobody knows who asks.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// Whoever asks may not have it.
    #[error(transparent)]
    Authorise(#[from] AuthoriseError),
    /// The request for a certificate is not one that is signed.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// A life that has ended before it began.
    #[error("a validity of {0} s makes no sense: send a positive one, or 0 for the authority's own")]
    Validity(i64),
    /// A longer message than any honest one.
    #[error("the message is longer than {} KiB, which no request for a certificate is", super::service::MAX_MESSAGE >> 10)]
    TooLarge,
    /// Not the protocol.
    #[error("the message is no IstioCertificateRequest")]
    Malformed,
    /// Another method.
    #[error("there is only istio.v1.auth.IstioCertificateService/CreateCertificate here")]
    UnknownMethod,
    /// More requests than are decided at once.
    #[error("the authority has all the requests that it decides at once: try again")]
    Overloaded,
    /// It took too long to ask, or to find out.
    #[error("the request was not there, or not decided, in time: try again")]
    Timeout,
    /// Who asked has gone.
    #[error("the caller went away")]
    Cancelled,
    /// The authority cannot sign.
    #[error("the authority cannot sign now: look at its log")]
    Sign(#[source] SignError),
    /// No certificate without a line in the audit log.
    #[error("the authority cannot write its audit log and signs nothing until it can")]
    Audit,
}

impl Refusal {
    /// Bounded label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Caller(error) => error.reason(),
            Self::Authorise(error) => error.reason(),
            Self::Csr(error) => error.reason(),
            Self::Validity(_) => "bad_validity",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::UnknownMethod => "unknown_method",
            Self::Overloaded => "overloaded",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Sign(_) => "signing_failed",
            Self::Audit => "audit_failed",
        }
    }

    /// gRPC status code.
    pub const fn code(&self) -> Code {
        match self {
            Self::Caller(CallerError::Unavailable { .. })
            | Self::Authorise(AuthoriseError::Unavailable { .. })
            | Self::Timeout
            | Self::Cancelled => Code::Unavailable,
            Self::Caller(_) => Code::Unauthenticated,
            Self::Authorise(AuthoriseError::Identity(_) | AuthoriseError::NoText)
            | Self::Csr(_)
            | Self::Validity(_)
            | Self::Malformed => Code::InvalidArgument,
            Self::Authorise(_) => Code::PermissionDenied,
            Self::TooLarge | Self::Overloaded => Code::ResourceExhausted,
            Self::UnknownMethod => Code::Unimplemented,
            Self::Sign(_) | Self::Audit => Code::Internal,
        }
    }

    /// What the caller is told.
    pub fn status(&self) -> Status {
        Status::new(self.code(), self.to_string())
    }

    /// What the operator of the authority is told: as much as is known.
    pub fn detail(&self) -> String {
        match self {
            Self::Caller(CallerError::Unavailable { detail, .. })
            | Self::Authorise(AuthoriseError::Unavailable { detail, .. }) => format!("{self}: {detail}"),
            Self::Sign(error) => format!("{self}: {error}"),
            _ => self.to_string(),
        }
    }
}
