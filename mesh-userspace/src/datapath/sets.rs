//! The sets of backends in the kernel: slots by generation, members, source ranges.
//!
//! A set is written in full under a new generation before anything points to it. What a generation leaves behind waits
//! until its users have moved on (`retire_superseded`) and every program has ended (`sweep`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap as KernelMap, MapData};
use ipnet::IpNet;
use mesh_common::abi::{
    Address, Member, MemberKey, RANGE_KEY_BITS, RangeKey, Service as Installed, ServiceKey, Slot, SlotKey,
};
use mesh_common::names::map;

use super::grace::wait_for_programs;
use super::wanted::{SetName, WantedSet, drawn};
use super::{DatapathError, address_of, ip_of};
use crate::model::{Protocol, TrafficPolicy};

/// The maps that sets stand in.
pub(super) struct SetMaps {
    pub(super) slots: KernelMap<MapData, SlotKey, Slot>,
    pub(super) members: KernelMap<MapData, MemberKey, Member>,
    pub(super) ranges: LpmTrie<MapData, RangeKey, u8>,
}

/// Connections that a backend has got through the kernel plane since the first agent that kept its set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendCount {
    /// Port of the service.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Clients under this policy.
    pub policy: TrafficPolicy,
    /// The backend.
    pub backend: SocketAddr,
    /// How many.
    pub connections: u64,
}

type Backend = (Address, u16);

/// A set as the kernel holds it.
#[derive(Debug)]
struct Set {
    id: u32,
    generation: u32,
    holds: WantedSet,
    superseded: Vec<Retired>,
    /// Ranges that hold no more once every frontend is written.
    old_ranges: Vec<IpNet>,
    /// Connections that its backends got in earlier generations.
    earlier: HashMap<Backend, u64>,
}

/// What an earlier agent left of a set: its generations that something points to.
#[derive(Debug, Default)]
struct Left {
    generations: BTreeMap<u32, Vec<Option<Slot>>>,
    members: BTreeMap<Backend, u16>,
    ranges: Vec<IpNet>,
}

/// A part of a set that is out of force, or will be.
#[derive(Debug)]
struct Retired {
    set: Option<SetName>,
    id: u32,
    generation: u32,
    slots: u32,
    members: Vec<Backend>,
}

/// See the module.
pub(super) struct SetTable {
    maps: SetMaps,
    sets: HashMap<SetName, Set>,
    left: HashMap<u32, Left>,
    used: HashSet<u32>,
    retired: Vec<Retired>,
    slots: usize,
    members: usize,
    ranges: usize,
}

impl SetTable {
    /// Reads what the maps hold of the sets that `installed` points to; the rest (an agent was killed while it wrote) is
    /// deleted.
    pub(super) fn open(
        maps: SetMaps,
        installed: &HashMap<ServiceKey, Installed>,
    ) -> Result<Self, DatapathError> {
        let mut left: HashMap<u32, Left> = HashMap::new();
        for value in installed.values() {
            let set = left.entry(value.id).or_default();
            set.generations.insert(value.generation, vec![None; value.slots as usize]);
        }
        let mut table = Self {
            maps,
            sets: HashMap::new(),
            left,
            used: HashSet::new(),
            retired: Vec::new(),
            slots: 0,
            members: 0,
            ranges: 0,
        };
        table.read_slots()?;
        table.read_members()?;
        table.read_ranges()?;
        Ok(table)
    }

    fn read_slots(&mut self) -> Result<(), DatapathError> {
        let mut orphans = Vec::new();
        for entry in &self.maps.slots {
            let (key, slot) = entry.map_err(DatapathError::map("read", map::SLOTS))?;
            let set = self.left.get_mut(&key.service);
            let place = set
                .and_then(|set| set.generations.get_mut(&key.generation))
                .and_then(|slots| slots.get_mut(key.slot as usize));
            match place {
                Some(place) => {
                    *place = Some(Slot { connections: 0, ..slot });
                    self.slots += 1;
                }
                None => orphans.push(key),
            }
        }
        for key in orphans {
            self.maps.slots.remove(&key).map_err(DatapathError::map("delete from", map::SLOTS))?;
        }
        Ok(())
    }

    fn read_members(&mut self) -> Result<(), DatapathError> {
        let mut orphans = Vec::new();
        for entry in &self.maps.members {
            let (key, member) = entry.map_err(DatapathError::map("read", map::MEMBERS))?;
            match self.left.get_mut(&key.service) {
                Some(set) => {
                    let flags = u16::try_from(member.flags).unwrap_or(u16::MAX);
                    set.members.insert((key.address, key.port), flags);
                    self.members += 1;
                }
                None => orphans.push(key),
            }
        }
        for key in orphans {
            self.maps.members.remove(&key).map_err(DatapathError::map("delete from", map::MEMBERS))?;
        }
        Ok(())
    }

    fn read_ranges(&mut self) -> Result<(), DatapathError> {
        let mut orphans = Vec::new();
        for entry in &self.maps.ranges {
            let (key, _) = entry.map_err(DatapathError::map("read", map::RANGES))?;
            match (self.left.get_mut(&u32::from_be(key.data().service_be)), range_of(&key)) {
                (Some(set), Some(range)) => {
                    set.ranges.push(range);
                    self.ranges += 1;
                }
                _ => orphans.push(key),
            }
        }
        for key in orphans {
            self.maps.ranges.remove(&key).map_err(DatapathError::map("delete from", map::RANGES))?;
        }
        Ok(())
    }

    pub(super) fn contains(&self, name: &SetName) -> bool {
        self.sets.contains_key(name)
    }

    /// Whether no set has this id yet.
    pub(super) fn is_free(&self, id: u32) -> bool {
        !self.used.contains(&id)
    }

    /// Begins a set under an id, with what an earlier agent left under it; returns the id.
    pub(super) fn adopt(&mut self, name: &SetName, id: u32) -> u32 {
        let Left { mut generations, members, ranges } = self.left.remove(&id).unwrap_or_default();
        let newest = generations.keys().next_back().copied();
        let slots = newest.and_then(|newest| generations.remove(&newest)).unwrap_or_default();
        let count = length(slots.len());
        let superseded: Vec<Retired> = generations
            .into_iter()
            .map(|(generation, slots)| retired(name, id, generation, length(slots.len()), Vec::new()))
            .collect();
        let generation = newest.unwrap_or(0);
        // A slot that is missing makes the set differ from every wanted one, so that it is written anew.
        let whole = slots.into_iter().collect::<Option<Vec<_>>>();
        let mut superseded = superseded;
        if whole.is_none() {
            superseded.push(retired(name, id, generation, count, Vec::new()));
        }
        let mut ranges = ranges;
        ranges.sort_unstable();
        let holds = WantedSet { slots: whole.unwrap_or_default(), members, ranges };
        let old_ranges = Vec::new();
        let set = Set { id, generation, holds, superseded, old_ranges, earlier: HashMap::new() };
        self.sets.insert(name.clone(), set);
        self.used.insert(id);
        id
    }

    /// Id and generation of what a set holds, its number of slots, and how many of them are drawn from.
    pub(super) fn current(&self, name: &SetName) -> (u32, u32, u32, u32) {
        let of = |set: &Set| (set.id, set.generation, length(set.holds.slots.len()), drawn(&set.holds.slots));
        self.sets.get(name).map_or((0, 0, 0, 0), of)
    }

    /// Makes a set hold what is wanted, in a new generation if its slots differ.
    pub(super) fn write(&mut self, name: &SetName, wanted: &WantedSet) -> Result<(), DatapathError> {
        let Some(set) = self.sets.get_mut(name) else { return Ok(()) };
        if set.holds == *wanted {
            return Ok(());
        }
        write_ranges(&mut self.maps.ranges, &mut self.ranges, set, &wanted.ranges)?;
        write_members(&mut self.maps.members, &mut self.members, set, &wanted.members)?;
        if set.holds.slots != wanted.slots {
            let generation = set.generation.wrapping_add(1);
            write_slots(&mut self.maps.slots, &mut self.slots, set.id, generation, &wanted.slots)?;
            let old = length(set.holds.slots.len());
            set.superseded.push(retired(name, set.id, set.generation, old, Vec::new()));
            set.generation = generation;
            set.holds.slots.clone_from(&wanted.slots);
        }
        let gone: Vec<Backend> = set
            .holds
            .members
            .keys()
            .filter(|member| !wanted.members.contains_key(*member))
            .copied()
            .collect();
        if !gone.is_empty() {
            set.superseded.push(retired(name, set.id, set.generation, 0, gone));
            set.holds.members.clone_from(&wanted.members);
        }
        Ok(())
    }

    /// Everything that points to the set points to what it holds now.
    pub(super) fn retire_superseded(&mut self, name: &SetName) {
        let Some(set) = self.sets.get_mut(name) else { return };
        self.retired.append(&mut set.superseded);
        for range in std::mem::take(&mut set.old_ranges) {
            if !set.holds.ranges.contains(&range) {
                // One that is gone already is what was wanted.
                self.ranges -= usize::from(self.maps.ranges.remove(&range_key(set.id, &range)).is_ok());
            }
        }
    }

    /// Nothing points to the set any more.
    pub(super) fn retire(&mut self, name: &SetName) {
        let Some(mut set) = self.sets.remove(name) else { return };
        self.used.remove(&set.id);
        self.retired.append(&mut set.superseded);
        let members = set.holds.members.into_keys().collect();
        let slots = length(set.holds.slots.len());
        self.retired.push(Retired { set: None, id: set.id, generation: set.generation, slots, members });
        for range in set.holds.ranges.iter().chain(&set.old_ranges) {
            // One that is gone already is what was wanted.
            self.ranges -= usize::from(self.maps.ranges.remove(&range_key(set.id, range)).is_ok());
        }
    }

    /// What an earlier agent left and no service has taken up goes.
    pub(super) fn retire_left(&mut self) {
        for (id, left) in std::mem::take(&mut self.left) {
            let mut members: Vec<Backend> = left.members.into_keys().collect();
            for (generation, slots) in left.generations {
                let (slots, members) = (length(slots.len()), std::mem::take(&mut members));
                self.retired.push(Retired { set: None, id, generation, slots, members });
            }
            for range in left.ranges {
                // As above.
                self.ranges -= usize::from(self.maps.ranges.remove(&range_key(id, &range)).is_ok());
            }
        }
    }

    pub(super) const fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Deletes what is out of force, once no program can still be reading it.
    pub(super) fn sweep(&mut self) {
        if self.retired.is_empty() {
            return;
        }
        if let Err(error) = wait_for_programs() {
            return tracing::error!(%error, "what is out of force stays in the maps: no grace period can be had");
        }
        for old in std::mem::take(&mut self.retired) {
            self.delete(&old);
        }
    }

    fn delete(&mut self, old: &Retired) {
        let mut set =
            old.set.as_ref().and_then(|name| self.sets.get_mut(name)).filter(|set| set.id == old.id);
        let mut counted = |backend: Backend, connections: u64| {
            if let Some(set) = set.as_deref_mut().filter(|_| connections > 0) {
                *set.earlier.entry(backend).or_default() += connections;
            }
        };
        for slot in 0..old.slots {
            let key = SlotKey { service: old.id, generation: old.generation, slot };
            if let Ok(slot) = self.maps.slots.get(&key, 0) {
                counted((slot.address, slot.port), slot.connections);
            }
            // One that is gone already is what was wanted.
            self.slots -= usize::from(self.maps.slots.remove(&key).is_ok());
        }
        for &(address, port) in &old.members {
            let key = MemberKey { service: old.id, port, pad: 0, address };
            let is_back = old.set.as_ref().and_then(|name| self.sets.get(name));
            if is_back.is_some_and(|set| set.id == old.id && set.holds.members.contains_key(&(address, port)))
            {
                continue;
            }
            // As above.
            self.members -= usize::from(self.maps.members.remove(&key).is_ok());
        }
    }

    /// Connections that the backends of a set have got.
    pub(super) fn connections(&self, name: &SetName) -> Vec<BackendCount> {
        let Some(set) = self.sets.get(name) else { return Vec::new() };
        let mut counts: BTreeMap<Backend, u64> = BTreeMap::new();
        for (slot, index) in set.holds.slots.iter().zip(0..).filter(|(slot, _)| slot.port != 0) {
            let key = SlotKey { service: set.id, generation: set.generation, slot: index };
            let now = self.maps.slots.get(&key, 0).map_or(0, |slot| slot.connections);
            // Several slots may be of one backend: targets share it, or a table has it many times.
            let backend = (slot.address, slot.port);
            let earlier = || set.earlier.get(&backend).copied().unwrap_or(0);
            *counts.entry(backend).or_insert_with(earlier) += now;
        }
        for &(address, port) in set.holds.members.keys() {
            let key = MemberKey { service: set.id, port, pad: 0, address };
            let kept = self.maps.members.get(&key, 0).map_or(0, |member| member.connections);
            *counts.entry((address, port)).or_default() += kept;
        }
        let count = |((address, port), connections)| BackendCount {
            port: name.port.port,
            protocol: name.port.protocol,
            policy: name.policy,
            backend: SocketAddr::new(ip_of(address), port),
            connections,
        };
        counts.into_iter().map(count).collect()
    }

    pub(super) const fn entries(&self) -> [(&'static str, usize); 3] {
        [(map::SLOTS, self.slots), (map::MEMBERS, self.members), (map::RANGES, self.ranges)]
    }
}

fn retired(set: &SetName, id: u32, generation: u32, slots: u32, members: Vec<Backend>) -> Retired {
    Retired { set: Some(set.clone()), id, generation, slots, members }
}

fn length(count: usize) -> u32 {
    u32::try_from(count).expect("fewer than 2^32 backends")
}

fn write_slots(
    map: &mut KernelMap<MapData, SlotKey, Slot>,
    count: &mut usize,
    service: u32,
    generation: u32,
    slots: &[Slot],
) -> Result<(), DatapathError> {
    let key = |slot| SlotKey { service, generation, slot };
    for (slot, index) in slots.iter().zip(0..) {
        if let Err(source) = map.insert(key(index), slot, 0) {
            // A generation that never came into force is taken back.
            for written in 0..index {
                *count -= usize::from(map.remove(&key(written)).is_ok());
            }
            return Err(DatapathError::map("write to", map::SLOTS)(source));
        }
        *count += 1;
    }
    Ok(())
}

/// Adds members and changes their bits; those that went are deleted with what is superseded.
fn write_members(
    map: &mut KernelMap<MapData, MemberKey, Member>,
    count: &mut usize,
    set: &mut Set,
    wanted: &BTreeMap<Backend, u16>,
) -> Result<(), DatapathError> {
    for (&(address, port), &flags) in wanted {
        let held = set.holds.members.get(&(address, port));
        if held == Some(&flags) {
            continue;
        }
        let key = MemberKey { service: set.id, port, pad: 0, address };
        let before = map.get(&key, 0).ok();
        let connections = before.map_or(0, |member| member.connections);
        let member = Member { flags: u32::from(flags), pad: 0, connections };
        map.insert(key, member, 0).map_err(DatapathError::map("write to", map::MEMBERS))?;
        *count += usize::from(before.is_none());
        set.holds.members.insert((address, port), flags);
    }
    Ok(())
}

/// Adds ranges; those that went are deleted once every frontend is written: a service that restricts nobody any more must
/// not refuse everybody in between.
fn write_ranges(
    map: &mut LpmTrie<MapData, RangeKey, u8>,
    count: &mut usize,
    set: &mut Set,
    wanted: &[IpNet],
) -> Result<(), DatapathError> {
    for range in wanted.iter().filter(|range| !set.holds.ranges.contains(range)) {
        let is_old = set.old_ranges.contains(range);
        map.insert(&range_key(set.id, range), 1, 0).map_err(DatapathError::map("write to", map::RANGES))?;
        *count += usize::from(!is_old);
        set.old_ranges.retain(|old| old != range);
    }
    let gone = set.holds.ranges.iter().filter(|range| !wanted.contains(range));
    set.old_ranges.extend(gone.copied().collect::<Vec<_>>());
    set.holds.ranges = wanted.to_vec();
    Ok(())
}

fn range_key(id: u32, range: &IpNet) -> Key<RangeKey> {
    let mapped_bits = if range.addr().is_ipv4() { 96 } else { 0 };
    let bits = RANGE_KEY_BITS + mapped_bits + u32::from(range.prefix_len());
    Key::new(bits, RangeKey { service_be: id.to_be(), client: address_of(range.network()) })
}

fn range_of(key: &Key<RangeKey>) -> Option<IpNet> {
    let address = ip_of(key.data().client);
    let mapped_bits = if address.is_ipv4() { 96 } else { 0 };
    let bits = key.prefix_len().checked_sub(RANGE_KEY_BITS + mapped_bits)?;
    IpNet::new(address, u8::try_from(bits).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_were_written() {
        for range in ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "::1/128"] {
            let range: IpNet = range.parse().unwrap();
            let key = range_key(7, &range);
            assert_eq!(range_of(&key), Some(range));
            assert_eq!(u32::from_be(key.data().service_be), 7);
        }
        let v4: std::net::IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(range_key(1, &IpNet::from(v4)).prefix_len(), RANGE_KEY_BITS + 128);
    }
}
