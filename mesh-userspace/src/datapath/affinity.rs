//! The map `AFFINITY`: clients that stay with a backend. The kernel writes those of this node, the agent those from
//! outside, both by the same rule (`mesh_common::affinity`).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use aya::maps::{HashMap as KernelMap, MapData};
use mesh_common::abi::{Affinity, AffinityKey, Service};
use mesh_common::affinity::holds;
use mesh_common::names::map as names;

use super::{DatapathError, address_of, ip_of, monotonic_ns};

type AffinityMap = KernelMap<MapData, AffinityKey, Affinity>;

/// A handle for whoever serves clients from outside.
pub struct AffinityHandle(Mutex<AffinityMap>);

impl AffinityHandle {
    pub(super) const fn new(map: AffinityMap) -> Self {
        Self(Mutex::new(map))
    }

    /// The backend that a client stays with, if its time is not up. Whether that still serves is the caller's to ask.
    pub fn kept(&self, service: &Service, client: IpAddr) -> Option<SocketAddr> {
        let key = AffinityKey::address(service.affinity_id, address_of(client));
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key, 0).ok()?;
        holds(kept.seen_ns, monotonic_ns(), service.affinity_seconds)
            .then(|| SocketAddr::new(ip_of(kept.address), kept.port))
    }

    /// Keeps a client with a backend from now on.
    pub fn keep(&self, service: &Service, client: IpAddr, backend: SocketAddr) -> Result<(), DatapathError> {
        let key = AffinityKey::address(service.affinity_id, address_of(client));
        let (address, port) = (address_of(backend.ip()), backend.port());
        let value = Affinity { seen_ns: monotonic_ns(), address, port, pad: [0; 3] };
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(key, value, 0).map_err(DatapathError::map("write to", names::AFFINITY))
    }
}

/// Deletes what has timed out, and what belongs to no service that keeps clients. `timeouts`: affinity id → seconds.
pub(super) fn sweep(mut map: AffinityMap, timeouts: &HashMap<u32, u32>) {
    let now = monotonic_ns();
    let is_over = |key: &AffinityKey, value: &Affinity| {
        timeouts.get(&key.service).is_none_or(|seconds| !holds(value.seen_ns, now, *seconds))
    };
    let over: Vec<AffinityKey> = map
        .iter()
        .filter_map(Result::ok)
        .filter(|(key, value)| is_over(key, value))
        .map(|(key, _)| key)
        .collect();
    for key in over {
        // The kernel may have renewed it in between, which costs that client a new draw; one that is gone is fine.
        let _ = map.remove(&key);
    }
}
