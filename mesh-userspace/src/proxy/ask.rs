//! What a client asked for by a service's address or a node port, and which endpoint it is given: pure functions of the
//! snapshot, for enrolled pods and for clients from outside.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::route;
use crate::model::{
    BackendSet, Connecting, ConnectionMatch, Endpoint, Frontend, Protocol, Route, Service, ServicePort,
    Snapshot, TrafficPolicy,
};

/// What was asked for.
pub(crate) struct Ask<'a> {
    /// What the kernel and the model know it by.
    pub(crate) frontend: Frontend,
    /// The service.
    pub(crate) service: &'a Arc<Service>,
    /// Its port.
    pub(crate) port: &'a ServicePort,
    /// The policy that holds for what was asked for.
    pub(crate) policy: TrafficPolicy,
    /// Where connections to it go.
    pub(crate) route: &'a Route,
    /// The endpoints that may be given.
    pub(crate) set: &'a BackendSet,
    /// The client's key, where its own decides where it is sent; without one chance does.
    pub(crate) client: Option<u64>,
}

impl<'a> Ask<'a> {
    /// What `asked` belongs to. `is_local` says that the client is on this node: for those `externalTrafficPolicy` is
    /// Cluster, as with kube-proxy.
    pub(crate) fn resolve(
        snapshot: &'a Snapshot,
        asked: SocketAddr,
        protocol: Protocol,
        is_local: bool,
    ) -> Option<Self> {
        let own = snapshot.service_at(asked, protocol).map(|found| (Some(asked.ip()), found));
        let found = own.or_else(|| Some((None, snapshot.service_at_node_port(asked.port(), protocol)?)));
        let (address, (service, port)) = found?;
        let policy = match address {
            Some(address) if service.addresses.contains(&address) => service.internal,
            _ if is_local => TrafficPolicy::Cluster,
            _ => service.external.policy,
        };
        let frontend = Frontend { address, port: asked.port(), protocol };
        let route = port.route(policy);
        Some(Self { frontend, service, port, policy, route, set: route.backends(asked.ip()), client: None })
    }

    /// The same for a connection of an enrolled client: the first conditional route that holds for it goes before
    /// [`Self::route`]. `server_name` is to be known by then where [`Self::asks_server_name`] says so.
    pub(crate) fn routed(self, connection: &Connecting<'_>) -> Self {
        let route = self.route_for(connection);
        Self { route, set: route.backends(connection.asked), ..self }
    }

    /// The route that an enrolled client's connection takes.
    pub(crate) fn route_for(&self, connection: &Connecting<'_>) -> &'a Route {
        let conditional = self.port.rules.iter().find(|rule| rule.holds(connection));
        conditional.map_or_else(|| self.port.route(self.policy), |rule| rule.route(self.policy))
    }

    /// Whether the server name of the client's TLS decides where the connection goes: some route that may be taken asks for
    /// it, and none before that holds whatever the name.
    pub(crate) fn asks_server_name(&self, connection: &Connecting<'_>) -> bool {
        for rule in &self.port.rules {
            let mut may_hold =
                rule.matches.iter().filter(|one| one.holds_but_for_name(connection)).peekable();
            if may_hold.peek().is_some() {
                return may_hold.all(ConnectionMatch::asks_server_name);
            }
        }
        false
    }

    /// The same, asked by the client with this key.
    pub(crate) const fn of_client(self, client: Option<u64>) -> Self {
        Self { client, ..self }
    }

    /// Whether a client with this address may come to what was asked for (`loadBalancerSourceRanges`).
    pub(crate) fn admits(&self, client: IpAddr) -> bool {
        let external = &self.service.external;
        let is_balancer = self.frontend.address.is_some_and(|asked| external.load_balancer.contains(&asked));
        let ranges = &external.source_ranges;
        !is_balancer || ranges.is_empty() || ranges.iter().any(|range| range.contains(&client))
    }

    /// The endpoint that a client is given: the one that it stays with, otherwise by weight; none of `avoid`, which have
    /// just failed.
    pub(crate) fn endpoint(
        &self,
        stays: Option<SocketAddr>,
        random: u64,
        avoid: &[SocketAddr],
    ) -> Option<&'a Endpoint> {
        let kept = stays.filter(|address| !avoid.contains(address)).and_then(|address| self.member(address));
        kept.or_else(|| route::draw(self.set, random, self.client.unwrap_or(random), avoid))
    }

    /// The endpoint with this address, if it may be given.
    pub(crate) fn member(&self, address: SocketAddr) -> Option<&'a Endpoint> {
        let mut endpoints = self.set.backends().iter().filter_map(|backend| backend.endpoint.as_ref());
        endpoints.find(|endpoint| endpoint.address == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ConditionalRoute, External, RouteTarget, ServerNames, ServiceKind, ServiceName, Workload,
    };

    /// A service with every kind of address; one of its two endpoints is on this node.
    fn snapshot(internal: TrafficPolicy, external: TrafficPolicy) -> Snapshot {
        let name = ServiceName::new("default", "web");
        let endpoints = ["10.0.0.1:80", "10.0.0.2:80"].map(|text| Endpoint::at(text.parse().unwrap()));
        let mut port = ServicePort::plain(&name, 80, Protocol::Tcp, endpoints.to_vec().into());
        port.node_port = Some(30080);
        let target = RouteTarget::whole(name.clone(), 80, 1, endpoints[..1].to_vec().into());
        port.local = Some(Route::new(None, vec![target]));
        let mut service =
            Service::internal(name, "web".into(), vec!["10.96.0.1".parse().unwrap()], vec![port]);
        service.kind = ServiceKind::LoadBalancer;
        service.internal = internal;
        service.external = External {
            policy: external,
            addresses: vec!["198.51.100.1".parse().unwrap()],
            load_balancer: vec!["203.0.113.1".parse().unwrap()],
            ..External::default()
        };
        let service = Arc::new(service);
        let mut snapshot = Snapshot::default();
        snapshot.frontends.extend(service.frontends().map(|frontend| (frontend, Arc::clone(&service))));
        snapshot
    }

    fn members(snapshot: &Snapshot, asked: &str, is_local: bool) -> Option<usize> {
        let ask = Ask::resolve(snapshot, asked.parse().unwrap(), Protocol::Tcp, is_local)?;
        Some(ask.set.backends().len())
    }

    #[test]
    fn each_kind_of_address_has_its_policy() {
        use TrafficPolicy::{Cluster, Local};
        let snapshot_outside = snapshot(Cluster, Local);
        for (asked, is_local, count) in [
            ("10.96.0.1:80", false, Some(2)),
            ("198.51.100.1:80", false, Some(1)),
            ("203.0.113.1:80", false, Some(1)),
            ("172.30.0.1:30080", false, Some(1)),
            ("198.51.100.1:80", true, Some(2)),
            ("203.0.113.1:80", true, Some(2)),
            ("172.30.0.1:30080", true, Some(2)),
            ("172.30.0.1:80", false, None),
            ("203.0.113.1:81", false, None),
        ] {
            assert_eq!(members(&snapshot_outside, asked, is_local), count, "{asked} {is_local}");
        }
        let snapshot_inside = snapshot(Local, Cluster);
        for (asked, is_local, count) in [
            ("10.96.0.1:80", false, 1),
            ("10.96.0.1:80", true, 1),
            ("203.0.113.1:80", false, 2),
            ("172.30.0.1:30080", false, 2),
        ] {
            assert_eq!(members(&snapshot_inside, asked, is_local), Some(count), "{asked} {is_local}");
        }
    }

    #[test]
    fn source_ranges_are_for_the_load_balancers_addresses() {
        let mut snapshot = snapshot(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
        let mut service = Service::clone(snapshot.frontends.values().next().unwrap());
        service.external.source_ranges = vec!["192.0.2.0/24".parse().unwrap()];
        let service = Arc::new(service);
        snapshot.frontends.extend(service.frontends().map(|frontend| (frontend, Arc::clone(&service))));
        for (asked, client, admitted) in [
            ("203.0.113.1:80", "192.0.2.7", true),
            ("203.0.113.1:80", "10.0.0.9", false),
            ("198.51.100.1:80", "10.0.0.9", true),
            ("10.96.0.1:80", "10.0.0.9", true),
        ] {
            let ask = Ask::resolve(&snapshot, asked.parse().unwrap(), Protocol::Tcp, true).unwrap();
            assert_eq!(ask.admits(client.parse().unwrap()), admitted, "{asked} {client}");
        }
    }

    #[test]
    fn who_stays_is_kept_while_its_endpoint_serves_and_answers() {
        let snapshot = snapshot(TrafficPolicy::Cluster, TrafficPolicy::Local);
        let asked = "10.96.0.1:80".parse().unwrap();
        let ask = Ask::resolve(&snapshot, asked, Protocol::Tcp, false).unwrap();
        let second: SocketAddr = "10.0.0.2:80".parse().unwrap();
        let gone: SocketAddr = "10.0.0.9:80".parse().unwrap();
        for random in (0..64).map(|n: u64| n << 58) {
            let given = |stays, avoid: &[SocketAddr]| ask.endpoint(stays, random, avoid).unwrap().address;
            assert_eq!(given(Some(second), &[]), second);
            assert_ne!(given(Some(second), &[second]), second);
            assert_ne!(given(Some(gone), &[]), gone);
        }
        // Under Local an endpoint elsewhere is no member, whoever stayed with it.
        let asked = "203.0.113.1:80".parse().unwrap();
        let ask = Ask::resolve(&snapshot, asked, Protocol::Tcp, false).unwrap();
        assert_ne!(ask.endpoint(Some(second), 1, &[]).unwrap().address, second);
    }

    #[test]
    fn the_first_route_that_holds_is_taken() {
        let name = ServiceName::new("shop", "web");
        let to = |last: u8| {
            let endpoints = [Endpoint::at(SocketAddr::from(([10, 0, 0, last], 80)))];
            let target = RouteTarget::whole(name.clone(), 80, 1, endpoints.into());
            Route::new(Some(format!("shop/{last}").into()), vec![target])
        };
        let nothing = ConnectionMatch::default;
        let names = |all: &[&str]| all.iter().map(|name| ServerNames::new(name)).collect::<Vec<_>>();
        let labels = [("app".to_owned(), "front".to_owned())];
        let rules = [
            (2, vec![ConnectionMatch { source_labels: labels.clone().into(), ..nothing() }]),
            (3, vec![ConnectionMatch { sni_hosts: names(&["a.example.com"]), ..nothing() }]),
            (4, vec![ConnectionMatch { source_namespaces: vec!["bank".into()], ..nothing() }]),
            (
                5,
                vec![
                    ConnectionMatch { sni_hosts: names(&["*.example.com"]), ..nothing() },
                    ConnectionMatch {
                        destination_subnets: vec!["10.97.0.0/16".parse().unwrap()],
                        ..nothing()
                    },
                ],
            ),
        ];
        let mut port = ServicePort::plain(&name, 80, Protocol::Tcp, Arc::from([]));
        port.route = to(1);
        port.rules = rules
            .into_iter()
            .map(|(last, matches)| ConditionalRoute { matches, route: to(last), local: Some(to(last + 10)) })
            .collect();
        let addresses = ["10.96.0.1", "10.97.0.1"].map(|text| text.parse().unwrap()).to_vec();
        let with = |internal| {
            let mut service =
                Service::internal(name.clone(), "web".into(), addresses.clone(), vec![port.clone()]);
            service.internal = internal;
            let service = Arc::new(service);
            let mut snapshot = Snapshot::default();
            snapshot.frontends.extend(service.frontends().map(|frontend| (frontend, Arc::clone(&service))));
            snapshot
        };
        let workload = |namespace: &str, app: &str| Workload {
            labels: Arc::new([("app".to_owned(), app.to_owned())].into()),
            ..Workload::for_tests(namespace, "client")
        };
        let cases = [
            ("nothing holds", "10.96.0.1", None, None, 1, true),
            (
                "labels, whatever the name",
                "10.96.0.1",
                Some(("shop", "front")),
                Some("a.example.com"),
                2,
                false,
            ),
            ("a name", "10.96.0.1", Some(("bank", "back")), Some("a.example.com"), 3, true),
            (
                "the namespace, with another name",
                "10.96.0.1",
                Some(("bank", "back")),
                Some("b.example.com"),
                4,
                true,
            ),
            ("a name below another", "10.96.0.1", Some(("shop", "back")), Some("b.example.com"), 5, true),
            ("another name", "10.96.0.1", Some(("shop", "back")), Some("example.org"), 1, true),
            ("the address that was asked", "10.97.0.1", None, None, 5, true),
        ];
        for (name, asked, client, server_name, last, asks) in cases {
            let source = client.map(|(namespace, app)| workload(namespace, app));
            let asked: IpAddr = asked.parse().unwrap();
            let source_address = "10.244.0.9".parse().unwrap();
            let connection = Connecting { source: source.as_ref(), source_address, asked, server_name };
            for (policy, last) in [
                (TrafficPolicy::Cluster, last),
                (TrafficPolicy::Local, if last == 1 { 1 } else { last + 10 }),
            ] {
                let snapshot = with(policy);
                let ask = Ask::resolve(&snapshot, (asked, 80).into(), Protocol::Tcp, true).unwrap();
                assert_eq!(ask.asks_server_name(&connection), asks, "{name}");
                let ask = ask.routed(&connection);
                let given = ask.endpoint(None, 0, &[]).unwrap().address;
                assert_eq!(given, SocketAddr::from(([10, 0, 0, last], 80)), "{name} {policy:?}");
                assert_eq!(ask.route, ask.route_for(&connection));
            }
        }
    }
}
