//! Processes inside a node or a pod: started in its cgroup and its network namespace, ended with the lab.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::Registry;
use crate::netns::NetNs;
use crate::wait::{SECONDS_10, eventually};

/// A process of the lab. Its output goes to files; handles may be cloned.
#[derive(Clone, Debug)]
pub struct Process {
    name: String,
    child: Arc<Mutex<Child>>,
    pid: u32,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// How a process ended, and all that it printed.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Process {
    pub(crate) fn spawn(
        registry: &Registry,
        cgroup: &Path,
        netns: &NetNs,
        argv: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let [program, args @ ..] = argv else { bail!("nothing to run") };
        let name = Path::new(program)
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let (stdout, stderr) = registry.output_files(&format!("{}.{name}", netns.name()));
        let (out, err) = (File::create(&stdout)?, File::create(&stderr)?);
        let procs = cgroup.join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .open(&procs)
            .with_context(|| format!("open {}", procs.display()))?;
        let netns = netns.open()?;
        let detached = registry.is_detached();
        let mut command = Command::new(program);
        command.args(args).envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(out).stderr(err);
        let join = move || {
            if detached {
                nix::unistd::setsid()?;
            }
            // "0" is whoever writes: the child.
            if (&procs).write(b"0")? != 1 {
                return Err(std::io::ErrorKind::WriteZero.into());
            }
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            Ok(())
        };
        // SAFETY: system calls alone, on descriptors that were opened before; nothing allocates or locks.
        unsafe { command.pre_exec(join) };
        let child = command.spawn().with_context(|| format!("start {program}"))?;
        let pid = child.id();
        let process = Self { name, child: Arc::new(Mutex::new(child)), pid, stdout, stderr };
        registry.add_process(process.clone());
        Ok(process)
    }

    /// Process id.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has printed to standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Sends a signal; one that has ended already is no error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = self.child();
        if child.try_wait()?.is_none() {
            let pid = Pid::from_raw(i32::try_from(self.pid).context("a process id")?);
            kill(pid, signal).with_context(|| format!("signal {}", self.name))?;
        }
        Ok(())
    }

    /// SIGKILL, and reaped.
    pub fn kill(&self) -> Result<()> {
        let mut child = self.child();
        if child.try_wait()?.is_none() {
            child.kill().with_context(|| format!("kill {}", self.name))?;
        }
        child.wait()?;
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Closes its standard input, which ends a load.
    pub fn close_stdin(&self) {
        drop(self.child().stdin.take());
    }

    /// Waits for its end.
    pub fn wait(&self, deadline: Duration) -> Result<Finished> {
        let status =
            eventually(deadline, &format!("{} ends", self.name), || self.child().try_wait().transpose())
                .with_context(|| format!("stdout: {}\nstderr: {}", self.stdout(), self.stderr()))??;
        Ok(Finished { status, stdout: self.stdout(), stderr: self.stderr() })
    }

    /// Waits until a line that it printed satisfies `is`, and returns that.
    pub fn wait_line(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        let found = eventually(SECONDS_10, &format!("{} prints {what}", self.name), || {
            let stdout = self.stdout();
            let line = stdout.lines().find(|line| is(line)).map(str::to_owned);
            line.map(Some).or_else(|| (!self.is_running()).then_some(None))
        });
        match found {
            Ok(Some(line)) => Ok(line),
            Ok(None) => {
                bail!("{} ended before it printed {what}: {}{}", self.name, self.stdout(), self.stderr())
            }
            Err(error) => Err(error.context(format!("{}{}", self.stdout(), self.stderr()))),
        }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Finds one of the workspace's programs: in `MESH_BIN_DIR`, or beside the running executable (`target/PROFILE`).
pub fn binary(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe().context("find the running executable")?;
    let named = std::env::var_os("MESH_BIN_DIR").map(PathBuf::from);
    let places = named.into_iter().chain(exe.ancestors().skip(1).take(2).map(Path::to_owned));
    places.map(|folder| folder.join(name)).find(|path| path.is_file()).with_context(|| {
        format!("no `{name}` beside {}: build it first with `cargo build --workspace --bins`", exe.display())
    })
}
