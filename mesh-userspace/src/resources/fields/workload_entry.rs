//! Fields of `WorkloadEntry`s (istio/api, `networking/v1alpha3/workload_entry.proto`).

use super::{Field, State};

pub(super) const FIELDS: &[Field] = &[
    Field {
        path: "spec.address",
        state: State::Partly,
        note: "an IP address; one with a name or `unix://` is no workload here",
    },
    Field {
        path: "spec.ports",
        state: State::Honoured,
        note: "by the name of a ServiceEntry's port, or of a Kubernetes Service's `targetPort`",
    },
    Field {
        path: "spec.labels",
        state: State::Honoured,
        note: "together with those of `metadata`, which hold where both name one: selectors, subsets, policies",
    },
    Field {
        path: "spec.network",
        state: State::NotYet,
        note: "taken for the own network: it is connected to directly, and is no workload without an address",
    },
    Field {
        path: "spec.locality",
        state: State::Honoured,
        note: "`REGION/ZONE/SUBZONE`; what is behind it is passed over",
    },
    Field { path: "spec.weight", state: State::Honoured, note: "0 counts as 1" },
    Field {
        path: "spec.serviceAccount",
        state: State::Honoured,
        note: "the identity that it must show where it takes HBONE (label `networking.istio.io/tunnel: http`); otherwise it is reached in \
               plaintext",
    },
];
