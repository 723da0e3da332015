//! The Kubernetes API server as the source: every kind that matters listed and watched, for as long as the agent runs.
//!
//! A thread of its own carries the watches, one a kind. What they tell is collected ([`collect`]) and passed on a few
//! milliseconds at a time. Whatever goes wrong between here and the API server changes nothing of what is in force: it is
//! tried again for ever, and told ([`state`]). The last state is kept on disk as well ([`keep`], [`stored`]): where the API
//! server does not answer at the start, that is in force until it does.
//!
//! An agent that stands by follows it as well and passes nothing on ([`Start::WhenTold`]): when it takes over it has nothing
//! to list, which at large clusters takes seconds in which nobody would serve the pods.

mod collect;
mod item;
mod keep;
pub(crate) mod kinds;
mod observe;
mod state;
mod stored;
mod trouble;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use kube::Config;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, timeout_at};

pub use self::keep::StateFile;
pub use self::state::{ApiState, ApiStatus, KindStatus, Phase};

use self::collect::Collector;
use self::keep::Keeper;
use self::kinds::WATCHED;
use self::stored::Owner;
use self::watch::{Message, Watch};
use super::SourceError;
use super::update::Update;
use crate::kubernetes;
use crate::model::NodeName;
use crate::resources::Origin;

/// What comes within this time of each other is passed on together.
const BURST: Duration = Duration::from_millis(20);
/// Most changes that are waited for together.
const MAX_BURST: usize = 10_000;
/// Messages that wait for their reader.
const MESSAGES: usize = 256;
/// Updates that wait for theirs.
const UPDATES: usize = 4;
/// How often what is waited for at the start is told.
const REMIND: Duration = Duration::from_secs(10);
/// How often the API server is looked for before what was kept on disk is taken.
const LOOK: Duration = Duration::from_millis(250);

/// When what is known is passed on, and where it is kept.
#[derive(Debug)]
pub(super) enum Start {
    /// As soon as it is known, or read from the file.
    Now(Option<StateFile>),
    /// Once `go` says so, and in which file it is kept then; `known` hears when that can be.
    WhenTold { known: oneshot::Sender<()>, go: oneshot::Receiver<PathBuf> },
}

/// An API server that is being followed, until this is dropped.
#[derive(Debug)]
pub(super) struct Kubernetes {
    updates: mpsc::Receiver<Update>,
    _stop: oneshot::Sender<()>,
}

impl Kubernetes {
    /// Begins to follow it. Within a tokio runtime.
    pub(super) fn watch(
        mut config: Config,
        node: NodeName,
        start: Start,
    ) -> Result<(Self, Arc<ApiState>), SourceError> {
        // What fails is told and counted here, and tried again later than a library would.
        config.default_retry = false;
        // Whether it makes sense is known before there is a thread.
        kubernetes::client(config.clone()).map_err(SourceError::Kubernetes)?;
        let state = ApiState::new(config.cluster_url.to_string().trim_end_matches('/').to_owned());
        let (sender, updates) = mpsc::channel(UPDATES);
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(SourceError::Thread)?;
        let of_thread = Arc::clone(&state);
        let main = move || {
            runtime.block_on(follow(config, node, Arc::clone(&of_thread), start, (sender, stopped)));
            of_thread.end();
        };
        thread::Builder::new().name("kubernetes".to_owned()).spawn(main).map_err(SourceError::Thread)?;
        Ok((Self { updates, _stop: stop }, state))
    }

    /// The next update; the first comes with the full state, once there is one. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
}

async fn follow(
    config: Config,
    node: NodeName,
    state: Arc<ApiState>,
    start: Start,
    (updates, stopped): (mpsc::Sender<Update>, oneshot::Receiver<()>),
) {
    let (sender, mut messages) = mpsc::channel(MESSAGES);
    let mut watches = JoinSet::new();
    for (number, watched) in WATCHED.iter().enumerate() {
        let (node, state, messages) = (node.clone(), Arc::clone(&state), sender.clone());
        watches.spawn(Watch { number, watched, node, state, messages }.run(config.clone()));
    }
    drop(sender);
    let url: Arc<str> = config.cluster_url.to_string().trim_end_matches('/').into();
    let owner = Owner::new(&node, &url, config.root_cert.as_deref());
    let mut collector = Collector::new(Origin::ApiServer(url), Arc::clone(&state));
    let mut keeper = Keeper::new(owner.clone(), Arc::clone(&state));
    tokio::select! {
        _dropped = stopped => {}
        _ended = async {
            let (stored, told) = match start {
                Start::Now(file) => (file.map(|file| (file, owner)), None),
                Start::WhenTold { known, go } => (None, Some((known, go))),
            };
            if let Some((file, _)) = &stored {
                keeper.keep_in(file.path.clone());
            }
            first(&mut collector, &mut messages, &state, stored).await?;
            if let Some((known, go)) = told {
                keeper.keep_in(hold(&mut collector, &mut messages, known, go).await?);
            }
            pass_on(&mut collector, &mut messages, &mut keeper, &updates).await;
            Some(())
        } => {}
    }
    keeper.end(&collector).await;
}

/// Keeps what is known up to date and tells nothing of it, until it is wanted; `None` if nobody will want it, or the watches
/// ended.
async fn hold(
    collector: &mut Collector,
    messages: &mut mpsc::Receiver<Message>,
    known: oneshot::Sender<()>,
    mut go: oneshot::Receiver<PathBuf>,
) -> Option<PathBuf> {
    known.send(()).ok()?;
    loop {
        collector.tell_nothing();
        tokio::select! {
            biased;
            told = &mut go => {
                collector.tell_all();
                return told.ok();
            }
            message = messages.recv() => collector.note(message?),
        }
    }
}

/// Tells what is known and what becomes different, and keeps it, until nobody listens or the watches end.
async fn pass_on(
    collector: &mut Collector,
    messages: &mut mpsc::Receiver<Message>,
    keeper: &mut Keeper,
    updates: &mpsc::Sender<Update>,
) {
    loop {
        let update = collector.take(SystemTime::now());
        if !update.changes.is_empty() {
            keeper.changed();
        }
        if updates.send(update).await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                goes_on = burst(collector, messages) => {
                    if !goes_on {
                        return;
                    }
                    break;
                }
                () = keeper.due() => {}
            }
            keeper.begin(collector);
        }
    }
}

/// Reads what was kept on disk; `None` where it cannot be taken, which is said once.
async fn restore(file: StateFile, owner: Owner) -> Option<stored::Stored> {
    let path = file.path.clone();
    let read = tokio::task::spawn_blocking(move || stored::read(&path, &owner)).await;
    let file = file.path.display();
    match read {
        Ok(Ok(Some(stored))) => {
            let age = SystemTime::now().duration_since(stored.as_of).unwrap_or_default().as_secs();
            let objects = stored.objects.len();
            tracing::warn!(%file, objects, age, "the API server does not answer: what was kept on disk is in force, as old (s) as said");
            Some(stored)
        }
        Ok(Ok(None)) => {
            tracing::warn!(%file, "the API server does not answer, and no state was kept on disk");
            None
        }
        Ok(Err(error)) => {
            tracing::warn!(%file, %error, "the API server does not answer, and what was kept on disk is not taken");
            None
        }
        Err(error) => {
            tracing::error!(%file, %error, "what was kept on disk cannot be read");
            None
        }
    }
}

/// Waits until every kind is known, or what was kept on disk is taken for what is not; `None` if the watches ended.
async fn first(
    collector: &mut Collector,
    messages: &mut mpsc::Receiver<Message>,
    state: &ApiState,
    mut stored: Option<(StateFile, Owner)>,
) -> Option<()> {
    let begun = Instant::now();
    let mut look = interval_at(begun + LOOK, LOOK);
    let mut remind = interval_at(begun + REMIND, REMIND);
    while !collector.is_settled() {
        tokio::select! {
            message = messages.recv() => collector.note(message?),
            _ = look.tick(), if stored.is_some() => {
                let is_away = |(file, _): &mut (StateFile, Owner)| state.is_away(file.patience);
                if let Some((file, owner)) = stored.take_if(is_away)
                    && let Some(stored) = restore(file, owner).await
                {
                    state.restored(stored.as_of);
                    collector.restore(stored.objects);
                    return Some(());
                }
            }
            _ = remind.tick() => {
                let waits_for = state.waits_for().join(", ");
                tracing::warn!(
                    waits_for,
                    seconds = begun.elapsed().as_secs(),
                    "waiting for the API server: what is in the kernel stays in force until then"
                );
            }
        }
    }
    tracing::info!(seconds = begun.elapsed().as_secs_f32(), "the API server's objects are known");
    Some(())
}

/// Waits for something to tell, and for what comes right after it; false if the watches ended.
async fn burst(collector: &mut Collector, messages: &mut mpsc::Receiver<Message>) -> bool {
    while !collector.waiting().1 {
        match messages.recv().await {
            Some(message) => collector.note(message),
            None => return false,
        }
    }
    let end = Instant::now() + BURST;
    while collector.waiting().0 < MAX_BURST {
        match timeout_at(end, messages.recv()).await {
            Ok(Some(message)) => collector.note(message),
            Ok(None) => return false,
            Err(_elapsed) => break,
        }
    }
    true
}
