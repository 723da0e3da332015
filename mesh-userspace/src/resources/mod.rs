//! The Kubernetes, Istio and Gateway API objects as they are written, and their translation into the model.
//!
//! Text becomes [`Object`]s in [`decode`], which says where a mistake is, and so does JSON of the API server in `json`; objects become a
//! [`Snapshot`](crate::model::Snapshot) in the [`Translator`], which rebuilds only what a change concerns. Nothing here
//! reads files or the network: that is `source`.

mod analysis;
mod authorization;
mod decode;
mod deserialize;
pub(crate) mod destination_rule;
mod duration;
mod entry;
pub mod fields;
pub(crate) mod gateway;
mod istio;
mod json;
mod lint;
mod object;
mod pod;
mod report;
mod service;
mod slice;
mod stand_in;
mod store;
mod translate;
mod validate;
mod virtual_service;
mod yaml;

pub use analysis::analyse;
pub use authorization::AuthorizationPolicy;
pub use decode::{Decoded, Item, Mistake, decode};
pub(crate) use decode::{GROUPS, Lines, MAX_TEXT, decode_part, parts};
pub use destination_rule::{DestinationRule, Subset};
pub use entry::{ServiceEntry, WorkloadEntry};
pub use gateway::{GatewayRoute, ReferenceGrant};
pub use istio::{IstioMode, LabelSelector, MutualTls, PeerAuthentication};
pub(crate) use json::{Rejected, decode_json};
pub use object::{Kind, Object, ObjectRef};
pub use pod::Pod;
pub use report::{Code, Notice, Origin, Problem, Severity};
pub use service::Service;
pub use slice::EndpointSlice;
pub(crate) use stand_in::guards;
pub use store::{Change, Translator};
pub use virtual_service::{Destination, VirtualService};
