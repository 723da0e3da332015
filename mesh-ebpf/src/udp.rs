//! `cgroup/sendmsg4/6` and `cgroup/recvmsg4/6`: UDP to a service goes to one backend a socket for as long as that serves,
//! and the answers bear the address that the application asked; a server sees the clients from outside that the agent
//! stands in for, and answers them. What is kept of a socket is in `udp_peers`.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{
    ANY_V6, Address, BACKEND_NONE, Counter, PresentedKey, Reply, ReplyKey, SCOPE_ADDRESS, SERVICE_RANGES,
    STATE_TRANSLATE, Service, ServiceKey, State, UDP,
};
use mesh_common::flow::state::ESTABLISHED;
use mesh_common::pick;

use crate::address::{self, Family, V4, V6};
use crate::connect::{ALLOW, Socket, refuse, socket_cookie};
use crate::count::count;
use crate::maps::{PRESENTED, REPLIES, STATE};
use crate::service::{self, Choice, Found};
use crate::udp_peers::{self, Peers};

#[cgroup_sock_addr(sendmsg4)]
fn mesh_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
fn mesh_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg::<V6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
fn mesh_recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
fn mesh_recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg::<V6>(&ctx)
}

/// Translates a datagram that names a service, or a client from outside that the socket has heard from. Fails open for
/// all others, closed where nothing serves.
#[inline(always)]
fn sendmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    if address::protocol(ctx) != Some(UDP) {
        return ALLOW;
    }
    let asked = ServiceKey {
        address: F::address(ctx),
        port: address::port(ctx),
        protocol: UDP,
        scope: SCOPE_ADDRESS,
    };
    let Some(state) = STATE.get(0) else { return ALLOW };
    match service::find(ctx, &asked, state) {
        Found::Service(service) => to_service::<F>(ctx, &asked, &service, state),
        Found::ClosedPort => {
            count(Counter::NoSuchPort);
            refuse()
        }
        Found::Nothing => {
            let cookie = socket_cookie(ctx);
            if let Some(reply) = reply_to(cookie, &asked) {
                F::set_address(ctx, &reply.source);
                address::set_port(ctx, reply.source_port);
            } else if !is_connected(ctx) {
                udp_peers::forget_backend(cookie, &asked);
            }
            ALLOW
        }
    }
}

#[inline(always)]
fn to_service<F: Family>(ctx: &SockAddrContext, asked: &ServiceKey, service: &Service, state: &State) -> i32 {
    if state.flags & STATE_TRANSLATE == 0 || service.flags & SERVICE_RANGES != 0 {
        count(Counter::LeftAlone);
        return ALLOW;
    }
    let peers = Peers { cookie: socket_cookie(ctx), netns: service::netns_cookie(ctx) };
    let choice = if let Some(choice) = peers.known(asked, service) {
        choice
    } else {
        let random = pick::spread(peers.cookie);
        let Some(choice) = service::choose(service, peers.netns, random) else { return refuse() };
        if choice.flags & BACKEND_NONE != 0 {
            count(Counter::NoEndpoint);
            return refuse();
        }
        peers.remember(asked, &choice);
        choice
    };
    F::set_address(ctx, choice.address);
    address::set_port(ctx, choice.port);
    count(Counter::Translated);
    ALLOW
}

/// Gives the application back the address that it asked, or that of the client that the agent stands in for.
#[inline(always)]
fn recvmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    if address::protocol(ctx) != Some(UDP) {
        return ALLOW;
    }
    let cookie = socket_cookie(ctx);
    let from = (F::address(ctx), address::port(ctx));
    if let Some(asked) = udp_peers::asked(cookie, &from.0, from.1) {
        F::set_address(ctx, &asked.address);
        address::set_port(ctx, asked.port);
    } else if let Some((client, port)) = presented(cookie, &from) {
        F::set_address(ctx, &client);
        address::set_port(ctx, port);
    }
    ALLOW
}

/// Whether the socket is connected: what it sends then is mostly for its peer, whose address the kernel gives this hook
/// where an `AF_INET6` socket is connected to a mapped one (`udpv6_sendmsg`).
#[inline(always)]
fn is_connected(ctx: &SockAddrContext) -> bool {
    // SAFETY: sk is the full socket in these hooks, and state one of the fields that may be read.
    (unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).state }) == ESTABLISHED
}

/// The client from outside behind a socket of the agent. What this socket sends to that client goes back there.
#[inline(always)]
fn presented(cookie: u64, from: &(Address, u16)) -> Option<(Address, u16)> {
    let key = PresentedKey {
        peer: from.0,
        own: ANY_V6,
        peer_port: from.1,
        own_port: 0,
        protocol: UDP,
        pad: [0; 3],
    };
    let client = PRESENTED.get_ptr_mut(key)?;
    // SAFETY: memory of the map while this program runs (what may be in it: maps.rs); its words are written whole.
    let client = unsafe { &mut *client };
    let key = ReplyKey { cookie, address: client.address, port: client.port, pad: [0; 3] };
    let reply = Reply { source: from.0, source_port: from.1, pad: 0 };
    // SAFETY: as above.
    if unsafe { REPLIES.get(key) } != Some(&reply) {
        client.receiver = cookie;
        if REPLIES.insert(key, reply, 0).is_err() {
            // Fails open: the application sees the agent's socket and answers that.
            count(Counter::PresentedMapFull);
            return None;
        }
    }
    Some((client.address, client.port))
}

/// Where the answer to a client from outside goes, if the socket has heard from it.
#[inline(always)]
fn reply_to(cookie: u64, client: &ServiceKey) -> Option<&'static Reply> {
    let key = ReplyKey { cookie, address: client.address, port: client.port, pad: [0; 3] };
    // SAFETY: memory of the map while this program runs (what may be in it: maps.rs).
    unsafe { REPLIES.get(key) }
}

/// A UDP socket connects to what is no service: to a client from outside that it has heard from, or to anybody.
#[inline(always)]
pub(crate) fn connect_other<F: Family>(ctx: &SockAddrContext, socket: Socket, asked: &ServiceKey) {
    let Some(reply) = reply_to(socket.cookie, asked) else {
        return udp_peers::forget_backend(socket.cookie, asked);
    };
    let choice = Choice { address: &reply.source, port: reply.source_port, flags: 0 };
    F::set_address(ctx, choice.address);
    address::set_port(ctx, choice.port);
    Peers { cookie: socket.cookie, netns: socket.netns }.remember(asked, &choice);
}
