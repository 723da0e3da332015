//! `healthCheckNodePort`: where a load balancer asks whether this node has endpoints of a service, answered as kube-proxy
//! answers (`pkg/proxy/healthcheck/service_health.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::entry::Entry;
use crate::model::{EndpointState, NodeName, ServiceName, Snapshot};
use crate::proxy::Stop;
use crate::socket::canonical;
use crate::socket::reset_on_close;

/// Connections that are served at once, on all ports together.
const CONNECTIONS: usize = 256;
/// Longest that a client may take to ask.
const DEADLINE: Duration = Duration::from_secs(5);
/// Wait after an accept that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether the services' rules are in force here; load balancers send nothing to a node where they are not.
pub type Healthy = Arc<dyn Fn() -> bool + Send + Sync>;

/// The ports that are served.
pub(super) struct HealthChecks {
    shared: Arc<Shared>,
    ports: BTreeMap<u16, (ServiceName, JoinHandle<()>)>,
}

struct Shared {
    entry: Arc<Entry>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    healthy: Healthy,
    places: Arc<Semaphore>,
}

impl HealthChecks {
    pub(super) fn new(entry: Arc<Entry>, snapshot: Arc<ArcSwap<Snapshot>>, healthy: Healthy) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        Self { shared: Arc::new(Shared { entry, snapshot, healthy, places }), ports: BTreeMap::new() }
    }

    /// Listens on these ports and no others. What could not be had is returned; the next call tries it again.
    pub(super) fn set(&mut self, wanted: &BTreeMap<u16, ServiceName>) -> Vec<(u16, io::Error)> {
        self.ports.retain(|port, (name, server)| {
            let stays = wanted.get(port) == Some(&*name) && !server.is_finished();
            if !stays {
                server.abort();
            }
            stays
        });
        let mut errors = Vec::new();
        for (&port, name) in wanted {
            if self.ports.contains_key(&port) {
                continue;
            }
            match listen(port) {
                Ok(listener) => {
                    let server = tokio::spawn(serve(Arc::clone(&self.shared), listener, name.clone()));
                    self.ports.insert(port, (name.clone(), server));
                }
                Err(error) => errors.push((port, error)),
            }
        }
        errors
    }
}

/// Listens on all addresses of both families.
fn listen(port: u16) -> io::Result<TcpListener> {
    let open = |address: IpAddr| {
        let address = SocketAddr::new(address, port);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        socket.listen(128)?;
        TcpListener::from_std(socket.into())
    };
    match open(Ipv6Addr::UNSPECIFIED.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => open(IpAddr::from([0, 0, 0, 0])),
        result => result,
    }
}

async fn serve(shared: Arc<Shared>, listener: TcpListener, name: ServiceName) {
    loop {
        let Ok(place) = Arc::clone(&shared.places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let (shared, name) = (Arc::clone(&shared), name.clone());
                tokio::spawn(async move {
                    let _place = place;
                    shared.connection(socket, &name).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, service = %name, "health check cannot be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

impl Shared {
    async fn connection(&self, socket: TcpStream, name: &ServiceName) {
        let asked = socket.local_addr().map(canonical).map(|local| local.ip()).ok();
        let served = |address: &IpAddr| self.entry.addresses.load().answers_health_checks(*address);
        let Some(asked) = asked.filter(served) else { return reset_on_close(&socket) };
        let service = service_fn(|_request| async { Ok::<_, Infallible>(self.answer(name, asked)) });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(DEADLINE)
            .keep_alive(false)
            .serve_connection(TokioIo::new(socket), service);
        // Who asked has gone, or asked nothing.
        let _ = tokio::time::timeout(DEADLINE * 2, connection).await;
    }

    fn answer(&self, name: &ServiceName, asked: IpAddr) -> Response<Full<Bytes>> {
        let snapshot = self.snapshot.load();
        let healthy = (self.healthy)() && *self.entry.stop.borrow() == Stop::Serving;
        answer(name, local_endpoints(&snapshot, name, &self.entry.node, asked.is_ipv4()), healthy)
    }
}

/// Addresses of this node and one family that serve one port at least, and are ready. Each family is a proxy of its own
/// to kube-proxy.
fn local_endpoints(snapshot: &Snapshot, name: &ServiceName, node: &NodeName, v4: bool) -> usize {
    let Some(service) = snapshot.services.get(name) else { return 0 };
    let endpoints = service.ports.iter().flat_map(|port| port.listed.iter());
    let endpoints = endpoints.filter(|endpoint| endpoint.address.is_ipv4() == v4 && endpoint.is_on(node));
    let ready = endpoints.filter(|endpoint| endpoint.state == EndpointState::Ready);
    ready.map(|endpoint| endpoint.address.ip()).collect::<BTreeSet<_>>().len()
}

fn answer(name: &ServiceName, endpoints: usize, healthy: bool) -> Response<Full<Bytes>> {
    let body = serde_json::json!({
        "service": { "namespace": &*name.namespace, "name": &*name.name },
        "localEndpoints": endpoints,
        "serviceProxyHealthy": healthy,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    if endpoints == 0 || !healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", HeaderValue::from(endpoints));
    response
}

#[cfg(test)]
mod tests {
    use super::EndpointState::{Ready, Terminating};
    use super::*;
    use crate::model::{Endpoint, Protocol, Service, ServicePort};

    #[test]
    fn ready_addresses_of_this_node_are_counted_once() {
        let (node, name) = (NodeName::new("here"), ServiceName::new("default", "web"));
        let endpoint = |address: &str, on: &str, state| Endpoint {
            node: Some(NodeName::new(on)),
            state,
            ..Endpoint::at(address.parse().unwrap())
        };
        let port = |number| {
            let endpoints = [
                endpoint("10.0.0.1:80", "here", Ready),
                endpoint("10.0.0.2:80", "there", Ready),
                endpoint("10.0.0.3:80", "here", Terminating),
                endpoint("10.0.0.4:80", "here", Ready),
                endpoint("[fd00::1]:80", "here", Ready),
            ];
            ServicePort::plain(&name, number, Protocol::Tcp, endpoints.to_vec().into())
        };
        let service = Service::internal(name.clone(), "web".into(), Vec::new(), vec![port(80), port(81)]);
        let mut snapshot = Snapshot::default();
        assert_eq!(local_endpoints(&snapshot, &name, &node, true), 0);
        snapshot.services.insert(name.clone(), Arc::new(service));
        assert_eq!(local_endpoints(&snapshot, &name, &node, true), 2);
        assert_eq!(local_endpoints(&snapshot, &name, &node, false), 1);
    }

    #[test]
    fn the_answer_is_kube_proxys() {
        let name = ServiceName::new("shop", "web");
        for (endpoints, healthy, status) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            let response = answer(&name, endpoints, healthy);
            assert_eq!(response.status(), status, "{endpoints} {healthy}");
            assert_eq!(response.headers()["x-load-balancing-endpoint-weight"], endpoints.to_string());
        }
    }
}
