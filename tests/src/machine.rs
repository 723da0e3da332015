//! A machine that is no node: clients from outside.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use crate::lab::Registry;
use crate::netns::NetNs;
use crate::node::{CLIENT_DEADLINE, Node};
use crate::peer::Summary;
use crate::process::{Process, binary};

/// A machine on the network of the nodes, in a cgroup that no agent serves. It knows the nodes' own addresses; more with
/// [`Self::route`].
#[derive(Clone, Debug)]
pub struct Machine {
    netns: NetNs,
    cgroup: PathBuf,
    registry: Arc<Registry>,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its address.
    pub v6: Ipv6Addr,
}

impl Machine {
    pub(crate) fn create(registry: &Arc<Registry>, fabric: &NetNs, name: &str, number: u8) -> Result<Self> {
        let netns = registry.netns(name, false)?;
        let cgroup = registry.cgroup(Path::new(name))?;
        fabric.ip(&format!(
            "link add m{number} type veth peer name eth0 netns {}\nlink set m{number} master br0 up\n",
            netns.name()
        ))?;
        let v4 = Ipv4Addr::new(172, 30, 0, number);
        let v6 = Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, number.into());
        netns
            .ip(&format!("link set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n"))?;
        Ok(Self { netns, cgroup, registry: Arc::clone(registry), v4, v6 })
    }

    /// Sends what is for these addresses (`203.0.113.0/24`, `2001:db8::1`) to a node.
    pub fn route(&self, addresses: &[&str], via: &Node) -> Result<()> {
        for address in addresses {
            let gateway = if address.contains(':') { via.v6.to_string() } else { via.v4.to_string() };
            self.netns.ip(&format!("route replace {address} via {gateway}\n"))?;
        }
        Ok(())
    }

    /// Its namespace.
    pub const fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Runs a program on it.
    pub fn spawn(&self, argv: &[&str]) -> Result<Process> {
        Process::spawn(&self.registry, &self.cgroup, &self.netns, argv, &[])
    }

    /// Runs `mesh-peer COMMAND ARGS` on it.
    pub fn peer(&self, command: &str, args: &[&str]) -> Result<Process> {
        let peer = binary("mesh-peer")?;
        self.spawn(&[&[&*peer.to_string_lossy(), command], args].concat())
    }

    /// Runs `mesh-peer connect` to its end.
    pub fn connect(&self, args: &[&str]) -> Result<Summary> {
        Summary::of(&self.peer("connect", args)?, CLIENT_DEADLINE)
    }

    /// Runs `mesh-peer udp` to its end.
    pub fn udp(&self, args: &[&str]) -> Result<Summary> {
        Summary::of(&self.peer("udp", args)?, CLIENT_DEADLINE)
    }

    /// Starts `mesh-peer loop` and waits until its first exchange has succeeded. [`Summary::end`] ends it.
    pub fn load(&self, args: &[&str]) -> Result<Process> {
        let process = self.peer("loop", args)?;
        process.wait_line("that it runs", |line| line.contains("\"running\""))?;
        Ok(process)
    }
}
