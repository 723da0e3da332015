//! Picks a backend: weights, algorithms, health, limits. The live state of every destination that connections of this node's agent
//! go to.
//!
//! A *destination* is a service's port in a subset: what a `DestinationRule` says something of. All workers share one
//! [`Balancers`]; a connection looks its destination up once (`Balancers::look`) and from there on counts with atomics. No
//! lock is held while anybody waits, and none is taken for a connection but by `ROUND_ROBIN`, for the length of a sum.
//!
//! What is counted belongs to the destination and to the address of the endpoint, not to a snapshot: a change of endpoints or of settings
//! applies to the next connection, and those that are open stay counted. Counts are this agent's, that is the node's, as each of
//! Envoy's sidecars has its own.
//!
//! It knows the model alone. Whoever connects tells it what became of a connection; who is told of ejections is the agent's to
//! say ([`Balancers::on_change`]).

mod algorithm;
mod destination;
mod live;
mod outlier;
mod priority;
mod registry;
mod retry;
mod teller;
mod view;
mod warmup;

#[cfg(test)]
mod tests;

pub use self::destination::{Key, Overflow};
pub use self::live::LiveState;
pub use self::outlier::{Change, Event, Failure, Reason};
pub use self::registry::Balancers;

pub(crate) use self::destination::{Place, Retrying};
pub(crate) use self::registry::{Looked, Picked};
pub(crate) use self::retry::backoff;
pub(crate) use self::view::target;
