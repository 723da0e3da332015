//! What the Kubernetes API server is asked: whose a token is (`TokenReview`), and which pods run on a node.
//!
//! Whatever goes wrong, the answer is no. The account that this runs with needs `create` on `tokenreviews` (the cluster
//! role `system:auth-delegator`) and `get` and `list` on pods.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, Config};
use tokio::time::Instant;

use super::authorise::{Placement, PlacementError};
use super::caller::{AUDIENCE, Account, Caller, CallerError, Method, TokenReviewer};
use super::digest::{Digest, sha256};
use crate::kubernetes::{self, KubernetesError};
use crate::model::NodeName;

/// Longest that one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a token that was good is taken to be good.
const REVIEW_LIFE: Duration = Duration::from_secs(10);
/// How long what runs on a node is taken to run there.
const PODS_LIFE: Duration = Duration::from_secs(1);
/// How long what does not run on a node is taken not to: shorter, a pod's first certificate waits for it.
const ABSENT_LIFE: Duration = Duration::from_millis(100);
/// Most answers of a kind that are remembered.
const MAX_REMEMBERED: usize = 4096;
/// Pods of one page of a list.
const PAGE: u32 = 500;
/// Most pages of a node's pods.
const MAX_PAGES: usize = 20;

const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

type Pods = Arc<BTreeSet<Account>>;

/// The API server.
pub struct Kubernetes {
    client: Client,
    reviews: Mutex<HashMap<Digest, (Instant, Caller)>>,
    pods: Mutex<HashMap<NodeName, (Instant, Pods)>>,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes").finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// The API server that `KUBECONFIG` names, else that of the cluster that this runs in.
    ///
    /// # Errors
    /// There is none, or what is known of it makes no sense. It is not asked anything yet.
    pub async fn open() -> Result<Self, KubernetesError> {
        Self::new(kubernetes::config().await?)
    }

    fn new(mut config: Config) -> Result<Self, KubernetesError> {
        config.read_timeout = Some(ASK_TIMEOUT);
        config.write_timeout = Some(ASK_TIMEOUT);
        let client = kubernetes::client(config)?;
        Ok(Self { client, reviews: Mutex::default(), pods: Mutex::default() })
    }

    async fn ask_review(&self, token: &str) -> Result<Caller, CallerError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let api = Api::<TokenReview>::all(self.client.clone());
        let answer = in_time(api.create(&PostParams::default(), &review)).await.map_err(unavailable)?;
        let status = answer.status.unwrap_or_default();
        let account = reviewed(&status)?;
        let node = self.node_of(&status, &account).await?;
        Ok(Caller { account, node, method: Method::TokenReview })
    }

    /// The node of the pod that the token is bound to: since Kubernetes 1.30 the token says it, before the pod does.
    async fn node_of(
        &self,
        status: &TokenReviewStatus,
        account: &Account,
    ) -> Result<Option<NodeName>, CallerError> {
        let extra = |key: &str| {
            let values = status.user.as_ref()?.extra.as_ref()?.get(key)?;
            values.first().map(String::as_str).filter(|value| is_name(value))
        };
        if let Some(node) = extra(NODE_NAME) {
            return Ok(Some(NodeName::new(node)));
        }
        let (Some(name), Some(uid)) = (extra(POD_NAME), extra(POD_UID)) else { return Ok(None) };
        let api = Api::<Pod>::namespaced(self.client.clone(), &account.namespace);
        let Some(pod) = in_time(api.get_opt(name)).await.map_err(unavailable)? else { return Ok(None) };
        let spec = pod.spec.unwrap_or_default();
        let is_it = pod.metadata.uid.as_deref() == Some(uid)
            && spec.service_account_name.as_deref() == Some(&*account.name);
        Ok(spec.node_name.filter(|_| is_it).map(NodeName::new))
    }

    async fn ask_pods(&self, node: &NodeName) -> Result<Pods, PlacementError> {
        if !is_name(node.as_str()) {
            return Err(PlacementError(format!("`{node}` cannot be a node's name")));
        }
        let api = Api::<Pod>::all(self.client.clone());
        let mut wanted = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(PAGE);
        let mut accounts = BTreeSet::new();
        for _page in 0..MAX_PAGES {
            let page = in_time(api.list(&wanted)).await.map_err(PlacementError)?;
            accounts.extend(page.items.iter().filter_map(|pod| runs(pod, node)));
            match page.metadata.continue_.filter(|more| !more.is_empty()) {
                Some(more) => wanted = wanted.continue_token(&more),
                None => return Ok(Arc::new(accounts)),
            }
        }
        Err(PlacementError(format!("{node} has more than {} pods", MAX_PAGES * PAGE as usize)))
    }

    fn reviews(&self) -> MutexGuard<'_, HashMap<Digest, (Instant, Caller)>> {
        self.reviews.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<NodeName, (Instant, Pods)>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TokenReviewer for Kubernetes {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, CallerError>> {
        Box::pin(async move {
            let digest = sha256(token.as_bytes());
            let known = self.reviews().get(&digest).filter(|(at, _)| at.elapsed() < REVIEW_LIFE).cloned();
            if let Some((_, caller)) = known {
                return Ok(caller);
            }
            let asked = Instant::now();
            let caller = self.ask_review(token).await.inspect_err(log)?;
            remember(&mut self.reviews(), REVIEW_LIFE, digest, (asked, caller.clone()));
            Ok(caller)
        })
    }
}

impl Placement for Kubernetes {
    fn runs<'a>(
        &'a self,
        account: &'a Account,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<bool, PlacementError>> {
        Box::pin(async move {
            let known = self.pods().get(node).cloned();
            if let Some((at, pods)) = known {
                let (age, found) = (at.elapsed(), pods.contains(account));
                if age < if found { PODS_LIFE } else { ABSENT_LIFE } {
                    return Ok(found);
                }
            }
            let asked = Instant::now();
            let pods = self.ask_pods(node).await.inspect_err(|error| {
                tracing::error!(%node, %error, "the pods of a node cannot be listed");
            })?;
            let found = pods.contains(account);
            remember(&mut self.pods(), PODS_LIFE, node.clone(), (asked, pods));
            Ok(found)
        })
    }
}

fn remember<K: Eq + std::hash::Hash, V>(
    map: &mut HashMap<K, (Instant, V)>,
    life: Duration,
    key: K,
    value: (Instant, V),
) {
    if map.len() >= MAX_REMEMBERED {
        map.retain(|_, (at, _)| at.elapsed() < life);
    }
    if map.len() >= MAX_REMEMBERED {
        map.clear();
    }
    map.insert(key, value);
}

/// Whether the API server takes the token, for the right audience, and as a service account's.
fn reviewed(status: &TokenReviewStatus) -> Result<Account, CallerError> {
    if status.authenticated != Some(true) {
        // "token audiences [...] is invalid for the target audiences [...]", "service account token has expired".
        let error = status.error.as_deref().unwrap_or_default();
        return Err(match error {
            _ if error.contains("audience") => CallerError::WrongAudience,
            _ if error.contains("expired") => CallerError::ExpiredToken,
            _ => CallerError::UnknownToken,
        });
    }
    // An API server that does not know of audiences returns none, and has not looked at them.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(CallerError::WrongAudience);
    }
    let name = status.user.as_ref().and_then(|user| user.username.as_deref()).unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    account
        .and_then(|(namespace, name)| Account::new(namespace, name).ok())
        .ok_or(CallerError::NoServiceAccount)
}

/// The account of a pod that is on the node and has not ended.
fn runs(pod: &Pod, node: &NodeName) -> Option<Account> {
    let spec = pod.spec.as_ref().filter(|spec| spec.node_name.as_deref() == Some(node.as_str()))?;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let name = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    Account::new(pod.metadata.namespace.as_deref()?, name).ok()
}

/// Whether a name can go into a path or a selector as it is.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    !name.is_empty() && name.len() <= 253 && !name.starts_with('.') && name.bytes().all(allowed)
}

/// One question, with a deadline; the error is for the operator.
async fn in_time<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ASK_TIMEOUT, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(format!(
            "the Kubernetes API server answered {} {}: {}",
            status.code, status.reason, status.message
        )),
        Ok(Err(error)) => Err(format!("the Kubernetes API server cannot be asked: {}", chain(&error))),
        Err(_elapsed) => Err(format!("the Kubernetes API server did not answer within {ASK_TIMEOUT:?}")),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn unavailable(detail: String) -> CallerError {
    CallerError::Unavailable { what: "the Kubernetes API server", detail }
}

fn log(error: &CallerError) {
    if let CallerError::Unavailable { detail, .. } = error {
        tracing::error!(detail, "a token cannot be reviewed");
    }
}

#[cfg(test)]
mod tests;
