//! The map `AFFINITY`: clients that stay with a backend. The kernel writes those of this node that it translates, the agent
//! those that it carries (enrolled pods, and clients from outside), all by the same rule (`mesh_common::affinity`).

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aya::maps::{HashMap as KernelMap, MapData};
use mesh_common::abi::{
    ANY_V4, ANY_V6, Affinity, AffinityKey, CLIENT_ADDRESS, SCOPE_ADDRESS, SCOPE_NODE_PORT, Service,
    ServiceKey,
};
use mesh_common::affinity::holds;
use mesh_common::names::map as names;

use super::{Datapath, DatapathError, address_of, batch, ip_of, monotonic_ns, object};
use crate::model::Frontend;

/// Who stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stayer {
    /// Everybody in a network namespace of this node, by its cookie.
    Netns(u64),
    /// A client from outside.
    Address(IpAddr),
}

/// The part of the map that clients from outside may take, half of it: there may be any number of those.
pub(super) struct OutsideShare {
    most: usize,
    /// How many they are, by the last sweep and what has come since.
    held: AtomicUsize,
}

impl OutsideShare {
    pub(super) fn of(entries: u32) -> Arc<Self> {
        Arc::new(Self { most: entries as usize / 2, held: AtomicUsize::new(0) })
    }

    /// Takes one more place, if there is one.
    fn take(&self) -> bool {
        let more = |held| (held < self.most).then_some(held + 1);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// A thread's handle on the clients that stay with a backend, and on `SERVICES`, which says under which number.
pub struct Affinities {
    services: KernelMap<MapData, ServiceKey, Service>,
    kept: RefCell<KernelMap<MapData, AffinityKey, Affinity>>,
    outside: Arc<OutsideShare>,
}

impl Datapath {
    /// A handle for a thread that carries connections.
    pub fn affinities(&self) -> Result<Affinities, DatapathError> {
        Ok(Affinities {
            services: object::reopen(&self.pins, names::SERVICES)?,
            kept: RefCell::new(object::reopen(&self.pins, names::AFFINITY)?),
            outside: Arc::clone(&self.outside_affinity),
        })
    }

    /// Deletes the entries that have timed out or whose service keeps nobody any more; walks the whole map.
    pub fn sweep_affinity(&self) -> Result<(), DatapathError> {
        let timeouts = self.services.affinity_timeouts();
        let mut map: KernelMap<MapData, AffinityKey, Affinity> = object::reopen(&self.pins, names::AFFINITY)?;
        let read_only = MapData::from_pin(self.pins.map(names::AFFINITY));
        let read_only = read_only.map_err(DatapathError::map("open", names::AFFINITY))?;
        let now = monotonic_ns();
        let (mut over, mut outside) = (Vec::new(), 0);
        let read = batch::for_each(read_only.fd().as_fd(), |key: &AffinityKey, value: &Affinity| {
            if timeouts.get(&key.service).is_none_or(|seconds| !holds(value.seen_ns, now, *seconds)) {
                over.push(*key);
            } else if key.kind == CLIENT_ADDRESS {
                outside += 1;
            }
        });
        read.map_err(|source| DatapathError::Batch { map: names::AFFINITY, source })?;
        for key in over {
            // The kernel may have renewed it in between, which costs that client a new draw; one that is gone is fine.
            let _ = map.remove(&key);
        }
        self.outside_affinity.held.store(outside, Ordering::Relaxed);
        Ok(())
    }
}

impl Affinities {
    /// The place of a client that asked for `frontend` in a family; `None` where nobody is kept.
    pub fn of(&self, frontend: Frontend, v4: bool, stayer: Stayer) -> Option<Stay<'_>> {
        let (address, scope) = match frontend.address {
            Some(address) => (address_of(address), SCOPE_ADDRESS),
            None => (if v4 { ANY_V4 } else { ANY_V6 }, SCOPE_NODE_PORT),
        };
        let key = ServiceKey { address, port: frontend.port, protocol: frontend.protocol.number(), scope };
        let service = self.services.get(&key, 0).ok().filter(|service| service.affinity_seconds > 0)?;
        let key = match stayer {
            Stayer::Netns(cookie) => AffinityKey::netns(service.affinity_id, cookie),
            Stayer::Address(address) => AffinityKey::address(service.affinity_id, address_of(address)),
        };
        Some(Stay { affinities: self, key, seconds: service.affinity_seconds })
    }

    /// A client is sent to this backend, now.
    pub fn keep(&self, client: AffinityKey, backend: SocketAddr) -> Result<(), DatapathError> {
        let (address, port) = (address_of(backend.ip()), backend.port());
        let value = Affinity { seen_ns: monotonic_ns(), address, port, pad: [0; 3] };
        let mut kept = self.kept.borrow_mut();
        let is_new = || kept.get(&client, 0).is_err();
        if client.kind == CLIENT_ADDRESS && is_new() && !self.outside.take() {
            return Err(DatapathError::Full { map: names::AFFINITY });
        }
        kept.insert(client, value, 0).map_err(DatapathError::map("write to", names::AFFINITY))
    }
}

/// One client's place with one service.
pub struct Stay<'a> {
    affinities: &'a Affinities,
    key: AffinityKey,
    seconds: u32,
}

impl Stay<'_> {
    /// The backend that it was last sent to, unless that is too long ago. Whether that still serves is the caller's to
    /// ask.
    pub fn backend(&self) -> Option<SocketAddr> {
        let kept = self.affinities.kept.borrow().get(&self.key, 0).ok()?;
        holds(kept.seen_ns, monotonic_ns(), self.seconds)
            .then(|| SocketAddr::new(ip_of(kept.address), kept.port))
    }

    /// It is sent to this one, now.
    pub fn keep(&self, backend: SocketAddr) -> Result<(), DatapathError> {
        self.affinities.keep(self.key, backend)
    }

    /// Whose place it is.
    pub const fn client(&self) -> AffinityKey {
        self.key
    }
}
