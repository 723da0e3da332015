//! The unix socket of the agent: root's alone, one agent at a time.
//!
//! A lock beside the socket says whether an agent lives; it goes with the process, so that a socket left behind by a
//! dead one is replaced, and a live one's is never taken.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use tokio::net::{UnixListener, UnixStream};

/// Where the agent listens if it is not told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mesh/meshd.sock";

/// Why the agent cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent does.
    #[error("another meshd (pid {pid}) serves {}; stop it first, or give this one a socket of its own", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Who has it.
        pid: String,
    },
    /// Something else is in the way.
    #[error("{} exists and is no socket", path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// A file could not be made.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The listening socket; dropped, it goes away.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    _lock: Flock<File>,
}

impl AdminSocket {
    /// Listens on `path`, whose folder is made (0700) if it is missing. Within a tokio runtime.
    ///
    /// # Errors
    /// Another agent listens there, or the files cannot be made.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |operation| move |source| SocketError::File { operation, path: path.to_owned(), source };
        if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(failed("create folder of"))?;
        }
        let lock = lock(path)?;
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket { path: path.to_owned() });
            }
            _ => {}
        }
        // Under a name of its own until its mode is right: nobody connects before.
        let aside = beside(path, ".new");
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&aside).map_err(failed("bind"))?;
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
        fs::rename(&aside, path).map_err(failed("place"))?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }

    /// The next connection of a user who may: root, or whom the agent runs as. Cancel safe.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
                return Ok(stream);
            }
            tracing::warn!(uid, reason = "not_root", "admin connection refused");
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // The lock stays where it is: removing it would let two agents hold one each.
        let _ = fs::remove_file(&self.path);
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn lock(path: &Path) -> Result<Flock<File>, SocketError> {
    let lock_path = beside(path, ".lock");
    let failed = |operation, source| SocketError::File { operation, path: lock_path.clone(), source };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|source| failed("open", source))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let write = lock.set_len(0).and_then(|()| write!(&mut *lock, "{}", std::process::id()));
            write.map_err(|source| failed("write", source))?;
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.is_empty() { "unknown".to_owned() } else { pid };
            Err(SocketError::InUse { path: path.to_owned(), pid })
        }
        Err((_, errno)) => Err(failed("lock", errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::server::testing::socket_dir;

    #[tokio::test]
    async fn one_agent_at_a_time_and_a_dead_ones_socket_is_replaced() {
        let dir = socket_dir();
        let path = dir.join("run/meshd.sock");
        let first = AdminSocket::bind(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let error = AdminSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("another meshd (pid {})", std::process::id())), "{error}");
        drop(first);
        assert!(!path.exists());
        // As an agent leaves it that was killed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(AdminSocket::bind(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(AdminSocket::bind(&path), Err(SocketError::NotASocket { .. })));
        fs::remove_dir_all(dir).unwrap();
    }
}
