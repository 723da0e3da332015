//! The sockets of a script, and the calls that make, name, join and end them.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::names::Names;
use crate::script::Statement;
use crate::sockaddr::{Family, Raw};
use crate::{echo, message, options, stream, uring};

/// How long a call may block. Nothing that is expected takes so long: it ends what never comes.
pub(crate) const PATIENCE_MS: u16 = 5_000;

/// All that a script has made.
pub(crate) struct Sockets {
    pub(crate) family: Family,
    pub(crate) names: Names,
    open: HashMap<String, OwnedFd>,
}

/// What a call returned, in words: its value, or its error's name.
pub(crate) fn outcome<T: Display>(result: nix::Result<T>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(errno) => format!("{errno:?}"),
    }
}

impl Sockets {
    pub(crate) fn new(family: Family, names: Names) -> Self {
        Self { family, names, open: HashMap::new() }
    }

    /// Makes one call.
    ///
    /// # Errors
    ///
    /// The script is wrong. What the kernel says is an outcome.
    pub(crate) fn call(&mut self, statement: &Statement) -> Result<String> {
        match statement.call.as_str() {
            "socket" => return self.open(statement),
            "pause" => return pause(),
            "close" => {
                drop(self.open.remove(&statement.socket).context("no such socket")?);
                return Ok("0".to_owned());
            }
            _ => {}
        }
        let fd = self.fd(&statement.socket)?;
        match statement.call.as_str() {
            "bind" => {
                let address = Raw::new(self.bind_address(statement.arg(0)?)?);
                // SAFETY: an address and its length.
                let result = unsafe { libc::bind(fd, address.as_ptr(), address.length) };
                Ok(outcome(Errno::result(result)))
            }
            "connect" => {
                let address = self.destination(statement)?;
                // SAFETY: at least as many bytes as the length says.
                let result = unsafe { libc::connect(fd, address.as_ptr(), address.length) };
                Ok(outcome(Errno::result(result)))
            }
            "getpeername" => Ok(self.name(fd, libc::getpeername)),
            "getsockname" => Ok(self.name(fd, libc::getsockname)),
            "shutdown" => {
                // SAFETY: plain integers.
                let result = unsafe { libc::shutdown(fd, libc::SHUT_WR) };
                Ok(outcome(Errno::result(result)))
            }
            "listen" => {
                // SAFETY: plain integers.
                let result = unsafe { libc::listen(fd, 8) };
                Ok(outcome(Errno::result(result)))
            }
            "accept" => Ok(self.accept(fd, statement.arg(0)?)),
            "nonblock" => Ok(outcome(fcntl(borrowed(fd), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)))),
            "poll" => events(fd, statement),
            "http" => stream::http(self, fd),
            "sendecho" | "recvecho" => echo::call(self, fd, statement),
            "set" => options::set(self.family, fd, statement),
            "get" => options::get(fd, statement),
            call if call.starts_with("uring-") => uring::call(self, fd, statement),
            _ => message::call(self, fd, statement),
        }
    }

    fn open(&mut self, statement: &Statement) -> Result<String> {
        let protocol = statement.args.get(1).map(|word| word.parse().context("a protocol's number"));
        let (kind, default) = match statement.arg(0)? {
            "tcp" => (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            "mptcp" => (libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
            "sctp" => (libc::SOCK_STREAM, libc::IPPROTO_SCTP),
            "seqpacket" => (libc::SOCK_SEQPACKET, 0),
            "udp" => (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
            "udplite" => (libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
            "icmp" if self.family == Family::V4 => (libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
            "icmp" => (libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
            "raw" => (libc::SOCK_RAW, libc::IPPROTO_RAW),
            other => bail!("no kind of socket is called {other}"),
        };
        let protocol = protocol.transpose()?.unwrap_or(default);
        // SAFETY: plain integers.
        let fd = unsafe { libc::socket(self.family.domain(), kind | libc::SOCK_CLOEXEC, protocol) };
        Ok(outcome(Errno::result(fd).map(|fd| self.keep(&statement.socket, fd))))
    }

    fn keep(&mut self, name: &str, fd: RawFd) -> &'static str {
        options::limit_blocking(fd);
        // SAFETY: the kernel has just given it, to nobody else.
        self.open.insert(name.to_owned(), unsafe { OwnedFd::from_raw_fd(fd) });
        "ok"
    }

    fn accept(&mut self, listener: RawFd, name: &str) -> String {
        let mut peer = Raw::room();
        // SAFETY: room and its length.
        let fd = unsafe { libc::accept(listener, peer.as_mut_ptr(), peer.length_ptr()) };
        match Errno::result(fd) {
            Ok(fd) => {
                self.keep(name, fd);
                self.print(&peer)
            }
            Err(errno) => outcome::<i32>(Err(errno)),
        }
    }

    fn fd(&self, name: &str) -> Result<RawFd> {
        self.open.get(name).map(AsRawFd::as_raw_fd).with_context(|| format!("no socket `{name}`"))
    }

    /// `self`, `any` or an address; its port a number, or `=NAME` for that of another socket.
    fn bind_address(&self, word: &str) -> Result<SocketAddr> {
        let (host, port) = word.rsplit_once(':').context("HOST:PORT")?;
        let port = match port.strip_prefix('=') {
            Some(other) => self.own_port(other)?,
            None => port.parse().context("a port")?,
        };
        let ip = match host {
            "self" => self.names.own()?,
            "any" => self.family.any(),
            other => other.parse().context("an address")?,
        };
        Ok(self.family.address(SocketAddr::new(ip, port)))
    }

    fn own_port(&self, name: &str) -> Result<u16> {
        let mut own = Raw::room();
        // SAFETY: room and its length.
        let result = unsafe { libc::getsockname(self.fd(name)?, own.as_mut_ptr(), own.length_ptr()) };
        Errno::result(result)?;
        Ok(own.address().context("an address of IP")?.port())
    }

    /// The address that a statement names first, as its further words have it: `unspec` for the family, `length=N`,
    /// `scope=N`, `plain` for the IPv4 form whatever the socket.
    pub(crate) fn destination(&self, statement: &Statement) -> Result<Raw> {
        let mut raw = match statement.arg(0)? {
            "unspec" => return Ok(Raw::new(SocketAddr::new(self.family.any(), 0)).unspecified()),
            word => {
                let mut address = match word.strip_prefix("any:") {
                    Some(port) => SocketAddr::new(self.family.any(), port.parse().context("a port")?),
                    None => self.names.resolve(word)?,
                };
                if !statement.has("plain") {
                    address = self.family.address(address);
                }
                if let (Some(scope), SocketAddr::V6(v6)) = (statement.value("scope"), &mut address) {
                    v6.set_scope_id(scope.parse().context("a scope")?);
                }
                Raw::new(address)
            }
        };
        if statement.has("unspec") {
            raw = raw.unspecified();
        }
        if let Some(length) = statement.value("length") {
            raw.length = length.parse().context("a length")?;
        }
        Ok(raw)
    }

    fn name(
        &mut self,
        fd: RawFd,
        call: unsafe extern "C" fn(RawFd, *mut libc::sockaddr, *mut libc::socklen_t) -> i32,
    ) -> String {
        let mut name = Raw::room();
        // SAFETY: room and its length.
        let result = unsafe { call(fd, name.as_mut_ptr(), name.length_ptr()) };
        match Errno::result(result) {
            Ok(_) => self.print(&name),
            Err(errno) => format!("{errno:?}"),
        }
    }

    /// An address by its name, with what else can be told apart: its form and its length.
    pub(crate) fn print(&mut self, raw: &Raw) -> String {
        let Some(address) = raw.address() else { return format!("nobody/{}", raw.length) };
        let mapped = matches!(address, SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some());
        let scope = match address {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("%{}", v6.scope_id()),
            _ => String::new(),
        };
        let form = if mapped { "mapped" } else { "" };
        format!("{}{scope}/{form}{}", self.names.print(address), raw.length)
    }
}

/// Waits for one of the named events, and says which there are of those.
fn events(fd: RawFd, statement: &Statement) -> Result<String> {
    let known = [
        ("in", PollFlags::POLLIN),
        ("out", PollFlags::POLLOUT),
        ("err", PollFlags::POLLERR),
        ("hup", PollFlags::POLLHUP),
    ];
    let named = known.iter().filter(|(word, _)| statement.has(word));
    let wanted = named.fold(PollFlags::empty(), |all, (_, flag)| all | *flag);
    if !wait(fd, wanted)? {
        return Ok("nothing".to_owned());
    }
    let there = poll_once(fd, wanted, PollTimeout::ZERO)?;
    let seen: Vec<&str> =
        known.iter().filter(|(_, flag)| there.contains(*flag)).map(|(word, _)| *word).collect();
    Ok(seen.join("+"))
}

/// Waits until one of these events is there; `false` when none comes.
pub(crate) fn wait(fd: RawFd, wanted: PollFlags) -> Result<bool> {
    Ok(!poll_once(fd, wanted, PollTimeout::from(PATIENCE_MS))?.is_empty())
}

fn poll_once(fd: RawFd, wanted: PollFlags, timeout: PollTimeout) -> Result<PollFlags> {
    let mut polled = [PollFd::new(borrowed(fd), wanted)];
    poll(&mut polled, timeout)?;
    Ok(polled[0].revents().unwrap_or(PollFlags::empty()))
}

/// Says so, and waits until standard input closes.
#[expect(clippy::print_stdout, reason = "whoever started the script waits for it")]
fn pause() -> Result<String> {
    println!("paused");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok("0".to_owned())
}

fn borrowed<'fd>(fd: RawFd) -> BorrowedFd<'fd> {
    // SAFETY: a socket of the script, which lives as long as the call for which it is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
