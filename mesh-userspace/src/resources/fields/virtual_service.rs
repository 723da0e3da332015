//! Fields of `VirtualService`s.

use super::Field;
use super::State::{Carried, Enrolled, Honoured, Layer7, NotYet, Partly};

const NEVER: &str = "a connection does not tell it: this alternative never matches";
const NO_ANSWER: &str = "layer 4 makes no HTTP answers: connections go to the route's destinations, and on to the next route where it has \
     none";
const UNCHANGED: &str = "requests come to the application as the client sent them";
const COPY: &str = "a copy of what the client sends; its answers are thrown away";
const SHARE: &str = "of the connections";
const LABELS: &str = "clients that are not enrolled take the next route";
const SUBNETS: &str = "for all clients where it is so, or not so, for every address of the service";

const fn field(path: &'static str, state: super::State, note: &'static str) -> Field {
    Field { path, state, note }
}

pub(super) const FIELDS: &[Field] = &[
    field(
        "spec.hosts",
        Honoured,
        "short names in the rule's own namespace; wildcards, of which the most specific goes first",
    ),
    field(
        "spec.gateways",
        Partly,
        "`mesh`, which nothing said means too; no route holds for what comes through others",
    ),
    field(
        "spec.exportTo",
        Enrolled,
        "clients of other namespaces, and those that are not enrolled, take the next rule that is exported to them",
    ),
    field("spec.http[].name", Honoured, "a name, which asks nothing"),
    field("spec.http[].match[].name", Honoured, "a name, which asks nothing"),
    field("spec.http[].match[].uri", Layer7, NEVER),
    field("spec.http[].match[].scheme", Layer7, NEVER),
    field("spec.http[].match[].method", Layer7, NEVER),
    field("spec.http[].match[].authority", Layer7, NEVER),
    field("spec.http[].match[].headers", Layer7, NEVER),
    field("spec.http[].match[].port", Honoured, ""),
    field("spec.http[].match[].sourceLabels", Enrolled, LABELS),
    field("spec.http[].match[].gateways", Honoured, "holds where `mesh` is among them"),
    field("spec.http[].match[].queryParams", Layer7, NEVER),
    field("spec.http[].match[].ignoreUriCase", Layer7, NEVER),
    field("spec.http[].match[].withoutHeaders", Layer7, NEVER),
    field("spec.http[].match[].sourceNamespace", Enrolled, LABELS),
    field("spec.http[].match[].statPrefix", Honoured, "a name, which asks nothing"),
    field("spec.http[].route[].destination.host", Honoured, "short names in the rule's own namespace"),
    field("spec.http[].route[].destination.subset", Honoured, ""),
    field("spec.http[].route[].destination.port.number", Honoured, ""),
    field("spec.http[].route[].weight", Honoured, "a connection at a time"),
    field("spec.http[].route[].headers", Layer7, UNCHANGED),
    field("spec.http[].redirect", Layer7, NO_ANSWER),
    field("spec.http[].directResponse", Layer7, NO_ANSWER),
    field("spec.http[].delegate", NotYet, "the routes of the other VirtualService are not taken in"),
    field("spec.http[].rewrite", Layer7, UNCHANGED),
    field("spec.http[].timeout", Carried, "for the connection to be established, all tries together"),
    field("spec.http[].retries.attempts", Carried, "at most 25; on another endpoint, before a byte was sent"),
    field("spec.http[].retries.perTryTimeout", Carried, "for one try to be established"),
    field("spec.http[].retries.backoff", Carried, "before the first retry at most; it doubles, with jitter"),
    field(
        "spec.http[].retries.retryOn",
        Layer7,
        "a connection that cannot be established is tried again, and no other, whatever this says",
    ),
    field(
        "spec.http[].retries.retryRemoteLocalities",
        NotYet,
        "endpoints of other localities are tried by their priority alone",
    ),
    field(
        "spec.http[].retries.retryIgnorePreviousHosts",
        NotYet,
        "endpoints that failed are left out, whatever this says",
    ),
    field("spec.http[].fault.delay.fixedDelay", Enrolled, "before the connection is established"),
    field("spec.http[].fault.delay.percentage", Enrolled, "of the connections; none where it is missing"),
    field("spec.http[].fault.delay.percent", Enrolled, "the same, deprecated"),
    field("spec.http[].fault.delay.exponentialDelay", NotYet, "rejected, as by Istio"),
    field(
        "spec.http[].fault.abort.percentage",
        Enrolled,
        "of the connections, which are reset; none where it is missing",
    ),
    field("spec.http[].fault.abort.httpStatus", Partly, "enrolled clients; a reset, whatever the status"),
    field("spec.http[].fault.abort.grpcStatus", Partly, "enrolled clients; a reset, whatever the status"),
    field("spec.http[].fault.abort.http2Error", NotYet, "rejected, as by Istio"),
    field("spec.http[].mirror", Enrolled, COPY),
    field("spec.http[].mirrors[].destination", Enrolled, COPY),
    field("spec.http[].mirrors[].percentage", Enrolled, SHARE),
    field("spec.http[].mirrorPercentage", Enrolled, SHARE),
    field("spec.http[].mirrorPercent", Enrolled, "the same, deprecated"),
    field("spec.http[].mirror_percent", Enrolled, "the same, deprecated"),
    field("spec.http[].corsPolicy", Layer7, "no answer is looked at"),
    field("spec.http[].headers", Layer7, UNCHANGED),
    field(
        "spec.tls[].match[].sniHosts",
        Enrolled,
        "the server name of the client's TLS, which is looked at and not ended; wildcards",
    ),
    field("spec.tls[].match[].destinationSubnets", Enrolled, SUBNETS),
    field("spec.tls[].match[].port", Honoured, ""),
    field("spec.tls[].match[].sourceLabels", Enrolled, LABELS),
    field("spec.tls[].match[].gateways", Honoured, "holds where `mesh` is among them"),
    field("spec.tls[].match[].sourceNamespace", Enrolled, LABELS),
    field("spec.tls[].route[].destination.host", Honoured, "short names in the rule's own namespace"),
    field("spec.tls[].route[].destination.subset", Honoured, ""),
    field("spec.tls[].route[].destination.port.number", Honoured, ""),
    field("spec.tls[].route[].weight", Honoured, ""),
    field("spec.tcp[].match[].destinationSubnets", Enrolled, SUBNETS),
    field("spec.tcp[].match[].port", Honoured, ""),
    field("spec.tcp[].match[].sourceLabels", Enrolled, LABELS),
    field("spec.tcp[].match[].gateways", Honoured, "holds where `mesh` is among them"),
    field("spec.tcp[].match[].sourceNamespace", Enrolled, LABELS),
    field("spec.tcp[].match[].sourceSubnet", Enrolled, "Istio's proxies do not look at it"),
    field("spec.tcp[].route[].destination.host", Honoured, "short names in the rule's own namespace"),
    field("spec.tcp[].route[].destination.subset", Honoured, ""),
    field("spec.tcp[].route[].destination.port.number", Honoured, ""),
    field("spec.tcp[].route[].weight", Honoured, ""),
];
