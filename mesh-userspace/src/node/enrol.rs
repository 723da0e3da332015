//! Enrolment: everything that makes a pod's traffic the agent's, in an order in which no step is visible before the ones
//! that it needs, and its undoing in the reverse order.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::listeners::{self, Listener};
use super::netns::NetNs;
use super::plumbing::{self, Before};
use super::state::{Remembered, StateDir};
use crate::datapath::{Datapath, DatapathError, Role};
use crate::model::{MtlsModes, Workload, WorkloadUid};
use crate::socket::own_netns_cookie;

/// Why a pod could not be enrolled or released.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The pod's namespace is not known.
    #[error("pod {0} has no network namespace: annotate it with mesh.dev/netns")]
    NoNetns(WorkloadUid),
    /// The pod has no address yet.
    #[error("pod {0} has no address yet")]
    NoAddress(WorkloadUid),
    /// The namespace cannot be opened.
    #[error("cannot open the network namespace {}", path.display())]
    Netns {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is the node's own.
    #[error("{} is the node's own network namespace", .0.display())]
    HostNetwork(PathBuf),
    /// Another enrolled pod has it.
    #[error("{} is the network namespace of another enrolled pod", .0.display())]
    Taken(PathBuf),
    /// An address is not there.
    #[error("the namespace {} does not have the pod's address {address}", path.display())]
    Address {
        /// The namespace.
        path: PathBuf,
        /// The address.
        address: IpAddr,
    },
    /// Rules, routes or sockets.
    #[error("cannot {operation} in {}", path.display())]
    Plumbing {
        /// What was tried.
        operation: &'static str,
        /// The namespace.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state file.
    #[error("cannot remember the pod")]
    State(#[source] io::Error),
    /// The kernel maps or links.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// An enrolled pod, as the node holds it.
#[derive(Debug)]
pub struct Enrolment {
    /// The pod.
    pub uid: WorkloadUid,
    /// Cookie of its namespace.
    pub cookie: u64,
    /// Where its namespace was opened.
    pub netns: PathBuf,
    /// Its addresses, as the workload has them.
    pub addresses: Vec<IpAddr>,
    /// All addresses of its namespace: what is steered to the agent.
    steered: Vec<IpAddr>,
    inode: u64,
    before: Before,
}

/// Enrols and releases the pods of a node.
pub struct Enroller {
    state: StateDir,
    remembered: BTreeMap<u64, Remembered>,
    own_cookie: u64,
    next_id: u32,
}

impl Enroller {
    /// Reads what an earlier agent has left.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let state = StateDir::open(state_dir)?;
        let remembered = state.load();
        Ok(Self { state, remembered, own_cookie: own_netns_cookie()?, next_id: 1 })
    }

    /// Enrols a pod up to the point where it only remains to [`Self::begin_capture`]. Its listeners are handed out, to be
    /// accepted from. Idempotent: what an earlier agent left is taken over. `modes` hold where the agent has no listener, `held` are the namespaces of other pods.
    pub fn enrol(
        &mut self,
        datapath: &mut Datapath,
        workload: &Workload,
        modes: &MtlsModes,
        held: &[u64],
    ) -> Result<(Enrolment, NetNs, Vec<Listener>), EnrolError> {
        let path = workload.netns.clone().ok_or_else(|| EnrolError::NoNetns(workload.uid.clone()))?;
        let addresses = workload.addresses.clone();
        if addresses.is_empty() {
            return Err(EnrolError::NoAddress(workload.uid.clone()));
        }
        let netns = NetNs::open(&path).map_err(|source| EnrolError::Netns { path: path.clone(), source })?;
        if netns.cookie() == self.own_cookie {
            return Err(EnrolError::HostNetwork(path));
        }
        if held.contains(&netns.cookie()) {
            return Err(EnrolError::Taken(path));
        }
        let at = |operation| {
            let path = path.clone();
            move |source| EnrolError::Plumbing { operation, path, source }
        };
        let before = match self.remembered.get(&netns.cookie()) {
            Some(known) => known.before,
            None => netns.run(plumbing::before).map_err(at("read the sysctls"))?,
        };
        let present = present(&netns).map_err(at("look at the addresses"))?;
        if let Some(address) = addresses.iter().find(|address| !present.contains(address)) {
            return Err(EnrolError::Address { path, address: *address });
        }
        let enrolment = Enrolment {
            steered: present,
            inode: netns.inode().map_err(at("look at the namespace"))?,
            uid: workload.uid.clone(),
            cookie: netns.cookie(),
            netns: path.clone(),
            addresses: addresses.clone(),
            before,
        };
        self.remember(&enrolment)?;
        let laid = lay(datapath, modes, &netns, &enrolment, &at);
        match laid {
            Ok(listeners) => Ok((enrolment, netns, listeners)),
            Err(error) => {
                if let Err(undo) = self.release(datapath, &enrolment) {
                    tracing::warn!(error = %undo, pod = %workload.uid, "a failed enrolment could not be undone");
                }
                Err(error)
            }
        }
    }

    fn remember(&mut self, enrolment: &Enrolment) -> Result<(), EnrolError> {
        let remembered = Remembered {
            uid: enrolment.uid.clone(),
            netns: enrolment.netns.clone(),
            cookie: enrolment.cookie,
            addresses: enrolment.addresses.clone(),
            steered: enrolment.steered.clone(),
            before: enrolment.before,
        };
        self.state.save(&remembered).map_err(EnrolError::State)?;
        self.remembered.insert(enrolment.cookie, remembered);
        Ok(())
    }

    /// The listeners are being accepted from: from here on the pod's connections are captured.
    pub fn begin_capture(
        &mut self,
        datapath: &mut Datapath,
        enrolment: &Enrolment,
    ) -> Result<(), EnrolError> {
        datapath.add_pod(enrolment.cookie, self.next_id)?;
        self.next_id = self.next_id.wrapping_add(1);
        Ok(())
    }

    /// Nothing new is captured or steered; what the agent carries goes on for as long as the rules stay.
    pub fn end_capture(&mut self, datapath: &mut Datapath, enrolment: &Enrolment) -> Result<(), EnrolError> {
        datapath.remove_pod(enrolment.cookie)?;
        Ok(datapath.detach_pod(enrolment.cookie)?)
    }

    /// Takes everything out of the pod and the maps.
    pub fn release(&mut self, datapath: &mut Datapath, enrolment: &Enrolment) -> Result<(), EnrolError> {
        self.end_capture(datapath, enrolment)?;
        for address in &enrolment.steered {
            datapath.clear_address(*address)?;
        }
        take_up(&enrolment.netns, enrolment.cookie, enrolment.before)?;
        self.state.forget(enrolment.cookie);
        self.remembered.remove(&enrolment.cookie);
        Ok(())
    }

    /// Releases the pods that an earlier agent enrolled and that are not among `enrolled`.
    pub fn release_strays(
        &mut self,
        datapath: &mut Datapath,
        enrolled: impl Fn(u64) -> bool,
    ) -> Vec<EnrolError> {
        let strays: Vec<Remembered> =
            self.remembered.values().filter(|pod| !enrolled(pod.cookie)).cloned().collect();
        let mut errors = Vec::new();
        for pod in strays {
            tracing::info!(pod = %pod.uid, "released: enrolled by an earlier agent and no longer wanted");
            let Remembered { uid, netns, cookie, addresses, steered, before } = pod;
            errors.extend(
                self.release(
                    datapath,
                    &Enrolment { uid, cookie, netns, addresses, steered, inode: 0, before },
                )
                .err(),
            );
        }
        for cookie in datapath.known_pods().into_iter().filter(|cookie| !enrolled(*cookie)) {
            let forgotten = datapath.remove_pod(cookie).and_then(|()| datapath.detach_pod(cookie));
            errors.extend(forgotten.err().map(EnrolError::Datapath));
        }
        errors
    }

    /// What `sk_lookup` does without a listener of the agent has changed.
    pub fn set_modes(
        &self,
        datapath: &mut Datapath,
        enrolment: &Enrolment,
        modes: &MtlsModes,
    ) -> Result<(), EnrolError> {
        Ok(datapath.set_inbound_modes(&enrolment.steered, modes)?)
    }

    /// What is missing of an enrolment: links, listeners, rules, routes, map entries.
    pub fn missing(&self, datapath: &Datapath, enrolment: &Enrolment) -> Vec<String> {
        let mut missing = Vec::new();
        if !datapath.has_pod(enrolment.cookie) {
            missing.push("the pod is not in PODS".to_owned());
        }
        match (datapath.pod_link(enrolment.cookie), datapath.pod_program_id()) {
            (Err(error), _) => missing.push(format!("the sk_lookup link cannot be read: {error}")),
            (Ok(link), _) if link.netns_inode() == 0 => {
                missing.push("the sk_lookup link has lost its namespace".to_owned());
            }
            (Ok(link), Ok(own)) if link.program_id != own => {
                missing.push(format!("the sk_lookup link runs program {} instead of {own}", link.program_id));
            }
            _ => {}
        }
        for address in &enrolment.addresses {
            for role in [Role::Outbound, Role::Inbound, Role::Hbone] {
                if !datapath.has_listener(*address, role) {
                    missing.push(format!("{address} has no {role:?} listener"));
                }
            }
        }
        match NetNs::open(&enrolment.netns) {
            Ok(netns) if netns.cookie() == enrolment.cookie => {
                let addresses = enrolment.steered.clone();
                match netns.run(move || plumbing::missing(&addresses)) {
                    Ok(more) => missing.extend(more),
                    Err(error) => missing.push(format!("rules and routes cannot be read: {error}")),
                }
            }
            Ok(_) => missing.push(format!("{} is another namespace now", enrolment.netns.display())),
            Err(error) => missing.push(format!("{}: {error}", enrolment.netns.display())),
        }
        missing
    }

    /// Whether the namespace at the pod's path is another one than was enrolled, or none.
    pub fn is_replaced(enrolment: &Enrolment) -> bool {
        !std::fs::metadata(&enrolment.netns).is_ok_and(|found| found.ino() == enrolment.inode)
    }
}

/// Lays everything that a pod needs, what steers to the agent last.
fn lay<E: FnOnce(io::Error) -> EnrolError>(
    datapath: &mut Datapath,
    modes: &MtlsModes,
    netns: &NetNs,
    enrolment: &Enrolment,
    at: &impl Fn(&'static str) -> E,
) -> Result<Vec<Listener>, EnrolError> {
    let Enrolment { steered, addresses, .. } = enrolment;
    datapath.set_inbound_modes(steered, modes)?;
    let owned = steered.clone();
    let listeners = netns.run(move || listeners::open(&owned)).map_err(at("listen"))?;
    let (all, own) = (steered.clone(), addresses.clone());
    netns.run(move || plumbing::lay(&all, &own)).map_err(at("lay rules and routes"))?;
    for listener in &listeners {
        for address in steered.iter().filter(|address| address.is_ipv4() == listener.v4) {
            datapath.set_listener(*address, listener.role, listener.socket.as_fd())?;
        }
    }
    datapath.attach_pod(netns.cookie(), netns.file().as_fd())?;
    Ok(listeners)
}

/// Leaves no trace of any agent on this machine's pods: for `meshd uninstall`. The pins are removed elsewhere.
pub fn uninstall(state_dir: &Path) -> Result<Vec<WorkloadUid>, EnrolError> {
    let state = StateDir::open(state_dir).map_err(EnrolError::State)?;
    let mut released = Vec::new();
    for (cookie, pod) in state.load() {
        take_up(&pod.netns, cookie, pod.before)?;
        state.forget(cookie);
        released.push(pod.uid);
    }
    Ok(released)
}

/// Takes rules, routes and sysctl out of a namespace; one that is gone has taken them with it.
fn take_up(path: &Path, cookie: u64, before: Before) -> Result<(), EnrolError> {
    let Ok(netns) = NetNs::open(path) else { return Ok(()) };
    if netns.cookie() != cookie {
        return Ok(());
    }
    netns.run(move || plumbing::take_up(before)).map_err(|source| EnrolError::Plumbing {
        operation: "take up rules and routes",
        path: path.to_owned(),
        source,
    })
}

/// The addresses of the namespace, but for loopback.
fn present(netns: &NetNs) -> io::Result<Vec<IpAddr>> {
    netns.run(move || {
        let mut present: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
            })
            .filter(|address| !address.is_loopback())
            .collect();
        present.sort_unstable();
        present.dedup();
        Ok(present)
    })
}
