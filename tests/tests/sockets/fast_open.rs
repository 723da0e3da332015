//! TCP Fast Open: data in the SYN.

use anyhow::Result;

use crate::world::World;

#[test]
fn data_goes_with_the_syn() -> Result<()> {
    let mut world = World::without_agent()?;
    // Both sides willing, without a cookie: so that the first connection has data in its SYN already.
    for (pod, value) in
        [(&world.client, "5"), (&world.far, "515"), (&world.near, "515"), (&world.other, "515")]
    {
        pod.netns().run(move || std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", value))??;
    }
    world.serve(&["--fast-open"])?;
    world.start_agent()?;
    let request = "GET/HTTP/1.1";
    world.same(
        &format!(
            "socket tcp; sendto tcp.a {request} fastopen; getpeername; get error; http; get syn-data; \
             y: socket tcp; y: set fastopen-connect; y: connect tcp.b; y: getpeername; y: http; y: getpeername; \
             y: get syn-data; z: socket tcp; z: sendmsg tcp.other {request} fastopen; z: getpeername; z: http; \
             n: socket tcp; n: nonblock; n: sendto tcp.a {request} fastopen; n: poll out; n: getpeername; n: get error; \
             n: get syn-data; c: socket tcp; c: sendto closed.a {request} fastopen; c: getpeername"
        ),
        &[
            "getpeername = tcp.a",
            "get syn-data = true",
            "y: getpeername = tcp.b",
            "y: get syn-data = true",
            "z: getpeername = tcp.other",
            "n: getpeername = tcp.a",
            "n: get syn-data = true",
        ],
    )?;
    world.sees(
        &format!("socket tcp; sendto tcp.nobody {request} fastopen; getpeername; get error"),
        &[
            &format!("sendto tcp.nobody {request} fastopen = ECONNREFUSED"),
            "getpeername = ENOTCONN",
            "get error = 0",
        ],
    )
}
