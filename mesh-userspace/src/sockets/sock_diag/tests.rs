use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream, UdpSocket};

use super::*;
use crate::socket::cookie;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What `inet_diag_bc_run` (`net/ipv4/inet_diag.c`) says of a socket.
fn accepts(code: &[u8], family: i32, peer: SocketAddr) -> bool {
    let octets = match peer.ip() {
        IpAddr::V4(ip) if family == libc::AF_INET6 => ip.to_ipv6_mapped().octets().to_vec(),
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut left = i64::try_from(code.len()).unwrap();
    while left > 0 {
        let operation = &code[code.len() - usize::try_from(left).unwrap()..];
        let (yes, no) =
            (i64::from(operation[1]), i64::from(u16::from_ne_bytes([operation[2], operation[3]])));
        let matched = match operation[0] {
            JUMP => false,
            DESTINATION => {
                let (of, bits) = (i32::from(operation[4]), usize::from(operation[5]));
                let port = i32::from_ne_bytes(operation[8..12].try_into().unwrap());
                let wanted = &operation[12..12 + bits / 8];
                let is_mapped =
                    family == libc::AF_INET6 && octets[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255];
                port == i32::from(peer.port())
                    && match (of == family, of == libc::AF_INET && is_mapped) {
                        (true, _) => *wanted == octets,
                        (false, true) => *wanted == octets[12..],
                        (false, false) => false,
                    }
            }
            other => panic!("operation {other}"),
        };
        left -= if matched { yes } else { no };
    }
    left == 0
}

#[test]
fn a_filter_lets_through_what_it_names() {
    let (v4, v6) = (libc::AF_INET, libc::AF_INET6);
    let all = ["10.0.0.1:80", "[fd00::1]:80", "10.0.0.2:81"].map(address);
    for count in 1..=all.len() {
        let code = bytecode(&all[..count]);
        for (index, to) in all.iter().enumerate() {
            let families: &[i32] = if to.is_ipv4() { &[v4, v6] } else { &[v6] };
            for family in families {
                assert_eq!(accepts(&code, *family, *to), index < count, "{to} of the first {count}");
            }
        }
        for other in ["10.0.0.1:81", "10.0.0.3:80"].map(address) {
            assert!(!accepts(&code, v4, other) && !accepts(&code, v6, other), "{other}");
        }
        assert!(!accepts(&code, v6, address("[fd00::1]:81")));
    }
}

#[test]
fn messages_are_taken_apart() {
    let done = |kind: i32, number: i32| message(u16::try_from(kind).unwrap(), 0, &number.to_ne_bytes());
    let bytes = [message(BY_FAMILY, 0, &[1, 2, 3, 4]), done(libc::NLMSG_DONE, 0)].concat();
    let taken: Vec<_> = Messages(&bytes).map(Result::unwrap).collect();
    assert_eq!(taken, [Message::Other(&[1, 2, 3, 4]), Message::Done(0)]);
    let refused = done(libc::NLMSG_ERROR, -libc::ENOENT);
    assert_eq!(Messages(&refused).next().unwrap().unwrap(), Message::Done(libc::ENOENT));
    let mut overlong = done(libc::NLMSG_DONE, 0);
    overlong[0] = 200;
    for broken in [&overlong[..], &refused[..10], &[0; 16]] {
        let taken: Vec<_> = Messages(broken).collect();
        assert!(taken.len() == 1 && taken[0].is_err(), "{broken:?}");
    }
}

fn find(to: &[SocketAddr], protocol: Protocol, of: u64) -> Option<Connected> {
    let mut found = None;
    SockDiag::open()
        .unwrap()
        .connected(protocol, to, |socket| {
            if socket.cookie() == of {
                found = Some(socket);
            }
        })
        .unwrap();
    found
}

/// A client and what it is connected to, as an application would have it.
fn ends(listen: &str, connect: &str) -> (TcpListener, TcpStream, SocketAddr) {
    let listener = TcpListener::bind(listen).unwrap();
    let to = SocketAddr::new(address(connect).ip(), listener.local_addr().unwrap().port());
    let client = if connect.starts_with("[::ffff") {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        socket.connect(&to.into()).unwrap();
        socket.into()
    } else {
        TcpStream::connect(to).unwrap()
    };
    (listener, client, SocketAddr::new(to.ip().to_canonical(), to.port()))
}

#[test]
fn a_connection_is_found_and_ended_and_no_other() {
    for (listen, connect) in
        [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0"), ("[::]:0", "[::ffff:127.0.0.1]:0")]
    {
        let (listener, mut client, to) = ends(listen, connect);
        let (mut server, _) = listener.accept().unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let many: Vec<SocketAddr> =
            std::iter::once(to).chain((1..200).map(|port| SocketAddr::new(to.ip(), port))).collect();
        let found = find(&[to], Protocol::Tcp, cookie(&client).unwrap()).unwrap();
        assert_eq!(find(&many, Protocol::Tcp, cookie(&client).unwrap()), Some(found), "without a filter");
        assert_eq!(find(&many[1..60], Protocol::Tcp, cookie(&client).unwrap()), None, "elsewhere");
        assert_eq!(found.peer(), to, "{connect}");
        assert_eq!(found.source().port(), client.local_addr().unwrap().port());
        let mut diag = SockDiag::open().unwrap();
        let another = Connected {
            id: {
                let mut id = found.id;
                id[40] ^= 1;
                id
            },
            ..found
        };
        assert_eq!(diag.end(&another).unwrap(), End::Absent, "another cookie");
        assert_eq!(diag.end(&found).unwrap(), End::Ended);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
        assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(diag.end(&found).unwrap(), End::Absent, "a second time");
        assert!(other.take_error().unwrap().is_none());
    }
}

#[test]
fn a_connecting_socket_is_ended() {
    // A listener whose queue is full answers no SYN.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&address("127.0.0.1:0").into()).unwrap();
    listener.listen(0).unwrap();
    let to = listener.local_addr().unwrap().as_socket().unwrap();
    let connect = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.connect(&to.into()).unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
        socket
    };
    // On loopback a SYN is answered, or not, before connect returns.
    let sockets: Vec<_> = (0..8).map(|_| connect()).collect();
    let last = sockets.last().unwrap();
    assert!(last.peer_addr().is_err(), "not connected");
    let found = find(&[to], Protocol::Tcp, cookie(last).unwrap()).unwrap();
    assert_eq!(SockDiag::open().unwrap().end(&found).unwrap(), End::Ended);
    assert_eq!(last.take_error().unwrap().unwrap().kind(), ErrorKind::ConnectionAborted);
}

#[test]
fn a_datagram_socket_is_let_go_and_connects_anew() {
    for (bind, loopback) in
        [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0"), ("[::]:0", "[::ffff:127.0.0.1]:0")]
    {
        let servers = [(); 2].map(|()| UdpSocket::bind(bind).unwrap());
        let [first, second] = servers
            .each_ref()
            .map(|server| SocketAddr::new(address(loopback).ip(), server.local_addr().unwrap().port()));
        let client = UdpSocket::bind(bind).unwrap();
        client.connect(first).unwrap();
        let peer = SocketAddr::new(first.ip().to_canonical(), first.port());
        let found = find(&[peer], Protocol::Udp, cookie(&client).unwrap()).unwrap();
        assert_eq!(SockDiag::open().unwrap().end(&found).unwrap(), End::Ended);
        assert_eq!(client.recv(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
        client.connect(second).unwrap();
        client.send(b"again").unwrap();
        let mut buffer = [0; 8];
        let (length, _) = servers[1].recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"again");
        assert_eq!(find(&[peer], Protocol::Udp, cookie(&client).unwrap()), None);
    }
}
