//! Where a captured connection goes: a pure function of the snapshot and a random number.

use std::net::SocketAddr;
use std::sync::Arc;

use super::ask::Ask;
use crate::model::{BackendSet, Endpoint, Mode, Protocol, Service, Snapshot, Workload};

/// Where to.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    /// The endpoint's address.
    pub(super) address: SocketAddr,
    /// The workload behind it, where there is one.
    pub(super) workload: Option<Arc<Workload>>,
    /// The service that was asked for.
    pub(super) service: Option<Arc<Service>>,
}

impl Destination {
    /// How the endpoint is to be reached.
    pub(super) fn transport(&self) -> Transport {
        match &self.workload {
            Some(workload) if workload.enrolled && workload.mtls.at(self.address.port()) != Mode::Disable => {
                Transport::Mutual
            }
            _ => Transport::Plain,
        }
    }
}

/// How an endpoint is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// Authenticated at both ends: HBONE, or directly between two pods of this node.
    Mutual,
    /// In plaintext: outside the mesh, or `DISABLE`.
    Plain,
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug)]
pub(super) struct NoEndpoint {
    /// The service that was asked for.
    pub(super) service: Arc<Service>,
}

/// What a pod of this node asked for, where that is a service. An address of a workload is nobody's node port.
pub(super) fn ask(snapshot: &Snapshot, asked: SocketAddr) -> Option<Ask<'_>> {
    let ask = Ask::resolve(snapshot, asked, Protocol::Tcp, true)?;
    (ask.frontend.address.is_some() || snapshot.workload_at(asked.ip()).is_none()).then_some(ask)
}

/// Picks where a connection to `asked` goes; `avoid` are endpoints that have just failed, `stays` is the one that the
/// client is to be sent to while it serves.
pub(super) fn pick(
    snapshot: &Snapshot,
    ask: Option<&Ask<'_>>,
    asked: SocketAddr,
    stays: Option<SocketAddr>,
    random: u64,
    avoid: &[SocketAddr],
) -> Result<Destination, NoEndpoint> {
    let Some(ask) = ask else {
        let workload = snapshot.workload_at(asked.ip()).cloned();
        return Ok(Destination { address: asked, workload, service: None });
    };
    let Some(endpoint) = ask.endpoint(stays, random, avoid) else {
        return Err(NoEndpoint { service: Arc::clone(ask.service) });
    };
    let workload = endpoint.workload.as_ref().and_then(|uid| snapshot.workloads.get(uid)).cloned();
    Ok(Destination { address: endpoint.address, workload, service: Some(Arc::clone(ask.service)) })
}

/// An endpoint of the set, by weight; another of those that are not to be avoided where it is one of these.
pub(crate) fn draw<'a>(set: &'a BackendSet, random: u64, avoid: &[SocketAddr]) -> Option<&'a Endpoint> {
    let picked = set.pick(random)?.endpoint.as_ref()?;
    if !avoid.contains(&picked.address) {
        return Some(picked);
    }
    let others = set.backends().iter().filter_map(|backend| backend.endpoint.as_ref());
    let others: Vec<&Endpoint> = others.filter(|other| !avoid.contains(&other.address)).collect();
    let slots = u32::try_from(others.len()).unwrap_or(u32::MAX);
    // Equal chances: this is the second choice of one connection, not a share of the traffic.
    others.get(mesh_common::pick::slot(random.rotate_left(17), slots.max(1)) as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ServiceName, ServicePort};

    fn snapshot(endpoints: &[&str]) -> Snapshot {
        let name = ServiceName::new("default", "reviews");
        let endpoints = endpoints.iter().map(|address| Endpoint::at(address.parse().unwrap())).collect();
        let port = ServicePort::plain(&name, 9080, Protocol::Tcp, endpoints);
        let addresses = vec!["10.96.0.1".parse().unwrap()];
        let service = Arc::new(Service::internal(name, "reviews".into(), addresses, vec![port]));
        let mut snapshot = Snapshot::default();
        snapshot.frontends.extend(service.frontends().map(|frontend| (frontend, Arc::clone(&service))));
        snapshot
    }

    fn picked(
        snapshot: &Snapshot,
        asked: SocketAddr,
        random: u64,
        avoid: &[SocketAddr],
    ) -> Result<Destination, NoEndpoint> {
        pick(snapshot, ask(snapshot, asked).as_ref(), asked, None, random, avoid)
    }

    fn asked() -> SocketAddr {
        "10.96.0.1:9080".parse().unwrap()
    }

    #[test]
    fn an_endpoint_that_failed_is_avoided_while_there_is_another() {
        let snapshot = snapshot(&["10.0.0.1:80", "10.0.0.2:80"]);
        let failed = ["10.0.0.1:80".parse().unwrap()];
        for random in (0..64).map(|n: u64| n << 58) {
            assert_eq!(
                picked(&snapshot, asked(), random, &failed).unwrap().address.to_string(),
                "10.0.0.2:80"
            );
        }
    }

    #[test]
    fn nothing_left_is_no_endpoint() {
        let failed = ["10.0.0.1:80".parse().unwrap()];
        assert!(picked(&snapshot(&["10.0.0.1:80"]), asked(), 1, &failed).is_err());
        assert!(picked(&snapshot(&[]), asked(), 1, &[]).is_err());
    }

    #[test]
    fn what_is_no_service_goes_where_it_was_sent() {
        let elsewhere: SocketAddr = "10.9.9.9:80".parse().unwrap();
        let destination = picked(&snapshot(&["10.0.0.1:80"]), elsewhere, 1, &[]).unwrap();
        assert_eq!((destination.address, destination.transport()), (elsewhere, Transport::Plain));
    }
}
