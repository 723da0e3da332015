//! The pods of this node: their namespaces, and their enrolment.
//!
//! It lays what a pod's namespace needs and takes it up again; it neither accepts nor carries connections (`proxy`).

pub mod discovery;
mod enrol;
mod listeners;
mod mend;
mod monitor;
mod namespaces;
mod netns;
mod parallel;
mod plumbing;
pub mod probe;
mod state;

pub use enrol::{EnrolError, Enroller, Enrolment, Laid, Released, Wanted, uninstall};
pub use listeners::Listener;
pub use mend::Mended;
pub use namespaces::{Namespaces, Place, Teller};
pub use netns::NetNs;
