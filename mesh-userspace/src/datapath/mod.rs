//! The kernel side of the mesh: programs loaded, attached and swapped; snapshots written to the maps; events read.
//!
//! Invariants: the maps and programs stay in force when the agent ends; whatever is written is complete before anything
//! points at it; a change costs what changed. It does not decide what the mesh is (`model`) nor open sockets in pods
//! (`node`). One agent owns one folder of pins; who starts a second is refused by the lock on its state folder.

mod attach;
mod bpf;
pub mod check;
mod deliveries;
mod error;
mod events;
mod liveness;
mod object;
mod pins;
mod services;
mod workloads;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap as KernelMap, MapData, PerCpuArray, RingBuf, SockHash};
use imbl::ordmap::DiffItem;
use mesh_common::abi::{Address, Counter, InboundMode, LAYOUT_VERSION, Pod, PodKey, mapped};
use mesh_common::names::{map, program};

pub use self::attach::Attachment;
pub use self::bpf::LinkInfo;
pub use self::deliveries::{Admitted, Deliveries};
pub use self::error::DatapathError;
pub use self::events::{DirectFlow, FlowEvents};
pub use self::liveness::Lifeline;

use self::attach::Cgroup;
use self::bpf::AttachType;
use self::liveness::Liveness;
use self::object::Object;
use self::pins::Pins;
use self::services::ServiceTable;
use self::workloads::DestinationTable;
use crate::model::{MtlsModes, Snapshot};

/// Where the datapath lives.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Folder for pins, in a BPF file system.
    pub bpffs: PathBuf,
    /// The cgroup (v2) whose processes are served.
    pub cgroup: PathBuf,
    /// Version of the map layout; [`LAYOUT_VERSION`] but in tests of an upgrade.
    pub layout: u32,
}

impl DatapathConfig {
    /// The layout of this build.
    pub const fn new(bpffs: PathBuf, cgroup: PathBuf) -> Self {
        Self { bpffs, cgroup, layout: LAYOUT_VERSION }
    }
}

/// Role of a listening socket in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Role {
    /// Captured connections of the pod.
    Outbound = mesh_common::abi::ROLE_OUTBOUND,
    /// Connections to the pod's own ports.
    Inbound = mesh_common::abi::ROLE_INBOUND,
    /// HBONE.
    Hbone = mesh_common::abi::ROLE_HBONE,
}

/// The loaded datapath. Dropping it ends capture and leaves everything else in force.
pub struct Datapath {
    // First, so that capture ends before anything else goes.
    liveness: Liveness,
    object: Object,
    pins: Pins,
    cgroup: Cgroup,
    services: ServiceTable,
    destinations: DestinationTable,
    pods: KernelMap<MapData, u64, Pod>,
    inbound_modes: KernelMap<MapData, PodKey, InboundMode>,
    listeners: SockHash<MapData, PodKey>,
    applied: Option<Snapshot>,
}

impl Datapath {
    /// Loads the programs and takes over what is pinned. Nothing is attached and nothing captured yet: first
    /// [`Self::sync`], then [`Self::attach`].
    pub fn load(config: &DatapathConfig, lifeline: Lifeline) -> Result<(Self, FlowEvents), DatapathError> {
        let cgroup = Cgroup::open(&config.cgroup)?;
        let pins = Pins::open(&config.bpffs, config.layout)?;
        let mut object = Object::load(&pins)?;
        let state: Array<_, _> = object.take(map::STATE)?;
        let ring: RingBuf<_> = object.take(map::EVENTS)?;
        let events = FlowEvents::new(ring).map_err(|source| DatapathError::Map {
            operation: "poll",
            map: map::EVENTS,
            source: Box::new(source.into()),
        })?;
        Deliveries::new(object.take(map::ADMITTED)?).clear()?;
        let datapath = Self {
            liveness: Liveness::announce(state, lifeline)?,
            services: ServiceTable::open(object.take(map::SERVICES)?, object.take(map::SLOTS)?)?,
            destinations: DestinationTable::open(object.take(map::DESTINATIONS)?)?,
            pods: object.take(map::PODS)?,
            inbound_modes: object.take(map::INBOUND_MODES)?,
            listeners: object.take(map::LISTENERS)?,
            object,
            pins,
            cgroup,
            applied: None,
        };
        Ok((datapath, events))
    }

    /// Puts the programs in force and begins to capture. Maps of another layout are removed afterwards.
    pub fn attach(&mut self) -> Result<(), DatapathError> {
        self.cgroup.attach(&self.object, &self.pins)?;
        self.liveness.start()?;
        self.pins.remove_other_layouts()
    }

    /// Makes the kernel hold what the snapshot says. The first call compares with all that is there, later ones cost what
    /// changed. What could not be written is returned; the rest is in force, and what was in force before stays.
    pub fn sync(&mut self, snapshot: &Snapshot) -> Vec<DatapathError> {
        let mut errors = Vec::new();
        match self.applied.take() {
            None => {
                errors.extend(self.services.replace(snapshot));
                errors.extend(self.destinations.replace(snapshot));
            }
            Some(before) => {
                for change in before.services.diff(&snapshot.services) {
                    errors.extend(match change {
                        DiffItem::Add(_, service) | DiffItem::Update { new: (_, service), .. } => {
                            self.services.update(service)
                        }
                        DiffItem::Remove(name, _) => self.services.remove(name),
                    });
                }
                for change in before.workloads.diff(&snapshot.workloads) {
                    errors.extend(match change {
                        DiffItem::Add(_, new) => self.destinations.update(None, Some(new)),
                        DiffItem::Update { old: (_, old), new: (_, new) } => {
                            self.destinations.update(Some(old), Some(new))
                        }
                        DiffItem::Remove(_, old) => self.destinations.update(Some(old), None),
                    });
                }
            }
        }
        // After an error the next call compares everything again.
        self.applied = errors.is_empty().then(|| snapshot.clone());
        errors
    }

    /// Whether [`Self::sweep`] has work.
    pub const fn has_retired(&self) -> bool {
        self.services.has_retired()
    }

    /// Frees what earlier updates replaced, once no program can be reading it. Waits for an RCU grace period.
    pub fn sweep(&mut self) {
        self.services.sweep();
    }

    /// Makes an enrolled pod's ports known: its modes, for `sk_lookup`.
    pub fn set_inbound_modes(
        &mut self,
        addresses: &[IpAddr],
        modes: &MtlsModes,
    ) -> Result<(), DatapathError> {
        for address in addresses {
            let wanted = workloads::inbound_modes(address_of(*address), modes);
            self.retain_inbound(address_of(*address), &wanted)?;
            for (key, mode) in wanted {
                self.inbound_modes
                    .insert(key, mode, 0)
                    .map_err(DatapathError::map("write to", map::INBOUND_MODES))?;
            }
        }
        Ok(())
    }

    /// Forgets an address that is no enrolled pod's any more.
    pub fn clear_address(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        let address = address_of(address);
        for role in [Role::Outbound, Role::Inbound, Role::Hbone] {
            // A listener that closed has left the map already.
            let _ = self.listeners.remove(&PodKey { address, selector: role as u32 });
        }
        self.retain_inbound(address, &HashMap::new())
    }

    fn retain_inbound(
        &mut self,
        address: Address,
        wanted: &HashMap<PodKey, InboundMode>,
    ) -> Result<(), DatapathError> {
        let held: Vec<PodKey> = self.inbound_modes.keys().filter_map(Result::ok).collect();
        for key in held.into_iter().filter(|key| key.address == address && !wanted.contains_key(key)) {
            self.inbound_modes.remove(&key).map_err(DatapathError::map("delete from", map::INBOUND_MODES))?;
        }
        Ok(())
    }

    /// Makes a listening socket the one that takes a role at a pod's address.
    pub fn set_listener(
        &mut self,
        address: IpAddr,
        role: Role,
        socket: BorrowedFd<'_>,
    ) -> Result<(), DatapathError> {
        let key = PodKey { address: address_of(address), selector: role as u32 };
        self.listeners
            .insert(key, Raw(socket.as_raw_fd()), 0)
            .map_err(DatapathError::map("write to", map::LISTENERS))
    }

    /// Whether a role at a pod's address has a listener.
    pub fn has_listener(&self, address: IpAddr, role: Role) -> bool {
        // Values of a SockHash cannot be read but as socket cookies; the keys tell who is there.
        let key = PodKey { address: address_of(address), selector: role as u32 };
        self.listeners.keys().filter_map(Result::ok).any(|held| held == key)
    }

    /// Begins to capture the connections of a namespace.
    pub fn add_pod(&mut self, netns_cookie: u64, id: u32) -> Result<(), DatapathError> {
        let pod = Pod { id, pad: 0 };
        self.pods.insert(netns_cookie, pod, 0).map_err(DatapathError::map("write to", map::PODS))
    }

    /// Ends the capture of a namespace's connections.
    pub fn remove_pod(&mut self, netns_cookie: u64) -> Result<(), DatapathError> {
        if !self.has_pod(netns_cookie) {
            return Ok(());
        }
        self.pods.remove(&netns_cookie).map_err(DatapathError::map("delete from", map::PODS))
    }

    /// Whether a namespace's connections are captured.
    pub fn has_pod(&self, netns_cookie: u64) -> bool {
        self.pods.get(&netns_cookie, 0).is_ok()
    }

    /// Cookies of every namespace that an agent has ever steered and not released.
    pub fn known_pods(&self) -> Vec<u64> {
        let mut cookies = self.pins.pod_cookies();
        cookies.extend(self.pods.keys().filter_map(Result::ok));
        cookies.sort_unstable();
        cookies.dedup();
        cookies
    }

    /// Puts the `sk_lookup` program in force on a namespace; a pinned link gets the new program without a gap.
    pub fn attach_pod(&self, netns_cookie: u64, netns: BorrowedFd<'_>) -> Result<(), DatapathError> {
        let pin = self.pins.pod(netns_cookie);
        let name = program::POD_LOOKUP;
        let error = |source| DatapathError::Attach { program: name, target: pin.clone(), source };
        let program = self.object.program(name)?;
        if let Ok(link) = bpf::pinned(&pin)
            && bpf::link_update(link.as_fd(), program).is_ok()
        {
            return Ok(());
        }
        pins::remove(&pin)?;
        let link = bpf::link_create(program, netns, AttachType::SkLookup).map_err(error)?;
        bpf::pin(link.as_fd(), &pin).map_err(error)
    }

    /// Takes the `sk_lookup` program off a namespace.
    pub fn detach_pod(&self, netns_cookie: u64) -> Result<(), DatapathError> {
        pins::remove(&self.pins.pod(netns_cookie))
    }

    /// What the kernel says of a namespace's `sk_lookup` link.
    pub fn pod_link(&self, netns_cookie: u64) -> std::io::Result<LinkInfo> {
        bpf::pinned(&self.pins.pod(netns_cookie)).and_then(bpf::link_info)
    }

    /// Id of the `sk_lookup` program of this agent.
    pub fn pod_program_id(&self) -> Result<u32, DatapathError> {
        self.object.program_id(program::POD_LOOKUP)
    }

    /// What is attached to the cgroup, asked from the kernel.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.cgroup.attachments(&self.object, &self.pins)
    }

    /// Lets one socket of the agent's own be captured (the self-test); `None` ends that.
    pub fn set_canary(&self, socket_cookie: Option<u64>) -> Result<(), DatapathError> {
        self.liveness.set_canary(socket_cookie.unwrap_or(0))
    }

    /// Whether the programs run for the agent's own sockets (the agent is below the cgroup that they are attached to).
    pub fn sees_agent(&self) -> bool {
        self.liveness.is_known()
    }

    /// Age of the heartbeat as the kernel sees it; `None` while nothing is captured.
    pub fn heartbeat_age(&self) -> Option<std::time::Duration> {
        self.liveness.heartbeat_age()
    }

    /// A second handle on the counters, for a reader in another thread.
    pub fn counter_reader(&self) -> Result<CounterReader, DatapathError> {
        object::reopen(&self.pins, map::COUNTERS).map(CounterReader)
    }

    /// A handle for a worker that delivers to applications.
    pub fn deliveries(&self) -> Result<Deliveries, DatapathError> {
        object::reopen(&self.pins, map::ADMITTED).map(Deliveries::new)
    }

    /// Ends capture for good, ahead of the sockets closing.
    pub fn stop_capture(&mut self) {
        self.liveness.stop();
    }
}

/// Reads the kernel's counters.
pub struct CounterReader(PerCpuArray<MapData, u64>);

impl CounterReader {
    /// The counters, summed over the CPUs.
    pub fn read(&self) -> Vec<(Counter, u64)> {
        let sum = |counter: Counter| Some((counter, self.0.get(&(counter as u32), 0).ok()?.iter().sum()));
        Counter::ALL.into_iter().filter_map(sum).collect()
    }
}

/// Removes every pin under a folder: the programs leave the cgroup and every pod with them.
pub fn uninstall(bpffs: &Path) -> Result<(), DatapathError> {
    Pins::remove_all(bpffs)
}

struct Raw(RawFd);

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// An address as it stands in the maps.
pub fn address_of(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

/// An address from the maps.
pub fn ip_of(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns` reads it.
pub(crate) fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the clock exists");
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}
