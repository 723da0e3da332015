//! What is told to the operator about objects.

mod code;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use self::code::Code;

use super::ObjectRef;

/// Where objects are read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// This file.
    File(PathBuf),
    /// The API server of this address.
    ApiServer(Arc<str>),
}

impl Origin {
    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::ApiServer(_) => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::ApiServer(_) => f.write_str("API server"),
        }
    }
}

/// Something that could not be read: the last good state of the object stays in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind of problem it is.
    pub code: Code,
    /// Where it was read.
    #[serde(flatten)]
    pub origin: Origin,
    /// The line in it, from 1.
    pub line: Option<u32>,
    /// The object, where its name could still be read.
    pub object: Option<ObjectRef>,
    /// The field's path, such as `spec.ports[0].port`; empty where none is to blame.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
    /// When it was first seen.
    pub since: SystemTime,
}

impl Problem {
    /// Whether it is the same problem, whenever it was first seen.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.origin, self.line, &self.object, &self.field, &self.reason)
            == (&other.origin, other.line, &other.object, &other.field, &other.reason)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// How much a notice matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    #[default]
    Info,
    /// Not honoured, or not as its author may expect.
    Warning,
    /// Connections fail, or a protection is not in force.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something in a well-formed object that this mesh does not carry out, or carries out differently.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Notice {
    /// What kind of notice it is, and with it how much it matters.
    pub code: Code,
    /// The object.
    pub object: ObjectRef,
    /// The field's path; empty for the object as a whole.
    pub field: String,
    /// What about it.
    pub message: String,
}

impl Notice {
    /// A notice about an object's field; an empty one stands for the object as a whole.
    pub fn new(code: Code, object: &ObjectRef, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code, object: object.clone(), field: field.into(), message: message.into() }
    }

    /// How much it matters.
    pub const fn severity(&self) -> Severity {
        self.code.severity()
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.object)?;
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}
