//! The map `AFFINITY`: clients that stay with a backend. The kernel writes those of this node that it translates, the agent
//! those that it carries (enrolled pods, and clients from outside), all by the same rule (`mesh_common::affinity`).

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use aya::maps::{HashMap as KernelMap, MapData};
use mesh_common::abi::{
    ANY_V4, ANY_V6, Affinity, AffinityKey, SCOPE_ADDRESS, SCOPE_NODE_PORT, Service, ServiceKey,
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

/// A thread's handle on the clients that stay with a backend, and on `SERVICES`, which says under which number.
pub struct Affinities {
    services: KernelMap<MapData, ServiceKey, Service>,
    kept: RefCell<KernelMap<MapData, AffinityKey, Affinity>>,
}

impl Datapath {
    /// A handle for a thread that carries connections.
    pub fn affinities(&self) -> Result<Affinities, DatapathError> {
        Ok(Affinities {
            services: object::reopen(&self.pins, names::SERVICES)?,
            kept: RefCell::new(object::reopen(&self.pins, names::AFFINITY)?),
        })
    }

    /// Deletes the entries that have timed out or whose service keeps nobody any more; walks the whole map.
    pub fn sweep_affinity(&self) -> Result<(), DatapathError> {
        let timeouts = self.services.affinity_timeouts();
        let mut map: KernelMap<MapData, AffinityKey, Affinity> = object::reopen(&self.pins, names::AFFINITY)?;
        let read_only = MapData::from_pin(self.pins.map(names::AFFINITY));
        let read_only = read_only.map_err(DatapathError::map("open", names::AFFINITY))?;
        let now = monotonic_ns();
        let mut over = Vec::new();
        let read = batch::for_each(read_only.fd().as_fd(), |key: &AffinityKey, value: &Affinity| {
            if timeouts.get(&key.service).is_none_or(|seconds| !holds(value.seen_ns, now, *seconds)) {
                over.push(*key);
            }
        });
        read.map_err(|source| DatapathError::Batch { map: names::AFFINITY, source })?;
        for key in over {
            // The kernel may have renewed it in between, which costs that client a new draw; one that is gone is fine.
            let _ = map.remove(&key);
        }
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
        let (address, port) = (address_of(backend.ip()), backend.port());
        let value = Affinity { seen_ns: monotonic_ns(), address, port, pad: [0; 3] };
        let written = self.affinities.kept.borrow_mut().insert(self.key, value, 0);
        written.map_err(DatapathError::map("write to", names::AFFINITY))
    }
}
