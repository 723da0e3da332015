//! The pods of this node: their namespaces, their enrolment, and the self-test.

mod listeners;
mod netns;
mod plumbing;

pub use netns::NetNs;
