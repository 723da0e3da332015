//! The same calls by way of `io_uring`.

use anyhow::Result;

use crate::world::World;

#[test]
fn io_uring_reaches_services_as_calls_do() -> Result<()> {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    if disabled.trim() != "0" {
        // The administrator's will: no application of this machine can have it either.
        eprintln!("kernel.io_uring_disabled is {}: nothing to compare", disabled.trim());
        return Ok(());
    }
    World::start()?.same(
        "socket tcp; uring-connect tcp.a; getpeername; http; uring-send x; \
         y: socket tcp; y: uring-connect closed.a; y: getpeername; \
         n: socket tcp; n: nonblock; n: uring-connect tcp.b; n: poll out; n: getpeername; \
         u: socket udp; u: uring-connect udp.a; u: uring-send one; u: uring-recvmsg; u: getpeername; \
         v: socket udp; v: uring-sendmsg udp.a two; v: uring-recvmsg; v: uring-sendmsg udp.b three; v: uring-recvmsg; \
         u: uring-connect udp.b; u: uring-sendmsg udp.b four; u: uring-recvmsg; u: uring-connect unspec; u: getpeername",
        &[
            "uring-connect tcp.a = 0",
            "getpeername = tcp.a",
            "http = far sees self:p1",
            "y: uring-connect closed.a = ECONNREFUSED",
            "n: getpeername = tcp.b",
            "u: uring-recvmsg = 7 \"far one\" from udp.a",
            "u: getpeername = udp.a",
            "v: uring-recvmsg = 7 \"far two\" from udp.a",
            "v: uring-recvmsg = 10 \"near three\" from udp.b",
            "u: uring-recvmsg = 9 \"near four\" from udp.b",
            "u: getpeername = ENOTCONN",
        ],
    )
}
