//! Addresses in the form in which they are compared.

use std::io;
use std::net::{IpAddr, SocketAddr};

pub(crate) fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// An IPv4 address without its IPv6 form.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub(crate) fn text(address: io::Result<SocketAddr>) -> String {
    address.map_or_else(|error| error.to_string(), |address| plain(address).to_string())
}
