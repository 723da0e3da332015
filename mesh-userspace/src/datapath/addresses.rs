//! The map `ADDRESSES`: what the node's and the services' addresses are, whatever the port.
//!
//! Several services may have one external address, and it may be the node's own: an entry holds the bits of all who
//! name it, and goes with the last of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use aya::maps::{HashMap as KernelMap, MapData};
use mesh_common::abi::{ADDRESS_CLUSTER, ADDRESS_EXTERNAL, Address};
use mesh_common::names::map;

use super::unwritten::Reason;
use super::{DatapathError, address_of, ip_of};
use crate::model::ServiceName;

/// Who says what of one address.
#[derive(Debug, Default)]
struct Claims {
    cluster: u32,
    external: u32,
    node: u32,
}

impl Claims {
    const fn bits(&self) -> u32 {
        let cluster = if self.cluster > 0 { ADDRESS_CLUSTER } else { 0 };
        let external = if self.external > 0 { ADDRESS_EXTERNAL } else { 0 };
        cluster | external | self.node
    }
}

/// See the module.
pub(super) struct AddressTable {
    map: KernelMap<MapData, Address, u32>,
    /// Whether anything is written: with another proxy on the node these addresses are none of ours.
    active: bool,
    installed: HashMap<Address, u32>,
    claims: HashMap<Address, Claims>,
    services: HashMap<ServiceName, Vec<(Address, bool)>>,
    node: HashMap<Address, u32>,
    failed: BTreeMap<Address, Reason>,
}

impl AddressTable {
    pub(super) fn open(map: KernelMap<MapData, Address, u32>, active: bool) -> Result<Self, DatapathError> {
        let installed =
            map.iter().collect::<Result<_, _>>().map_err(DatapathError::map("read", map::ADDRESSES))?;
        let (claims, services, node) = (HashMap::new(), HashMap::new(), HashMap::new());
        Ok(Self { map, active, installed, claims, services, node, failed: BTreeMap::new() })
    }

    /// Says anew which addresses a service has: cluster addresses (`false`) and external ones (`true`).
    pub(super) fn set(&mut self, service: &ServiceName, addresses: &[(Address, bool)]) {
        if self.services.get(service).map_or(&[][..], Vec::as_slice) == addresses {
            return;
        }
        let before = self.services.remove(service).unwrap_or_default();
        let mut touched = HashSet::new();
        for &(address, external) in addresses {
            let claims = self.claims.entry(address).or_default();
            *(if external { &mut claims.external } else { &mut claims.cluster }) += 1;
            touched.insert(address);
        }
        for (address, external) in before {
            let claims = self.claims.entry(address).or_default();
            let count = if external { &mut claims.external } else { &mut claims.cluster };
            *count = count.saturating_sub(1);
            touched.insert(address);
        }
        if !addresses.is_empty() {
            self.services.insert(service.clone(), addresses.to_vec());
        }
        for address in touched {
            self.write(address);
        }
    }

    /// Says anew which addresses the node has, with their `ADDRESS_*` bits.
    pub(super) fn set_node(&mut self, addresses: &[(IpAddr, u32)]) {
        let now: HashMap<Address, u32> =
            addresses.iter().map(|(address, bits)| (address_of(*address), *bits)).collect();
        let before = std::mem::replace(&mut self.node, now);
        let touched: HashSet<Address> = before.into_keys().chain(self.node.keys().copied()).collect();
        for address in touched {
            self.claims.entry(address).or_default().node = self.node.get(&address).copied().unwrap_or(0);
            self.write(address);
        }
    }

    /// Removes what an earlier agent left and nobody names. The node's own addresses are left to [`Self::set_node`].
    pub(super) fn settle(&mut self) {
        let services = ADDRESS_CLUSTER | ADDRESS_EXTERNAL;
        let stale: Vec<Address> = self
            .installed
            .iter()
            .filter(|(address, bits)| {
                !self.claims.contains_key(*address) && (**bits & services != 0 || !self.active)
            })
            .map(|(address, _)| *address)
            .collect();
        for address in stale {
            self.write(address);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.installed.len()
    }

    /// Tries again what could not be written.
    pub(super) fn retry(&mut self) {
        let failed: Vec<Address> = self.failed.keys().copied().collect();
        for address in failed {
            self.write(address);
        }
    }

    /// Addresses that are not in the map as they should be.
    pub(super) fn failed(&self) -> impl Iterator<Item = (IpAddr, &Reason)> {
        self.failed.iter().map(|(address, reason)| (ip_of(*address), reason))
    }

    fn write(&mut self, address: Address) {
        match self.try_write(address) {
            Ok(()) => drop(self.failed.remove(&address)),
            Err(error) => drop(self.failed.insert(address, error.into())),
        }
    }

    fn try_write(&mut self, address: Address) -> Result<(), DatapathError> {
        let wanted = self.claims.get(&address).map_or(0, Claims::bits);
        if wanted == 0 {
            self.claims.remove(&address);
        }
        let wanted = if self.active { wanted } else { 0 };
        let held = self.installed.get(&address).copied().unwrap_or(0);
        if wanted == held {
            return Ok(());
        }
        if wanted == 0 {
            self.map.remove(&address).map_err(DatapathError::map("delete from", map::ADDRESSES))?;
            self.installed.remove(&address);
        } else {
            self.map.insert(address, wanted, 0).map_err(DatapathError::map("write to", map::ADDRESSES))?;
            self.installed.insert(address, wanted);
        }
        Ok(())
    }
}
