//! The threads that carry connections. Each has a runtime of its own, its own pool of HBONE connections, and no state
//! that another thread writes: a connection stays on the worker that it was given to.

use std::io;
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::carried::Carried;
use super::chance::Chance;
use super::hbone::Pool;
use super::{Pod, Shared, Stop, inbound, outbound};
use crate::datapath::{Affinities, Deliveries, Presented, Role};
use crate::model::Snapshot;
use crate::socket::prepare;

/// How often a worker tidies up.
const SWEEP: Duration = Duration::from_secs(5);
/// Pause after an accept that failed for want of descriptors or memory.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a worker is told.
enum Command {
    Listen(Arc<Pod>, Role, StdListener),
    Serve(Arc<Pod>, Role, std::net::TcpStream),
    Forget(u64),
    EndGone(Arc<Snapshot>),
    Run(Job),
}

/// What a worker is given to do, on its own thread.
type Job = Box<dyn FnOnce(Worker) -> LocalBoxFuture<'static, ()> + Send>;

/// One worker's handles on the kernel's maps.
pub struct Handles {
    /// What it delivers to applications of enrolled pods.
    pub deliveries: Deliveries,
    /// Whom it stands in for.
    pub presented: Presented,
    /// Where clients from outside stay.
    pub affinities: Affinities,
}

/// A worker as others see it.
#[derive(Clone)]
struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    connections: Arc<AtomicUsize>,
}

/// A worker as its own tasks see it.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Rc<Pool>,
    pub(crate) handles: Rc<Handles>,
    pub(crate) carried: Rc<Carried>,
    pub(super) chance: Rc<Chance>,
    index: usize,
    peers: Arc<[Handle]>,
}

/// All workers. Dropping it ends them with everything that they carry.
pub struct Workers {
    handles: Arc<[Handle]>,
    threads: Vec<JoinHandle<()>>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Workers {
    /// Starts a thread for each of these handles. `seed` is for tests: it decides on faults and mirrors.
    pub fn start(maps: Vec<Handles>, shared: &Arc<Shared>, seed: Option<u64>) -> io::Result<Self> {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut queues = Vec::new();
        let handles: Arc<[Handle]> = maps
            .iter()
            .map(|_| {
                let (commands, queue) = mpsc::unbounded_channel();
                queues.push(queue);
                Handle { commands, connections: Arc::default() }
            })
            .collect();
        let mut threads = Vec::new();
        for (index, (queue, maps)) in queues.into_iter().zip(maps).enumerate() {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().event_interval(31).build()?;
            let (shared, peers, mut stopped) = (Arc::clone(shared), Arc::clone(&handles), stopped.clone());
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let tasks = LocalSet::new();
                let (pool, carried, handles) = (Rc::default(), Rc::default(), Rc::new(maps));
                let chance = Rc::new(Chance::new(seed, index));
                let worker = Worker { shared, pool, handles, carried, chance, index, peers };
                runtime.block_on(tasks.run_until(async move {
                    tokio::select! {
                        () = worker.run(queue) => {}
                        // Without a sender the agent is gone as well.
                        _stopped = stopped.wait_for(|stop| *stop) => {}
                    }
                }));
            })?;
            threads.push(thread);
        }
        Ok(Self { handles, threads, stop })
    }

    /// Begins to accept for a pod. The pod's own `stop` ends it.
    pub fn listen(&self, pod: &Arc<Pod>, role: Role, socket: StdListener) {
        let index = usize::try_from(pod.netns().cookie()).unwrap_or(0) % self.handles.len();
        self.handles[index].send(Command::Listen(Arc::clone(pod), role, socket));
    }

    /// Drops pooled connections of a namespace that is no pod's any more.
    pub fn forget(&self, netns_cookie: u64) {
        for handle in self.handles.iter() {
            handle.send(Command::Forget(netns_cookie));
        }
    }

    /// Gives a task to one of the workers; `turn` says which.
    pub(crate) fn run(
        &self,
        turn: usize,
        work: impl FnOnce(Worker) -> LocalBoxFuture<'static, ()> + Send + 'static,
    ) {
        self.handles[turn % self.handles.len()].send(Command::Run(Box::new(work)));
    }

    /// For whoever learns that endpoints went: ends the connections to those.
    pub fn end_gone(&self) -> impl Fn(&Arc<Snapshot>) + Send + use<> {
        let handles = Arc::clone(&self.handles);
        move |snapshot| {
            for handle in handles.iter() {
                handle.send(Command::EndGone(Arc::clone(snapshot)));
            }
        }
    }

    /// Connections that are being carried.
    pub fn connections(&self) -> usize {
        self.handles.iter().map(|handle| handle.connections.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

impl Handle {
    fn send(&self, command: Command) {
        // A worker that has ended takes nothing more; that is the agent's end.
        let _ = self.commands.send(command);
    }
}

impl Worker {
    async fn run(self, mut queue: mpsc::UnboundedReceiver<Command>) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                command = queue.recv() => match command {
                    Some(Command::Listen(pod, role, socket)) => self.listen(pod, role, socket),
                    Some(Command::Serve(pod, role, socket)) => match TcpStream::from_std(socket) {
                        Ok(socket) => self.serve(pod, role, socket),
                        Err(error) => {
                            self.connections().fetch_sub(1, Ordering::Relaxed);
                            tracing::warn!(%error, "connection lost between workers");
                        }
                    },
                    Some(Command::Forget(cookie)) => self.pool.forget(cookie),
                    Some(Command::EndGone(snapshot)) => self.carried.end_gone(&snapshot),
                    Some(Command::Run(job)) => drop(tokio::task::spawn_local(job(self.clone()))),
                    None => return,
                },
                _ = sweep.tick() => {
                    self.pool.sweep();
                    self.shared.set_pool_sizes(self.index, self.pool.sizes());
                }
            }
        }
    }

    fn connections(&self) -> &AtomicUsize {
        &self.peers[self.index].connections
    }

    fn listen(&self, pod: Arc<Pod>, role: Role, socket: StdListener) {
        match TcpListener::from_std(socket) {
            Ok(listener) => drop(tokio::task::spawn_local(self.clone().accept(pod, role, listener))),
            Err(error) => tracing::error!(%error, pod = %pod.uid(), "listener cannot be served"),
        }
    }

    async fn accept(self, pod: Arc<Pod>, role: Role, listener: TcpListener) {
        let mut stop = pod.stop.clone();
        // The same failure again and again is one line.
        let mut told = None;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // A pod without an enrolment to end it is gone.
                _stopped = stop.wait_for(|stop| *stop > Stop::Serving) => return,
            };
            match accepted {
                Ok((socket, _)) => {
                    told = None;
                    self.place(Arc::clone(&pod), role, socket);
                }
                Err(error) if is_of_the_connection(&error) => {}
                // The socket was shut down from outside; the controller opens another.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
                Err(error) => {
                    if told != error.raw_os_error() {
                        tracing::warn!(%error, pod = %pod.uid(), "cannot accept");
                        told = error.raw_os_error();
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// The worker that carries the fewest connections; `None` if this one is as good.
    fn less_busy(&self) -> Option<&Handle> {
        let load = |handle: &Handle| handle.connections.load(Ordering::Relaxed);
        let own = load(&self.peers[self.index]);
        self.peers.iter().min_by_key(|handle| load(handle)).filter(|handle| load(handle) < own)
    }

    /// Gives a task that is a connection to the worker that carries the fewest.
    pub(crate) fn hand_over(&self, work: impl FnOnce(Self) -> LocalBoxFuture<'static, ()> + Send + 'static) {
        let handle = self.less_busy().unwrap_or(&self.peers[self.index]);
        let placed = Placed::new(&handle.connections);
        handle.send(Command::Run(Box::new(move |worker| {
            Box::pin(async move {
                let _placed = placed;
                work(worker).await;
            })
        })));
    }

    /// Gives a connection to the worker that carries the fewest, to this one if that is as good.
    fn place(&self, pod: Arc<Pod>, role: Role, socket: TcpStream) {
        let Some(other) = self.less_busy() else {
            self.connections().fetch_add(1, Ordering::Relaxed);
            return self.serve(pod, role, socket);
        };
        match socket.into_std() {
            Ok(socket) => {
                other.connections.fetch_add(1, Ordering::Relaxed);
                other.send(Command::Serve(pod, role, socket));
            }
            Err(error) => tracing::warn!(%error, "connection lost between workers"),
        }
    }

    /// Carries a connection that has been counted.
    fn serve(&self, pod: Arc<Pod>, role: Role, socket: TcpStream) {
        if let Err(error) = prepare(&socket) {
            tracing::debug!(%error, "socket options");
        }
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            let _counted = Counted::new(&worker.peers[worker.index].connections, &pod);
            match role {
                Role::Outbound => outbound::serve(&worker, &pod, socket).await,
                Role::Inbound => inbound::plaintext(&worker, &pod, socket).await,
                Role::Hbone => inbound::hbone(&worker, &pod, socket).await,
            }
        });
    }
}

/// A task that counts as a connection of its worker until it is dropped.
struct Placed(Arc<AtomicUsize>);

impl Placed {
    fn new(connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connections))
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that is being carried.
struct Counted<'a>(&'a AtomicUsize, &'a Pod);

impl<'a> Counted<'a> {
    fn new(worker: &'a AtomicUsize, pod: &'a Pod) -> Self {
        pod.begin();
        Self(worker, pod)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        self.1.end();
    }
}

/// Errors of one connection that was waiting to be accepted (accept(2)); the next one is not concerned.
pub(crate) fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
