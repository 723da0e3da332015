//! The `bpf(2)` commands that aya 0.14 does not offer: links made, swapped, pinned and asked about uniformly for every
//! kind of program.
//!
//! Kernel minimum: 5.9 (netns links, `BPF_LINK_UPDATE`). Each structure is the part of `union bpf_attr` (or
//! `struct bpf_link_info`) that the command reads; the kernel takes the rest as zero.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

/// `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum AttachType {
    SockOps = 3,
    Inet4Connect = 10,
    Inet6Connect = 11,
    Inet4PostBind = 12,
    Inet6PostBind = 13,
    Udp4Sendmsg = 14,
    Udp6Sendmsg = 15,
    Udp4Recvmsg = 19,
    Udp6Recvmsg = 20,
    Inet4Getpeername = 29,
    Inet6Getpeername = 30,
    InetSockRelease = 34,
    SkLookup = 36,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    new_program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
struct Object {
    pathname: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// The head of `struct bpf_link_info`, as far as cgroup and netns links fill it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LinkInfo {
    /// `enum bpf_link_type`.
    pub kind: u32,
    /// Id of the link.
    pub id: u32,
    /// Id of the program that it runs now.
    pub program_id: u32,
    pad: u32,
    target: [u32; 3],
    tail: u32,
}

impl LinkInfo {
    /// Inode of the cgroup; 0 once the cgroup is gone.
    pub fn cgroup_id(&self) -> u64 {
        u64::from(self.target[0]) | u64::from(self.target[1]) << 32
    }

    /// Inode of the network namespace; 0 once it is gone.
    pub const fn netns_inode(&self) -> u32 {
        self.target[0]
    }
}

/// One call; what the kernel answers into the attribute is there after an error as well.
pub(super) fn call<T>(command: libc::c_long, attribute: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is a live structure of the size that is passed.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative")
}

fn owned(fd: libc::c_long) -> OwnedFd {
    let fd = RawFd::try_from(fd).expect("the kernel returns descriptors that fit an int");
    // SAFETY: the call that returned it made it, and nothing else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Attaches a program to a cgroup or a network namespace, beside whatever is there.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let mut attribute =
        LinkCreate { program: raw(program), target: raw(target), attach_type: attach_type as u32, flags: 0 };
    call(LINK_CREATE, &mut attribute).map(owned)
}

/// Replaces the program of a link; no event is seen by neither the old nor the new one.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = LinkUpdate { link: raw(link), new_program: raw(program), flags: 0, old_program: 0 };
    call(LINK_UPDATE, &mut attribute).map(drop)
}

/// Pins an object under a path in bpffs.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attribute = Object { pathname: path.as_ptr() as u64, fd: raw(object), flags: 0 };
    call(OBJ_PIN, &mut attribute).map(drop)
}

/// Opens a pinned object.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attribute = Object { pathname: path.as_ptr() as u64, fd: 0, flags: 0 };
    call(OBJ_GET, &mut attribute).map(owned)
}

/// What the kernel says of a link.
pub(super) fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut attribute = InfoByFd {
        fd: raw(link.as_fd()),
        length: u32::try_from(size_of::<LinkInfo>()).expect("a small structure"),
        info: std::ptr::from_mut(&mut info) as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &mut attribute)?;
    Ok(info)
}
