//! The kernel side of the mesh: programs loaded, attached and swapped; snapshots written to the maps; events read.
//!
//! Invariants: the maps and programs stay in force when the agent ends; whatever is written is complete before anything
//! points at it; a change costs what changed. It does not decide what the mesh is (`model`) nor open sockets in pods
//! (`node`). One agent owns one folder of pins; who starts a second is refused by the lock on its state folder.

mod addresses;
mod affinity;
mod attach;
mod batch;
mod bpf;
pub mod check;
mod deliveries;
mod error;
mod events;
mod foreseen;
mod grace;
mod liveness;
pub mod maps;
mod object;
mod open_sockets;
mod pins;
mod presented;
mod services;
mod sets;
mod sizes;
mod unwritten;
mod wanted;
mod workloads;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Array, HashMap as KernelMap, MapData, MapError, PerCpuArray, RingBuf, SockHash};
use imbl::ordmap::DiffItem;
use mesh_common::abi::{Address, Counter, InboundMode, LAYOUT_VERSION, Pod, PodKey, ServiceKey, mapped};
use mesh_common::names::{map, program};

pub use self::affinity::{Affinities, Stay, Stayer};
pub use self::attach::Attachment;
pub use self::bpf::LinkInfo;
pub use self::deliveries::{Admitted, Deliveries};
pub use self::error::DatapathError;
pub use self::events::{DirectFlow, FlowEvents};
pub(crate) use self::foreseen::Foreseen;
pub use self::liveness::Lifeline;
pub use self::open_sockets::{OpenSocket, OpenSockets};
pub use self::presented::{Connecting, Presented};
pub use self::sets::BackendCount;
pub use self::sizes::MapSizes;
pub use self::unwritten::SyncProblem;

use self::addresses::AddressTable;
use self::affinity::OutsideShare;
use self::attach::Cgroup;
use self::bpf::AttachType;
use self::liveness::Liveness;
use self::object::Object;
use self::pins::Pins;
use self::services::ServiceTable;
use self::sets::{SetMaps, SetTable};
use self::unwritten::Reason;
use self::workloads::DestinationTable;
use crate::model::{MtlsModes, ServiceName, Snapshot};

/// The network namespace of this thread, which is the node's.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// Where the datapath lives.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Folder for pins, in a BPF file system.
    pub bpffs: PathBuf,
    /// The cgroup (v2) whose processes are served.
    pub cgroup: PathBuf,
    /// Version of the map layout; [`LAYOUT_VERSION`] but in tests of an upgrade.
    pub layout: u32,
    /// Sizes of the maps.
    pub sizes: MapSizes,
    /// Whether service addresses are translated here; otherwise kube-proxy does it, and only enrolled pods' connections
    /// are touched.
    pub translates: bool,
}

impl DatapathConfig {
    /// The layout of this build in its usual sizes, in kube-proxy's place.
    pub fn new(bpffs: PathBuf, cgroup: PathBuf) -> Self {
        Self { bpffs, cgroup, layout: LAYOUT_VERSION, sizes: MapSizes::default(), translates: true }
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

/// Whether the kernel would take the programs and maps: loaded, verified, and gone again. Nothing is attached or pinned, and an
/// agent that serves does not notice.
///
/// # Errors
/// What [`Datapath::load`] would fail with.
pub fn rehearse(sizes: &MapSizes) -> Result<(), DatapathError> {
    Object::load_apart(sizes).map(drop)
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
    destinations_failed: Vec<Reason>,
    translates: bool,
    pods: KernelMap<MapData, u64, Pod>,
    inbound_modes: KernelMap<MapData, PodKey, InboundMode>,
    listeners: SockHash<MapData, PodKey>,
    /// The keys of `inbound_modes`, by their addresses.
    inbound_keys: HashMap<Address, Vec<PodKey>>,
    applied: Option<Snapshot>,
    outside_affinity: Arc<OutsideShare>,
}

impl Datapath {
    /// Loads the programs and takes over what is pinned. Nothing is attached and nothing captured yet: first
    /// [`Self::sync`], then [`Self::attach`].
    pub fn load(config: &DatapathConfig, lifeline: Lifeline) -> Result<(Self, FlowEvents), DatapathError> {
        let cgroup = Cgroup::open(&config.cgroup)?;
        let pins = Pins::open(&config.bpffs, config.layout, &config.sizes)?;
        let mut object = Object::load(&pins, &config.sizes)?;
        let state: Array<_, _> = object.take(map::STATE)?;
        let ring: RingBuf<_> = object.take(map::EVENTS)?;
        let events = FlowEvents::new(ring).map_err(|source| DatapathError::Map {
            operation: "poll",
            map: map::EVENTS,
            source: Box::new(source.into()),
        })?;
        Deliveries::new(object.take(map::ADMITTED)?).clear()?;
        let inbound_modes: KernelMap<_, PodKey, InboundMode> = object.take(map::INBOUND_MODES)?;
        let mut inbound_keys: HashMap<Address, Vec<PodKey>> = HashMap::new();
        for key in inbound_modes.keys().filter_map(Result::ok) {
            inbound_keys.entry(key.address).or_default().push(key);
        }
        let datapath = Self {
            liveness: Liveness::announce(state, lifeline, config.translates)?,
            services: service_table(&mut object, &pins, config.translates)?,
            destinations_failed: Vec::new(),
            translates: config.translates,
            destinations: DestinationTable::open(object.take(map::DESTINATIONS)?)?,
            pods: object.take(map::PODS)?,
            inbound_modes,
            inbound_keys,
            listeners: object.take(map::LISTENERS)?,
            object,
            pins,
            cgroup,
            applied: None,
            outside_affinity: OutsideShare::of(config.sizes.affinity),
        };
        Ok((datapath, events))
    }

    /// Puts the programs in force and begins to capture. Maps of another layout are removed afterwards.
    pub fn attach(&mut self) -> Result<(), DatapathError> {
        self.cgroup.attach(&self.object, &self.pins)?;
        self.attach_node()?;
        self.liveness.start()?;
        sizes::carry_over(&self.pins)?;
        self.pins.remove_other_layouts()
    }

    /// Puts the `sk_lookup` program for clients from outside in force on the node's own namespace, or takes it off where
    /// another proxy serves them.
    fn attach_node(&self) -> Result<(), DatapathError> {
        let pin = self.pins.link(program::NODE_LOOKUP);
        if !self.translates {
            return pins::remove(&pin);
        }
        let netns = File::open(OWN_NETNS).map_err(|source| DatapathError::Attach {
            program: program::NODE_LOOKUP,
            target: OWN_NETNS.into(),
            source,
        })?;
        self.attach_netns(program::NODE_LOOKUP, &pin, netns.as_fd())
    }

    /// Attaches a program to a namespace, or swaps it in its pinned link without a gap.
    fn attach_netns(
        &self,
        name: &'static str,
        pin: &Path,
        netns: BorrowedFd<'_>,
    ) -> Result<(), DatapathError> {
        let error = |source| DatapathError::Attach { program: name, target: pin.to_owned(), source };
        let program = self.object.program(name)?;
        let inode = File::from(netns.try_clone_to_owned().map_err(error)?).metadata().map_err(error)?.ino();
        // A link that somebody pinned here for another namespace is none of this one's.
        if let Ok(link) = bpf::pinned(pin)
            && bpf::link_info(&link).is_ok_and(|info| u64::from(info.netns_inode()) == inode)
            && bpf::link_update(link.as_fd(), program).is_ok()
        {
            return Ok(());
        }
        pins::remove(pin)?;
        let link = bpf::link_create(program, netns, AttachType::SkLookup).map_err(error)?;
        bpf::pin(link.as_fd(), pin).map_err(error)
    }

    /// Makes the kernel hold what the snapshot says. The first call compares with all that is there, later ones cost what
    /// changed and try again what could not be written. Returns what is not as it should be; the rest is in force, and what
    /// was in force before stays.
    pub fn sync(&mut self, snapshot: &Snapshot) -> Vec<SyncProblem> {
        let before = self.applied.replace(snapshot.clone());
        match &before {
            None => self.services.replace(snapshot),
            Some(before) => {
                if self.services.has_failed() {
                    self.services.retry(snapshot);
                }
                for change in before.services.diff(&snapshot.services) {
                    match change {
                        DiffItem::Add(_, service) | DiffItem::Update { new: (_, service), .. } => {
                            self.services.update(service, snapshot);
                        }
                        DiffItem::Remove(name, _) => self.services.remove(name, snapshot),
                    }
                }
            }
        }
        let is_followed =
            |before: &Snapshot| self.destinations_failed.is_empty() && before.reowned == snapshot.reowned;
        let failed = match before.filter(is_followed) {
            Some(before) => self.update_destinations(&before, snapshot),
            None => self.destinations.replace(snapshot),
        };
        self.destinations_failed = failed.into_iter().map(Reason::from).collect();
        self.problems()
    }

    /// Writes again what the destinations' map should hold of these addresses and does not; whether there was any.
    pub fn mend_destinations(&mut self, addresses: &[IpAddr]) -> Result<bool, DatapathError> {
        let mut mended = false;
        for address in addresses {
            mended |= self.destinations.mend(address_of(*address))?;
        }
        Ok(mended)
    }

    /// Puts the programs in force again, those whose links somebody took off.
    pub fn reattach(&self) -> Result<(), DatapathError> {
        self.cgroup.attach(&self.object, &self.pins)?;
        self.attach_node()
    }

    /// What is not in the kernel as it should be.
    pub fn problems(&self) -> Vec<SyncProblem> {
        let mut all = self.services.problems();
        all.extend(unwritten::problems(
            self.destinations_failed.iter().map(|reason| ("a workload", reason.clone())),
        ));
        all
    }

    fn update_destinations(&mut self, before: &Snapshot, snapshot: &Snapshot) -> Vec<DatapathError> {
        let mut errors = Vec::new();
        for change in before.workloads.diff(&snapshot.workloads) {
            errors.extend(match change {
                DiffItem::Add(_, new) => self.destinations.update(None, Some(new), snapshot),
                DiffItem::Update { old: (_, old), new: (_, new) } => {
                    self.destinations.update(Some(old), Some(new), snapshot)
                }
                DiffItem::Remove(_, old) => self.destinations.update(Some(old), None, snapshot),
            });
        }
        errors
    }

    /// Says which addresses the node has, each with its `ADDRESS_*` bits: where node ports are served, and what may not
    /// be taken for a service's.
    pub fn set_node_addresses(&mut self, addresses: &[(IpAddr, u32)]) {
        self.services.set_node_addresses(addresses, self.applied.as_ref());
    }

    /// Makes a socket of the node's own namespace the one that takes what comes from outside (`ROLE_NODE_*`).
    pub fn set_node_listener(&mut self, role: u32, socket: BorrowedFd<'_>) -> Result<(), DatapathError> {
        let key = PodKey { address: [0; 16], selector: role };
        self.listeners
            .insert(key, Raw(socket.as_raw_fd()), 0)
            .map_err(DatapathError::map("write to", map::LISTENERS))
    }

    /// What the kernel holds for a frontend.
    pub fn frontend(&self, key: &ServiceKey) -> Option<&mesh_common::abi::Service> {
        self.services.installed(key)
    }

    /// Connections that each backend of a service has got through the kernel plane.
    pub fn connections(&self, service: &ServiceName) -> Vec<BackendCount> {
        self.services.connections(service)
    }

    /// Entries of the maps that the agent alone writes.
    pub fn entries(&self) -> Vec<(&'static str, usize)> {
        self.services.entries()
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

    /// Whether the kernel holds just these modes at these addresses, as far as the agent wrote them.
    pub fn has_inbound_modes(&self, addresses: &[IpAddr], modes: &MtlsModes) -> bool {
        addresses.iter().all(|address| {
            let wanted = workloads::inbound_modes(address_of(*address), modes);
            wanted.iter().all(|(key, mode)| self.inbound_modes.get(key, 0).is_ok_and(|held| held == *mode))
        })
    }

    fn retain_inbound(
        &mut self,
        address: Address,
        wanted: &HashMap<PodKey, InboundMode>,
    ) -> Result<(), DatapathError> {
        let held = self.inbound_keys.get(&address).cloned().unwrap_or_default();
        for key in held.into_iter().filter(|key| !wanted.contains_key(key)) {
            match self.inbound_modes.remove(&key) {
                Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                }
                Ok(()) => {}
                Err(error) => return Err(DatapathError::map("delete from", map::INBOUND_MODES)(error)),
            }
        }
        if wanted.is_empty() {
            self.inbound_keys.remove(&address);
        } else {
            self.inbound_keys.insert(address, wanted.keys().copied().collect());
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

    /// Which roles at which addresses have a listener.
    pub fn listening(&self) -> HashSet<PodKey> {
        // Values of a SockHash cannot be read but as socket cookies; the keys tell who is there.
        self.listeners.keys().filter_map(Result::ok).collect()
    }

    /// Begins to capture the connections of a namespace. By its first address the pod is known where a client's own key
    /// decides where it is sent.
    pub fn add_pod(
        &mut self,
        netns_cookie: u64,
        id: u32,
        first: Option<IpAddr>,
    ) -> Result<(), DatapathError> {
        let client = first.map_or(0, |address| mesh_common::pick::client(&address_of(address)));
        let pod = Pod { id, client };
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
        self.attach_netns(program::POD_LOOKUP, &self.pins.pod(netns_cookie), netns)
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
        let mut all = self.cgroup.attachments(&self.object, &self.pins);
        if self.translates {
            let own = fs::metadata(OWN_NETNS).map_or(0, |netns| netns.ino());
            let is_misplaced = |link: &LinkInfo| {
                let is = link.netns_inode();
                (u64::from(is) != own).then(|| format!("the link is on namespace {is} instead of {own}"))
            };
            all.push(Attachment::of(program::NODE_LOOKUP, &self.object, &self.pins, is_misplaced));
        }
        all
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

    /// A reader of the maps as they are, for other threads.
    pub fn maps(&self) -> maps::MapReader {
        maps::MapReader::new(self.pins.clone())
    }

    /// A handle on the sockets that came to a backend through a service, for a reader in another thread.
    pub fn open_sockets(&self) -> Result<OpenSockets, DatapathError> {
        OpenSockets::open(&self.pins)
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

/// The tables of services; with maps of another size there, their ids are taken up.
fn service_table(object: &mut Object, pins: &Pins, translates: bool) -> Result<ServiceTable, DatapathError> {
    let addresses = AddressTable::open(object.take(map::ADDRESSES)?, translates)?;
    let maps = SetMaps {
        slots: object.take(map::SLOTS)?,
        members: object.take(map::MEMBERS)?,
        ranges: object.take(map::RANGES)?,
    };
    let previous = match pins.other_sizes(map::SERVICES) {
        Some(path) => {
            let old: KernelMap<MapData, ServiceKey, _> = sizes::open(&path, map::SERVICES)?;
            old.iter().collect::<Result<_, _>>().map_err(DatapathError::map("read", map::SERVICES))?
        }
        None => HashMap::new(),
    };
    let sets = |installed: &_| SetTable::open(maps, installed);
    ServiceTable::open(object.take(map::SERVICES)?, sets, addresses, previous, translates)
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
