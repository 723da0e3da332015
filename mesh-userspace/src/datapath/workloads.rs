//! Workloads in the kernel: the addresses whose connections an enrolled client's agent must carry, and the modes of
//! this node's pods.

use std::collections::HashMap;
use std::net::IpAddr;

use aya::maps::{HashMap as KernelMap, MapData};
use mesh_common::abi::{
    Address, DESTINATION_ENROLLED, DESTINATION_STRICT, Destination, INBOUND_OPEN, INBOUND_STRICT,
    InboundMode, PodKey,
};
use mesh_common::names::map;

use super::{DatapathError, address_of};
use crate::model::{Mode, MtlsModes, Snapshot, Workload};

/// The map `DESTINATIONS`, and what the agent knows to be in it.
pub(super) struct DestinationTable {
    map: KernelMap<MapData, Address, Destination>,
    installed: HashMap<Address, Destination>,
}

impl DestinationTable {
    pub(super) fn open(map: KernelMap<MapData, Address, Destination>) -> Result<Self, DatapathError> {
        let installed =
            map.iter().collect::<Result<_, _>>().map_err(DatapathError::map("read", map::DESTINATIONS))?;
        Ok(Self { map, installed })
    }

    /// Makes the kernel hold what `snapshot` says, whatever it held.
    pub(super) fn replace(&mut self, snapshot: &Snapshot) -> Vec<DatapathError> {
        let wanted: HashMap<Address, Destination> = snapshot
            .addresses
            .keys()
            .filter_map(|&ip| Some((address_of(ip), destination(snapshot, ip)?)))
            .collect();
        let stale: Vec<_> =
            self.installed.keys().filter(|address| !wanted.contains_key(*address)).copied().collect();
        let removed: Vec<_> =
            stale.into_iter().filter_map(|address| self.remove_address(&address).err()).collect();
        wanted
            .into_iter()
            .filter_map(|(address, value)| self.write(address, value).err())
            .chain(removed)
            .collect()
    }

    /// One workload came, changed or went. What its addresses are follows from whose they are now: that may be another's.
    pub(super) fn update(
        &mut self,
        old: Option<&Workload>,
        new: Option<&Workload>,
        snapshot: &Snapshot,
    ) -> Vec<DatapathError> {
        let touched = [old, new].into_iter().flatten().flat_map(|workload| &workload.addresses);
        let write = |ip: &IpAddr| match destination(snapshot, *ip) {
            Some(value) => self.write(address_of(*ip), value).err(),
            None => self.remove_address(&address_of(*ip)).err(),
        };
        touched.filter_map(write).collect()
    }

    /// Writes an entry again that is not there as it was written; whether it was not.
    pub(super) fn mend(&mut self, address: Address) -> Result<bool, DatapathError> {
        let held = self.map.get(&address, 0).ok();
        if held.as_ref() == self.installed.get(&address) {
            return Ok(false);
        }
        match self.installed.get(&address).copied() {
            Some(value) => {
                self.map
                    .insert(address, value, 0)
                    .map_err(DatapathError::map("write to", map::DESTINATIONS))?;
            }
            None => {
                self.map.remove(&address).map_err(DatapathError::map("delete from", map::DESTINATIONS))?;
            }
        }
        Ok(true)
    }

    fn write(&mut self, address: Address, value: Destination) -> Result<(), DatapathError> {
        if self.installed.get(&address) == Some(&value) {
            return Ok(());
        }
        self.map.insert(address, value, 0).map_err(DatapathError::map("write to", map::DESTINATIONS))?;
        self.installed.insert(address, value);
        Ok(())
    }

    fn remove_address(&mut self, address: &Address) -> Result<(), DatapathError> {
        if self.installed.remove(address).is_some() {
            self.map.remove(address).map_err(DatapathError::map("delete from", map::DESTINATIONS))?;
        }
        Ok(())
    }
}

/// What `DESTINATIONS` should hold for an address.
pub(super) fn destination(snapshot: &Snapshot, address: IpAddr) -> Option<Destination> {
    let workload = snapshot.workload_at(address)?;
    let modes = &workload.mtls;
    let takes_mtls = modes.default != Mode::Disable || modes.any_strict();
    if !workload.enrolled || !takes_mtls {
        return None;
    }
    let strict = if modes.any_strict() || workload.guarded { DESTINATION_STRICT } else { 0 };
    Some(Destination { flags: DESTINATION_ENROLLED | strict })
}

/// What `INBOUND_MODES` should hold for one address of a pod.
pub(super) fn inbound_modes(address: Address, modes: &MtlsModes) -> HashMap<PodKey, InboundMode> {
    let value =
        |mode: Mode| InboundMode { mode: if mode == Mode::Strict { INBOUND_STRICT } else { INBOUND_OPEN } };
    let default = (PodKey { address, selector: 0 }, value(modes.default));
    let own =
        modes.ports.iter().map(|(port, mode)| (PodKey { address, selector: u32::from(*port) }, value(*mode)));
    std::iter::once(default).chain(own.filter(|(key, _)| key.selector != 0)).collect()
}
