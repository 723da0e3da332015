//! The services of a run: as kube-proxy knows them, and as manifests.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::kube_proxy::{Endpoint, Protocol, Service};

/// What listens on a backend where.
pub(super) const GREET_PORT: u16 = 8080;
/// Answers of every kind.
pub(super) const SERVE_PORT: u16 = 8081;
/// Datagrams.
pub(super) const UDP_PORT: u16 = 8082;
/// Port of every service.
pub(super) const SERVICE_PORT: u16 = 80;
/// Services a manifest file.
const SERVICES_A_FILE: usize = 1000;

/// So many services with two endpoints each, and two more: one for requests and changes, one for datagrams. The last of
/// the many leads to the backends; it stays the last.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) services: Vec<Service>,
    backends: [Ipv4Addr; 3],
}

impl Cluster {
    /// `count` services; `backends` are pods, the third of which is for changes.
    pub(super) fn new(count: usize, backends: [Ipv4Addr; 3]) -> Self {
        let mut services: Vec<Service> = (0..count - 1)
            .map(|index| {
                let endpoints = [filler(2 * index), filler(2 * index + 1)];
                Service {
                    endpoints: endpoints.map(|address| endpoint(address, GREET_PORT)).to_vec(),
                    ..Service::new(&format!("svc-{index:05}"), "http", cluster_ip(index), SERVICE_PORT)
                }
            })
            .collect();
        let [first, second, _] = backends;
        for (name, protocol, port) in [
            ("ask", Protocol::Tcp, SERVE_PORT),
            ("datagrams", Protocol::Udp, UDP_PORT),
            ("last", Protocol::Tcp, GREET_PORT),
        ] {
            services.push(Service {
                protocol,
                endpoints: [first, second].map(|address| endpoint(address, port)).to_vec(),
                ..Service::new(name, "p", cluster_ip(services.len()), SERVICE_PORT)
            });
        }
        Self { services, backends }
    }

    /// The service that connections are made to.
    pub(super) fn last(&self) -> &Service {
        &self.services[self.services.len() - 1]
    }

    /// The service of requests, throughput and changes.
    pub(super) fn ask(&self) -> &Service {
        &self.services[self.ask_index()]
    }

    pub(super) fn ask_index(&self) -> usize {
        self.services.len() - 3
    }

    /// The service of datagrams.
    pub(super) fn datagrams(&self) -> &Service {
        &self.services[self.services.len() - 2]
    }

    /// Has the second endpoint of `ask` be another pod; the address that is new.
    pub(super) fn change(&mut self) -> Ipv4Addr {
        let [_, second, third] = self.backends;
        let index = self.ask_index();
        let endpoint = &mut self.services[index].endpoints[1];
        endpoint.address = if endpoint.address == second { third } else { second };
        endpoint.address
    }

    /// Name and text of each manifest file; the `EndpointSlice` that changes has one of its own.
    pub(super) fn manifests(&self) -> Vec<(String, String)> {
        let changing = self.ask_index();
        let mut files: Vec<(String, String)> = self
            .services
            .chunks(SERVICES_A_FILE)
            .enumerate()
            .map(|(file, services)| {
                let mut text = String::new();
                for (index, service) in (file * SERVICES_A_FILE..).zip(services) {
                    service_manifest(service, &mut text);
                    if index != changing {
                        slice_manifest(service, &mut text);
                    }
                }
                (format!("services-{file:03}.yaml"), text)
            })
            .collect();
        files.push(self.changing_manifest());
        files
    }

    /// The `EndpointSlice` that changes.
    pub(super) fn changing_manifest(&self) -> (String, String) {
        let mut text = String::new();
        slice_manifest(self.ask(), &mut text);
        ("changing.yaml".to_owned(), text)
    }
}

fn cluster_ip(index: usize) -> Ipv4Addr {
    numbered(Ipv4Addr::new(10, 100, 0, 0), index)
}

/// The address of a pod that is nowhere.
fn filler(index: usize) -> Ipv4Addr {
    numbered(Ipv4Addr::new(10, 244, 16, 0), index)
}

/// 250 of each 256 addresses.
fn numbered(base: Ipv4Addr, index: usize) -> Ipv4Addr {
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    Ipv4Addr::from_bits(base.to_bits() + index / 250 * 256 + index % 250 + 1)
}

const fn endpoint(address: Ipv4Addr, port: u16) -> Endpoint {
    Endpoint { address, port, local: false }
}

fn service_manifest(service: &Service, text: &mut String) {
    let Service { namespace, name, port_name, cluster_ip, port, .. } = service;
    let protocol = service.protocol.to_string().to_uppercase();
    let _infallible = write!(
        text,
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  type: ClusterIP\n  \
         clusterIP: {cluster_ip}\n  clusterIPs:\n  - {cluster_ip}\n  ports:\n  - name: {port_name}\n    port: {port}\n    \
         protocol: {protocol}\n---\n"
    );
}

fn slice_manifest(service: &Service, text: &mut String) {
    let Service { namespace, name, port_name, endpoints, .. } = service;
    let protocol = service.protocol.to_string().to_uppercase();
    let _infallible = write!(
        text,
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  namespace: {namespace}\n  \
         labels:\n    kubernetes.io/service-name: {name}\naddressType: IPv4\nports:\n- name: {port_name}\n  \
         port: {}\n  protocol: {protocol}\nendpoints:\n",
        endpoints[0].port
    );
    for endpoint in endpoints {
        let _infallible =
            write!(text, "- addresses:\n  - {}\n  conditions:\n    ready: true\n", endpoint.address);
    }
    text.push_str("---\n");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const BACKENDS: [Ipv4Addr; 3] =
        [Ipv4Addr::new(10, 244, 2, 10), Ipv4Addr::new(10, 244, 2, 11), Ipv4Addr::new(10, 244, 2, 12)];

    #[test]
    fn no_address_is_used_twice_and_the_last_leads_to_the_backends() {
        for count in [1, 2, 10_000] {
            let cluster = Cluster::new(count, BACKENDS);
            assert_eq!(cluster.services.len(), count + 2, "{count}");
            let addresses: BTreeSet<Ipv4Addr> =
                cluster.services.iter().map(|service| service.cluster_ip).collect();
            assert_eq!(addresses.len(), count + 2, "{count}");
            let fillers: BTreeSet<Ipv4Addr> = cluster.services[..count - 1]
                .iter()
                .flat_map(|service| service.endpoints.iter().map(|endpoint| endpoint.address))
                .collect();
            assert_eq!(fillers.len(), 2 * (count - 1), "{count}");
            assert!(fillers.iter().all(|address| !BACKENDS.contains(address)), "{count}");
            let last = cluster.last();
            assert_eq!((last.name.as_str(), last.endpoints[0].address), ("last", BACKENDS[0]));
        }
    }

    #[test]
    fn a_change_goes_there_and_back_in_the_file_of_its_own() {
        let mut cluster = Cluster::new(1, BACKENDS);
        let (_, before) = cluster.changing_manifest();
        assert_eq!(cluster.change(), BACKENDS[2]);
        let (_, changed) = cluster.changing_manifest();
        assert!(changed.contains("10.244.2.12") && !before.contains("10.244.2.12"), "{changed}");
        assert_eq!(cluster.change(), BACKENDS[1]);
        assert_eq!(cluster.changing_manifest().1, before);
        let all: String = cluster.manifests().into_iter().map(|(_, text)| text).collect();
        assert_eq!(all.matches("kind: EndpointSlice").count(), 3, "each slice once");
    }
}
