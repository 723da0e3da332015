//! How many entries the maps can hold, and what moves when that changes.

use std::path::Path;

use aya::maps::{HashMap as KernelMap, Map, MapData};
use mesh_common::abi::{Affinity, AffinityKey};
use mesh_common::names::map;

use super::pins::Pins;
use super::{DatapathError, object};

/// Entries of the maps that grow with the cluster. An empty map costs 16 bytes an entry, a full one about 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// (address, port, protocol) of services, and their addresses.
    pub services: u32,
    /// Backends of all services and families; a service that changes needs room for its old and new ones at once. Half as
    /// many may be those of services with affinity and of UDP ports.
    pub backends: u32,
    /// Clients of services with session affinity.
    pub affinity: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self { services: 65_536, backends: 262_144, affinity: 65_536 }
    }
}

impl MapSizes {
    /// Maps and their sizes.
    pub(super) const fn entries(&self) -> [(&'static str, u32); 5] {
        [
            (map::SERVICES, self.services),
            (map::ADDRESSES, self.services),
            (map::SLOTS, self.backends),
            (map::MEMBERS, self.backends / 2),
            (map::AFFINITY, self.affinity),
        ]
    }

    /// Whether a map's size is one of these.
    pub(super) fn govern(&self, name: &str) -> bool {
        self.entries().iter().any(|(own, _)| *own == name)
    }

    /// What the folder of maps of these sizes ends in; nothing for the usual ones.
    pub(super) fn suffix(&self) -> String {
        if *self == Self::default() {
            return String::new();
        }
        format!("-{}-{}-{}", self.services, self.backends, self.affinity)
    }

    /// The flag that makes a map larger.
    pub(super) fn flag(name: &str) -> Option<&'static str> {
        match name {
            map::SERVICES | map::ADDRESSES => Some("--max-services"),
            map::SLOTS | map::MEMBERS => Some("--max-backends"),
            map::AFFINITY => Some("--max-affinity"),
            _ => None,
        }
    }
}

/// Takes over the clients that stay with a backend from a map of another size: entries that have come since are newer.
pub(super) fn carry_over(pins: &Pins) -> Result<(), DatapathError> {
    const BPF_NOEXIST: u64 = 1;
    let Some(path) = pins.other_sizes(map::AFFINITY) else { return Ok(()) };
    let old: KernelMap<MapData, AffinityKey, Affinity> = open(&path, map::AFFINITY)?;
    let mut new: KernelMap<MapData, AffinityKey, Affinity> = object::reopen(pins, map::AFFINITY)?;
    for entry in &old {
        let (key, value) = entry.map_err(DatapathError::map("read", map::AFFINITY))?;
        // One that is there is newer; a map that is full now keeps what it has.
        let _ = new.insert(key, value, BPF_NOEXIST);
    }
    Ok(())
}

/// Opens a pinned map.
pub(super) fn open<M>(path: &Path, name: &'static str) -> Result<M, DatapathError>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let open = || M::try_from(Map::from_map_data(MapData::from_pin(path)?)?);
    open().map_err(DatapathError::map("open", name))
}
