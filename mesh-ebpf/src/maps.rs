//! The maps, and nothing else. All are pinned by the agent under the layout's folder.
//!
//! Hash maps are not preallocated: an empty table costs its buckets alone. An element is replaced by another, and the memory
//! of the one before may serve a new element at once (since Linux 6.1) while a program still reads it; it stays memory of
//! the map. So what is read is copied at once, or it belongs to the socket whose hook it is, or its users are told by a
//! grace period (`SLOTS`, `MEMBERS`), or it bears a seal (`SERVICES`).

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockHash};
use mesh_common::abi::{
    Address, Affinity, AffinityKey, COUNTERS as COUNTER_COUNT, Client, Destination, InboundMode, Member,
    MemberKey, OpenFlow, Pod, PodKey, PresentedKey, RangeKey, Reply, ReplyKey, Service, ServiceKey, Slot,
    SlotKey, State, Tuple, UdpPeer, UdpPeerKey, UdpSocket,
};

const NO_PREALLOC: u32 = aya_ebpf::bindings::BPF_F_NO_PREALLOC;

/// Written by the agent, read by connect and sendmsg. 10,000 services of three ports in two families, with room.
#[map]
pub(crate) static SERVICES: HashMap<ServiceKey, Service> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Written by the agent, read by connect and sendmsg. Holds two generations of a service while it is updated.
#[map]
pub(crate) static SLOTS: HashMap<SlotKey, Slot> = HashMap::with_max_entries(262_144, NO_PREALLOC);

/// Written by the agent, read by connect and sendmsg: the backends of sets that have affinity or carry UDP.
#[map]
pub(crate) static MEMBERS: HashMap<MemberKey, Member> = HashMap::with_max_entries(131_072, NO_PREALLOC);

/// Written by connect and sendmsg (clients on this node) and by the agent (clients outside); the agent deletes what has
/// timed out or lost its backend.
#[map]
pub(crate) static AFFINITY: HashMap<AffinityKey, Affinity> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Written by the agent, read by connect, sendmsg, `post_bind` and the node's `sk_lookup`: cluster, external and node
/// addresses.
#[map]
pub(crate) static ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Written by the agent, read by the node's `sk_lookup`: `loadBalancerSourceRanges`.
#[map]
pub(crate) static RANGES: LpmTrie<RangeKey, u8> = LpmTrie::with_max_entries(65_536, NO_PREALLOC);

/// Written by `sock_ops` (TCP) and the agent (UDP), read by recvmsg and getpeername: the clients from outside behind
/// sockets of the agent.
#[map]
pub(crate) static PRESENTED: HashMap<PresentedKey, Client> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Written by the agent before it connects, moved to `PRESENTED` by `sock_ops`.
#[map]
pub(crate) static CLIENTS: HashMap<u64, Client> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Written by recvmsg, read by sendmsg and connect, deleted by the agent with the flow.
#[map]
pub(crate) static REPLIES: HashMap<ReplyKey, Reply> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Written by the agent, read by connect: one entry an enrolled pod of this node.
#[map]
pub(crate) static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(4_096, NO_PREALLOC);

/// Written by the agent, read by connect: one entry an address of every enrolled workload of the cluster.
#[map]
pub(crate) static DESTINATIONS: HashMap<Address, Destination> =
    HashMap::with_max_entries(131_072, NO_PREALLOC);

/// Written by the agent, read by `sk_lookup`: the pods of this node and their ports with a mode of their own.
#[map]
pub(crate) static INBOUND_MODES: HashMap<PodKey, InboundMode> =
    HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Written by the agent, read by `sk_lookup`: three listeners an address of each enrolled pod of this node. A socket
/// that closes leaves the map by itself.
#[map]
pub(crate) static LISTENERS: SockHash<PodKey> = SockHash::with_max_entries(24_576, 0);

/// Written by the agent (for as long as it connects) and by `sock_ops` (for as long as the connection lasts), read by
/// `sk_lookup`: connections to a pod of this node that its application takes itself.
#[map]
pub(crate) static ADMITTED: HashMap<Tuple, u32> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Written by the agent (heartbeat) and by connect and `sock_release` (lifeline), read by connect.
#[map]
pub(crate) static STATE: Array<State> = Array::with_max_entries(1, 0);

/// Written by connect, completed and deleted by `sock_ops` and `sock_release`: direct TCP connections that are open.
#[map]
pub(crate) static OPEN_FLOWS: HashMap<u64, OpenFlow> = HashMap::with_max_entries(131_072, NO_PREALLOC);

/// Written by connect, moved to `OPEN_FLOWS` by `sock_ops` within the same system call: MPTCP subflows. One whose connect
/// fails in between has no hook that would delete it; it gives way to newer ones.
#[map]
pub(crate) static PENDING: LruHashMap<u64, OpenFlow> = LruHashMap::with_max_entries(4_096, 0);

/// Written by connect and sendmsg, read by recvmsg and getpeername, deleted by `sock_release`: two entries a service that
/// a socket talks to.
#[map]
pub(crate) static UDP_PEERS: HashMap<UdpPeerKey, UdpPeer> = HashMap::with_max_entries(131_072, NO_PREALLOC);

/// Written by connect and sendmsg, read and deleted by `sock_release`: what `UDP_PEERS` holds of a socket.
#[map]
pub(crate) static UDP_SOCKETS: HashMap<u64, UdpSocket> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Length of `EVENTS` in bytes.
pub(crate) const EVENTS_SIZE: u64 = 1 << 20;

/// Written by `sock_ops`, read by the agent.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_SIZE as u32, 0);

/// Written by every hook, read by the agent.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);
