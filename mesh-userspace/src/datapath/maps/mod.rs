//! The kernel maps read as they are, by whoever wants to look: through descriptors of its own, so that nobody waits.
//!
//! It writes nothing. What a program or the controller changes meanwhile is seen or not; an entry is never half of each.

mod decode;

use std::os::fd::AsFd;

use aya::Pod;
use aya::maps::{Array, HashMap as KernelMap, LpmTrie, MapData, MapInfo, PerCpuArray, SockHash};
use mesh_common::abi::{
    Address, Affinity, AffinityKey, Client, Counter, Destination, InboundMode, Member, MemberKey, OpenFlow,
    Pod as PodEntry, PodKey, PresentedKey, RangeKey, Reply, ReplyKey, Service, ServiceKey, Slot, SlotKey,
    State, Tuple, UdpPeer, UdpPeerKey, UdpSocket,
};
use mesh_common::names::map;
use serde_json::Value;

pub use self::decode::Fields;

use self::decode::Decode;
use super::pins::Pins;
use super::{DatapathError, batch, ip_of, object};

/// Reads the maps of one layout.
#[derive(Clone, Debug)]
pub struct MapReader(Pins);

/// A map, and the first of its entries.
#[derive(Clone, Debug)]
pub struct MapDump {
    /// Name.
    pub name: &'static str,
    /// Kind, as `bpftool` calls it.
    pub kind: &'static str,
    /// How many entries there are; `None` where the kernel does not tell (a ring buffer).
    pub entries: Option<u64>,
    /// How many there can be.
    pub max_entries: u32,
    /// The first of them.
    pub rows: Vec<(Fields, Fields)>,
}

impl MapReader {
    pub(super) const fn new(pins: Pins) -> Self {
        Self(pins)
    }

    /// The name of a map, however it is written.
    pub fn name(text: &str) -> Option<&'static str> {
        map::ALL.into_iter().find(|name| name.eq_ignore_ascii_case(text))
    }

    /// A map with at most `limit` of its entries.
    pub fn dump(&self, name: &'static str, limit: usize) -> Result<MapDump, DatapathError> {
        let (kind, max_entries) = self.info(name)?;
        let (entries, rows) = (self.count(name)?, self.rows(name, limit)?);
        Ok(MapDump { name, kind, entries, max_entries, rows })
    }

    /// How many entries a map has, and how many it can have.
    pub fn fill(&self, name: &'static str) -> Result<(Option<u64>, u32), DatapathError> {
        Ok((self.count(name)?, self.info(name)?.1))
    }

    /// One entry of a hash.
    pub fn lookup<K: Pod, V: Pod>(&self, name: &'static str, key: &K) -> Result<Option<V>, DatapathError> {
        let held: KernelMap<MapData, K, V> = object::reopen(&self.0, name)?;
        match held.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(DatapathError::map("read", name)(error)),
        }
    }

    /// The slots of a set, as far as they are there.
    pub fn slots(&self, service: &Service) -> Result<Vec<Option<Slot>>, DatapathError> {
        let held: KernelMap<MapData, SlotKey, Slot> = object::reopen(&self.0, map::SLOTS)?;
        let key = |slot| SlotKey { service: service.id, generation: service.generation, slot };
        Ok((0..service.slots).map(|slot| held.get(&key(slot), 0).ok()).collect())
    }

    /// Whether a client outside may come to a set that has ranges.
    pub fn is_in_range(&self, service: u32, client: Address) -> Result<bool, DatapathError> {
        let held: LpmTrie<MapData, RangeKey, u8> = object::reopen(&self.0, map::RANGES)?;
        let key = RangeKey { service_be: service.to_be(), client };
        let bits = mesh_common::abi::RANGE_KEY_BITS + 128;
        Ok(held.get(&aya::maps::lpm_trie::Key::new(bits, key), 0).is_ok())
    }

    /// The state that the programs see.
    pub fn state(&self) -> Result<State, DatapathError> {
        let held: Array<MapData, State> = object::reopen(&self.0, map::STATE)?;
        held.get(&0, 0).map_err(DatapathError::map("read", map::STATE))
    }

    /// Whether the agent has a listener of this role for clients outside.
    pub fn has_node_listener(&self, role: u32) -> Result<bool, DatapathError> {
        let held: SockHash<MapData, PodKey> = object::reopen(&self.0, map::LISTENERS)?;
        let key = PodKey { address: [0; 16], selector: role };
        Ok(held.keys().filter_map(Result::ok).any(|held| held == key))
    }

    fn info(&self, name: &'static str) -> Result<(&'static str, u32), DatapathError> {
        let error = DatapathError::map("ask about", name);
        let path = self.0.map(name);
        let info = MapInfo::from_pin(&path).and_then(|info| Ok((info.map_type()?, info.max_entries())));
        info.map(|(kind, max_entries)| (decode::kind(kind), max_entries)).map_err(error)
    }

    fn count(&self, name: &'static str) -> Result<Option<u64>, DatapathError> {
        let count = match name {
            map::EVENTS => return Ok(None),
            map::STATE => 1,
            map::COUNTERS => Counter::ALL.len() as u64,
            // A few sockets; the kernel hands them out one by one alone.
            map::LISTENERS => {
                let held: SockHash<MapData, PodKey> = object::reopen(&self.0, name)?;
                held.keys().filter_map(Result::ok).count() as u64
            }
            _ => {
                let info = MapInfo::from_pin(self.0.map(name)).map_err(DatapathError::map("open", name))?;
                let fd = info.fd().map_err(DatapathError::map("open", name))?;
                let (key, value) = (info.key_size(), info.value_size());
                let counted = batch::count(fd.as_fd(), key as usize, value as usize);
                counted.map_err(|source| DatapathError::Count { map: name, source })?
            }
        };
        Ok(Some(count))
    }

    fn rows(&self, name: &'static str, limit: usize) -> Result<Vec<(Fields, Fields)>, DatapathError> {
        match name {
            map::SERVICES => self.hash::<ServiceKey, Service>(name, limit),
            map::SLOTS => self.hash::<SlotKey, Slot>(name, limit),
            map::MEMBERS => self.hash::<MemberKey, Member>(name, limit),
            map::AFFINITY => self.hash::<AffinityKey, Affinity>(name, limit),
            map::ADDRESSES => {
                self.with(name, limit, Address::fields, |bits: &u32| decode::address_bits(*bits))
            }
            map::RANGES => self.ranges(limit),
            map::PRESENTED => self.hash::<PresentedKey, Client>(name, limit),
            map::CLIENTS => self.with(name, limit, |cookie: &u64| decode::cookie(*cookie), Client::fields),
            map::REPLIES => self.hash::<ReplyKey, Reply>(name, limit),
            map::PODS => self.with(name, limit, |cookie: &u64| decode::netns(*cookie), PodEntry::fields),
            map::DESTINATIONS => self.hash::<Address, Destination>(name, limit),
            map::INBOUND_MODES => self.with(name, limit, decode::pod_port, InboundMode::fields),
            map::LISTENERS => self.listeners(limit),
            map::ADMITTED => self.with(name, limit, Tuple::fields, |by: &u32| decode::admitted(*by)),
            map::STATE => Ok(vec![(Fields::new(), self.state()?.fields())]),
            map::OPEN_FLOWS | map::PENDING => {
                self.with(name, limit, |cookie: &u64| decode::cookie(*cookie), OpenFlow::fields)
            }
            map::UDP_PEERS => self.hash::<UdpPeerKey, UdpPeer>(name, limit),
            map::UDP_SOCKETS => {
                self.with(name, limit, |cookie: &u64| decode::cookie(*cookie), UdpSocket::fields)
            }
            map::COUNTERS => self.counters(limit),
            _ => Ok(Vec::new()),
        }
    }

    fn hash<K: Pod + Decode, V: Pod + Decode>(
        &self,
        name: &'static str,
        limit: usize,
    ) -> Result<Vec<(Fields, Fields)>, DatapathError> {
        self.with(name, limit, K::fields, V::fields)
    }

    fn with<K: Pod, V: Pod>(
        &self,
        name: &'static str,
        limit: usize,
        key: impl Fn(&K) -> Fields,
        value: impl Fn(&V) -> Fields,
    ) -> Result<Vec<(Fields, Fields)>, DatapathError> {
        let held: KernelMap<MapData, K, V> = object::reopen(&self.0, name)?;
        // An entry that went while the map was read is passed over.
        let entries = held.iter().filter_map(Result::ok).take(limit);
        Ok(entries.map(|(held_key, held_value)| (key(&held_key), value(&held_value))).collect())
    }

    fn ranges(&self, limit: usize) -> Result<Vec<(Fields, Fields)>, DatapathError> {
        let held: LpmTrie<MapData, RangeKey, u8> = object::reopen(&self.0, map::RANGES)?;
        let keys = held.keys().filter_map(Result::ok).take(limit);
        let row = |key: aya::maps::lpm_trie::Key<RangeKey>| {
            (decode::range(&key.data(), key.prefix_len()), Fields::new())
        };
        Ok(keys.map(row).collect())
    }

    fn listeners(&self, limit: usize) -> Result<Vec<(Fields, Fields)>, DatapathError> {
        let held: SockHash<MapData, PodKey> = object::reopen(&self.0, map::LISTENERS)?;
        let keys = held.keys().filter_map(Result::ok).take(limit);
        Ok(keys.map(|key| (decode::listener(&key), Fields::new())).collect())
    }

    fn counters(&self, limit: usize) -> Result<Vec<(Fields, Fields)>, DatapathError> {
        let held: PerCpuArray<MapData, u64> = object::reopen(&self.0, map::COUNTERS)?;
        let row = |counter: Counter| {
            let values = held.get(&(counter as u32), 0).map_err(DatapathError::map("read", map::COUNTERS))?;
            let key = Fields::from_iter([("reason".to_owned(), Value::from(counter.name()))]);
            let sum = Value::from(values.iter().sum::<u64>());
            Ok((key, Fields::from_iter([("count".to_owned(), sum)])))
        };
        Counter::ALL.into_iter().take(limit).map(row).collect()
    }
}

/// An address and port, as text.
fn at(address: Address, port: u16) -> String {
    std::net::SocketAddr::new(ip_of(address), port).to_string()
}
