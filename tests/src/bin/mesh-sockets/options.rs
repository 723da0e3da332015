//! Socket options by name.

use std::os::fd::RawFd;

use anyhow::{Context, Result, bail};
use libc::{c_int, socklen_t};
use nix::errno::Errno;

use crate::script::Statement;
use crate::sockaddr::Family;
use crate::sockets::{PATIENCE_MS, outcome};

/// `UDP_SEGMENT` (`linux/udp.h`).
pub(crate) const UDP_SEGMENT: c_int = 103;
/// `TCPI_OPT_SYN_DATA`: the peer took the data that came with the SYN.
const SYN_DATA: u8 = 32;
/// `MPTCP_INFO`.
const MPTCP_INFO: c_int = 1;
const SOL_MPTCP: c_int = 284;

/// No call blocks for ever.
pub(crate) fn limit_blocking(fd: RawFd) {
    let seconds = i64::from(PATIENCE_MS) / 1000;
    // struct timeval
    let patience = [seconds.to_ne_bytes(), 0_i64.to_ne_bytes()].concat();
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let result = write(fd, libc::SOL_SOCKET, option, &patience);
        assert_eq!(result, Ok(()), "every socket has timeouts");
    }
}

/// `set OPTION [VALUE]`.
pub(crate) fn set(family: Family, fd: RawFd, statement: &Statement) -> Result<String> {
    let name = statement.arg(0)?;
    if name == "bindtodevice" {
        let device = statement.arg(1)?.as_bytes();
        return Ok(outcome(write(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device).map(|()| 0)));
    }
    let value: c_int = statement.args.get(1).map_or(Ok(1), |word| word.parse()).context("a number")?;
    // An IPv6 socket that talks to IPv4 has the options of both.
    let by_family = |v4: (c_int, c_int), v6: (c_int, c_int)| match family {
        Family::V4 => vec![v4],
        Family::V6 => vec![v6],
        Family::Mapped => vec![v4, v6],
    };
    let (ip, ip6) = (libc::IPPROTO_IP, libc::IPPROTO_IPV6);
    let options = match name {
        "reuseaddr" => vec![(libc::SOL_SOCKET, libc::SO_REUSEADDR)],
        "reuseport" => vec![(libc::SOL_SOCKET, libc::SO_REUSEPORT)],
        "broadcast" => vec![(libc::SOL_SOCKET, libc::SO_BROADCAST)],
        "fastopen" => vec![(libc::IPPROTO_TCP, libc::TCP_FASTOPEN)],
        "fastopen-connect" => vec![(libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT)],
        "segment" => vec![(libc::IPPROTO_UDP, UDP_SEGMENT)],
        "cork" => vec![(libc::IPPROTO_UDP, 1)],
        "v6only" => vec![(ip6, libc::IPV6_V6ONLY)],
        "recverr" => by_family((ip, libc::IP_RECVERR), (ip6, libc::IPV6_RECVERR)),
        "mtu-discover" => by_family((ip, libc::IP_MTU_DISCOVER), (ip6, libc::IPV6_MTU_DISCOVER)),
        "bind-no-port" => vec![(ip, libc::IP_BIND_ADDRESS_NO_PORT)],
        other => bail!("no option is called {other}"),
    };
    let results = options.into_iter().map(|(level, option)| write(fd, level, option, &value.to_ne_bytes()));
    Ok(outcome(results.collect::<nix::Result<()>>().map(|()| 0)))
}

/// `get OPTION`.
pub(crate) fn get(fd: RawFd, statement: &Statement) -> Result<String> {
    Ok(match statement.arg(0)? {
        // The error that is pending, taken.
        "error" => match integer(fd, libc::SOL_SOCKET, libc::SO_ERROR) {
            Ok(error) if error != 0 => format!("{:?}", Errno::from_raw(error)),
            result => outcome(result),
        },
        "protocol" => outcome(integer(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)),
        "mtu4" => outcome(integer(fd, libc::IPPROTO_IP, libc::IP_MTU)),
        "mtu6" => outcome(integer(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU)),
        // Whether the peer took what came with the SYN.
        "syn-data" => {
            let mut info = [0_u8; 256];
            // tcpi_options: `struct tcp_info` (linux/tcp.h), byte 5.
            outcome(read(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).map(|_| info[5] & SYN_DATA != 0))
        }
        // Whether both ends speak it: a socket that fell back to TCP has no such option.
        "mptcp" => read(fd, SOL_MPTCP, MPTCP_INFO, &mut [0; 256]).map_or("no", |_| "yes").to_owned(),
        other => bail!("no option is called {other}"),
    })
}

fn write(fd: RawFd, level: c_int, option: c_int, value: &[u8]) -> nix::Result<()> {
    let length = socklen_t::try_from(value.len()).unwrap_or(0);
    // SAFETY: as many bytes as the length says.
    let result = unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), length) };
    Errno::result(result).map(drop)
}

fn integer(fd: RawFd, level: c_int, option: c_int) -> nix::Result<c_int> {
    let mut bytes = [0; 4];
    read(fd, level, option, &mut bytes)?;
    Ok(c_int::from_ne_bytes(bytes))
}

fn read(fd: RawFd, level: c_int, option: c_int, bytes: &mut [u8]) -> nix::Result<usize> {
    let mut length = socklen_t::try_from(bytes.len()).unwrap_or(0);
    // SAFETY: room and its length.
    let result = unsafe { libc::getsockopt(fd, level, option, bytes.as_mut_ptr().cast(), &raw mut length) };
    Errno::result(result)?;
    Ok(length as usize)
}
