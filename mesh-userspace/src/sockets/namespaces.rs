//! Network namespaces by their cookie, found where the kernel shows them: nothing in the kernel leads from the cookie to
//! the namespace.
//!
//! Only paths are kept, never an open namespace, which would outlive its pod; a path is trusted for as long as what is
//! there has the cookie. Whoever calls is sent into namespaces and does not come home: it must be a thread of its own.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::socket::own_netns_cookie;

/// Where `ip netns` and container runtimes keep names of namespaces.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];
/// So long a namespace that was found nowhere is not looked for again: nothing but an open descriptor holds it.
const ABSENT: Duration = Duration::from_mins(1);

/// What is known of where namespaces are.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    known: HashMap<u64, PathBuf>,
    absent: HashMap<u64, Instant>,
}

impl Namespaces {
    /// Opens those of `wanted` that can be found. `likely` says which paths to try before all of /proc is gone through.
    pub(super) fn open(
        &mut self,
        wanted: &BTreeSet<u64>,
        likely: impl FnOnce() -> Vec<PathBuf>,
    ) -> HashMap<u64, File> {
        self.absent.retain(|_, since| since.elapsed() < ABSENT);
        let mut found = HashMap::new();
        for cookie in wanted {
            if let Some(path) = self.known.get(cookie)
                && let Ok(file) = open(path)
                && cookie_of(&file).is_ok_and(|there| there == *cookie)
            {
                found.insert(*cookie, file);
            }
        }
        self.known.retain(|cookie, _| found.contains_key(cookie) || !wanted.contains(cookie));
        let is_missing = |cookie: &u64| !found.contains_key(cookie) && !self.absent.contains_key(cookie);
        let missing: HashSet<u64> = wanted.iter().copied().filter(is_missing).collect();
        if missing.is_empty() {
            return found;
        }
        let (known, seen) = (&mut self.known, HashSet::new());
        let mut search = Search { missing, seen, known, found: &mut found };
        search.run(likely());
        let now = Instant::now();
        self.absent.extend(search.missing.into_iter().map(|cookie| (cookie, now)));
        found
    }
}

struct Search<'a> {
    missing: HashSet<u64>,
    /// Inodes: many processes share a namespace.
    seen: HashSet<u64>,
    known: &'a mut HashMap<u64, PathBuf>,
    found: &'a mut HashMap<u64, File>,
}

impl Search<'_> {
    fn run(&mut self, likely: Vec<PathBuf>) {
        let own = PathBuf::from("/proc/self/ns/net");
        let named = NAMED.iter().flat_map(|folder| entries(Path::new(folder)));
        let processes = entries(Path::new("/proc"))
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name.bytes().all(|byte| byte.is_ascii_digit())
            })
            .map(|path| path.join("ns/net"));
        for path in std::iter::once(own).chain(likely).chain(named).chain(processes) {
            if self.missing.is_empty() {
                return;
            }
            // A process that has ended, a name that is none of a namespace: there are others.
            let _ = self.look(path);
        }
    }

    fn look(&mut self, path: PathBuf) -> io::Result<()> {
        if !self.seen.insert(fs::metadata(&path)?.ino()) {
            return Ok(());
        }
        let file = open(&path)?;
        let cookie = cookie_of(&file)?;
        if self.missing.remove(&cookie) {
            self.known.insert(cookie, path);
            self.found.insert(cookie, file);
        }
        Ok(())
    }
}

/// Whatever the path names, opening it does not wait (a FIFO would).
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Cookie of a namespace; the thread is inside it afterwards.
fn cookie_of(netns: &File) -> io::Result<u64> {
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    own_netns_cookie()
}
