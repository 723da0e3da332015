//! Against a small API server over HTTP: what it says, what it refuses, and when it says nothing.

use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::*;

/// What the API server knows.
#[derive(Default)]
struct Api {
    /// Answer with this status in place of 200.
    status: AtomicU16,
    reviews: AtomicUsize,
    lists: AtomicUsize,
    pods: Mutex<Vec<Value>>,
}

async fn review(State(api): State<Arc<Api>>, Json(review): Json<Value>) -> (StatusCode, Json<Value>) {
    api.reviews.fetch_add(1, Ordering::Relaxed);
    let user = |name: &str, extra: Value| json!({"authenticated": true, "audiences": ["istio-ca"], "user": {"username": name, "extra": extra}});
    let agent = "system:serviceaccount:mesh-system:meshd";
    let bound = json!({POD_NAME: ["meshd-x"], POD_UID: ["uid-1"]});
    assert_eq!(review["spec"]["audiences"], json!(["istio-ca"]));
    let status = match review["spec"]["token"].as_str().unwrap() {
        "node" => user(agent, json!({NODE_NAME: ["node-a"]})),
        "pod" => user(agent, bound),
        "gone" => user(agent, json!({POD_NAME: ["meshd-x"], POD_UID: ["uid-0"]})),
        "strange" => user(
            agent,
            json!({NODE_NAME: ["node-a,status.phase=Running"], POD_NAME: ["../x"], POD_UID: ["a"]}),
        ),
        "unbound" => user(agent, json!({})),
        "human" => user("kubernetes-admin", json!({})),
        "deaf" => json!({"authenticated": true, "user": {"username": agent}}),
        "other" => json!({"authenticated": true, "audiences": ["vault"], "user": {"username": agent}}),
        "vault" => {
            json!({"error": "[invalid bearer token, token audiences [\"vault\"] is invalid for the target audiences [\"istio-ca\"]]"})
        }
        "expired" => json!({"error": "[invalid bearer token, service account token has expired]"}),
        "slow" => std::future::pending().await,
        _ => json!({"authenticated": false}),
    };
    answer(
        &api,
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status}),
    )
}

async fn list(
    State(api): State<Arc<Api>>,
    Query(query): Query<std::collections::BTreeMap<String, String>>,
) -> (StatusCode, Json<Value>) {
    api.lists.fetch_add(1, Ordering::Relaxed);
    let node = query["fieldSelector"].strip_prefix("spec.nodeName=").unwrap().to_owned();
    if node == "slow" {
        std::future::pending::<()>().await;
    }
    let pods: Vec<Value> = api.pods.lock().unwrap().clone();
    let on_node: Vec<Value> = pods.into_iter().filter(|pod| pod["spec"]["nodeName"] == *node).collect();
    // A page each, to see that all are asked for.
    let at: usize = query.get("continue").map_or(0, |token| token.parse().unwrap());
    let page: Vec<&Value> = on_node.iter().skip(at).take(1).collect();
    let more = if at + 1 < on_node.len() { json!({"continue": (at + 1).to_string()}) } else { json!({}) };
    answer(&api, json!({"apiVersion": "v1", "kind": "PodList", "metadata": more, "items": page}))
}

async fn pod(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> (StatusCode, Json<Value>) {
    let pods = api.pods.lock().unwrap().clone();
    let found = pods
        .into_iter()
        .find(|pod| pod["metadata"]["name"] == *name && pod["metadata"]["namespace"] == *namespace);
    if let Some(pod) = found {
        return answer(&api, pod);
    }
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404});
    (StatusCode::NOT_FOUND, Json(status))
}

fn answer(api: &Api, good: Value) -> (StatusCode, Json<Value>) {
    match api.status.load(Ordering::Relaxed) {
        0 => (StatusCode::OK, Json(good)),
        code => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden",
                "message": "tokenreviews is forbidden", "code": code});
            (StatusCode::from_u16(code).unwrap(), Json(status))
        }
    }
}

fn a_pod(name: &str, uid: &str, account: &str, node: &str, phase: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": if account == "meshd" { "mesh-system" } else { "default" }, "uid": uid},
        "spec": {"serviceAccountName": account, "nodeName": node, "containers": []}, "status": {"phase": phase}})
}

async fn start() -> (Arc<Api>, Kubernetes) {
    let api = Arc::new(Api::default());
    *api.pods.lock().unwrap() = vec![
        a_pod("meshd-x", "uid-1", "meshd", "node-b", "Running"),
        a_pod("web-1", "uid-2", "web", "node-a", "Pending"),
        a_pod("job-1", "uid-3", "job", "node-a", "Succeeded"),
        a_pod("api-1", "uid-4", "api", "node-a", "Running"),
    ];
    let router = Router::new()
        .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
        .route("/api/v1/pods", get(list))
        .route("/api/v1/namespaces/{namespace}/pods/{name}", get(pod))
        .with_state(Arc::clone(&api));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (api, Kubernetes::new(Config::new(url.parse().unwrap())).unwrap())
}

fn unavailable(error: &CallerError) -> bool {
    matches!(error, CallerError::Unavailable { .. })
}

#[tokio::test]
async fn a_token_is_its_accounts_and_its_nodes() {
    let (api, kubernetes) = start().await;
    let cases = [
        ("node", Ok(Some("node-a"))),
        ("pod", Ok(Some("node-b"))),
        ("gone", Ok(None)),
        ("strange", Ok(None)),
        ("unbound", Ok(None)),
        ("human", Err(CallerError::NoServiceAccount)),
        ("deaf", Err(CallerError::WrongAudience)),
        ("other", Err(CallerError::WrongAudience)),
        ("vault", Err(CallerError::WrongAudience)),
        ("expired", Err(CallerError::ExpiredToken)),
        ("nobody", Err(CallerError::UnknownToken)),
    ];
    for (token, expected) in cases {
        let reviewed = kubernetes.review(token).await;
        let expected = expected.map(|node: Option<&str>| Caller {
            account: "mesh-system/meshd".parse().unwrap(),
            node: node.map(NodeName::new),
            method: Method::TokenReview,
        });
        assert_eq!(reviewed, expected, "{token}");
    }
    // What was good is remembered for a while; what was not is asked anew.
    let before = api.reviews.load(Ordering::Relaxed);
    assert!(kubernetes.review("node").await.is_ok());
    assert!(kubernetes.review("nobody").await.is_err());
    assert_eq!(api.reviews.load(Ordering::Relaxed), before + 1);
}

#[tokio::test]
async fn a_token_that_cannot_be_reviewed_is_refused() {
    let (api, kubernetes) = start().await;
    for code in [401, 403, 500] {
        api.status.store(code, Ordering::Relaxed);
        let error = kubernetes.review("node").await.unwrap_err();
        let CallerError::Unavailable { detail, .. } = &error else { panic!("{error:?}") };
        assert!(detail.contains(&code.to_string()) && detail.contains("forbidden"), "{detail}");
        assert!(!error.to_string().contains("forbidden"), "the caller is not told: {error}");
    }
    let nowhere = Kubernetes::new(Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    assert!(unavailable(&nowhere.review("node").await.unwrap_err()));
    let slow = std::time::Instant::now();
    assert!(unavailable(&kubernetes.review("slow").await.unwrap_err()));
    assert!(slow.elapsed() < Duration::from_secs(8), "{:?}", slow.elapsed());
}

#[tokio::test]
async fn pods_are_where_the_api_server_says() {
    let (api, kubernetes) = start().await;
    let runs = async |account: &str, node: &str| {
        kubernetes.runs(&account.parse().unwrap(), &NodeName::new(node)).await
    };
    assert_eq!(runs("default/web", "node-a").await, Ok(true));
    assert_eq!(runs("default/api", "node-a").await, Ok(true), "on the last page");
    assert_eq!(runs("default/job", "node-a").await, Ok(false), "it has ended");
    assert_eq!(runs("default/web", "node-b").await, Ok(false));
    assert_eq!(runs("other/web", "node-a").await, Ok(false));
    assert!(runs("default/web", "node-a,spec.nodeName!=x").await.is_err());
    // A new pod counts soon, and one list does for many questions.
    api.pods.lock().unwrap().push(a_pod("new-1", "uid-5", "new", "node-a", "Pending"));
    let found = async {
        while runs("default/new", "node-a").await != Ok(true) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), found).await.unwrap();
    let before = api.lists.load(Ordering::Relaxed);
    for _ in 0..10 {
        assert_eq!(runs("default/new", "node-a").await, Ok(true));
    }
    assert_eq!(api.lists.load(Ordering::Relaxed), before);
    api.status.store(403, Ordering::Relaxed);
    assert!(runs("default/web", "node-c").await.is_err());
    assert!(runs("default/web", "slow").await.is_err());
}
