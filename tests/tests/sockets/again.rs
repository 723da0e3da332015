//! Sockets that are used again, where what they did before must not show.

use anyhow::{Context, Result};

use crate::world::World;

#[test]
fn a_connect_that_fails_before_anything_is_sent_leaves_nothing() -> Result<()> {
    let world = World::start()?;
    for kind in ["tcp", "mptcp"] {
        world.same(
            &format!(
                "h: socket tcp; h: set reuseaddr; h: bind self:0; h: connect tcp.a; \
                 socket {kind}; set reuseaddr; bind self:=h; connect tcp.a; getpeername; connect tcp.other; getpeername; \
                 http"
            ),
            &["connect tcp.a = EADDRNOTAVAIL", "connect tcp.other = 0", "getpeername = tcp.other"],
        )?;
        world.same_over(
            &["mapped"],
            &format!(
                "h: socket {kind}; h: set v6only; h: connect tcp.a; h: getpeername; h: connect unspec; h: close; \
                 socket {kind}; connect tcp.a; http"
            ),
            &["h: connect tcp.a = ENETUNREACH", "h: getpeername = ENOTCONN"],
        )?;
        world.keeps_nothing().context(kind)?;
    }
    Ok(())
}

#[test]
fn a_connect_that_fails_leaves_the_association_before_it() -> Result<()> {
    let world = World::start()?;
    world.client.netns().ip("route add unreachable 10.99.0.0/16\nroute add unreachable fd00:99::/32\n")?;
    for (family, nowhere) in [("v4", "10.99.0.1:53"), ("v6", "[fd00:99::1]:53"), ("mapped", "10.99.0.1:53")] {
        world.same_over(
            &[family],
            &format!("socket udp; connect udp.a; connect {nowhere}; getpeername; send one; recvmsg"),
            &["getpeername = udp.a", "recvmsg = 7 \"far one\" from udp.a"],
        )?;
    }
    world.sees(
        "socket udp; connect udp.a; connect udp.nobody; getpeername; send one; recvmsg",
        &["connect udp.nobody = ECONNREFUSED", "getpeername = udp.a", "recvmsg = 7 \"far one\" from udp.a"],
    )
}

#[test]
fn a_pod_that_is_called_by_its_own_address_answers_from_there_after_its_service_was_used() -> Result<()> {
    let world = World::start()?;
    world.sees(
        "socket udp; connect udp.a; send one; recvmsg; connect unspec; sendto udp.behind two; recvmsg",
        &["recvmsg = 7 \"far one\" from udp.a", "recvmsg = 7 \"far two\" from udp.behind"],
    )?;
    world.sees(
        "socket udp; connect udp.a; send one; recvmsg; connect udp.behind; getpeername; send two; recvmsg",
        &[
            "recvmsg = 7 \"far one\" from udp.a",
            "getpeername = udp.behind",
            "recvmsg = 7 \"far two\" from udp.behind",
        ],
    )?;
    world.sees(
        "socket udp; sendto udp.a one; recvmsg; sendto udp.behind two; recvmsg; sendto udp.a three; recvmsg",
        &[
            "recvmsg = 7 \"far one\" from udp.a",
            "recvmsg = 7 \"far two\" from udp.behind",
            "recvmsg = 9 \"far three\" from udp.a",
        ],
    )
}

#[test]
fn an_answer_that_waits_while_its_socket_connects_elsewhere_comes_from_whom_it_came() -> Result<()> {
    World::start()?.same(
        "socket udp; connect udp.a; send one; poll in; connect udp.b; recvmsg; getpeername; send two; recvmsg; \
         send three; poll in; connect unspec; recvmsg; connect udp.a; send four; poll in; connect udp.other; recvmsg",
        &[
            "recvmsg = 7 \"far one\" from udp.a",
            "getpeername = udp.b",
            "recvmsg = 8 \"near two\" from udp.b",
            "recvmsg = 10 \"near three\" from udp.b",
            "recvmsg = 8 \"far four\" from udp.a",
        ],
    )
}
