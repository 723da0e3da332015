//! Sockets and addresses that are none of the mesh's business.

use anyhow::Result;

use crate::world::{Way, World, contains};

#[test]
fn sockets_of_icmp_and_raw_ones_pass() -> Result<()> {
    let world = World::start()?;
    world.client.netns().run(|| std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0"))??;
    // An echo request: type 8 (IPv4) or 128 (IPv6), its first bytes; the kernel fills in the rest.
    for family in ["v4", "v6"] {
        world.compare(
            family,
            &[Way::Without, Way::ToPods],
            "socket icmp; connect a:7; getpeername; sendecho; recvecho; y: socket icmp; y: sendecho b:7; y: recvecho; \
             y: getpeername",
            &["connect a:7 = 0", "getpeername = a:7", "recvecho = reply from a:0", "y: recvecho = reply from b:0"],
        )?;
    }
    for protocol in [1, 58, 89, 132, 17, 6, 255] {
        world.untouched(
            &["v4", "v6"],
            &format!(
                "socket raw {protocol}; connect a:{protocol}; getpeername; connect a:53; getpeername; connect a:80; \
                 getpeername; socket icmp; connect a:80; getpeername; connect a:53; getpeername"
            ),
            &[],
        )?;
    }
    Ok(())
}

#[test]
fn sockets_of_other_protocols_pass() -> Result<()> {
    let world = World::start()?;
    let lines = world.run(
        Way::ToServices,
        "v4",
        "socket udplite; connect udp.a; getpeername; send hello; recv dontwait",
    )?;
    contains(&lines, &["connect udp.a = 0", "getpeername = udp.a"])?;
    world.untouched(
        &["v4", "v6", "mapped"],
        "socket udplite; connect udp.a; getpeername; getsockname; send hello; x: socket udplite; x: sendto udp.a hello; \
         y: socket seqpacket; z: socket sctp",
        &["getpeername = udp.a", "x: sendto udp.a hello = 5"],
    )
}

#[test]
fn no_address_in_particular_is_this_host_whatever_the_port() -> Result<()> {
    let world = World::start()?;
    world.untouched(
        &["v4", "v6", "mapped"],
        "socket tcp; connect any:80; getpeername; u: socket udp; u: connect any:53; u: getpeername; u: send hello; \
         u: recv; l: socket tcp; l: set reuseaddr; l: bind any:80; l: listen; x: socket tcp; x: connect any:80; l: accept y; \
         x: getpeername; x: send hello; y: recv; y: getsockname",
        &["connect any:80 = ECONNREFUSED", "u: recv = ECONNREFUSED", "x: connect any:80 = 0", "y: recv = 5 \"hello\""],
    )
}
