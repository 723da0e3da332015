//! What has been published and is not yet known to be in force: since when it waits, what changed in it, and when that
//! happened in the cluster.
//!
//! The feed writes it before it publishes a snapshot, so that whoever puts a snapshot in force always finds its entry.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use imbl::ordmap::DiffItem;

use crate::model::{Service, ServicePort, Snapshot};
use crate::resources::{Change, Object};

/// Entries that are kept apart; what comes beyond is added to the last one.
const MAX_WAITING: usize = 256;
/// Times that are kept of one entry.
const MAX_TRIGGERS: usize = 4096;

/// One snapshot that was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its generation.
    pub generation: u64,
    /// When.
    pub at: SystemTime,
    /// Services that came, went or are written differently.
    pub services: u64,
    /// Services whose endpoints became different.
    pub endpoints: u64,
    /// When the changes happened, as far as the objects say.
    pub triggers: Vec<SystemTime>,
}

/// See the module.
#[derive(Debug)]
pub struct ChangeLog {
    started: SystemTime,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Published>,
    totals: Totals,
}

/// All that was ever published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sum of [`Published::services`].
    pub services: u64,
    /// Sum of [`Published::endpoints`].
    pub endpoints: u64,
    /// When the last snapshot was published.
    pub last: Option<SystemTime>,
}

impl Default for ChangeLog {
    fn default() -> Self {
        Self { started: SystemTime::now(), inner: Mutex::default() }
    }
}

impl ChangeLog {
    /// A snapshot is about to be published in the place of another.
    pub(super) fn publish(&self, old: &Snapshot, new: &Snapshot, mut triggers: Vec<SystemTime>) {
        // What happened before this agent was there is not its delay.
        triggers.retain(|trigger| *trigger > self.started);
        let (services, endpoints) = differences(old, new);
        let now = SystemTime::now();
        let mut inner = self.lock();
        let totals = &mut inner.totals;
        totals.services += services;
        totals.endpoints += endpoints;
        totals.last = Some(now);
        if inner.waiting.len() < MAX_WAITING {
            let generation = new.generation;
            inner.waiting.push_back(Published { generation, at: now, services, endpoints, triggers });
        } else if let Some(last) = inner.waiting.back_mut() {
            last.generation = new.generation;
            last.services += services;
            last.endpoints += endpoints;
            last.triggers.extend(triggers);
        }
        if let Some(last) = inner.waiting.back_mut() {
            last.triggers.truncate(MAX_TRIGGERS);
        }
    }

    /// A snapshot is in force, and with it all before it; returns those.
    pub fn in_force(&self, generation: u64) -> Vec<Published> {
        let waiting = &mut self.lock().waiting;
        let done = waiting.iter().take_while(|entry| entry.generation <= generation).count();
        waiting.drain(..done).collect()
    }

    /// When the oldest that waits was published.
    pub fn oldest(&self) -> Option<SystemTime> {
        self.lock().waiting.front().map(|entry| entry.at)
    }

    /// Services and services' endpoints that wait.
    pub fn waiting(&self) -> (u64, u64) {
        let waiting = &self.lock().waiting;
        waiting.iter().fold((0, 0), |(services, endpoints), entry| {
            (services + entry.services, endpoints + entry.endpoints)
        })
    }

    /// All that was ever published.
    pub fn totals(&self) -> Totals {
        self.lock().totals
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When these changes happened, where the objects say.
pub(super) fn triggers(changes: &[Change]) -> Vec<SystemTime> {
    let trigger = |change: &Change| {
        // A slice that is deleted still has the time of its last change.
        let Change::Upsert(object) = change else { return None };
        let Object::EndpointSlice(slice) = &**object else { return None };
        slice.trigger
    };
    changes.iter().filter_map(trigger).collect()
}

/// Services that are written differently, and services whose endpoints are different.
fn differences(old: &Snapshot, new: &Snapshot) -> (u64, u64) {
    let (mut services, mut endpoints) = (0, 0);
    for change in old.services.diff(&new.services) {
        let (spec, listed) = match change {
            DiffItem::Add(_, service) | DiffItem::Remove(_, service) => (true, has_endpoints(service)),
            DiffItem::Update { old: (_, old), new: (_, new) } => {
                (!same_spec(old, new), !same_endpoints(old, new))
            }
        };
        services += u64::from(spec);
        endpoints += u64::from(listed);
    }
    (services, endpoints)
}

fn has_endpoints(service: &Service) -> bool {
    service.ports.iter().any(|port| !port.listed.is_empty())
}

fn same_endpoints(old: &Service, new: &Service) -> bool {
    old.ports.len() == new.ports.len()
        && old.ports.iter().zip(&new.ports).all(|(old, new)| old.listed == new.listed)
}

/// Where connections go aside: that follows from endpoints and routes.
fn same_spec(old: &Service, new: &Service) -> bool {
    let same_port = |(old, new): (&ServicePort, &ServicePort)| {
        (&old.name, old.port, old.protocol, old.node_port)
            == (&new.name, new.port, new.protocol, new.node_port)
    };
    let bare = |service: &Service| (service.kind, service.internal, service.affinity_seconds);
    bare(old) == bare(new)
        && old.addresses == new.addresses
        && old.external == new.external
        && old.ports.len() == new.ports.len()
        && old.ports.iter().zip(&new.ports).all(same_port)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::model::{Endpoint, Protocol, ServiceName};

    fn snapshot(generation: u64, services: &[(&str, u16, usize)]) -> Snapshot {
        let mut snapshot = Snapshot { generation, ..Snapshot::default() };
        for &(name, port, count) in services {
            let name = ServiceName::new("default", name);
            let endpoint = |last: usize| Endpoint::at(([10, 0, 0, u8::try_from(last).unwrap()], 80).into());
            let port = ServicePort::plain(&name, port, Protocol::Tcp, (0..count).map(endpoint).collect());
            let service =
                Service::internal(name.clone(), "host".into(), vec![[10, 96, 0, 1].into()], vec![port]);
            snapshot.services.insert(name, Arc::new(service));
        }
        snapshot
    }

    #[test]
    fn what_waits_is_counted_until_it_is_in_force() {
        let log = ChangeLog::default();
        let states = [
            snapshot(0, &[]),
            snapshot(1, &[("a", 80, 1), ("b", 80, 0)]),
            snapshot(2, &[("a", 80, 2), ("b", 80, 0)]),
            snapshot(3, &[("a", 81, 2)]),
        ];
        let counted: Vec<_> = states
            .windows(2)
            .map(|pair| {
                log.publish(&pair[0], &pair[1], Vec::new());
                log.waiting()
            })
            .collect();
        // Two come, one of them with an endpoint; one endpoint more; one port is another and one service gone.
        assert_eq!(counted, [(2, 1), (2, 2), (4, 2)]);
        assert_eq!(log.in_force(2).len(), 2);
        assert_eq!(log.waiting(), (2, 0));
        assert!(log.oldest().is_some());
        assert_eq!(log.in_force(3).iter().map(|entry| entry.generation).collect::<Vec<_>>(), [3]);
        assert_eq!((log.oldest(), log.waiting()), (None, (0, 0)));
        let totals = log.totals();
        assert_eq!((totals.services, totals.endpoints), (4, 2));
    }

    #[test]
    fn nothing_grows_without_bound_and_old_changes_are_no_delay() {
        let log = ChangeLog::default();
        let (empty, one) = (snapshot(0, &[]), snapshot(1, &[("a", 80, 1)]));
        let (before, after) = (log.started - Duration::from_secs(1), log.started + Duration::from_secs(1));
        for _ in 0..MAX_WAITING + 10 {
            log.publish(&empty, &one, vec![before, after]);
        }
        let done = log.in_force(1);
        assert_eq!(done.len(), MAX_WAITING);
        assert!(done.iter().flat_map(|entry| &entry.triggers).all(|trigger| *trigger == after));
        assert_eq!(done.iter().map(|entry| entry.services).sum::<u64>(), MAX_WAITING as u64 + 10);
    }
}
