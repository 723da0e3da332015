//! Services in the kernel: the difference between what it holds and what a snapshot says, written generation by
//! generation.
//!
//! Invariants: the slots of a generation, and the members of its set, are all there before a frontend points at it; they
//! are deleted only after every program that might still read them has ended; what cannot be written leaves what was
//! before in force and is tried again; ids survive the agent.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use aya::maps::{HashMap as KernelMap, MapData};
use mesh_common::abi::{Service as Installed, ServiceKey};
use mesh_common::names::map;

use super::DatapathError;
use super::addresses::AddressTable;
use super::sets::{BackendCount, SetTable};
use super::unwritten::{Reason, SyncProblem, problems};
use super::wanted::{PortName, SetName, Wanted, WantedFrontend, frontend_of, wanted};
use crate::model::{Service, ServiceName, Snapshot};

/// What stands in the kernel for one service.
#[derive(Debug, Default)]
struct Held {
    keys: Vec<ServiceKey>,
    sets: Vec<SetName>,
}

/// The map `SERVICES` and what it leads to, and what the agent knows to be in them.
pub(super) struct ServiceTable {
    map: KernelMap<MapData, ServiceKey, Installed>,
    sets: SetTable,
    addresses: AddressTable,
    node_addresses: Vec<IpAddr>,
    /// Whether services are translated here.
    translates: bool,
    installed: HashMap<ServiceKey, Installed>,
    owners: HashMap<ServiceKey, ServiceName>,
    held: HashMap<ServiceName, Held>,
    affinity_ids: HashMap<PortName, u32>,
    /// Services whose source ranges depend on the node's addresses.
    ranged: BTreeSet<ServiceName>,
    /// Services that are not in the kernel as they should be.
    failed: BTreeMap<ServiceName, Reason>,
    /// Frontends that should be gone and are not.
    undeleted: BTreeMap<ServiceKey, Reason>,
    /// What the maps held before the first snapshot: whose ids services take up again.
    before: HashMap<ServiceKey, Installed>,
    next_id: u32,
}

impl ServiceTable {
    /// Takes over what the map holds. Ids of services that stand in `previous` alone (maps of another size) are taken up
    /// as well.
    pub(super) fn open(
        map: KernelMap<MapData, ServiceKey, Installed>,
        sets: impl FnOnce(&HashMap<ServiceKey, Installed>) -> Result<SetTable, DatapathError>,
        addresses: AddressTable,
        previous: HashMap<ServiceKey, Installed>,
        translates: bool,
    ) -> Result<Self, DatapathError> {
        let installed: HashMap<_, _> =
            map.iter().collect::<Result<_, _>>().map_err(DatapathError::map("read", map::SERVICES))?;
        let mut before = previous;
        before.extend(installed.iter().map(|(key, value)| (*key, *value)));
        let ids = before.values().flat_map(|value| [value.id, value.affinity_id]);
        let next_id = ids.max().unwrap_or(0) + 1;
        Ok(Self {
            map,
            sets: sets(&installed)?,
            addresses,
            node_addresses: Vec::new(),
            translates,
            installed,
            owners: HashMap::new(),
            held: HashMap::new(),
            affinity_ids: HashMap::new(),
            ranged: BTreeSet::new(),
            failed: BTreeMap::new(),
            undeleted: BTreeMap::new(),
            before,
            next_id,
        })
    }

    /// Makes the kernel hold what `snapshot` says, whatever it held.
    pub(super) fn replace(&mut self, snapshot: &Snapshot) {
        for service in snapshot.services.values() {
            self.update(service, snapshot);
        }
        let gone: Vec<_> =
            self.held.keys().filter(|name| !snapshot.services.contains_key(*name)).cloned().collect();
        for name in &gone {
            self.remove(name, snapshot);
        }
        let stale: Vec<_> =
            self.installed.keys().filter(|key| !self.owners.contains_key(*key)).copied().collect();
        for key in &stale {
            self.remove_key(key);
        }
        self.before = HashMap::new();
        self.sets.retire_left();
        self.addresses.settle();
    }

    /// Tries again what could not be written or deleted.
    pub(super) fn retry(&mut self, snapshot: &Snapshot) {
        let undeleted = std::mem::take(&mut self.undeleted);
        let unwanted: Vec<_> = undeleted.into_keys().filter(|key| !self.owners.contains_key(key)).collect();
        for key in &unwanted {
            self.remove_key(key);
        }
        self.addresses.retry();
        let failed = std::mem::take(&mut self.failed);
        self.update_all(failed.into_keys().collect(), snapshot);
    }

    /// The node's own addresses have changed.
    pub(super) fn set_node_addresses(&mut self, addresses: &[(IpAddr, u32)], snapshot: Option<&Snapshot>) {
        self.addresses.set_node(addresses);
        let own = addresses.iter().map(|(address, _)| *address).collect();
        if std::mem::replace(&mut self.node_addresses, own) != self.node_addresses
            && let Some(snapshot) = snapshot
        {
            self.update_all(self.ranged.clone(), snapshot);
        }
    }

    /// What is not as it should be.
    pub(super) fn problems(&self) -> Vec<SyncProblem> {
        let services = self.failed.iter().map(|(name, reason)| (format!("service {name}"), reason.clone()));
        let frontends =
            self.undeleted.iter().map(|(key, reason)| (frontend_of(key).to_string(), reason.clone()));
        let addresses =
            self.addresses.failed().map(|(address, reason)| (format!("address {address}"), reason.clone()));
        problems(services.chain(frontends).chain(addresses))
    }

    fn update_all(&mut self, names: BTreeSet<ServiceName>, snapshot: &Snapshot) {
        for name in names {
            match snapshot.services.get(&name) {
                Some(service) => self.update(service, snapshot),
                None => self.remove(&name, snapshot),
            }
        }
    }

    /// Writes one service; its ports and addresses that went are removed.
    pub(super) fn update(&mut self, service: &Service, snapshot: &Snapshot) {
        let name = &service.name;
        let wanted = wanted(service, snapshot, &self.node_addresses, self.translates);
        self.addresses.set(name, &wanted.addresses);
        let before = self.held.remove(name).unwrap_or_default();
        if service.external.source_ranges.is_empty() {
            self.ranged.remove(name);
        } else {
            self.ranged.insert(name.clone());
        }
        let mut failure = None;
        for (set, held) in &wanted.sets {
            if !self.sets.contains(set) {
                let (known, fresh) = (self.known_id(set, &wanted), self.next_id);
                if self.sets.adopt(set, known.unwrap_or(fresh)) == fresh {
                    self.next_id = fresh.wrapping_add(1).max(1);
                }
            }
            failure = failure.or(self.sets.write(set, held).err());
        }
        let mut yielding = BTreeSet::new();
        for (key, frontend) in &wanted.frontends {
            failure = failure.or(self.write(*key, frontend).err());
            if self.owners.get(key) != Some(name) {
                yielding.extend(self.owners.insert(*key, name.clone()));
            }
        }
        self.remove_keys(&before.keys, |key| wanted.frontends.contains_key(key), name, snapshot);
        if let Some(error) = failure {
            self.failed.insert(name.clone(), error.into());
        } else {
            // Every frontend points to the newest generation.
            wanted.sets.keys().for_each(|set| self.sets.retire_superseded(set));
            self.failed.remove(name);
        }
        before
            .sets
            .iter()
            .filter(|set| !wanted.sets.contains_key(*set))
            .for_each(|set| self.sets.retire(set));
        let Wanted { sets, frontends, .. } = wanted;
        let held = Held { keys: frontends.into_keys().collect(), sets: sets.into_keys().collect() };
        self.held.insert(name.clone(), held);
        // Whoever lost a frontend to this service may hold sets for nothing.
        self.update_all(yielding, snapshot);
    }

    /// Removes one service. Frontends that another service claims as well are given to that one.
    pub(super) fn remove(&mut self, name: &ServiceName, snapshot: &Snapshot) {
        let held = self.held.remove(name).unwrap_or_default();
        self.addresses.set(name, &[]);
        self.remove_keys(&held.keys, |_| false, name, snapshot);
        for set in held.sets {
            self.sets.retire(&set);
            self.affinity_ids.remove(&set.port);
        }
        self.ranged.remove(name);
        self.failed.remove(name);
    }

    fn remove_keys(
        &mut self,
        keys: &[ServiceKey],
        stays: impl Fn(&ServiceKey) -> bool,
        owner: &ServiceName,
        snapshot: &Snapshot,
    ) {
        let mut heirs = BTreeSet::new();
        for key in keys.iter().filter(|key| !stays(key)) {
            if self.owners.get(key) != Some(owner) {
                continue;
            }
            let heir = snapshot.frontends.get(&frontend_of(key));
            match heir.filter(|heir| heir.name != *owner) {
                // It overwrites the entry.
                Some(heir) => drop(heirs.insert(heir.name.clone())),
                None => self.remove_key(key),
            }
        }
        self.update_all(heirs, snapshot);
    }

    fn write(&mut self, key: ServiceKey, wanted: &WantedFrontend) -> Result<(), DatapathError> {
        let (id, generation, slots, drawn) = self.sets.current(&wanted.set);
        let affinity_id = self.affinity_id(&wanted.set.port, &key);
        let (flags, affinity_seconds) = (wanted.flags, wanted.affinity_seconds);
        let value = Installed { id, generation, slots, drawn, flags, affinity_id, affinity_seconds, seal: 0 };
        let value = value.sealed(&key);
        if self.installed.get(&key) != Some(&value) {
            self.map.insert(key, value, 0).map_err(DatapathError::map("write to", map::SERVICES))?;
            self.installed.insert(key, value);
        }
        Ok(())
    }

    fn remove_key(&mut self, key: &ServiceKey) {
        self.owners.remove(key);
        if self.installed.contains_key(key) {
            if let Err(source) = self.map.remove(key) {
                let error = DatapathError::map("delete from", map::SERVICES)(source);
                self.undeleted.insert(*key, error.into());
                return;
            }
            self.installed.remove(key);
        }
    }

    /// The id under which an earlier agent kept a set: that of one of its frontends.
    fn known_id(&self, set: &SetName, wanted: &Wanted) -> Option<u32> {
        let own = wanted.frontends.iter().filter(|(_, frontend)| frontend.set == *set);
        own.filter_map(|(key, _)| self.before.get(key))
            .map(|value| value.id)
            .find(|id| self.sets.is_free(*id))
    }

    fn affinity_id(&mut self, port: &PortName, key: &ServiceKey) -> u32 {
        if let Some(id) = self.affinity_ids.get(port) {
            return *id;
        }
        let known = self.before.get(key).map(|value| value.affinity_id).filter(|id| *id != 0);
        let id = known.unwrap_or_else(|| {
            let id = self.next_id;
            self.next_id = id.wrapping_add(1).max(1);
            id
        });
        self.affinity_ids.insert(port.clone(), id);
        id
    }

    /// The value that a frontend has in the kernel.
    pub(super) fn installed(&self, key: &ServiceKey) -> Option<&Installed> {
        self.installed.get(key)
    }

    /// Timeouts of the affinity ids in use, in seconds.
    pub(super) fn affinity_timeouts(&self) -> HashMap<u32, u32> {
        let kept = self.installed.values().filter(|value| value.affinity_seconds > 0);
        kept.map(|value| (value.affinity_id, value.affinity_seconds)).collect()
    }

    /// Connections that each backend of a service has got, in each of its sets.
    pub(super) fn connections(&self, name: &ServiceName) -> Vec<BackendCount> {
        let sets = self.held.get(name).into_iter().flat_map(|held| &held.sets);
        sets.flat_map(|set| self.sets.connections(set)).collect()
    }

    /// Entries of each map, as the agent knows them.
    pub(super) fn entries(&self) -> Vec<(&'static str, usize)> {
        let own = [(map::SERVICES, self.installed.len()), (map::ADDRESSES, self.addresses.len())];
        own.into_iter().chain(self.sets.entries()).collect()
    }

    /// Whether something is not as it should be.
    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty() || !self.undeleted.is_empty() || self.addresses.failed().next().is_some()
    }

    /// Whether [`Self::sweep`] has work.
    pub(super) const fn has_retired(&self) -> bool {
        self.sets.has_retired()
    }

    /// Deletes what is out of force, once no program can still be reading it.
    pub(super) fn sweep(&mut self) {
        self.sets.sweep();
    }
}
