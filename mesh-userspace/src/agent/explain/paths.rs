//! Where a connection may go, and by which way: the proxy's own decisions, asked for every endpoint that may be drawn.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use mesh_common::abi::{ADDRESS_LOCAL, BACKEND_STRICT};
use mesh_common::capture;

use super::Explanation;
use super::client::Client;
use super::ends::{self, Far};
use super::set::{backend, shares};
use crate::admin::api::RuleReport;
use crate::admin::explain::{
    ExplainBackend, ExplainPath, ExplainRoute, ExplainSource, Outcome, Transport, Verdict,
};
use crate::agent::route_words;
use crate::datapath::{DatapathError, address_of};
use crate::model::{
    ConditionalRoute, Connecting, Endpoint, EndpointState, Protocol, TrafficPolicy, Workload,
};
use crate::proxy::ask::Ask;
use crate::proxy::route::{self, Arrival, Destination, Entrance, Way};

/// Endpoints that are explained one by one; the others count all the same.
const MAX_PATHS: usize = 100;

/// What is asked, as all endpoints see it.
struct Asking<'a> {
    client: &'a Client,
    tcp: bool,
    /// The client's address there.
    seen_as: IpAddr,
}

impl Explanation<'_> {
    /// What becomes of the connection beyond the kernel of the client's node.
    pub(super) fn mesh(
        &mut self,
        client: &Client,
        asked: SocketAddr,
        protocol: Protocol,
        server_name: Option<&str>,
    ) -> Result<(), DatapathError> {
        let known = client.seen_as(asked.is_ipv4(), self.snapshot);
        self.report.source = self.source(client, known);
        let unknown: IpAddr =
            if asked.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let asking = Asking { client, tcp: protocol == Protocol::Tcp, seen_as: known.unwrap_or(unknown) };
        if known.is_none() {
            self.step(
                "seen as",
                format!("the client's address is not known: policies are asked as for {unknown}"),
            );
        }
        let (snapshot, verdict) = (self.snapshot, self.report.verdict);
        let is_local = matches!(client, Client::Inside { .. });
        let ask = match verdict {
            Verdict::Captured => route::ask(snapshot, asked),
            Verdict::Translated | Verdict::Carried => Ask::resolve(snapshot, asked, protocol, is_local),
            // A node port of that number is not what was refused.
            Verdict::Refused => {
                Ask::resolve(snapshot, asked, protocol, is_local).filter(|ask| ask.frontend.address.is_some())
            }
            Verdict::Passed => None,
        };
        // The agent alone takes routes that are for some connections.
        let connection = Connecting {
            source: client.pod().map(|pod| &**pod),
            source_address: asking.seen_as,
            asked: asked.ip(),
            server_name,
        };
        let by_agent = verdict == Verdict::Captured && client.pod().is_some();
        let ask = ask.map(|ask| if by_agent { ask.routed(&connection) } else { ask });
        if matches!(verdict, Verdict::Captured | Verdict::Carried) {
            self.settings(ask.as_ref());
        }
        self.report.route = ask.as_ref().map(|ask| of_ask(ask, by_agent.then_some(&connection), asked));
        if verdict == Verdict::Refused {
            self.ends(Outcome::Refused, self.report.reason.clone());
            return Ok(());
        }
        // Elsewhere the kernel has looked at the ranges.
        let admits = |ask: &&Ask<'_>| verdict != Verdict::Captured || ask.admits(asking.seen_as);
        if let Some(ask) = ask.as_ref().filter(|ask| !admits(ask)) {
            let because = format!("the client is in none of the source ranges of {}", ask.service.name);
            self.ends(Outcome::Refused, because);
            return Ok(());
        }
        let paths = self.each(&asking, ask.as_ref(), asked)?;
        self.conclude(paths);
        if let Some(ask) = &ask {
            self.idle(ask, asked.is_ipv4());
        }
        Ok(())
    }

    /// The rules whose settings hold for the connection, by whom it is carried.
    fn settings(&mut self, ask: Option<&Ask<'_>>) {
        let targets = ask.iter().flat_map(|ask| &ask.route.targets).filter(|target| target.weight > 0);
        let mut rules: Vec<&str> = targets.filter_map(|target| target.settings.rule.as_deref()).collect();
        rules.sort_unstable();
        rules.dedup();
        if !rules.is_empty() {
            self.step("settings", format!("DestinationRule {}", rules.join(", ")));
        }
    }

    /// All ways that the connection may take.
    fn each(
        &self,
        asking: &Asking<'_>,
        ask: Option<&Ask<'_>>,
        asked: SocketAddr,
    ) -> Result<Vec<ExplainPath>, DatapathError> {
        let verdict = self.report.verdict;
        if verdict == Verdict::Translated {
            return Ok(self.translated(asking, ask));
        }
        let Some(ask) = ask else {
            let destination = Destination::plain(self.snapshot, asked);
            let backend = alone(&destination);
            return Ok(vec![match verdict {
                Verdict::Captured => self.captured(asking, &destination, backend),
                _ => self.direct(asking, &destination, backend, Transport::Direct),
            }]);
        };
        let path = |(endpoint, share): (Option<&Endpoint>, u32)| match endpoint {
            None => Ok(nowhere(share)),
            Some(endpoint) if verdict == Verdict::Captured => {
                let destination = Destination::of(self.snapshot, ask.service, endpoint);
                Ok(self.captured(asking, &destination, backend(Some(endpoint), share)))
            }
            Some(endpoint) => self.carried(asking, endpoint, share),
        };
        shares(ask.set).into_iter().map(path).collect()
    }

    fn ends(&mut self, outcome: Outcome, because: String) {
        (self.report.outcome, self.report.because) = (outcome, because);
    }

    fn source(&self, client: &Client, address: Option<IpAddr>) -> Option<ExplainSource> {
        let Client::Inside { pod, enrolled, .. } = client else {
            let address = Some(address?);
            return Some(ExplainSource { address, ..ExplainSource::default() });
        };
        Some(ExplainSource {
            workload: pod.as_ref().map(|pod| pod.uid.to_string()),
            node: Some(self.node.to_string()),
            address,
            enrolled: *enrolled,
            identity: pod.as_ref().map(|pod| pod.identity.to_string()),
        })
    }

    /// The kernel has sent it to a backend: the agents hear of it where that is an enrolled pod.
    fn translated(&self, asking: &Asking<'_>, ask: Option<&Ask<'_>>) -> Vec<ExplainPath> {
        let (enrolled, ..) = asking.client.inside(&self.state);
        let each = |held: &ExplainBackend| {
            let Some(address) = held.address else { return nowhere(held.share_ppm) };
            let flags = if held.strict { BACKEND_STRICT } else { 0 };
            if capture::to_backend(enrolled, asking.tcp, flags) == capture::Verdict::Refuse {
                let reason = "it takes mTLS only, the client is enrolled, and the agent is away".to_owned();
                return ExplainPath { reason, ..none(held.clone()) };
            }
            let destination = match ask.and_then(|ask| Some((ask, ask.member(address)?))) {
                Some((ask, endpoint)) => Destination::of(self.snapshot, ask.service, endpoint),
                None => Destination::plain(self.snapshot, address),
            };
            self.direct(asking, &destination, held.clone(), Transport::Direct)
        };
        self.report.backends.iter().map(each).collect()
    }

    /// The client's agent has it.
    fn captured(
        &self,
        asking: &Asking<'_>,
        destination: &Destination,
        backend: ExplainBackend,
    ) -> ExplainPath {
        let Some(source) = asking.client.pod() else {
            return self.direct(asking, destination, backend, Transport::Plaintext);
        };
        if destination.service.is_none() && source.addresses.contains(&destination.address.ip()) {
            let reason = "what a pod sends to its own address stays in its kernel".to_owned();
            return ExplainPath { backend, allowed: true, reason, ..ExplainPath::default() };
        }
        let served = |uid: &_| (self.served)(uid).then_some(());
        let (workload, transport) = match destination.way(self.node, served) {
            Way::Local((), workload) => (workload, Transport::SameNode),
            Way::Tunnel(workload) if workload.is_on(self.node) => {
                let reason = "it takes mTLS only, and its agent does not serve it yet".to_owned();
                return ExplainPath { reason, ..self.far(workload, destination.address).path(none(backend)) };
            }
            Way::Tunnel(workload) => (workload, Transport::Hbone),
            // The client's agent asks in the place of one that does not serve the pod yet.
            Way::Unserved(workload) => (workload, Transport::Plaintext),
            Way::Plain => return self.direct(asking, destination, backend, Transport::Plaintext),
        };
        let path = ExplainPath { backend, transport, ..ExplainPath::default() };
        self.far(workload, destination.address).decide(path, Some(&source.identity), asking.seen_as)
    }

    /// The node's listener has it, a client's who is outside or counts as such.
    fn carried(
        &self,
        asking: &Asking<'_>,
        endpoint: &Endpoint,
        share: u32,
    ) -> Result<ExplainPath, DatapathError> {
        let address = endpoint.address;
        let workload = Arrival::workload(self.snapshot, endpoint);
        let own = self.maps.address_bits(address_of(address.ip()))? & ADDRESS_LOCAL != 0;
        let arrival = Arrival {
            endpoint,
            workload,
            is_frontend: self.snapshot.service_at(address, Protocol::Tcp).is_some()
                || (own && self.snapshot.service_at_node_port(address.port(), Protocol::Tcp).is_some()),
            is_here: endpoint.is_on(self.node)
                || workload.is_some_and(|workload| workload.is_on(self.node))
                || own,
        };
        let backend = backend(Some(endpoint), share);
        if !asking.tcp {
            let destination = Destination { address, workload: workload.cloned(), service: None };
            return Ok(self.direct(asking, &destination, backend, Transport::Plaintext));
        }
        let refused = |reason: &str| ExplainPath { reason: reason.to_owned(), ..none(backend.clone()) };
        Ok(match arrival.entrance(|uid| (self.served)(uid).then_some(())) {
            Entrance::Loop => refused("it is an endpoint and a service of this node at once"),
            Entrance::Strict => match workload {
                Some(workload) => self.far(workload, address).decide(none(backend), None, asking.seen_as),
                None => refused("plaintext to a port that takes mutual TLS only"),
            },
            Entrance::Local((), workload) | Entrance::Unserved(workload) => {
                let path = ExplainPath { backend, transport: Transport::Plaintext, ..ExplainPath::default() };
                self.far(workload, address).decide(path, None, asking.seen_as)
            }
            Entrance::Tunnel(workload) => {
                // The agents' identity vouches for the client's address, and for nobody's identity.
                let path = ExplainPath { backend, transport: Transport::Hbone, ..ExplainPath::default() };
                self.far(workload, address).decide(path, None, asking.seen_as)
            }
            Entrance::Plain => {
                let destination = Destination { address, workload: workload.cloned(), service: None };
                self.direct(asking, &destination, backend, Transport::Plaintext)
            }
        })
    }

    /// In plaintext. An enrolled pod's agent hears of it before the application does.
    fn direct(
        &self,
        asking: &Asking<'_>,
        destination: &Destination,
        backend: ExplainBackend,
        transport: Transport,
    ) -> ExplainPath {
        let path = ExplainPath { backend, transport, allowed: true, ..ExplainPath::default() };
        let whose = self.snapshot.workload_at(destination.address.ip()).filter(|owner| owner.is_pod());
        let whose = whose.or(destination.workload.as_ref()).filter(|workload| !workload.host_network);
        let Some(workload) = whose else {
            return ExplainPath { reason: "it is no pod: nobody asks a policy".to_owned(), ..path };
        };
        if !workload.enrolled {
            let reason = "it is not in the mesh: nobody asks a policy".to_owned();
            return ExplainPath { reason, ..self.far(workload, destination.address).path(path) };
        }
        let path = self.far(workload, destination.address).path(path);
        if !asking.tcp {
            let reason = "the mesh carries TCP alone: nobody asks a policy".to_owned();
            return ExplainPath { reason, ..path };
        }
        let (_, _, in_node) = asking.client.inside(&self.state);
        let here = workload.is_on(self.node);
        if here && in_node && transport == Transport::Direct {
            let reason = "it comes from the node itself, as probes do: let through, and nobody asks a policy"
                .to_owned();
            return ExplainPath { reason, ..path };
        }
        if here && !(self.served)(&workload.uid) {
            let reason = "its agent does not serve it yet: nobody asks a policy".to_owned();
            return ExplainPath { reason, ..path };
        }
        self.far(workload, destination.address).decide(path, None, asking.seen_as)
    }

    fn far<'s>(&'s self, workload: &'s Arc<Workload>, address: SocketAddr) -> Far<'s> {
        Far { snapshot: self.snapshot, workload, address }
    }

    /// The sum of it.
    fn conclude(&mut self, paths: Vec<ExplainPath>) {
        let count = |allowed| paths.iter().filter(|path| path.allowed == allowed).count();
        let (outcome, because) = match (count(true), count(false)) {
            (0, 0) => (Outcome::Refused, "no endpoint serves".to_owned()),
            (_, 0) => (Outcome::Allowed, ends::in_common(&paths)),
            (0, _) => (Outcome::Refused, ends::in_common(&paths)),
            (yes, no) => {
                let part: u64 = paths
                    .iter()
                    .filter(|path| path.allowed)
                    .map(|path| u64::from(path.backend.share_ppm))
                    .sum();
                let percent = part / 10_000;
                (
                    Outcome::Differs,
                    format!("{yes} of {} endpoints let it through, {percent} % of the draws", yes + no),
                )
            }
        };
        self.ends(outcome, because);
        self.report.more_paths = paths.len().saturating_sub(MAX_PATHS);
        self.report.paths = paths;
        self.report.paths.truncate(MAX_PATHS);
    }

    /// Endpoints that get nothing now, after those that do.
    fn idle(&mut self, ask: &Ask<'_>, v4: bool) {
        let drawn: Vec<Option<SocketAddr>> =
            self.report.paths.iter().map(|path| path.backend.address).collect();
        let others = ask.port.listed.iter().filter(|endpoint| {
            endpoint.address.is_ipv4() == v4
                && !drawn.contains(&Some(endpoint.address))
                && ask.member(endpoint.address).is_none()
        });
        let room = MAX_PATHS.saturating_sub(drawn.len());
        let idle = others.take(room).map(|endpoint| {
            let reason = match endpoint.state {
                EndpointState::Ready => "it gets nothing by this route and policy",
                EndpointState::Terminating | EndpointState::Unready => "it takes no new connections",
            };
            ExplainPath { reason: reason.to_owned(), ..none(backend(Some(endpoint), 0)) }
        });
        let idle: Vec<ExplainPath> = idle.collect();
        self.report.paths.extend(idle);
    }
}

/// `connection`: of an enrolled client.
fn of_ask(ask: &Ask<'_>, connection: Option<&Connecting<'_>>, asked: SocketAddr) -> ExplainRoute {
    let counts = |endpoint: &Endpoint| endpoint.address.is_ipv4() == asked.is_ipv4();
    let taken = |rule: &&ConditionalRoute| connection.is_some_and(|connection| rule.holds(connection));
    let taken = ask.port.rules.iter().find(taken);
    let before =
        ask.port.rules.iter().take_while(|rule| !taken.is_some_and(|taken| std::ptr::eq(taken, *rule)));
    let before = before.filter_map(|rule| {
        let connection = connection?;
        let may = rule.matches.iter().any(|one| one.holds_but_for_name(connection));
        let holds = (!may || connection.server_name.is_some()).then_some(false);
        Some(RuleReport { holds, ..route_words::rule(rule, ask.policy, counts) })
    });
    ExplainRoute {
        service: ask.service.name.to_string(),
        port: ask.port.port,
        policy: if ask.port.local.is_some() { ask.policy } else { TrafficPolicy::Cluster },
        rule: ask.route.rule.as_ref().map(ToString::to_string),
        targets: route_words::targets(ask.route, counts),
        matches: taken.iter().flat_map(|rule| &rule.matches).map(ToString::to_string).collect(),
        actions: connection.map(|_| route_words::actions(&ask.route.actions)).unwrap_or_default(),
        before: before.collect(),
    }
}

/// A share that leads nowhere.
fn nowhere(share_ppm: u32) -> ExplainPath {
    let reason = "its target has no endpoint".to_owned();
    ExplainPath { reason, ..none(ExplainBackend { share_ppm, ..ExplainBackend::default() }) }
}

fn none(backend: ExplainBackend) -> ExplainPath {
    ExplainPath { backend, transport: Transport::None, ..ExplainPath::default() }
}

/// The address that was asked for, which no service has.
fn alone(destination: &Destination) -> ExplainBackend {
    let workload = destination.workload.as_ref();
    ExplainBackend {
        address: Some(destination.address),
        share_ppm: 1_000_000,
        workload: workload.map(|workload| workload.uid.to_string()),
        node: workload.and_then(|workload| workload.node.as_ref()).map(ToString::to_string),
        ..ExplainBackend::default()
    }
}
