//! The plugin on this node: its binary among the runtime's plugins, and a configuration that calls it.
//!
//! The configuration is a file of the agent's own, which sorts first and is made of the network's; that one is never
//! touched. So neither has the other's changes to fear: a network that rewrites its file leaves the plugin in force (a
//! shared file would be without it until somebody notices), and one file less takes the plugin out. When the network's
//! file changes, ours is made anew; when it goes, so does ours. An agent that stops leaves it: pods of the mesh must not
//! start outside of it meanwhile.

mod contest;
mod list;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use self::contest::Contest;
use self::list::{Candidate, OWN, Wanted, is_candidate, wanted};
use super::{PLUGIN, PluginConfig};
use crate::file::{aside, copy_file, replace_file};

/// How long something must be the case that looks like a file being replaced: a configuration that is gone or cannot be
/// read.
const SETTLE: Duration = Duration::from_secs(2);
/// The folders are looked at this often whatever inotify says.
const RESCAN: Duration = Duration::from_secs(30);
/// The same where something is wrong, or a folder cannot be watched.
const RETRY: Duration = Duration::from_secs(1);
/// What happens within this time of each other is looked at together, while somebody contests the configuration.
const GATHER: Duration = Duration::from_millis(100);
/// Its length is the same each time, so that it is told once.
const CONTESTED: &str = "somebody else removes 00-mesh.conflist or rewrites it again and again: it is put back after a pause that grows to a \
    minute, and pods that start meanwhile are not in the mesh before they run; tell the network to leave foreign configurations alone \
    (Cilium: cni.exclusive=false)";
/// Longest configuration.
const MAX_CONFIG: u64 = 1 << 20;
/// Files of the folder that are looked at.
const MAX_FILES: usize = 1000;

/// What is to be installed.
#[derive(Clone, Debug)]
pub struct InstallConfig {
    /// The runtime's configurations.
    pub conf_dir: PathBuf,
    /// The runtime's plugins.
    pub bin_dir: PathBuf,
    /// The plugin's own part.
    pub plugin: PluginConfig,
}

/// Why something cannot be done to a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct InstallError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> InstallError + 'a {
    move |source| InstallError { operation, path: path.to_owned(), source }
}

/// What keeps the plugin from being in force.
#[derive(Debug, Default)]
pub struct InstallState {
    problem: Mutex<Option<String>>,
    mends: AtomicU64,
}

impl InstallState {
    /// It, if there is anything.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often the configuration was put back, or as it should be, after somebody else had changed it.
    pub fn mends(&self) -> u64 {
        self.mends.load(Ordering::Relaxed)
    }

    /// Replaces it; logs what is new.
    fn set(&self, problem: Option<String>) {
        let mut held = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == problem {
            return;
        }
        if let Some(problem) = &problem {
            tracing::warn!(problem, "the CNI plugin is not in force");
        } else {
            tracing::info!("the CNI plugin is in force");
        }
        *held = problem;
    }
}

/// Keeps the plugin installed until it is dropped; what it has installed stays.
#[derive(Debug)]
pub struct Installer {
    signals: Sender<Signal>,
    keeper: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug)]
enum Signal {
    Happened,
    Stop,
}

impl Drop for Installer {
    fn drop(&mut self) {
        let _ended = self.signals.send(Signal::Stop);
        // Nothing is written once this is gone. One that panicked has told.
        let _panicked = self.keeper.take().map(JoinHandle::join);
    }
}

/// Installs the plugin and keeps it installed, on a thread of its own.
///
/// # Errors
/// There is no thread, or no inotify.
pub fn install(config: InstallConfig, state: Arc<InstallState>) -> io::Result<Installer> {
    let binary = PathBuf::from("/proc/self/exe");
    start(config, binary, state)
}

fn start(config: InstallConfig, binary: PathBuf, state: Arc<InstallState>) -> io::Result<Installer> {
    let (signals, received) = channel();
    let on_event = {
        let signals = signals.clone();
        move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| is_read(event.kind)) {
                let _ended = signals.send(Signal::Happened);
            }
        }
    };
    let watcher = notify::recommended_watcher(on_event).map_err(io::Error::other)?;
    let keeper = Keeper {
        config,
        binary,
        state,
        watcher,
        watched: None,
        installed: None,
        contest: Contest::default(),
        unsettled: None,
    };
    let keeper = thread::Builder::new().name("cni".to_owned()).spawn(move || keeper.run(&received))?;
    Ok(Installer { signals, keeper: Some(keeper) })
}

/// Our own reading shows up as events too.
const fn is_read(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if !matches!(access, AccessKind::Close(AccessMode::Write)))
}

struct Keeper {
    config: InstallConfig,
    binary: PathBuf,
    state: Arc<InstallState>,
    watcher: RecommendedWatcher,
    /// Device and inode of the folder that is watched: one that was replaced is watched anew.
    watched: Option<(u64, u64)>,
    /// The binary as it was found to be right: device, inode, size, and when it was changed.
    installed: Option<(u64, u64, u64, i64, i64)>,
    contest: Contest,
    /// Since when the folder has looked as if a file in it were being replaced.
    unsettled: Option<Instant>,
}

impl Keeper {
    fn run(mut self, signals: &Receiver<Signal>) {
        loop {
            let is_watched = self.watch();
            let (problem, due) = match self.keep() {
                Ok(outcome) => outcome,
                Err(error) => (Some(describe(&error)), None),
            };
            let is_well = problem.is_none() && is_watched;
            self.state.set(problem);
            let rest = due.unwrap_or(if is_well { RESCAN } else { RETRY });
            match signals.recv_timeout(rest) {
                Ok(Signal::Happened) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.contest.is_on(Instant::now()).is_some() {
                thread::sleep(GATHER);
            }
            // Most come in numbers.
            for signal in signals.try_iter() {
                if matches!(signal, Signal::Stop) {
                    return;
                }
            }
        }
    }

    /// Whether the folder of configurations is watched.
    fn watch(&mut self) -> bool {
        let folder = &self.config.conf_dir;
        let Ok(found) = fs::metadata(folder).map(|found| (found.dev(), found.ino())) else {
            self.watched = None;
            return false;
        };
        if self.watched != Some(found) {
            // Gone, if it was another folder.
            let _gone = self.watcher.unwatch(folder);
            self.watched = match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => Some(found),
                Err(error) => {
                    tracing::debug!(%error, folder = %folder.display(), "cannot be watched");
                    None
                }
            };
        }
        self.watched.is_some()
    }

    /// Makes the folders as they should be. Returns what is wrong, and when to look again if that is soon.
    fn keep(&mut self) -> Result<(Option<String>, Option<Duration>), InstallError> {
        // A configuration must never name what is not there.
        self.keep_binary()?;
        let InstallConfig { conf_dir, plugin, .. } = &self.config;
        let Wanted { list, broken, problem } =
            wanted(candidates(conf_dir).map_err(failed("read", conf_dir))?, plugin);
        let own = conf_dir.join(OWN);
        let held = fs::read(&own).ok();
        let is_settled = held.is_none() && list.is_some() || list.is_some() && broken.is_empty();
        if !is_settled && held.is_some() {
            let since = *self.unsettled.get_or_insert_with(Instant::now);
            if let Some(left) = SETTLE.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) {
                return Ok((self.state.problem(), Some(left)));
            }
        } else {
            self.unsettled = None;
        }
        match list {
            Some((_, text)) if held.as_ref() == Some(&text) => {}
            Some((file, text)) => {
                let now = Instant::now();
                let pause = self.contest.pause(&text, now);
                if !pause.is_zero() {
                    return Ok((Some(CONTESTED.to_owned()), Some(pause)));
                }
                replace_file(&own, &text, 0o600).map_err(failed("write", &own))?;
                if self.contest.wrote(text, now) {
                    self.state.mends.fetch_add(1, Ordering::Relaxed);
                }
                if self.contest.is_on(now).is_none() {
                    tracing::info!(path = %own.display(), of = file, "wrote the CNI configuration");
                }
            }
            None if held.is_some() => {
                fs::remove_file(&own).map_err(failed("remove", &own))?;
                tracing::warn!(path = %own.display(), "removed the CNI configuration: the network's own is gone");
            }
            None => {}
        }
        let contested = self.contest.is_on(Instant::now());
        let problem = problem.or_else(|| contested.map(|_| CONTESTED.to_owned()));
        Ok((problem, contested))
    }

    /// The binary is as it should be. It is compared when it was changed: it is large, and the folder's events are many.
    fn keep_binary(&mut self) -> Result<(), InstallError> {
        let binary = self.config.bin_dir.join(PLUGIN);
        let found = || {
            let found = fs::metadata(&binary).ok()?;
            Some((found.dev(), found.ino(), found.len(), found.ctime(), found.ctime_nsec()))
        };
        if self.installed.is_some() && self.installed == found() {
            return Ok(());
        }
        if copy_file(&self.binary, &binary, 0o755).map_err(failed("install", &binary))? {
            tracing::info!(path = %binary.display(), "installed the CNI plugin");
        }
        self.installed = found();
        Ok(())
    }
}

/// The files of the folder that a runtime would look at.
fn candidates(folder: &Path) -> io::Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    for entry in fs::read_dir(folder)?.take(MAX_FILES) {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // A link to a file is one, to a runtime too.
        let is_file = fs::metadata(entry.path()).is_ok_and(|found| found.is_file());
        if is_file && is_candidate(&name) {
            let text = read(&entry.path()).map_err(|error| error.to_string());
            candidates.push(Candidate { name, text });
        }
    }
    Ok(candidates)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_CONFIG + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(io::Error::other("longer than a megabyte"));
    }
    Ok(text)
}

/// The error with its cause.
fn describe(error: &InstallError) -> String {
    format!("{error}: {}", error.source)
}

/// Takes the plugin out: first the configuration, so that no pod starts with a plugin that is not there.
///
/// # Errors
/// A file is there and cannot be removed.
pub fn uninstall(conf_dir: &Path, bin_dir: &Path) -> Result<(), InstallError> {
    for path in
        [conf_dir.join(OWN), aside(&conf_dir.join(OWN)), bin_dir.join(PLUGIN), aside(&bin_dir.join(PLUGIN))]
    {
        remove(&path)?;
    }
    Ok(())
}

/// Removes what was remembered for the plugin, and its folder if there is nothing else in it.
///
/// # Errors
/// It is there and cannot be removed.
pub fn forget(state_file: &Path) -> Result<(), InstallError> {
    remove(state_file)?;
    remove(&aside(state_file))?;
    if let Some(folder) = state_file.parent() {
        // One that holds something else stays.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
