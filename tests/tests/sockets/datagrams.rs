//! UDP: connected, connected anew, dissolved, not connected, many at once.

use anyhow::Result;

use crate::world::World;

#[test]
fn a_connected_socket_of_datagrams_has_the_address_that_was_asked() -> Result<()> {
    World::start()?.same(
        "socket udp; connect udp.a; getpeername; getsockname; send one; recv; send two; recvfrom; send three; recvmsg; \
         send four; recvmsg peek; recvmsg",
        &[
            "getpeername = udp.a",
            "recv = 7 \"far one\"",
            "recvfrom = 7 \"far two\" from udp.a",
            "recvmsg = 9 \"far three\" from udp.a",
            "recvmsg peek = 8 \"far four\" from udp.a",
            "recvmsg = 8 \"far four\" from udp.a",
        ],
    )
}

#[test]
fn datagrams_to_several_services_and_others_on_one_socket_come_back_from_each() -> Result<()> {
    World::start()?.same(
        "socket udp; sendto udp.a one; recvfrom; sendto udp.b two; recvfrom; sendto udp.other three; recvfrom; \
         sendmsg udp.a four; recvmsg; sendto udp.b five; recv; getpeername; \
         sendmmsg udp.a=six udp.b=seven udp.other=eight udp.a=nine; recvmmsg 4",
        &[
            "recvfrom = 7 \"far one\" from udp.a",
            "recvfrom = 8 \"near two\" from udp.b",
            "recvfrom = 11 \"other three\" from udp.other",
            "recvmsg = 8 \"far four\" from udp.a",
            "recv = 9 \"near five\"",
            "getpeername = ENOTCONN",
            "sendmmsg udp.a=six udp.b=seven udp.other=eight udp.a=nine = 4 of 3,5,5,4",
            "recvmmsg 4 = 4: 10 \"near seven\" from udp.b, 11 \"other eight\" from udp.other, 7 \"far six\" from udp.a, \
             8 \"far nine\" from udp.a",
        ],
    )
}

#[test]
fn a_socket_of_datagrams_connects_to_one_after_the_other() -> Result<()> {
    let world = World::start()?;
    world.same(
        "socket udp; connect udp.a; send one; recvmsg; connect udp.b; getpeername; send two; recvmsg; \
         connect udp.other; getpeername; send three; recvmsg; connect udp.a; getpeername; send four; recvmsg; \
         connect unspec; getpeername; sendto udp.a five; recvmsg; connect udp.b; getpeername; send six; recvmsg",
        &[
            "recvmsg = 7 \"far one\" from udp.a",
            "getpeername = udp.b",
            "recvmsg = 8 \"near two\" from udp.b",
            "getpeername = udp.other",
            "recvmsg = 11 \"other three\" from udp.other",
            "getpeername = udp.a",
            "recvmsg = 8 \"far four\" from udp.a",
            "connect unspec = 0",
            "getpeername = ENOTCONN",
            "recvmsg = 8 \"far five\" from udp.a",
            "getpeername = udp.b",
            "recvmsg = 8 \"near six\" from udp.b",
        ],
    )?;
    // Linux leaves the last peer's address in a dissolved socket of IPv6, and it goes on hearing that one alone.
    world.same_over(
        &["v4", "mapped"],
        "socket udp; connect udp.other; connect unspec; sendto udp.a one; recvmsg; sendto udp.b two; recvmsg; \
         sendto udp.other three; recvmsg",
        &[
            "recvmsg = 7 \"far one\" from udp.a",
            "recvmsg = 8 \"near two\" from udp.b",
            "recvmsg = 11 \"other three\" from udp.other",
        ],
    )
}

#[test]
fn a_connected_socket_sends_elsewhere_and_hears_its_peer_alone() -> Result<()> {
    World::start()?.same(
        "socket udp; connect udp.a; sendto udp.a one; recvmsg; sendmsg udp.b two; sendto udp.other three; send four; \
         recvmsg; recvmsg dontwait; getpeername; sendmmsg udp.b=five udp.a=six; recvmsg; recvmsg dontwait",
        &[
            "recvmsg = 7 \"far one\" from udp.a",
            "sendmsg udp.b two = 3",
            "recvmsg = 8 \"far four\" from udp.a",
            "recvmsg dontwait = EAGAIN",
            "getpeername = udp.a",
            "recvmsg = 7 \"far six\" from udp.a",
            "recvmsg dontwait = EAGAIN",
        ],
    )
}

#[test]
fn an_address_whose_family_is_unspecified_is_one_of_ipv4_to_a_socket_of_ipv4() -> Result<()> {
    let world = World::start()?;
    let families = ["v6", "mapped"];
    world.same_over(&families, "socket udp; sendto udp.a hello unspec; getsockname; get error", &[])?;
    world.same_over(
        &["v4"],
        "socket udp; sendto udp.a hello unspec; recvmsg",
        &["recvmsg = 9 \"far hello\" from udp.a"],
    )
}

#[test]
fn a_datagram_that_is_built_up_goes_out_whole() -> Result<()> {
    World::start()?.same(
        "socket udp; sendto udp.a one more; sendto udp.a two; recvmsg; \
         y: socket udp; y: connect udp.b; y: set cork; y: send one; y: send two; y: set cork 0; y: recvmsg",
        &["recvmsg = 10 \"far onetwo\" from udp.a", "y: recvmsg = 11 \"near onetwo\" from udp.b"],
    )
}

#[test]
fn a_service_without_endpoints_refuses_a_datagram_at_once() -> Result<()> {
    World::start()?.sees(
        "socket udp; connect udp.nobody; getpeername; sendto udp.nobody hello; sendmsg udp.nobody hello; get error; \
         sendto udp.a one; recvmsg",
        &[
            "connect udp.nobody = ECONNREFUSED",
            "getpeername = ENOTCONN",
            "sendto udp.nobody hello = ECONNREFUSED",
            "sendmsg udp.nobody hello = ECONNREFUSED",
            "get error = 0",
            "recvmsg = 7 \"far one\" from udp.a",
        ],
    )
}
