//! The side that is connected to.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::{Context, Result};

use crate::{BUFFER, MESSAGE};

const STACK: usize = 64 * 1024;

pub(crate) fn accept(listen: SocketAddr, serve: impl Fn(TcpStream) + Clone + Send + 'static) -> Result<()> {
    for stream in listener(listen)?.incoming() {
        let (stream, serve) = (stream?, serve.clone());
        stream.set_nodelay(true)?;
        spawn(move || serve(stream))?;
    }
    Ok(())
}

fn listener(listen: SocketAddr) -> Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&listen.into()).with_context(|| format!("listen on {listen}"))?;
    socket.listen(4096)?;
    println!("listening");
    Ok(socket.into())
}

pub(crate) fn greet(listen: SocketAddr) -> Result<()> {
    let listener = listener(listen)?;
    loop {
        drop(listener.accept()?);
    }
}

pub(crate) fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut mode = [0];
    stream.read_exact(&mut mode)?;
    let mut message = [0; MESSAGE];
    if mode == *b"W" {
        let address = match stream.local_addr()?.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        return stream.write_all(&address.octets());
    }
    if mode == *b"C" {
        stream.read_exact(&mut message)?;
        return stream.write_all(&message);
    }
    if mode == *b"R" {
        loop {
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
        }
    }
    let mut buffer = vec![0; BUFFER];
    let mut total = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            read => total += read as u64,
        }
    }
}

pub(crate) fn relay(client: &TcpStream, target: SocketAddr) -> Result<()> {
    let server = TcpStream::connect(target)?;
    server.set_nodelay(true)?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let up = thread::Builder::new().stack_size(STACK).spawn(move || copy(&from, &to))?;
    copy(&server, client);
    drop(up.join());
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // A socket that is gone needs no FIN.
    let _ = to.shutdown(Shutdown::Write);
}

pub(crate) fn udp_serve(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).with_context(|| format!("listen on {listen}"))?;
    println!("listening");
    let mut datagram = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut datagram)?;
        // A client that is gone needs no answer.
        let _ = socket.send_to(&datagram[..length], from);
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().stack_size(STACK).spawn(work).context("start a thread").map(drop)
}
