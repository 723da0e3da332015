//! Connections from outside: accepted once for all services, carried to an endpoint.
//!
//! Who is outside is plaintext: an endpoint that takes mutual TLS only refuses it, here or at its own agent. The application
//! sees the client's address where the endpoint is on this node or enrolled; otherwise it sees this node's, as with
//! kube-proxy.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::entry::Entry;
use super::listeners::watch;
use crate::datapath::Stayer;
use crate::model::{Endpoint, Maglev, Protocol, Snapshot};
use crate::policy::authorization::Refusal;
use crate::proxy::ask::Ask;
use crate::proxy::copy::broke;
use crate::proxy::establish::{Client, Establish};
use crate::proxy::forward::{Forward, Upstream, UpstreamError};
use crate::proxy::inbound::{self, DeliveryError};
use crate::proxy::record::{party, service_at};
use crate::proxy::route::{Arrival, Entrance};
use crate::proxy::worker::{ACCEPT_PAUSE, Worker, is_of_the_connection};
use crate::socket::{canonical, cookie, prepare, reset_on_close, tcp};
use crate::telemetry::{ConnectionRecord, Direction, OpenedConnection, Reporter, Security};

/// Accepts until everything is cut. While the agent waits for connections to end it goes on: the next agent cannot take
/// them yet.
pub(super) async fn accept(worker: Worker, entry: Arc<Entry>, listener: TcpListener) {
    let listener = match watch(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "listener for clients from outside cannot be served"),
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.async_io(Interest::READABLE, TcpListener::accept) => accepted,
            () = entry.cut() => return,
        };
        match accepted {
            Ok((socket, _)) => place(&worker, &entry, socket),
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept from outside");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn place(worker: &Worker, entry: &Arc<Entry>, socket: std::net::TcpStream) {
    let Some(admitted) = entry.admit() else {
        worker.shared.telemetry.metrics().external_refused("too_many_connections");
        return reset_on_close(&socket);
    };
    let entry = Arc::clone(entry);
    worker.hand_over(move |worker| {
        Box::pin(async move {
            let _admitted = admitted;
            match socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(socket)) {
                Ok(socket) => serve(&worker, &entry, socket).await,
                Err(error) => tracing::warn!(%error, "connection from outside lost"),
            }
        })
    });
}

/// Serves one connection to its end.
async fn serve(worker: &Worker, entry: &Entry, client: TcpStream) {
    let addresses = client.local_addr().and_then(|local| Ok((local, client.peer_addr()?)));
    // A connection that was reset before it was accepted has no peer any more.
    let Ok((asked, source)) = addresses else { return };
    let (asked, source) = (canonical(asked), canonical(source));
    if let Err(error) = prepare(&client) {
        tracing::debug!(%error, "socket options");
    }
    let snapshot = worker.shared.snapshot.load_full();
    let is_local = entry.is_local(&snapshot, source);
    let Some(ask) = Ask::resolve(&snapshot, asked, Protocol::Tcp, is_local) else {
        // The service went while the connection came.
        return reset_on_close(&client);
    };
    let ask = ask.of_client(Some(Maglev::client(source.ip())));
    let arrived =
        Arrived { worker, entry, snapshot: &snapshot, ask: &ask, asked, source, started: Instant::now() };
    let establish = Establish { worker, client: &arrived, ask: &ask, route: ask.route, asked, source };
    let connected = tokio::select! {
        connected = establish.run() => connected,
        () = broke(&client) => {
            establish.fail(&UpstreamError::ClientLeft);
            None
        }
        () = entry.cut() => None,
    };
    // A connection may last for days; the state of the mesh that it was routed by need not.
    drop(snapshot);
    let Some(established) = connected else { return reset_on_close(&client) };
    tokio::select! {
        () = established.carry(worker, &client, asked, None) => {}
        () = entry.cut() => reset_on_close(&client),
    }
}

/// A connection from outside.
struct Arrived<'a> {
    worker: &'a Worker,
    entry: &'a Entry,
    snapshot: &'a Snapshot,
    ask: &'a Ask<'a>,
    asked: SocketAddr,
    source: SocketAddr,
    started: Instant,
}

impl Client for Arrived<'_> {
    fn stayer(&self) -> Stayer {
        Stayer::Address(self.source.ip())
    }

    /// The record of the connection as this node sees it.
    fn open(&self, endpoint: Option<&Endpoint>, upstream: Option<&Upstream>) -> ConnectionRecord {
        let security = match upstream {
            None => Security::Unknown,
            Some(Upstream::Tunnel(..)) => Security::MutualTls,
            // Nobody has proved who the client is, to a pod of this node either.
            Some(_) => Security::None,
        };
        let destination = endpoint.map_or(self.asked, |endpoint| endpoint.address);
        let workload = endpoint.and_then(|endpoint| Arrival::workload(self.snapshot, endpoint));
        // What the client's address suggests is named; nobody has proved to be that.
        let known = self.snapshot.workload_at(self.source.ip());
        let mut client = party(self.source, known.map(|workload| &**workload), None);
        client.identity = (security == Security::MutualTls).then(|| self.worker.shared.agent.clone());
        let mut server = party(destination, workload.map(|workload| &**workload), None);
        if security != Security::MutualTls {
            server.identity = None;
        }
        self.worker.shared.telemetry.open(OpenedConnection {
            started: self.started,
            reporter: Reporter::Source,
            direction: Direction::External,
            source: client,
            destination: server,
            original_destination: Some(self.asked),
            service: Some(service_at(self.ask.service, self.ask.port.port)),
            security,
        })
    }

    async fn connect(&self, endpoint: &Endpoint, within: Duration) -> Result<Upstream, UpstreamError> {
        let address = endpoint.address;
        let workload = Arrival::workload(self.snapshot, endpoint);
        let arrival = Arrival {
            endpoint,
            workload,
            is_frontend: self.entry.is_frontend(self.snapshot, address, Protocol::Tcp),
            is_here: self.entry.is_here(endpoint, workload.map(|workload| &**workload)),
        };
        let forward = Forward {
            worker: self.worker,
            client: self.source,
            started: self.started,
            within,
            is_copy: false,
        };
        match arrival.entrance(|uid| self.worker.shared.pod(uid)) {
            Entrance::Loop => Err(UpstreamError::Loop(address)),
            Entrance::Local(pod, workload) => forward.deliver(&pod, workload, None, address).await,
            Entrance::Strict => Err(DeliveryError::Refused { address, refusal: Refusal::Plaintext }.into()),
            // Its agent believes this one who the client is.
            Entrance::Tunnel(workload) => {
                let agent = &self.worker.shared.agent;
                forward.tunnel(&self.entry.netns, agent, workload, address, None).await
            }
            Entrance::Unserved(workload) => {
                let (worker, client) = (self.worker, self.source);
                let admission = inbound::judge(worker, self.snapshot, workload, None, client, address)?;
                Ok(Upstream::Unserved(self.dial(endpoint, within).await?, admission))
            }
            Entrance::Plain => self.dial(endpoint, within).await.map(Upstream::Socket),
        }
    }
}

impl Arrived<'_> {
    /// In plaintext from the node's own namespace. An application of this node is told whom the connection is for.
    async fn dial(&self, endpoint: &Endpoint, within: Duration) -> Result<TcpStream, UpstreamError> {
        let address = endpoint.address;
        let connect = timeout(within, dial(self.worker, address, self.source)).await;
        let socket = connect.map_err(|_elapsed| UpstreamError::Timeout(address))?;
        socket.map_err(|source| UpstreamError::Connect { address, source })
    }
}

/// Connects from the node's own namespace for `client`: the application's `getpeername` says so.
async fn dial(worker: &Worker, to: SocketAddr, client: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp(to)?;
    prepare(&socket)?;
    // Whoever is said to be there: what stands in for a client is never taken for the node itself, whose probes a pod lets
    // through. Where the application is on another node, nobody there reads the name.
    let _named = worker.handles.presented.connecting(cookie(&socket)?, client).map_err(io::Error::other)?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}
