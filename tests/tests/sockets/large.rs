//! Datagrams beyond the MTU, both ways; segmentation by the kernel; a path that narrows.

use anyhow::{Context, Result};

use crate::world::{FAMILIES, Way, World, contains, equal};

#[test]
fn datagrams_are_fragmented_both_ways() -> Result<()> {
    World::start()?.same(
        "socket udp; connect udp.a; send #60000; recvmsg; sendto udp.b #9000; connect udp.b; send #9000; recvmsg; \
         y: socket udp; y: sendto udp.a #65000; y: recvmsg; y: sendto udp.a #65600",
        &["send #60000 = 60000", "y: sendto udp.a #65000 = 65000", "y: sendto udp.a #65600 = EMSGSIZE"],
    )
}

#[test]
fn datagrams_are_cut_by_the_kernel() -> Result<()> {
    World::start()?.same(
        "socket udp; connect udp.a; set segment 1000; send #2500; recvmmsg 3; \
         y: socket udp; y: sendmsg udp.a #2500 segment=1000; y: recvmmsg 3; y: sendmsg udp.b #1200 segment=1000; \
         y: recvmmsg 2",
        &["set segment 1000 = 0", "send #2500 = 2500", "y: sendmsg udp.a #2500 segment=1000 = 2500"],
    )
}

#[test]
fn a_path_that_narrows_is_noticed() -> Result<()> {
    let world = World::start()?;
    // The node's way to the other node takes less than the pod's own link.
    world.node.netns().ip("route replace 10.244.2.0/24 via 172.30.0.2 dev eth0 mtu lock 1300\n\
         route replace fd00:244:2::/64 via fd00:30::2 dev eth0 mtu lock 1300\n")?;
    for family in FAMILIES {
        let option = if family == "v6" { "mtu6" } else { "mtu4" };
        let script = format!(
            "socket udp; connect udp.a; set mtu-discover 2; send #1400; poll err; get error; get {option}; send #1400; \
             send #1200; recvmsg; set mtu-discover 1; send #5000; recvmsg; \
             y: socket udp; y: set mtu-discover 2; y: sendto udp.a #1400; y: sendto udp.a #1200; y: recvmsg"
        );
        let expected = [
            "send #1400 = 1400",
            "poll err = err",
            "get error = EMSGSIZE",
            &format!("get {option} = 1300"),
            "send #1400 = EMSGSIZE",
            "send #1200 = 1200",
            "send #5000 = 5000",
            "y: sendto udp.a #1400 = EMSGSIZE",
            "y: sendto udp.a #1200 = 1200",
        ];
        let run = |way| {
            // What a path takes is kept with its route.
            world
                .client
                .netns()
                .ip("route del default via 10.244.1.1\nroute add default via 10.244.1.1\n\
                 route del default via fd00:244:1::1\nroute add default via fd00:244:1::1\n")?;
            world.run(way, family, &script)
        };
        let without = run(Way::Without)?;
        contains(&without, &expected).context(family)?;
        for way in [Way::ToPods, Way::ToServices] {
            equal(&without, &run(way)?).with_context(|| format!("{family} {way:?}"))?;
        }
    }
    Ok(())
}
