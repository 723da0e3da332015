//! Istio's protocol for certificates: this project's authority as a server of it, and the agent's client of any server.
//!
//! The server is never open: a request is answered for a caller that has proved who it is ([`caller`]), for an identity
//! that it may have ([`authorise`]), with a request for a certificate that asks for nothing else ([`csr`]). Each request
//! leaves one line in the audit log, whatever becomes of it ([`audit`]).

pub mod audit;
pub mod authorise;
pub mod caller;
pub mod client;
pub mod csr;
mod digest;
pub mod kubernetes;
mod limits;
pub mod metrics;
pub(crate) mod pem;
mod proto;
mod refusal;
pub mod server;
mod service;
pub mod serving;
mod stream;
pub mod tokens;

pub use self::audit::{Audit, AuditError};
pub use self::authorise::{Authoriser, Placement, PlacementError, SnapshotPlacement};
pub use self::caller::{Account, Caller, Callers, Method};
pub use self::client::{CaAddress, CaClient, CaClientConfig, CaClientError};
pub use self::csr::CsrError;
pub use self::kubernetes::Kubernetes;
pub use self::metrics::CaMetrics;
pub use self::refusal::Refusal;
pub use self::server::{Limits, Server, ServerConfig};
pub use self::serving::{ServingConfig, ServingError};
pub use self::tokens::{NodeTokens, TokensError};

#[cfg(test)]
mod tests;
