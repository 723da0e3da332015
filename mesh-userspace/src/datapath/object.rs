//! The eBPF object: embedded at build time, loaded with its maps pinned.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::Map;
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use mesh_common::names::{map, program};

use super::pins::Pins;
use super::{DatapathError, MapSizes};

/// The object that `cargo xtask build-ebpf` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf.o"));

/// All programs, loaded; dropping it unloads those that nothing else holds.
pub(super) struct Object {
    ebpf: Ebpf,
}

impl Object {
    /// Loads every program. Maps that are pinned already are taken over as they are, the others are made and pinned.
    pub(super) fn load(pins: &Pins, sizes: &MapSizes) -> Result<Self, DatapathError> {
        let mut loader = loader(sizes);
        for name in map::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
        Self::load_with(&mut loader)
    }

    /// The same with maps of its own that are pinned nowhere: whether the kernel takes all of it.
    pub(super) fn load_apart(sizes: &MapSizes) -> Result<Self, DatapathError> {
        Self::load_with(&mut loader(sizes))
    }

    fn load_with(loader: &mut EbpfLoader<'_>) -> Result<Self, DatapathError> {
        let mut ebpf = loader.load(OBJECT).map_err(|error| DatapathError::Load(Box::new(error)))?;
        for name in program::CGROUP.into_iter().chain(program::NETNS) {
            let program = ebpf.program_mut(name).ok_or(DatapathError::Missing(name))?;
            load_program(program)
                .map_err(|source| DatapathError::Program { name, source: Box::new(source) })?;
        }
        Ok(Self { ebpf })
    }

    /// Takes a map out of the object.
    pub(super) fn take<M>(&mut self, name: &'static str) -> Result<M, DatapathError>
    where
        M: TryFrom<Map, Error = aya::maps::MapError>,
    {
        let map = self.ebpf.take_map(name).ok_or(DatapathError::Missing(name))?;
        M::try_from(map).map_err(DatapathError::map("open", name))
    }

    /// The descriptor of a loaded program.
    pub(super) fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, DatapathError> {
        let program = self.ebpf.program(name).ok_or(DatapathError::Missing(name))?;
        let fd = program.fd().map_err(|source| DatapathError::Program { name, source: Box::new(source) })?;
        Ok(fd.as_fd())
    }

    /// Id of a loaded program.
    pub(super) fn program_id(&self, name: &'static str) -> Result<u32, DatapathError> {
        let program = self.ebpf.program(name).ok_or(DatapathError::Missing(name))?;
        let info =
            program.info().map_err(|source| DatapathError::Program { name, source: Box::new(source) })?;
        Ok(info.id())
    }
}

fn loader(sizes: &MapSizes) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    // The programs relocate nothing against the kernel's types; reading them all would cost the agent 15 MiB.
    loader.btf(None);
    for (name, entries) in sizes.entries() {
        loader.map_max_entries(name, entries);
    }
    loader
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Opens a second handle on a pinned map.
pub(super) fn reopen<M>(pins: &Pins, name: &'static str) -> Result<M, DatapathError>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    super::sizes::open(&pins.map(name), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in mesh-common are those in the object.
    #[test]
    fn names_match_the_object() {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        let mut maps: Vec<_> =
            object.maps.keys().map(String::as_str).filter(|name| !name.starts_with('.')).collect();
        let mut expected = map::ALL.to_vec();
        maps.sort_unstable();
        expected.sort_unstable();
        assert_eq!(maps, expected);
        let mut programs: Vec<_> = object.programs.keys().map(String::as_str).collect();
        let mut expected: Vec<_> = program::CGROUP.into_iter().chain(program::NETNS).collect();
        programs.sort_unstable();
        expected.sort_unstable();
        assert_eq!(programs, expected);
    }
}
