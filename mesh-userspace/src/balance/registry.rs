//! All destinations that have connections, or had some lately. Shared by all workers.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use imbl::HashMap;
use tokio::time::Instant;

use super::destination::{Destination, Key, Overflow, Place, Retrying};
use super::live::{Live, LiveState};
use super::outlier::Change;
use super::teller::Teller;
use super::view::{Asking, View};
use crate::model::{
    Endpoint, OutlierDetection, Protocol, RouteTarget, ServiceName, Snapshot, TrafficSettings,
};

/// A destination that nobody asked for in so long is forgotten.
const IDLE: Duration = Duration::from_mins(10);
/// How often those that are idle or gone are looked for: what that costs grows with how many there are.
const TIDY: Duration = Duration::from_mins(1);
/// Looks at who comes back are not closer to each other than this.
const CLOSEST: Duration = Duration::from_millis(10);

/// See the module.
pub struct Balancers {
    destinations: ArcSwap<HashMap<ServiceName, Arc<[Arc<Destination>]>>>,
    /// Held while destinations come or go.
    changing: Mutex<()>,
    began: Instant,
    teller: Arc<Teller>,
}

impl fmt::Debug for Balancers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancers").finish_non_exhaustive()
    }
}

impl Default for Balancers {
    fn default() -> Self {
        Self {
            destinations: ArcSwap::default(),
            changing: Mutex::default(),
            began: Instant::now(),
            teller: Arc::default(),
        }
    }
}

impl Balancers {
    /// Tells `listener` of every ejection and every return; the first one that is given is told.
    pub fn on_change(&self, listener: impl Fn(&Change) + Send + Sync + 'static) {
        if !self.teller.set(Box::new(listener)) {
            tracing::warn!("ejections are told to somebody already");
        }
    }

    /// The destination that a route's target is, with what is known of its endpoints.
    pub(crate) fn look(&self, target: &RouteTarget) -> Looked {
        self.look_for(target, false)
    }

    /// The same for a copy: counted by itself, so that it takes no place of a client's own connection, and judges no endpoint.
    pub(crate) fn look_for_copy(&self, target: &RouteTarget) -> Looked {
        self.look_for(target, true)
    }

    fn look_for(&self, target: &RouteTarget, copy: bool) -> Looked {
        let now = Instant::now();
        let destination = self.find(target, copy).unwrap_or_else(|| self.add(target, copy));
        let used = u64::try_from((now - self.began).as_millis()).unwrap_or(u64::MAX);
        destination.used.store(used, Ordering::Relaxed);
        let (view, changes) = destination.view(target, now);
        self.teller.tell(&changes);
        Looked { destination, view }
    }

    fn find(&self, target: &RouteTarget, copy: bool) -> Option<Arc<Destination>> {
        let destinations = self.destinations.load();
        let of_service = destinations.get(&target.service)?;
        of_service.iter().find(|destination| destination.key.is_of(target, copy)).map(Arc::clone)
    }

    fn add(&self, target: &RouteTarget, copy: bool) -> Arc<Destination> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been faster.
        if let Some(destination) = self.find(target, copy) {
            return destination;
        }
        let key = if copy { Key::of_copies(target) } else { Key::of(target) };
        let destination = Arc::new(Destination::new(key, Arc::clone(&self.teller)));
        let mut destinations = HashMap::clone(&self.destinations.load());
        let held = destinations.get(&target.service).map_or(&[][..], |held| held);
        let all: Arc<[_]> = held.iter().chain([&destination]).map(Arc::clone).collect();
        destinations.insert(target.service.clone(), all);
        self.destinations.store(Arc::new(destinations));
        destination
    }

    /// Forgets destinations that are gone from the mesh. Connections to them go on.
    fn follow(&self, snapshot: &Snapshot) {
        self.retain(|destination| {
            let service = snapshot.services.get(&destination.key.service);
            service.is_some_and(|service| service.port(destination.key.port, Protocol::Tcp).is_some())
        });
    }

    fn retain(&self, stays: impl Fn(&Destination) -> bool) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.destinations.load();
        let going: Vec<&ServiceName> = before
            .iter()
            .filter(|(_, held)| held.iter().any(|destination| !stays(destination)))
            .map(|(service, _)| service)
            .collect();
        if going.is_empty() {
            return;
        }
        let mut destinations = HashMap::clone(&before);
        for service in going {
            let Some(held) = destinations.remove(service) else { continue };
            let left: Arc<[_]> =
                held.iter().filter(|destination| stays(destination)).map(Arc::clone).collect();
            if !left.is_empty() {
                destinations.insert(service.clone(), left);
            }
        }
        self.destinations.store(Arc::new(destinations));
    }

    /// Forgets those that are gone, and those that nobody has asked for in a long time; of these what is left out, and what is open, is
    /// remembered.
    fn tidy(&self, snapshot: &Snapshot, now: Instant) {
        self.follow(snapshot);
        self.retain(|destination| {
            let used = self.began + Duration::from_millis(destination.used.load(Ordering::Relaxed));
            now.saturating_duration_since(used) < IDLE || destination.open() > 0 || destination.ejected() > 0
        });
    }

    /// Brings endpoints back when their time has come, and forgets what is no longer in the mesh, for as long as it is polled.
    pub async fn run(&self, current: &ArcSwap<Snapshot>) {
        let mut tidied = Instant::now();
        loop {
            let now = Instant::now();
            if now - tidied >= TIDY {
                self.tidy(&current.load(), now);
                tidied = now;
            }
            let next = self.look_at_ejected(now).map_or(now + TIDY, |next| next.min(now + TIDY));
            tokio::select! {
                () = tokio::time::sleep_until(next.max(now + CLOSEST)) => {}
                () = self.teller.ejected.notified() => {}
            }
        }
    }

    /// Looks at all that are left out; returns when to look again.
    fn look_at_ejected(&self, now: Instant) -> Option<Instant> {
        let mut next = None;
        for destination in self.destinations.load().values().flat_map(|held| held.iter()) {
            let (changes, due) = destination.look(now);
            self.teller.tell(&changes);
            next = [next, due].into_iter().flatten().min();
        }
        next
    }

    /// Destinations that leave endpoints out, and how many.
    pub fn ejected(&self) -> Vec<(Key, u32)> {
        let destinations = self.destinations.load();
        let all = destinations.values().flat_map(|held| held.iter());
        let ejected = all.map(|destination| (destination.key.clone(), destination.ejected()));
        ejected.filter(|&(_, ejected)| ejected > 0).collect()
    }

    /// What is known of the endpoints of a route's target; empty where nobody has asked for it lately.
    pub fn states(&self, target: &RouteTarget) -> Vec<LiveState> {
        self.find(target, false).map(|destination| destination.states(Instant::now())).unwrap_or_default()
    }

    /// Endpoints of a target that clients' own connections are kept from.
    pub(crate) fn left_out(&self, target: &RouteTarget) -> Vec<SocketAddr> {
        let Some(destination) = self.find(target, false).filter(|held| held.ejected() > 0) else {
            return Vec::new();
        };
        let states = destination.states(Instant::now()).into_iter();
        states.filter(|state| state.ejected_for.is_some()).map(|state| state.address).collect()
    }

    /// Destinations that are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.destinations.load().values().map(|held| held.len()).sum()
    }
}

/// A destination as one connection found it.
pub(crate) struct Looked {
    destination: Arc<Destination>,
    view: Arc<View>,
}

impl Looked {
    /// What it is known by.
    pub(crate) fn key(&self) -> &Key {
        &self.destination.key
    }

    /// What is asked of connections.
    pub(crate) fn settings(&self) -> &Arc<TrafficSettings> {
        &self.view.settings
    }

    /// Room for one more connection.
    pub(crate) fn admit(&self) -> Result<Place, Overflow> {
        self.destination.admit(&self.view.settings.limits)
    }

    /// Picks an endpoint for a client that asked for an address of a family; none of `avoid`.
    pub(crate) fn pick(&self, v4: bool, client: IpAddr, avoid: &[SocketAddr]) -> Option<Picked<'_>> {
        let asking = Asking { v4, client, avoid, now: Instant::now() };
        let index = self.view.pick(&asking, self.destination.ejected() == 0, || fastrand::u64(..))?;
        Some(self.at(index))
    }

    /// Whether one could be picked.
    pub(crate) fn has_other(&self, v4: bool, client: IpAddr, avoid: &[SocketAddr]) -> bool {
        self.view.has_other(&Asking { v4, client, avoid, now: Instant::now() })
    }

    /// The endpoint with this address, unless it is left out.
    pub(crate) fn member(&self, address: SocketAddr) -> Option<Picked<'_>> {
        self.view.member(address).map(|index| self.at(index))
    }

    fn at(&self, index: usize) -> Picked<'_> {
        let (endpoint, live) = self.view.at(index);
        Picked { endpoint, live, outliers: self.view.settings.outliers }
    }

    /// Leave for one more retry.
    pub(crate) fn retry(&self) -> Option<Retrying> {
        self.destination.retry()
    }
}

/// An endpoint that was picked.
#[derive(Clone, Copy)]
pub(crate) struct Picked<'a> {
    /// The endpoint.
    pub(crate) endpoint: &'a Endpoint,
    pub(super) live: &'a Arc<Live>,
    /// By which its failures are counted.
    pub(super) outliers: Option<OutlierDetection>,
}
