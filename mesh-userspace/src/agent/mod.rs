//! The agent as a whole: its parts made, joined and taken down in order. Everything else is below it.
//!
//! Threads: the main one (API, source, certificates), `controller` (kernel and pods), `sockets` (ends those whose endpoint
//! went), `heartbeat`, and the workers that carry connections.

mod analyze;
mod authority;
mod claims;
mod cni;
mod config;
mod controller;
mod direct;
mod discovery;
mod events;
mod explain;
mod fill;
mod kube_proxy;
mod outliers;
mod outside;
mod policies;
mod report;
mod rotate;
mod route_status;
mod route_words;
mod service_report;
mod source_report;
mod standby;
mod waiting;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::analyze::analyze;
pub use self::authority::RemoteAuthority;
pub use self::claims::ClaimError;
pub use self::config::{AgentConfig, Cli, CniFlags, Command, Places, UninstallConfig};
pub use self::discovery::DiscoveryFlags;
pub use self::explain::explain_manifests;
pub use self::kube_proxy::{Bind, KubeProxyConfig, Replacement};
pub use self::outside::OutsideConfig;
pub use self::policies::policies_of_manifests;
pub use self::report::needs;
pub use self::rotate::{RotateConfig, Step, rotate_root};

pub use self::controller::chain;

pub(crate) use self::config::{duration, lifetime};

use self::claims::Claims;
use self::cni::Sandboxed;
use self::controller::{Controller, Parts, Request};
use self::events::Events;
use self::kube_proxy::ProxyPorts;
use self::report::AgentData;
use self::waiting::Waiting;
use crate::admin::{
    AdminData as _, AdminSocket, Readiness, SocketError, serve_metrics, serve_probes, serve_socket,
};
use crate::cni::{self as plugin, InstallState, Installer};
use crate::datapath::maps::MapReader;
use crate::datapath::{
    self, CounterReader, Datapath, DatapathConfig, DatapathError, FlowEvents, Lifeline, check,
};
use crate::external::{self, ExternalError};
use crate::file::aside;
use crate::identity::ca::CaClientError;
use crate::identity::{AuthorityError, CertificateState, CertificateStore, RotateError};
use crate::kubernetes::{self, KubernetesError};
use crate::memory;
use crate::model::{IdentityError, MeshConfig, NodeName, Snapshot, WorkloadUid};
use crate::node::{self, EnrolError, Enroller, Namespaces};
use crate::proxy::{Handles, Shared, Workers};
use crate::sockets::{Ended, Reaper};
use crate::source::{self, ApiState, Feed, Input, KnownAhead, Source, SourceError, StateFile};
use crate::sysctls;
use crate::telemetry::{FlowLog, Metrics, Telemetry};

/// Longest that saying one Event may take.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often long connections' bytes reach the metrics.
const FLUSH: Duration = Duration::from_secs(5);
/// Longest that the last state may take to reach the disk at the end.
const KEEP_TIMEOUT: Duration = Duration::from_secs(10);

/// So many connections fewer than at the last look make it worth while to give memory back.
const BURST: u64 = 100;
/// So many looks after a burst memory is given back: the pool's connections, and what they hold, go a minute later.
const TRIMS: u32 = 16;

/// Why an agent cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Not root.
    #[error("meshd must run as root (or with the capabilities that `meshctl check` lists)")]
    NotRoot,
    /// Another agent runs, or there is nothing to run with.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The state folder cannot be used.
    #[error("cannot use the state folder {}", path.display())]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// cgroup v2.
    #[error("cannot find cgroup v2: mount it, or give its folder with --cgroup")]
    Cgroup(#[source] io::Error),
    /// The certificate authority.
    #[error("cannot open the certificate authority")]
    Authority(#[source] AuthorityError),
    /// The rotation of its root.
    #[error("cannot rotate the root")]
    Rotate(#[source] RotateError),
    /// The certificate authority elsewhere.
    #[error("cannot use the certificate authority of --ca-addr")]
    RemoteAuthority(#[source] CaClientError),
    /// A path of `--manifests` is not there: an agent that began without what it stands for would take all of it out of
    /// force.
    #[error("cannot read {}: what --manifests names must be there when the agent starts", path.display())]
    Manifests {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The source.
    #[error("cannot begin to read what is to be in force")]
    Source(#[source] SourceError),
    /// The API server's address or credentials.
    #[error("cannot use --kubernetes")]
    Kubernetes(#[source] KubernetesError),
    /// The kernel.
    #[error("cannot set up the kernel plane")]
    Datapath(#[source] DatapathError),
    /// The pods.
    #[error("cannot release the pods")]
    Enrol(#[source] EnrolError),
    /// One pod.
    #[error("pod {pod} cannot be released")]
    Unreleased {
        /// Which.
        pod: WorkloadUid,
        /// Why.
        #[source]
        source: EnrolError,
    },
    /// Not everything was taken off the node.
    #[error("{} left on this node; what is remembered of it stays, so do this again: {}", things(.0.len()), .0.join("; "))]
    Left(Vec<String>),
    /// Clients from outside.
    #[error("cannot serve clients from outside")]
    External(#[source] ExternalError),
    /// The CNI plugin.
    #[error("cannot take out the CNI plugin")]
    Cni(#[source] plugin::InstallError),
    /// The agents' own service account.
    #[error("cannot name the node agents")]
    Identity(#[source] IdentityError),
    /// Threads or signals.
    #[error("cannot start {what}")]
    Start {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The API's socket.
    #[error("cannot open the socket for meshctl")]
    Socket(#[source] SocketError),
    /// The socket for probes.
    #[error("cannot open the socket for probes")]
    Probes(#[source] SocketError),
    /// The metrics' port.
    #[error("cannot listen on {address} for metrics: give another with --metrics-addr")]
    Metrics {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A port that kube-proxy has.
    #[error(
        "cannot listen on {address} in kube-proxy's place: give another with {flag}, or none with {flag}="
    )]
    Port {
        /// Where.
        address: std::net::SocketAddr,
        /// What says so.
        flag: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The controller ended without being told.
    #[error("the controller ended")]
    ControllerEnded,
    /// So did the thread that waits for another agent's end.
    #[error("the thread that waits for the other agent ended")]
    StandbyEnded,
}

fn things(count: usize) -> String {
    if count == 1 { "one thing is".to_owned() } else { format!("{count} things are") }
}

fn starting(what: &'static str) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError::Start { what, source }
}

/// Runs an agent until SIGTERM or SIGINT, on this thread.
pub fn run(config: AgentConfig) -> Result<(), AgentError> {
    raise_file_limit();
    // The first of all sockets, and above all others.
    let lifeline = Lifeline::open().map_err(AgentError::Datapath)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(AgentError::NotRoot);
    }
    open_sysctls();
    check_manifests(&config.manifests)?;
    let cgroup = match config.cgroup.clone() {
        Some(cgroup) => cgroup,
        None => check::cgroup2_mount().map_err(AgentError::Cgroup)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(starting("the runtime"))?;
    runtime.block_on(async {
        let mut told = Signals::new()?;
        let readiness = Readiness::default();
        if let Some(path) = &config.probe_socket {
            let socket = AdminSocket::bind(path).map_err(AgentError::Probes)?;
            tokio::spawn(serve_probes(socket, readiness.clone(), std::future::pending()));
        }
        let (_claims, known) = if config.standby {
            tokio::select! {
                claims = standby::claim(&config, &cgroup, &readiness) => claims?,
                // Nothing was begun yet that has to be ended.
                () = told.end() => return Ok(()),
            }
        } else {
            (Claims::of_agent(&config.places, &cgroup)?, None)
        };
        readiness.set_missing("the agent starts".to_owned());
        Box::pin(serve(config, cgroup, known, lifeline, told, readiness)).await
    })
}

/// What tells this process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, AgentError> {
        let handler = |kind| signal(kind).map_err(starting("the signal handlers"));
        Ok(Self {
            terminate: handler(SignalKind::terminate())?,
            interrupt: handler(SignalKind::interrupt())?,
        })
    }

    /// Completes when it is told. Cancel safe.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Makes the sysctls of pods writable. Without, what concerns no pod goes on, and so do the pods that have what they need.
fn open_sysctls() {
    match sysctls::make_writable() {
        Ok(false) => {}
        Ok(true) => {
            tracing::info!("/proc/sys is read-only here; it was made writable for this process alone");
        }
        Err(error) => {
            let error = chain(&error);
            tracing::error!(%error, "pods cannot be taken into the mesh or out of it: their sysctls cannot be written");
        }
    }
}

/// Whether all that the flag names can be read now.
fn check_manifests(paths: &[PathBuf]) -> Result<(), AgentError> {
    for path in paths {
        let read = if path.is_dir() { fs::read_dir(path).map(drop) } else { File::open(path).map(drop) };
        read.map_err(|source| AgentError::Manifests { path: path.clone(), source })?;
    }
    Ok(())
}

/// Takes everything off the node.
pub fn uninstall(config: &UninstallConfig) -> Result<(), AgentError> {
    let places = &config.places;
    if !nix::unistd::geteuid().is_root() {
        return Err(AgentError::NotRoot);
    }
    open_sysctls();
    let claims = Claims::of_uninstall(places)?;
    // First of all: no pod is to start with a plugin that finds no agent any more.
    if let (Some(conf_dir), Some(bin_dir)) = (&config.cni.cni_conf_dir, &config.cni.cni_bin_dir) {
        plugin::uninstall(conf_dir, bin_dir).map_err(AgentError::Cni)?;
    }
    if let Some(state) = config.cni.state() {
        plugin::forget(&state).map_err(AgentError::Cni)?;
        // One that holds something else stays.
        let _ = state.parent().map(fs::remove_dir);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(starting("the runtime"))?;
    // What one of these cannot take off is no reason to leave the rest.
    let kernel = datapath::uninstall(&places.bpffs).map_err(AgentError::Datapath);
    let outside = runtime.block_on(external::uninstall()).map_err(AgentError::External);
    let mut left: Vec<AgentError> = kernel.err().into_iter().chain(outside.err()).collect();
    for (pod, released) in node::uninstall(&places.state_dir).map_err(AgentError::Enrol)? {
        match released {
            Ok(()) => tracing::info!(%pod, "released"),
            Err(source) => left.push(AgentError::Unreleased { pod, source }),
        }
    }
    if !left.is_empty() {
        return Err(AgentError::Left(left.iter().map(|error| chain(error)).collect()));
    }
    remove_state(&places.state_dir);
    // One that is not there, or a folder that holds something else, is as it should be.
    for file in [&places.source_state, &aside(&places.source_state)] {
        let _ = fs::remove_file(file);
    }
    let _ = places.source_state.parent().map(fs::remove_dir);
    claims.remove();
    Ok(())
}

/// Does nothing until SIGTERM or SIGINT.
pub fn pause() -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(starting("the runtime"))?.block_on(async {
        Signals::new()?.end().await;
        Ok(())
    })
}

/// Removes what agents have made in the state folder, and the folder itself unless somebody else has put things there.
fn remove_state(state_dir: &Path) {
    for file in ["meshd.sock", "meshd.sock.lock", "lock", plugin::PLUGIN_LOG, plugin::OLD_PLUGIN_LOG] {
        // One that is not there is what was wanted.
        let _ = fs::remove_file(state_dir.join(file));
    }
    // What it holds is about sandboxes that no agent follows any more.
    let _ = fs::remove_dir_all(state_dir.join("cni"));
    for folder in [state_dir.join("pods"), state_dir.to_owned()] {
        // Neither is one that holds something else.
        let _ = fs::remove_dir(folder);
    }
}

async fn serve(
    config: AgentConfig,
    cgroup: PathBuf,
    known: Option<KnownAhead>,
    lifeline: Lifeline,
    mut told: Signals,
    readiness: Readiness,
) -> Result<(), AgentError> {
    let replaces = config.kube_proxy.replaces();
    let socket = AdminSocket::bind(&config.socket()).map_err(AgentError::Socket)?;
    let address = config.metrics_addr;
    let metrics_listener =
        TcpListener::bind(address).await.map_err(|source| AgentError::Metrics { address, source })?;
    let proxy_ports = ProxyPorts::bind(&config.kube_proxy, replaces).await?;
    let (signer, authority) = authority::signer(&config)?;
    let aliases = config.trust_domain_aliases.clone().into();
    let certificates = CertificateStore::accepting(signer, config.cert_ttl, aliases);
    let (stop, stopped) = watch::channel(false);
    let namespaces = Namespaces::default();
    let sandboxed = Sandboxed::open(&config.places.state_dir, namespaces.clone())
        .map_err(|source| AgentError::StateDir { path: config.places.state_dir.clone(), source })?;
    let (source, events, client) = begin_source(&config, known).await?;
    let source = source.with_sandboxes(sandboxed.sandboxes());
    let waiting = source.api().map(|api| {
        let bpffs = config.places.bpffs.clone();
        Arc::new(Waiting::new(config.node.clone(), bpffs, cgroup.clone(), api))
    });
    let waits = async {
        let Some(waiting) = waiting else { return std::future::pending().await };
        let asked = Arc::clone(&waiting);
        readiness.ask(move || asked.health());
        let api = serve_socket(&socket, Arc::clone(&waiting), on(stopped.clone()));
        tokio::join!(api, serve_metrics(&metrics_listener, waiting, on(stopped.clone())));
    };
    let first = source::run(source, mesh_config(&config), on(stopped.clone()));
    let feed = tokio::select! {
        feed = first => feed.map_err(AgentError::Source)?,
        () = waits => return Ok(()),
        // Nothing was begun yet that has to be ended.
        () = told.end() => return Ok(()),
    };
    let telemetry = telemetry(&config.cluster, &certificates, &feed, replaces);
    let shared = Arc::new(Shared::new(
        NodeName::new(config.node.as_str()),
        config.outside.agent_identity(&config.trust_domain)?,
        Arc::clone(&feed.current),
        certificates.clone(),
        telemetry.clone(),
    ));
    follow(&feed, &shared, &events);
    tell_routes(client, &config, &feed);
    let (requests, maps) = {
        let found = config.discovery.config(&cgroup);
        // Before the first pods are enrolled: those of an earlier agent must not be taken for gone.
        node::discovery::start(found, namespaces.clone()).map_err(starting("the discovery of pods"))?;
        let pods = (namespaces.clone(), events);
        start_controller(&config, &cgroup, replaces, lifeline, &shared, &feed, pods).await?
    };
    if let Some(state) = config.cni.state() {
        tokio::spawn(cni::remember(state, feed.snapshot.clone()));
    }
    let cni =
        sandboxed.serve(Arc::clone(&shared), feed.snapshot.clone(), requests.clone(), config.kubernetes);
    let cni_problem = Arc::new(InstallState::default());
    let source = feed.api.clone();
    let data = Arc::new(AgentData {
        node: config.node.clone(),
        started: SystemTime::now(),
        cgroup,
        bpffs: config.places.bpffs.clone(),
        feed,
        shared,
        authority,
        maps,
        requests: requests.clone(),
        cni,
        cni_problem: Arc::clone(&cni_problem),
    });
    tracing::info!(node = config.node, socket = %config.socket().display(), metrics = %address, "serving");
    let asked = Arc::clone(&data);
    readiness.ask(move || asked.health());
    // Only now can the plugin be answered.
    let _installer = install_plugin(&config, &data.shared, cni_problem)?;
    let api = serve_socket(socket, Arc::clone(&data), on(stopped.clone()));
    let metrics = serve_metrics(metrics_listener, Arc::clone(&data), on(stopped.clone()));
    let proxy = proxy_ports.serve(data, on(stopped.clone()), on(stopped));
    let flush = flush(&telemetry);
    let ended = async {
        tokio::select! {
            () = told.end() => {}
            () = requests.closed() => return Err(AgentError::ControllerEnded),
        }
        tracing::info!("stopping: capture ends, connections have {:?} to end", config.drain);
        let (done, stopped) = oneshot::channel();
        if requests.send(Request::Stop(done)).await.is_ok() {
            tokio::select! {
                // Gone without an answer is stopped as well.
                _done = stopped => {}
                () = told.end() => tracing::warn!("told twice: ending at once"),
            }
        }
        Ok(())
    };
    let result = tokio::select! {
        result = ended => result,
        // None of these ends before `ended` does.
        ((), (), (), (), ()) = async { tokio::join!(api, metrics, proxy, flush, certificates.run()) } => Ok(()),
    };
    // However it ended: what reads from the API server ends, and keeps what it knows.
    stop.send_replace(true);
    kept(source).await;
    result
}

/// Installs the CNI plugin, where it is to be.
fn install_plugin(
    config: &AgentConfig,
    shared: &Shared,
    state: Arc<InstallState>,
) -> Result<Option<Installer>, AgentError> {
    let Some(install) = config.cni.install(&config.plugin()) else { return Ok(None) };
    let mends = Arc::clone(&state);
    shared.telemetry.metrics().on_scrape(move |metrics| metrics.set_cni_config_mends(mends.mends()));
    plugin::install(install, state).map(Some).map_err(starting("the CNI installer"))
}

/// Waits until the last state is on disk.
async fn kept(source: Option<Arc<ApiState>>) {
    if let Some(source) = source
        && tokio::time::timeout(KEEP_TIMEOUT, source.ended()).await.is_err()
    {
        tracing::warn!("the last state is not on disk yet: the one before stays");
    }
}

/// Routes of the Gateway API hear what becomes of them, where there is an API server.
fn tell_routes(client: Option<kube::Client>, config: &AgentConfig, feed: &Feed) {
    if let Some(client) = client {
        let (namespace, snapshots) = (route_status::namespace(), feed.snapshot.clone());
        tokio::spawn(route_status::write(client, namespace, config.node.clone(), snapshots));
    }
}

/// Long connections' bytes reach the metrics, and what a burst took is given back.
async fn flush(telemetry: &Telemetry) {
    let mut tick = tokio::time::interval(FLUSH);
    // Reading all that there is takes more memory than having it.
    let (mut before, mut trims) = (0, 1);
    loop {
        tick.tick().await;
        telemetry.flush();
        let connections = telemetry.metrics().connections();
        if connections + BURST < before {
            trims = TRIMS;
        }
        if trims > 0 {
            memory::give_back();
            trims -= 1;
        }
        before = connections;
    }
}

/// What goes on beside the controller: connections follow the snapshots, endpoints that failed come back.
fn follow(feed: &Feed, shared: &Arc<Shared>, events: &Events) {
    tokio::spawn(follow_policy(feed.snapshot.clone(), Arc::clone(shared)));
    tokio::spawn(outliers::tell(Arc::clone(shared), events.clone()));
}

/// Ends connections that a new snapshot no longer allows, whatever the controller is busy with.
async fn follow_policy(mut snapshots: watch::Receiver<Arc<Snapshot>>, shared: Arc<Shared>) {
    while snapshots.changed().await.is_ok() {
        shared.refresh_pods();
    }
}

/// Completes once the flag is set, or its owner is gone.
async fn on(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}

/// Where the model comes from, and where pods' owners are told what becomes of them.
/// With what is known already, where that is.
async fn begin_source(
    config: &AgentConfig,
    known: Option<KnownAhead>,
) -> Result<(Source, Events, Option<kube::Client>), AgentError> {
    if !config.kubernetes {
        let source = Source::begin(Input::Manifests(config.manifests.clone()));
        return Ok((source.map_err(AgentError::Source)?, Events::default(), None));
    }
    let api = kubernetes::config().await.map_err(AgentError::Kubernetes)?;
    let mut quick = api.clone();
    quick.read_timeout = Some(EVENT_TIMEOUT);
    quick.write_timeout = Some(EVENT_TIMEOUT);
    let client = kubernetes::client(quick).map_err(AgentError::Kubernetes)?;
    let path = config.places.source_state.clone();
    let source = if let Some(known) = known {
        known.follow(path)
    } else {
        let file = StateFile { path, patience: config.source_wait };
        let input = Input::Kubernetes(Box::new(api), NodeName::new(config.node.as_str()), Some(file));
        Source::begin(input).map_err(AgentError::Source)?
    };
    Ok((source, Events::to(client.clone(), &config.node), Some(client)))
}

fn mesh_config(config: &AgentConfig) -> MeshConfig {
    MeshConfig {
        trust_domain: config.trust_domain.clone(),
        trust_domain_aliases: config.trust_domain_aliases.clone().into(),
        root_namespace: config.root_namespace.as_str().into(),
        cluster_domain: config.cluster_domain.as_str().into(),
        node: Some(NodeName::new(config.node.as_str())),
    }
}

fn telemetry(cluster: &str, certificates: &CertificateStore, feed: &Feed, replaces: bool) -> Telemetry {
    let metrics = Metrics::following(env!("CARGO_PKG_VERSION"), Arc::clone(&feed.changes), replaces);
    let metrics = Arc::new(metrics);
    let failures = Arc::clone(&metrics);
    certificates.on_failure(move |error| {
        tracing::warn!(error = %chain(error), "a certificate cannot be had");
        failures.certificate_failed(error.reason());
    });
    let (certificates, reports, current) =
        (certificates.clone(), feed.reports.clone(), Arc::clone(&feed.current));
    let api = feed.api.clone();
    metrics.on_scrape(move |metrics| {
        if let Some(api) = &api {
            metrics.set_source(&api.status());
        }
        let certificates = certificates.certificates();
        let ends: Vec<(String, u64, bool)> = certificates
            .iter()
            .filter_map(|status| {
                let end =
                    status.certificate.as_ref()?.not_after().duration_since(SystemTime::UNIX_EPOCH).ok()?;
                let expiring =
                    matches!(status.state, CertificateState::Expiring | CertificateState::Unavailable);
                Some((status.identity.to_string(), end.as_secs(), expiring))
            })
            .collect();
        metrics.set_certificates(
            ends.iter().map(|(identity, end, expiring)| (identity.as_str(), *end, *expiring)),
        );
        let reports = reports.borrow();
        metrics.sync().refresh(&current.load());
        metrics.set_config(current.load().generation, reports.problems.len(), reports.notices.len());
    });
    Telemetry::new(metrics, Arc::new(FlowLog::default()), cluster)
}

/// Starts the thread that owns the kernel and the pods; returns once the first snapshot is in force.
async fn start_controller(
    config: &AgentConfig,
    cgroup: &Path,
    replaces: bool,
    lifeline: Lifeline,
    shared: &Arc<Shared>,
    feed: &Feed,
    pods: (Namespaces, Events),
) -> Result<(mpsc::Sender<Request>, MapReader), AgentError> {
    let (requests, queue) = mpsc::channel(16);
    let (ready, started) = oneshot::channel();
    let (config, shared, snapshots) = (config.clone(), Arc::clone(shared), feed.snapshot.clone());
    let datapath = DatapathConfig {
        sizes: config.kube_proxy.sizes(),
        translates: replaces,
        ..DatapathConfig::new(config.places.bpffs.clone(), cgroup.to_owned())
    };
    let current = Arc::clone(&feed.current);
    let main = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(starting("the controller's runtime")(error)))),
        };
        runtime.block_on(async {
            let snapshot = Arc::clone(&snapshots.borrow());
            let ended = Arc::default();
            let controller = controller(
                &config,
                &datapath,
                lifeline,
                (&shared, &ended),
                &snapshot,
                snapshots.clone(),
                pods,
            );
            match Box::pin(controller).await {
                Err(error) => drop(ready.send(Err(error))),
                Ok((controller, events, counters)) => {
                    shared.telemetry.metrics().on_scrape(move |metrics| {
                        for (counter, value) in counters.read() {
                            metrics.set_kernel_events(counter.name(), value);
                        }
                    });
                    tokio::spawn(direct::record(events, current, ended, shared.telemetry.clone()));
                    let maps = controller.maps();
                    tokio::spawn(fill::follow(maps.clone(), shared.telemetry.clone()));
                    drop(ready.send(Ok(maps)));
                    controller.run(snapshots, queue).await;
                }
            }
        });
    };
    std::thread::Builder::new().name("controller".into()).spawn(main).map_err(starting("the controller"))?;
    let maps = started.await.unwrap_or(Err(AgentError::ControllerEnded))?;
    Ok((requests, maps))
}

async fn controller(
    config: &AgentConfig,
    datapath: &DatapathConfig,
    lifeline: Lifeline,
    (shared, ended): (&Arc<Shared>, &Arc<Ended>),
    snapshot: &Snapshot,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    (namespaces, pod_events): (Namespaces, Events),
) -> Result<(Controller, FlowEvents, CounterReader), AgentError> {
    let translates = datapath.translates;
    let (datapath, events) = Datapath::load(datapath, lifeline).map_err(AgentError::Datapath)?;
    let counters = datapath.counter_reader().map_err(AgentError::Datapath)?;
    let state_dir = &config.places.state_dir;
    let enroller = Enroller::open(state_dir)
        .map_err(|source| AgentError::StateDir { path: state_dir.clone(), source })?;
    let handles = || {
        Ok(Handles {
            deliveries: datapath.deliveries()?,
            presented: datapath.presented()?,
            affinities: datapath.affinities()?,
        })
    };
    let handles = (0..config.workers()).map(|_| handles()).collect::<Result<_, _>>();
    let workers = Workers::start(handles.map_err(AgentError::Datapath)?, shared, config.seed)
        .map_err(starting("the workers"))?;
    let external = if translates {
        Some(outside::open(config, shared, snapshots)?)
    } else {
        // Another proxy serves them: what an agent in its place has laid must not stand in its way.
        external::uninstall().await.map_err(AgentError::External)?;
        None
    };
    let reaper = Reaper::start(
        datapath.open_sockets().map_err(AgentError::Datapath)?,
        Arc::clone(shared.telemetry.metrics()),
        Arc::clone(ended),
        Box::new(workers.end_gone()),
    );
    let reaper = reaper.map_err(starting("the thread that ends sockets"))?;
    let parts = Parts {
        drain: config.drain,
        datapath,
        enroller,
        workers,
        shared: Arc::clone(shared),
        external,
        reaper,
        namespaces,
        events: pod_events,
    };
    let controller = Controller::start(parts, snapshot)?;
    Ok((controller, events, counters))
}

/// Two descriptors a connection: the soft limit of 1,024 is soon reached.
pub(crate) fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
}
