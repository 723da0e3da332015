//! Reading and writing the destination of a socket-address context.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::bpf_skc_to_mptcp_sock;
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
    /// Address and port of the socket itself.
    fn own(ctx: &SockAddrContext) -> (Address, u16);
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

    #[inline(always)]
    fn own(ctx: &SockAddrContext) -> (Address, u16) {
        // SAFETY: sk is the full socket in these hooks; both fields may be read.
        let (address, port) = unsafe {
            let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
            ((*sk).src_ip4, (*sk).src_port)
        };
        (mapped(address.to_ne_bytes()), port as u16)
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

    #[inline(always)]
    fn own(ctx: &SockAddrContext) -> (Address, u16) {
        // SAFETY: sk is the full socket in these hooks.
        let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
        let mut address = [0; 16];
        let (words, _) = address.as_chunks_mut::<4>();
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: as in `address`; src_ip6 may be read.
            *word = unsafe { core::ptr::read_volatile(&raw const (*sk).src_ip6[index]) }.to_ne_bytes();
        }
        // SAFETY: src_port may be read.
        (address, unsafe { (*sk).src_port } as u16)
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
    transport(kind, protocol)
}

/// The protocol of the maps for a socket's type and protocol.
#[inline(always)]
pub(crate) const fn transport(kind: u32, protocol: u32) -> Option<u8> {
    match (kind, protocol) {
        (STREAM, PROTO_TCP | PROTO_MPTCP) => Some(mesh_common::abi::TCP),
        (DGRAM, PROTO_UDP) => Some(mesh_common::abi::UDP),
        _ => None,
    }
}

/// Whether a socket is a subflow of an MPTCP connection: a socket that the kernel made, with a cookie of its own.
#[inline(always)]
pub(crate) fn is_mptcp(socket: *mut bpf_sock) -> bool {
    if socket.is_null() {
        return false;
    }
    // SAFETY: a socket of a context, not null.
    let mptcp = unsafe { bpf_skc_to_mptcp_sock(socket.cast()) };
    !mptcp.is_null()
}
