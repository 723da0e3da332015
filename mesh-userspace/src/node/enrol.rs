//! Enrolment: everything that makes a pod's traffic the agent's, in an order in which no step is visible before the ones
//! that it needs, and its undoing in the reverse order.
//!
//! Many pods are enrolled at a time: what is done inside a namespace is done in several at once, what all of them share (the
//! maps, the state folder) one pod after the other. No address is served for two pods: it is its first holder's until that one
//! has lost it.
//!
//! A pod whose enrolment fails, and some of whose ports are strict, is closed all the same: the program that refuses those
//! needs nothing inside the namespace. It is taken out again once the pod is enrolled, or not wanted any more.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::listeners::{self, Listener};
use super::monitor::Monitor;
use super::namespaces::Place;
use super::netns::NetNs;
use super::parallel::each;
use super::plumbing::{self, Before};
use super::state::{Remembered, StateDir};
use crate::datapath::{Datapath, DatapathError};
use crate::model::{MtlsModes, Workload, WorkloadUid};
use crate::socket::own_netns_cookie;

/// Why a pod could not be enrolled or released.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The pod's namespace is not known, and a manifest should have said it.
    #[error("pod {0} has no network namespace: annotate it with mesh.dev/netns")]
    NoNetns(WorkloadUid),
    /// Neither the CNI plugin nor discovery has said where it is.
    #[error(
        "the network namespace of pod {0} is not known: the mesh's CNI plugin has not told it, and no process of it is in a \
         cgroup that the agent sees (it needs the node's process ids and cgroups: hostPID, --proc, --pods-cgroup)"
    )]
    NotFound(WorkloadUid),
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
    /// An address is served for another pod.
    #[error("address {address} is that of pod {by}, which is enrolled and still has it")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: WorkloadUid,
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
    /// It failed half-way, and what was done stays.
    #[error("what a failed enrolment has done cannot be undone ({undo})")]
    NotUndone {
        /// Why it cannot be undone.
        undo: String,
        /// Why it failed.
        #[source]
        failed: Box<EnrolError>,
    },
    /// It could not be enrolled, and nobody comes to its strict ports in plaintext for that.
    #[error("its strict ports are closed until it can be enrolled")]
    Closed(#[source] Box<EnrolError>),
    /// The state file.
    #[error("cannot remember the pod")]
    State(#[source] io::Error),
    /// The kernel maps or links.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// A pod that is to be enrolled.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Its namespace.
    pub place: Place,
    /// What holds where the agent has no listener.
    pub modes: MtlsModes,
}

/// What an enrolment has brought, to be served.
#[derive(Debug)]
pub struct Laid {
    /// The pod as the node holds it.
    pub enrolment: Enrolment,
    /// Its namespace.
    pub netns: NetNs,
    /// What is to be accepted from.
    pub listeners: Vec<Listener>,
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
    /// Its addresses: those of the workload or, before it has any, of the namespace.
    pub addresses: Vec<IpAddr>,
    /// All addresses of its namespace that are no other pod's: what is steered to the agent.
    pub(super) steered: Vec<IpAddr>,
    /// Inode of its namespace, which is held open.
    pub(super) inode: u64,
    pub(super) before: Before,
    pub(super) held: Held,
    pub(super) id: u32,
}

/// What is held open of an enrolled pod's namespace.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) netns: NetNs,
    pub(super) monitor: Monitor,
    /// Second handles on what is accepted from, for the maps.
    pub(super) listeners: Vec<Listener>,
}

/// A namespace that was looked at.
struct Looked {
    netns: NetNs,
    inode: u64,
    before: Before,
    present: Vec<IpAddr>,
}

/// Enrols and releases the pods of a node.
pub struct Enroller {
    state: StateDir,
    remembered: BTreeMap<u64, Remembered>,
    /// Which namespace an address is served for.
    pub(super) owners: HashMap<IpAddr, u64>,
    own_cookie: u64,
    next_id: u32,
}

/// Why not, and for whom what was done is to be undone.
type Failed = (EnrolError, Box<Remembered>);

impl Enroller {
    /// Reads what an earlier agent has left.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let state = StateDir::open(state_dir)?;
        let remembered = state.load();
        let own_cookie = own_netns_cookie()?;
        Ok(Self { state, remembered, owners: HashMap::new(), own_cookie, next_id: 1 })
    }

    /// Enrols pods up to the point where it only remains to [`Self::begin_capture`]; one result each, in their order. Their
    /// listeners are handed out, to be accepted from. Idempotent: what an earlier agent left is taken over. `held` are the
    /// namespaces of other pods.
    pub fn enrol(
        &mut self,
        datapath: &mut Datapath,
        wanted: &[Wanted],
        held: &[u64],
    ) -> Vec<Result<Laid, EnrolError>> {
        let mut held = held.to_vec();
        let looked = each(wanted.iter().collect(), |wanted| look(&wanted.place));
        let remembered: Vec<Result<_, EnrolError>> = wanted
            .iter()
            .zip(looked)
            .map(|(wanted, looked)| self.accept(datapath, wanted, looked?, &mut held))
            .collect();
        // Inside the namespaces, several at a time.
        let prepared = each(remembered, |remembered| {
            let remembered = remembered?;
            Ok((prepare(&remembered), remembered))
        });
        wanted
            .iter()
            .zip(prepared)
            .map(|(wanted, prepared): (_, Result<_, EnrolError>)| {
                let (prepared, (looked, remembered)) = prepared?;
                let steered = remembered.steered.clone();
                let done = prepared.and_then(|(monitor, listeners)| {
                    self.steer(datapath, wanted, (looked, remembered), monitor, listeners)
                });
                done.map_err(|(error, remembered)| {
                    if wanted.modes.any_strict() {
                        match close(datapath, wanted, &remembered) {
                            Ok(()) => return EnrolError::Closed(Box::new(error)),
                            Err(why) => {
                                tracing::error!(error = %why, pod = %remembered.uid, "its strict ports cannot be closed");
                            }
                        }
                    }
                    let undone = self.take_back(datapath, &remembered, None);
                    self.disown(remembered.cookie, &steered);
                    match undone {
                        Ok(()) => error,
                        Err(undo) => EnrolError::NotUndone { undo: told(&undo), failed: Box::new(error) },
                    }
                })
            })
            .collect()
    }

    /// Whether a namespace can be this pod's; if so it is remembered, before anything in it changes.
    fn accept(
        &mut self,
        datapath: &mut Datapath,
        wanted: &Wanted,
        looked: Looked,
        held: &mut Vec<u64>,
    ) -> Result<(Looked, Remembered), EnrolError> {
        let Wanted { workload, place, .. } = wanted;
        let cookie = looked.netns.cookie();
        if cookie == self.own_cookie {
            return Err(EnrolError::HostNetwork(place.path.clone()));
        }
        if held.contains(&cookie) {
            return Err(EnrolError::Taken(place.path.clone()));
        }
        // A pod's author chooses its name, its labels and, by annotations, which UID it is found by; not its addresses, which
        // the kubelet tells the API, or the CNI plugin this agent. A namespace that has them is this pod's.
        let addresses = workload.addresses.clone();
        if addresses.is_empty() {
            return Err(EnrolError::NoAddress(workload.uid.clone()));
        }
        if let Some(&address) = addresses.iter().find(|address| !looked.present.contains(address)) {
            return Err(EnrolError::Address { path: place.path.clone(), address });
        }
        // What was closed under its name and never enrolled would keep its addresses from it.
        for earlier in self.earlier(&workload.uid, cookie, held) {
            // What cannot be taken back stays remembered: it is tried again, and told, when strays are released.
            let _ = self.take_back(datapath, &earlier, None);
            self.disown(earlier.cookie, &earlier.steered);
        }
        let other = |address: &IpAddr| self.owners.get(address).is_some_and(|owner| *owner != cookie);
        if let Some(&address) = addresses.iter().find(|address| other(address)) {
            let by = self.owners.get(&address).and_then(|owner| self.remembered.get(owner));
            let by = by.map_or_else(|| workload.uid.clone(), |pod| pod.uid.clone());
            return Err(EnrolError::AddressTaken { address, by });
        }
        let before = self.remembered.get(&cookie).map_or(looked.before, |known| known.before);
        let steered: Vec<IpAddr> = looked.present.iter().copied().filter(|address| !other(address)).collect();
        let remembered = Remembered {
            uid: workload.uid.clone(),
            netns: place.path.clone(),
            cookie,
            addresses,
            steered,
            before,
            inode: looked.inode,
        };
        self.remember(&remembered)?;
        self.owners.extend(remembered.steered.iter().map(|address| (*address, cookie)));
        held.push(cookie);
        Ok((looked, remembered))
    }

    /// The namespaces in which a pod of this name was before it came to be in this one, and that nobody holds.
    fn earlier(&self, uid: &WorkloadUid, cookie: u64, held: &[u64]) -> Vec<Remembered> {
        let is_earlier =
            |pod: &&Remembered| pod.uid == *uid && pod.cookie != cookie && !held.contains(&pod.cookie);
        self.remembered.values().filter(is_earlier).cloned().collect()
    }

    /// Writes the maps for a prepared namespace, what steers to the agent last.
    fn steer(
        &mut self,
        datapath: &mut Datapath,
        wanted: &Wanted,
        (looked, remembered): (Looked, Remembered),
        monitor: Monitor,
        listeners: Vec<Listener>,
    ) -> Result<Laid, Failed> {
        let held = || -> io::Result<Held> {
            let listeners = listeners.iter().map(Listener::try_clone).collect::<io::Result<_>>()?;
            Ok(Held { netns: looked.netns.try_clone()?, monitor, listeners })
        };
        let mut written = || -> Result<(), DatapathError> {
            datapath.set_inbound_modes(&remembered.steered, &wanted.modes)?;
            set_listeners(datapath, &remembered.steered, &listeners)?;
            datapath.attach_pod(remembered.cookie, looked.netns.file().as_fd())
        };
        let at = |source| EnrolError::Plumbing {
            operation: "hold the namespace",
            path: remembered.netns.clone(),
            source,
        };
        let done = match held() {
            Ok(held) => written().map(|()| held).map_err(EnrolError::from),
            Err(error) => Err(at(error)),
        };
        let held = match done {
            Ok(held) => held,
            Err(error) => return Err((error, Box::new(remembered))),
        };
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let Remembered { uid, netns, cookie, addresses, steered, before, inode } = remembered;
        let enrolment = Enrolment { uid, cookie, netns, addresses, steered, inode, before, held, id };
        Ok(Laid { enrolment, netns: looked.netns, listeners })
    }

    pub(super) fn remember(&mut self, pod: &Remembered) -> Result<(), EnrolError> {
        if self.remembered.get(&pod.cookie) != Some(pod) {
            self.state.save(pod).map_err(EnrolError::State)?;
            self.remembered.insert(pod.cookie, pod.clone());
        }
        Ok(())
    }

    /// The listeners are being accepted from: from here on the pod's connections are captured. None are where that fails: an
    /// earlier agent's capture ends with it.
    pub fn begin_capture(
        &mut self,
        datapath: &mut Datapath,
        enrolment: &Enrolment,
    ) -> Result<(), EnrolError> {
        let first = enrolment.addresses.first().copied();
        if let Err(error) = datapath.add_pod(enrolment.cookie, enrolment.id, first) {
            datapath.remove_pod(enrolment.cookie)?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Nothing new is captured or steered; what the agent carries goes on for as long as the rules stay.
    pub fn end_capture(
        &mut self,
        datapath: &mut Datapath,
        enrolment: &mut Enrolment,
    ) -> Result<(), EnrolError> {
        // Nobody will accept from them: only the workers may hold them from here on.
        enrolment.close_listeners();
        datapath.remove_pod(enrolment.cookie)?;
        Ok(datapath.detach_pod(enrolment.cookie)?)
    }

    /// Takes everything out of the pod and the maps.
    pub fn release(&mut self, datapath: &mut Datapath, enrolment: &Enrolment) -> Result<(), EnrolError> {
        let released = self.take_back(datapath, &enrolment.remembered(), Some(&enrolment.held.netns));
        self.disown(enrolment.cookie, &enrolment.steered);
        released
    }

    fn take_back(
        &mut self,
        datapath: &mut Datapath,
        pod: &Remembered,
        netns: Option<&NetNs>,
    ) -> Result<(), EnrolError> {
        datapath.remove_pod(pod.cookie)?;
        datapath.detach_pod(pod.cookie)?;
        for address in &pod.steered {
            // Its next holder's entries are none of ours.
            if self.owners.get(address).is_none_or(|owner| *owner == pod.cookie) {
                datapath.clear_address(*address)?;
            }
        }
        match netns {
            Some(netns) => take_up(netns, pod.before)?,
            None => find_and_take_up(pod)?,
        }
        self.state.forget(pod.cookie);
        self.remembered.remove(&pod.cookie);
        Ok(())
    }

    pub(super) fn disown(&mut self, cookie: u64, addresses: &[IpAddr]) {
        for address in addresses {
            if self.owners.get(address) == Some(&cookie) {
                self.owners.remove(address);
            }
        }
    }

    /// Releases the pods that an earlier agent enrolled and that are not among `enrolled`; those that are `awaited` will be
    /// taken over once their namespaces are known.
    pub fn release_strays(
        &mut self,
        datapath: &mut Datapath,
        enrolled: impl Fn(u64) -> bool,
        awaited: impl Fn(&WorkloadUid) -> bool,
    ) -> Vec<EnrolError> {
        let stays = |pod: &Remembered| enrolled(pod.cookie) || awaited(&pod.uid);
        let strays: Vec<Remembered> = self.remembered.values().filter(|pod| !stays(pod)).cloned().collect();
        let mut errors = Vec::new();
        for pod in strays {
            match self.take_back(datapath, &pod, None) {
                Ok(()) => {
                    tracing::info!(pod = %pod.uid, "released: enrolled by an earlier agent, or closed, and no longer wanted");
                }
                Err(error) => errors.push(error),
            }
            self.disown(pod.cookie, &pod.steered);
        }
        let unknown = |cookie: &u64| !enrolled(*cookie) && !self.remembered.contains_key(cookie);
        for cookie in datapath.known_pods().into_iter().filter(unknown) {
            let forgotten = datapath.remove_pod(cookie).and_then(|()| datapath.detach_pod(cookie));
            errors.extend(forgotten.err().map(EnrolError::Datapath));
        }
        errors
    }

    /// Whether there are pods of an earlier agent that have been neither taken over nor released.
    pub fn has_strays(&self, enrolled: impl Fn(u64) -> bool) -> bool {
        self.remembered.keys().any(|cookie| !enrolled(*cookie))
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

    /// The workload has these addresses now. If the namespace has them the enrolment goes on with them; otherwise it is another
    /// pod's, and nothing changes.
    pub fn readdress(&mut self, enrolment: &mut Enrolment, addresses: &[IpAddr]) -> Result<bool, EnrolError> {
        if addresses.is_empty() || enrolment.addresses == addresses {
            return Ok(true);
        }
        if !addresses.iter().all(|address| enrolment.steered.contains(address)) {
            return Ok(false);
        }
        addresses.clone_into(&mut enrolment.addresses);
        self.remember(&enrolment.remembered())?;
        let (all, own) = (enrolment.steered.clone(), addresses.to_vec());
        enrolment.held.netns.run(move || plumbing::lay(&all, &own)).map_err(|source| {
            EnrolError::Plumbing { operation: "lay rules and routes", path: enrolment.netns.clone(), source }
        })?;
        Ok(true)
    }
}

impl Enrolment {
    /// Inode of its namespace, which nobody else has for as long as this is held.
    pub const fn inode(&self) -> u64 {
        self.inode
    }

    /// Its namespace is found at another path now.
    pub fn moved_to(&mut self, path: &Path) {
        path.clone_into(&mut self.netns);
    }

    /// Nobody will accept from its listeners any more: only who does may hold them.
    pub fn close_listeners(&mut self) {
        self.held.listeners.clear();
    }

    pub(super) fn remembered(&self) -> Remembered {
        Remembered {
            uid: self.uid.clone(),
            netns: self.netns.clone(),
            cookie: self.cookie,
            addresses: self.addresses.clone(),
            steered: self.steered.clone(),
            before: self.before,
            inode: self.inode,
        }
    }
}

/// A failure with what it comes from.
fn told(error: &EnrolError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

/// What a namespace is and has.
fn look(place: &Place) -> Result<Looked, EnrolError> {
    let path = || place.path.clone();
    let netns = place.open().map_err(|source| EnrolError::Netns { path: path(), source })?;
    let at = |operation| move |source| EnrolError::Plumbing { operation, path: path(), source };
    let inode = netns.inode().map_err(at("look at the namespace"))?;
    let (before, present) = netns
        .run(|| Ok((plumbing::before()?, present()?)))
        .map_err(at("read the sysctls and the addresses"))?;
    Ok(Looked { netns, inode, before, present })
}

/// Lays what a pod needs inside its namespace.
fn prepare((looked, remembered): &(Looked, Remembered)) -> Result<(Monitor, Vec<Listener>), Failed> {
    let (steered, own) = (remembered.steered.clone(), remembered.addresses.clone());
    let laid = looked.netns.run(move || {
        let listeners = listeners::open(&steered)?;
        plumbing::lay(&steered, &own)?;
        // After what it would hear of.
        Ok((Monitor::open()?, listeners))
    });
    laid.map_err(|source| {
        let path = remembered.netns.clone();
        let error = EnrolError::Plumbing { operation: "lay listeners, rules and routes", path, source };
        (error, Box::new(remembered.clone()))
    })
}

/// Refuses what comes to strict ports of a pod that nothing is laid in. The node's own processes pass. What an earlier agent
/// captured goes as it would without a mesh: nobody accepts it.
fn close(datapath: &mut Datapath, wanted: &Wanted, remembered: &Remembered) -> Result<(), EnrolError> {
    datapath.remove_pod(remembered.cookie)?;
    let looked = look(&wanted.place)?;
    if looked.netns.cookie() != remembered.cookie {
        return Err(EnrolError::Taken(wanted.place.path.clone()));
    }
    datapath.set_inbound_modes(&remembered.steered, &wanted.modes)?;
    Ok(datapath.attach_pod(remembered.cookie, looked.netns.file().as_fd())?)
}

/// Makes these sockets the listeners of these addresses.
pub(super) fn set_listeners(
    datapath: &mut Datapath,
    addresses: &[IpAddr],
    listeners: &[Listener],
) -> Result<(), DatapathError> {
    for listener in listeners {
        for address in addresses.iter().filter(|address| address.is_ipv4() == listener.v4) {
            datapath.set_listener(*address, listener.role, listener.socket.as_fd())?;
        }
    }
    Ok(())
}

/// A pod, and whether it was released.
pub type Released = (WorkloadUid, Result<(), EnrolError>);

/// Leaves no trace of any agent on this machine's pods: for `meshd uninstall`. The pins are removed elsewhere. One result a pod:
/// what cannot be taken out of one stays remembered, for another try.
pub fn uninstall(state_dir: &Path) -> Result<Vec<Released>, EnrolError> {
    let state = StateDir::open(state_dir).map_err(EnrolError::State)?;
    Ok(release_all(&state, find_and_take_up))
}

fn release_all(state: &StateDir, take_up: impl Fn(&Remembered) -> Result<(), EnrolError>) -> Vec<Released> {
    let release = |(cookie, pod): (u64, Remembered)| {
        let released = take_up(&pod).inspect(|()| state.forget(cookie));
        (pod.uid, released)
    };
    state.load().into_iter().map(release).collect()
}

/// Takes rules, routes and sysctls out of a namespace.
fn take_up(netns: &NetNs, before: Before) -> Result<(), EnrolError> {
    netns.run(move || plumbing::take_up(before)).map_err(|source| EnrolError::Plumbing {
        operation: "take up rules and routes",
        path: netns.path().to_owned(),
        source,
    })
}

/// The same for a namespace that is not held; one that is gone has taken them with it.
fn find_and_take_up(pod: &Remembered) -> Result<(), EnrolError> {
    match find(pod) {
        Some(netns) => take_up(&netns, pod.before),
        None => Ok(()),
    }
}

/// The namespace of a pod that an earlier agent enrolled: where that one opened it, or at any process that is in it (the one
/// that it was opened at may have ended).
fn find(pod: &Remembered) -> Option<NetNs> {
    let is_it = |netns: &NetNs| netns.cookie() == pod.cookie;
    if let Some(netns) = NetNs::open(&pod.netns).ok().filter(is_it) {
        return Some(netns);
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let namespaces = processes.map(|process| process.path().join("ns/net"));
    namespaces
        .filter(|path| fs::metadata(path).is_ok_and(|found| found.ino() == pod.inode))
        .find_map(|path| NetNs::open(&path).ok().filter(is_it))
}

/// The addresses of the calling thread's namespace, but for loopback.
pub(super) fn present() -> io::Result<Vec<IpAddr>> {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, cookie: u64) -> Remembered {
        Remembered {
            uid: WorkloadUid::pod("default", name),
            netns: format!("/var/run/netns/{cookie}").into(),
            cookie,
            addresses: Vec::new(),
            steered: Vec::new(),
            before: serde_json::from_str(r#"{"sysctls": [false, false, false]}"#).unwrap(),
            inode: 0,
        }
    }

    #[test]
    fn a_pod_that_was_closed_gives_way_to_the_next_one_of_its_name_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut enroller = Enroller::open(dir.path()).unwrap();
        for (name, cookie) in [("web", 1), ("web", 2), ("other", 3)] {
            enroller.remember(&pod(name, cookie)).unwrap();
        }
        let earlier = |name: &str, cookie, held: &[u64]| -> Vec<u64> {
            let earlier = enroller.earlier(&WorkloadUid::pod("default", name), cookie, held);
            earlier.iter().map(|pod| pod.cookie).collect()
        };
        assert_eq!(earlier("web", 4, &[]), [1, 2]);
        assert_eq!(earlier("web", 2, &[]), [1], "itself is taken over");
        assert_eq!(earlier("web", 4, &[1]), [2], "one that is enrolled has to leave first");
        assert!(earlier("new", 4, &[]).is_empty());
    }

    #[test]
    fn a_pod_that_cannot_be_released_keeps_no_other_from_it_and_stays_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for cookie in 1..=3 {
            state.save(&pod(&cookie.to_string(), cookie)).unwrap();
        }
        let fails = |pod: &Remembered| {
            if pod.cookie == 2 { Err(EnrolError::NotFound(pod.uid.clone())) } else { Ok(()) }
        };
        let released = release_all(&state, fails);
        let failed: Vec<bool> = released.iter().map(|(_, released)| released.is_err()).collect();
        assert_eq!(failed, [false, true, false]);
        assert_eq!(state.load().into_keys().collect::<Vec<_>>(), [2]);
        assert!(release_all(&state, |_pod| Ok(())).iter().all(|(_, released)| released.is_ok()));
        assert!(state.load().is_empty());
    }
}
