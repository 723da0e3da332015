//! What has become of a backend that a connection was sent to: whether to leave the connection alone, to move it on or to
//! end it is for whoever asks.
//!
//! Invariant: a TCP backend is gone only where its endpoint, its service or what was asked for is. That routes lead elsewhere now is
//! no reason: a change of routes is for the connections that come after it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use imbl::HashMap;

use super::{BackendSet, Endpoint, Frontend, Protocol, Route, Service, ServiceName, ServicePort, Snapshot};

/// A port of a service, that a route leads to.
type Led = (ServiceName, u16);

/// Where routes of a TCP service port led earlier and do no more: open connections may have been sent there. It is what was
/// before that says so; nothing else of a snapshot depends on that.
pub type Earlier = HashMap<(ServiceName, u16), Arc<[Led]>>;

/// How many are kept of a port, the newest first: connections by older ones end with their route.
const MOST_EARLIER: usize = 64;

/// How a backend stands with the service that led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// New connections may be sent there, under the one policy or the other.
    Serving,
    /// It takes no new ones but is still listed (unready, terminating, in a subset that gets nothing now).
    Listed,
    /// It is no longer listed, or the service is gone.
    Gone,
}

impl Snapshot {
    /// What a client asked for that connected to `asked`: a service's own port, else the node port of that number.
    pub fn frontend_of(&self, asked: SocketAddr, protocol: Protocol) -> Frontend {
        let own = Frontend { address: Some(asked.ip()), port: asked.port(), protocol };
        let node_port = Frontend { address: None, ..own };
        let is_own = self.frontends.contains_key(&own) || !self.frontends.contains_key(&node_port);
        if is_own { own } else { node_port }
    }

    /// The fate of `backend`, to which a client was sent that had asked for `asked`. Both as the model has them: an IPv4
    /// address is one, not mapped into IPv6. Costs what the service, and those that it leads to, have in endpoints.
    pub fn fate(&self, asked: Frontend, backend: SocketAddr) -> Fate {
        let found = match asked.address {
            Some(address) => self.service_at(SocketAddr::new(address, asked.port), asked.protocol),
            None => self.service_at_node_port(asked.port, asked.protocol),
        };
        let Some((service, port)) = found else { return Fate::Gone };
        if port.routes().any(|route| draws(&route.v4, backend) || draws(&route.v6, backend)) {
            Fate::Serving
        } else if lists(&port.listed, backend)
            || port.routes().any(|route| self.is_listed_by_target(route, port, backend))
            || (asked.protocol == Protocol::Tcp && self.is_listed_by_earlier(service, port, backend))
        {
            Fate::Listed
        } else {
            Fate::Gone
        }
    }

    /// Whether a destination of a route lists the backend, whatever the subset and the weight.
    fn is_listed_by_target(&self, route: &Route, port: &ServicePort, backend: SocketAddr) -> bool {
        let is_listed = |(service, number): (&ServiceName, u16)| {
            self.is_listed_by(service, number, port.protocol, backend)
        };
        route.rule.is_some()
            && route.targets.iter().map(|target| (&target.service, target.port)).any(is_listed)
    }

    /// Whether a destination that a route of the port led to earlier lists the backend.
    fn is_listed_by_earlier(&self, service: &Service, port: &ServicePort, backend: SocketAddr) -> bool {
        let earlier =
            self.earlier.get(&(service.name.clone(), port.port)).into_iter().flat_map(|led| led.iter());
        earlier
            .into_iter()
            .any(|(service, number)| self.is_listed_by(service, *number, port.protocol, backend))
    }

    fn is_listed_by(
        &self,
        service: &ServiceName,
        number: u16,
        protocol: Protocol,
        backend: SocketAddr,
    ) -> bool {
        let port = self.services.get(service).and_then(|service| service.port(number, protocol));
        port.is_some_and(|port| lists(&port.listed, backend))
    }

    /// A service becomes another, or goes: where its routes lead no more is kept for those who were sent there.
    pub fn note_earlier(&mut self, old: &Service, new: Option<&Service>) {
        for port in old.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
            let key = (old.name.clone(), port.port);
            let known = self.earlier.get(&key).map(Arc::clone);
            let Some(now) = new.and_then(|new| new.port(port.port, Protocol::Tcp)) else {
                if known.is_some() {
                    self.earlier.remove(&key);
                }
                continue;
            };
            let now = leads(now);
            let before = leads(port);
            if known.is_none() && before.is_subset(&now) {
                continue;
            }
            let mut led: Vec<Led> = before.difference(&now).cloned().collect();
            let older = known.iter().flat_map(|known| known.iter());
            led.extend(older.filter(|led| !now.contains(led) && !before.contains(led)).cloned());
            led.truncate(MOST_EARLIER);
            if led.is_empty() {
                self.earlier.remove(&key);
            } else {
                self.earlier.insert(key, led.into());
            }
        }
    }
}

/// Where the routes of a port lead.
fn leads(port: &ServicePort) -> BTreeSet<Led> {
    let routes = port.routes().filter(|route| route.rule.is_some());
    routes.flat_map(|route| &route.targets).map(|target| (target.service.clone(), target.port)).collect()
}

fn draws(set: &BackendSet, backend: SocketAddr) -> bool {
    set.backends().iter().any(|one| one.endpoint.as_ref().is_some_and(|one| one.address == backend))
}

fn lists(endpoints: &[Endpoint], backend: SocketAddr) -> bool {
    endpoints.iter().any(|endpoint| endpoint.address == backend)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        ConditionalRoute, ConnectionMatch, External, RouteTarget, Service, ServiceName, TrafficPolicy,
    };

    fn endpoints(last: &[u8]) -> Arc<[Endpoint]> {
        last.iter().map(|&last| Endpoint::at(at(last))).collect()
    }

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 8080))
    }

    fn route(rule: Option<&str>, targets: &[(&str, u32, &[u8])]) -> Route {
        let target = |&(name, weight, last): &(&str, u32, &[u8])| {
            RouteTarget::whole(ServiceName::new("shop", name), 80, weight, endpoints(last))
        };
        Route::new(rule.map(Into::into), targets.iter().map(target).collect())
    }

    /// `web`, served by `serving` and on this node by `local`, which lists `listed`; routed to `canary` where `weight`
    /// is given, whose only endpoint is 7 and which lists 8 as well.
    fn snapshot(serving: &[u8], local: &[u8], listed: &[u8], weight: Option<u32>) -> Snapshot {
        let (web, canary) = (ServiceName::new("shop", "web"), ServiceName::new("shop", "canary"));
        let mut port = ServicePort::plain(&web, 80, Protocol::Udp, endpoints(serving));
        port.node_port = Some(30080);
        port.listed = endpoints(listed);
        if let Some(weight) = weight {
            port.route = route(Some("shop/rule"), &[("web", 1, serving), ("canary", weight, &[7])]);
        }
        port.local = Some(route(None, &[("web", 1, local)]));
        let mut other = ServicePort::plain(&canary, 80, Protocol::Udp, endpoints(&[7]));
        other.listed = endpoints(&[7, 8]);
        let mut snapshot = Snapshot::default();
        for (name, port, address) in [(web, port, [10, 96, 0, 1]), (canary, other, [10, 96, 0, 2])] {
            let mut service =
                Service::internal(name.clone(), "host".into(), vec![address.into()], vec![port]);
            service.external = External { policy: TrafficPolicy::Local, ..External::default() };
            let service = Arc::new(service);
            for frontend in service.frontends() {
                snapshot.frontends.insert(frontend, Arc::clone(&service));
            }
            snapshot.services.insert(name, service);
        }
        snapshot
    }

    #[test]
    fn fates() {
        let plain = || snapshot(&[1], &[2], &[1, 2, 3], None);
        let cases = [
            ("drawn under Cluster", plain(), at(1), Fate::Serving),
            ("drawn under Local", plain(), at(2), Fate::Serving),
            ("listed alone", plain(), at(3), Fate::Listed),
            ("on another port", plain(), SocketAddr::from(([10, 0, 0, 1], 8081)), Fate::Gone),
            ("no longer listed", plain(), at(4), Fate::Gone),
            ("another service's, without a route to it", plain(), at(7), Fate::Gone),
            ("a route's", snapshot(&[1], &[], &[1], Some(1)), at(7), Fate::Serving),
            ("listed by a route's target", snapshot(&[1], &[], &[1], Some(1)), at(8), Fate::Listed),
            ("a target of weight 0", snapshot(&[1], &[], &[1], Some(0)), at(7), Fate::Listed),
            ("no service at all", Snapshot::default(), at(1), Fate::Gone),
        ];
        for (name, snapshot, backend, wanted) in cases {
            for (address, port) in [(Some([10, 96, 0, 1].into()), 80), (None, 30080)] {
                let asked = Frontend { address, port, protocol: Protocol::Udp };
                assert_eq!(snapshot.fate(asked, backend), wanted, "{name}: {asked}");
                let called = SocketAddr::new(address.unwrap_or([172, 30, 0, 1].into()), port);
                let there = !snapshot.frontends.is_empty();
                assert_eq!(snapshot.frontend_of(called, Protocol::Udp) == asked, there || address.is_some());
                let tcp = Frontend { protocol: Protocol::Tcp, ..asked };
                assert_eq!(snapshot.fate(tcp, backend), Fate::Gone, "{name}: another protocol");
            }
        }
    }

    /// Routes of a port: for each the services that it leads to, with their weights, and whether it holds for some alone.
    type Routes = Vec<(Vec<(usize, u32)>, bool)>;

    const NAMES: [&str; 3] = ["web", "canary", "other"];

    /// Three services, each of which lists its own two endpoints; clients ask for the first, which has these routes.
    fn routed(routes: &Routes, listed: [bool; 6]) -> Snapshot {
        let own = |service: usize| -> Vec<u8> {
            let both = [2 * service, 2 * service + 1];
            both.into_iter().filter(|&one| listed[one]).map(|one| 10 + u8::try_from(one).unwrap()).collect()
        };
        let mut snapshot = Snapshot::default();
        for (index, name) in NAMES.into_iter().enumerate() {
            let name = ServiceName::new("shop", name);
            let mut port = ServicePort::plain(&name, 80, Protocol::Tcp, endpoints(&own(index)));
            for (targets, conditional) in routes.iter().filter(|_| index == 0) {
                let lists: Vec<Vec<u8>> = targets.iter().map(|&(service, _)| own(service)).collect();
                let targets = targets.iter().zip(&lists);
                let targets: Vec<(&str, u32, &[u8])> =
                    targets.map(|(&(service, weight), list)| (NAMES[service], weight, &**list)).collect();
                let route = route(Some("shop/rule"), &targets);
                if *conditional {
                    let matches = vec![ConnectionMatch {
                        source_namespaces: vec!["shop".into()],
                        ..ConnectionMatch::default()
                    }];
                    port.rules.push(ConditionalRoute { matches, route, local: None });
                } else {
                    port.route = route;
                }
            }
            let address = [10, 96, 0, u8::try_from(index).unwrap()].into();
            let service = Arc::new(Service::internal(name.clone(), "host".into(), vec![address], vec![port]));
            for frontend in service.frontends() {
                snapshot.frontends.insert(frontend, Arc::clone(&service));
            }
            snapshot.services.insert(name, service);
        }
        snapshot
    }

    fn routes() -> impl Strategy<Value = Routes> {
        let targets = prop::collection::vec((0_usize..3, 0_u32..3), 1..4);
        prop::collection::vec((targets, any::<bool>()), 0..4)
    }

    proptest! {
        /// Whatever routes come after those that a connection was sent by, it is ended where its endpoint is no longer listed,
        /// and only there.
        #[test]
        fn no_change_of_routes_ends_a_connection(
            before in routes(),
            after in routes(),
            stays in any::<[bool; 6]>(),
        ) {
            let asked = Frontend { address: Some([10, 96, 0, 0].into()), port: 80, protocol: Protocol::Tcp };
            let first = routed(&before, [true; 6]);
            let (_, port) = first.service_at(SocketAddr::from(([10, 96, 0, 0], 80)), Protocol::Tcp).unwrap();
            let drawn: Vec<SocketAddr> = port
                .routes()
                .flat_map(|route| route.v4.backends())
                .map(|backend| backend.endpoint.as_ref().unwrap().address)
                .collect();
            let mut then = routed(&after, stays);
            let web = ServiceName::new("shop", "web");
            let new = Arc::clone(&then.services[&web]);
            then.note_earlier(&first.services[&web], Some(&new));
            for backend in drawn {
                let SocketAddr::V4(address) = backend else { unreachable!() };
                let is_there = stays[usize::from(address.ip().octets()[3]) - 10];
                prop_assert_eq!(then.fate(asked, backend) != Fate::Gone, is_there, "{}", backend);
            }
        }
    }
}
