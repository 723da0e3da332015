//! Reading and writing the destination of a socket-address context.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{Address, mapped};

/// `SOCK_STREAM` (`include/linux/net.h`).
pub(crate) const STREAM: u32 = 1;
/// `SOCK_DGRAM`.
pub(crate) const DGRAM: u32 = 2;
/// `IPPROTO_TCP`.
const PROTO_TCP: u32 = 6;
/// `IPPROTO_UDP`.
const PROTO_UDP: u32 = 17;
/// `IPPROTO_MPTCP`: a TCP connection to everybody but the kernel. The Go runtime's default for listeners since 1.24.
const PROTO_MPTCP: u32 = 262;

/// Address family that a hook serves; decides which fields of the context it may touch.
pub(crate) trait Family {
    /// Destination address of the context.
    fn address(ctx: &SockAddrContext) -> Address;
    /// Writes the destination address. An IPv4 hook is only given mapped addresses.
    fn set_address(ctx: &SockAddrContext, address: &Address);
}

/// `AF_INET` sockets.
pub(crate) struct V4;
/// `AF_INET6` sockets, those that hold a mapped IPv4 address among them.
pub(crate) struct V6;

impl Family for V4 {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address {
        // SAFETY: the kernel hands the hook a valid context; user_ip4 is readable in every IPv4 hook.
        mapped(unsafe { (*ctx.sock_addr).user_ip4 }.to_ne_bytes())
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address) {
        let [.., a, b, c, d] = *address;
        // SAFETY: as above; user_ip4 is writable in connect4, sendmsg4, recvmsg4 and getpeername4.
        unsafe { (*ctx.sock_addr).user_ip4 = u32::from_ne_bytes([a, b, c, d]) };
    }
}

impl Family for V6 {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address {
        let mut address = [0; 16];
        let (words, _) = address.as_chunks_mut::<4>();
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: a valid context, an index below 4; volatile keeps the loads at the 4 bytes the verifier allows.
            *word = unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[index]) }
                .to_ne_bytes();
        }
        address
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address) {
        let (words, _) = address.as_chunks::<4>();
        for (index, word) in words.iter().enumerate() {
            let value = u32::from_ne_bytes(*word);
            // SAFETY: as above; user_ip6 is writable in connect6, sendmsg6, recvmsg6 and getpeername6.
            unsafe { core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[index], value) };
        }
    }
}

/// Destination port, host byte order.
#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: a valid context; the low 16 bits hold the port in network byte order.
    u16::from_be(unsafe { (*ctx.sock_addr).user_port } as u16)
}

/// Writes the destination port.
#[inline(always)]
pub(crate) fn set_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: a valid context; user_port is writable in all four kinds of hook.
    unsafe { (*ctx.sock_addr).user_port = u32::from(port.to_be()) };
}

/// What the socket speaks, as far as the mesh cares.
#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    // SAFETY: a valid context; both fields are readable in every hook.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    match (kind, protocol) {
        (STREAM, PROTO_TCP | PROTO_MPTCP) => Some(mesh_common::abi::TCP),
        (DGRAM, PROTO_UDP) => Some(mesh_common::abi::UDP),
        _ => None,
    }
}
