//! Fields that Istio has and that this mesh does not carry out, with what becomes of what they ask for. Others are taken for
//! typing mistakes.

use crate::resources::Code::{self, Layer7, NotHonouredYet};

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
const NO_ANSWER: &str = "not honoured at layer 4, which makes no HTTP answers: connections go to the route's destinations, and on to the next \
     route where it has none";
const UNCHANGED: &str =
    "not honoured at layer 4, which sees no requests: they come to the application as the client sent them";
const NO_TIMES: &str =
    "not honoured at layer 4, which sees no requests: they wait and fail as client and application have it";
const NO_FAULTS: &str = "not honoured at layer 4, which sees no requests: none is delayed or refused";
const NO_COPIES: &str =
    "not honoured at layer 4 yet: nothing is copied, all goes to the route's destinations alone";
const NEVER: &str =
    "not honoured at layer 4, where a connection does not tell it: this alternative never matches";
const NEVER_YET: &str = "not honoured at layer 4 yet: this alternative never matches";

/// Of the `spec` of a Gateway API route.
pub(super) const GATEWAY_ROUTE: &[Field] = &[field(
    "useDefaultGateways",
    NotHonouredYet,
    "not honoured yet: the route holds for the parents that it names",
)];

/// Of a backend of a Gateway API route.
pub(super) const BACKEND: &[Field] = &[field("filters", Layer7, UNCHANGED)];

/// Of `VirtualService.spec`.
pub(super) const VIRTUAL_SERVICE: &[Field] = &[field("exportTo", NotHonouredYet, EXPORT)];

/// Of a route.
pub(super) const ROUTE: &[Field] = &[
    field("redirect", Layer7, NO_ANSWER),
    field("directResponse", Layer7, NO_ANSWER),
    field(
        "delegate",
        Layer7,
        "not honoured at layer 4: the routes of the other VirtualService are not taken in",
    ),
    field("rewrite", Layer7, UNCHANGED),
    field("headers", Layer7, UNCHANGED),
    field("corsPolicy", Layer7, UNCHANGED),
    field("timeout", Layer7, NO_TIMES),
    field("retries", Layer7, NO_TIMES),
    field("fault", Layer7, NO_FAULTS),
    field("mirror", Layer7, NO_COPIES),
    field("mirrors", Layer7, NO_COPIES),
    field("mirrorPercentage", Layer7, NO_COPIES),
    field("mirror_percent", Layer7, NO_COPIES),
    field("mirrorPercent", Layer7, NO_COPIES),
];

/// Of a match.
pub(super) const MATCH: &[Field] = &[
    field("uri", Layer7, NEVER),
    field("scheme", Layer7, NEVER),
    field("method", Layer7, NEVER),
    field("authority", Layer7, NEVER),
    field("headers", Layer7, NEVER),
    field("queryParams", Layer7, NEVER),
    field("ignoreUriCase", Layer7, NEVER),
    field("withoutHeaders", Layer7, NEVER),
    field("sniHosts", NotHonouredYet, NEVER_YET),
    field("sourceLabels", NotHonouredYet, NEVER_YET),
    field("sourceNamespace", NotHonouredYet, NEVER_YET),
    field("sourceSubnet", NotHonouredYet, NEVER_YET),
    field("destinationSubnets", NotHonouredYet, NEVER_YET),
];

/// Of a weighted destination.
pub(super) const DESTINATION: &[Field] = &[field("headers", Layer7, UNCHANGED)];
