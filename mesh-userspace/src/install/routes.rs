//! What the agents have written into routes of the Gateway API, taken out again: a status that nobody keeps true any more.

use std::io::Write;

use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::cluster::{asking, has_code};
use super::{FIELD_MANAGER, InstallError};
use crate::model::CONTROLLER;
use crate::source::kubernetes::kinds::{WATCHED, Watched};

const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;
const FORBIDDEN: u16 = 403;
const ROUTES: [&str; 2] = ["TCPRoute", "TLSRoute"];

/// Takes this controller's entries out of `status.parents` of every route. After the agents have ended: they would write them
/// again.
pub(super) async fn forget(client: &Client, out: &mut dyn Write) -> Result<(), InstallError> {
    let mut forgotten = 0;
    for watched in WATCHED.iter().filter(|watched| ROUTES.contains(&watched.kind)) {
        match forget_kind(client, watched).await {
            Ok(count) => forgotten += count,
            // Nothing else depends on it.
            Err(InstallError::Ask { source, .. }) if has_code(&source, FORBIDDEN) => {
                writeln!(out, "the mesh's status stays on {}: {source}", watched.plural)?;
            }
            Err(error) => return Err(error),
        }
    }
    if forgotten > 0 {
        let routes = if forgotten == 1 { "route" } else { "routes" };
        writeln!(out, "took the mesh's status off {forgotten} {routes}")?;
    }
    Ok(())
}

async fn forget_kind(client: &Client, watched: &Watched) -> Result<usize, InstallError> {
    for version in watched.versions {
        let resource = ApiResource {
            group: watched.group.to_owned(),
            version: (*version).to_owned(),
            api_version: format!("{}/{version}", watched.group),
            kind: watched.kind.to_owned(),
            plural: watched.plural.to_owned(),
        };
        let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let routes = match all.list(&ListParams::default()).await {
            Ok(routes) => routes,
            // Not in this version, or not at all.
            Err(error) if has_code(&error, NOT_FOUND) => continue,
            Err(error) => return Err(asking("list", watched.kind)(error)),
        };
        let mut forgotten = 0;
        for route in routes {
            let Some(others) = of_others(&route.data) else { continue };
            let (name, namespace) = (route.metadata.name.unwrap_or_default(), route.metadata.namespace);
            let namespaced: Api<DynamicObject> =
                Api::namespaced_with(client.clone(), &namespace.unwrap_or_default(), &resource);
            let patch = json!({
                "metadata": {"resourceVersion": route.metadata.resource_version},
                "status": {"parents": others},
            });
            let params =
                PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            match namespaced.patch_status(&name, &params, &Patch::Merge(&patch)).await {
                Ok(_) => forgotten += 1,
                // It went, or somebody else writes it: whoever does has the last word.
                Err(error) if has_code(&error, NOT_FOUND) || has_code(&error, CONFLICT) => {}
                Err(error) => return Err(asking("patch the status of", watched.kind)(error)),
            }
        }
        return Ok(forgotten);
    }
    Ok(0)
}

/// The entries of other controllers, if there are any of this one's.
fn of_others(route: &Value) -> Option<Vec<Value>> {
    let parents = route["status"]["parents"].as_array()?;
    let others: Vec<Value> =
        parents.iter().filter(|parent| parent["controllerName"] != CONTROLLER).cloned().collect();
    (others.len() < parents.len()).then_some(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_others_stay() {
        let own = json!({"controllerName": CONTROLLER, "parentRef": {"name": "web"}});
        let other = json!({"controllerName": "example.com/other", "parentRef": {"name": "gate"}});
        let route = |parents: &[&Value]| json!({"spec": {}, "status": {"parents": parents}});
        assert_eq!(of_others(&route(&[&own, &other])), Some(vec![other.clone()]));
        assert_eq!(of_others(&route(&[&own])), Some(vec![]));
        assert_eq!(of_others(&route(&[&other])), None);
        assert_eq!(of_others(&json!({"spec": {}})), None);
    }
}
