//! What a server is beyond its connections: it outlives a stop and a start.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::access::Rules;
use super::account::{Account, User};
use super::store::Store;

/// Requests that are remembered one by one.
const LOG: usize = 20_000;

/// What a command in a pod is answered by: (namespace/pod, container), argv → (stdout, stderr, exit status).
pub(super) type Exec = Arc<dyn Fn(&ExecCall) -> ExecResult + Send + Sync>;

/// A command that someone wants to run in a pod.
#[derive(Clone, Debug)]
pub struct ExecCall {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container, if it was named.
    pub container: Option<String>,
    /// The command and its arguments.
    pub argv: Vec<String>,
}

/// What the command has said, and its exit status.
#[derive(Clone, Debug, Default)]
pub struct ExecResult {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// 0 for success.
    pub code: i32,
}

/// What someone asked of the API.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// User, as in RBAC.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// API group; empty for the core.
    pub group: String,
    /// `pods`.
    pub resource: String,
    /// `exec`, `status`; empty for the object itself.
    pub subresource: String,
}

/// A request and how it was answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who, and what for.
    pub asked: Asked,
    /// Namespace, if one was named.
    pub namespace: Option<String>,
    /// Name, if one was named.
    pub name: Option<String>,
    /// As it was sent.
    pub query: String,
    /// The client's `User-Agent`.
    pub agent: String,
    /// HTTP status of the answer.
    pub code: u16,
}

/// How the server misbehaves.
#[derive(Clone, Debug)]
pub(super) struct Faults {
    /// Before each answer.
    pub(super) delay: Duration,
    /// Between two bookmarks.
    pub(super) bookmarks: Duration,
    /// Longest time that a watch lasts.
    pub(super) longest_watch: Duration,
    /// Whether an old `resourceVersion` is refused by the status of the answer instead of an event.
    pub(super) gone_as_status: bool,
    /// Whether `sendInitialEvents` is not known.
    pub(super) no_streaming_lists: bool,
    /// Answers of the next requests.
    pub(super) answers: VecDeque<(StatusCode, &'static str)>,
    /// Ends of paths that lead nowhere.
    pub(super) lost: Vec<String>,
}

/// All of it.
pub(super) struct State {
    store: Mutex<Store>,
    pub(super) accounts: Mutex<HashMap<String, Account>>,
    faults: Mutex<Faults>,
    frozen: watch::Sender<bool>,
    /// Counts up when all connections are to be cut.
    pub(super) cut: watch::Sender<u64>,
    pub(super) acceptor: Mutex<TlsAcceptor>,
    pub(super) exec: Mutex<Option<Exec>>,
    pub(super) enforces: AtomicBool,
    rules: Mutex<Rules>,
    asked: Mutex<BTreeMap<Asked, u64>>,
    log: Mutex<VecDeque<Request>>,
    /// Bytes of answers so far.
    pub(super) sent: std::sync::atomic::AtomicU64,
}

impl State {
    pub(super) fn new(acceptor: TlsAcceptor) -> Self {
        let faults = Faults {
            delay: Duration::ZERO,
            bookmarks: Duration::from_secs(5),
            longest_watch: Duration::from_mins(45),
            gone_as_status: false,
            no_streaming_lists: false,
            answers: VecDeque::new(),
            lost: Vec::new(),
        };
        Self {
            store: Mutex::new(Store::new()),
            accounts: Mutex::default(),
            faults: Mutex::new(faults),
            frozen: watch::Sender::new(false),
            cut: watch::Sender::new(0),
            acceptor: Mutex::new(acceptor),
            exec: Mutex::default(),
            enforces: AtomicBool::new(false),
            rules: Mutex::default(),
            asked: Mutex::default(),
            log: Mutex::default(),
            sent: std::sync::atomic::AtomicU64::new(0),
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    /// Says nothing any more, on any connection, or goes on.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    /// Waits while the server hangs.
    pub(super) async fn unfrozen(&self) {
        let mut frozen = self.frozen.subscribe();
        // The sender lives as long as the state.
        let _lives = frozen.wait_for(|frozen| !frozen).await;
    }

    /// Whether a user may do that, by the roles that there are, where those count.
    pub(super) fn may(
        &self,
        user: &User,
        asked: &Asked,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> bool {
        if user.is_admin() {
            return true;
        }
        if user.is_anonymous() {
            return self.enforces.load(Ordering::Relaxed) && self.rules_allow(user, asked, namespace, name);
        }
        !self.enforces.load(Ordering::Relaxed) || self.rules_allow(user, asked, namespace, name)
    }

    fn rules_allow(&self, user: &User, asked: &Asked, namespace: Option<&str>, name: Option<&str>) -> bool {
        let mut rules = lock(&self.rules);
        rules.refresh(&self.store());
        rules.allow(user, asked, namespace, name)
    }

    /// Remembers a request.
    pub(super) fn note(&self, request: Request) {
        *lock(&self.asked).entry(request.asked.clone()).or_default() += 1;
        let mut log = lock(&self.log);
        if log.len() >= LOG {
            log.pop_front();
        }
        log.push_back(request);
    }

    pub(super) fn asked(&self) -> BTreeMap<Asked, u64> {
        lock(&self.asked).clone()
    }

    pub(super) fn log(&self) -> Vec<Request> {
        lock(&self.log).iter().cloned().collect()
    }

    pub(super) fn forget_requests(&self) {
        lock(&self.asked).clear();
        lock(&self.log).clear();
    }
}

impl fmt::Debug for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("State").field("revision", &self.store().revision()).finish_non_exhaustive()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
