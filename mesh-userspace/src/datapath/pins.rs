//! Where things are pinned, and what outlives the agent there.
//!
//! ```text
//! BPFFS/maps-vN/NAME     the maps of layout N; those whose sizes can be set, in maps-vN-SIZES where they are not the usual
//!                        ones: what is known of sockets stays where it is when the sizes change
//! BPFFS/links/PROGRAM    the links of the programs on the cgroup
//! BPFFS/pods/COOKIE      the sk_lookup link of an enrolled pod's namespace
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{DatapathError, MapSizes};

/// The folder of one agent in bpffs.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    layout: u32,
    sizes: MapSizes,
}

impl Pins {
    /// Makes the folders (0700) that are missing.
    pub(super) fn open(root: &Path, layout: u32, sizes: &MapSizes) -> Result<Self, DatapathError> {
        let existing = root.ancestors().find(|folder| folder.exists()).unwrap_or(root);
        let in_bpffs = statfs(existing).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
        if !in_bpffs {
            return Err(DatapathError::NotBpffs(root.to_owned()));
        }
        let pins = Self { root: root.to_owned(), layout, sizes: *sizes };
        for folder in [pins.maps(), pins.sized_maps(), pins.links(), pins.pods()] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
        }
        Ok(pins)
    }

    fn maps(&self) -> PathBuf {
        self.root.join(format!("maps-v{}", self.layout))
    }

    fn sized_maps(&self) -> PathBuf {
        self.root.join(format!("maps-v{}{}", self.layout, self.sizes.suffix()))
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        if self.sizes.govern(name) { self.sized_maps().join(name) } else { self.maps().join(name) }
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    pub(super) fn pod(&self, cookie: u64) -> PathBuf {
        self.pods().join(cookie.to_string())
    }

    /// Cookies of the namespaces that have a pinned link.
    pub(super) fn pod_cookies(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.pods()).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Where a map of this layout stands in another size, left by an agent with other flags.
    pub(super) fn other_sizes(&self, name: &str) -> Option<PathBuf> {
        let (own, prefix) = (self.sized_maps(), format!("maps-v{}", self.layout));
        let is_sized = |rest: &str| rest.is_empty() || rest.starts_with('-');
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut folders = entries.filter(|entry| {
            let folder = entry.file_name();
            entry.path() != own
                && folder.to_str().and_then(|name| name.strip_prefix(&prefix)).is_some_and(is_sized)
        });
        folders.find_map(|entry| Some(entry.path().join(name)).filter(|path| path.exists()))
    }

    /// Removes the maps of every other layout and size; programs that use them keep them alive until they are gone.
    pub(super) fn remove_other_layouts(&self) -> Result<(), DatapathError> {
        let (own, sized) = (self.maps(), self.sized_maps());
        for (name, _) in self.sizes.entries().iter().filter(|_| sized != own) {
            remove(&own.join(name))?;
        }
        for entry in fs::read_dir(&self.root).map_err(at(&self.root))?.flatten() {
            let path = entry.path();
            let is_maps = entry.file_name().to_string_lossy().starts_with("maps-v");
            if is_maps && path != own && path != sized {
                remove_folder(&path)?;
            }
        }
        Ok(())
    }

    /// Removes everything, the folder itself as well. Programs whose only holder was a pin end with it.
    pub(super) fn remove_all(root: &Path) -> Result<(), DatapathError> {
        remove_folder(root)
    }
}

/// Removes a pin that may not be there.
pub(super) fn remove(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

fn remove_folder(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DatapathError {
    let path = path.to_owned();
    move |source| DatapathError::Pins { path, source }
}
