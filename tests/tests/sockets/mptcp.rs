//! MPTCP on either side, or both.

use anyhow::Result;

use crate::world::World;

#[test]
fn mptcp_reaches_a_service_whatever_its_pods_speak() -> Result<()> {
    for (flags, spoken) in [(&["--mptcp"][..], "yes"), (&[], "no")] {
        let mut world = World::without_agent()?;
        world.serve(flags)?;
        world.start_agent()?;
        world.same(
            "socket mptcp; connect tcp.a; getpeername; getsockname; http; get mptcp; get protocol; http; \
             y: socket mptcp; y: nonblock; y: connect tcp.b; y: poll out; y: get error; y: getpeername; \
             z: socket mptcp; z: connect closed.a; z: getpeername; z: connect tcp.b; z: getpeername; \
             p: socket tcp; p: connect tcp.a; p: getpeername; p: http",
            &[
                "connect tcp.a = 0",
                "getpeername = tcp.a",
                "http = far sees self:p1",
                &format!("get mptcp = {spoken}"),
                "get protocol = 262",
                "y: getpeername = tcp.b",
                "z: connect closed.a = ECONNREFUSED",
                "p: getpeername = tcp.a",
            ],
        )?;
    }
    Ok(())
}
