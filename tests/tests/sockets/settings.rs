//! Sockets and pods in particular settings: bound to a device, without IPv6, older than the agent.

use anyhow::Result;

use crate::world::{FAMILIES, Way, World, contains, ended};

#[test]
fn a_socket_that_is_bound_to_a_device_reaches_services() -> Result<()> {
    let world = World::start()?;
    world.same(
        "socket tcp; set bindtodevice eth0; connect tcp.a; getpeername; http; \
         u: socket udp; u: set bindtodevice eth0; u: connect udp.b; u: getpeername; u: send one; u: recvmsg; \
         v: socket udp; v: set bindtodevice eth0; v: sendto udp.a two; v: recvmsg",
        &[
            "getpeername = tcp.a",
            "http = far sees self:p1",
            "u: recvmsg = 8 \"near one\" from udp.b",
            "v: recvmsg = 7 \"far two\" from udp.a",
        ],
    )?;
    world.same_over(
        &["v4"],
        "socket tcp; set bindtodevice lo; nonblock; connect tcp.a; u: socket udp; u: set bindtodevice lo; \
         u: connect udp.a; u: send one; u: getpeername",
        &[],
    )
}

#[test]
fn a_pod_without_ipv6_reaches_services_over_ipv4() -> Result<()> {
    let world = World::start()?;
    world.client.netns().run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"))??;
    let script = "socket tcp; connect tcp.a; getpeername; u: socket udp; u: connect udp.a; u: getpeername; \
                  u: send one; v: socket udp; v: sendto udp.a two";
    world.same_over(&["v6"], script, &["getpeername = ENOTCONN", "u: getpeername = ENOTCONN"])?;
    world.same_over(
        &["v4", "mapped"],
        &format!("{script}; http; u: recvmsg; v: recvmsg"),
        &["getpeername = tcp.a", "http = far sees self:p1", "u: recvmsg = 7 \"far one\" from udp.a"],
    )
}

#[test]
fn sockets_from_before_the_agent_are_left_alone() -> Result<()> {
    let mut world = World::without_agent()?;
    world.serve(&[])?;
    let script = "socket tcp; connect tcp.a; u: socket udp; u: connect udp.a; v: socket udp; v: sendto udp.b one; \
                  v: recvmsg; pause; getpeername; http; getsockname; u: getpeername; u: send two; u: recvmsg; \
                  u: connect udp.b; u: getpeername; u: send three; u: recvmsg; \
                  v: sendto udp.b four; v: recvmsg; connect unspec; connect tcp.b; getpeername; http";
    let expected = [
        "v: recvmsg = 8 \"near one\" from udp.b",
        "pause = 0",
        "getpeername = tcp.a",
        "http = far sees self:p1",
        "u: getpeername = udp.a",
        "u: recvmsg = 7 \"far two\" from udp.a",
        "u: getpeername = udp.b",
        "u: recvmsg = 10 \"near three\" from udp.b",
        "v: recvmsg = 9 \"near four\" from udp.b",
        "getpeername = tcp.b",
        "http = near sees self:p2",
    ];
    let mut scripts = Vec::new();
    for family in FAMILIES {
        let process = world.begin(Way::ToPods, family, script)?;
        process.wait_line("that it is paused", |line| line == "paused")?;
        scripts.push(process);
    }
    world.start_agent()?;
    for (process, family) in scripts.iter().zip(FAMILIES) {
        process.close_stdin();
        let lines = ended(process)?;
        contains(&lines, &expected).map_err(|error| error.context(family))?;
    }
    Ok(())
}

#[test]
fn nothing_is_kept_of_sockets_that_are_gone() -> Result<()> {
    let world = World::start()?;
    for family in FAMILIES {
        world.run(
            Way::ToServices,
            family,
            "socket tcp; connect tcp.a; http; close; y: socket tcp; y: connect closed.a; y: close; \
             z: socket tcp; z: nonblock; z: connect tcp.b; z: connect unspec; z: close; \
             u: socket udp; u: connect udp.a; u: sendto udp.b one; u: connect unspec; u: close; \
             n: socket tcp; n: connect tcp.nobody; n: close; m: socket udp; m: connect udp.nobody; m: close; \
             k: socket mptcp; k: connect tcp.a; k: http; k: close; l: socket mptcp; l: connect closed.a; l: close",
        )?;
    }
    world.keeps_nothing()
}

#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    let world = World::start()?;
    world.client.serve(&["--listen", "[::]:8080"])?;
    world.client.serve(&["--udp", "--listen", "[::]:5353"])?;
    world.same(
        "socket tcp; connect tcp.own; getpeername; getsockname; http; u: socket udp; u: connect udp.own; u: getpeername; \
         u: send one; u: recvmsg; v: socket udp; v: sendto udp.own two; v: recvmsg; c: socket tcp; c: connect closed.own; \
         c: getpeername",
        &[
            "getpeername = tcp.own",
            "getsockname = self:p1",
            "http = client sees self:p1",
            "u: recvmsg = 10 \"client one\" from udp.own",
            "v: recvmsg = 10 \"client two\" from udp.own",
            "c: connect closed.own = ECONNREFUSED",
        ],
    )
}
