//! Fields that Istio has and that this mesh does not carry out, with what becomes of what they ask for. Others are taken for
//! typing mistakes.

use crate::resources::Code::{self, NotHonouredYet, TrafficPolicy};

/// A field.
#[derive(Clone, Copy)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) code: Code,
    /// What layer 4 does with it, and why.
    pub(super) effect: &'static str,
}

const fn field(name: &'static str, code: Code, effect: &'static str) -> Field {
    Field { name, code, effect }
}

const EXPORT: &str = "not honoured yet: the rule holds for clients of every namespace";
/// Of `DestinationRule.spec`.
pub(super) const DESTINATION_RULE: &[Field] = &[
    SUBSET[0],
    field("exportTo", NotHonouredYet, EXPORT),
    field("workloadSelector", NotHonouredYet, "not honoured yet: the rule holds for every client"),
];

/// Of a subset.
pub(super) const SUBSET: &[Field] = &[field(
    "trafficPolicy",
    TrafficPolicy,
    "not honoured yet: connections are spread evenly, without limits, and mutual TLS follows PeerAuthentication alone",
)];
