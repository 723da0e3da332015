//! One pass: what is open, what of it is to be ended, in which namespaces, and the ends themselves.
//!
//! Runs on a thread of its own, which goes from namespace to namespace and is not used for anything afterwards.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::Ended;
use super::doomed::{Judge, Reason};
use super::namespaces::Namespaces;
use super::sock_diag::{Connected, End, SockDiag};
use crate::datapath::{DatapathError, OpenSocket, OpenSockets};
use crate::model::{Protocol, Snapshot};

/// A connect notes its socket before it puts it where it can be found: those that were not are looked for again after this.
const AGAIN: Duration = Duration::from_millis(20);

/// Why a pass could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    /// The maps.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Its thread.
    #[error("cannot start the thread of a pass")]
    Start(#[source] io::Error),
    /// A defect.
    #[error("the pass panicked")]
    Panicked,
}

/// Why a socket could not be ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failure {
    /// Its namespace is found nowhere: an open descriptor alone holds it.
    Namespace,
    /// The namespace cannot be entered, or its sockets not be listed.
    List,
    /// The kernel refused.
    Refused,
}

impl Failure {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "namespace_not_found",
            Self::List => "not_listed",
            Self::Refused => "refused",
        }
    }
}

/// What a pass came to.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Sockets that came through a service.
    pub(super) open: usize,
    /// Ended.
    pub(super) ended: BTreeMap<(Protocol, Reason), u64>,
    /// Not ended.
    pub(super) failed: BTreeMap<Failure, u64>,
}

impl Tally {
    /// Sockets of a protocol that were ended.
    pub(super) fn of(&self, protocol: Protocol) -> u64 {
        self.ended.iter().filter(|((of, _), _)| *of == protocol).map(|(_, count)| count).sum()
    }

    /// Sockets that could not be.
    pub(super) fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Whether what failed may be different at the next try.
    pub(super) fn is_worth_another(&self) -> bool {
        self.failed.keys().any(|failure| *failure != Failure::Namespace)
    }

    fn fail(&mut self, failure: Failure, sockets: usize, error: Option<&io::Error>) {
        *self.failed.entry(failure).or_default() += sockets as u64;
        if let Some(error) = error {
            tracing::debug!(%error, sockets, reason = failure.as_str(), "sockets cannot be ended");
        }
    }
}

/// What a pass needs.
pub(super) struct Pass<'a> {
    pub(super) open: &'a OpenSockets,
    pub(super) snapshot: &'a Snapshot,
    /// `CLOCK_MONOTONIC` in ns when the kernel maps held what the snapshot says.
    pub(super) in_force_ns: u64,
    /// The latest snapshot that the kernel maps may hold parts of.
    pub(super) newest: &'a (dyn Fn() -> Option<Arc<Snapshot>> + Sync),
    pub(super) namespaces: &'a mut Namespaces,
    pub(super) absent: &'a mut Absent,
    pub(super) ended: &'a Ended,
}

/// A socket, by its cookie, and the backend that it was sent to.
type Way = (u64, SocketAddr);
/// What the last pass looked for twice and did not find: datagram sockets that are not connected.
pub(super) type Absent = HashSet<Way>;
/// Sockets of one namespace and protocol that are to be ended.
type Doomed = HashMap<Way, (OpenSocket, Reason)>;
/// All of them.
type DoomedByPlace = BTreeMap<(u64, Protocol), Doomed>;

impl Pass<'_> {
    /// Ends what is to be ended. The kernel maps must hold what the snapshot says.
    pub(super) fn run(&mut self) -> Result<Tally, PassError> {
        self.ended.tidy();
        let mut tally = Tally::default();
        let (open, doomed) = self.doomed(|_| true)?;
        tally.open = open;
        let missing = self.end(doomed, &mut tally);
        let (mut absent, missing): (Absent, Absent) =
            missing.into_iter().partition(|way| self.absent.contains(way));
        if !missing.is_empty() {
            std::thread::sleep(AGAIN);
            let (_, doomed) = self.doomed(|way| missing.contains(way))?;
            // Not to be found now either: it has closed, its connect failed, or it is not connected.
            absent.extend(self.end(doomed, &mut tally));
        }
        *self.absent = absent;
        Ok(tally)
    }

    /// How many are open, and those to be ended, by namespace and protocol.
    fn doomed(&self, which: impl Fn(&Way) -> bool) -> Result<(usize, DoomedByPlace), DatapathError> {
        let mut judge = Judge::new(self.snapshot);
        let mut doomed = DoomedByPlace::new();
        let mut open = 0;
        self.open.for_each(|socket| {
            open += 1;
            let way = (socket.cookie, socket.backend);
            if let Some(reason) = judge.reason(socket).filter(|_| which(&way)) {
                let place = doomed.entry((socket.netns_cookie, socket.protocol)).or_default();
                place.insert(way, (*socket, reason));
            }
        })?;
        self.spare_newer(&mut doomed);
        Ok((open, doomed))
    }

    /// An endpoint that went may have come back by now: what was sent there since is not judged by the snapshot in which it
    /// was away. Whatever was read from the maps was sent by the newest snapshot or an earlier one.
    fn spare_newer(&self, doomed: &mut DoomedByPlace) {
        let Some(newest) = (self.newest)() else { return };
        let mut judge = Judge::new(&newest);
        for place in doomed.values_mut() {
            place.retain(|_, (socket, _)| {
                socket.since_ns < self.in_force_ns || judge.reason(socket).is_some()
            });
        }
    }

    /// Ends these; returns those that were not found.
    fn end(&mut self, doomed: DoomedByPlace, tally: &mut Tally) -> Absent {
        let wanted: BTreeSet<u64> = doomed.keys().map(|(netns, _)| *netns).collect();
        let snapshot = self.snapshot;
        let namespaces = self.namespaces.open(&wanted, || paths(snapshot));
        let mut missing = Absent::new();
        for ((netns, protocol), mut doomed) in doomed {
            match namespaces.get(&netns) {
                None => tally.fail(Failure::Namespace, doomed.len(), None),
                Some(file) => match self.end_in(file, protocol, &mut doomed, tally) {
                    Ok(()) => missing.extend(doomed.into_keys()),
                    Err(error) => tally.fail(Failure::List, doomed.len(), Some(&error)),
                },
            }
        }
        missing
    }

    /// Ends sockets of one namespace; who is dealt with leaves `doomed`.
    fn end_in(
        &self,
        netns: &File,
        protocol: Protocol,
        doomed: &mut Doomed,
        tally: &mut Tally,
    ) -> io::Result<()> {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        let mut diag = SockDiag::open()?;
        let backends: HashSet<SocketAddr> = doomed.values().map(|(socket, _)| socket.backend).collect();
        let backends: Vec<SocketAddr> = backends.into_iter().collect();
        let mut found: Vec<Connected> = Vec::new();
        diag.connected(protocol, &backends, |socket| {
            if doomed.contains_key(&way(&socket)) {
                found.push(socket);
            }
        })?;
        for socket in found {
            let Some((known, reason)) = doomed.get(&way(&socket)) else { continue };
            if protocol == Protocol::Tcp {
                self.ended.expect(known.netns_cookie, socket.source(), socket.peer());
            }
            match diag.end(&socket) {
                Ok(End::Absent) => continue,
                Ok(End::Ended) => *tally.ended.entry((protocol, *reason)).or_default() += 1,
                Err(error) => tally.fail(Failure::Refused, 1, Some(&error)),
            }
            doomed.remove(&way(&socket));
        }
        Ok(())
    }
}

fn way(socket: &Connected) -> Way {
    (socket.cookie(), socket.peer())
}

/// Where the pods of this node say that their namespaces are.
fn paths(snapshot: &Snapshot) -> Vec<PathBuf> {
    snapshot.here.values().filter_map(|workload| workload.netns.clone()).collect()
}
