//! The mesh as this node understands it: pure data and pure functions.
//!
//! Everything else in the crate knows the model; the model knows none of it. A [`Snapshot`] is immutable and replaced
//! whole; its collections share structure with the one before, so that a small change costs little.

mod alias;
mod authorization;
mod fate;
mod gateway;
mod identity;
mod locality;
mod maglev;
mod matching;
mod mtls;
mod name;
mod policies;
mod route;
mod sandbox;
mod service;
pub(crate) mod shared;
mod snapshot;
mod traffic;
mod workload;

pub use alias::{AliasTable, Draw};
pub use authorization::{
    AuthorizationPolicy, Clause, Condition, PolicyAction, PolicyName, PolicyRule, PolicyScope,
    ServiceAccountName, TextMatch, Values,
};
pub use fate::{Earlier, Fate};
pub use gateway::{CONTROLLER, ParentState, RouteCondition, RouteKind, RouteName, RouteState};
pub use identity::{Identity, IdentityError, TrustDomain};
pub use locality::{Group, Locality, Spread};
pub use maglev::Maglev;
pub use matching::{Connecting, ConnectionMatch, ServerNames};
pub use mtls::{Mode, MtlsModes, PeerPolicy};
pub use name::{NodeName, ServiceName, WorkloadUid};
pub use policies::{NamespacePolicies, Policies};
pub use route::{
    Backend, BackendSet, ConditionalRoute, Endpoint, EndpointState, Lot, Lotted, Route, RouteTarget, Table,
    combine_weights,
};
pub use sandbox::{Placed, Sandbox, Sandboxes};
pub use service::{AgentCause, External, Protocol, Service, ServiceKind, ServicePort, TrafficPolicy};
pub(crate) use shared::{shared_labels, shared_text};
pub use snapshot::{Frontend, LocalNode, MeshConfig, Snapshot};
pub use traffic::{
    Balancer, ConnectionLimits, Keepalive, Mirror, OutlierDetection, Retries, RouteActions, Share,
    TrafficSettings, Warmup,
};
pub use workload::{DATAPLANE_MODE, Workload, WorkloadKind};
