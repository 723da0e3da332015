//! A destination while it has connections: how many, to which endpoints, and how many there may be.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::live::Live;
use super::outlier::{Change, Event, Failure, may_eject};
use super::registry::Picked;
use super::retry::budget;
use super::teller::Teller;
use super::view::{Listed, View};
use crate::model::{ConnectionLimits, OutlierDetection, RouteTarget, ServiceName, WorkloadUid};

/// Views that a destination keeps: one for each of the routes that lead to it and are in use at once.
const VIEWS: usize = 16;

/// What a destination is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// The subset, where one is named.
    pub subset: Option<Arc<str>>,
    /// Whether it is copies of connections that go there: they take nothing from clients' own.
    pub copy: bool,
}

impl Key {
    /// Of a route's target, for clients' own connections.
    pub fn of(target: &RouteTarget) -> Self {
        let RouteTarget { service, port, subset, .. } = target;
        Self { service: service.clone(), port: *port, subset: subset.clone(), copy: false }
    }

    /// Of a shadow, for copies.
    pub(super) fn of_copies(target: &RouteTarget) -> Self {
        Self { copy: true, ..Self::of(target) }
    }

    /// Whether it is the target's, for copies or for clients' own connections.
    pub(super) fn is_of(&self, target: &RouteTarget, copy: bool) -> bool {
        self.copy == copy
            && self.port == target.port
            && self.subset == target.subset
            && self.service == target.service
    }
}

impl fmt::Display for Key {
    /// `NAMESPACE/NAME:PORT`, and `/SUBSET` where there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)?;
        self.subset.as_ref().map_or(Ok(()), |subset| write!(f, "/{subset}"))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(super) key: Key,
    /// Connections, those that are being established among them.
    open: AtomicU32,
    /// Connections that are being established.
    pending: AtomicU32,
    /// Retries that are running.
    retrying: AtomicU32,
    /// Endpoints that are left out.
    ejected: AtomicU32,
    /// When it was last looked up, in milliseconds since the registry was made.
    pub(super) used: AtomicU64,
    views: ArcSwap<Vec<Arc<View>>>,
    state: Mutex<State>,
    teller: Arc<Teller>,
}

#[derive(Debug, Default)]
struct State {
    /// An address that another pod has now is another endpoint.
    endpoints: HashMap<(SocketAddr, Option<WorkloadUid>), Arc<Live>>,
    /// By which somebody was left out last: it says when they come back.
    rule: Option<OutlierDetection>,
    next_look: Option<Instant>,
    seen: bool,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// As many are open as may be (`maxConnections`).
    Connections(u32),
    /// As many are being established as may be (`http1MaxPendingRequests`).
    Pending(u32),
}

impl Overflow {
    /// As a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections(_) => "max_connections",
            Self::Pending(_) => "max_pending",
        }
    }
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connections(limit) => write!(f, "{limit} connections are open, which is the limit"),
            Self::Pending(limit) => {
                write!(f, "{limit} connections are being established, which is the limit")
            }
        }
    }
}

/// What is listed in any of the views, and since when it is new.
fn all_listed<'a>(
    views: impl Iterator<Item = &'a Arc<View>>,
) -> impl Iterator<Item = (*const Live, Option<Instant>)> {
    views.flat_map(|view| view.listed()).map(|listed| (Arc::as_ptr(&listed.live), listed.since))
}

impl Destination {
    pub(super) fn new(key: Key, teller: Arc<Teller>) -> Self {
        Self {
            key,
            open: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            retrying: AtomicU32::new(0),
            ejected: AtomicU32::new(0),
            used: AtomicU64::new(0),
            views: ArcSwap::default(),
            state: Mutex::default(),
            teller,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it looks to a route's target. What is returned beside it has come back as no rule leaves it out any more.
    pub(super) fn view(&self, target: &RouteTarget, now: Instant) -> (Arc<View>, Vec<Change>) {
        let find = || self.views.load().iter().find(|view| view.is_of(target)).map(Arc::clone);
        if let Some(view) = find() {
            return (view, Vec::new());
        }
        let mut state = self.state();
        // Somebody else may have been faster.
        if let Some(view) = find() {
            return (view, Vec::new());
        }
        let mut views: Vec<Arc<View>> = Vec::clone(&self.views.load());
        // Those of snapshots that are gone. The last one tells who was there until now all the same.
        let last = views.last().map(Arc::clone);
        views.retain(|view| view.is_in_use());
        let State { endpoints, seen, .. } = &mut *state;
        let known: HashMap<*const Live, Option<Instant>> = all_listed(views.iter().chain(&last)).collect();
        let mut listed = Vec::with_capacity(target.endpoints.len());
        for endpoint in &*target.endpoints {
            let key = (endpoint.address, endpoint.workload.clone());
            let new = |key: &(SocketAddr, Option<WorkloadUid>)| Arc::new(Live::new(key.0, key.1.clone()));
            let live = Arc::clone(endpoints.entry(key).or_insert_with_key(new));
            // One that was away is new again, whatever is still open to it.
            let since = known.get(&Arc::as_ptr(&live)).copied().unwrap_or(seen.then_some(now));
            listed.push(Listed { live, since });
        }
        let view = Arc::new(View::new(target, listed, now));
        state.seen = true;
        if views.len() >= VIEWS {
            views.remove(0);
        }
        views.push(Arc::clone(&view));
        let known: HashMap<*const Live, Option<Instant>> = all_listed(views.iter()).collect();
        state.endpoints.retain(|_, live| known.contains_key(&Arc::as_ptr(live)) || live.open() > 0);
        self.views.store(Arc::new(views));
        let has_rule = target.settings.outliers.is_some();
        let changes = if has_rule { Vec::new() } else { self.bring_all_back(&state, now) };
        self.count_ejected(&state);
        (view, changes)
    }

    fn bring_all_back(&self, state: &State, now: Instant) -> Vec<Change> {
        let back = state.endpoints.values().filter(|live| live.bring_back(now));
        back.map(|live| self.change(live, Event::Returned)).collect()
    }

    fn count_ejected(&self, state: &State) {
        let ejected = state.endpoints.values().filter(|live| live.is_ejected()).count();
        self.ejected.store(u32::try_from(ejected).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn change(&self, live: &Live, event: Event) -> Change {
        Change {
            destination: self.key.clone(),
            address: live.address,
            workload: live.workload.clone(),
            event,
        }
    }

    /// Endpoints that are left out.
    pub(super) fn ejected(&self) -> u32 {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Connections, those that are being established among them.
    pub(super) fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Room for one more connection.
    pub(super) fn admit(self: &Arc<Self>, limits: &ConnectionLimits) -> Result<Place, Overflow> {
        let place = |destination: &Arc<Self>| Place {
            destination: Arc::clone(destination),
            stage: Stage::Pending,
            at: None,
        };
        if !take(&self.open, limits.max_connections) {
            return Err(Overflow::Connections(limits.max_connections.unwrap_or_default()));
        }
        if !take(&self.pending, limits.max_pending) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Overflow::Pending(limits.max_pending.unwrap_or_default()));
        }
        Ok(place(self))
    }

    /// Leave for one more retry, given back when it is dropped.
    pub(super) fn retry(self: &Arc<Self>) -> Option<Retrying> {
        let most = budget(self.open());
        take(&self.retrying, Some(most)).then(|| Retrying(Arc::clone(self)))
    }

    /// An endpoint failed, which by the rule that it was picked under may be one time too many. Whichever view was made last
    /// has no say: it may be of a snapshot that is gone.
    fn failed(
        &self,
        live: &Arc<Live>,
        rule: OutlierDetection,
        failure: Failure,
        now: Instant,
    ) -> Option<Change> {
        let mut state = self.state();
        let reason = live.failed(&rule, failure)?;
        if live.is_ejected() {
            return None;
        }
        let views = self.views.load();
        // One that is no endpoint any more has nothing to be left out of.
        let view = views.iter().rev().find(|view| view.has(live))?;
        let (ejected, total) = view.ejected(live.address.is_ipv4());
        if !may_eject(&rule, ejected, total) {
            return Some(self.change(live, Event::Spared { reason }));
        }
        let (lasts, times) = live.eject(&rule, now);
        state.rule = Some(rule);
        state.next_look.get_or_insert(now + rule.interval);
        self.count_ejected(&state);
        Some(self.change(live, Event::Ejected { reason, lasts, times }))
    }

    /// Looks at who comes back, if it is time to; returns when to look again, if there is anything to look at.
    pub(super) fn look(&self, now: Instant) -> (Vec<Change>, Option<Instant>) {
        let mut state = self.state();
        let (Some(due), Some(rule)) = (state.next_look, state.rule) else { return (Vec::new(), None) };
        if now < due {
            return (Vec::new(), Some(due));
        }
        let back = state.endpoints.values().filter(|live| live.look(&rule, now));
        let changes = back.map(|live| self.change(live, Event::Returned)).collect();
        let at_rest = state.endpoints.values().all(|live| live.is_at_rest());
        state.next_look = (!at_rest).then_some(now + rule.interval);
        self.count_ejected(&state);
        (changes, state.next_look)
    }

    /// What is known of its endpoints.
    pub(super) fn states(&self, now: Instant) -> Vec<super::LiveState> {
        let state = self.state();
        state.endpoints.values().map(|live| live.state(state.rule.as_ref(), now)).collect()
    }
}

/// One more, unless there are `most` already.
fn take(count: &AtomicU32, most: Option<u32>) -> bool {
    let Some(most) = most else {
        count.fetch_add(1, Ordering::Relaxed);
        return true;
    };
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < most).then_some(count + 1))
        .is_ok()
}

/// A connection's place among those of its destination, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    destination: Arc<Destination>,
    stage: Stage,
    at: Option<At>,
}

/// The endpoint of a connection.
#[derive(Debug)]
struct At {
    live: Arc<Live>,
    /// By which its failures are counted; `None`: they are not.
    rule: Option<OutlierDetection>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Pending,
    Established,
}

impl Place {
    /// It is tried at this endpoint.
    pub(crate) fn at(&mut self, picked: Picked<'_>) {
        self.leave_endpoint();
        picked.live.begin();
        // How copies fare says nothing that clients' connections are to hear of.
        let rule = picked.outliers.filter(|_| !self.destination.key.copy);
        self.at = Some(At { live: Arc::clone(picked.live), rule });
    }

    /// It is at no endpoint, until another is tried.
    pub(crate) fn leave_endpoint(&mut self) {
        if let Some(at) = self.at.take() {
            at.live.end();
        }
    }

    /// The connection to the endpoint stands.
    pub(crate) fn established(&mut self) {
        self.no_longer_pending();
        if let Some(at) = &self.at {
            at.live.connected();
        }
    }

    /// The endpoint has answered.
    pub(crate) fn answered(&self) {
        if let Some(at) = &self.at {
            at.live.answered();
        }
    }

    /// The endpoint has failed.
    pub(crate) fn failed(&self, failure: Failure) {
        let Some(At { live, rule: Some(rule) }) = &self.at else { return };
        if let Some(change) = self.destination.failed(live, *rule, failure, Instant::now()) {
            self.destination.teller.tell(&[change]);
            self.destination.teller.ejected.notify_one();
        }
    }

    fn no_longer_pending(&mut self) {
        if self.stage == Stage::Pending {
            self.stage = Stage::Established;
            self.destination.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave_endpoint();
        self.no_longer_pending();
        self.destination.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A retry that is running.
#[derive(Debug)]
pub(crate) struct Retrying(Arc<Destination>);

impl Retrying {
    /// Where to.
    pub(crate) fn key(&self) -> &Key {
        &self.0.key
    }
}

impl Drop for Retrying {
    fn drop(&mut self) {
        self.0.retrying.fetch_sub(1, Ordering::Relaxed);
    }
}
