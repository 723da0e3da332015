//! What a client asked for by a service's address or a node port, and which endpoint it is given: pure functions of the
//! snapshot, for enrolled pods and for clients from outside.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::route;
use crate::model::{
    BackendSet, Endpoint, Frontend, Protocol, Route, Service, ServicePort, Snapshot, TrafficPolicy,
};

/// What was asked for.
pub(crate) struct Ask<'a> {
    /// What the kernel and the model know it by.
    pub(crate) frontend: Frontend,
    /// The service.
    pub(crate) service: &'a Arc<Service>,
    /// Its port.
    pub(crate) port: &'a ServicePort,
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
        Some(Self { frontend, service, port, route, set: route.backends(asked.ip()), client: None })
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
    use crate::model::{External, RouteTarget, ServiceKind, ServiceName};

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
}
