//! Clients from outside, as the applications of this node are to see them.
//!
//! Written by the agent, read by the hooks: a connection of the agent's to an application of this node carries the name of
//! the client that it stands in for. TCP is named by the socket's cookie while it connects, and the kernel keeps the name
//! for as long as the connection lasts; a UDP flow is named by the agent's socket for as long as the agent says.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use aya::maps::{HashMap as KernelMap, MapData};
use mesh_common::abi::{Client, PresentedKey, Reply, ReplyKey, UDP};
use mesh_common::names::map;

use super::{Datapath, DatapathError, address_of, batch, object};

/// One thread's handle on `CLIENTS`, `PRESENTED` and `REPLIES`.
pub struct Presented {
    clients: RefCell<KernelMap<MapData, u64, Client>>,
    shown: RefCell<KernelMap<MapData, PresentedKey, Client>>,
    replies: RefCell<KernelMap<MapData, ReplyKey, Reply>>,
}

impl Datapath {
    /// A handle for a thread that stands in for clients from outside.
    pub fn presented(&self) -> Result<Presented, DatapathError> {
        Ok(Presented {
            clients: RefCell::new(object::reopen(&self.pins, map::CLIENTS)?),
            shown: RefCell::new(object::reopen(&self.pins, map::PRESENTED)?),
            replies: RefCell::new(object::reopen(&self.pins, map::REPLIES)?),
        })
    }
}

impl Datapath {
    /// Deletes the ways back to flows that have ended: several sockets of an application hear from one where they share a
    /// port. Walks the whole map.
    pub fn sweep_replies(&self) -> Result<(), DatapathError> {
        let shown: KernelMap<MapData, PresentedKey, Client> = object::reopen(&self.pins, map::PRESENTED)?;
        let mut replies: KernelMap<MapData, ReplyKey, Reply> = object::reopen(&self.pins, map::REPLIES)?;
        let read_only = MapData::from_pin(self.pins.map(map::REPLIES));
        let read_only = read_only.map_err(DatapathError::map("open", map::REPLIES))?;
        let mut over = Vec::new();
        let read = batch::for_each(read_only.fd().as_fd(), |key: &ReplyKey, reply: &Reply| {
            let client = shown.get(&source_of(reply), 0);
            if !client.is_ok_and(|client| (client.address, client.port) == (key.address, key.port)) {
                over.push((*key, *reply));
            }
        });
        read.map_err(|source| DatapathError::Batch { map: map::REPLIES, source })?;
        for (key, reply) in over {
            // The socket may have heard from another flow since; one that is gone is fine.
            if replies.get(&key, 0).is_ok_and(|held| held == reply) {
                let _ = replies.remove(&key);
            }
        }
        Ok(())
    }
}

impl Presented {
    /// Forgets what an earlier agent's sockets stood for: they are gone. TCP's entries are the kernel's to delete.
    pub fn clear(&self) -> Result<(), DatapathError> {
        let mut clients = self.clients.borrow_mut();
        let cookies: Vec<u64> = clients.keys().filter_map(Result::ok).collect();
        for cookie in cookies {
            clients.remove(&cookie).map_err(DatapathError::map("delete from", map::CLIENTS))?;
        }
        let mut shown = self.shown.borrow_mut();
        let flows: Vec<PresentedKey> =
            shown.keys().filter_map(Result::ok).filter(|key| key.protocol == UDP).collect();
        for key in flows {
            shown.remove(&key).map_err(DatapathError::map("delete from", map::PRESENTED))?;
        }
        let mut replies = self.replies.borrow_mut();
        let keys: Vec<ReplyKey> = replies.keys().filter_map(Result::ok).collect();
        for key in keys {
            replies.remove(&key).map_err(DatapathError::map("delete from", map::REPLIES))?;
        }
        Ok(())
    }

    /// Names the client for whom the socket with this cookie is about to connect. To be held until it has.
    pub fn connecting(&self, cookie: u64, client: SocketAddr) -> Result<Connecting<'_>, DatapathError> {
        let insert = self.clients.borrow_mut().insert(cookie, named(client), 0);
        insert.map_err(DatapathError::map("write to", map::CLIENTS))?;
        Ok(Connecting { presented: self, cookie })
    }

    /// Names the client whose datagrams come from the agent's socket `source`, until [`Self::withdraw`].
    pub fn present(&self, source: SocketAddr, client: SocketAddr) -> Result<(), DatapathError> {
        let insert = self.shown.borrow_mut().insert(flow(source), named(client), 0);
        insert.map_err(DatapathError::map("write to", map::PRESENTED))
    }

    /// Ends what [`Self::present`] began, and the way back that the kernel noted for the socket that has heard from it
    /// last. Where there were several, [`Datapath::sweep_replies`] finds the rest.
    pub fn withdraw(&self, source: SocketAddr) {
        let key = flow(source);
        let mut shown = self.shown.borrow_mut();
        let held = shown.get(&key, 0).ok();
        // One that is gone already is what was wanted, here and below.
        let _ = shown.remove(&key);
        if let Some(client) = held.filter(|client| client.receiver != 0) {
            let reply =
                ReplyKey { cookie: client.receiver, address: client.address, port: client.port, pad: [0; 3] };
            let mut replies = self.replies.borrow_mut();
            // It may lead to another flow by now.
            if replies.get(&reply, 0).is_ok_and(|held| source_of(&held) == key) {
                let _ = replies.remove(&reply);
            }
        }
    }
}

/// A connection that is being made for a client.
pub struct Connecting<'a> {
    presented: &'a Presented,
    cookie: u64,
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        // The kernel takes it out where the connection went far enough.
        let _ = self.presented.clients.borrow_mut().remove(&self.cookie);
    }
}

fn named(client: SocketAddr) -> Client {
    Client { receiver: 0, address: address_of(client.ip()), port: client.port(), pad: [0; 3] }
}

fn flow(source: SocketAddr) -> PresentedKey {
    source_of(&Reply { source: address_of(source.ip()), source_port: source.port(), pad: 0 })
}

/// The flow that an answer goes to.
fn source_of(reply: &Reply) -> PresentedKey {
    PresentedKey {
        peer: reply.source,
        own: [0; 16],
        peer_port: reply.source_port,
        own_port: 0,
        protocol: UDP,
        pad: [0; 3],
    }
}
