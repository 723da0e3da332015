//! The thread that serves: a runtime and a listener of its own, in the network namespace where it is wanted.

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::serve::answer;
use super::state::{State, lock};

const HANDSHAKE: Duration = Duration::from_secs(10);

/// A thread that serves until this is dropped; all its connections are closed then.
#[derive(Debug)]
pub(super) struct Listener {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    pub(super) address: SocketAddr,
}

impl Listener {
    /// Listens before it returns.
    pub(super) fn start(state: &Arc<State>, netns: Option<File>, address: SocketAddr) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let state = Arc::clone(state);
        let thread = thread::Builder::new().name("kube-apiserver".to_owned()).spawn(move || {
            let bound = || -> Result<_> {
                if let Some(netns) = netns {
                    setns(netns, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
                }
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let listener = runtime
                    .block_on(TcpListener::bind(address))
                    .with_context(|| format!("listen on {address}"))?;
                let address = listener.local_addr()?;
                Ok((runtime, listener, address))
            };
            match bound() {
                Ok((runtime, listener, address)) => {
                    // Whoever waits for this is there, or it is over anyway.
                    let _told = tell.send(Ok(address));
                    runtime.block_on(async {
                        tokio::select! {
                            () = accept(&state, &listener) => {}
                            _stop = stopped => {}
                        }
                    });
                    // Ends every connection with it; a command in a pod that still runs is not waited for.
                    runtime.shutdown_background();
                }
                Err(error) => {
                    let _told = tell.send(Err(error));
                }
            }
        })?;
        let address = told.recv().map_err(|_gone| anyhow!("the API server's thread ended"))??;
        Ok(Self { stop: Some(stop), thread: Some(thread), address })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ended = thread.join();
        }
    }
}

async fn accept(state: &Arc<State>, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(Arc::clone(state), stream));
            }
            // Out of descriptors, for one.
            Err(_busy) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(state: Arc<State>, stream: TcpStream) {
    let mut cut = state.cut.subscribe();
    // A segment a write, as otherwise each event waits for an acknowledgement.
    let _best_effort = stream.set_nodelay(true);
    let acceptor = lock(&state.acceptor).clone();
    let Ok(Ok(stream)) = timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let service = service_fn(move |request| {
        let answered = answer(Arc::clone(&state), request);
        async move { Ok::<_, std::convert::Infallible>(answered.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        // What a client does wrong is its own affair.
        _ended = served => {}
        _cut = cut.changed() => {}
    }
}
