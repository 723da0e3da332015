//! A certificate authority, `meshd ca`, on a node of its own.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::agent::http_get;
use crate::lab::Lab;
use crate::node::Node;
use crate::process::{Finished, Process, binary};
use crate::wait::{SECONDS_10, SECONDS_30, eventually};

const PORT: u16 = 15012;
const METRICS: &str = "127.0.0.1:15014";
/// `nobody`: the authority needs no privileges.
const USER: u32 = 65534;

/// A running authority. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Ca {
    node: Node,
    folder: PathBuf,
    manifests: PathBuf,
    args: Vec<String>,
    process: Process,
}

impl Ca {
    /// Starts one on this node, as a user without privileges, that follows the lab's manifests and knows the lines of
    /// `tokens` (as in `--node-tokens`); waits until it listens.
    pub fn start(lab: &Lab, node: &Node, tokens: &str, args: &[&str]) -> Result<Self> {
        let folder = lab.folder().join("authority");
        fs::create_dir_all(&folder)?;
        let file = folder.join("tokens");
        fs::write(&file, tokens)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        for path in [&folder, &file] {
            chown(path, Some(USER), Some(USER)).with_context(|| format!("chown {}", path.display()))?;
        }
        let manifests = lab.manifests().folder().to_owned();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let process = spawn(node, &folder, &manifests, &args)?;
        let ca = Self { node: node.clone(), folder, manifests, args, process };
        ca.wait_up()?;
        Ok(ca)
    }

    /// Starts it again, with the same flags and folder, once it has ended.
    pub fn restart(&self) -> Result<Self> {
        let process = spawn(&self.node, &self.folder, &self.manifests, &self.args)?;
        let ca = Self { process, ..self.clone() };
        ca.wait_up()?;
        Ok(ca)
    }

    fn wait_up(&self) -> Result<()> {
        let address = self.address();
        let netns = self.node.netns();
        eventually(SECONDS_30, "the authority listens", || {
            netns.run(move || TcpStream::connect_timeout(&address, SECONDS_10)).ok()?.ok()
        })
        .with_context(|| self.log())?;
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.node.v4, PORT))
    }

    /// The PEM file of its root.
    pub fn root(&self) -> PathBuf {
        self.folder.join("ca").join("root-cert.pem")
    }

    /// The file of node tokens; it is read again when it changes.
    pub fn tokens(&self) -> PathBuf {
        self.folder.join("tokens")
    }

    /// The node that it is on.
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// The process.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// The lines of its audit log.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.folder.join("audit.log"))?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// Its `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        self.node.netns().run(|| {
            let address: SocketAddr = METRICS.parse()?;
            let stream = TcpStream::connect_timeout(&address, SECONDS_30)?;
            stream.set_read_timeout(Some(SECONDS_30))?;
            http_get(stream, "/metrics")
        })?
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&self) -> Result<Finished> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(SECONDS_30)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.stderr()
    }
}

fn spawn(node: &Node, folder: &Path, manifests: &Path, args: &[String]) -> Result<Process> {
    let meshd = binary("meshd")?.to_string_lossy().into_owned();
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let user = USER.to_string();
    let mut argv: Vec<String> =
        ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"].map(str::to_owned).into();
    argv.extend([meshd, "ca".to_owned()]);
    let address = SocketAddr::from((node.v4, PORT)).to_string();
    let fixed = [
        ("--ca-dir", path("ca")),
        ("--listen", address),
        ("--metrics-addr", METRICS.to_owned()),
        ("--dns-name", node.v4.to_string()),
        ("--node-tokens", path("tokens")),
        ("--audit-log", path("audit.log")),
        ("--manifests", manifests.to_string_lossy().into_owned()),
        ("--kubernetes=false", String::new()),
    ];
    argv.extend(
        fixed.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).filter(|arg| !arg.is_empty()),
    );
    argv.extend(args.iter().cloned());
    node.spawn(&argv.iter().map(String::as_str).collect::<Vec<_>>())
}
