//! Sockets that came to a backend through a service address, as the kernel plane remembers them.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use aya::maps::MapData;
use mesh_common::abi::{FLOW_SERVICE, OpenFlow, PEER_BACKEND, UdpPeer, UdpPeerKey};
use mesh_common::names::map;

use super::grace::wait_for_programs;
use super::pins::Pins;
use super::{DatapathError, batch, ip_of};
use crate::model::Protocol;

/// A TCP connection, or a UDP socket that was connected or sent to a service: whether it still is connected the kernel's own
/// list of sockets says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpenSocket {
    /// Cookie of the socket.
    pub cookie: u64,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// What the application asked for: a service address, or one of the node's with a node port.
    pub asked: SocketAddr,
    /// Where it was sent.
    pub backend: SocketAddr,
    /// `CLOCK_MONOTONIC` in ns when it was sent there; 0 for UDP, of which that is not kept.
    pub since_ns: u64,
}

/// Reads those maps, for any thread.
pub struct OpenSockets {
    flows: MapData,
    peers: MapData,
}

impl OpenSockets {
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let open = |name| MapData::from_pin(pins.map(name)).map_err(DatapathError::map("open", name));
        Ok(Self { flows: open(map::OPEN_FLOWS)?, peers: open(map::UDP_PEERS)? })
    }

    /// Shows all that are there. Waits for an RCU grace period first: whoever was sent by what the maps of services held
    /// before this call is among them.
    pub fn for_each(&self, mut each: impl FnMut(&OpenSocket)) -> Result<(), DatapathError> {
        wait_for_programs().map_err(failed(map::OPEN_FLOWS))?;
        let flows = batch::for_each(self.flows.fd().as_fd(), |cookie: &u64, flow: &OpenFlow| {
            each_of(&mut each, flow_socket(*cookie, flow));
        });
        flows.map_err(failed(map::OPEN_FLOWS))?;
        let peers = batch::for_each(self.peers.fd().as_fd(), |key: &UdpPeerKey, peer: &UdpPeer| {
            each_of(&mut each, peer_socket(key, peer));
        });
        peers.map_err(failed(map::UDP_PEERS))
    }
}

fn each_of(each: &mut impl FnMut(&OpenSocket), socket: Option<OpenSocket>) {
    if let Some(socket) = &socket {
        each(socket);
    }
}

fn failed(map: &'static str) -> impl FnOnce(std::io::Error) -> DatapathError {
    move |source| DatapathError::Batch { map, source }
}

fn flow_socket(cookie: u64, flow: &OpenFlow) -> Option<OpenSocket> {
    (flow.flags & FLOW_SERVICE != 0).then(|| OpenSocket {
        cookie,
        netns_cookie: flow.netns_cookie,
        protocol: Protocol::Tcp,
        asked: SocketAddr::new(ip_of(flow.asked.address), flow.asked.port),
        backend: SocketAddr::new(ip_of(flow.backend), flow.backend_port),
        since_ns: flow.start_ns,
    })
}

/// Of the two entries of a socket and a service the one under the backend: it goes when the application calls the backend
/// by its own address, and says which of several services led there last.
fn peer_socket(key: &UdpPeerKey, peer: &UdpPeer) -> Option<OpenSocket> {
    (key.kind == PEER_BACKEND).then(|| OpenSocket {
        cookie: key.cookie,
        netns_cookie: peer.netns_cookie,
        protocol: Protocol::Udp,
        asked: SocketAddr::new(ip_of(peer.address), peer.port),
        backend: SocketAddr::new(ip_of(key.address), key.port),
        since_ns: 0,
    })
}

#[cfg(test)]
mod tests {
    use mesh_common::abi::{FLOW_ESTABLISHED, PEER_SERVICE, SCOPE_ADDRESS, ServiceKey, TCP, mapped};

    use super::*;

    const ASKED: [u8; 4] = [10, 96, 0, 1];
    const BACKEND: [u8; 4] = [10, 244, 0, 1];

    fn flow(flags: u32) -> OpenFlow {
        let asked = ServiceKey { address: mapped(ASKED), port: 80, protocol: TCP, scope: SCOPE_ADDRESS };
        OpenFlow {
            start_ns: 1,
            netns_cookie: 7,
            asked,
            acked_before: 0,
            flags,
            backend_port: 8080,
            pad: 0,
            backend: mapped(BACKEND),
        }
    }

    fn socket(protocol: Protocol) -> OpenSocket {
        let (asked, backend) = (SocketAddr::from((ASKED, 80)), SocketAddr::from((BACKEND, 8080)));
        let since_ns = u64::from(protocol == Protocol::Tcp);
        OpenSocket { cookie: 1, netns_cookie: 7, protocol, asked, backend, since_ns }
    }

    #[test]
    fn only_connections_through_a_service_are_shown() {
        assert_eq!(flow_socket(1, &flow(FLOW_ESTABLISHED)), None);
        assert_eq!(flow_socket(1, &flow(FLOW_ESTABLISHED | FLOW_SERVICE)), Some(socket(Protocol::Tcp)));
    }

    #[test]
    fn a_datagram_socket_is_shown_by_its_backend() {
        let peer = UdpPeer {
            netns_cookie: 7,
            address: mapped(ASKED),
            port: 80,
            previous_port: 0,
            pad: 0,
            previous: [0; 16],
        };
        let key = |kind| UdpPeerKey { cookie: 1, address: mapped(BACKEND), port: 8080, kind, pad: 0 };
        assert_eq!(peer_socket(&key(PEER_BACKEND), &peer), Some(socket(Protocol::Udp)));
        assert_eq!(peer_socket(&key(PEER_SERVICE), &peer), None);
    }
}
