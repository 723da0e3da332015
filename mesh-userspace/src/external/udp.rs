//! Datagrams from outside: a table of flows with timeouts, as conntrack keeps one.
//!
//! A flow is a client and what it asked for. It has a socket of its own towards the client, bound to the asked address and
//! connected, which the kernel finds before it asks `sk_lookup`: the listening socket sees first datagrams alone. And one
//! towards the endpoint, whose address stands for the client: an application of this node sees the client's in its place, and
//! its answers to the client come back there.
//!
//! Invariants: there is one flow a key; it ends with its sockets and with what the kernel's maps hold of it; nothing is
//! buffered beyond one datagram: what a socket does not take is lost, as on any wire.

use std::cell::Cell;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_common::abi::AffinityKey;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until};

use super::entry::Entry;
use super::flows::{FlowKey, Flows, Standing};
use super::listeners::watch;
use crate::datapath::Stayer;
use crate::model::{Protocol, Snapshot};
use crate::proxy::ask::Ask;
use crate::proxy::copy::with_scratch;
use crate::proxy::worker::{Handles, Worker};
use crate::socket::canonical;
use crate::socket::set_transparent;

/// Life of a flow after its last datagram, until both sides have spoken for a while (`nf_conntrack_udp_timeout`).
const TIMEOUT: Duration = Duration::from_secs(30);
/// Life of one in which they have (`nf_conntrack_udp_timeout_stream`).
const STREAM_TIMEOUT: Duration = Duration::from_mins(2);
/// How long that is (`nf_conntrack_udp_packet`): a question and its answer do not make a stream.
const STREAM_AFTER: Duration = Duration::from_secs(2);

/// Why a datagram went nowhere.
#[derive(Debug, thiserror::Error)]
enum FlowError {
    #[error("no service at {0}")]
    NoService(SocketAddr),
    #[error("{0} has no endpoint")]
    NoEndpoint(String),
    #[error("{0} is an endpoint and a service of this node at once")]
    Loop(SocketAddr),
    #[error("too many flows")]
    TooMany,
    #[error("{operation}")]
    Socket {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("name the client")]
    Present(#[source] crate::datapath::DatapathError),
}

impl FlowError {
    /// Bounded label for metrics.
    const fn reason(&self) -> &'static str {
        match self {
            Self::NoService(_) => "no_service",
            Self::NoEndpoint(_) => "no_endpoint",
            Self::Loop(_) => "loop",
            Self::TooMany => "too_many_flows",
            Self::Socket { .. } => "socket",
            Self::Present(_) => "presented_map_full",
        }
    }
}

/// See the module.
pub(super) struct Flow {
    key: FlowKey,
    /// Towards the client.
    down: Arc<UdpSocket>,
    /// Towards the endpoint.
    up: Arc<UdpSocket>,
    /// The agent's address towards the endpoint.
    source: SocketAddr,
    endpoint: SocketAddr,
    /// The client as the endpoint sees it, where that is not the agent.
    shown: Option<SocketAddr>,
    /// The client that is to stay with the endpoint, once that has answered.
    stay: Option<AffinityKey>,
    /// Generation of the snapshot that the endpoint was taken from.
    generation: u64,
    /// It has given way to another.
    replaced: Notify,
}

fn table(entry: &Entry) -> MutexGuard<'_, Flows<Flow>> {
    entry.flows.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes first datagrams until everything is cut.
pub(super) async fn listen(worker: Worker, entry: Arc<Entry>, listener: UdpSocket) {
    let listener = match watch(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "socket for datagrams from outside cannot be served"),
    };
    let mut cut = pin!(entry.cut());
    loop {
        let mut ready = tokio::select! {
            ready = listener.readable() => match ready {
                Ok(ready) => ready,
                Err(error) => return tracing::error!(%error, "datagrams from outside cannot be read"),
            },
            () = &mut cut => return,
        };
        let taken = with_scratch(|buffer| {
            ready.try_io(|listener| {
                let (length, key) = receive(listener.get_ref().as_fd(), buffer)?;
                if let Some(key) = key {
                    datagram(&worker, &entry, key, &buffer[..length]);
                }
                Ok(())
            })
        });
        if let Ok(Err(error)) = taken {
            tracing::debug!(%error, "datagram from outside");
        }
        consume_budget().await;
    }
}

/// A datagram and the flow that it belongs to; `None` where the kernel does not say.
fn receive(listener: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<FlowKey>)> {
    let mut control = cmsg_space!(libc::sockaddr_in6);
    let mut into = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(listener.as_raw_fd(), &mut into, Some(&mut control), flags)?;
    let client = message.address.as_ref().and_then(socket_address);
    let asked = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4OrigDstAddr(address) => {
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
        }
        ControlMessageOwned::Ipv6OrigDstAddr(address) => {
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            let port = u16::from_be(address.sin6_port);
            Some(SocketAddrV6::new(ip, port, 0, address.sin6_scope_id).into())
        }
        _ => None,
    });
    Ok((message.bytes, client.zip(asked).map(|(client, asked)| FlowKey { client, asked })))
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::from(SocketAddrV4::from(*address)));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::from(SocketAddrV6::from(*address))))
}

/// Sends a datagram on its way, in the flow that is there or a new one.
fn datagram(worker: &Worker, entry: &Arc<Entry>, key: FlowKey, bytes: &[u8]) {
    let begun = {
        let mut flows = table(entry);
        match flows.get(&key) {
            // It came before the flow's own socket was there.
            Some(flow) => {
                // A full socket loses it; an error is for the flow's own task to see.
                let _ = flow.up.send(bytes);
                return;
            }
            None if !flows.has_room() => Err(FlowError::TooMany),
            None => open(worker, entry, &mut flows, key).map(|flow| {
                let flow = Arc::new(flow);
                let replaced = flows.insert(key, Arc::clone(&flow));
                (flow, replaced)
            }),
        }
    };
    let metrics = worker.shared.telemetry.metrics();
    let flow = match begun {
        Ok((flow, replaced)) => {
            if let Some(replaced) = replaced {
                metrics.external_refused("gave_way");
                replaced.replaced.notify_one();
            }
            flow
        }
        Err(error) => {
            metrics.external_refused(error.reason());
            let error = &error as &dyn std::error::Error;
            return tracing::debug!(error, src.addr = %key.client, orig_dst = %key.asked, "datagram refused");
        }
    };
    // As above.
    let _ = flow.up.send(bytes);
    let entry = Arc::clone(entry);
    worker.hand_over(move |worker| Box::pin(carry(worker, entry, flow)));
}

/// Picks an endpoint and makes a flow's sockets.
fn open(worker: &Worker, entry: &Entry, flows: &mut Flows<Flow>, key: FlowKey) -> Result<Flow, FlowError> {
    let FlowKey { client, asked } = key;
    let snapshot = worker.shared.snapshot.load();
    let ask = resolve(entry, &snapshot, key).ok_or(FlowError::NoService(asked))?;
    let kept = ask.service.affinity_seconds;
    let stay = kept.and_then(|_| {
        let client = canonical(client);
        worker.handles.affinities.of(ask.frontend, client.is_ipv4(), Stayer::Address(client.ip()))
    });
    let stays = stay.as_ref().and_then(|stay| stay.backend().or_else(|| flows.drawn(&stay.client())));
    let endpoint = ask.endpoint(stays, fastrand::u64(..), &[]);
    let endpoint = endpoint.ok_or_else(|| FlowError::NoEndpoint(ask.service.name.to_string()))?;
    if entry.is_frontend(&snapshot, endpoint.address, Protocol::Udp) {
        return Err(FlowError::Loop(endpoint.address));
    }
    let failed = |operation| move |source| FlowError::Socket { operation, source };
    let up = upstream(endpoint.address).map_err(failed("connect to the endpoint"))?;
    let source = up.local_addr().map_err(failed("read the address"))?;
    let down = downstream(asked, client).map_err(failed("take the asked address"))?;
    let workload = endpoint.workload.as_ref().and_then(|uid| snapshot.workloads.get(uid));
    let is_here = entry.is_here(endpoint, workload.map(|workload| &**workload));
    let endpoint = endpoint.address;
    let shown = is_here.then(|| flows.show(client, endpoint, source)).flatten();
    if let Some(shown) = shown
        && let Err(error) = worker.handles.presented.present(source, shown)
    {
        flows.hide(shown, endpoint);
        return Err(FlowError::Present(error));
    }
    let stay = stay.map(|stay| stay.client());
    if let Some(client) = stay {
        flows.draw(client, endpoint);
    }
    let (down, up) = (Arc::new(down), Arc::new(up));
    let (generation, replaced) = (snapshot.generation, Notify::new());
    Ok(Flow { key, down, up, source, endpoint, shown, stay, generation, replaced })
}

fn resolve<'a>(entry: &Entry, snapshot: &'a Snapshot, key: FlowKey) -> Option<Ask<'a>> {
    let is_local = entry.is_local(snapshot, canonical(key.client));
    Ask::resolve(snapshot, canonical(key.asked), Protocol::Udp, is_local)
}

fn upstream(endpoint: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(endpoint), Type::DGRAM, Some(SocketProtocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.connect(&endpoint.into())?;
    Ok(socket.into())
}

/// Until it is connected, `sk_lookup` comes before it: it never takes what is another client's.
fn downstream(asked: SocketAddr, client: SocketAddr) -> io::Result<UdpSocket> {
    let domain = Domain::for_address(asked);
    let socket = Socket::new(domain, Type::DGRAM, Some(SocketProtocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if asked.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    set_transparent(&socket, domain)?;
    socket.bind(&asked.into())?;
    socket.connect(&client.into())?;
    Ok(socket.into())
}

/// How long a flow goes on without datagrams.
struct Life {
    began: Instant,
    last: Instant,
    answered: bool,
}

impl Life {
    fn new(now: Instant) -> Self {
        Self { began: now, last: now, answered: false }
    }

    fn standing(&self) -> Standing {
        match self.answered {
            false => Standing::Unanswered,
            true if self.last.duration_since(self.began) > STREAM_AFTER => Standing::Stream,
            true => Standing::Answered,
        }
    }

    fn end(&self) -> Instant {
        self.last + if self.standing() == Standing::Stream { STREAM_TIMEOUT } else { TIMEOUT }
    }
}

/// What became of reading a socket.
enum Read {
    Passed,
    /// There is nothing more for now.
    Empty,
    /// The flow is at its end.
    End,
}

/// Takes a flow out of the table and of the kernel's maps, however its task ends.
struct Ending<'a> {
    entry: &'a Entry,
    flow: &'a Arc<Flow>,
    handles: Rc<Handles>,
    /// The client that is to stay, until the endpoint has answered.
    stay: Cell<Option<AffinityKey>>,
    standing: Cell<Standing>,
}

impl Ending<'_> {
    /// Notes how far the flow has come; with the endpoint's first answer its client stays there.
    fn stand(&self, standing: Standing) {
        if self.standing.replace(standing) == standing {
            return;
        }
        let Flow { key, endpoint, .. } = **self.flow;
        let stay = self.stay.take();
        if let Some(client) = stay
            && let Err(error) = self.handles.affinities.keep(client, endpoint)
        {
            tracing::debug!(%error, src.addr = %key.client, "client's affinity not kept");
        }
        let mut flows = table(self.entry);
        flows.stand(&key, self.flow, standing);
        if let Some(client) = stay {
            flows.undraw(&client);
        }
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if self.flow.shown.is_some() {
            self.handles.presented.withdraw(self.flow.source);
        }
        let mut flows = table(self.entry);
        flows.remove(&self.flow.key, self.flow);
        if let Some(shown) = self.flow.shown {
            flows.hide(shown, self.flow.endpoint);
        }
        if let Some(client) = self.stay.take() {
            flows.undraw(&client);
        }
    }
}

/// Carries a flow to its end.
async fn carry(worker: Worker, entry: Arc<Entry>, flow: Arc<Flow>) {
    let ending = Ending {
        entry: &entry,
        flow: &flow,
        handles: Rc::clone(&worker.handles),
        stay: Cell::new(flow.stay),
        standing: Cell::new(Standing::Unanswered),
    };
    let (down, up) = match (watch(Arc::clone(&flow.down)), watch(Arc::clone(&flow.up))) {
        (Ok(down), Ok(up)) => (down, up),
        (Err(error), _) | (_, Err(error)) => return tracing::warn!(%error, "flow of datagrams lost"),
    };
    let mut life = Life::new(Instant::now());
    let mut timer = pin!(sleep_until(life.end()));
    let mut cut = pin!(entry.cut());
    let mut generation = flow.generation;
    loop {
        let read = tokio::select! {
            ready = down.readable() => {
                let Ok(mut ready) = ready else { return };
                let snapshot = worker.shared.snapshot.load();
                if snapshot.generation != generation {
                    if !still_serves(&entry, &snapshot, &flow) {
                        break;
                    }
                    generation = snapshot.generation;
                }
                let read = pass(&flow.down, &flow.up);
                if matches!(read, Read::Empty) { ready.clear_ready() }
                read
            }
            ready = up.readable() => {
                let Ok(mut ready) = ready else { return };
                let read = pass(&flow.up, &flow.down);
                match read {
                    Read::Passed => life.answered = true,
                    Read::Empty => ready.clear_ready(),
                    Read::End => {}
                }
                read
            }
            () = &mut timer => {
                if life.end() <= Instant::now() {
                    return;
                }
                timer.as_mut().reset(life.end());
                continue;
            }
            () = flow.replaced.notified() => return,
            () = &mut cut => return,
        };
        match read {
            Read::Passed => {
                life.last = Instant::now();
                ending.stand(life.standing());
            }
            Read::Empty => {}
            Read::End => return,
        }
        consume_budget().await;
    }
    // The endpoint serves no more: what the client has sent begins a flow to another.
    drop(ending);
    while let Ok(()) = with_scratch(|buffer| {
        let length = flow.down.recv(buffer)?;
        datagram(&worker, &entry, flow.key, &buffer[..length]);
        io::Result::Ok(())
    }) {}
}

fn still_serves(entry: &Entry, snapshot: &Snapshot, flow: &Flow) -> bool {
    resolve(entry, snapshot, flow.key).is_some_and(|ask| ask.member(flow.endpoint).is_some())
}

/// Passes one datagram on.
fn pass(from: &UdpSocket, to: &UdpSocket) -> Read {
    with_scratch(|buffer| {
        let length = match from.recv(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Read::Empty,
            // ICMP: nobody is there, or no way leads there.
            Err(_) => return Read::End,
        };
        match to.send(&buffer[..length]) {
            Ok(_) => Read::Passed,
            // Lost, as on any wire: a full socket, or more than the path takes at once.
            Err(error)
                if error.kind() == ErrorKind::WouldBlock
                    || matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) =>
            {
                Read::Passed
            }
            Err(_) => Read::End,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flow_lives_as_conntrack_has_it() {
        let began = Instant::now();
        let second = Duration::from_secs(1);
        // (last datagram, answered) → life after it
        for (last, answered, rest) in
            [(0, false, 30), (10, false, 30), (0, true, 30), (1, true, 30), (3, true, 120), (600, true, 120)]
        {
            let life = Life { began, last: began + second * last, answered };
            assert_eq!(life.end(), life.last + second * rest, "{last} {answered}");
        }
    }
}
