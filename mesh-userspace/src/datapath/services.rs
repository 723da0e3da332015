//! Services in the kernel: the difference between what it holds and what a snapshot says, written generation by
//! generation.
//!
//! Invariants: the slots of a generation are all there before a service points at it; they are deleted only after every
//! program that might still read them has ended; an entry that cannot be written leaves the one before in force.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use aya::maps::{HashMap as KernelMap, MapData};
use mesh_common::abi::{
    Address, BACKEND_NONE, BACKEND_STRICT, SERVICE_CAPTURE, Service as Installed, ServiceKey, Slot, SlotKey,
};
use mesh_common::names::map;

use super::{DatapathError, address_of};
use crate::model::{Backend, BackendSet, Mode, Protocol, Service, ServiceName, Snapshot};

/// What one (address, port, protocol) should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Frontend {
    flags: u32,
    slots: Vec<Slot>,
}

/// The maps `SERVICES` and `SLOTS`, and what the agent knows to be in them.
pub(super) struct ServiceTable {
    services: KernelMap<MapData, ServiceKey, Installed>,
    slots: KernelMap<MapData, SlotKey, Slot>,
    installed: HashMap<ServiceKey, (Installed, Frontend)>,
    keys: HashMap<ServiceName, Vec<ServiceKey>>,
    retired: Vec<SlotKey>,
    next_id: u32,
}

impl ServiceTable {
    /// Reads what the maps hold; slots that no service points at (an agent was killed while it wrote) are deleted.
    pub(super) fn open(
        services: KernelMap<MapData, ServiceKey, Installed>,
        mut slots: KernelMap<MapData, SlotKey, Slot>,
    ) -> Result<Self, DatapathError> {
        let mut by_id: HashMap<(u32, u32), Vec<Option<Slot>>> = HashMap::new();
        let mut installed = HashMap::new();
        for entry in &services {
            let (key, value) = entry.map_err(DatapathError::map("read", map::SERVICES))?;
            by_id.insert((value.id, value.generation), vec![None; value.slots as usize]);
            installed.insert(key, value);
        }
        let mut orphans = Vec::new();
        for entry in &slots {
            let (key, slot) = entry.map_err(DatapathError::map("read", map::SLOTS))?;
            let place = by_id
                .get_mut(&(key.service, key.generation))
                .and_then(|slots| slots.get_mut(key.slot as usize));
            match place {
                Some(place) => *place = Some(slot),
                None => orphans.push(key),
            }
        }
        for key in orphans {
            slots.remove(&key).map_err(DatapathError::map("delete from", map::SLOTS))?;
        }
        let next_id = installed.values().map(|value| value.id).max().unwrap_or(0) + 1;
        let installed = installed
            .into_iter()
            .map(|(key, value)| {
                // A slot that is missing makes the entry differ from every wanted one, so that it is written anew.
                let slots = by_id.remove(&(value.id, value.generation)).unwrap_or_default();
                let slots = slots.into_iter().collect::<Option<Vec<_>>>().unwrap_or_default();
                (key, (value, Frontend { flags: value.flags, slots }))
            })
            .collect();
        Ok(Self { services, slots, installed, keys: HashMap::new(), retired: Vec::new(), next_id })
    }

    /// Makes the kernel hold what `snapshot` says, whatever it held.
    pub(super) fn replace(&mut self, snapshot: &Snapshot) -> Vec<DatapathError> {
        let mut stale: HashSet<ServiceKey> = self.installed.keys().copied().collect();
        let mut errors = Vec::new();
        self.keys.clear();
        for service in snapshot.services.values() {
            errors.extend(self.update(service));
            for key in self.keys.get(&service.name).into_iter().flatten() {
                stale.remove(key);
            }
        }
        errors.extend(stale.into_iter().filter_map(|key| self.remove_key(&key).err()));
        errors
    }

    /// Writes one service; its ports and addresses that went are removed.
    pub(super) fn update(&mut self, service: &Service) -> Vec<DatapathError> {
        let mut errors = Vec::new();
        let wanted = frontends(service);
        let before = self.keys.remove(&service.name).unwrap_or_default();
        let keys: Vec<ServiceKey> = wanted.iter().map(|(key, _)| *key).collect();
        for key in before.into_iter().filter(|key| !keys.contains(key)) {
            errors.extend(self.remove_key(&key).err());
        }
        for (key, frontend) in wanted {
            errors.extend(self.write(key, frontend).err());
        }
        self.keys.insert(service.name.clone(), keys);
        errors
    }

    /// Removes one service.
    pub(super) fn remove(&mut self, name: &ServiceName) -> Vec<DatapathError> {
        let keys = self.keys.remove(name).unwrap_or_default();
        keys.iter().filter_map(|key| self.remove_key(key).err()).collect()
    }

    fn write(&mut self, key: ServiceKey, wanted: Frontend) -> Result<(), DatapathError> {
        let before = self.installed.get(&key);
        if before.is_some_and(|(_, held)| *held == wanted) {
            return Ok(());
        }
        let count = u32::try_from(wanted.slots.len()).expect("fewer than 2^32 backends");
        let value = match before {
            Some((held, _)) => Installed {
                generation: held.generation.wrapping_add(1),
                slots: count,
                flags: wanted.flags,
                ..*held
            },
            None => Installed {
                id: self.unused_id(),
                generation: 1,
                slots: count,
                flags: wanted.flags,
                affinity_id: 0,
                affinity_seconds: 0,
            },
        };
        self.write_slots(&value, &wanted.slots)?;
        if let Err(source) = self.services.insert(key, value, 0) {
            self.delete_slots(&value);
            return Err(DatapathError::map("write to", map::SERVICES)(source));
        }
        if let Some((old, _)) = self.installed.insert(key, (value, wanted)) {
            self.retire(&old);
        }
        Ok(())
    }

    fn write_slots(&mut self, value: &Installed, slots: &[Slot]) -> Result<(), DatapathError> {
        for (slot, index) in slots.iter().zip(0..) {
            if let Err(source) = self.slots.insert(slot_key(value, index), slot, 0) {
                self.delete_slots(value);
                return Err(DatapathError::map("write to", map::SLOTS)(source));
            }
        }
        Ok(())
    }

    /// Takes back a generation that never came into force.
    fn delete_slots(&mut self, value: &Installed) {
        for index in 0..value.slots {
            // Some were never written.
            let _ = self.slots.remove(&slot_key(value, index));
        }
    }

    fn remove_key(&mut self, key: &ServiceKey) -> Result<(), DatapathError> {
        let Some((value, _)) = self.installed.get(key).cloned() else { return Ok(()) };
        self.services.remove(key).map_err(DatapathError::map("delete from", map::SERVICES))?;
        self.installed.remove(key);
        self.retire(&value);
        Ok(())
    }

    fn retire(&mut self, value: &Installed) {
        self.retired.extend((0..value.slots).map(|index| slot_key(value, index)));
    }

    /// Whether [`Self::sweep`] has work.
    pub(super) const fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Deletes the slots of generations that are out of force, once no program can still be reading them.
    pub(super) fn sweep(&mut self) {
        if self.retired.is_empty() {
            return;
        }
        wait_for_programs();
        for key in std::mem::take(&mut self.retired) {
            // One that is gone already is what was wanted.
            let _ = self.slots.remove(&key);
        }
    }

    fn unused_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        id
    }
}

/// Returns when every program that was running has ended: programs on cgroups run inside an RCU read section, and
/// `MEMBARRIER_CMD_GLOBAL` waits for one grace period (membarrier(2), kernel/sched/membarrier.c).
fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes two integers. It cannot fail on a kernel with CONFIG_MEMBARRIER; where it does, the worst is a
    // connect that finds its slot gone and is refused.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0) };
}

const fn slot_key(value: &Installed, slot: u32) -> SlotKey {
    SlotKey { service: value.id, generation: value.generation, slot }
}

/// What the kernel should hold for a service.
fn frontends(service: &Service) -> Vec<(ServiceKey, Frontend)> {
    let mut frontends = Vec::new();
    for port in service.ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
        for address in &service.addresses {
            let key = ServiceKey {
                address: address_of(*address),
                port: port.port,
                protocol: port.protocol.number(),
                scope: 0,
            };
            frontends.push((key, frontend(port.route.backends(*address))));
        }
    }
    frontends
}

fn frontend(set: &BackendSet) -> Frontend {
    let slots = set
        .table()
        .slots()
        .iter()
        .zip(set.backends())
        .map(|(draw, backend)| {
            let (address, port, flags) = destination(backend);
            Slot {
                threshold: draw.threshold,
                alias: draw.alias,
                address,
                port,
                flags,
                pad: 0,
                connections: 0,
            }
        })
        .collect();
    Frontend { flags: if set.needs_agent() { SERVICE_CAPTURE } else { 0 }, slots }
}

fn destination(backend: &Backend) -> (Address, u16, u16) {
    match &backend.endpoint {
        None => (address_of(IpAddr::from([0, 0, 0, 0])), 0, BACKEND_NONE),
        Some(endpoint) => {
            let strict = endpoint.enrolled && endpoint.mode == Mode::Strict;
            let flags = if strict { BACKEND_STRICT } else { 0 };
            (address_of(endpoint.address.ip()), endpoint.address.port(), flags)
        }
    }
}
