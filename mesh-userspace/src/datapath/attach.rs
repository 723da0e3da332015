//! The programs on the cgroup: attached once, swapped atomically ever after.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use mesh_common::names::program;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::DatapathError;
use super::bpf::{self, AttachType, LinkInfo};
use super::object::Object;
use super::pins::{self, Pins};

/// What is attached, as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the program.
    pub program: &'static str,
    /// Whether the pinned link runs the very program that this agent loaded, on the cgroup it should.
    pub attached: bool,
    /// Id of the program that runs.
    pub program_id: u32,
    /// Id of the link.
    pub link_id: u32,
    /// What is wrong, where something is.
    pub detail: Option<String>,
}

const TYPES: [(&str, AttachType); 12] = [
    (program::SOCK_RELEASE, AttachType::InetSockRelease),
    (program::SOCK_OPS, AttachType::SockOps),
    (program::GETPEERNAME4, AttachType::Inet4Getpeername),
    (program::GETPEERNAME6, AttachType::Inet6Getpeername),
    (program::RECVMSG4, AttachType::Udp4Recvmsg),
    (program::RECVMSG6, AttachType::Udp6Recvmsg),
    (program::SENDMSG4, AttachType::Udp4Sendmsg),
    (program::SENDMSG6, AttachType::Udp6Sendmsg),
    (program::CONNECT4, AttachType::Inet4Connect),
    (program::CONNECT6, AttachType::Inet6Connect),
    (program::POST_BIND4, AttachType::Inet4PostBind),
    (program::POST_BIND6, AttachType::Inet6PostBind),
];

/// The cgroup that the programs are attached to.
pub(super) struct Cgroup {
    path: PathBuf,
    folder: File,
    id: u64,
}

impl Cgroup {
    pub(super) fn open(path: &Path) -> Result<Self, DatapathError> {
        let error = |source| DatapathError::Cgroup { path: path.to_owned(), source };
        let folder = File::open(path).map_err(error)?;
        if !fstatfs(&folder).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            return Err(DatapathError::NotCgroup2(path.to_owned()));
        }
        // A cgroup's id is the inode of its folder.
        let id = std::os::unix::fs::MetadataExt::ino(&folder.metadata().map_err(error)?);
        Ok(Self { path: path.to_owned(), folder, id })
    }

    /// Puts every program in force: a pinned link on this cgroup gets the new program (no event is missed), a missing one
    /// is made and pinned, one that sits on another cgroup is replaced.
    pub(super) fn attach(&self, object: &Object, pins: &Pins) -> Result<(), DatapathError> {
        for (name, attach_type) in TYPES {
            let error = |source| DatapathError::Attach { program: name, target: self.path.clone(), source };
            let program = object.program(name)?;
            let pin = pins.link(name);
            let pinned = bpf::pinned(&pin).ok();
            let on_this_cgroup =
                |link: &_| bpf::link_info(link).is_ok_and(|info| info.cgroup_id() == self.id);
            if let Some(link) = pinned.filter(on_this_cgroup) {
                bpf::link_update(link.as_fd(), program).map_err(error)?;
                continue;
            }
            let link = bpf::link_create(program, self.folder.as_fd(), attach_type).map_err(error)?;
            pins::remove(&pin)?;
            bpf::pin(link.as_fd(), &pin).map_err(error)?;
        }
        Ok(())
    }

    /// Asks the kernel what is attached.
    pub(super) fn attachments(&self, object: &Object, pins: &Pins) -> Vec<Attachment> {
        let is_misplaced = |info: &LinkInfo| {
            let is = info.cgroup_id();
            (is != self.id).then(|| format!("the link is on cgroup {is} instead of {}", self.id))
        };
        TYPES.iter().map(|&(name, _)| Attachment::of(name, object, pins, is_misplaced)).collect()
    }
}

impl Attachment {
    /// What the kernel says of a pinned link; `misplaced` tells whether it is where it should be.
    pub(super) fn of(
        name: &'static str,
        object: &Object,
        pins: &Pins,
        misplaced: impl Fn(&LinkInfo) -> Option<String>,
    ) -> Self {
        let info = bpf::pinned(&pins.link(name)).and_then(bpf::link_info);
        let detail = match (&info, object.program_id(name)) {
            (Err(error), _) => Some(format!("the pinned link cannot be read: {error}")),
            (Ok(info), _) if misplaced(info).is_some() => misplaced(info),
            (Ok(info), Ok(own)) if info.program_id != own => {
                Some(format!("the link runs program {} instead of {own}", info.program_id))
            }
            (Ok(_), Ok(_)) => None,
            (Ok(_), Err(error)) => Some(error.to_string()),
        };
        let info = info.unwrap_or_default();
        Self {
            program: name,
            attached: detail.is_none(),
            program_id: info.program_id,
            link_id: info.id,
            detail,
        }
    }
}
