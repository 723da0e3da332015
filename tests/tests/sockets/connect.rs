//! `connect()` of streams: blocking, not blocking, refused, again and again.

use anyhow::Result;

use crate::world::World;

#[test]
fn a_stream_has_the_address_that_was_asked_at_every_stage() -> Result<()> {
    World::start()?.same(
        "socket tcp; getpeername; connect tcp.a; getpeername; getsockname; http; connect tcp.a; connect tcp.b; \
         getpeername; shutdown; recv; getpeername; close",
        &[
            "getpeername = ENOTCONN",
            "connect tcp.a = 0",
            "getpeername = tcp.a",
            "http = far sees self:p1",
            "connect tcp.a = EISCONN",
            "connect tcp.b = EISCONN",
            "getpeername = tcp.a",
            "recv = 0 \"\"",
            "getpeername = ENOTCONN",
        ],
    )
}

#[test]
fn a_stream_that_does_not_block_is_told_how_it_went() -> Result<()> {
    let world = World::start()?;
    world.same(
        "socket tcp; nonblock; connect tcp.a; poll out; get error; getpeername; http; connect tcp.a; \
         y: socket tcp; y: nonblock; y: connect closed.a; y: poll out; y: get error; y: get error; y: getpeername",
        &[
            "connect tcp.a = EINPROGRESS",
            "poll out = out",
            "get error = 0",
            "getpeername = tcp.a",
            "y: connect closed.a = EINPROGRESS",
            "y: poll out = out+err+hup",
            "y: get error = ECONNREFUSED",
            "y: getpeername = ENOTCONN",
        ],
    )
}

#[test]
fn a_service_without_endpoints_refuses_a_stream_at_once_and_the_socket_can_be_used_again() -> Result<()> {
    let world = World::start()?;
    for nonblock in ["", "nonblock;"] {
        world.sees(
            &format!("socket tcp; {nonblock} connect tcp.nobody; get error; getpeername; connect tcp.nobody"),
            &[
                "connect tcp.nobody = ECONNREFUSED",
                "get error = 0",
                "getpeername = ENOTCONN",
                "connect tcp.nobody = ECONNREFUSED",
            ],
        )?;
    }
    world.sees(
        "socket tcp; connect tcp.nobody; connect tcp.a; getpeername; http",
        &["connect tcp.a = 0", "getpeername = tcp.a", "http = far sees self:p1"],
    )
}

#[test]
fn a_stream_that_was_refused_connects_elsewhere() -> Result<()> {
    World::start()?.same(
        "socket tcp; connect closed.a; getpeername; connect tcp.b; getpeername; http; connect unspec; getpeername; \
         connect tcp.other; getpeername; http",
        &[
            "connect closed.a = ECONNREFUSED",
            "getpeername = ENOTCONN",
            "connect tcp.b = 0",
            "getpeername = tcp.b",
            "http = near sees self:p1",
            "connect unspec = 0",
            "getpeername = ENOTCONN",
            "connect tcp.other = 0",
            "getpeername = tcp.other",
            "http = other sees self:p2",
        ],
    )
}

#[test]
fn a_stream_that_is_dissolved_while_it_connects_connects_elsewhere() -> Result<()> {
    World::start()?.same(
        "socket tcp; nonblock; connect tcp.a; connect unspec; connect tcp.other; poll out; getpeername; http",
        &["connect unspec = 0", "getpeername = tcp.other"],
    )
}

#[test]
fn addresses_of_other_lengths_and_families_are_taken_or_refused_as_ever() -> Result<()> {
    let world = World::start()?;
    let lengths = [0, 2, 8, 15, 16, 17, 23, 24, 27, 28, 29, 64, 128];
    let calls = lengths.map(|length| {
        format!(
            "socket tcp; connect tcp.a length={length}; getpeername; \
             y: socket udp; y: connect udp.a length={length}; y: getpeername; \
             z: socket udp; z: sendto udp.a hello length={length}; z: getsockname"
        )
    });
    world.same(&calls.join("; "), &["connect tcp.a length=2 = EINVAL", "connect tcp.a length=64 = 0"])?;
    // An IPv4 address on any socket: IPv6 ones take it for datagrams alone.
    world.same(
        "socket tcp; connect tcp.a plain; getpeername; y: socket udp; y: connect udp.a plain; y: getpeername; \
         y: send hello; y: recvmsg; z: socket udp; z: sendto udp.a hello plain; z: recvmsg",
        &["y: send hello = 5", "y: recvmsg = 9 \"far hello\" from udp.a", "z: recvmsg = 9 \"far hello\" from udp.a"],
    )?;
    world.same_over(
        &["v6"],
        "socket tcp; connect tcp.a scope=7; getpeername; http; y: socket udp; y: connect udp.a scope=7; \
         y: getpeername; y: send hello; y: recvmsg",
        &["http = far sees self:p1", "y: recvmsg = 9 \"far hello\" from udp.a"],
    )
}

#[test]
fn a_socket_of_ipv6_alone_reaches_services_of_ipv6_alone() -> Result<()> {
    let world = World::start()?;
    let script = "socket tcp; set v6only; connect tcp.a; getpeername; y: socket udp; y: set v6only; y: connect udp.a; \
                  y: getpeername; z: socket udp; z: set v6only; z: sendto udp.a hello";
    world.same_over(
        &["v6"],
        script,
        &["connect tcp.a = 0", "y: connect udp.a = 0", "z: sendto udp.a hello = 5"],
    )?;
    world.same_over(
        &["mapped"],
        script,
        &[
            "connect tcp.a = ENETUNREACH",
            "y: connect udp.a = ENETUNREACH",
            "z: sendto udp.a hello = ENETUNREACH",
        ],
    )
}

#[test]
fn sockets_of_both_families_reach_services_of_both() -> Result<()> {
    World::start()?.same_over(
        &["mapped"],
        "socket tcp; connect tcp.a6; getpeername; http; x: socket tcp; x: connect tcp.a; x: getpeername; x: http; \
         u: socket udp; u: sendto udp.a one; u: recvmsg; u: sendto udp.a6 two; u: recvmsg; u: sendto udp.b three; \
         u: recvmsg; u: sendmmsg udp.a6=four udp.b=five; u: recvmmsg 2; c: socket udp; c: connect udp.a6; c: getpeername; \
         c: send six; c: recvmsg",
        &[
            "getpeername = tcp.a6",
            "x: getpeername = tcp.a",
            "x: http = far sees self:p2",
            "u: recvmsg = 7 \"far one\" from udp.a",
            "u: recvmsg = 7 \"far two\" from udp.a6",
            "u: recvmsg = 10 \"near three\" from udp.b",
            "u: recvmmsg 2 = 2: 8 \"far four\" from udp.a6, 9 \"near five\" from udp.b",
            "c: getpeername = udp.a6",
            "c: recvmsg = 7 \"far six\" from udp.a6",
        ],
    )
}
