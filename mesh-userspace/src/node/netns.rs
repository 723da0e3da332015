//! Network namespaces: opened once, named by their cookie, entered by one thread at a time.
//!
//! A thread is either sent into a namespace for good ([`NetNs::run`]) or visits it for a few system calls
//! ([`NetNs::visit`]); neither ever spans an `.await`.

use std::cell::OnceCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::socket::own_netns_cookie;

thread_local! {
    /// The namespace that this thread belongs to.
    static HOME: OnceCell<File> = const { OnceCell::new() };
}

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
    cookie: u64,
}

impl NetNs {
    /// Opens the namespace at a path such as `/var/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Whatever the path names, opening it does not wait (a FIFO would).
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Self::of(file, path)
    }

    /// The namespace of an open file, which was opened at `path`.
    pub fn of(file: File, path: &Path) -> io::Result<Self> {
        if !fstatfs(&file).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no network namespace"));
        }
        let probe = file.try_clone()?;
        let cookie = in_thread(move || {
            setns(probe, CloneFlags::CLONE_NEWNET)?;
            own_netns_cookie()
        })?;
        Ok(Self { file, path: path.to_owned(), cookie })
    }

    /// A second handle on it.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, path: self.path.clone(), cookie: self.cookie })
    }

    /// Cookie, as the kernel's hooks see it.
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Inode of the namespace: the same for as long as it lives.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = self.file.try_clone()?;
        in_thread(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// Runs `work`, which must be a few system calls, on this thread inside the namespace.
    pub fn visit<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        HOME.with(|home| {
            let home = if let Some(file) = home.get() {
                file
            } else {
                let own = File::open("/proc/thread-self/ns/net")?;
                home.get_or_init(|| own)
            };
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            let _back = Return(home);
            work()
        })
    }
}

/// Takes the thread home, on a panic as well.
struct Return<'a>(&'a File);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            // A thread that serves other pods from inside this one would break the isolation between them.
            tracing::error!(%error, "cannot leave a pod's network namespace");
            std::process::abort();
        }
    }
}

fn in_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("netns".into()).spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
}
