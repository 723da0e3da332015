//! The documents about the kernel plane: its maps as they are, and why a connection goes where it goes.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::{EndpointState, Protocol};

/// `GET /v1/maps?name=NAME&limit=N`: one element a map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MapReport {
    /// Its name.
    pub name: String,
    /// Its kind, such as `hash`.
    pub kind: String,
    /// How many entries it has; `None`: the kernel does not tell.
    pub entries: Option<u64>,
    /// How many it can have (bytes, for a ring buffer).
    pub max_entries: u32,
    /// The first of its entries, as many as were asked for.
    pub rows: Vec<MapRow>,
}

/// One entry of a kernel map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MapRow {
    /// The key's fields.
    pub key: Map<String, Value>,
    /// The value's fields; empty where there is nothing in it, or nothing that can be read.
    pub value: Map<String, Value>,
}

/// What is asked of `GET /v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainQuery {
    /// `NAMESPACE/POD`, an address, `node` or `outside`.
    pub from: String,
    /// `ADDRESS:PORT` or `NAMESPACE/SERVICE:PORT`.
    pub to: String,
    /// Protocol.
    pub protocol: Protocol,
}

/// What becomes of a connection.
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

/// `GET /v1/explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainReport {
    /// Who connects.
    pub client: String,
    /// To what.
    pub asked: String,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why, in a sentence.
    pub reason: String,
    /// What was found, in the order in which the programs ask.
    pub steps: Vec<ExplainStep>,
    /// Where it may go.
    pub backends: Vec<ExplainBackend>,
    /// Where the kernel does not hold what the snapshot says.
    pub differences: Vec<String>,
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

/// Why there is no document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The question makes no sense.
    #[error("{0}")]
    Bad(String),
    /// What is asked about is not there.
    #[error("{0}")]
    NotFound(String),
    /// The answer cannot be had.
    #[error("{0}")]
    Failed(String),
}
