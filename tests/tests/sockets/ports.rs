//! Sockets that have a local address before they connect, and that share one.

use anyhow::Result;

use crate::world::World;

#[test]
fn a_socket_that_is_bound_keeps_its_address() -> Result<()> {
    World::start()?.same(
        "socket tcp; bind self:0; getsockname; connect tcp.a; getsockname; getpeername; http; \
         y: socket tcp; y: bind any:0; y: connect tcp.b; y: getsockname; y: http; \
         u: socket udp; u: bind self:0; u: connect udp.a; u: getsockname; u: send hello; u: recvmsg; \
         v: socket udp; v: bind self:0; v: sendto udp.b hello; v: recvmsg; v: getsockname; \
         w: socket tcp; w: set bind-no-port; w: bind self:0; w: getsockname; w: connect tcp.a; w: getsockname; w: http",
        &[
            "getsockname = self:p1",
            "connect tcp.a = 0",
            "getsockname = self:p1",
            "getpeername = tcp.a",
            "http = far sees self:p1",
            "y: http = near sees self:p2",
            "u: recvmsg = 9 \"far hello\" from udp.a",
            "v: recvmsg = 10 \"near hello\" from udp.b",
        ],
    )
}

#[test]
fn one_source_port_reaches_two_services() -> Result<()> {
    World::start()?.same(
        "socket tcp; set reuseaddr; bind self:0; x: socket tcp; x: set reuseaddr; x: bind self:=; connect tcp.a; http; \
         x: connect tcp.b; x: http; getpeername; x: getpeername; x: getsockname; \
         u: socket udp; u: set reuseport; u: bind self:0; u: connect udp.a; \
         v: socket udp; v: set reuseport; v: bind self:=u; v: connect udp.b; \
         u: send one; u: recvmsg; v: send two; v: recvmsg; u: getpeername; v: getpeername",
        &[
            "http = far sees self:p1",
            "x: connect tcp.b = 0",
            "x: http = near sees self:p1",
            "getpeername = tcp.a",
            "x: getpeername = tcp.b",
            "u: recvmsg = 7 \"far one\" from udp.a",
            "v: recvmsg = 8 \"near two\" from udp.b",
        ],
    )
}

#[test]
fn two_connections_from_one_source_port_to_one_service_are_refused_as_to_one_pod() -> Result<()> {
    World::start()?.same(
        "socket tcp; set reuseaddr; bind self:0; x: socket tcp; x: set reuseaddr; x: bind self:=; connect tcp.a; \
         x: connect tcp.a; x: getpeername; http",
        &["connect tcp.a = 0", "x: connect tcp.a = EADDRNOTAVAIL", "http = far sees self:p1"],
    )
}

#[test]
fn servers_that_share_a_port_are_all_reached_through_their_service() -> Result<()> {
    let mut world = World::without_agent()?;
    for name in ["one", "two", "three"] {
        for kind in [&["--listen", "[::]:8080"][..], &["--udp", "--listen", "[::]:5353"]] {
            let flags = [&["serve", "--reuse-port", "--name", name], kind].concat();
            let server = world.far.peer(flags[0], &flags[1..])?;
            server.wait_line("that it listens", |line| line.contains("listening"))?;
        }
    }
    world.start_agent()?;
    for (tcp, udp) in [("10.96.0.11:80", "10.96.0.11:53"), ("[fd00:96::b]:80", "[fd00:96::b]:53")] {
        // By the hash of both ends: that one of three is missed by 200 has p = 3 * (2/3)^200.
        let streams = world.client.connect(&[tcp, "--count", "200", "--concurrency", "8"])?;
        let datagrams = world.client.udp(&[udp, "--count", "200", "--fresh"])?;
        for summary in [streams, datagrams] {
            assert_eq!((summary.ok, summary.failed), (200, 0), "{summary:?}");
            assert_eq!(summary.by_name.len(), 3, "{summary:?}");
            assert_eq!(summary.getpeername.len(), 1, "{summary:?}");
        }
    }
    Ok(())
}
