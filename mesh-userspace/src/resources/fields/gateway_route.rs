//! Fields of `TCPRoute`s and `TLSRoute`s (Gateway API 1.4, experimental channel).

use super::Field;
use super::State::{Enrolled, Honoured, NotYet, Partly};

const fn field(path: &'static str, state: super::State, note: &'static str) -> Field {
    Field { path, state, note }
}

pub(super) const FIELDS: &[Field] = &[
    field(
        "spec.parentRefs[].group",
        Partly,
        "`\"\"`: Services are served, gateways are left to other controllers",
    ),
    field("spec.parentRefs[].kind", Partly, "`Service`"),
    field(
        "spec.parentRefs[].namespace",
        Honoured,
        "a route of another namespace than the Service's is for the enrolled clients of its own namespace",
    ),
    field("spec.parentRefs[].name", Honoured, ""),
    field("spec.parentRefs[].sectionName", Honoured, "the port's name"),
    field("spec.parentRefs[].port", Honoured, ""),
    field("spec.useDefaultGateways", NotYet, "the route holds for the parents that it names"),
    field(
        "spec.hostnames",
        Enrolled,
        "`TLSRoute`: the server name of the client's TLS, which is looked at and not ended",
    ),
    field("spec.rules[].name", Honoured, "a name, which asks nothing"),
    field("spec.rules[].backendRefs[].group", Partly, "`\"\"`"),
    field("spec.rules[].backendRefs[].kind", Partly, "`Service`"),
    field("spec.rules[].backendRefs[].name", Honoured, ""),
    field("spec.rules[].backendRefs[].namespace", Honoured, "with a `ReferenceGrant` there"),
    field("spec.rules[].backendRefs[].port", Honoured, ""),
    field("spec.rules[].backendRefs[].weight", Honoured, ""),
];
