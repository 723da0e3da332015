//! All objects of a cluster that a mesh knows, read once: for `meshctl`, which follows nothing.
//!
//! What the API server does not serve (CRDs that are not installed) is skipped; what the user may not list is told. Every
//! request has its deadline, all of them together as well, and so many objects are held at most.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{Request, StatusCode};
use kube::Client;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::{KubernetesError, client, user_config};
use crate::resources::{Change, GROUPS, Kind, Mistake, decode_json};

/// Objects in an answer.
const PAGE: u32 = 500;
/// Objects that are held at most, of all kinds.
const MAX_OBJECTS: usize = 1_000_000;
/// How often a list is begun: its continuation may expire.
const MAX_ATTEMPTS: u32 = 3;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_mins(5);

/// Kinds that every API server has, with their group's path.
const BUILT_IN: [(&str, &str, &str, &str); 6] = [
    ("/api/v1", "v1", "namespaces", "Namespace"),
    ("/api/v1", "v1", "nodes", "Node"),
    ("/api/v1", "v1", "pods", "Pod"),
    ("/api/v1", "v1", "services", "Service"),
    ("/api/v1", "v1", "serviceaccounts", "ServiceAccount"),
    ("/apis/discovery.k8s.io/v1", "discovery.k8s.io/v1", "endpointslices", "EndpointSlice"),
];

/// Why the cluster's objects cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// There is no API server to ask.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// It does not say which kinds it has.
    #[error("cannot ask the Kubernetes API server at {server} which kinds it has")]
    Discovery {
        /// Its address.
        server: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// It does not list what it has.
    #[error("cannot list {kind} of the Kubernetes API server at {server}")]
    List {
        /// Of what.
        kind: String,
        /// Its address.
        server: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// Too slow.
    #[error("the Kubernetes API server at {server} did not answer within {} s", within.as_secs())]
    Timeout {
        /// Its address.
        server: String,
        /// How long was waited.
        within: Duration,
    },
    /// Its answer is none.
    #[error("the Kubernetes API server at {server} does not answer with a list of {kind}")]
    Answer {
        /// Of what.
        kind: String,
        /// Its address.
        server: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// More than is held.
    #[error("the cluster has more than {MAX_OBJECTS} objects that a mesh knows: analyze manifests instead")]
    TooMany,
    /// The lists change faster than they can be read.
    #[error("the list of {kind} expired {MAX_ATTEMPTS} times while it was read")]
    Expired {
        /// Of what.
        kind: String,
    },
}

/// What a cluster holds.
#[derive(Debug, Default)]
pub struct Listed {
    /// Its objects.
    pub changes: Vec<Change>,
    /// What is wrong with those that are rejected.
    pub mistakes: Vec<Mistake>,
    /// Kinds that could not be listed, and why.
    pub unlisted: BTreeMap<String, String>,
}

/// A kind as the API server serves it.
#[derive(Clone, Debug)]
struct Served {
    path: String,
    api_version: String,
    kind: String,
}

/// All objects of the cluster that the user's kubeconfig names.
///
/// # Errors
/// It cannot be asked, or not to the end.
pub async fn list_all() -> Result<Listed, ListError> {
    let config = user_config().await?;
    let server = config.cluster_url.to_string();
    let server = server.trim_end_matches('/').to_owned();
    let lister = Lister { client: client(config)?, server };
    let within = TIMEOUT;
    let timed_out = |_elapsed| ListError::Timeout { server: lister.server.clone(), within };
    timeout(within, lister.all()).await.map_err(timed_out)?
}

struct Lister {
    client: Client,
    server: String,
}

impl Lister {
    async fn all(&self) -> Result<Listed, ListError> {
        let mut listed = Listed::default();
        for kind in self.kinds().await? {
            self.list(&kind, &mut listed).await?;
        }
        Ok(listed)
    }

    /// The kinds that the API server has of those that a mesh knows.
    async fn kinds(&self) -> Result<Vec<Served>, ListError> {
        let built_in = BUILT_IN.iter().map(|(group, version, plural, kind)| Served {
            path: format!("{group}/{plural}"),
            api_version: (*version).to_owned(),
            kind: (*kind).to_owned(),
        });
        let mut kinds: Vec<Served> = built_in.collect();
        let failed = |source| ListError::Discovery { server: self.server.clone(), source: Box::new(source) };
        let groups = self.within(self.client.list_api_groups()).await?.map_err(failed)?;
        for group in groups.groups.iter().filter(|group| GROUPS.contains(&group.name.as_str())) {
            // Each version may serve kinds that the others do not (Gateway API's v1 and v1alpha2).
            let preferred = group.preferred_version.iter().map(|version| &version.group_version);
            let versions = preferred.chain(group.versions.iter().map(|version| &version.group_version));
            for version in versions {
                let resources =
                    self.within(self.client.list_api_group_resources(version)).await?.map_err(failed)?;
                for resource in resources.resources {
                    let is_known = kinds.iter().any(|known| {
                        known.kind == resource.kind
                            && known.api_version.starts_with(&format!("{}/", group.name))
                    });
                    let is_listed =
                        resource.verbs.iter().any(|verb| verb == "list") && !resource.name.contains('/');
                    if is_listed && !is_known {
                        kinds.push(Served {
                            path: format!("/apis/{version}/{}", resource.name),
                            api_version: version.clone(),
                            kind: resource.kind,
                        });
                    }
                }
            }
        }
        Ok(kinds)
    }

    async fn list(&self, kind: &Served, listed: &mut Listed) -> Result<(), ListError> {
        for _ in 0..MAX_ATTEMPTS {
            match self.pages(kind).await? {
                Pages::All(items) => {
                    for item in items {
                        kind.add(item.get(), listed);
                    }
                    return if listed.changes.len() > MAX_OBJECTS { Err(ListError::TooMany) } else { Ok(()) };
                }
                Pages::Forbidden(reason) => {
                    listed.unlisted.insert(kind.kind.clone(), reason);
                    return Ok(());
                }
                Pages::Absent => return Ok(()),
                Pages::Expired => {}
            }
        }
        Err(ListError::Expired { kind: kind.kind.clone() })
    }

    async fn pages(&self, kind: &Served) -> Result<Pages, ListError> {
        let mut items = Vec::new();
        let mut continued = String::new();
        loop {
            let text = match self.page(kind, &continued).await? {
                Ok(text) => text,
                Err(kube::Error::Api(status)) if status.code == StatusCode::FORBIDDEN.as_u16() => {
                    return Ok(Pages::Forbidden(status.message));
                }
                Err(kube::Error::Api(status)) if status.code == StatusCode::NOT_FOUND.as_u16() => {
                    return Ok(Pages::Absent);
                }
                Err(kube::Error::Api(status))
                    if status.code == StatusCode::GONE.as_u16() && !continued.is_empty() =>
                {
                    return Ok(Pages::Expired);
                }
                Err(source) => {
                    let (kind, server) = (kind.kind.clone(), self.server.clone());
                    return Err(ListError::List { kind, server, source: Box::new(source) });
                }
            };
            let page: Page = serde_json::from_str(&text).map_err(|source| ListError::Answer {
                kind: kind.kind.clone(),
                server: self.server.clone(),
                source,
            })?;
            items.extend(page.items);
            if items.len() > MAX_OBJECTS {
                return Err(ListError::TooMany);
            }
            continued = page.metadata.continued;
            if continued.is_empty() {
                return Ok(Pages::All(items));
            }
        }
    }

    async fn page(&self, kind: &Served, continued: &str) -> Result<kube::Result<String>, ListError> {
        let continued = match continued {
            "" => String::new(),
            token => format!("&continue={}", escaped(token)),
        };
        let path = format!("{}?limit={PAGE}{continued}", kind.path);
        let request = match Request::get(path).body(Vec::new()) {
            Ok(request) => request,
            Err(error) => return Ok(Err(kube::Error::HttpError(error))),
        };
        self.within(self.client.request_text(request)).await
    }

    async fn within<T>(&self, request: impl Future<Output = T>) -> Result<T, ListError> {
        let within = REQUEST_TIMEOUT;
        timeout(within, request)
            .await
            .map_err(|_elapsed| ListError::Timeout { server: self.server.clone(), within })
    }
}

/// What came of the pages of a list.
enum Pages {
    All(Vec<Box<RawValue>>),
    Forbidden(String),
    Absent,
    Expired,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(default)]
    items: Vec<Box<RawValue>>,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(default, rename = "continue")]
    continued: String,
}

impl Served {
    /// Reads an item as an agent does.
    fn add(&self, item: &str, listed: &mut Listed) {
        match decode_json(&self.api_version, &Kind::from(self.kind.clone()), item) {
            Ok(object) => listed.changes.push(Change::Upsert(object)),
            Err(rejected) => {
                listed.mistakes.extend(rejected.mistakes);
                listed.changes.extend(rejected.stand_in.map(Change::Upsert));
            }
        }
    }
}

/// A continuation token for a query (RFC 3986, section 2).
fn escaped(text: &str) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes()
        .map(|byte| if is_plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};

    use http::Response;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower::Service;

    use super::*;

    /// An API server by its answers: status and document for a path with its query.
    #[derive(Clone)]
    struct Fake(Arc<Mutex<dyn FnMut(&str) -> (u16, Value) + Send>>);

    impl Service<Request<Body>> for Fake {
        type Response = Response<Body>;
        type Error = std::io::Error;
        type Future = Ready<Result<Response<Body>, std::io::Error>>;

        fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let asked = request.uri().path_and_query().unwrap().to_string();
            let (status, answer) = (self.0.lock().unwrap())(&asked);
            let body = Body::from(answer.to_string().into_bytes());
            ready(Ok(Response::builder().status(status).body(body).unwrap()))
        }
    }

    fn status(code: u16, message: &str) -> (u16, Value) {
        let answer = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": message, "reason": "Whatever"});
        (code, answer)
    }

    async fn listed(answer: impl FnMut(&str) -> (u16, Value) + Send + 'static) -> Result<Listed, ListError> {
        let client = Client::new(Fake(Arc::new(Mutex::new(answer))), "default");
        Lister { client, server: "https://cluster".to_owned() }.all().await
    }

    fn groups(names: &[&str]) -> (u16, Value) {
        let group = |name: &&str| {
            let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
            json!({"name": name, "versions": [version], "preferredVersion": version})
        };
        (
            200,
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": names.iter().map(group).collect::<Vec<_>>()}),
        )
    }

    #[tokio::test]
    async fn everything_is_listed_page_by_page() {
        let mut expired = false;
        let answer = move |asked: &str| match asked {
            "/apis" => groups(&["apps", "security.istio.io"]),
            "/apis/security.istio.io/v1" => {
                let one = |name: &str, kind: &str, verbs: &[&str]| json!({"name": name, "kind": kind, "namespaced": true, "singularName": "", "verbs": verbs});
                let resources = [
                    one("peerauthentications", "PeerAuthentication", &["list"]),
                    one("peerauthentications/status", "PeerAuthentication", &["get"]),
                    one("requestauthentications", "RequestAuthentication", &["list"]),
                ];
                (
                    200,
                    json!({"kind": "APIResourceList", "groupVersion": "security.istio.io/v1", "resources": resources}),
                )
            }
            "/apis/security.istio.io/v1/peerauthentications?limit=500" => {
                let bad = json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": {"mtls": {"mode": "STRCT"}}});
                (200, json!({"metadata": {}, "items": [bad]}))
            }
            "/apis/security.istio.io/v1/requestauthentications?limit=500" => {
                (200, json!({"metadata": {}, "items": [{"metadata": {"name": "jwt", "namespace": "shop"}}]}))
            }
            "/api/v1/namespaces?limit=500" => {
                (200, json!({"metadata": {"continue": "a/b="}, "items": [{"metadata": {"name": "shop"}}]}))
            }
            "/api/v1/namespaces?limit=500&continue=a%2Fb%3D" => {
                if !std::mem::replace(&mut expired, true) {
                    return status(410, "the continuation expired");
                }
                (200, json!({"metadata": {}, "items": [{"metadata": {"name": "other"}}]}))
            }
            "/api/v1/nodes?limit=500" => status(403, "nodes is forbidden"),
            "/apis/discovery.k8s.io/v1/endpointslices?limit=500" => status(404, "not here"),
            _ => (200, json!({"metadata": {}, "items": []})),
        };
        let listed = listed(answer).await.unwrap();
        let names: Vec<String> = listed
            .changes
            .iter()
            .map(|change| match change {
                Change::Upsert(object) => object.reference().to_string(),
                Change::Delete(reference) => panic!("{reference} is deleted"),
            })
            .collect();
        // The policy that cannot be read is stood in for, as at an agent that starts.
        let expected = [
            "Namespace shop",
            "Namespace other",
            "PeerAuthentication shop/a",
            "RequestAuthentication shop/jwt",
        ];
        assert_eq!(names, expected);
        assert_eq!(listed.mistakes.len(), 1, "{:?}", listed.mistakes);
        assert_eq!(listed.mistakes[0].field, "spec.mtls.mode");
        assert_eq!(
            listed.unlisted.into_iter().collect::<Vec<_>>(),
            [("Node".to_owned(), "nodes is forbidden".to_owned())]
        );
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_said() {
        let failure = listed(|_asked| status(401, "Unauthorized")).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "cannot ask the Kubernetes API server at https://cluster which kinds it has"
        );
        let answer = |asked: &str| if asked == "/apis" { groups(&[]) } else { status(500, "etcd is away") };
        let failure = listed(answer).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "cannot list Namespace of the Kubernetes API server at https://cluster"
        );
        let answer = |asked: &str| if asked == "/apis" { groups(&[]) } else { (200, json!("x")) };
        assert!(matches!(listed(answer).await.unwrap_err(), ListError::Answer { .. }));
        let answer = |asked: &str| match asked {
            "/apis" => groups(&[]),
            asked if asked.contains("continue") => status(410, "expired"),
            _ => (200, json!({"metadata": {"continue": "x"}, "items": []})),
        };
        let failure = listed(answer).await.unwrap_err();
        assert_eq!(failure.to_string(), "the list of Namespace expired 3 times while it was read");
    }
}
