//! From a request to its answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::request::Parts;
use http::{Method, Request as HttpRequest, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::account::{Account, User, new_token, refused};
use super::discovery::{self, REVIEWS};
use super::exec;
use super::failure::Failure;
use super::kinds::Kind;
use super::patch::Patch;
use super::path::{Path, Query};
use super::read::{self, Listing};
use super::selector::Selector;
use super::state::{Asked, ExecCall, Request, State, lock};
use super::watching::{self, Watch};
use super::write::{self, At, How, Written};

/// The largest object, as etcd has it, and more.
const LONGEST: usize = 3 * 1024 * 1024;

/// Answers one request.
pub(super) async fn answer(state: Arc<State>, request: HttpRequest<Incoming>) -> Response<Body> {
    state.unfrozen().await;
    let (delay, planned, lost) = {
        let mut faults = state.faults();
        let lost = faults.lost.iter().any(|end| request.uri().path().ends_with(end));
        (faults.delay, faults.answers.pop_front(), lost)
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let (mut parts, body) = request.into_parts();
    if let Some((code, reason)) = planned {
        return failed(&Failure::new(code, reason, reason));
    }
    if lost {
        return failed(&Failure::no_such_resource());
    }
    let user = match authenticate(&state, &parts) {
        Ok(user) => user,
        Err(failure) => return failed(&failure),
    };
    if let Some(answer) = outside(&state, &parts, &user) {
        return answer;
    }
    let Some(path) = Path::parse(parts.uri.path()) else { return failed(&Failure::no_such_resource()) };
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let Some(verb) = verb(&parts.method, &path, &query) else { return failed(&Failure::method()) };
    let asked = Asked {
        user: user.name.clone(),
        verb: verb.to_owned(),
        group: path.group.clone(),
        resource: path.plural.clone(),
        subresource: path.subresource.clone(),
    };
    let name = path.name.clone();
    let agent = header(&parts, &USER_AGENT).to_owned();
    let raw_query = parts.uri.query().unwrap_or_default().to_owned();
    let result = match authorize(&state, &user, &asked, &path) {
        Ok(()) => match Limited::new(body, LONGEST).collect().await {
            Ok(body) => dispatch(&state, &mut parts, &path, &query, verb, &user, &body.to_bytes()).await,
            Err(_too_long_or_cut) => {
                Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", "limit is 3145728"))
            }
        },
        Err(failure) => Err(failure),
    };
    let response = result.unwrap_or_else(|failure| failed(&failure));
    state.note(Request {
        asked,
        namespace: path.namespace,
        name,
        query: raw_query,
        agent,
        code: response.status().as_u16(),
    });
    response
}

fn authenticate(state: &State, parts: &Parts) -> Result<User, Failure> {
    let said = header(parts, &AUTHORIZATION);
    if said.is_empty() {
        return Ok(User::anonymous());
    }
    let token = said.strip_prefix("Bearer ").ok_or_else(Failure::unauthorized)?;
    let accounts = lock(&state.accounts);
    accounts.get(token.trim()).and_then(Account::authenticated).cloned().ok_or_else(Failure::unauthorized)
}

/// Documents that are no resources.
fn outside(state: &State, parts: &Parts, user: &User) -> Option<Response<Body>> {
    let path = parts.uri.path();
    if ["/healthz", "/livez", "/readyz"].contains(&path) {
        return Some(text("ok"));
    }
    if path == "/version" || path == "/version/" {
        return discovery::document(&state.store(), path).map(|value| json(StatusCode::OK, &value));
    }
    let document = discovery::document(&state.store(), path)?;
    if user.is_anonymous() {
        let message = format!("forbidden: User \"{}\" cannot get path \"{path}\"", user.name);
        return Some(failed(&Failure::forbidden(message)));
    }
    Some(json(StatusCode::OK, &document))
}

fn verb(method: &Method, path: &Path, query: &Query) -> Option<&'static str> {
    Some(match (method, path.name.is_some()) {
        (&Method::GET, false) if query.is("watch") => "watch",
        (&Method::GET, false) => "list",
        (&Method::GET, true) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, true) => "update",
        (&Method::PATCH, true) => "patch",
        (&Method::DELETE, true) => "delete",
        (&Method::DELETE, false) => "deletecollection",
        _ => return None,
    })
}

/// The object of a request: for a namespace, that namespace is also where it is.
fn authorize(state: &State, user: &User, asked: &Asked, path: &Path) -> Result<(), Failure> {
    let own = asked.group.is_empty() && asked.resource == "namespaces";
    let namespace = if own { path.name.as_deref() } else { path.namespace.as_deref() };
    let basic = ["selfsubjectaccessreviews", "selfsubjectreviews"].contains(&asked.resource.as_str());
    // Servers before 1.35 ask for `get` when the command comes over a `WebSocket`; later ones for `create` too.
    let also = (asked.subresource == "exec" && asked.verb == "get")
        .then(|| Asked { verb: "create".to_owned(), ..asked.clone() });
    let is_allowed = (basic && !user.is_anonymous())
        || std::iter::once(asked)
            .chain(&also)
            .all(|asked| state.may(user, asked, namespace, path.name.as_deref()));
    if is_allowed {
        return Ok(());
    }
    let dot = if asked.group.is_empty() { String::new() } else { format!(".{}", asked.group) };
    let what = match &path.name {
        Some(name) => format!("{}{dot} \"{name}\"", asked.resource),
        None => format!("{}{dot}", asked.resource),
    };
    let below = if asked.subresource.is_empty() { String::new() } else { format!("/{}", asked.subresource) };
    let place = match namespace {
        Some(namespace) if !namespace.is_empty() => format!("in the namespace \"{namespace}\""),
        _ => "at the cluster scope".to_owned(),
    };
    Err(Failure::forbidden(format!(
        "{what} is forbidden: User \"{}\" cannot {} resource \"{}{below}\" in API group \"{}\" {place}",
        user.name, asked.verb, asked.resource, asked.group
    )))
}

async fn dispatch(
    state: &Arc<State>,
    parts: &mut Parts,
    path: &Path,
    query: &Query,
    verb: &str,
    user: &User,
    body: &Bytes,
) -> Result<Response<Body>, Failure> {
    let is_review = |review: &&(&str, &str, &str, &str, bool)| {
        review.0 == path.group && review.1 == path.version && review.3 == path.plural
    };
    if let Some(review) = REVIEWS.iter().find(is_review) {
        return if verb == "create" {
            self::review(state, review.2, user, body)
        } else {
            Err(Failure::method())
        };
    }
    let kind =
        state.store().kind(&path.group, &path.version, &path.plural).ok_or_else(Failure::no_such_resource)?;
    let namespace = path.namespace.clone().filter(|namespace| !namespace.is_empty());
    if namespace.is_some() && !kind.namespaced {
        return Err(Failure::no_such_resource());
    }
    let one = path.name.as_deref();
    match (verb, path.subresource.as_str()) {
        ("get" | "create", "exec") if kind.plural == "pods" => {
            return run(state, parts, namespace.as_deref(), one, query).await;
        }
        ("create", "token") if kind.plural == "serviceaccounts" => {
            return token(state, namespace.as_deref().unwrap_or_default(), one.unwrap_or_default(), body);
        }
        (_, "") => {}
        (_, "status") if kind.status => {}
        _ => return Err(Failure::no_such_resource()),
    }
    if kind.namespaced && namespace.is_none() && (one.is_some() || verb == "create") {
        return Err(Failure::no_such_resource());
    }
    match verb {
        "list" | "watch" => {
            let namespace = namespace.as_deref();
            let selector =
                Selector::parse(&kind, namespace, query.text("labelSelector"), query.text("fieldSelector"))?;
            if verb == "watch" {
                watch(state, &kind, path, selector, query)
            } else {
                list(state, &kind, path, &selector, query)
            }
        }
        "deletecollection" => delete_all(state, &kind, path, query),
        _ => write_one(
            state,
            &kind,
            path,
            query,
            verb,
            header(parts, &CONTENT_TYPE),
            header(parts, &USER_AGENT),
            body,
        ),
    }
}

#[expect(clippy::too_many_arguments, reason = "they are the parts of one request")]
fn write_one(
    state: &State,
    kind: &Kind,
    path: &Path,
    query: &Query,
    verb: &str,
    content_type: &str,
    agent: &str,
    body: &Bytes,
) -> Result<Response<Body>, Failure> {
    let namespace = path.namespace.clone().unwrap_or_default();
    let name = path.name.clone().unwrap_or_default();
    let at = At {
        kind,
        version: &path.version,
        namespace: &namespace,
        name: &name,
        status: path.subresource == "status",
    };
    let dry = match query.text("dryRun") {
        "" => false,
        "All" => true,
        other => return Err(Failure::bad_request(format!("Invalid value: [\"{other}\"]: dryRun"))),
    };
    let said = query.text("fieldManager");
    let manager = if said.is_empty() { agent.split('/').next().unwrap_or_default() } else { said };
    let manager = if manager.is_empty() { "unknown" } else { manager };
    let how = How { dry, manager, force: query.is("force") };
    let parse = || -> Result<Value, Failure> {
        // kubectl and controllers may send YAML, of which JSON is a part.
        let is_yaml = content_type.contains("yaml");
        let parsed = if is_yaml {
            serde_yaml_ng::from_slice(body).map_err(|error| error.to_string())
        } else {
            serde_json::from_slice(body).map_err(|error| error.to_string())
        };
        parsed.map_err(|error| Failure::bad_request(format!("the object provided is unrecognized: {error}")))
    };
    let mut store = state.store();
    let Written { body, code } = match verb {
        "get" => {
            let shelf = store.shelf(kind).ok_or_else(Failure::no_such_resource)?;
            let object = shelf.object(&namespace, &name).ok_or_else(|| Failure::not_found(kind, &name))?;
            Written { body: read::whole(kind, &path.version, object), code: StatusCode::OK }
        }
        "create" if name.is_empty() => write::create(&mut store, at, parse()?, how)?,
        "update" => write::update(&mut store, at, parse()?, how)?,
        "patch" => {
            let patch = Patch::parse(content_type, body)?;
            if matches!(patch, Patch::Apply(_)) && said.is_empty() {
                let why = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
                return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", why));
            }
            write::patch(&mut store, at, &patch, how)?
        }
        "delete" => {
            let mut options = if body.is_empty() { Value::Null } else { parse()? };
            if let (Value::Object(options), Some(grace)) = (&mut options, query.number("gracePeriodSeconds"))
            {
                options.insert("gracePeriodSeconds".to_owned(), grace.into());
            }
            let dry =
                dry || options["dryRun"].as_array().is_some_and(|list| list.iter().any(|one| one == "All"));
            write::delete(&mut store, at, &options, dry)?
        }
        _ => return Err(Failure::method()),
    };
    drop(store);
    Ok(respond(state, code, body))
}

fn list(
    state: &State,
    kind: &Kind,
    path: &Path,
    selector: &Selector,
    query: &Query,
) -> Result<Response<Body>, Failure> {
    let exact = query.text("resourceVersionMatch") == "Exact";
    let limit = usize::try_from(query.number("limit").unwrap_or_default()).unwrap_or_default();
    let asked =
        Listing { limit, after: query.text("continue"), version: query.text("resourceVersion"), exact };
    let store = state.store();
    let shelf = store.shelf(kind).ok_or_else(Failure::no_such_resource)?;
    let body = read::list(shelf, store.revision(), &path.version, selector, &asked)?;
    drop(store);
    Ok(respond(state, StatusCode::OK, body))
}

fn watch(
    state: &Arc<State>,
    kind: &Arc<Kind>,
    path: &Path,
    selector: Selector,
    query: &Query,
) -> Result<Response<Body>, Failure> {
    let faults = state.faults().clone();
    let initial = query.is("sendInitialEvents");
    let forbidden = if initial && faults.no_streaming_lists {
        Some(
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        )
    } else if initial && query.text("resourceVersionMatch") != "NotOlderThan" {
        Some(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )
    } else if !initial && !query.text("resourceVersionMatch").is_empty() {
        Some(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )
    } else {
        None
    };
    if let Some(why) = forbidden {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {why}");
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message));
    }
    let revision = match query.text("resourceVersion") {
        "" | "0" => None,
        text => Some(read::parse_version(text)?),
    };
    if let (Some(revision), true, false) = (revision, faults.gone_as_status, initial) {
        let store = state.store();
        let shelf = store.shelf(kind).ok_or_else(Failure::no_such_resource)?;
        if revision < shelf.forgotten {
            return Err(Failure::expired(format!(
                "too old resource version: {revision} ({})",
                shelf.forgotten
            )));
        }
    }
    let longest = query.number("timeoutSeconds").map_or(faults.longest_watch, Duration::from_secs);
    let asked = watching::Asked {
        revision,
        bookmarks: query.is("allowWatchBookmarks"),
        initial,
        timeout: longest.min(faults.longest_watch),
    };
    let watch = Watch::new(state, kind, &path.version, selector, &asked);
    let counted = Arc::clone(state);
    let events = futures_util::stream::unfold(watch, move |mut watch| {
        let state = Arc::clone(&counted);
        async move {
            let bytes = watch.next().await?;
            state.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Some((Ok::<_, std::convert::Infallible>(bytes), watch))
        }
    });
    Ok(answered(StatusCode::OK, "application/json", Body::from_stream(events)))
}

fn delete_all(state: &State, kind: &Kind, path: &Path, query: &Query) -> Result<Response<Body>, Failure> {
    let namespace = path.namespace.as_deref();
    let selector =
        Selector::parse(kind, namespace, query.text("labelSelector"), query.text("fieldSelector"))?;
    let dry = query.text("dryRun") == "All";
    let mut store = state.store();
    let shelf = store.shelf(kind).ok_or_else(Failure::no_such_resource)?;
    let meant: Vec<(String, String)> = shelf
        .all(namespace)
        .filter(|object| selector.matches(object))
        .map(|object| (object.namespace.clone(), object.name.clone()))
        .collect();
    let body = read::list(shelf, store.revision(), &path.version, &selector, &Listing::default())?;
    for (namespace, name) in &meant {
        let at = At { kind, version: &path.version, namespace, name, status: false };
        write::delete(&mut store, at, &Value::Null, dry)?;
    }
    drop(store);
    Ok(respond(state, StatusCode::OK, body))
}

fn review(state: &State, kind: &str, user: &User, body: &Bytes) -> Result<Response<Body>, Failure> {
    let mut review: Value = serde_json::from_slice(body)
        .map_err(|error| Failure::bad_request(format!("the object provided is unrecognized: {error}")))?;
    let attributes = &review["spec"]["resourceAttributes"];
    let text = |key: &str| attributes[key].as_str().unwrap_or_default().to_owned();
    let asked = |user: &str| Asked {
        user: user.to_owned(),
        verb: text("verb"),
        group: text("group"),
        resource: text("resource"),
        subresource: text("subresource"),
    };
    let (namespace, name) = (text("namespace"), text("name"));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let allowed = |user: &User| {
        let allowed =
            state.may(user, &asked(&user.name), some(&namespace).as_deref(), some(&name).as_deref());
        json!({"allowed": allowed})
    };
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let status = match kind {
        "TokenReview" => {
            let token = review["spec"]["token"].as_str().unwrap_or_default();
            let accounts = lock(&state.accounts);
            match accounts.get(token) {
                Some(account) => account.review(&list(&review["spec"]["audiences"])),
                None => refused("token lookup failed"),
            }
        }
        "SelfSubjectReview" => json!({"userInfo": user.json()}),
        "SelfSubjectAccessReview" => allowed(user),
        _ => allowed(&User {
            name: review["spec"]["user"].as_str().unwrap_or_default().to_owned(),
            uid: String::new(),
            groups: list(&review["spec"]["groups"]),
            extra: std::collections::BTreeMap::new(),
        }),
    };
    review["status"] = status;
    Ok(json(StatusCode::CREATED, &review))
}

/// `serviceaccounts/token`: what a kubelet asks for a pod.
fn token(state: &State, namespace: &str, name: &str, body: &Bytes) -> Result<Response<Body>, Failure> {
    let mut request: Value = serde_json::from_slice(body)
        .map_err(|error| Failure::bad_request(format!("the object provided is unrecognized: {error}")))?;
    {
        let store = state.store();
        let kind = store.kind_named("ServiceAccount").ok_or_else(Failure::no_such_resource)?;
        if store.shelf(&kind).and_then(|shelf| shelf.object(namespace, name)).is_none() {
            return Err(Failure::not_found(&kind, name));
        }
    }
    let seconds = request["spec"]["expirationSeconds"].as_u64().unwrap_or(3600);
    let audiences: Vec<&str> =
        request["spec"]["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut account = Account::service(namespace, name).expires_in(Duration::from_secs(seconds));
    if !audiences.is_empty() {
        account = account.audiences(&audiences);
    }
    let bound = &request["spec"]["boundObjectRef"];
    if bound["kind"] == "Pod" {
        account = account
            .pod(bound["name"].as_str().unwrap_or_default(), bound["uid"].as_str().unwrap_or_default());
    }
    let token = new_token();
    lock(&state.accounts).insert(token.clone(), account);
    let ends = time::OffsetDateTime::now_utc() + Duration::from_secs(seconds);
    request["status"] = json!({"token": token, "expirationTimestamp": write::timestamp(ends)});
    Ok(json(StatusCode::CREATED, &request))
}

async fn run(
    state: &State,
    parts: &mut Parts,
    namespace: Option<&str>,
    pod: Option<&str>,
    query: &Query,
) -> Result<Response<Body>, Failure> {
    let (namespace, pod) = (namespace.unwrap_or_default(), pod.unwrap_or_default());
    {
        let store = state.store();
        let kind = store.kind_named("Pod").ok_or_else(Failure::no_such_resource)?;
        if store.shelf(&kind).and_then(|shelf| shelf.object(namespace, pod)).is_none() {
            return Err(Failure::not_found(&kind, pod));
        }
    }
    let handler = lock(&state.exec).clone();
    let handler = handler.ok_or_else(|| {
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            "error dialing backend: no kubelet answers",
        )
    })?;
    let argv = query.all("command");
    if argv.is_empty() {
        return Err(Failure::bad_request("you must specify at least 1 command for the container"));
    }
    let container = Some(query.text("container").to_owned()).filter(|name| !name.is_empty());
    let call = ExecCall { namespace: namespace.to_owned(), pod: pod.to_owned(), container, argv };
    exec::exec(parts, call, handler).await
}

fn header<'a>(parts: &'a Parts, name: &http::HeaderName) -> &'a str {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn failed(failure: &Failure) -> Response<Body> {
    json(failure.code, &failure.status())
}

fn json(code: StatusCode, value: &Value) -> Response<Body> {
    answered(code, "application/json", Body::from(value.to_string()))
}

fn text(text: &'static str) -> Response<Body> {
    answered(StatusCode::OK, "text/plain; charset=utf-8", Body::from(text))
}

fn respond(state: &State, code: StatusCode, body: Vec<u8>) -> Response<Body> {
    state.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
    answered(code, "application/json", Body::from(body))
}

fn answered(code: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
