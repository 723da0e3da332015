//! The threads that carry connections. Each has a runtime of its own, its own pool of HBONE connections, and no state
//! that another thread writes: a connection stays on the worker that it was given to.

use std::io;
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::carried::Carried;
use super::hbone::Pool;
use super::{Pod, Shared, Stop, inbound, outbound};
use crate::datapath::{Deliveries, Role};
use crate::model::Snapshot;
use crate::socket::prepare;

/// How often a worker tidies up.
const SWEEP: Duration = Duration::from_secs(5);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a worker is told.
enum Command {
    Listen(Arc<Pod>, Role, StdListener),
    Serve(Arc<Pod>, Role, std::net::TcpStream),
    Forget(u64),
    EndGone(Arc<Snapshot>),
}

/// A worker as others see it.
#[derive(Clone)]
struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    connections: Arc<AtomicUsize>,
}

/// A worker as its own tasks see it.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Rc<Pool>,
    pub(super) deliveries: Rc<Deliveries>,
    pub(super) carried: Rc<Carried>,
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
    /// Starts a thread for each of these handles.
    pub fn start(deliveries: Vec<Deliveries>, shared: &Arc<Shared>) -> io::Result<Self> {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut queues = Vec::new();
        let handles: Arc<[Handle]> = deliveries
            .iter()
            .map(|_| {
                let (commands, queue) = mpsc::unbounded_channel();
                queues.push(queue);
                Handle { commands, connections: Arc::default() }
            })
            .collect();
        let mut threads = Vec::new();
        for (index, (queue, deliveries)) in queues.into_iter().zip(deliveries).enumerate() {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().event_interval(31).build()?;
            let (shared, peers, mut stopped) = (Arc::clone(shared), Arc::clone(&handles), stopped.clone());
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let tasks = LocalSet::new();
                let (pool, carried, deliveries) = (Rc::default(), Rc::default(), Rc::new(deliveries));
                let worker = Worker { shared, pool, deliveries, carried, index, peers };
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
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // A pod without an enrolment to end it is gone.
                _stopped = stop.wait_for(|stop| *stop > Stop::Serving) => return,
            };
            match accepted {
                Ok((socket, _)) => self.place(Arc::clone(&pod), role, socket),
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, pod = %pod.uid(), "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Gives a connection to the worker that carries the fewest, to this one if that is as good.
    fn place(&self, pod: Arc<Pod>, role: Role, socket: TcpStream) {
        let load = |handle: &Handle| handle.connections.load(Ordering::Relaxed);
        let own = load(&self.peers[self.index]);
        let least = self.peers.iter().min_by_key(|handle| load(handle)).filter(|handle| load(handle) < own);
        let Some(other) = least else {
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
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
