//! What would become of a connection, and why: nothing is sent.
//!
//! The kernel's part is the programs' own questions, asked of the very maps that they read (or, without a kernel, of what
//! the snapshot says that they should hold), with the verdicts of [`mesh_common::capture`], which the programs use as well.
//! What follows is asked of those who decide: the proxy's routes and ways, and the destination's
//! [`Guard`](crate::policy::authorization::Guard).

mod client;
mod ends;
mod frontend;
mod manifests;
mod maps;
mod paths;
mod set;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_common::abi::{
    DESTINATION_ENROLLED, ROLE_NODE_TCP4, ROLE_NODE_TCP6, ROLE_NODE_UDP4, ROLE_NODE_UDP6, SCOPE_ADDRESS,
    SERVICE_CLOSED_OUTSIDE, SERVICE_RANGES, STATE_TRANSLATE, Service as Installed, ServiceKey, State,
};
use mesh_common::capture::{self, Agent};

pub use self::manifests::explain as explain_manifests;

use self::client::{Client, Clients};
use self::frontend::{Found, Frontends};
use self::maps::Maps;
use crate::admin::explain::{ExplainQuery, ExplainReport, ExplainStep, Verdict};
use crate::admin::plane::QueryError;
use crate::agent::chain;
use crate::agent::policies::notices;
use crate::datapath::maps::MapReader;
use crate::datapath::{DatapathError, address_of, monotonic_ns};
use crate::model::{NodeName, Protocol, Snapshot, TrafficPolicy, WorkloadUid};
use crate::policy::authorization::PolicyVerdict;
use crate::resources::{Kind, ObjectRef};
use crate::source::Reports;

/// What is asked.
struct Explanation<'a> {
    maps: &'a dyn Maps,
    snapshot: &'a Snapshot,
    node: &'a NodeName,
    /// Whether this node's agent serves a pod.
    served: &'a dyn Fn(&WorkloadUid) -> bool,
    state: State,
    report: ExplainReport,
}

/// Explains one connection on a node whose agent runs and serves these pods. Blocks for a few system calls.
pub(super) fn explain(
    maps: &MapReader,
    (snapshot, reports): (&Snapshot, &Reports),
    node: &NodeName,
    served: &dyn Fn(&WorkloadUid) -> bool,
    query: &ExplainQuery,
) -> Result<ExplainReport, QueryError> {
    let mut report = of_maps(maps, snapshot, node, served, query)?;
    note_policies(&mut report, reports);
    Ok(report)
}

/// Adds what of the policies that were asked is not carried out as it is written.
fn note_policies(report: &mut ExplainReport, reports: &Reports) {
    let modes = report.paths.iter().filter_map(|path| path.mode_by.as_deref()?.split_once('/'));
    let peers = modes.map(|(namespace, name)| ObjectRef::new(Kind::PeerAuthentication, namespace, name));
    let verdicts = report.paths.iter().flat_map(|path| &path.policies);
    let guards = verdicts.map(|PolicyVerdict { policy, .. }| {
        ObjectRef::new(Kind::AuthorizationPolicy, Arc::clone(&policy.namespace), Arc::clone(&policy.name))
    });
    let about = peers.chain(guards).collect();
    (report.notices, report.more_notices) = notices(reports, &about);
}

fn of_maps(
    maps: &dyn Maps,
    snapshot: &Snapshot,
    node: &NodeName,
    served: &dyn Fn(&WorkloadUid) -> bool,
    query: &ExplainQuery,
) -> Result<ExplainReport, QueryError> {
    let asked = client::destination(&query.to, snapshot)?;
    if query.protocol == Protocol::Sctp {
        return Err(QueryError::Bad("SCTP is carried by no plane".to_owned()));
    }
    let state = maps.state().map_err(failed)?;
    let client = Clients { maps, snapshot, node, state: &state }.find(&query.from)?;
    let report = ExplainReport {
        client: client.to_string(),
        asked: format!("{asked} {}", frontend::protocol(query.protocol)),
        basis: maps.basis(),
        ..ExplainReport::default()
    };
    let mut explanation = Explanation { maps, snapshot, node, served, state, report };
    explanation.kernel(&client, asked, query.protocol).map_err(failed)?;
    let server_name = query.server_name.as_deref().filter(|name| !name.is_empty());
    explanation.mesh(&client, asked, query.protocol, server_name).map_err(failed)?;
    Ok(explanation.report)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: DatapathError) -> QueryError {
    QueryError::Failed(chain(&error))
}

impl Explanation<'_> {
    /// What the kernel of the client's node does.
    fn kernel(
        &mut self,
        client: &Client,
        asked: SocketAddr,
        protocol: Protocol,
    ) -> Result<(), DatapathError> {
        let (address, port) = (address_of(asked.ip()), asked.port());
        let key = ServiceKey { address, port, protocol: protocol.number(), scope: SCOPE_ADDRESS };
        match client {
            Client::Inside { .. } => self.inside(client, &key, protocol),
            Client::Outside(address) => self.outside(*address, &key, protocol),
        }
    }

    fn step(&mut self, what: &str, found: impl Into<String>) {
        self.report.steps.push(ExplainStep { what: what.to_owned(), found: found.into() });
    }

    fn end(&mut self, verdict: Verdict, reason: impl Into<String>) {
        (self.report.verdict, self.report.reason) = (verdict, reason.into());
    }

    /// A process of this node: connect and sendmsg decide.
    fn inside(&mut self, client: &Client, key: &ServiceKey, protocol: Protocol) -> Result<(), DatapathError> {
        let agent = Agent::at(&self.state, monotonic_ns());
        let (enrolled, netns, in_node) = client.inside(&self.state);
        self.step("client", client.details(self.maps.basis()));
        self.step("agent", agent_words(agent));
        let found = Frontends { maps: self.maps, snapshot: self.snapshot }.find(key, in_node)?;
        self.step("address", frontend::address_words(found.bits));
        let tcp = protocol == Protocol::Tcp;
        let Some((frontend, installed)) = self.frontend(&found) else {
            return self.no_service(&found, key, enrolled && tcp, agent);
        };
        let policy = if frontend.is_cluster { frontend.service_policy } else { TrafficPolicy::Cluster };
        self.step("policy", frontend.inside_words());
        match capture::to_service(enrolled, tcp, installed.flags, agent) {
            capture::Verdict::Capture => {
                self.endpoints(&found, policy);
                self.end(Verdict::Captured, frontend.captured_words(policy, found.v4));
                return self.kernel_set(&installed, &found, policy, key, netns, false);
            }
            capture::Verdict::Refuse => {
                self.end(
                    Verdict::Refused,
                    "the client is enrolled, a backend takes mTLS only, and the agent is away",
                );
                return Ok(());
            }
            capture::Verdict::Translate => {}
            capture::Verdict::Pass | capture::Verdict::Direct if agent.translates => {
                self.step(
                    "source ranges",
                    "only the packet tells the client's address: the node's sk_lookup decides",
                );
                return self.arrives(client.address(key), &found, &installed, protocol);
            }
            capture::Verdict::Pass | capture::Verdict::Direct => {
                self.end(Verdict::Passed, "services are left to kube-proxy");
                return Ok(());
            }
        }
        self.endpoints(&found, policy);
        self.end(Verdict::Translated, "the kernel sends it to a backend");
        self.kernel_set(&installed, &found, policy, key, netns, enrolled && tcp)
    }

    /// A client from outside: the node's `sk_lookup` decides.
    fn outside(
        &mut self,
        address: Option<IpAddr>,
        key: &ServiceKey,
        protocol: Protocol,
    ) -> Result<(), DatapathError> {
        let agent = Agent::at(&self.state, monotonic_ns());
        self.step("agent", agent_words(agent));
        if self.state.flags & STATE_TRANSLATE == 0 {
            self.end(Verdict::Passed, "services are left to kube-proxy");
            return Ok(());
        }
        let found = Frontends { maps: self.maps, snapshot: self.snapshot }.find_outside(key)?;
        self.step("address", frontend::address_words(found.bits));
        let Some((_, installed)) = self.frontend(&found) else {
            if found.closed_outside() {
                self.end(Verdict::Refused, "no service has this port, and the address is a service's");
            } else {
                self.end(Verdict::Passed, "no service has this address and port");
            }
            return Ok(());
        };
        self.arrives(address, &found, &installed, protocol)
    }

    /// What the node's `sk_lookup` does with a service's packet.
    fn arrives(
        &mut self,
        address: Option<IpAddr>,
        found: &Found<'_>,
        installed: &Installed,
        protocol: Protocol,
    ) -> Result<(), DatapathError> {
        let Some(frontend) = found.frontend() else { return Ok(()) };
        let policy = frontend.service_policy;
        self.step("policy", frontend.outside_words());
        if installed.flags & SERVICE_RANGES != 0 {
            let Some(address) = address else {
                self.step(
                    "source ranges",
                    "there are some: give the client's address to know whether it may come",
                );
                return Ok(());
            };
            let may = self.maps.in_range(&found.key, installed, address)?;
            self.step("source ranges", format!("{address} is {}in one", if may { "" } else { "not " }));
            if !may {
                self.end(Verdict::Refused, "loadBalancerSourceRanges do not have the client");
                return Ok(());
            }
        }
        self.endpoints(found, policy);
        if installed.flags & SERVICE_CLOSED_OUTSIDE != 0 {
            self.end(Verdict::Refused, "nothing on this node serves clients from outside under this policy");
            return Ok(());
        }
        let role = match (protocol, found.v4) {
            (Protocol::Tcp, true) => ROLE_NODE_TCP4,
            (Protocol::Tcp, false) => ROLE_NODE_TCP6,
            (_, true) => ROLE_NODE_UDP4,
            (_, false) => ROLE_NODE_UDP6,
        };
        if !self.maps.has_node_listener(role)? {
            self.end(Verdict::Refused, "the agent has no listener for clients from outside");
            return Ok(());
        }
        self.client_affinity(installed, address)?;
        // The agent picks from the snapshot.
        self.report.backends = set::of_snapshot(found, policy);
        self.end(Verdict::Carried, "the agent takes it and carries it to a backend");
        Ok(())
    }

    /// The frontend as a step; what kernel and snapshot do not agree on is noted.
    fn frontend<'f>(&mut self, found: &'f Found<'_>) -> Option<(frontend::Frontend<'f>, Installed)> {
        match (found.frontend(), found.installed) {
            (Some(frontend), Some(installed)) => {
                self.step("frontend", frontend.to_string());
                Some((frontend, installed))
            }
            (Some(frontend), None) => {
                self.report.differences.push(format!("the snapshot has {frontend}, the kernel does not"));
                None
            }
            (None, Some(installed)) => {
                let difference =
                    format!("the kernel has set {} for it, the snapshot no service", installed.id);
                self.report.differences.push(difference);
                self.step("frontend", format!("set {} of no service that is known", installed.id));
                None
            }
            (None, None) => {
                self.step("frontend", "none");
                None
            }
        }
    }

    fn no_service(
        &mut self,
        found: &Found<'_>,
        key: &ServiceKey,
        captures: bool,
        agent: Agent,
    ) -> Result<(), DatapathError> {
        if found.installed.is_none() && found.closed_inside() {
            self.end(Verdict::Refused, "the address is a service's, and no service has this port");
            return Ok(());
        }
        let destination = self.maps.destination(key.address)?;
        let Some(destination) = destination.filter(|_| captures) else {
            self.end(Verdict::Passed, "no service has this address and port");
            return Ok(());
        };
        let strict = destination.flags & !DESTINATION_ENROLLED != 0;
        self.step("destination", if strict { "an enrolled pod, mTLS only" } else { "an enrolled pod" });
        match capture::to_workload(destination.flags, agent.alive) {
            capture::Verdict::Capture => {
                self.end(Verdict::Captured, "both ends are enrolled: the agent carries it");
            }
            capture::Verdict::Refuse => {
                self.end(Verdict::Refused, "the destination takes mTLS only, and the agent is away");
            }
            _ => self.end(Verdict::Passed, "the agent is away, and the destination takes plaintext"),
        }
        Ok(())
    }
}

fn agent_words(agent: Agent) -> String {
    let alive = if agent.alive { "alive" } else { "away (no heartbeat)" };
    let translates =
        if agent.translates { "services are translated here" } else { "services are left to kube-proxy" };
    format!("{alive}; {translates}")
}
