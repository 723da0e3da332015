//! Whether anything in a pod's namespace may have changed since the last look: a look that costs a few system calls a second
//! instead of a walk through its rules, routes and addresses.
//!
//! A netlink socket of the namespace hears of rules, routes and addresses; sysctls tell nobody, and are read.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use crate::sysctls::SYSCTLS;

/// `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_ROUTE`, and the groups
/// `RTNLGRP_IPV4_RULE` (8) and `RTNLGRP_IPV6_RULE` (19), which have no such name.
const GROUPS: u32 = 0x10 | 0x100 | 0x40 | 0x400 | 1 << 7 | 1 << 18;
/// Messages that are read at one look: what is left is heard at the next.
const MOST: usize = 256;

/// See the module.
#[derive(Debug)]
pub(super) struct Monitor {
    netlink: OwnedFd,
    sysctls: Vec<File>,
}

impl Monitor {
    /// Begins to listen. Call on a thread inside the namespace.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        let mut sysctls = Vec::new();
        for path in SYSCTLS {
            match File::open(path) {
                Ok(file) => sysctls.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { netlink, sysctls })
    }

    /// Whether a full look is worth its while.
    pub(super) fn has_changed(&self) -> bool {
        // Both, whatever the first says: what was heard is heard once.
        let heard = self.has_heard();
        let is_on = |file: &File| {
            let mut value = [0];
            file.read_at(&mut value, 0).is_ok_and(|length| length == 1 && value == *b"1")
        };
        heard || !self.sysctls.iter().all(is_on)
    }

    fn has_heard(&self) -> bool {
        let mut message = [0; 64];
        for read in 0..MOST {
            match recv(self.netlink.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return read > 0,
                // The queue overflowed, or the socket is of no use: look.
                Err(_error) => return true,
            }
        }
        true
    }
}
