//! Keys and values of the maps in words: one field a name, flags by their names, addresses as they are written.

use std::net::IpAddr;

use aya::maps::MapType;
use ipnet::IpNet;
use mesh_common::abi::{
    ADDRESS_CLUSTER, ADDRESS_EXTERNAL, ADDRESS_LOCAL, ADDRESS_LOOPBACK, ADDRESS_NODE_PORTS,
    ADMITTED_DELIVERY, ADMITTED_NODE, Address, Affinity, AffinityKey, BACKEND_NONE, BACKEND_STRICT,
    BACKEND_TABLE, CLIENT_NETNS, Client, DESTINATION_ENROLLED, DESTINATION_STRICT, Destination, FLOW_ABORTED,
    FLOW_ESTABLISHED, FLOW_GRACEFUL, FLOW_RELEASED, FLOW_SERVICE, INBOUND_OPEN, INBOUND_STRICT, InboundMode,
    Member, MemberKey, OpenFlow, PEER_BACKEND, PEER_SERVICE, Pod, PodKey, PresentedKey, RANGE_KEY_BITS,
    ROLE_HBONE, ROLE_INBOUND, ROLE_NODE_TCP4, ROLE_NODE_TCP6, ROLE_NODE_UDP4, ROLE_NODE_UDP6, ROLE_OUTBOUND,
    RangeKey, Reply, ReplyKey, SCOPE_NODE_PORT, SERVICE_CAPTURE, SERVICE_CLOSED_OUTSIDE, SERVICE_MEMBERS,
    SERVICE_RANGES, SERVICE_STRICT, STATE_TRANSLATE, Service, ServiceKey, Slot, SlotKey, State, TCP, Tuple,
    UDP, UdpPeer, UdpPeerKey, UdpSocket, is_mapped,
};
use serde_json::{Map, Value, json};

use super::at;
use crate::datapath::{ip_of, monotonic_ns};

/// The fields of a key or of a value.
pub type Fields = Map<String, Value>;

/// A type of the maps that can be put into words.
pub(super) trait Decode {
    fn fields(&self) -> Fields;
}

fn fields<const N: usize>(named: [(&str, Value); N]) -> Fields {
    named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn names(bits: u32, all: &[(u32, &str)]) -> Value {
    all.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| Value::from(*name)).collect()
}

fn protocol(number: u8) -> Value {
    match number {
        TCP => "TCP".into(),
        UDP => "UDP".into(),
        other => other.into(),
    }
}

fn ip(address: Address) -> Value {
    ip_of(address).to_string().into()
}

/// How long ago that was, in seconds.
fn ago(ns: u64) -> Value {
    if ns == 0 { Value::Null } else { (monotonic_ns().saturating_sub(ns) / 1_000_000_000).into() }
}

pub(super) const fn kind(kind: MapType) -> &'static str {
    match kind {
        MapType::Hash => "hash",
        MapType::Array => "array",
        MapType::PerCpuArray => "percpu_array",
        MapType::LpmTrie => "lpm_trie",
        MapType::SockHash => "sockhash",
        MapType::RingBuf => "ringbuf",
        MapType::LruHash => "lru_hash",
        _ => "other",
    }
}

pub(super) fn backend_flags(bits: u32) -> Value {
    names(
        bits,
        &[(BACKEND_STRICT.into(), "strict"), (BACKEND_NONE.into(), "none"), (BACKEND_TABLE.into(), "table")],
    )
}

impl Decode for ServiceKey {
    fn fields(&self) -> Fields {
        let address = if self.scope == SCOPE_NODE_PORT {
            // The address says the family alone.
            Value::from(if is_mapped(&self.address) { "node port, IPv4" } else { "node port, IPv6" })
        } else {
            ip(self.address)
        };
        fields([("address", address), ("port", self.port.into()), ("protocol", protocol(self.protocol))])
    }
}

impl Decode for Service {
    fn fields(&self) -> Fields {
        const FLAGS: [(u32, &str); 5] = [
            (SERVICE_CAPTURE, "capture"),
            (SERVICE_STRICT, "strict"),
            (SERVICE_RANGES, "ranges"),
            (SERVICE_CLOSED_OUTSIDE, "closed_outside"),
            (SERVICE_MEMBERS, "members"),
        ];
        fields([
            ("set", self.id.into()),
            ("generation", self.generation.into()),
            ("slots", self.slots.into()),
            ("drawn", self.drawn.into()),
            ("flags", names(self.flags, &FLAGS)),
            ("affinity_id", self.affinity_id.into()),
            ("affinity_seconds", self.affinity_seconds.into()),
        ])
    }
}

impl Decode for SlotKey {
    fn fields(&self) -> Fields {
        fields([
            ("set", self.service.into()),
            ("generation", self.generation.into()),
            ("slot", self.slot.into()),
        ])
    }
}

impl Decode for Slot {
    fn fields(&self) -> Fields {
        let (first, length) = self.table();
        let backend = if self.flags & BACKEND_TABLE == 0 {
            at(self.address, self.port)
        } else {
            format!("by the client, slots {first} to {}", u64::from(first) + u64::from(length.max(1)) - 1)
        };
        fields([
            ("backend", backend.into()),
            ("stays_ppm", (u64::from(self.threshold) * 1_000_000 / u64::from(u32::MAX)).into()),
            ("alias", self.alias.into()),
            ("flags", backend_flags(self.flags.into())),
            ("connections", self.connections.into()),
        ])
    }
}

impl Decode for MemberKey {
    fn fields(&self) -> Fields {
        fields([("set", self.service.into()), ("backend", at(self.address, self.port).into())])
    }
}

impl Decode for Member {
    fn fields(&self) -> Fields {
        fields([("flags", backend_flags(self.flags)), ("connections", self.connections.into())])
    }
}

impl Decode for AffinityKey {
    fn fields(&self) -> Fields {
        let client = if self.kind == CLIENT_NETNS {
            let cookie = self.client.first_chunk().map_or(0, |cookie| u64::from_ne_bytes(*cookie));
            format!("netns {cookie}").into()
        } else {
            ip(self.client)
        };
        fields([("affinity_id", self.service.into()), ("client", client)])
    }
}

impl Decode for Affinity {
    fn fields(&self) -> Fields {
        fields([("backend", at(self.address, self.port).into()), ("seen_seconds_ago", ago(self.seen_ns))])
    }
}

impl Decode for Address {
    fn fields(&self) -> Fields {
        fields([("address", ip(*self))])
    }
}

pub(super) fn address_bits(bits: u32) -> Fields {
    const BITS: [(u32, &str); 5] = [
        (ADDRESS_LOCAL, "local"),
        (ADDRESS_NODE_PORTS, "node_ports"),
        (ADDRESS_CLUSTER, "cluster"),
        (ADDRESS_EXTERNAL, "external"),
        (ADDRESS_LOOPBACK, "loopback"),
    ];
    fields([("is", names(bits, &BITS))])
}

pub(super) fn range(key: &RangeKey, bits: u32) -> Fields {
    let client = ip_of(key.client);
    let mapped_bits = if matches!(client, IpAddr::V4(_)) { 96 } else { 0 };
    let length = u8::try_from(bits.saturating_sub(RANGE_KEY_BITS + mapped_bits)).unwrap_or(u8::MAX);
    let clients = IpNet::new(client, length).map_or_else(|_error| client.to_string(), |net| net.to_string());
    fields([("set", u32::from_be(key.service_be).into()), ("clients", clients.into())])
}

impl Decode for PresentedKey {
    fn fields(&self) -> Fields {
        fields([
            ("peer", at(self.peer, self.peer_port).into()),
            ("application", at(self.own, self.own_port).into()),
            ("protocol", protocol(self.protocol)),
        ])
    }
}

impl Decode for Client {
    fn fields(&self) -> Fields {
        fields([("client", at(self.address, self.port).into()), ("receiver_cookie", self.receiver.into())])
    }
}

impl Decode for ReplyKey {
    fn fields(&self) -> Fields {
        fields([("cookie", self.cookie.into()), ("client", at(self.address, self.port).into())])
    }
}

impl Decode for Reply {
    fn fields(&self) -> Fields {
        fields([("agent", at(self.source, self.source_port).into())])
    }
}

impl Decode for Pod {
    fn fields(&self) -> Fields {
        fields([("pod", self.id.into()), ("client", self.client.into())])
    }
}

impl Decode for Destination {
    fn fields(&self) -> Fields {
        fields([(
            "is",
            names(self.flags, &[(DESTINATION_ENROLLED, "enrolled"), (DESTINATION_STRICT, "strict")]),
        )])
    }
}

pub(super) fn pod_port(key: &PodKey) -> Fields {
    let port = if key.selector == 0 { "others".into() } else { key.selector.into() };
    fields([("address", ip(key.address)), ("port", port)])
}

impl Decode for InboundMode {
    fn fields(&self) -> Fields {
        let mode = match self.mode {
            INBOUND_OPEN => "open".into(),
            INBOUND_STRICT => "strict".into(),
            other => Value::from(other),
        };
        fields([("mode", mode)])
    }
}

pub(super) fn listener(key: &PodKey) -> Fields {
    let role = match key.selector {
        ROLE_OUTBOUND => "outbound",
        ROLE_INBOUND => "inbound",
        ROLE_HBONE => "hbone",
        ROLE_NODE_TCP4 => "node TCP, IPv4",
        ROLE_NODE_TCP6 => "node TCP, IPv6",
        ROLE_NODE_UDP4 => "node UDP, IPv4",
        ROLE_NODE_UDP6 => "node UDP, IPv6",
        _ => "other",
    };
    let node = key.selector >= ROLE_NODE_TCP4;
    fields([("address", if node { "node".into() } else { ip(key.address) }), ("role", role.into())])
}

impl Decode for Tuple {
    fn fields(&self) -> Fields {
        fields([
            ("client", at(self.client, self.client_port).into()),
            ("server", at(self.server, self.server_port).into()),
        ])
    }
}

pub(super) fn admitted(by: u32) -> Fields {
    let by = match by {
        ADMITTED_DELIVERY => "delivery".into(),
        ADMITTED_NODE => "node".into(),
        other => Value::from(other),
    };
    fields([("as", by)])
}

pub(super) fn cookie(cookie: u64) -> Fields {
    fields([("cookie", cookie.into())])
}

pub(super) fn netns(cookie: u64) -> Fields {
    fields([("netns", cookie.into())])
}

impl Decode for State {
    fn fields(&self) -> Fields {
        let age = monotonic_ns().saturating_sub(self.heartbeat_ns) / 1_000_000;
        fields([
            ("heartbeat_ms_ago", if self.heartbeat_ns == 0 { Value::Null } else { age.into() }),
            ("heartbeat_max_age_ms", (self.heartbeat_max_age_ns / 1_000_000).into()),
            ("lifeline_cookies", json!(self.lifeline_cookies)),
            ("canary_cookie", self.canary_cookie.into()),
            ("node_netns", self.node_netns_cookie.into()),
            ("agent_tgid", self.agent_tgid.into()),
            ("layout", self.layout_version.into()),
            ("flags", names(self.flags, &[(STATE_TRANSLATE, "translate")])),
        ])
    }
}

fn asked(key: &ServiceKey) -> Value {
    at(key.address, key.port).into()
}

impl Decode for OpenFlow {
    fn fields(&self) -> Fields {
        const FLAGS: [(u32, &str); 5] = [
            (FLOW_SERVICE, "service"),
            (FLOW_ESTABLISHED, "established"),
            (FLOW_GRACEFUL, "graceful"),
            (FLOW_RELEASED, "released"),
            (FLOW_ABORTED, "aborted"),
        ];
        fields([
            ("asked", asked(&self.asked)),
            ("backend", at(self.backend, self.backend_port).into()),
            ("netns", self.netns_cookie.into()),
            ("seconds", ago(self.start_ns)),
            ("flags", names(self.flags, &FLAGS)),
        ])
    }
}

impl Decode for UdpPeerKey {
    fn fields(&self) -> Fields {
        let kind = match self.kind {
            PEER_SERVICE => "service",
            PEER_BACKEND => "backend",
            _ => "other",
        };
        fields([("cookie", self.cookie.into()), (kind, at(self.address, self.port).into())])
    }
}

impl Decode for UdpPeer {
    fn fields(&self) -> Fields {
        let previous =
            if self.previous_port == 0 { Value::Null } else { at(self.previous, self.previous_port).into() };
        fields([
            ("translated", at(self.address, self.port).into()),
            ("previous", previous),
            ("netns", self.netns_cookie.into()),
        ])
    }
}

impl Decode for UdpSocket {
    fn fields(&self) -> Fields {
        fields([("last", at(self.last, self.last_port).into()), ("services", self.services.into())])
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::abi::{ANY_V6, SCOPE_ADDRESS, mapped};

    use super::*;

    #[test]
    fn entries_are_put_into_words() {
        let key = |address, scope| ServiceKey { address, port: 80, protocol: UDP, scope };
        let cases = [
            (
                key(mapped([10, 96, 0, 1]), SCOPE_ADDRESS).fields(),
                json!({"address": "10.96.0.1", "port": 80, "protocol": "UDP"}),
            ),
            (
                key(ANY_V6, SCOPE_NODE_PORT).fields(),
                json!({"address": "node port, IPv6", "port": 80, "protocol": "UDP"}),
            ),
            (AffinityKey::netns(3, 77).fields(), json!({"affinity_id": 3, "client": "netns 77"})),
            (
                AffinityKey::address(3, mapped([192, 0, 2, 1])).fields(),
                json!({"affinity_id": 3, "client": "192.0.2.1"}),
            ),
            (
                range(&RangeKey { service_be: 7_u32.to_be(), client: mapped([10, 1, 0, 0]) }, 32 + 96 + 16),
                json!({"set": 7, "clients": "10.1.0.0/16"}),
            ),
            (address_bits(ADDRESS_LOCAL | ADDRESS_CLUSTER), json!({"is": ["local", "cluster"]})),
            (pod_port(&PodKey { address: ANY_V6, selector: 0 }), json!({"address": "::", "port": "others"})),
        ];
        for (fields, expected) in cases {
            assert_eq!(Value::Object(fields), expected);
        }
    }
}
