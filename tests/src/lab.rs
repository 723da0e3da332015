//! What a lab holds, and how it leaves nothing behind.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::api::ApiServer;
use crate::capture::Capture;
use crate::machine::Machine;
use crate::manifests::Manifests;
use crate::netns::{NetNs, ip};
use crate::node::{NODES, Node, node_v4};
use crate::process::Process;
use crate::wait::{SECONDS_10, eventually};

/// Where `ip netns` keeps its names.
const NAMESPACES: &str = "/var/run/netns";
/// Prefix of labs with names of their own.
const UNIQUE: &str = "mesh-t";

/// Nodes joined by a network. Dropping it removes all of it.
#[derive(Debug)]
pub struct Lab {
    registry: Arc<Registry>,
    fabric: NetNs,
    manifests: Manifests,
    nodes: AtomicU32,
    machines: AtomicU32,
    servers: AtomicU8,
}

/// What the nodes and pods of a lab need of it.
#[derive(Debug)]
pub(crate) struct Registry {
    prefix: String,
    folder: PathBuf,
    cgroup: PathBuf,
    processes: Mutex<Vec<Process>>,
    namespaces: Mutex<Vec<String>>,
    outputs: AtomicU32,
    detached: AtomicBool,
}

impl Lab {
    /// A lab with a name that no other has.
    pub fn unique() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self::new(&format!("{UNIQUE}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// A lab whose namespaces, cgroups and folder begin with `prefix`. What an earlier one of that name left is removed.
    pub fn new(prefix: &str) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab needs root: it makes network namespaces and loads eBPF programs");
        }
        let root = cgroup2().context("a lab needs cgroup v2 mounted; none is in /proc/mounts")?;
        sweep(&root);
        remove(&Registry::new(prefix, &root));
        let registry = Registry::new(prefix, &root);
        let bpffs = registry.bpffs();
        fs::create_dir_all(&registry.cgroup)
            .with_context(|| format!("make {}", registry.cgroup.display()))?;
        fs::create_dir_all(&bpffs).with_context(|| format!("make {}", bpffs.display()))?;
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).context("mount a bpffs")?;
        let manifests = Manifests::create(registry.folder.join("manifests"))?;
        let registry = Arc::new(registry);
        let made = registry.netns("fabric", false).and_then(|fabric| {
            fabric.ip("link add br0 type bridge forward_delay 0\nlink set br0 up\n")?;
            Ok(fabric)
        });
        match made {
            Ok(fabric) => {
                let (nodes, machines) = (AtomicU32::new(1), AtomicU32::new(101));
                let servers = AtomicU8::new(240);
                Ok(Self { registry, fabric, manifests, nodes, machines, servers })
            }
            Err(error) => {
                remove(&registry);
                Err(error)
            }
        }
    }

    /// From here on each process has a session of its own: neither the terminal's signals nor its end reach it.
    pub fn detach(&self) {
        self.registry.detached.store(true, Ordering::Relaxed);
    }

    /// Leaves all of it in place, processes running. [`Self::remove`] takes it down.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// Removes what a lab of this prefix has left, processes and all; returns whether there was any.
    pub fn remove(prefix: &str) -> Result<bool> {
        let root = cgroup2().context("cgroup v2 is not mounted")?;
        let registry = Registry::new(prefix, &root);
        let there = registry.folder.exists()
            || registry.cgroup.exists()
            || namespaces().iter().any(|name| name.starts_with(&format!("{prefix}-")));
        remove(&registry);
        Ok(there)
    }

    /// Adds a node. The n-th (from 1) has pods in `10.244.n.0/24` and `fd00:244:n::/64`.
    pub fn node(&self, name: &str) -> Result<Node> {
        let number = self.nodes.fetch_add(1, Ordering::Relaxed);
        Node::create(&self.registry, &self.fabric, &self.manifests, name, u8::try_from(number)?)
    }

    /// Adds a machine that is no node, beside them.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        let number = self.machines.fetch_add(1, Ordering::Relaxed);
        Machine::create(&self.registry, &self.fabric, name, u8::try_from(number)?)
    }

    /// Starts an API server on the network of the nodes, where each of them reaches it; another, if it is called again.
    pub fn api_server(&self) -> Result<ApiServer> {
        let number = self.servers.fetch_add(1, Ordering::Relaxed);
        let (v4, v6) =
            (Ipv4Addr::new(172, 30, 0, number), Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, number.into()));
        self.fabric.ip(&format!("addr add {v4}/24 dev br0\naddr add {v6}/64 dev br0 nodad\n"))?;
        // Pods ask it as well: the way back to them is through their nodes.
        let routes =
            (1..=NODES).map(|node| format!("route replace 10.244.{node}.0/24 via {}\n", node_v4(node)));
        self.fabric.ip(&routes.collect::<String>())?;
        ApiServer::start_in(&self.fabric, v4.into())
    }

    /// Begins to record what passes between the nodes.
    pub fn wire(&self) -> Result<Capture> {
        Capture::start(&self.fabric)
    }

    /// The folder of manifests that every agent of the lab follows.
    pub const fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// The lab's own folder: state, certificates, output of processes.
    pub fn folder(&self) -> &Path {
        &self.registry.folder
    }

    /// The lab's cgroup; each node has one below.
    pub fn cgroup(&self) -> &Path {
        &self.registry.cgroup
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.registry.tell();
        }
        remove(&self.registry);
    }
}

impl Registry {
    fn new(prefix: &str, cgroup2: &Path) -> Self {
        Self {
            prefix: prefix.to_owned(),
            folder: Path::new("/run").join(prefix),
            cgroup: cgroup2.join(prefix),
            processes: Mutex::default(),
            namespaces: Mutex::default(),
            outputs: AtomicU32::new(0),
            detached: AtomicBool::new(false),
        }
    }

    /// Makes a namespace `PREFIX-NAME`.
    pub(crate) fn netns(&self, name: &str, forwards: bool) -> Result<NetNs> {
        let name = format!("{}-{name}", self.prefix);
        lock(&self.namespaces).push(name.clone());
        NetNs::create(&name, forwards)
    }

    /// Makes a cgroup below the lab's.
    pub(crate) fn cgroup(&self, below: &Path) -> Result<PathBuf> {
        let path = self.cgroup.join(below);
        fs::create_dir_all(&path).with_context(|| format!("make the cgroup {}", path.display()))?;
        Ok(path)
    }

    pub(crate) fn bpffs(&self) -> PathBuf {
        self.folder.join("bpf")
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Relaxed)
    }

    pub(crate) fn add_process(&self, process: Process) {
        lock(&self.processes).push(process);
    }

    pub(crate) fn output_files(&self, name: &str) -> (PathBuf, PathBuf) {
        let number = self.outputs.fetch_add(1, Ordering::Relaxed);
        let name = name.strip_prefix(&self.prefix).unwrap_or(name).trim_start_matches('-');
        let file = |end| self.folder.join(format!("{number:02}.{name}.{end}"));
        (file("out"), file("err"))
    }

    /// Prints what the processes said, for a test that fails.
    fn tell(&self) {
        let mut files: Vec<PathBuf> =
            fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in
            files.iter().filter(|file| file.extension().is_some_and(|end| end == "err" || end == "out"))
        {
            let text =
                fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
            if !text.is_empty() {
                let lines: Vec<&str> = text.lines().collect();
                let last = lines[lines.len().saturating_sub(60)..].join("\n");
                eprintln!("--- {}\n{last}", file.display());
            }
        }
    }
}

/// Removes a lab; says what it could not.
fn remove(lab: &Registry) {
    let say = |what: &str, error: &dyn std::fmt::Display| eprintln!("lab {}: {what}: {error}", lab.prefix);
    for process in lock(&lab.processes).drain(..).rev() {
        if let Err(error) = process.kill() {
            say("a process", &error);
        }
    }
    if let Err(error) = remove_cgroup(&lab.cgroup) {
        say("cgroup", &error);
    }
    let mut names: Vec<String> = lock(&lab.namespaces).drain(..).collect();
    names.extend(namespaces().into_iter().filter(|name| name.starts_with(&format!("{}-", lab.prefix))));
    names.sort_unstable();
    names.dedup();
    for name in names.iter().filter(|name| Path::new(NAMESPACES).join(name).exists()) {
        if let Err(error) = ip(&["netns", "del", name], "") {
            say("namespace", &error);
        }
    }
    while umount2(&lab.bpffs(), MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_dir_all(&lab.folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => say("folder", &error),
        _ => {}
    }
}

/// Removes the labs of processes that are gone without having done so.
fn sweep(cgroup2: &Path) {
    let of = |name: &str| {
        let (pid, _) = name.strip_prefix(UNIQUE)?.split_once('-')?;
        let number = name.split('-').nth(2)?;
        (!Path::new("/proc").join(pid).exists()).then(|| format!("{UNIQUE}{pid}-{number}"))
    };
    let mut dead: Vec<String> = namespaces().iter().filter_map(|name| of(name)).collect();
    for folder in [Path::new("/run"), cgroup2] {
        let names = fs::read_dir(folder).into_iter().flatten().flatten();
        dead.extend(names.filter_map(|entry| of(&entry.file_name().to_string_lossy())));
    }
    dead.sort_unstable();
    dead.dedup();
    for prefix in dead {
        remove(&Registry::new(&prefix, cgroup2));
    }
}

fn namespaces() -> Vec<String> {
    let entries = fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Empties a cgroup of this lab and removes it, the deepest first.
pub(crate) fn remove_cgroup(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // Everything in it was started by the lab, or by what the lab started.
    fs::write(path.join("cgroup.kill"), "1").context("empty it")?;
    eventually(SECONDS_10, "the cgroup is empty and removed", || remove_tree(path).ok())
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// Where cgroup v2 is mounted.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(target))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
