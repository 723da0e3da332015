//! Socket addresses as the kernel takes and gives them, to the byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use clap::ValueEnum;
use libc::{c_int, sa_family_t, sockaddr, socklen_t};

/// Kind of sockets that a script makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
    /// `AF_INET6`, to IPv4 addresses in their mapped form.
    Mapped,
}

impl Family {
    /// The address family of the sockets.
    pub(crate) const fn domain(self) -> c_int {
        match self {
            Self::V4 => libc::AF_INET,
            Self::V6 | Self::Mapped => libc::AF_INET6,
        }
    }

    /// An address in the form in which such a socket takes it.
    pub(crate) fn address(self, address: SocketAddr) -> SocketAddr {
        match (self, address.ip()) {
            (Self::Mapped, IpAddr::V4(ip)) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            _ => address,
        }
    }

    /// No address in particular.
    pub(crate) const fn any(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 | Self::Mapped => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

/// An address and the length that a call is told, or the room that the kernel may fill.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(crate) struct Raw {
    bytes: [u8; 128],
    /// What the call is told, and tells.
    pub(crate) length: socklen_t,
}

impl Raw {
    /// Room for any address.
    pub(crate) const fn room() -> Self {
        Self { bytes: [0; 128], length: 128 }
    }

    /// With the length that belongs to its family.
    pub(crate) fn new(address: SocketAddr) -> Self {
        let mut raw = Self::room();
        match address {
            SocketAddr::V4(v4) => {
                raw.put(0, &family(libc::AF_INET));
                raw.put(2, &v4.port().to_be_bytes());
                raw.put(4, &v4.ip().octets());
                raw.length = 16;
            }
            SocketAddr::V6(v6) => {
                raw.put(0, &family(libc::AF_INET6));
                raw.put(2, &v6.port().to_be_bytes());
                raw.put(4, &v6.flowinfo().to_be_bytes());
                raw.put(8, &v6.ip().octets());
                raw.put(24, &v6.scope_id().to_ne_bytes());
                raw.length = 28;
            }
        }
        raw
    }

    /// The same, but for its family: `AF_UNSPEC`.
    pub(crate) fn unspecified(mut self) -> Self {
        self.put(0, &family(libc::AF_UNSPEC));
        self
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn take<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.bytes[at..at + N]);
        bytes
    }

    /// The address, where it is one of IP.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let port = u16::from_be_bytes(self.take(2));
        match c_int::from(sa_family_t::from_ne_bytes(self.take(0))) {
            libc::AF_INET => Some((Ipv4Addr::from(self.take::<4>(4)), port).into()),
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(self.take::<16>(8));
                Some(SocketAddrV6::new(ip, port, 0, u32::from_ne_bytes(self.take(24))).into())
            }
            _ => None,
        }
    }

    /// From bytes that the kernel wrote.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut raw = Self::room();
        raw.put(0, &bytes[..bytes.len().min(128)]);
        raw
    }

    /// For a call.
    pub(crate) const fn as_ptr(&self) -> *const sockaddr {
        self.bytes.as_ptr().cast()
    }

    /// For a call that fills it.
    pub(crate) const fn as_mut_ptr(&mut self) -> *mut sockaddr {
        self.bytes.as_mut_ptr().cast()
    }

    /// For a call that fills it.
    pub(crate) const fn length_ptr(&mut self) -> *mut socklen_t {
        &raw mut self.length
    }
}

fn family(family: c_int) -> [u8; 2] {
    sa_family_t::try_from(family).unwrap_or_default().to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_way_into_the_kernels_form_and_back() {
        for text in ["10.0.0.1:80", "[fd00::1]:8080", "[fe80::1%3]:9", "[::ffff:10.0.0.1]:1"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(Raw::new(address).address(), Some(address));
            assert_eq!(Raw::new(address).unspecified().address(), None);
            assert_eq!(Raw::new(address).length, if address.is_ipv4() { 16 } else { 28 });
        }
    }
}
