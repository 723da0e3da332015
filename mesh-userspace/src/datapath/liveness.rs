//! Liveness: the kernel captures only while the agent lives.
//!
//! Two signs. The heartbeat, written by a thread of its own, goes stale when the agent hangs. The lifelines are two UDP
//! sockets, one on the lowest descriptor and one above all others: whichever end the kernel begins with when it closes a
//! process's files (6.18 runs the deferred closes last in, first out), one of them goes before every listener, however the
//! process ends; `sock_release` then clears the heartbeat at once.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use aya::maps::{Array, MapData};
use mesh_common::abi::{LAYOUT_VERSION, STATE_TRANSLATE, State};
use mesh_common::names::map;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit};

use super::DatapathError;
use crate::socket::{cookie, own_netns_cookie};

const INTERVAL: Duration = Duration::from_millis(500);
/// No descriptor is expected above this; the kernel's table of descriptors is as long as the highest.
const HIGHEST: u64 = 1 << 17;
const MAX_AGE: Duration = Duration::from_secs(3);

type StateMap = Array<MapData, State>;

/// Keeps the agent known as alive until it is dropped.
pub(super) struct Liveness {
    lifeline: Lifeline,
    state: Arc<Mutex<(StateMap, State)>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The lifelines, opened before anything else.
pub struct Lifeline {
    lowest: UdpSocket,
    highest: UdpSocket,
}

impl Lifeline {
    /// Opens them. The limit on open files must be what it will be.
    pub fn open() -> Result<Self, DatapathError> {
        let open = || -> std::io::Result<Self> {
            let lowest = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let highest = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
            let floor = i32::try_from(limit.min(HIGHEST)).unwrap_or(i32::MAX) - 1;
            let moved = fcntl(&highest, FcntlArg::F_DUPFD_CLOEXEC(floor))?;
            // SAFETY: the call made the descriptor, and nothing else knows it.
            let highest = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(moved) });
            Ok(Self { lowest, highest })
        };
        open().map_err(DatapathError::Lifeline)
    }

    fn cookies(&self) -> std::io::Result<[u64; 2]> {
        Ok([cookie(&self.lowest)?, cookie(&self.highest)?])
    }
}

impl Liveness {
    /// Tells the kernel which socket the lifeline is. Nothing is captured yet.
    pub(super) fn announce(
        map: StateMap,
        lifeline: Lifeline,
        translates: bool,
    ) -> Result<Self, DatapathError> {
        let state = State {
            heartbeat_max_age_ns: u64::try_from(MAX_AGE.as_nanos()).expect("a few seconds"),
            lifeline_cookies: lifeline.cookies().map_err(DatapathError::Lifeline)?,
            node_netns_cookie: own_netns_cookie().map_err(DatapathError::Lifeline)?,
            layout_version: LAYOUT_VERSION,
            flags: if translates { STATE_TRANSLATE } else { 0 },
            ..State::default()
        };
        let state = Arc::new(Mutex::new((map, state)));
        write(&state, |_| ())?;
        Ok(Self { lifeline, state, stop: Arc::default(), thread: None })
    }

    /// Once the programs are attached: lets them learn who the agent is, and begins to beat.
    pub(super) fn start(&mut self) -> Result<(), DatapathError> {
        // Port 9 is discard; connecting a UDP socket sends nothing.
        self.lifeline.lowest.connect((Ipv4Addr::LOCALHOST, 9)).map_err(DatapathError::Lifeline)?;
        {
            let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let (map, state) = &mut *guard;
            let learnt = map.get(&0, 0).map_err(DatapathError::map("read", map::STATE))?;
            state.agent_tgid = learnt.agent_tgid;
        }
        beat(&self.state)?;
        let (state, stop) = (Arc::clone(&self.state), Arc::clone(&self.stop));
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::park_timeout(INTERVAL);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if let Err(error) = beat(&state) {
                    tracing::error!(%error, "heartbeat could not be written");
                }
            }
        });
        self.thread = Some(thread.map_err(DatapathError::Lifeline)?);
        Ok(())
    }

    /// Whether the programs have learnt who the agent is: they have run for a socket of ours.
    pub(super) fn is_known(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.agent_tgid != 0
    }

    /// Age of the heartbeat as the kernel sees it; `None` while nothing is captured.
    pub(super) fn heartbeat_age(&self) -> Option<Duration> {
        let guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let held = guard.0.get(&0, 0).ok().filter(|state| state.heartbeat_ns != 0)?;
        Some(Duration::from_nanos(super::monotonic_ns().saturating_sub(held.heartbeat_ns)))
    }

    /// Lets one socket of the agent's own be captured, for the self-test; 0 ends that.
    pub(super) fn set_canary(&self, cookie: u64) -> Result<(), DatapathError> {
        write(&self.state, |state| state.canary_cookie = cookie)
    }

    /// Ends capture: what is connected from here on goes directly or is refused.
    pub(super) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It only writes a map; a panic in it has been logged.
            let _ = thread.join();
        }
        if let Err(error) = write(&self.state, |state| state.heartbeat_ns = 0) {
            tracing::error!(%error, "heartbeat could not be cleared");
        }
    }
}

impl Drop for Liveness {
    fn drop(&mut self) {
        self.stop();
    }
}

fn beat(state: &Mutex<(StateMap, State)>) -> Result<(), DatapathError> {
    write(state, |state| state.heartbeat_ns = super::monotonic_ns())
}

fn write(shared: &Mutex<(StateMap, State)>, change: impl FnOnce(&mut State)) -> Result<(), DatapathError> {
    let mut guard = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let (map, state) = &mut *guard;
    change(state);
    map.set(0, *state, 0).map_err(DatapathError::map("write to", map::STATE))
}
