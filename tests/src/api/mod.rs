//! A Kubernetes API server of the tests' own: small, in memory, and true to the API's documented contract, so that kube, kubectl and
//! curl work against it as against the real one.
//!
//! ```no_run
//! use mesh_tests::{Account, ApiServer};
//!
//! # fn main() -> anyhow::Result<()> {
//! let api = ApiServer::start()?; // or Lab::api_server(): where every node of a lab reaches it
//! let token = api.issue(Account::service("mesh-system", "mesh-agent").node("node-a"));
//! let kubeconfig = api.kubeconfig(&token)?;
//! api.apply("{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, spec: {}}")?;
//! api.install_crds(&["networking.istio.io"])?;
//! api.stop(); // and, on the same port, with all that it had
//! api.restart()?;
//! # Ok(())
//! # }
//! ```
//!
//! It keeps what the API promises: `resourceVersion`s and conflicts, lists in pages of one revision, watches from a revision with
//! bookmarks and 410, `generation`, finalizers, status subresources, `managedFields` with conflicts of server-side apply, dry runs,
//! RBAC, token reviews, commands in pods over `WebSocket`s. It has no controllers: nothing makes pods, endpoints or statuses but
//! whoever writes them; and it validates no schema.

mod access;
mod account;
mod discovery;
mod exec;
mod failure;
mod kinds;
mod listener;
mod ownership;
mod patch;
mod path;
mod read;
mod selector;
mod serve;
mod state;
mod store;
mod tls;
mod watching;
mod write;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use http::StatusCode;
use serde::Deserialize as _;
use serde_json::Value;

pub use self::account::{API_AUDIENCE, Account};
use self::listener::Listener;
pub use self::state::{Asked, ExecCall, ExecResult, Request};
use self::state::{State, lock};
use self::tls::Authority;
pub use self::tls::Shows;
use crate::netns::NetNs;

/// A running API server. Clones are the same one; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct ApiServer(Arc<Server>);

#[derive(Debug)]
struct Server {
    state: Arc<State>,
    authority: Authority,
    address: SocketAddr,
    netns: Option<NetNs>,
    listener: Mutex<Option<Listener>>,
    folder: tempfile::TempDir,
    files: AtomicU32,
    admin: String,
}

impl ApiServer {
    /// One on the loopback of this process' own network namespace.
    pub fn start() -> Result<Self> {
        Self::start_at(None, Ipv4Addr::LOCALHOST.into())
    }

    /// One in a network namespace, at an address that is there.
    pub fn start_in(netns: &NetNs, address: IpAddr) -> Result<Self> {
        Self::start_at(Some(netns.clone()), address)
    }

    fn start_at(netns: Option<NetNs>, address: IpAddr) -> Result<Self> {
        let authority = Authority::new(address)?;
        let state = Arc::new(State::new(authority.acceptor(Shows::Right)?));
        let opened = netns.as_ref().map(NetNs::open).transpose()?;
        let listener = Listener::start(&state, opened, SocketAddr::new(address, 0))?;
        let folder = tempfile::Builder::new().prefix("mesh-api-").tempdir().context("make a folder")?;
        fs::write(folder.path().join("ca.crt"), authority.pem())?;
        let admin = account::new_token();
        lock(&state.accounts).insert(admin.clone(), Account::admin());
        let server = Self(Arc::new(Server {
            state,
            authority,
            address: listener.address,
            netns,
            listener: Mutex::new(Some(listener)),
            folder,
            files: AtomicU32::new(0),
            admin,
        }));
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            server.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}"))?;
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// `https://ADDRESS:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.0.address)
    }

    /// The certificates that its clients trust, as PEM.
    pub fn ca_pem(&self) -> String {
        self.0.authority.pem()
    }

    /// The file of [`Self::ca_pem`].
    pub fn ca_file(&self) -> PathBuf {
        self.0.folder.path().join("ca.crt")
    }

    /// The token of who may do anything.
    pub fn admin_token(&self) -> &str {
        &self.0.admin
    }

    /// A new token for an account.
    pub fn issue(&self, account: Account) -> String {
        let token = account::new_token();
        lock(&self.0.state.accounts).insert(token.clone(), account);
        token
    }

    /// From here on the token is nobody's.
    pub fn revoke(&self, token: &str) {
        lock(&self.0.state.accounts).remove(token);
    }

    /// A file for `KUBECONFIG` with this token; it lasts as long as the server.
    pub fn kubeconfig(&self, token: &str) -> Result<PathBuf> {
        use base64::Engine as _;
        let number = self.0.files.fetch_add(1, Ordering::Relaxed);
        let path = self.0.folder.path().join(format!("kubeconfig-{number}"));
        let ca = base64::prelude::BASE64_STANDARD.encode(self.ca_pem());
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters:\n- name: test\n  cluster:\n    server: {}\n    \
             certificate-authority-data: {ca}\nusers:\n- name: test\n  user:\n    token: {token}\ncontexts:\n- name: test\n  \
             context:\n    cluster: test\n    user: test\n",
            self.url()
        );
        write_secret(&path, &text)?;
        Ok(path)
    }

    /// A folder as the kubelet mounts it at `/var/run/secrets/kubernetes.io/serviceaccount`.
    pub fn token_folder(&self, token: &str, namespace: &str) -> Result<PathBuf> {
        let number = self.0.files.fetch_add(1, Ordering::Relaxed);
        let folder = self.0.folder.path().join(format!("serviceaccount-{number}"));
        fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        for (name, text) in [("token", token), ("ca.crt", &self.ca_pem()), ("namespace", namespace)] {
            write_secret(&folder.join(name), text)?;
        }
        Ok(folder)
    }

    // ---- What it holds.

    /// Adds or replaces the objects of a YAML text, as given and with their status. What was there keeps its UID and age.
    /// Nothing else is checked: a namespace need not be there.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        for document in serde_yaml_ng::Deserializer::from_str(yaml) {
            let value = Value::deserialize(document).context("YAML")?;
            if !value.is_null() {
                self.put(value)?;
            }
        }
        Ok(())
    }

    /// Adds or replaces an object, likewise; returns it as it is now.
    pub fn put(&self, value: Value) -> Result<Value> {
        let said = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let (api_version, name) = (said("apiVersion"), said("kind"));
        let mut store = self.0.state.store();
        let kind = store.kind_of(&api_version, &name).ok_or_else(|| {
            anyhow!("the API server does not know {name} of {api_version}: install_crds first?")
        })?;
        let kept =
            write::put(&mut store, &kind, value).with_context(|| format!("a {name} without a name"))?;
        drop(store);
        typed(&kind, kept.value())
    }

    /// An object of a kind (`Pod`, or `Gateway.networking.istio.io` where the name alone could mean several), if it is there.
    /// `namespace` is empty for what is in none.
    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let store = self.0.state.store();
        let kind = store.kind_named(kind)?;
        let object = store.shelf(&kind)?.object(namespace, name)?.value();
        typed(&kind, object).ok()
    }

    /// All objects of a kind.
    pub fn objects(&self, kind: &str) -> Vec<Value> {
        let store = self.0.state.store();
        let Some(kind) = store.kind_named(kind) else { return Vec::new() };
        let all = store.shelf(&kind).into_iter().flat_map(|shelf| shelf.all(None));
        all.filter_map(|object| typed(&kind, object.value()).ok()).collect()
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: &str) -> usize {
        let store = self.0.state.store();
        store.kind_named(kind).and_then(|kind| store.shelf(&kind).map(store::Shelf::len)).unwrap_or_default()
    }

    /// Events of both groups, `v1` and `events.k8s.io/v1`.
    pub fn events(&self) -> Vec<Value> {
        let groups = ["Event", "Event.events.k8s.io"];
        groups.iter().flat_map(|kind| self.objects(kind)).collect()
    }

    /// Removes an object at once, whatever its finalizers: a namespace with all that is in it, a `CustomResourceDefinition`
    /// with its resource.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let mut store = self.0.state.store();
        let found = store.kind_named(kind).with_context(|| format!("no resource of kind {kind}"))?;
        let removed = write::remove(&mut store, &found, namespace, name);
        removed.map(drop).with_context(|| format!("no {kind} {namespace}/{name}"))
    }

    /// Changes an object in place; `change` gets it with its types.
    pub fn edit(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<Value> {
        let mut value =
            self.object(kind, namespace, name).with_context(|| format!("no {kind} {namespace}/{name}"))?;
        change(&mut value);
        self.put(value)
    }

    /// Installs `CustomResourceDefinition`s: of a group (`networking.istio.io`, `security.istio.io`,
    /// `gateway.networking.k8s.io`) or by their name (`podmonitors.monitoring.coreos.com`). Until then their paths are 404.
    pub fn install_crds(&self, names: &[&str]) -> Result<()> {
        write::install(&mut self.0.state.store(), names).map_err(|error| anyhow!(error))
    }

    /// The last change's `resourceVersion`.
    pub fn revision(&self) -> u64 {
        self.0.state.store().revision()
    }

    // ---- What it allows.

    /// From here on only what roles allow is allowed; those of this YAML text are added to what it holds.
    pub fn enforce(&self, yaml: &str) -> Result<()> {
        self.apply(yaml)?;
        self.0.state.enforces.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What was asked so far, and how often; also what was refused.
    pub fn requests(&self) -> BTreeMap<Asked, u64> {
        self.0.state.asked()
    }

    /// The last requests for resources one by one, the oldest first.
    pub fn log(&self) -> Vec<Request> {
        self.0.state.log()
    }

    /// Forgets them.
    pub fn forget_requests(&self) {
        self.0.state.forget_requests();
    }

    /// Bytes of the answers so far, without their heads and TLS.
    pub fn bytes_sent(&self) -> u64 {
        self.0.state.sent.load(Ordering::Relaxed)
    }

    /// What runs commands in pods from here on; the pod must be there.
    pub fn on_exec(&self, run: impl Fn(&ExecCall) -> ExecResult + Send + Sync + 'static) {
        *lock(&self.0.state.exec) = Some(Arc::new(run));
    }

    // ---- How it fails.

    /// Is gone: nothing listens, all connections are closed.
    pub fn stop(&self) {
        let listener = lock(&self.0.listener).take();
        drop(listener);
    }

    /// Is back on the same port with all that it had.
    pub fn restart(&self) -> Result<()> {
        let mut held = lock(&self.0.listener);
        drop(held.take());
        let opened = self.0.netns.as_ref().map(NetNs::open).transpose()?;
        *held = Some(Listener::start(&self.0.state, opened, self.0.address)?);
        Ok(())
    }

    /// Closes all connections; new ones are welcome.
    pub fn cut(&self) {
        self.0.state.cut.send_modify(|count| *count += 1);
    }

    /// Forgets what became of objects: who watches from an earlier revision gets 410.
    pub fn forget_history(&self) {
        self.0.state.store().forget();
    }

    /// Whether a revision that is too old is told by the status of the answer (410) instead of an `ERROR` event.
    pub fn gone_as_status(&self, on: bool) {
        self.0.state.faults().gone_as_status = on;
    }

    /// Whether `sendInitialEvents` is refused, as servers do that are older.
    pub fn refuse_streaming_lists(&self, on: bool) {
        self.0.state.faults().no_streaming_lists = on;
    }

    /// Waits so long before each answer.
    pub fn delay(&self, time: Duration) {
        self.0.state.faults().delay = time;
    }

    /// Accepts connections and requests, and says nothing to them nor to watches, until it is told otherwise.
    pub fn hang(&self, on: bool) {
        self.0.state.freeze(on);
    }

    /// Answers the next `count` requests with this status (429, 500, 503), whatever they are.
    pub fn fail_next(&self, count: usize, code: u16) -> Result<()> {
        let code = StatusCode::from_u16(code)?;
        let reason = match code.as_u16() {
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        self.0.state.faults().answers.extend(std::iter::repeat_n((code, reason), count));
        Ok(())
    }

    /// Answers 404 to whatever path ends so, as a proxy does that loses it, until it is told of other ones: `/apis` is what is
    /// installed, `/peerauthentications` a list.
    pub fn lose(&self, paths: &[&str]) {
        self.0.state.faults().lost = paths.iter().map(|&path| path.to_owned()).collect();
    }

    /// The time between two bookmarks of a watch (5 s unless told), for those that begin later.
    pub fn bookmark_every(&self, time: Duration) {
        self.0.state.faults().bookmarks = time;
    }

    /// The longest time that a watch lasts, whatever its client asks for.
    pub fn watches_last(&self, time: Duration) {
        self.0.state.faults().longest_watch = time;
    }

    /// What new connections see of it.
    pub fn show(&self, certificate: Shows) -> Result<()> {
        let acceptor = self.0.authority.acceptor(certificate)?;
        *lock(&self.0.state.acceptor) = acceptor;
        Ok(())
    }
}

fn typed(kind: &kinds::Kind, mut value: Value) -> Result<Value> {
    let version = kind.versions.first().context("a resource has a version")?;
    let object = value.as_object_mut().context("an object")?;
    object.insert("apiVersion".to_owned(), kind.api_version(version).into());
    object.insert("kind".to_owned(), kind.kind.clone().into());
    Ok(value)
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}
