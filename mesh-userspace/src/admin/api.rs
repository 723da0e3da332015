//! The documents of the node's API, as the agent writes them and `meshctl` reads them.
//!
//! Times are seconds since the Unix epoch. Fields may be added; a reader ignores what it does not know and takes what
//! is missing as empty, so that a `meshctl` of another version works.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::model::{EndpointState, Mode, Protocol, ServiceKind, TrafficPolicy, WorkloadKind};
use crate::telemetry::FlowRecord;

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// Version of the agent.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// Process id of the agent.
    pub pid: u32,
    /// When the agent started.
    pub started: u64,
    /// Generation of the snapshot in force.
    pub generation: u64,
    /// Services in it.
    pub services: usize,
    /// Workloads in it.
    pub workloads: usize,
    /// Pods of this node that are enrolled.
    pub enrolled: usize,
    /// Connections that the agent carries now.
    pub connections: u64,
    /// Where the objects come from.
    pub source: SourceReport,
    /// The eBPF programs.
    pub kernel: KernelReport,
    /// Enrolled pods.
    pub pods: Vec<PodStatus>,
    /// What does not work.
    pub problems: Vec<String>,
    /// What is worth knowing.
    pub notices: Vec<String>,
}

/// Where the objects come from, and how it stands with that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceReport {
    /// `manifests` or `kubernetes`; empty: not told.
    pub kind: String,
    /// Address of the API server.
    pub api_server: Option<String>,
    /// Whether every kind that the API server has is followed.
    pub connected: bool,
    /// Since when that is so, or not so.
    pub since: u64,
    /// Why it is not.
    pub error: Option<String>,
    /// What is known is of this time at least; `None`: not everything is known yet.
    pub as_of: Option<u64>,
    /// Of when the state kept on disk is, while that is in force because the API server was away at the start.
    pub stored: Option<u64>,
    /// Of when the state on disk is that this agent has written.
    pub kept: Option<u64>,
    /// Why it cannot be written.
    pub keep_error: Option<String>,
    /// Kind by kind.
    pub kinds: Vec<SourceKindReport>,
}

/// A kind that is followed at the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceKindReport {
    /// Its name.
    pub kind: String,
    /// `synced`, `absent` (not installed), `stored` (as kept on disk), `waiting` (for its first listing), `failing`.
    pub state: String,
    /// Objects that are known.
    pub objects: usize,
    /// When it was last listed in full.
    pub listed: Option<u64>,
    /// What is known of it is of this time at least.
    pub as_of: Option<u64>,
    /// Since when it fails.
    pub failing_since: Option<u64>,
    /// Why.
    pub error: Option<String>,
}

/// State of the kernel plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelReport {
    /// Version of the maps' layout.
    pub layout: u32,
    /// Age of the heartbeat that the programs see, in milliseconds; `None`: never written.
    pub heartbeat_age_ms: Option<u64>,
    /// Programs, in the order in which they are attached.
    pub programs: Vec<ProgramStatus>,
}

/// One eBPF program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgramStatus {
    /// Its name.
    pub name: String,
    /// Whether it is attached.
    pub attached: bool,
    /// Kernel id of the program.
    pub program_id: Option<u32>,
    /// Kernel id of its link.
    pub link_id: Option<u32>,
    /// The cgroup that it is attached to.
    pub cgroup: Option<String>,
}

/// Whether a test connection through a pod's listeners arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result", content = "reason")]
pub enum Canary {
    /// Not tried yet.
    #[default]
    Pending,
    /// It arrived.
    Ok,
    /// It did not.
    Failed(String),
}

/// An enrolled pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// `NAMESPACE/POD`.
    pub uid: String,
    /// `enrolled`, `leaving`, `waiting` (for what should come by itself), `failed`.
    pub state: String,
    /// Since when.
    pub since: u64,
    /// Why it is in that state, where that needs a word.
    pub detail: Option<String>,
    /// Its network namespace: path, or inode.
    pub netns: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Roles and addresses of the agent's listeners in its namespace.
    pub listeners: Vec<String>,
    /// Whether a test connection arrived.
    pub canary: Canary,
    /// Connections that the agent carries for it.
    pub connections: u64,
    /// When something of it was mended last.
    pub mended: Option<u64>,
    /// What that was.
    pub mend: Option<String>,
}

/// `GET /v1/check`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckReport {
    /// What was checked.
    pub items: Vec<CheckItem>,
}

impl CheckReport {
    /// Whether nothing that is required is missing.
    pub fn passed(&self) -> bool {
        self.items.iter().all(|item| item.ok || !item.required)
    }
}

/// One thing that the mesh needs, or would use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckItem {
    /// Short name.
    pub name: String,
    /// What it is needed for.
    pub purpose: String,
    /// Whether it is there.
    pub ok: bool,
    /// Whether the mesh does not work without it.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub remedy: String,
}

/// `GET /v1/services`: one element a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceReport {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `spec.type`, or `ServiceEntry`.
    pub kind: ServiceKind,
    /// The host by which rules name it.
    pub host: String,
    /// Cluster addresses, or those of a `ServiceEntry`.
    pub addresses: Vec<IpAddr>,
    /// `externalIPs`.
    pub external_addresses: Vec<IpAddr>,
    /// Addresses of its load balancer.
    pub load_balancer: Vec<IpAddr>,
    /// Who may come to those; empty: everybody.
    pub source_ranges: Vec<String>,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `healthCheckNodePort`.
    pub health_check_port: Option<u16>,
    /// How long a client keeps its backend; `None`: it does not.
    pub affinity_seconds: Option<u32>,
    /// Ports.
    pub ports: Vec<ServicePortReport>,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortReport {
    /// Name, often empty.
    #[serde(default)]
    pub name: String,
    /// Number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The port on every node.
    #[serde(default)]
    pub node_port: Option<u16>,
    /// `NAMESPACE/NAME` of the resource that routes it.
    #[serde(default)]
    pub rule: Option<String>,
    /// Targets of the route, as written.
    #[serde(default)]
    pub targets: Vec<TargetReport>,
    /// What is done to connections of enrolled clients that take it, in words.
    #[serde(default)]
    pub actions: Vec<String>,
    /// Routes for some connections of enrolled clients alone, which go before it, in their order.
    #[serde(default)]
    pub rules: Vec<RuleReport>,
    /// What is picked from, and endpoints that take no connections now.
    #[serde(default)]
    pub backends: Vec<BackendReport>,
}

/// A route for some connections of enrolled clients alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuleReport {
    /// `NAMESPACE/NAME` of the resource that says so.
    pub rule: Option<String>,
    /// For which connections, in words: it holds where one of these does.
    pub matches: Vec<String>,
    /// Its weighted targets.
    pub targets: Vec<TargetReport>,
    /// What is done to connections that take it, in words.
    pub actions: Vec<String>,
    /// Whether it holds for the connection that is asked about; `None`: none is, or its server name would have to be known.
    pub holds: Option<bool>,
}

/// One weighted target of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetReport {
    /// `NAMESPACE/NAME` of the service.
    pub service: String,
    /// Subset.
    pub subset: Option<String>,
    /// Weight.
    pub weight: u32,
    /// Number of endpoints.
    pub endpoints: usize,
}

/// One backend of a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendReport {
    /// Address; `None`: a share that has nowhere to go and is refused.
    pub address: Option<SocketAddr>,
    /// Its weight; 0: it takes none.
    pub weight: u64,
    /// Its share of new connections, in millionths.
    pub share_ppm: u32,
    /// Its state.
    pub state: Option<EndpointState>,
    /// Whether it serves where the policy is Local.
    pub local: bool,
    /// Connections (and datagram sockets) that the kernel has sent to it for this port.
    pub connections: u64,
    /// The workload behind it.
    pub workload: Option<String>,
    /// The node that it is on.
    pub node: Option<String>,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// Its mTLS mode.
    pub mode: Mode,
    /// Whether it is enrolled.
    pub enrolled: bool,
    /// What the agent knows of it from connections that it carries; `None`: it has carried none lately.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveReport>,
}

/// The live state of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LiveReport {
    /// Connections of this node's agent to it, those that are being established among them.
    pub open: u32,
    /// All that it has begun since the destination was last idle for ten minutes, tries that failed among them.
    pub begun: u64,
    /// Failures in a row, where outlier detection counts them.
    pub failures: u32,
    /// How often it was ejected.
    pub ejections: u32,
    /// Until when at least it gets no new connections; `None`: it is not ejected.
    pub ejected_until: Option<u64>,
}

/// `GET /v1/workloads`: one element a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkloadReport {
    /// Namespace.
    pub namespace: String,
    /// Name of the pod, or of the entry.
    pub name: String,
    /// What it is.
    pub kind: WorkloadKind,
    /// What the pod belongs to.
    pub workload: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Node.
    pub node: Option<String>,
    /// SPIFFE ID.
    pub identity: String,
    /// Canonical service.
    pub canonical_name: String,
    /// Canonical revision.
    pub canonical_revision: String,
    /// Whether it is enrolled.
    pub enrolled: bool,
    /// Whether it has its node's network.
    pub host_network: bool,
    /// mTLS mode, ports of their own aside.
    pub mode: Mode,
}

/// `GET /v1/certs`: one element an identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertReport {
    /// SPIFFE ID.
    pub identity: String,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// Begin of validity.
    pub not_before: Option<u64>,
    /// End of validity.
    pub not_after: Option<u64>,
    /// When it will be renewed.
    pub renew_at: Option<u64>,
    /// `valid`, `pending`, `renewal_failing`, `expiring` (in the last quarter of its life), `unavailable`.
    pub state: String,
    /// Why the last try to sign failed.
    pub error: Option<String>,
    /// SHA-256 of the root that it is from.
    pub root_fingerprint: String,
    /// SHA-256 of each root that its peers are verified by.
    pub trusted_roots: Vec<String>,
    /// What is wrong with the local authority; the same for all.
    pub authority_problem: Option<String>,
}

/// One line of `GET /v1/flows?follow=true`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FlowLine {
    /// A flow that ended.
    Flow(Box<FlowRecord>),
    /// So many flows were missed because the reader was too slow.
    Missed {
        /// How many.
        missed: u64,
    },
}

/// What a failed request answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// What went wrong.
    pub error: String,
}
