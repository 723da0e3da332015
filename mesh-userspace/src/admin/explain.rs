//! What would become of a connection, and why: `GET /v1/explain`, and the same from manifests alone.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::api::{RuleReport, TargetReport};
use crate::model::{EndpointState, Mode, Protocol, TrafficPolicy};
use crate::policy::authorization::PolicyVerdict;

/// What is asked of `GET /v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainQuery {
    /// `NAMESPACE/POD`, an address, `node` or `outside`.
    pub from: String,
    /// `ADDRESS:PORT`, `NAME.NAMESPACE[.svc...]:PORT` or `NAMESPACE/NAME:PORT`, a service or else a pod.
    pub to: String,
    /// Protocol.
    pub protocol: Protocol,
    /// The server name that the client's TLS asks for, which routes may go by.
    #[serde(default)]
    pub server_name: Option<String>,
}

/// What becomes of a connection in the kernel of the client's node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It goes where it was sent: it is no business of the kernel plane.
    #[default]
    Passed,
    /// The kernel sends it to one of the backends.
    Translated,
    /// The agent carries it (an enrolled pod's).
    Captured,
    /// The agent's node listener carries it (a client's from outside).
    Carried,
    /// It ends at once: ECONNREFUSED, or RST or ICMP port unreachable for a client outside.
    Refused,
}

/// How it ends, all in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Wherever it goes, it is let through.
    #[default]
    Allowed,
    /// Wherever it goes, it is refused.
    Refused,
    /// It depends on the endpoint that is drawn.
    Differs,
}

/// What is known of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Its maps were read.
    #[default]
    Kernel,
    /// It was not asked: what it should hold as the snapshot says.
    Snapshot,
}

/// `GET /v1/explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainReport {
    /// Who connects.
    pub client: String,
    /// To what.
    pub asked: String,
    /// How it ends.
    pub outcome: Outcome,
    /// Why, in a sentence.
    pub because: String,
    /// Whether the kernel was asked.
    pub basis: Basis,
    /// What the kernel of the client's node does.
    pub verdict: Verdict,
    /// Why, in a sentence.
    pub reason: String,
    /// What was found, in the order in which the programs ask.
    pub steps: Vec<ExplainStep>,
    /// Where the kernel, or who carries it, may send it.
    pub backends: Vec<ExplainBackend>,
    /// Where the kernel does not hold what the snapshot says.
    pub differences: Vec<String>,
    /// The client's end; `None`: nobody that the mesh knows.
    pub source: Option<ExplainSource>,
    /// The service that was asked for, and where its connections go; `None`: no service was.
    pub route: Option<ExplainRoute>,
    /// Each endpoint that may be drawn, and what becomes of the connection there; those without a share take none.
    pub paths: Vec<ExplainPath>,
    /// Endpoints that there are beside them: not explained one by one, but counted in `outcome`.
    pub more_paths: usize,
    /// What in the manifests could not be read.
    pub problems: Vec<String>,
    /// What of the policies in `paths` is not carried out as it is written, [`MAX_NOTICES`] at most, the gravest first.
    ///
    /// [`MAX_NOTICES`]: super::policy::MAX_NOTICES
    pub notices: Vec<String>,
    /// How many notices there are beside those.
    pub more_notices: usize,
}

/// One thing that was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainStep {
    /// What was asked.
    pub what: String,
    /// What was found.
    pub found: String,
}

/// One backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainBackend {
    /// Address; `None`: a share that has nowhere to go and is refused.
    pub address: Option<SocketAddr>,
    /// Its share of new connections, in millionths.
    pub share_ppm: u32,
    /// It takes mTLS only.
    pub strict: bool,
    /// The workload behind it.
    pub workload: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Its state; `None`: the snapshot does not know it.
    pub state: Option<EndpointState>,
}

/// The client's end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainSource {
    /// `NAMESPACE/POD`; `None`: a process of the node itself.
    pub workload: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// The address that it connects from; `None`: not known.
    pub address: Option<IpAddr>,
    /// Whether the mesh carries its connections.
    pub enrolled: bool,
    /// SPIFFE ID that it has.
    pub identity: Option<String>,
}

/// Where connections to a service port go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainRoute {
    /// `NAMESPACE/NAME` of the service.
    pub service: String,
    /// The service's port.
    pub port: u16,
    /// `Local` where endpoints of this node alone are taken.
    pub policy: TrafficPolicy,
    /// `NAMESPACE/NAME` of the `VirtualService` that says so; `None`: all endpoints alike.
    pub rule: Option<String>,
    /// Its weighted targets.
    pub targets: Vec<TargetReport>,
    /// For which connections it is, in words; empty: for all.
    pub matches: Vec<String>,
    /// What is done to the connection, in words; for enrolled clients.
    pub actions: Vec<String>,
    /// The routes that go before it and do not hold, or do not without a server name, in their order; for enrolled clients.
    pub before: Vec<RuleReport>,
}

/// How the bytes travel to an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// The agents carry nothing of it.
    #[default]
    Direct,
    /// In a tunnel, authenticated at both ends.
    Hbone,
    /// Between two pods that one agent serves: both identities are known there, and nothing leaves the node.
    SameNode,
    /// The agent carries it, in plaintext.
    Plaintext,
    /// Nowhere: no connection is opened.
    None,
}

/// One endpoint, and what becomes of the connection there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainPath {
    /// The endpoint.
    #[serde(flatten)]
    pub backend: ExplainBackend,
    /// Whether its workload is in the mesh.
    pub enrolled: bool,
    /// SPIFFE ID that its workload has.
    pub identity: Option<String>,
    /// mTLS mode in force at that port; `None`: it is not in the mesh.
    pub mode: Option<Mode>,
    /// `NAMESPACE/NAME` of the `PeerAuthentication` that says so; `None`: none does.
    pub mode_by: Option<String>,
    /// How it travels.
    pub transport: Transport,
    /// Whom the destination takes the client for; `None`: nobody proves anything.
    pub authenticated: Option<String>,
    /// Whether it is let through.
    pub allowed: bool,
    /// By what, in a sentence.
    pub reason: String,
    /// Why it would be refused if the dry runs were in force.
    pub dry_run: Option<String>,
    /// AUDIT rules that match.
    pub audited: Vec<String>,
    /// What each policy says that applies to the workload; empty: none does, or nobody asks them.
    pub policies: Vec<PolicyVerdict>,
}
