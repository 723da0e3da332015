//! Names of maps and programs as they stand in the ELF object and in bpffs.
//!
//! A test holds them against the object's symbols (`mesh-userspace/src/datapath/object.rs`).

/// Maps of the kernel plane, pinned under the layout's folder.
pub mod map {
    /// (address, port, protocol) → [`crate::abi::Service`].
    pub const SERVICES: &str = "SERVICES";
    /// (service id, generation, slot) → [`crate::abi::Slot`].
    pub const SLOTS: &str = "SLOTS";
    /// [`crate::abi::MemberKey`] → [`crate::abi::Member`].
    pub const MEMBERS: &str = "MEMBERS";
    /// [`crate::abi::AffinityKey`] → [`crate::abi::Affinity`].
    pub const AFFINITY: &str = "AFFINITY";
    /// Address → `ADDRESS_*` bits.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// [`crate::abi::RangeKey`], by longest prefix → 1.
    pub const RANGES: &str = "RANGES";
    /// [`crate::abi::PresentedKey`] → [`crate::abi::Client`].
    pub const PRESENTED: &str = "PRESENTED";
    /// Socket cookie of the agent's → [`crate::abi::Client`].
    pub const CLIENTS: &str = "CLIENTS";
    /// [`crate::abi::ReplyKey`] → [`crate::abi::Reply`].
    pub const REPLIES: &str = "REPLIES";
    /// Netns cookie → [`crate::abi::Pod`].
    pub const PODS: &str = "PODS";
    /// Address → [`crate::abi::Destination`].
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// (address, port) → [`crate::abi::InboundMode`].
    pub const INBOUND_MODES: &str = "INBOUND_MODES";
    /// (address, role) → listening socket of the agent.
    pub const LISTENERS: &str = "LISTENERS";
    /// [`crate::abi::Tuple`] → `ADMITTED_*`.
    pub const ADMITTED: &str = "ADMITTED";
    /// One [`crate::abi::State`].
    pub const STATE: &str = "STATE";
    /// Socket cookie → [`crate::abi::OpenFlow`].
    pub const OPEN_FLOWS: &str = "OPEN_FLOWS";
    /// Socket cookie → [`crate::abi::OpenFlow`] of an MPTCP subflow that is about to connect.
    pub const PENDING: &str = "PENDING";
    /// [`crate::abi::UdpPeerKey`] → [`crate::abi::UdpPeer`].
    pub const UDP_PEERS: &str = "UDP_PEERS";
    /// Socket cookie → [`crate::abi::UdpSocket`].
    pub const UDP_SOCKETS: &str = "UDP_SOCKETS";
    /// Ring buffer of [`crate::abi::FlowEvent`].
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU counters, indexed by [`crate::abi::Counter`].
    pub const COUNTERS: &str = "COUNTERS";

    /// Every map, in the order of the object.
    pub const ALL: [&str; 21] = [
        SERVICES,
        SLOTS,
        MEMBERS,
        AFFINITY,
        ADDRESSES,
        RANGES,
        PRESENTED,
        CLIENTS,
        REPLIES,
        PODS,
        DESTINATIONS,
        INBOUND_MODES,
        LISTENERS,
        ADMITTED,
        STATE,
        OPEN_FLOWS,
        PENDING,
        UDP_PEERS,
        UDP_SOCKETS,
        EVENTS,
        COUNTERS,
    ];
}

/// Programs. The names differ from their ELF sections: the linker refuses a function called like its section.
pub mod program {
    /// `cgroup/connect4`.
    pub const CONNECT4: &str = "mesh_connect4";
    /// `cgroup/connect6`.
    pub const CONNECT6: &str = "mesh_connect6";
    /// `cgroup/sendmsg4`.
    pub const SENDMSG4: &str = "mesh_sendmsg4";
    /// `cgroup/sendmsg6`.
    pub const SENDMSG6: &str = "mesh_sendmsg6";
    /// `cgroup/recvmsg4`.
    pub const RECVMSG4: &str = "mesh_recvmsg4";
    /// `cgroup/recvmsg6`.
    pub const RECVMSG6: &str = "mesh_recvmsg6";
    /// `cgroup/getpeername4`.
    pub const GETPEERNAME4: &str = "mesh_getpeername4";
    /// `cgroup/getpeername6`.
    pub const GETPEERNAME6: &str = "mesh_getpeername6";
    /// `cgroup/sock_release`.
    pub const SOCK_RELEASE: &str = "mesh_sock_release";
    /// `sockops`.
    pub const SOCK_OPS: &str = "mesh_sock_ops";
    /// `cgroup/post_bind4`.
    pub const POST_BIND4: &str = "mesh_post_bind4";
    /// `cgroup/post_bind6`.
    pub const POST_BIND6: &str = "mesh_post_bind6";
    /// `sk_lookup` on an enrolled pod's namespace.
    pub const POD_LOOKUP: &str = "mesh_pod_lookup";
    /// `sk_lookup` on the node's namespace.
    pub const NODE_LOOKUP: &str = "mesh_node_lookup";

    /// The programs on the cgroup, in the order in which they are attached: what puts the application's own
    /// address back comes before what rewrites it.
    pub const CGROUP: [&str; 12] = [
        SOCK_RELEASE,
        SOCK_OPS,
        GETPEERNAME4,
        GETPEERNAME6,
        RECVMSG4,
        RECVMSG6,
        SENDMSG4,
        SENDMSG6,
        CONNECT4,
        CONNECT6,
        POST_BIND4,
        POST_BIND6,
    ];

    /// The programs on network namespaces.
    pub const NETNS: [&str; 2] = [POD_LOOKUP, NODE_LOOKUP];
}
