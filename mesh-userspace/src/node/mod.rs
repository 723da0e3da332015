//! The pods of this node: their namespaces, and their enrolment.
//!
//! It lays what a pod's namespace needs and takes it up again; it neither accepts nor carries connections (`proxy`).

mod enrol;
mod listeners;
mod namespaces;
mod netns;
mod plumbing;
pub mod probe;
mod state;

pub use enrol::{EnrolError, Enroller, Enrolment, uninstall};
pub use listeners::Listener;
pub use namespaces::{Namespaces, Teller};
pub use netns::NetNs;
