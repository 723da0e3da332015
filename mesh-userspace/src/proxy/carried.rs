//! Connections of one worker that go to a service's endpoint, so that those whose endpoint goes can be ended.
//!
//! One entry for all that asked for the same and were sent to the same; a connection that stays costs a look-up at its
//! beginning and one at its end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::model::{Fate, Protocol, Snapshot};

/// What a client asked for, and the endpoint that it was sent to.
type Way = (SocketAddr, SocketAddr);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Carried(RefCell<HashMap<Way, Rc<Notify>>>);

impl Carried {
    /// Notes a connection for as long as what is returned lives.
    pub(crate) fn enter(self: &Rc<Self>, asked: SocketAddr, endpoint: SocketAddr) -> Entry {
        let way = (asked, endpoint);
        let notify = Rc::clone(self.0.borrow_mut().entry(way).or_default());
        Entry { carried: Rc::clone(self), way, notify }
    }

    /// Ends all whose endpoint is gone.
    pub(crate) fn end_gone(&self, snapshot: &Snapshot) {
        self.0.borrow_mut().retain(|way, notify| {
            let stays = !is_gone(snapshot, way);
            if !stays {
                notify.notify_waiters();
            }
            stays
        });
    }
}

/// A connection that is being carried.
#[derive(Debug)]
pub(crate) struct Entry {
    carried: Rc<Carried>,
    way: Way,
    notify: Rc<Notify>,
}

impl Entry {
    /// Returns once the endpoint is gone. `now` is the snapshot in force: the connection was routed by an earlier one.
    pub(crate) fn gone(&self, now: &Snapshot) -> impl Future<Output = ()> + use<'_> {
        let told = (!is_gone(now, &self.way)).then(|| self.notify.notified());
        async {
            if let Some(told) = told {
                told.await;
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut held = self.carried.0.borrow_mut();
        // The map's own, and this one: nobody else is left. One that was ended is no longer in the map.
        let is_own = held.get(&self.way).is_some_and(|notify| Rc::ptr_eq(notify, &self.notify));
        if is_own && Rc::strong_count(&self.notify) == 2 {
            held.remove(&self.way);
        }
    }
}

fn is_gone(snapshot: &Snapshot, (asked, endpoint): &Way) -> bool {
    snapshot.fate(snapshot.frontend_of(*asked, Protocol::Tcp), *endpoint) == Fate::Gone
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Poll;

    use futures_util::poll;

    use super::*;
    use crate::model::{Endpoint, Service, ServiceName, ServicePort};

    fn asked() -> SocketAddr {
        SocketAddr::from(([10, 96, 0, 1], 80))
    }

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 244, 0, last], 8080))
    }

    fn snapshot(endpoints: &[u8]) -> Snapshot {
        let name = ServiceName::new("shop", "web");
        let endpoints = endpoints.iter().map(|&last| Endpoint::at(at(last))).collect();
        let port = ServicePort::plain(&name, 80, Protocol::Tcp, endpoints);
        let service = Arc::new(Service::internal(name, "web".into(), vec![asked().ip()], vec![port]));
        let mut snapshot = Snapshot::default();
        snapshot.frontends.extend(service.frontends().map(|frontend| (frontend, Arc::clone(&service))));
        snapshot
    }

    #[tokio::test]
    async fn those_to_the_endpoint_that_went_are_told() {
        let carried = Rc::new(Carried::default());
        let entries = [1, 1, 2].map(|last| carried.enter(asked(), at(last)));
        let before = snapshot(&[1, 2]);
        let mut gone = entries.each_ref().map(|entry| Box::pin(entry.gone(&before)));
        for waiting in &mut gone {
            assert_eq!(poll!(waiting), Poll::Pending);
        }
        carried.end_gone(&snapshot(&[2, 3]));
        let told = [poll!(&mut gone[0]), poll!(&mut gone[1]), poll!(&mut gone[2])];
        assert_eq!(told, [Poll::Ready(()), Poll::Ready(()), Poll::Pending]);
        drop(gone);
        // The endpoint came back while one that was told had yet to end.
        let anew = carried.enter(asked(), at(1));
        drop(entries);
        assert_eq!(carried.0.borrow().len(), 1, "the new one is still noted");
        drop(anew);
        assert!(carried.0.borrow().is_empty());
    }

    #[tokio::test]
    async fn an_endpoint_that_went_during_the_connect_is_noticed() {
        let carried = Rc::new(Carried::default());
        carried.enter(asked(), at(1)).gone(&snapshot(&[2])).await;
    }
}
