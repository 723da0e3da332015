//! The self-test's near end: a connection from inside a pod, which must arrive at the agent.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::NetNs;
use crate::datapath::Datapath;
use crate::socket::cookie;

const PATIENCE: Duration = Duration::from_millis(500);

/// Connects to `address` from inside the pod, captured like an application's connection, and reads `token` back.
pub fn run(datapath: &Datapath, netns: &NetNs, address: SocketAddr, token: [u8; 16]) -> Result<(), String> {
    if !datapath.sees_agent() {
        return Err(
            "the agent is not below the cgroup that it serves, so its own connections cannot be captured"
                .to_owned(),
        );
    }
    let text = |error: io::Error| error.to_string();
    let socket =
        netns.visit(|| Socket::new(Domain::for_address(address), Type::STREAM, None)).map_err(text)?;
    datapath.set_canary(Some(cookie(&socket).map_err(text)?)).map_err(|error| error.to_string())?;
    let result = exchange(socket, address, token);
    datapath.set_canary(None).map_err(|error| error.to_string())?;
    result
}

fn exchange(socket: Socket, address: SocketAddr, token: [u8; 16]) -> Result<(), String> {
    socket.connect_timeout(&address.into(), PATIENCE).map_err(|error| format!("connect: {error}"))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    let mut read = [0; 16];
    stream.read_exact(&mut read).map_err(|error| format!("read: {error}"))?;
    if read == token { Ok(()) } else { Err("somebody else answered".to_owned()) }
}
