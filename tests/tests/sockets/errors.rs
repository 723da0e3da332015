//! What ICMP says of a datagram reaches the socket that sent it.

use anyhow::{Context, Result};

use crate::world::{FAMILIES, Way, World, contains, equal};

#[test]
fn a_closed_port_behind_a_service_is_told_to_a_connected_socket() -> Result<()> {
    World::start()?.same(
        "socket udp; connect closed.a; send hello; recv; get error; send again; poll err; get error; getpeername; \
         connect closed.b; send hello; recv; getpeername",
        &[
            "send hello = 5",
            "recv = ECONNREFUSED",
            "poll err = err",
            "get error = ECONNREFUSED",
            "getpeername = closed.a",
            "recv = ECONNREFUSED",
            "getpeername = closed.b",
        ],
    )
}

#[test]
fn a_closed_port_behind_a_service_is_told_to_an_unconnected_socket_that_wants_to_know() -> Result<()> {
    World::start()?.same(
        "socket udp; set recverr; sendto closed.a hello; poll err; get error; \
         sendto udp.a one; recvmsg",
        &["poll err = err", "get error = ECONNREFUSED", "recvmsg = 7 \"far one\" from udp.a"],
    )
}

/// No hook of the kernel sees what is read from the error queue: there, and there alone, it is the pod that has a name.
#[test]
fn the_error_queue_holds_the_same_but_for_the_pods_address() -> Result<()> {
    let world = World::start()?;
    for family in FAMILIES {
        for call in ["connect closed.a; send hello", "sendto closed.a hello"] {
            let script = format!(
                "socket udp; set recverr; {call}; poll err; recvmsg errqueue; recvmsg errqueue; get error"
            );
            let without = world.run(Way::Without, family, &script)?;
            contains(&without, &["poll err = err", "recvmsg errqueue = EAGAIN"]).context(family)?;
            assert!(without.iter().any(|line| line.contains("errqueue ECONNREFUSED origin")), "{without:#?}");
            let with = world.run(Way::ToServices, family, &script)?;
            let named = |line: &String| line.replace("behind:9", "closed.a").replace("behind:0", "a:0");
            equal(&without, &with.iter().map(named).collect::<Vec<_>>()).context(family)?;
        }
    }
    Ok(())
}
