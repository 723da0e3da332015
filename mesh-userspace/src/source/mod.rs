//! Where the model comes from, and the feed of snapshots that everything else lives on.
//!
//! A source yields changes to objects and the problems it has with what it reads; the feed translates them and
//! publishes the outcome. A source that fails leaves the last state in force.

mod changes;
mod document;
mod files;
mod known;
pub(crate) mod kubernetes;
mod listing;
mod manifests;
mod unfinished;
mod update;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::{oneshot, watch};

pub use self::changes::{ChangeLog, Published, Totals};
pub use self::known::Known;

pub use self::kubernetes::{ApiState, ApiStatus, KindStatus, Phase, StateFile};

use self::files::FileSet;
use self::kubernetes::{Kubernetes, Start};
use self::manifests::Manifests;
use self::update::Update;
use crate::kubernetes::KubernetesError;
use crate::model::{MeshConfig, NodeName, Sandboxes, Snapshot};
use crate::resources::{Change, Notice, Problem, Severity, Translator};

/// Why a source cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// inotify is not to be had.
    #[error("cannot watch files")]
    Watch(#[source] notify::Error),
    /// No thread for it.
    #[error("cannot start the thread of the source")]
    Thread(#[source] std::io::Error),
    /// The API server's address or credentials make no sense.
    #[error(transparent)]
    Kubernetes(KubernetesError),
    /// It ended before it yielded anything.
    #[error("the source ended before it yielded anything")]
    Ended,
    /// A path that is to be read is not there, or not for us.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What the operator should know about the objects, as they are now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Reports {
    /// What could not be read; the last good state of it is in force.
    pub problems: Vec<Problem>,
    /// What was read and is not carried out as written.
    pub notices: Arc<[Notice]>,
    /// Objects of kinds that are no concern of a mesh.
    pub ignored: usize,
}

/// Where the objects are.
#[derive(Clone, Debug)]
pub enum Input {
    /// In these files and folders; one that does not exist yet is a problem in the reports, not an error.
    Manifests(Vec<PathBuf>),
    /// At this API server, as this node needs them; with the last state kept in a file, or nowhere.
    Kubernetes(Box<kube::Config>, NodeName, Option<StateFile>),
}

/// A source that has begun and may have nothing to tell yet.
#[derive(Debug)]
pub struct Source {
    following: Following,
    api: Option<Arc<ApiState>>,
    sandboxes: watch::Receiver<Sandboxes>,
}

#[derive(Debug)]
enum Following {
    Manifests(Manifests),
    Kubernetes(Kubernetes),
}

impl Source {
    /// Begins. Within a tokio runtime.
    ///
    /// # Errors
    /// It can never yield anything.
    pub fn begin(input: Input) -> Result<Self, SourceError> {
        let sandboxes = watch::channel(Sandboxes::default()).1;
        Ok(match input {
            Input::Manifests(paths) => {
                Self { following: Following::Manifests(Manifests::watch(paths)?), api: None, sandboxes }
            }
            Input::Kubernetes(config, node, file) => {
                let (kubernetes, state) = Kubernetes::watch(*config, node, Start::Now(file))?;
                Self { following: Following::Kubernetes(kubernetes), api: Some(state), sandboxes }
            }
        })
    }

    /// Begins to follow an API server for somebody who wants it later.
    ///
    /// # Errors
    /// It can never yield anything.
    pub fn ahead(config: kube::Config, node: NodeName) -> Result<Ahead, SourceError> {
        let ((known, knows), (go, told)) = (oneshot::channel(), oneshot::channel());
        let (kubernetes, api) = Kubernetes::watch(config, node, Start::WhenTold { known, go: told })?;
        Ok(Ahead { kubernetes, api, knows, go })
    }

    /// With what is known of this node's pods: it goes before what their objects say.
    #[must_use]
    pub fn with_sandboxes(mut self, sandboxes: watch::Receiver<Sandboxes>) -> Self {
        self.sandboxes = sandboxes;
        self
    }

    /// How it stands with the API server, where that is the source.
    pub fn api(&self) -> Option<Arc<ApiState>> {
        self.api.as_ref().map(Arc::clone)
    }

    /// The files as they were read last, where they are the source.
    fn files(&self) -> Option<Arc<Mutex<FileSet>>> {
        match &self.following {
            Following::Manifests(manifests) => Some(manifests.files()),
            Following::Kubernetes(_) => None,
        }
    }

    async fn next(&mut self) -> Option<Update> {
        match &mut self.following {
            Following::Manifests(manifests) => manifests.next().await,
            Following::Kubernetes(kubernetes) => kubernetes.next().await,
        }
    }
}

/// An API server that is followed and may not be known yet; nothing is told until it is wanted. Ends when dropped.
#[derive(Debug)]
pub struct Ahead {
    kubernetes: Kubernetes,
    api: Arc<ApiState>,
    knows: oneshot::Receiver<()>,
    go: oneshot::Sender<PathBuf>,
}

impl Ahead {
    /// How it stands with the API server.
    pub fn api(&self) -> Arc<ApiState> {
        Arc::clone(&self.api)
    }

    /// Returns once all of it is known, however long that takes.
    ///
    /// # Errors
    /// It ended before.
    pub async fn known(self) -> Result<KnownAhead, SourceError> {
        let Self { kubernetes, api, knows, go } = self;
        knows.await.map_err(|_ended| SourceError::Ended)?;
        Ok(KnownAhead { kubernetes, api, go })
    }
}

/// The same once it is known, and kept up to date. Ends when dropped.
#[derive(Debug)]
pub struct KnownAhead {
    kubernetes: Kubernetes,
    api: Arc<ApiState>,
    go: oneshot::Sender<PathBuf>,
}

impl KnownAhead {
    /// Now it is wanted, with the last state kept in this file.
    pub fn follow(self, file: PathBuf) -> Source {
        // Whatever ended it, the source says so itself: it yields nothing.
        let _ = self.go.send(file);
        Source {
            following: Following::Kubernetes(self.kubernetes),
            api: Some(self.api),
            sandboxes: watch::channel(Sandboxes::default()).1,
        }
    }
}

/// The current state of the mesh and of the reports about it.
#[derive(Clone, Debug)]
pub struct Feed {
    /// The snapshot in force, for the data path: one atomic load.
    pub current: Arc<ArcSwap<Snapshot>>,
    /// The same, for whoever waits for changes. Ends when the feed does.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Problems and notices.
    pub reports: watch::Receiver<Arc<Reports>>,
    /// What was published and may not be in force yet.
    pub changes: Arc<ChangeLog>,
    /// The objects that all of it comes from.
    pub known: Known,
    /// How it stands with the API server, where that is the source.
    pub api: Option<Arc<ApiState>>,
}

/// Follows a source until `shutdown` completes. Returns once the first full state is there, however long that takes.
///
/// # Errors
/// It can never yield anything.
pub async fn run(
    mut source: Source,
    mesh: MeshConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Feed, SourceError> {
    let api = source.api();
    let known = Known::new(Translator::new(mesh), source.files());
    let first = source.next().await.ok_or(SourceError::Ended)?;
    let triggers = changes::triggers(&first.changes);
    known.set_sandboxes(source.sandboxes.borrow_and_update().clone());
    let (snapshot, reports) = translate(known.clone(), first).await.ok_or(SourceError::Ended)?;
    log_new(&Reports::default(), &reports);
    let changes = Arc::new(ChangeLog::default());
    changes.publish(&Snapshot::default(), &snapshot, triggers);
    let current = Arc::new(ArcSwap::new(Arc::clone(&snapshot)));
    let (snapshot_sender, snapshot) = watch::channel(snapshot);
    let (reports_sender, reports) = watch::channel(reports);
    let publisher = Publisher {
        current: Arc::clone(&current),
        snapshot: snapshot_sender,
        reports: reports_sender,
        changes: Arc::clone(&changes),
        known: known.clone(),
    };
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown => {}
            () = publisher.follow(source) => {}
        }
    });
    Ok(Feed { current, snapshot, reports, changes, known, api })
}

/// What files and folders come to as they are now, followed no further. Blocks on the disk.
///
/// # Errors
/// A path is not there or cannot be read; what is wrong in the files is in the reports.
pub fn read_once(paths: &[PathBuf], mesh: MeshConfig) -> Result<(Snapshot, Reports), SourceError> {
    let (update, _) = manifests::read_once(paths)?;
    let (snapshot, notices) = Translator::new(mesh).apply(update.changes);
    Ok((snapshot, Reports { problems: update.problems, notices, ignored: update.ignored }))
}

/// The same on top of objects from elsewhere, which those of the files replace; with all objects and their places. Blocks on
/// the disk.
///
/// # Errors
/// As [`read_once`].
pub fn known_once(
    paths: &[PathBuf],
    mesh: MeshConfig,
    below: Vec<Change>,
) -> Result<(Snapshot, Reports, Known), SourceError> {
    let (update, files) = manifests::read_once(paths)?;
    let known = Known::new(Translator::new(mesh), Some(Arc::new(Mutex::new(files))));
    let (snapshot, notices) = known.apply(below.into_iter().chain(update.changes).collect());
    Ok((snapshot, Reports { problems: update.problems, notices, ignored: update.ignored }, known))
}

struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    reports: watch::Sender<Arc<Reports>>,
    changes: Arc<ChangeLog>,
    known: Known,
}

impl Publisher {
    async fn follow(self, mut source: Source) {
        let mut sandboxes = source.sandboxes.clone();
        loop {
            let update = tokio::select! {
                update = source.next() => match update {
                    Some(update) => update,
                    None => return,
                },
                () = changed(&mut sandboxes) => {
                    self.known.set_sandboxes(sandboxes.borrow_and_update().clone());
                    let reports = self.reports.borrow();
                    Update { changes: Vec::new(), problems: reports.problems.clone(), ignored: reports.ignored }
                }
            };
            let triggers = changes::triggers(&update.changes);
            let Some((snapshot, reports)) = translate(self.known.clone(), update).await else { return };
            let is_new = snapshot.generation != self.current.load().generation;
            if is_new {
                tracing::info!(generation = snapshot.generation, "snapshot published");
                self.changes.publish(&self.current.load(), &snapshot, triggers);
                self.current.store(Arc::clone(&snapshot));
                self.snapshot.send_replace(snapshot);
            }
            log_new(&self.reports.borrow(), &reports);
            self.reports.send_if_modified(|old| {
                let differs = *old != reports;
                *old = reports;
                differs
            });
        }
    }
}

/// Completes when something else is said of this node's pods; never where nobody says anything.
async fn changed(sandboxes: &mut watch::Receiver<Sandboxes>) {
    if sandboxes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

type Outcome = (Arc<Snapshot>, Arc<Reports>);

/// Off the runtime's threads: the first state of a large cluster takes a while.
async fn translate(known: Known, update: Update) -> Option<Outcome> {
    let work = move || {
        let (snapshot, notices) = known.apply(update.changes);
        let reports = Reports { problems: update.problems, notices, ignored: update.ignored };
        (Arc::new(snapshot), Arc::new(reports))
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.inspect_err(|error| tracing::error!(%error, "translation failed, the last state stays")).ok()
}

/// Each problem and notice is logged once, when it appears.
fn log_new(old: &Reports, new: &Reports) {
    for problem in new.problems.iter().filter(|new| !old.problems.iter().any(|old| old.is_same(new))) {
        tracing::warn!(
            code = problem.code.as_str(),
            origin = %problem.origin,
            line = problem.line,
            object = problem.object.as_ref().map(tracing::field::display),
            field = problem.field,
            reason = problem.reason,
            "object rejected; its last good state stays, if there is one"
        );
    }
    if Arc::ptr_eq(&old.notices, &new.notices) {
        return;
    }
    let known: BTreeSet<&Notice> = old.notices.iter().collect();
    for notice in new.notices.iter().filter(|notice| !known.contains(notice)) {
        let (object, field, reason) = (&notice.object, &notice.field, &notice.message);
        let code = notice.code.as_str();
        match notice.severity() {
            Severity::Info => {
                tracing::info!(code, %object, field, reason, "object is carried out differently");
            }
            Severity::Warning => tracing::warn!(code, %object, field, reason, "object is not fully honoured"),
            Severity::Error => tracing::error!(code, %object, field, reason, "object is not honoured"),
        }
    }
}

#[cfg(test)]
mod tests;
