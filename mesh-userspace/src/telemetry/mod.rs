//! What the agent says about the traffic that it carries: one flow record a connection, and metrics.
//!
//! A [`ConnectionRecord`] is opened when a connection is known and closes itself when dropped, so that there is exactly
//! one record whatever happens. Nothing here decides anything, and nothing is done per packet: the copying loop adds to
//! two counters of its connection.

mod actions;
mod balance;
mod connection;
pub(crate) mod declare;
mod flow;
mod metrics;
mod sync;
mod traffic;

pub use actions::ActionMetrics;
pub use balance::{BalanceMetrics, RetryResult};
pub use connection::{ByteCounters, ConnectionRecord, End, OpenedConnection, Telemetry};
pub use flow::{
    Direction, FlowFlags, FlowLog, FlowRecord, Outcome, Party, PolicyMark, Reporter, ResponseFlags, Security,
    ServiceAt,
};
pub use metrics::{CONTENT_TYPE, Metrics};
pub use sync::{SyncHealth, SyncRecorder};
pub use traffic::{ConnectionMetrics, TrafficLabels, TrafficMetrics};

#[cfg(test)]
pub(crate) use flow::example;
