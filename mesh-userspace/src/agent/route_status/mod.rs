//! The status of Gateway API routes at the API server, written by one agent of the cluster.
//!
//! Every agent knows what it is to be (`Snapshot::routes`) and what it is, from the same watch. One that sees a difference
//! waits a moment, a random one, then tries for the lease (`lease`), writes, and gives the lease back: without a difference
//! nobody asks the API server for anything. Of each route only this controller's entries are replaced (`parents`), in the version that
//! was seen; a route that changed meanwhile is left for the next look.

mod lease;
mod parents;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use self::lease::Candidate;
use super::chain;
use crate::model::{RouteName, RouteState, Snapshot};

/// A difference is left alone for this long at most, for another agent to see to.
const MODESTY: Duration = Duration::from_secs(3);
/// Between two writes.
const PACE: Duration = Duration::from_millis(100);
/// What failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(10);
/// Longest that the API server may take for one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// So the agents are called in `managedFields`.
const FIELD_MANAGER: &str = "mesh-agent";

/// The namespace of the agents, where the lease is.
pub(super) fn namespace() -> String {
    std::env::var("POD_NAMESPACE")
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "mesh-system".to_owned())
}

/// What is written of a route, for the version of it that was seen.
type Written = HashMap<RouteName, Arc<str>>;

/// Writes until the snapshots end. Never returns before that; what fails is logged and tried again.
pub(super) async fn write(
    client: Client,
    namespace: String,
    node: String,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) {
    // A restarted agent is another one: whether the one before has ended is not known.
    let identity = format!("{node}_{:016x}", fastrand::u64(..));
    let mut candidate = Candidate::new(client.clone(), &namespace, identity);
    let mut written = Written::new();
    loop {
        while differing(&snapshots.borrow_and_update(), &mut written).is_none() {
            if snapshots.changed().await.is_err() {
                return;
            }
        }
        tokio::time::sleep(MODESTY.mul_f64(fastrand::f64())).await;
        if let Err(error) = session(&client, &mut candidate, &snapshots, &mut written).await {
            tracing::warn!(error = %chain(&error), "the status of routes cannot be written, it is tried again");
            tokio::time::sleep(RETRY).await;
        }
        let released = tokio::time::timeout(ANSWER, candidate.release()).await;
        if let Ok(Err(error)) = released {
            tracing::debug!(error = %chain(&error), "the lease runs out by itself");
        }
    }
}

/// Why the status is not written.
#[derive(Debug, thiserror::Error)]
enum StatusError {
    #[error("the API server has not answered within {ANSWER:?}")]
    Late,
    #[error("cannot have the lease of those who write the status of routes")]
    Lease(#[source] kube::Error),
    #[error("cannot write the status of {kind} {name}")]
    Write {
        kind: &'static str,
        name: String,
        #[source]
        source: kube::Error,
    },
}

/// Writes all that differs, while the lease is held.
async fn session(
    client: &Client,
    candidate: &mut Candidate,
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    written: &mut Written,
) -> Result<(), StatusError> {
    loop {
        let next = differing(&snapshots.borrow(), written);
        let Some((name, state)) = next else { return Ok(()) };
        let held = within(candidate.hold()).await?.map_err(StatusError::Lease)?;
        if !held || !candidate.holds() {
            // Whoever holds it sees the same.
            tokio::time::sleep(MODESTY).await;
            return Ok(());
        }
        put(client, &name, &state).await?;
        if let Some(version) = &state.resource_version {
            written.insert(name, Arc::clone(version));
        }
        tokio::time::sleep(PACE).await;
    }
}

/// A route whose status is to be another, and was not written since it was seen so.
fn differing(snapshot: &Snapshot, written: &mut Written) -> Option<(RouteName, Arc<RouteState>)> {
    written.retain(|name, version| {
        snapshot.routes.get(name).is_some_and(|state| state.resource_version.as_ref() == Some(version))
    });
    let mut routes = snapshot.routes.iter().filter(|(name, state)| {
        state.resource_version.is_some()
            && !written.contains_key(name)
            && parents::to_write(state, "").is_some()
    });
    routes.next().map(|(name, state)| (name.clone(), Arc::clone(state)))
}

async fn put(client: &Client, name: &RouteName, state: &RouteState) -> Result<(), StatusError> {
    let now = OffsetDateTime::from(SystemTime::now());
    // Without parts of a second, as the API has it.
    let now = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default();
    let Some(parents) = parents::to_write(state, &now) else { return Ok(()) };
    let version = state.api_version.rsplit('/').next().unwrap_or_default();
    let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", version, name.kind.as_str());
    let resource = ApiResource::from_gvk_with_plural(&kind, name.kind.plural());
    let routes: Api<DynamicObject> = Api::namespaced_with(client.clone(), &name.name.namespace, &resource);
    let patch = json!({
        "metadata": { "resourceVersion": state.resource_version.as_deref() },
        "status": { "parents": parents },
    });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match within(routes.patch_status(&name.name.name, &params, &Patch::Merge(&patch))).await? {
        Ok(_) => {
            tracing::debug!(kind = name.kind.as_str(), route = %name.name, "status written");
            Ok(())
        }
        // It is another one now, or gone: the watch says so too.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(source) => {
            Err(StatusError::Write { kind: name.kind.as_str(), name: name.name.to_string(), source })
        }
    }
}

async fn within<T>(answer: impl Future<Output = T>) -> Result<T, StatusError> {
    tokio::time::timeout(ANSWER, answer).await.map_err(|_elapsed| StatusError::Late)
}
