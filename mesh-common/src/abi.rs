//! Keys and values of the kernel maps, and the events on the ring buffer.
//!
//! Every type is `repr(C)`, made of integers alone, with its padding written out, its size asserted. Addresses are 16
//! bytes in network byte order, IPv4 as `::ffff:a.b.c.d`; ports and everything else are in host byte order unless the
//! name ends in `_be`. Whoever changes a type raises [`LAYOUT_VERSION`].

/// Version of all map layouts together. An agent that finds pinned maps of another version builds its own beside them,
/// switches the programs over, and then removes the old ones.
pub const LAYOUT_VERSION: u32 = 3;

/// An IP address as it stands in the maps: network byte order, IPv4 mapped into `::ffff:0:0/96`.
pub type Address = [u8; 16];

/// The mapped form of an IPv4 address given as its four octets.
#[inline(always)]
pub const fn mapped(octets: [u8; 4]) -> Address {
    let [a, b, c, d] = octets;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Whether an address is an IPv4 one.
#[inline(always)]
pub const fn is_mapped(address: &Address) -> bool {
    let (words, _) = address.as_chunks::<4>();
    u32::from_ne_bytes(words[0]) == 0
        && u32::from_ne_bytes(words[1]) == 0
        && u32::from_ne_bytes(words[2]) == u32::from_ne_bytes([0, 0, 0xff, 0xff])
}

/// IANA protocol number of TCP.
pub const TCP: u8 = 6;
/// IANA protocol number of UDP.
pub const UDP: u8 = 17;

macro_rules! abi {
    ($name:ident, $size:literal) => {
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: `repr(C)`, integers only, padding written out as fields: every bit pattern is a value.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    };
}

/// [`ServiceKey::scope`]: the port of one address.
pub const SCOPE_ADDRESS: u8 = 0;
/// [`ServiceKey::scope`]: a node port; the address is the unspecified one of its family ([`ANY_V4`], [`ANY_V6`]).
pub const SCOPE_NODE_PORT: u8 = 1;

/// `0.0.0.0` as it stands in the maps.
pub const ANY_V4: Address = mapped([0; 4]);
/// `::`.
pub const ANY_V6: Address = [0; 16];

/// Key of `SERVICES`: what an application asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceKey {
    /// Service address.
    pub address: Address,
    /// Service port.
    pub port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// `SCOPE_*`.
    pub scope: u8,
}
abi!(ServiceKey, 20);

impl ServiceKey {
    /// The key of the node port with this key's port and protocol, in this key's address family.
    #[must_use]
    #[inline(always)]
    pub const fn node_port(&self) -> Self {
        let address = if is_mapped(&self.address) { ANY_V4 } else { ANY_V6 };
        Self { address, port: self.port, protocol: self.protocol, scope: SCOPE_NODE_PORT }
    }
}

/// An enrolled client's connections to this service go through the agent.
pub const SERVICE_CAPTURE: u32 = 1;
/// One endpoint at least takes mTLS only, or has a policy that may refuse clients.
pub const SERVICE_STRICT: u32 = 2;
/// `RANGES` says who may connect: processes of this node are let through to the `sk_lookup` program that asks there.
pub const SERVICE_RANGES: u32 = 4;
/// Nothing serves clients from outside (externalTrafficPolicy Local without an endpoint on this node).
pub const SERVICE_CLOSED_OUTSIDE: u32 = 8;
/// The set's members are in `MEMBERS`.
pub const SERVICE_MEMBERS: u32 = 16;

/// Value of `SERVICES`: where the slots of a service are.
///
/// Several keys (the addresses and the node port of one service port) point to the slots of one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// Identifies the set of slots; never 0.
    pub id: u32,
    /// Generation of the slots that are complete and in force.
    pub generation: u32,
    /// Number of slots, those of tables among them ([`BACKEND_TABLE`]); 0 means that nothing serves.
    pub slots: u32,
    /// How many of them, from the first on, are drawn from.
    pub drawn: u32,
    /// `SERVICE_*` bits.
    pub flags: u32,
    /// [`AffinityKey::service`]; the same for all keys of one service port and family.
    pub affinity_id: u32,
    /// How long a client stays with its backend after it was last seen, in seconds; 0: no affinity.
    pub affinity_seconds: u32,
    /// Ties the value to its key ([`Service::sealed`]).
    pub seal: u32,
}
abi!(Service, 32);

/// A [`Service`] as words.
pub const SERVICE_WORDS: usize = size_of::<Service>() / 4;

impl Service {
    /// The value with its seal for a key.
    ///
    /// Since Linux 6.1 a hash map without preallocation gives the memory of a replaced element to the next one at once: a
    /// program that is reading it may see parts of another service. It copies the value and looks at the seal.
    #[must_use]
    #[inline(always)]
    pub const fn sealed(mut self, key: &ServiceKey) -> Self {
        self.seal = self.seal_for(key);
        self
    }

    /// Whether this is, whole, a value that was written under the key.
    #[inline(always)]
    pub const fn is_of(&self, key: &ServiceKey) -> bool {
        self.seal == self.seal_for(key)
    }

    #[inline(always)]
    const fn seal_for(&self, key: &ServiceKey) -> u32 {
        let (words, _) = key.address.as_chunks::<4>();
        let rest = (key.port as u32) << 16 | (key.protocol as u32) << 8 | key.scope as u32;
        let mut seal = mix(0x6d65_7368, u32::from_ne_bytes(words[0]));
        seal = mix(seal, u32::from_ne_bytes(words[1]));
        seal = mix(seal, u32::from_ne_bytes(words[2]));
        seal = mix(seal, u32::from_ne_bytes(words[3]));
        seal = mix(seal, rest);
        seal = mix(seal, self.id);
        seal = mix(seal, self.generation);
        seal = mix(seal, self.slots);
        seal = mix(seal, self.drawn);
        seal = mix(seal, self.flags);
        seal = mix(seal, self.affinity_id);
        mix(seal, self.affinity_seconds)
    }

    /// From its words, in the order of the fields.
    #[inline(always)]
    pub const fn from_words(words: [u32; SERVICE_WORDS]) -> Self {
        let [id, generation, slots, drawn, flags, affinity_id, affinity_seconds, seal] = words;
        Self { id, generation, slots, drawn, flags, affinity_id, affinity_seconds, seal }
    }
}

/// One step of a multiplicative hash (Fibonacci hashing).
#[inline(always)]
const fn mix(seal: u32, word: u32) -> u32 {
    (seal ^ word).wrapping_mul(0x9e37_79b1).rotate_left(13)
}

/// Key of `SLOTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// [`Service::id`].
    pub service: u32,
    /// [`Service::generation`].
    pub generation: u32,
    /// From 0 to [`Service::slots`] - 1.
    pub slot: u32,
}
abi!(SlotKey, 12);

/// The endpoint takes mTLS only, or asks who a client is: with the agent away an enrolled client is refused instead of sent there in plaintext.
pub const BACKEND_STRICT: u16 = 1;
/// The slot stands for a share of the traffic that has nowhere to go (a subset without endpoints).
pub const BACKEND_NONE: u16 = 2;
/// The slot stands for endpoints among which a client keeps its own ([`Slot::table`]).
pub const BACKEND_TABLE: u16 = 4;

/// Value of `SLOTS`: one endpoint and its entry of the alias table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Slot {
    /// The draw stays in this slot while its fraction is below this ([`crate::pick::stays`]); `u32::MAX` always stays.
    pub threshold: u32,
    /// Where the draw goes otherwise.
    pub alias: u32,
    /// Endpoint address.
    pub address: Address,
    /// Endpoint port.
    pub port: u16,
    /// `BACKEND_*` bits.
    pub flags: u16,
    /// Zero.
    pub pad: u32,
    /// Connections and datagram sockets that were sent here since the slot was written; counted by the kernel.
    pub connections: u64,
}
abi!(Slot, 40);

impl Slot {
    /// Of a slot with [`BACKEND_TABLE`]: the first slot of its table, and how many those are. The table's slots are endpoints; a
    /// client's key picks one of them ([`crate::pick::entry`]).
    #[inline(always)]
    pub const fn table(&self) -> (u32, u32) {
        let (words, _) = self.address.as_chunks::<4>();
        (u32::from_ne_bytes(words[0]), u32::from_ne_bytes(words[1]))
    }

    /// What stands in the place of the address of a slot with [`BACKEND_TABLE`].
    #[inline(always)]
    pub const fn table_address(first: u32, length: u32) -> Address {
        let mut address = [0; 16];
        let (words, _) = address.as_chunks_mut::<4>();
        words[0] = first.to_ne_bytes();
        words[1] = length.to_ne_bytes();
        address
    }
}

/// Key of `MEMBERS`: a backend of a set that has affinity or carries UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct MemberKey {
    /// [`Service::id`].
    pub service: u32,
    /// Port of the backend.
    pub port: u16,
    /// Zero.
    pub pad: u16,
    /// Address of the backend.
    pub address: Address,
}
abi!(MemberKey, 24);

/// Value of `MEMBERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Member {
    /// `BACKEND_*` bits.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
    /// Connections that stayed with this backend, beside those that [`Slot::connections`] counts.
    pub connections: u64,
}
abi!(Member, 16);

/// [`AffinityKey::kind`]: the client is a network namespace of this node; its cookie (native byte order) begins
/// [`AffinityKey::client`], the rest is zero.
pub const CLIENT_NETNS: u32 = 1;
/// [`AffinityKey::kind`]: the client is an address outside.
pub const CLIENT_ADDRESS: u32 = 2;

/// Key of `AFFINITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AffinityKey {
    /// [`Service::affinity_id`].
    pub service: u32,
    /// `CLIENT_*`.
    pub kind: u32,
    /// Who.
    pub client: [u8; 16],
}
abi!(AffinityKey, 24);

impl AffinityKey {
    /// The key of a network namespace.
    #[inline(always)]
    pub const fn netns(service: u32, cookie: u64) -> Self {
        let mut client = [0; 16];
        let (words, _) = client.as_chunks_mut::<8>();
        words[0] = cookie.to_ne_bytes();
        Self { service, kind: CLIENT_NETNS, client }
    }

    /// The key of a client outside.
    #[inline(always)]
    pub const fn address(service: u32, client: Address) -> Self {
        Self { service, kind: CLIENT_ADDRESS, client }
    }
}

/// Value of `AFFINITY`: the backend that a client stays with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Affinity {
    /// `CLOCK_MONOTONIC` in ns when the client last asked.
    pub seen_ns: u64,
    /// Address of the backend.
    pub address: Address,
    /// Port of the backend.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}
abi!(Affinity, 32);

/// Value of `ADDRESSES` (`u32` of these bits): an address of one of the node's interfaces.
pub const ADDRESS_LOCAL: u32 = 1;
/// Node ports are served on it.
pub const ADDRESS_NODE_PORTS: u32 = 2;
/// A service's cluster address: ports that no service has are refused.
pub const ADDRESS_CLUSTER: u32 = 4;
/// An external or load-balancer address: ports that no service has are refused to clients from outside, unless it is the
/// node's own.
pub const ADDRESS_EXTERNAL: u32 = 8;
/// Node ports are served on it for the node's own processes alone (`127.0.0.1`).
pub const ADDRESS_LOOPBACK: u32 = 16;

/// Key of `RANGES` behind its prefix length: the set and the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct RangeKey {
    /// [`Service::id`] in network byte order, so that it is matched bit by bit in whole.
    pub service_be: u32,
    /// Address of the client.
    pub client: Address,
}
abi!(RangeKey, 20);

/// Length of [`RangeKey::service_be`] in bits, which precede every range's own prefix.
pub const RANGE_KEY_BITS: u32 = 32;

/// Key of `PRESENTED`: a connection whose peer is shown under another address: a socket of the agent that stands in for
/// a client from outside; the backend behind a service that an MPTCP socket asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PresentedKey {
    /// Address of the peer: the agent's socket, or the backend.
    pub peer: Address,
    /// TCP: address of the application's socket. UDP: zero (a server's socket is bound to none; the agent's source port
    /// is its own).
    pub own: Address,
    /// Port of the peer.
    pub peer_port: u16,
    /// TCP: port of the application's socket. UDP: zero.
    pub own_port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}
abi!(PresentedKey, 40);

/// Value of `PRESENTED` and of `CLIENTS`: the address that the application is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Client {
    /// UDP: cookie of the application's socket that has received from it (written by the kernel); 0: none yet.
    pub receiver: u64,
    /// Address of the client.
    pub address: Address,
    /// Port of the client.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}
abi!(Client, 32);

/// Key of `REPLIES`: a UDP socket that received from a client outside, and that client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ReplyKey {
    /// Cookie of the application's socket.
    pub cookie: u64,
    /// Address of the client.
    pub address: Address,
    /// Port of the client.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}
abi!(ReplyKey, 32);

/// Value of `REPLIES`: the agent's socket that carries the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Reply {
    /// Address of the agent's socket.
    pub source: Address,
    /// Its port.
    pub source_port: u16,
    /// Zero.
    pub pad: u16,
}
abi!(Reply, 20);

/// Value of `PODS`, keyed by the cookie of the pod's network namespace (`u64`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Pod {
    /// The pod's number in the agent's own table; for people who read the map.
    pub id: u32,
    /// The pod's key where a client's own decides where it is sent ([`crate::pick::client`] of its first address).
    pub client: u32,
}
abi!(Pod, 8);

/// The workload at this address is enrolled: its clients' connections are captured.
pub const DESTINATION_ENROLLED: u32 = 1;
/// The workload at this address takes mTLS only (on one port at least), or has a policy that may refuse clients.
pub const DESTINATION_STRICT: u32 = 2;

/// Value of `DESTINATIONS`, keyed by a workload's address ([`Address`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Destination {
    /// `DESTINATION_*` bits.
    pub flags: u32,
}
abi!(Destination, 4);

/// Key of `INBOUND_MODES` and of `LISTENERS`: an enrolled pod's address and a port or role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PodKey {
    /// Address of the pod.
    pub address: Address,
    /// Port (0: every port that has no entry of its own) in `INBOUND_MODES`, role (`ROLE_*`) in `LISTENERS`.
    pub selector: u32,
}
abi!(PodKey, 20);

/// Key of `ADMITTED`: a connection that `sk_lookup` lets through to the application of a pod of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Tuple {
    /// Address of the client.
    pub client: Address,
    /// Address of the pod.
    pub server: Address,
    /// Port of the client.
    pub client_port: u16,
    /// Port of the application.
    pub server_port: u16,
}
abi!(Tuple, 36);

/// Value of `ADMITTED`: the agent delivers it from inside the pod.
pub const ADMITTED_DELIVERY: u32 = 1;
/// Value of `ADMITTED`: a process of the node's own network namespace connects (kubelet's probes).
pub const ADMITTED_NODE: u32 = 2;

/// Takes the captured connections of a pod.
pub const ROLE_OUTBOUND: u32 = 1;
/// Takes what comes to a pod's own ports.
pub const ROLE_INBOUND: u32 = 2;
/// Takes HBONE.
pub const ROLE_HBONE: u32 = 3;
/// Takes connections over IPv4 to the node's external service addresses; the key's address is zero, as for all four.
pub const ROLE_NODE_TCP4: u32 = 4;
/// The same over IPv6.
pub const ROLE_NODE_TCP6: u32 = 5;
/// Takes datagrams over IPv4.
pub const ROLE_NODE_UDP4: u32 = 6;
/// The same over IPv6.
pub const ROLE_NODE_UDP6: u32 = 7;

/// Port of HBONE on every pod.
pub const HBONE_PORT: u16 = 15008;

/// Plaintext may pass when the agent is away.
pub const INBOUND_OPEN: u32 = 1;
/// Plaintext is refused, the agent there or not.
pub const INBOUND_STRICT: u32 = 2;

/// Value of `INBOUND_MODES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct InboundMode {
    /// [`INBOUND_OPEN`] or [`INBOUND_STRICT`].
    pub mode: u32,
}
abi!(InboundMode, 4);

/// [`State::flags`]: service addresses are translated here. Without it another (kube-proxy) does that, and only enrolled
/// pods' connections are touched.
pub const STATE_TRANSLATE: u32 = 1;

/// The one value of `STATE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    /// `CLOCK_MONOTONIC` in ns at the agent's last sign of life; 0: the agent is known to be gone.
    pub heartbeat_ns: u64,
    /// How old a heartbeat may be, in ns.
    pub heartbeat_max_age_ns: u64,
    /// Cookies of the agent's lifelines: whatever the order in which the kernel closes descriptors when the agent's process
    /// ends, one of them is the first.
    pub lifeline_cookies: [u64; 2],
    /// Cookie of a socket of the agent's own that is to be captured all the same (the self-test); 0: none.
    pub canary_cookie: u64,
    /// Cookie of the node's own network namespace.
    pub node_netns_cookie: u64,
    /// Thread group id of the agent as the kernel sees it, learnt when the lifeline connects.
    pub agent_tgid: u32,
    /// [`LAYOUT_VERSION`] of who wrote this.
    pub layout_version: u32,
    /// `STATE_*` bits.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}
abi!(State, 64);

/// Key of `UDP_PEERS`: a socket, and either a service that it sent or connected to, or a backend that it was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct UdpPeerKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Address of the service or the backend.
    pub address: Address,
    /// Its port.
    pub port: u16,
    /// [`PEER_SERVICE`] or [`PEER_BACKEND`].
    pub kind: u16,
    /// Zero.
    pub pad: u32,
}
abi!(UdpPeerKey, 32);

/// [`UdpPeerKey::kind`]: the key is a service's address, the value the backend.
pub const PEER_SERVICE: u16 = 1;
/// [`UdpPeerKey::kind`]: the key is a backend's address, the value the service that the application asked for.
pub const PEER_BACKEND: u16 = 2;

/// Services that are remembered of one UDP socket; the answers of further ones show their backends.
pub const UDP_SOCKET_PEERS: u32 = 256;

/// Value of `UDP_PEERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct UdpPeer {
    /// Cookie of the socket's network namespace.
    pub netns_cookie: u64,
    /// Address at the other end of the translation.
    pub address: Address,
    /// Its port.
    pub port: u16,
    /// [`PEER_SERVICE`]: port of the service that the socket asked for before this one; 0: none.
    pub previous_port: u16,
    /// Zero.
    pub pad: u32,
    /// [`PEER_SERVICE`]: its address.
    pub previous: Address,
}
abi!(UdpPeer, 48);

/// Value of `UDP_SOCKETS`, keyed by socket cookie: where the chain of a socket's services begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct UdpSocket {
    /// Address of the service that was asked for last.
    pub last: Address,
    /// Its port.
    pub last_port: u16,
    /// Zero.
    pub pad: u16,
    /// Length of the chain.
    pub services: u32,
}
abi!(UdpSocket, 24);

/// Value of `OPEN_FLOWS`: a direct TCP connection that will be reported when it closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OpenFlow {
    /// `CLOCK_MONOTONIC` in ns when the application asked.
    pub start_ns: u64,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// What the application asked for.
    pub asked: ServiceKey,
    /// Bytes that TCP counts as acknowledged before the first of the application's (the SYN).
    pub acked_before: u32,
    /// `FLOW_*` bits.
    pub flags: u32,
    /// Port that the connection went to.
    pub backend_port: u16,
    /// Zero.
    pub pad: u16,
    /// Address that the connection went to.
    pub backend: Address,
}
abi!(OpenFlow, 64);

/// The application asked for a service address.
pub const FLOW_SERVICE: u32 = 1;
/// The handshake was completed.
pub const FLOW_ESTABLISHED: u32 = 2;
/// The connection closed with both FINs; without this bit it was reset or timed out.
pub const FLOW_GRACEFUL: u32 = 4;

/// The application closed its socket.
pub const FLOW_RELEASED: u32 = 8;
/// The connection was cut by the client's own side.
pub const FLOW_ABORTED: u32 = 16;

/// `ADMITTED` holds the connection.
pub const FLOW_ADMITTED: u32 = 32;
/// `PRESENTED` shows the application the service that it asked for.
pub const FLOW_SHOWN: u32 = 64;

/// One direct connection that has ended, from the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FlowEvent {
    /// [`LAYOUT_VERSION`].
    pub version: u32,
    /// `FLOW_*` bits.
    pub flags: u32,
    /// `CLOCK_MONOTONIC` in ns when the application asked.
    pub start_ns: u64,
    /// From the connect to the close.
    pub duration_ns: u64,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Bytes of the application that the peer acknowledged.
    pub sent: u64,
    /// Bytes received from the peer.
    pub received: u64,
    /// Smoothed round-trip time.
    pub srtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// What the application asked for.
    pub asked: ServiceKey,
    /// Source port.
    pub source_port: u16,
    /// Port that the connection went to.
    pub peer_port: u16,
    /// Source address.
    pub source: Address,
    /// Address that the connection went to.
    pub peer: Address,
    /// Zero.
    pub pad: [u32; 2],
}
abi!(FlowEvent, 120);

/// Index into `COUNTERS`: why a hook passed, steered or refused. `u64` each, per CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// A connect or send that was translated to a backend.
    Translated = 0,
    /// A connect that was captured into the agent.
    Captured,
    /// A connect to a service that nothing serves: refused.
    NoEndpoint,
    /// The slots of a service were not there: refused (fail closed).
    SlotMissing,
    /// Strict destination, agent away: refused.
    StrictWithoutAgent,
    /// Permissive destination, agent away: sent directly.
    DirectWithoutAgent,
    /// The capture mark could not be set: refused (fail closed).
    MarkFailed,
    /// A pod's own mark was taken away.
    MarkCleared,
    /// The socket is bound to a device and cannot be captured: refused (fail closed).
    BoundToDevice,
    /// A flow could not be recorded: the map was full. The connection itself is not touched.
    FlowMapFull,
    /// A flow event was lost: the ring buffer was full.
    EventLost,
    /// A UDP peer could not be remembered: answers will show the backend's address.
    PeerMapFull,
    /// `sk_lookup` steered a captured connection to the agent.
    LookupOutbound,
    /// `sk_lookup` steered an inbound connection to the agent.
    LookupInbound,
    /// `sk_lookup` found no listener of the agent and let an open port's connection through.
    LookupOpen,
    /// `sk_lookup` found no listener of the agent and refused (strict, captured or HBONE).
    LookupRefused,
    /// `sk_lookup` let a connection of the node itself through to an application.
    LookupNode,
    /// A connection of the node itself could not be admitted: the map was full. It is treated like any other.
    AdmittedMapFull,
    /// The agent's lifeline closed: capture ended.
    AgentGone,
    /// A connect or send to a port that no service has, of a cluster address: refused.
    NoSuchPort,
    /// A connect or send to a service that is not translated here: kube-proxy does it, or the node's `sk_lookup` asks for
    /// the client's source range first.
    LeftAlone,
    /// A client with affinity, or a UDP socket, stayed with its backend.
    MemberKept,
    /// A client's affinity could not be kept: the map was full. It is sent somewhere all the same.
    AffinityMapFull,
    /// A process of the node was refused a port that is a node port.
    PortTaken,
    /// `sk_lookup` steered a connection or datagram from outside to the agent.
    LookupExternal,
    /// `sk_lookup` refused a client from outside that is in none of the source ranges.
    LookupOutOfRange,
    /// `sk_lookup` refused a client from outside: nothing serves it, or no such port.
    LookupClosed,
    /// `sk_lookup` refused a client from outside: the agent is away.
    LookupWithoutAgent,
    /// A client's address could not be kept for the application: the map was full. It will see the agent's.
    PresentedMapFull,
}

/// Number of counters.
pub const COUNTERS: u32 = Counter::PresentedMapFull as u32 + 1;

impl Counter {
    /// All of them, in the order of their index.
    pub const ALL: [Self; 29] = [
        Self::Translated,
        Self::Captured,
        Self::NoEndpoint,
        Self::SlotMissing,
        Self::StrictWithoutAgent,
        Self::DirectWithoutAgent,
        Self::MarkFailed,
        Self::MarkCleared,
        Self::BoundToDevice,
        Self::FlowMapFull,
        Self::EventLost,
        Self::PeerMapFull,
        Self::LookupOutbound,
        Self::LookupInbound,
        Self::LookupOpen,
        Self::LookupRefused,
        Self::LookupNode,
        Self::AdmittedMapFull,
        Self::AgentGone,
        Self::NoSuchPort,
        Self::LeftAlone,
        Self::MemberKept,
        Self::AffinityMapFull,
        Self::PortTaken,
        Self::LookupExternal,
        Self::LookupOutOfRange,
        Self::LookupClosed,
        Self::LookupWithoutAgent,
        Self::PresentedMapFull,
    ];

    /// The value of the `reason` label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Translated => "translated",
            Self::Captured => "captured",
            Self::NoEndpoint => "no_endpoint",
            Self::SlotMissing => "slot_missing",
            Self::StrictWithoutAgent => "strict_without_agent",
            Self::DirectWithoutAgent => "direct_without_agent",
            Self::MarkFailed => "mark_failed",
            Self::MarkCleared => "mark_cleared",
            Self::BoundToDevice => "bound_to_device",
            Self::FlowMapFull => "flow_map_full",
            Self::EventLost => "event_lost",
            Self::PeerMapFull => "peer_map_full",
            Self::LookupOutbound => "lookup_outbound",
            Self::LookupInbound => "lookup_inbound",
            Self::LookupOpen => "lookup_open",
            Self::LookupRefused => "lookup_refused",
            Self::LookupNode => "lookup_node",
            Self::AdmittedMapFull => "admitted_map_full",
            Self::AgentGone => "agent_gone",
            Self::NoSuchPort => "no_such_port",
            Self::LeftAlone => "left_alone",
            Self::MemberKept => "member_kept",
            Self::AffinityMapFull => "affinity_map_full",
            Self::PortTaken => "port_taken",
            Self::LookupExternal => "lookup_external",
            Self::LookupOutOfRange => "lookup_out_of_range",
            Self::LookupClosed => "lookup_closed",
            Self::LookupWithoutAgent => "lookup_without_agent",
            Self::PresentedMapFull => "presented_map_full",
        }
    }
}

/// Socket mark of a connection that goes into the agent; set by the connect hook alone.
pub const MARK_CAPTURE: u32 = 0x4d53_0001;
/// Socket mark of the agent's connection to an application in a pod.
pub const MARK_DELIVER: u32 = 0x4d53_0002;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_listed_in_order() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index, "{}", counter.name());
        }
    }

    #[test]
    fn a_value_is_told_from_parts_of_two() {
        let key = |last| ServiceKey { address: mapped([10, 96, 0, last]), port: 80, protocol: TCP, scope: 0 };
        let value = |id, generation| {
            let rest = Service::from_words([id, generation, 2, 2, 0, 7, 0, 0]);
            rest.sealed(&key(1))
        };
        let (one, other) = (value(1, 5), value(2, 9));
        assert!(one.is_of(&key(1)) && other.is_of(&key(1)));
        assert!(!one.is_of(&key(2)));
        assert!(!Service { generation: other.generation, ..one }.is_of(&key(1)));
        assert!(!Service { slots: 3, ..one }.is_of(&key(1)));
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let slot = Slot {
            threshold: u32::MAX,
            alias: 0,
            address: Slot::table_address(3, 251),
            port: 0,
            flags: BACKEND_TABLE,
            pad: 0,
            connections: 0,
        };
        assert_eq!(slot.table(), (3, 251));
    }

    #[test]
    fn mapped_addresses_are_told_from_ipv6() {
        assert!(is_mapped(&mapped([10, 0, 0, 1])));
        assert!(!is_mapped(&[0; 16]));
        assert!(!is_mapped(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]));
    }
}
