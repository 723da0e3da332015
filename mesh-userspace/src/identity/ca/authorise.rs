//! Which identity a caller may have a certificate of: its own, or, for a node's agent, that of a pod on its node.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;

use super::caller::{Account, Caller, Method};
use crate::model::{Identity, IdentityError, NodeName, Snapshot, TrustDomain};

/// What is known of the pods cannot be had. The text is for the authority's operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlacementError(pub String);

/// Tells which service accounts run where.
pub trait Placement: Send + Sync + 'static {
    /// Whether a pod of this service account, which has not ended, is on the node. Cancel safe.
    fn runs<'a>(
        &'a self,
        account: &'a Account,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<bool, PlacementError>>;
}

/// The pods of manifests.
pub struct SnapshotPlacement(Arc<ArcSwap<Snapshot>>);

impl fmt::Debug for SnapshotPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotPlacement").finish_non_exhaustive()
    }
}

impl SnapshotPlacement {
    /// Those of whatever snapshot is in force.
    pub const fn new(current: Arc<ArcSwap<Snapshot>>) -> Self {
        Self(current)
    }
}

impl Placement for SnapshotPlacement {
    fn runs<'a>(
        &'a self,
        account: &'a Account,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<bool, PlacementError>> {
        let snapshot = self.0.load_full();
        // Pods that have ended are no workloads.
        let found = snapshot.workloads.values().any(|workload| {
            workload.is_on(node)
                && workload.identity.namespace == account.namespace
                && workload.identity.service_account == account.name
        });
        Box::pin(std::future::ready(Ok(found)))
    }
}

/// Why a caller may not have the identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthoriseError {
    /// What is asked for is no identity.
    #[error("ImpersonatedIdentity is no SPIFFE ID: {0}")]
    Identity(IdentityError),
    /// What is asked for is no text.
    #[error("ImpersonatedIdentity is not a string")]
    NoText,
    /// It is of another trust domain.
    #[error("ImpersonatedIdentity is not of the trust domain {0}, the only one that is signed here")]
    TrustDomain(TrustDomain),
    /// The caller is no node's agent.
    #[error("{0} is not the account of a node's agent and may ask for itself alone (see --node-account)")]
    NotANodeAccount(Account),
    /// Nobody knows which node the caller is on.
    #[error("the proof does not say which node {0} runs on, so it may ask for itself alone")]
    NoNode(Account),
    /// No such pod is there.
    #[error("no pod with the service account {account} runs on {node}, as far as the authority knows")]
    NotOnNode {
        /// The account of the identity asked for.
        account: Account,
        /// The caller's node.
        node: NodeName,
    },
    /// What runs where cannot be told.
    #[error("what runs on {node} cannot be told now: try again, and look at the authority's log")]
    Unavailable {
        /// The caller's node.
        node: NodeName,
        /// Why, for the operator of the authority alone.
        detail: String,
    },
}

impl AuthoriseError {
    /// Bounded label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Identity(_) | Self::NoText => "bad_identity",
            Self::TrustDomain(_) => "wrong_trust_domain",
            Self::NotANodeAccount(_) => "not_a_node_account",
            Self::NoNode(_) => "no_node",
            Self::NotOnNode { .. } => "not_on_node",
            Self::Unavailable { .. } => "placement_unavailable",
        }
    }
}

/// Decides.
pub struct Authoriser {
    trust_domain: TrustDomain,
    node_accounts: BTreeSet<Account>,
    placements: Vec<Arc<dyn Placement>>,
}

impl fmt::Debug for Authoriser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authoriser")
            .field("trust_domain", &self.trust_domain)
            .field("node_accounts", &self.node_accounts)
            .finish_non_exhaustive()
    }
}

impl Authoriser {
    /// For this trust domain; a pod is where any of `placements` knows it to be.
    pub fn new(
        trust_domain: TrustDomain,
        node_accounts: impl IntoIterator<Item = Account>,
        placements: Vec<Arc<dyn Placement>>,
    ) -> Self {
        Self { trust_domain, node_accounts: node_accounts.into_iter().collect(), placements }
    }

    /// The identity that the certificate is to be of.
    ///
    /// # Errors
    /// See [`AuthoriseError`].
    pub async fn authorise(
        &self,
        caller: &Caller,
        impersonated: Option<&str>,
    ) -> Result<Identity, AuthoriseError> {
        let own = caller.account.identity(&self.trust_domain);
        let asked = impersonated.map(str::parse::<Identity>).transpose().map_err(AuthoriseError::Identity)?;
        let Some(asked) = asked.filter(|asked| *asked != own) else {
            // A token ends, or is taken out of its file; whoever has stolen a workload's certificate is not to have the next
            // one for it, and so on for ever.
            let is_node = self.node_accounts.contains(&caller.account);
            return if caller.method == Method::ClientCertificate && !is_node {
                Err(AuthoriseError::NotANodeAccount(caller.account.clone()))
            } else {
                Ok(own)
            };
        };
        if asked.trust_domain != self.trust_domain {
            return Err(AuthoriseError::TrustDomain(self.trust_domain.clone()));
        }
        if !self.node_accounts.contains(&caller.account) {
            return Err(AuthoriseError::NotANodeAccount(caller.account.clone()));
        }
        let node = caller.node.as_ref().ok_or_else(|| AuthoriseError::NoNode(caller.account.clone()))?;
        let account =
            Account { namespace: Arc::clone(&asked.namespace), name: Arc::clone(&asked.service_account) };
        let mut failed = None;
        for placement in &self.placements {
            match placement.runs(&account, node).await {
                Ok(true) => return Ok(asked),
                Ok(false) => {}
                Err(error) => failed = Some(error),
            }
        }
        Err(match failed {
            Some(error) => AuthoriseError::Unavailable { node: node.clone(), detail: error.to_string() },
            None => AuthoriseError::NotOnNode { account, node: node.clone() },
        })
    }
}
