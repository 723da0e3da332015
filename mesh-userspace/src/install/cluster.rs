//! The cluster, as far as the mesh's objects go: whatever their kind, they are asked for and written as JSON.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;

use super::{ClusterArgs, FIELD_MANAGER, InstallError};
use crate::kubernetes;

/// Longest that one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// Group, version, kind, plural, whether it is in a namespace: of what the mesh has, and what else a namespace may hold.
const KINDS: [(&str, &str, &str, &str, bool); 20] = [
    ("", "v1", "Namespace", "namespaces", false),
    ("", "v1", "ServiceAccount", "serviceaccounts", true),
    ("", "v1", "Secret", "secrets", true),
    ("", "v1", "ConfigMap", "configmaps", true),
    ("", "v1", "Service", "services", true),
    ("", "v1", "Node", "nodes", false),
    ("", "v1", "Pod", "pods", true),
    ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", true),
    ("apps", "v1", "Deployment", "deployments", true),
    ("apps", "v1", "DaemonSet", "daemonsets", true),
    ("apps", "v1", "StatefulSet", "statefulsets", true),
    ("batch", "v1", "Job", "jobs", true),
    ("batch", "v1", "CronJob", "cronjobs", true),
    ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true),
    ("networking.k8s.io", "v1", "Ingress", "ingresses", true),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", false),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", false),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles", true),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", true),
    ("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors", true),
];

/// See the module.
pub(super) struct Cluster {
    client: Client,
    namespace: String,
}

pub(super) fn asking<'a>(
    operation: &'static str,
    object: &'a str,
) -> impl Fn(kube::Error) -> InstallError + 'a {
    move |source| InstallError::Ask { operation, object: object.to_owned(), source: Box::new(source) }
}

pub(super) fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// An object as `kubectl` names it.
pub(super) fn named(kind: &str, name: &str) -> String {
    format!("{kind} {name}")
}

impl Cluster {
    /// The cluster that the flags name; it is not asked anything yet.
    pub(super) async fn connect(args: &ClusterArgs) -> Result<Self, InstallError> {
        let kubeconfig = |error| InstallError::Kubeconfig(Box::new(error));
        let mut config = if args.kubeconfig.is_some() || args.context.is_some() {
            let files = match &args.kubeconfig {
                Some(path) => Kubeconfig::read_from(path),
                None => Kubeconfig::read(),
            };
            let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(files.map_err(kubeconfig)?, &options).await.map_err(kubeconfig)?
        } else {
            Config::infer().await.map_err(|error| InstallError::NoCluster(Box::new(error)))?
        };
        (config.connect_timeout, config.read_timeout) = (Some(ASK_TIMEOUT), Some(ASK_TIMEOUT));
        Ok(Self { client: kubernetes::client(config)?, namespace: args.namespace().to_owned() })
    }

    /// Namespace of the mesh.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What asks it.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Major and minor version of the API server.
    pub(super) async fn version(&self) -> Result<(u32, u32), InstallError> {
        let info = self.client.apiserver_version().await;
        let info = info.map_err(asking("ask the API server for", "its version"))?;
        // Some add a plus: "1", "30+".
        let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok();
        Ok(number(&info.major).zip(number(&info.minor)).unwrap_or(super::chart::KUBERNETES))
    }

    fn api(&self, kind: &str) -> Result<Api<DynamicObject>, InstallError> {
        let row = KINDS.iter().find(|(_, _, known, _, _)| *known == kind);
        let (group, version, kind, plural, namespaced) =
            row.ok_or_else(|| InstallError::Kind(kind.to_owned()))?;
        let api_version = if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") };
        let resource = ApiResource {
            group: (*group).to_owned(),
            version: (*version).to_owned(),
            api_version,
            kind: (*kind).to_owned(),
            plural: (*plural).to_owned(),
        };
        let client = self.client.clone();
        Ok(if *namespaced {
            Api::namespaced_with(client, &self.namespace, &resource)
        } else {
            Api::all_with(client, &resource)
        })
    }

    /// Applies an object, server-side; returns it as it is then.
    pub(super) async fn apply(&self, object: &Value, force: bool) -> Result<Value, InstallError> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        let what = named(kind, name);
        let mut params = PatchParams::apply(FIELD_MANAGER);
        params.force = force;
        match self.api(kind)?.patch(name, &params, &Patch::Apply(object)).await {
            Ok(applied) => Ok(json_of(&applied)),
            Err(kube::Error::Api(status)) if status.code == CONFLICT => {
                Err(InstallError::Conflict { object: what, message: status.message.clone() })
            }
            Err(error) => Err(asking("apply", &what)(error)),
        }
    }

    /// An object, if it is there.
    pub(super) async fn object(&self, kind: &str, name: &str) -> Result<Option<Value>, InstallError> {
        let found = self.api(kind)?.get_opt(name).await;
        Ok(found.map_err(asking("read", &named(kind, name)))?.map(|object| json_of(&object)))
    }

    /// The objects of a kind that a selector finds; none where the cluster does not have the kind.
    pub(super) async fn objects(&self, kind: &str, selector: &str) -> Result<Vec<Value>, InstallError> {
        let api = self.api(kind)?;
        let mut params = ListParams::default().labels(selector).limit(500);
        let mut found = Vec::new();
        loop {
            let page = match api.list(&params).await {
                Ok(page) => page,
                Err(error) if has_code(&error, NOT_FOUND) => return Ok(found),
                Err(error) => return Err(asking("list", kind)(error)),
            };
            found.extend(page.items.iter().map(json_of));
            match page.metadata.continue_.filter(|more| !more.is_empty()) {
                Some(more) => params = params.continue_token(&more),
                None => return Ok(found),
            }
        }
    }

    /// Deletes an object; one that is not there is what was wanted.
    pub(super) async fn delete(&self, kind: &str, name: &str) -> Result<(), InstallError> {
        match self.api(kind)?.delete(name, &DeleteParams::background()).await {
            Err(error) if !has_code(&error, NOT_FOUND) => Err(asking("delete", &named(kind, name))(error)),
            _ => Ok(()),
        }
    }

    /// The pods with a label `app.kubernetes.io/name`.
    pub(super) async fn pods(&self, name: &str) -> Result<Vec<Pod>, InstallError> {
        let selector = format!("{},app.kubernetes.io/name={name}", super::SELECTOR);
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let pods = api.list(&ListParams::default().labels(&selector)).await;
        Ok(pods.map_err(asking("list the pods of", name))?.items)
    }

    /// The last warning about a pod.
    pub(super) async fn warning(&self, pod: &Pod) -> Option<String> {
        let uid = pod.metadata.uid.as_deref()?;
        let api = Api::<Event>::namespaced(self.client.clone(), &self.namespace);
        let params = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
        // It is said for somebody to understand more; without it less is said.
        let mut events = api.list(&params).await.ok()?.items;
        events.retain(|event| {
            event.type_.as_deref() == Some("Warning") && event.involved_object.uid.as_deref() == Some(uid)
        });
        let last = events.into_iter().max_by_key(|event| event.last_timestamp.clone().map(|time| time.0))?;
        let reason = last.reason.unwrap_or_default();
        Some(format!("{reason}: {}", last.message.unwrap_or_default()))
    }

    /// The pods of the mesh's namespace, to run commands in.
    pub(super) fn exec_api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

fn json_of(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}
