//! One socket of datagrams and many services.

use anyhow::Result;

use crate::world::{World, many};

#[test]
fn datagrams_to_many_services_at_once_come_back_from_each() -> Result<()> {
    let world = World::start()?;
    let ports: Vec<String> = many().map(|(_, port, _)| format!("[::]:{port}")).collect();
    let listen: Vec<&str> = ports.iter().flat_map(|port| ["--listen", port]).collect();
    world.far.serve(&[&["--udp"][..], &listen].concat())?;
    let numbers: Vec<String> = many().map(|(number, ..)| number.to_string()).collect();
    let all: Vec<String> = numbers.iter().map(|number| format!("{number}.many=x")).collect();
    let one: Vec<String> = numbers.iter().map(|number| format!("sendto {number}.many y; recvmsg")).collect();
    let count = numbers.len();
    world.same(
        &format!("socket udp; sendmmsg {}; recvmmsg {count}; {}", all.join(" "), one.join("; ")),
        &["recvmsg = 5 \"far y\" from 0.many", "recvmsg = 5 \"far y\" from 19.many"],
    )
}
