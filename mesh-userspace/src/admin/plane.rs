//! The documents about the kernel plane: its maps as they are.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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
