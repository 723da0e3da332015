//! What the programs find in their maps: in the kernel as it is, or as the snapshot says that it should be.

use std::net::IpAddr;

use mesh_common::abi::{
    Address, Affinity, AffinityKey, Destination, Member, MemberKey, Pod, Service as Installed, ServiceKey,
    Slot, State,
};
use mesh_common::names::map;

use crate::admin::explain::Basis;
use crate::datapath::maps::MapReader;
use crate::datapath::{DatapathError, Foreseen, address_of, ip_of, monotonic_ns};
use crate::model::Workload;
use crate::node::NetNs;

/// How a pod of this node stands with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// Cookie of its network namespace, where that can be entered.
    pub(super) netns: Option<u64>,
    /// Whether its connections are captured.
    pub(super) enrolled: bool,
}

/// The programs' questions.
pub(super) trait Maps {
    /// Whether the kernel is asked.
    fn basis(&self) -> Basis;
    /// `STATE`.
    fn state(&self) -> Result<State, DatapathError>;
    /// `ADDRESSES`: `ADDRESS_*` bits; 0 where there is nothing.
    fn address_bits(&self, address: Address) -> Result<u32, DatapathError>;
    /// `SERVICES`.
    fn service(&self, key: &ServiceKey) -> Result<Option<Installed>, DatapathError>;
    /// `SLOTS` of what was found under the key.
    fn slots(&self, key: &ServiceKey, service: &Installed) -> Result<Vec<Option<Slot>>, DatapathError>;
    /// `RANGES` of what was found under the key.
    fn in_range(&self, key: &ServiceKey, service: &Installed, client: IpAddr) -> Result<bool, DatapathError>;
    /// `DESTINATIONS`.
    fn destination(&self, address: Address) -> Result<Option<Destination>, DatapathError>;
    /// `PODS`: a pod of this node with a network of its own.
    fn standing(&self, workload: &Workload) -> Result<Standing, DatapathError>;
    /// Whether the agent has a listener of this role for clients outside (`LISTENERS`).
    fn has_node_listener(&self, role: u32) -> Result<bool, DatapathError>;
    /// `AFFINITY`.
    fn affinity(&self, key: &AffinityKey) -> Result<Option<Affinity>, DatapathError>;
    /// Whether `MEMBERS` has it.
    fn is_member(&self, key: &MemberKey) -> Result<bool, DatapathError>;
}

impl Maps for MapReader {
    fn basis(&self) -> Basis {
        Basis::Kernel
    }

    fn state(&self) -> Result<State, DatapathError> {
        Self::state(self)
    }

    fn address_bits(&self, address: Address) -> Result<u32, DatapathError> {
        Ok(self.lookup(map::ADDRESSES, &address)?.unwrap_or(0))
    }

    fn service(&self, key: &ServiceKey) -> Result<Option<Installed>, DatapathError> {
        self.lookup(map::SERVICES, key)
    }

    fn slots(&self, _key: &ServiceKey, service: &Installed) -> Result<Vec<Option<Slot>>, DatapathError> {
        Self::slots(self, service)
    }

    fn in_range(
        &self,
        _key: &ServiceKey,
        service: &Installed,
        client: IpAddr,
    ) -> Result<bool, DatapathError> {
        self.is_in_range(service.id, address_of(client))
    }

    fn destination(&self, address: Address) -> Result<Option<Destination>, DatapathError> {
        self.lookup(map::DESTINATIONS, &address)
    }

    fn standing(&self, workload: &Workload) -> Result<Standing, DatapathError> {
        let netns = workload.netns.as_ref().and_then(|path| NetNs::open(path).ok()).map(|own| own.cookie());
        let held = netns.map(|cookie| self.lookup::<_, Pod>(map::PODS, &cookie)).transpose()?;
        Ok(Standing { netns, enrolled: held.flatten().is_some() })
    }

    fn has_node_listener(&self, role: u32) -> Result<bool, DatapathError> {
        Self::has_node_listener(self, role)
    }

    fn affinity(&self, key: &AffinityKey) -> Result<Option<Affinity>, DatapathError> {
        self.lookup(map::AFFINITY, key)
    }

    fn is_member(&self, key: &MemberKey) -> Result<bool, DatapathError> {
        Ok(self.lookup::<_, Member>(map::MEMBERS, key)?.is_some())
    }
}

/// With an agent that is alive, and nobody who stays with a backend yet.
impl Maps for Foreseen<'_> {
    fn basis(&self) -> Basis {
        Basis::Snapshot
    }

    fn state(&self) -> Result<State, DatapathError> {
        Ok(State {
            heartbeat_ns: monotonic_ns(),
            heartbeat_max_age_ns: u64::MAX,
            flags: mesh_common::abi::STATE_TRANSLATE,
            // No pod's, for none is told.
            node_netns_cookie: 1,
            ..State::default()
        })
    }

    fn address_bits(&self, address: Address) -> Result<u32, DatapathError> {
        Ok(Self::address_bits(*self, address))
    }

    fn service(&self, key: &ServiceKey) -> Result<Option<Installed>, DatapathError> {
        Ok(Self::service(*self, key).map(|set| set.installed))
    }

    fn slots(&self, key: &ServiceKey, _service: &Installed) -> Result<Vec<Option<Slot>>, DatapathError> {
        let set = Self::service(*self, key);
        Ok(set.map(|set| set.slots.into_iter().map(Some).collect()).unwrap_or_default())
    }

    fn in_range(
        &self,
        key: &ServiceKey,
        _service: &Installed,
        client: IpAddr,
    ) -> Result<bool, DatapathError> {
        let set = Self::service(*self, key);
        let client = ip_of(address_of(client));
        Ok(set.is_some_and(|set| set.ranges.iter().any(|range| range.contains(&client))))
    }

    fn destination(&self, address: Address) -> Result<Option<Destination>, DatapathError> {
        Ok(Self::destination(*self, address))
    }

    fn standing(&self, workload: &Workload) -> Result<Standing, DatapathError> {
        Ok(Standing { netns: None, enrolled: workload.enrolled })
    }

    fn has_node_listener(&self, _role: u32) -> Result<bool, DatapathError> {
        Ok(true)
    }

    fn affinity(&self, _key: &AffinityKey) -> Result<Option<Affinity>, DatapathError> {
        Ok(None)
    }

    fn is_member(&self, _key: &MemberKey) -> Result<bool, DatapathError> {
        Ok(false)
    }
}
