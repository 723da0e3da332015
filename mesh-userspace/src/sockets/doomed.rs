//! Which sockets are to be ended, and when it is worth looking for any: pure decisions over snapshots.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use imbl::ordmap::DiffItem;

use crate::datapath::OpenSocket;
use crate::model::{Fate, Frontend, Protocol, Service, ServiceName, ServicePort, Snapshot};

/// Why a socket is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Reason {
    /// Its endpoint is no longer listed.
    Gone,
    /// Its endpoint takes no new connections; for datagrams alone.
    NotServing,
}

impl Reason {
    /// As a label.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "endpoint_gone",
            Self::NotServing => "endpoint_not_serving",
        }
    }
}

const fn reason(protocol: Protocol, fate: Fate) -> Option<Reason> {
    match (fate, protocol) {
        (Fate::Gone, _) => Some(Reason::Gone),
        (Fate::Listed, Protocol::Udp) => Some(Reason::NotServing),
        (Fate::Listed | Fate::Serving, _) => None,
    }
}

/// Judges sockets by one snapshot; many sockets have few backends.
pub(super) struct Judge<'a> {
    snapshot: &'a Snapshot,
    judged: HashMap<(Protocol, SocketAddr, SocketAddr), Option<Reason>>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        Self { snapshot, judged: HashMap::new() }
    }

    /// Why the socket is to be ended, if it is.
    pub(super) fn reason(&mut self, socket: &OpenSocket) -> Option<Reason> {
        let OpenSocket { protocol, asked, backend, .. } = *socket;
        let judged = self.judged.entry((protocol, asked, backend));
        *judged.or_insert_with(|| {
            let asked = self.snapshot.frontend_of(asked, protocol);
            reason(protocol, self.snapshot.fate(asked, backend))
        })
    }
}

/// Whether an endpoint stopped serving or went between two snapshots: only then can there be sockets to end.
pub(super) fn something_went(before: &Snapshot, after: &Snapshot) -> bool {
    before.services.diff(&after.services).any(|change| match change {
        DiffItem::Add(..) => false,
        DiffItem::Remove(..) => true,
        DiffItem::Update { old: (_, old), new: (_, new) } => has_lost(old, new),
    })
}

fn has_lost(old: &Service, new: &Service) -> bool {
    let frontends: HashSet<Frontend> = new.frontends().collect();
    old.frontends().any(|frontend| !frontends.contains(&frontend))
        || old.ports.iter().any(|port| {
            new.port(port.port, port.protocol).is_none_or(|new| {
                is_less(serving(port), serving(new))
                    || is_less(listed(port), listed(new))
                    || is_less(targets(port), targets(new))
            })
        })
}

/// Whether `old` has what `new` has not.
fn is_less<T: Eq + std::hash::Hash>(mut old: impl Iterator<Item = T>, new: impl Iterator<Item = T>) -> bool {
    let new: HashSet<T> = new.collect();
    old.any(|one| !new.contains(&one))
}

fn serving(port: &ServicePort) -> impl Iterator<Item = SocketAddr> {
    let backends = port.routes().flat_map(|route| route.v4.backends().iter().chain(route.v6.backends()));
    backends.filter_map(|backend| Some(backend.endpoint.as_ref()?.address))
}

fn listed(port: &ServicePort) -> impl Iterator<Item = SocketAddr> {
    port.listed.iter().map(|endpoint| endpoint.address)
}

/// The services that a route leads to: their endpoints count as listed.
fn targets(port: &ServicePort) -> impl Iterator<Item = (&ServiceName, u16)> {
    port.routes().flat_map(|route| &route.targets).map(|target| (&target.service, target.port))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Endpoint, Route, RouteTarget};

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 244, 0, last], 8080))
    }

    fn endpoints(last: &[u8]) -> Arc<[Endpoint]> {
        last.iter().map(|&last| Endpoint::at(at(last))).collect()
    }

    /// `web`, with its address ending in `address`, an endpoint each.
    fn snapshot(address: u8, protocol: Protocol, serving: &[u8], listed: &[u8]) -> Snapshot {
        let name = ServiceName::new("shop", "web");
        let mut port = ServicePort::plain(&name, 80, protocol, endpoints(serving));
        port.listed = endpoints(listed);
        let service = Service::internal(name, "web".into(), vec![[10, 96, 0, address].into()], vec![port]);
        of([service])
    }

    fn of(services: impl IntoIterator<Item = Service>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for service in services {
            let service = Arc::new(service);
            for frontend in service.frontends() {
                snapshot.frontends.insert(frontend, Arc::clone(&service));
            }
            snapshot.services.insert(service.name.clone(), service);
        }
        snapshot
    }

    #[test]
    fn what_is_ended() {
        use Protocol::{Tcp, Udp};
        let cases = [
            (Tcp, 1, None),
            (Udp, 1, None),
            (Tcp, 2, None),
            (Udp, 2, Some(Reason::NotServing)),
            (Tcp, 3, Some(Reason::Gone)),
            (Udp, 3, Some(Reason::Gone)),
        ];
        for (protocol, backend, wanted) in cases {
            let snapshot = snapshot(1, protocol, &[1], &[1, 2]);
            let asked = SocketAddr::from(([10, 96, 0, 1], 80));
            let socket =
                OpenSocket { cookie: 1, netns_cookie: 1, protocol, asked, backend: at(backend), since_ns: 0 };
            let mut judge = Judge::new(&snapshot);
            assert_eq!(judge.reason(&socket), wanted, "{protocol:?} {backend}");
            assert_eq!(judge.reason(&socket), wanted, "the second time");
        }
    }

    #[test]
    fn a_look_is_taken_only_when_something_went() {
        let base = || snapshot(1, Protocol::Tcp, &[1, 2], &[1, 2, 3]);
        let tcp = |serving: &[u8], listed: &[u8]| snapshot(1, Protocol::Tcp, serving, listed);
        let cases = [
            ("nothing", base(), false),
            ("one more", tcp(&[1, 2, 3, 4], &[1, 2, 3, 4]), false),
            ("in another order", tcp(&[2, 1], &[3, 2, 1]), false),
            ("one no longer serves", tcp(&[1], &[1, 2, 3]), true),
            ("one that did not serve is gone", tcp(&[1, 2], &[1, 2]), true),
            ("one for another", tcp(&[1, 4], &[1, 4, 3]), true),
            ("another address", snapshot(2, Protocol::Tcp, &[1, 2], &[1, 2, 3]), true),
            ("another protocol", snapshot(1, Protocol::Udp, &[1, 2], &[1, 2, 3]), true),
            ("no service", Snapshot::default(), true),
        ];
        for (name, after, wanted) in cases {
            assert_eq!(something_went(&base(), &after), wanted, "{name}");
        }
        assert!(!something_went(&Snapshot::default(), &base()), "a new service");
    }

    #[test]
    fn a_route_that_leads_elsewhere_is_a_loss() {
        let with_targets = |names: &[&str]| {
            let name = ServiceName::new("shop", "web");
            let mut port = ServicePort::plain(&name, 80, Protocol::Tcp, endpoints(&[1]));
            let target = |name: &&str| {
                let weight = u32::from(*name == "web");
                RouteTarget::whole(ServiceName::new("shop", *name), 80, weight, endpoints(&[1]))
            };
            port.route = Route::new(Some("shop/rule".into()), names.iter().map(target).collect());
            of([Service::internal(name, "web".into(), vec![[10, 96, 0, 1].into()], vec![port])])
        };
        assert!(something_went(&with_targets(&["web", "canary"]), &with_targets(&["web"])));
        assert!(!something_went(&with_targets(&["web"]), &with_targets(&["web", "canary"])));
    }
}
